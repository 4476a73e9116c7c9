//! Flipped bits at rest: the power of all nodes goes at once, a bit of a log changes while they
//! are down, and all come back. Until so many acknowledged transactions were exposed to that.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use spillway_perf::PerfError;
use spillway_perf::identity::Draw;
use spillway_perf::script::{Field, Script};
use spillway_runtime::buffer::AlignedBuffer;
use spillway_runtime::clock::monotonic_now;
use spillway_runtime::direct::{DirectFile, DirectMode};
use spillway_runtime::{file, thread};

use crate::error::RigError;
use crate::file_system::Disks;
use crate::load::{
    LoadArguments, Outcome, Programs, Stage, Tally, order, power_off, refuse, tallied, tally,
};
use crate::order::Order;
use crate::sectors::{Keep, SECTOR_BYTES};

/// Seconds that a round takes besides its load, on the high side.
const ROUND_SECONDS: f64 = 10.0;
/// Segments are looked at so often for something to damage.
const ATTEMPTS_MAX: u32 = 1000;
/// How many of the last sectors written count as the end of the log.
const END_SECTORS: usize = 64;

/// How a node with a damaged log came back.
const REPAIRED: &str = "repaired";
const SHORTENED: &str = "taken for a torn end";
const REFUSED: &str = "refused";
const WAITS: &str = "waits";
/// How long a node may look for what is damaged at its peers, which are all there.
const MENDING_MAX: Duration = Duration::from_secs(5);
/// How long it may take in all.
const START_MAX: Duration = Duration::from_secs(120);

/// What can be chosen about flipped bits.
#[derive(Clone, Debug, clap::Args)]
pub struct FlipArguments {
    /// Goes on until so many acknowledged transactions lay on the disks when bits were flipped.
    #[arg(long, default_value_t = 1_000_000)]
    pub exposed: u64,
    /// Seconds of load before each flip.
    #[arg(long, default_value_t = 5.0)]
    pub seconds: f64,
    /// The load.
    #[command(flatten)]
    pub load: LoadArguments,
}

/// Where a bit was flipped.
#[derive(Clone, Debug)]
struct Flip {
    path: PathBuf,
    at: u64,
    bit: u8,
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    flips: u32,
    superblocks: u32,
    ends: u32,
    repaired: u32,
    shortened: u32,
    refused: u32,
    waited: u32,
    exposed: u64,
}

/// Bytes that are read and written at once to flip a bit.
const BLOCK_BYTES: u64 = 4096;

impl Flip {
    /// The block with the bit, and where the bit's byte is in it.
    fn block(&self, path: &Path) -> Result<(DirectFile, AlignedBuffer, usize), RigError> {
        let file = DirectFile::open(path, DirectMode::ReadWrite)?;
        let mut block = AlignedBuffer::new(BLOCK_BYTES as usize);
        file.read_at(&mut block, self.at / BLOCK_BYTES * BLOCK_BYTES)?;
        Ok((file, block, (self.at % BLOCK_BYTES) as usize))
    }

    /// Flips the bit; a second time, flips it back. In place: somebody may have the file open.
    fn carry_out(&self) -> Result<(), RigError> {
        let (file, mut block, at) = self.block(&self.path)?;
        block[at] ^= 1 << self.bit;
        file.write_at(&block, self.at / BLOCK_BYTES * BLOCK_BYTES)?;
        Ok(file.sync_data()?)
    }

    /// Whether the file reads the same under another path.
    fn is_seen_as(&self, path: &Path) -> Result<bool, RigError> {
        Ok(self.block(&self.path)?.1[..] == self.block(path)?.1[..])
    }
}

/// The log directory of a node, below.
fn log_directory(below: &Path, node: usize, nodes: usize) -> Result<PathBuf, RigError> {
    let found = file::list_dir(below)?.into_iter().find(|path| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with("spillway-burst-"))
    });
    let root = found.ok_or_else(|| RigError::Options("the nodes have no directory".to_owned()))?;
    let home = if nodes == 1 { root } else { root.join(format!("node-{}", node + 1)) };
    Ok(home.join("log"))
}

/// Sectors that hold something, but for the segment's own header.
fn sectors_used(bytes: &[u8], skip: usize) -> Vec<usize> {
    let sectors = bytes.chunks(SECTOR_BYTES).enumerate().skip(skip);
    let used = sectors.filter(|(_, sector)| sector.iter().any(|byte| *byte != 0));
    used.map(|(at, _)| at).collect()
}

/// Where a bit is flipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Superblock,
    /// The beginning of a segment, used or not.
    Header,
    /// The frames written last.
    End,
    /// Any frame.
    Frames,
}

impl Place {
    fn draw(draw: &mut Draw) -> Self {
        match draw.below(10) {
            0 => Self::Superblock,
            1 => Self::Header,
            2..=5 => Self::End,
            _ => Self::Frames,
        }
    }
}

/// Bytes at the beginning of a segment that hold no frames, at most.
const HEADER_BYTES: usize = 8192;

/// Chooses a bit of something that was written.
fn choose(log: &Path, draw: &mut Draw) -> Result<(Flip, Place), RigError> {
    let mut segments: Vec<PathBuf> = file::list_dir(log)?;
    segments.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    segments.sort();
    let place = Place::draw(draw);
    let any = |segments: &[PathBuf], draw: &mut Draw| {
        segments[draw.below(segments.len() as u64) as usize].clone()
    };
    for _ in 0..ATTEMPTS_MAX {
        let path = match place {
            Place::Superblock => log.join("superblock"),
            Place::Header | Place::Frames => any(&segments, draw),
            Place::End => segments.pop().ok_or_else(nothing)?,
        };
        let bytes = file::read(&path)?;
        let used = match place {
            Place::Superblock => sectors_used(&bytes, 0),
            Place::Header => sectors_used(&bytes[..HEADER_BYTES], 0),
            Place::Frames => sectors_used(&bytes, HEADER_BYTES / SECTOR_BYTES),
            Place::End => {
                let used = sectors_used(&bytes, HEADER_BYTES / SECTOR_BYTES);
                used[used.len().saturating_sub(END_SECTORS)..].to_vec()
            }
        };
        if used.is_empty() {
            continue;
        }
        let sector = used[draw.below(used.len() as u64) as usize];
        let at = (sector * SECTOR_BYTES) as u64 + draw.below(SECTOR_BYTES as u64);
        let bit = draw.below(8) as u8;
        return Ok((Flip { path, at, bit }, place));
    }
    Err(nothing())
}

fn nothing() -> RigError {
    RigError::Options("the log holds nothing that could be damaged".to_owned())
}

struct Rig {
    disks: Disks,
    below: PathBuf,
    mount: PathBuf,
    draw: Draw,
    seen: Tally<Seen>,
    load: Duration,
}

impl Rig {
    fn round(&mut self, field: &mut Field<'_>) -> Result<(), PerfError> {
        field.sleep(self.load)?;
        let all: Vec<usize> = (0..field.cluster.len()).collect();
        power_off(field, &self.disks, &all, "power cut of all")?;
        // What was acknowledged by now lies on the disks, and on one of them it is damaged.
        let exposed = field.committed();
        for node in &all {
            let keep = Keep::draw(&mut self.draw);
            order(&self.disks, *node, Order::PowerOn(keep))?;
        }
        let node = self.draw.below(all.len() as u64) as usize;
        let log = log_directory(&self.below, node, all.len()).map_err(refuse)?;
        let (flip, place) = choose(&log, &mut self.draw).map_err(refuse)?;
        flip.carry_out().map_err(refuse)?;
        let below = flip.path.strip_prefix(&self.below).expect("it is there");
        if !flip.is_seen_as(&self.mount.join(below)).map_err(refuse)? {
            return Err(PerfError::Refused("the node would not see the flipped bit".to_owned()));
        }
        for other in all.iter().filter(|other| **other != node) {
            field.cluster.start(*other)?;
        }
        let how = self.start_damaged(field, node, &flip)?;
        field.progress_wait()?;
        field.caught_up_wait()?;
        field.say(format!(
            "{exposed} exposed; node {}, {place:?}, bit {} of byte {} of {}: {how}",
            node + 1,
            flip.bit,
            flip.at,
            flip.path.file_name().unwrap_or_default().display()
        ));
        tally(&self.seen, |seen| {
            seen.flips += 1;
            seen.superblocks += u32::from(place == Place::Superblock);
            seen.ends += u32::from(place == Place::End);
            seen.repaired += u32::from(how == REPAIRED);
            seen.shortened += u32::from(how == SHORTENED);
            seen.refused += u32::from(how.starts_with(REFUSED));
            seen.waited += u32::from(how.starts_with(WAITS));
            seen.exposed = exposed;
        });
        Ok(())
    }

    /// Starts the node with the damaged log. If it refuses, or waits for what no other node has,
    /// the bit is flipped back, as if the disk had been read again.
    fn start_damaged(
        &self,
        field: &mut Field<'_>,
        node: usize,
        flip: &Flip,
    ) -> Result<String, PerfError> {
        field.cluster.start_begin(node)?;
        let began = monotonic_now();
        let how = loop {
            match field.cluster.is_ready(node) {
                Ok(true) => return Ok(how_started(&field.cluster.tail(node)).to_owned()),
                Ok(false) => {}
                Err(PerfError::Node { what, tail }) => {
                    field.cluster.bury(&[node])?;
                    let reason = tail.lines().find(|line| line.contains("error"));
                    let reason = reason.ok_or_else(|| {
                        PerfError::Refused(format!("{what}, without a reason: {tail}"))
                    })?;
                    break format!("{REFUSED}: {reason}");
                }
                Err(other) => return Err(other),
            }
            let waited = monotonic_now().saturating_since(began);
            let told = field.cluster.tail(node);
            let reason = told.lines().find(|line| line.contains("cannot be had from a peer yet"));
            if let (Some(reason), true) = (reason, waited > MENDING_MAX) {
                let how = format!("{WAITS}: {reason}");
                field.cluster.kill(&[node])?;
                break how;
            }
            if waited > START_MAX {
                let (what, seconds) = ("the start of the damaged node", START_MAX.as_secs());
                return Err(PerfError::TimedOut { what, seconds, tail: told });
            }
            thread::sleep(Duration::from_millis(5));
        };
        // With the others alone the cluster goes on.
        if field.cluster.len() > 1 {
            field.progress_wait()?;
        }
        flip.carry_out().map_err(refuse)?;
        field.cluster.start(node)?;
        Ok(how)
    }
}

fn how_started(told: &str) -> &'static str {
    match told {
        told if told.contains("the log is whole again") => REPAIRED,
        told if told.contains("cut short") => SHORTENED,
        _ => "without effect",
    }
}

/// Runs the rig.
///
/// # Errors
/// If it could not be run to its end.
pub fn run(arguments: &FlipArguments, programs: &Programs) -> Result<Outcome, RigError> {
    let stage = Stage::new("flip", &arguments.load, programs, (5, 0))?;
    let seen: Tally<Seen> = Arc::default();
    let mut rig = Rig {
        disks: stage.mount.disks().clone(),
        below: stage.mount.below(),
        mount: stage.mount.path(),
        draw: Draw::new(stage.seed, 0xF11),
        seen: Arc::clone(&seen),
        load: Duration::from_secs_f64(arguments.seconds),
    };
    let (exposed, times) = (arguments.exposed, stage.times);
    let script: Script = Box::new(move |field| {
        field.progress_wait()?;
        loop {
            let seen = tallied(&rig.seen);
            if seen.exposed >= exposed && seen.flips >= times {
                return Ok(());
            }
            rig.round(field)?;
        }
    });
    let load_seconds = 2.0 * exposed as f64 / arguments.load.rate;
    let rounds = (load_seconds / arguments.seconds).max(f64::from(times));
    let report = stage.play(load_seconds + rounds * ROUND_SECONDS, script)?;
    let seen = tallied(&seen);
    let what = format!(
        "{} bits flipped at rest on one of {} nodes, each with a power cut of all ({} in \
         superblocks, {} at the end of the log): {} repaired, {} taken for \
         a torn end, {} refused with a reason, {} waiting for \
         what no other node has, {} without effect; {} acknowledged transactions exposed",
        seen.flips,
        stage.nodes,
        seen.superblocks,
        seen.ends,
        seen.repaired,
        seen.shortened,
        seen.refused,
        seen.waited,
        seen.flips - seen.repaired - seen.shortened - seen.refused - seen.waited,
        seen.exposed
    );
    Ok(stage.outcome(report, seen.flips > 0, &what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bit_of_what_is_written_is_chosen_and_flipped() {
        let directory = tempfile::tempdir_in(".").expect("a directory");
        let log = directory.path();
        let put = |name: &str, from: usize, to: usize| {
            let mut bytes = vec![0; 64 << 10];
            bytes[from..to].fill(0xA5);
            file::write_atomic(&log.join(name), &bytes).expect("written");
        };
        put("superblock", 0, 4096);
        put("segment-00000.log", 0, 40_000);
        put("segment-00001.log", 0, 20_000);
        put("segment-00002.log", 0, 512);
        let mut draw = Draw::new(7, 7);
        let (mut ends, mut superblocks) = (0, 0);
        for _ in 0..200 {
            let (flip, place) = choose(log, &mut draw).expect("there is something");
            let before = file::read(&flip.path).expect("read");
            flip.carry_out().expect("flipped");
            let after = file::read(&flip.path).expect("read");
            let differing = before.iter().zip(&after).filter(|(a, b)| a != b).count();
            assert_eq!(differing, 1);
            assert_eq!((before[flip.at as usize] ^ after[flip.at as usize]).count_ones(), 1);
            let sector = flip.at as usize / SECTOR_BYTES * SECTOR_BYTES;
            assert!(before[sector..sector + SECTOR_BYTES].iter().any(|byte| *byte != 0));
            flip.carry_out().expect("flipped back");
            ends += u32::from(place == Place::End);
            superblocks += u32::from(place == Place::Superblock);
            if place == Place::End {
                assert!(flip.path.ends_with("segment-00001.log"), "{flip:?}");
            }
        }
        assert!(ends > 50 && superblocks > 8, "{ends} {superblocks}");
    }
}
