//! Flipped bits at rest: the power of all nodes goes at once, a bit of a log changes while they
//! are down, and all come back. Until so many acknowledged transactions were exposed to that.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use spillway_perf::PerfError;
use spillway_perf::identity::Draw;
use spillway_perf::script::{Field, Script};
use spillway_runtime::file;

use crate::disk::Part;
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
    refused: u32,
    exposed: u64,
}

impl Flip {
    /// Flips the bit; a second time, flips it back.
    fn carry_out(&self) -> Result<(), RigError> {
        let mut bytes = file::read(&self.path)?;
        bytes[self.at as usize] ^= 1 << self.bit;
        Ok(file::write_atomic(&self.path, &bytes)?)
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

/// Chooses a bit that means something: of a superblock, of the end of the log, or anywhere in it.
fn choose(log: &Path, draw: &mut Draw) -> Result<(Flip, Part, bool), RigError> {
    let mut segments: Vec<PathBuf> = file::list_dir(log)?;
    segments.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    segments.sort();
    let superblock = log.join("superblock");
    let kind = draw.below(8);
    for _ in 0..ATTEMPTS_MAX {
        let (path, part, skip) = match kind {
            0 => (superblock.clone(), Part::Superblock, 0),
            1..=4 => {
                let path = segments.pop().ok_or_else(nothing)?;
                (path, Part::Segments, 8192 / SECTOR_BYTES)
            }
            _ => {
                let at = draw.below(segments.len() as u64) as usize;
                (segments[at].clone(), Part::Segments, 0)
            }
        };
        let mut used = sectors_used(&file::read(&path)?, skip);
        let is_end = matches!(kind, 1..=4);
        if is_end {
            used.drain(..used.len().saturating_sub(END_SECTORS));
        }
        if used.is_empty() {
            continue;
        }
        let sector = used[draw.below(used.len() as u64) as usize];
        let at = (sector * SECTOR_BYTES) as u64 + draw.below(SECTOR_BYTES as u64);
        let bit = draw.below(8) as u8;
        return Ok((Flip { path, at, bit }, part, is_end));
    }
    Err(nothing())
}

fn nothing() -> RigError {
    RigError::Options("the log holds nothing that could be damaged".to_owned())
}

struct Rig {
    disks: Disks,
    below: PathBuf,
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
        let (flip, part, is_end) = choose(&log, &mut self.draw).map_err(refuse)?;
        flip.carry_out().map_err(refuse)?;
        for other in all.iter().filter(|other| **other != node) {
            field.cluster.start(*other)?;
        }
        let how = self.start_damaged(field, node, &flip)?;
        field.progress_wait()?;
        field.caught_up_wait()?;
        field.say(format!(
            "{exposed} exposed; node {}, bit {} of byte {} of {}: {how}",
            node + 1,
            flip.bit,
            flip.at,
            flip.path.file_name().unwrap_or_default().display()
        ));
        tally(&self.seen, |seen| {
            seen.flips += 1;
            seen.superblocks += u32::from(part == Part::Superblock);
            seen.ends += u32::from(is_end);
            seen.repaired += u32::from(how == "repaired");
            seen.refused += u32::from(how.starts_with("refused"));
            seen.exposed = exposed;
        });
        Ok(())
    }

    /// Starts the node with the damaged log. If it refuses, the bit is flipped back, as if the
    /// disk had been read again.
    fn start_damaged(
        &self,
        field: &mut Field<'_>,
        node: usize,
        flip: &Flip,
    ) -> Result<String, PerfError> {
        match field.cluster.start(node) {
            Ok(_) => {
                let told = field.cluster.tail(node);
                let is_repaired = told.contains("the log is whole again");
                Ok(if is_repaired { "repaired" } else { "started without repair" }.to_owned())
            }
            Err(PerfError::Node { what, tail }) => {
                field.cluster.bury(&[node])?;
                if !tail.contains("error") {
                    let text = format!("{what}, without a reason: {tail}");
                    return Err(PerfError::Refused(text));
                }
                // With the others alone the cluster goes on.
                if field.cluster.len() > 1 {
                    field.progress_wait()?;
                }
                flip.carry_out().map_err(refuse)?;
                field.cluster.start(node)?;
                let reason = tail.lines().find(|line| line.contains("error")).unwrap_or("");
                Ok(format!("refused: {reason}"))
            }
            Err(other) => Err(other),
        }
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
         superblocks, {} at the end of the log): {} repaired, {} refused with a reason, {} \
         without effect; {} acknowledged transactions exposed",
        seen.flips,
        stage.nodes,
        seen.superblocks,
        seen.ends,
        seen.repaired,
        seen.refused,
        seen.flips - seen.repaired - seen.refused,
        seen.exposed
    );
    Ok(stage.outcome(report, seen.flips > 0, &what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bit_of_what_is_written_is_chosen_and_flipped() {
        let directory = tempfile::tempdir().expect("a directory");
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
            let (flip, part, is_end) = choose(log, &mut draw).expect("there is something");
            let before = file::read(&flip.path).expect("read");
            flip.carry_out().expect("flipped");
            let after = file::read(&flip.path).expect("read");
            let differing = before.iter().zip(&after).filter(|(a, b)| a != b).count();
            assert_eq!(differing, 1);
            assert_eq!((before[flip.at as usize] ^ after[flip.at as usize]).count_ones(), 1);
            let sector = flip.at as usize / SECTOR_BYTES * SECTOR_BYTES;
            assert!(before[sector..sector + SECTOR_BYTES].iter().any(|byte| *byte != 0));
            flip.carry_out().expect("flipped back");
            ends += u32::from(is_end);
            superblocks += u32::from(part == Part::Superblock);
            if is_end {
                assert!(flip.path.ends_with("segment-00001.log"), "{flip:?}");
            }
        }
        assert!(ends > 60 && superblocks > 10, "{ends} {superblocks}");
    }
}
