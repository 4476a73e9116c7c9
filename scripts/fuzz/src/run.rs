//! Random inputs for decoders, in this process, from a seed.
//!
//! Every run draws its input from its own seed, so one number repeats one run, whatever the number
//! of runs before it. There is no coverage feedback: the targets are decoders, and what finds
//! their mistakes is a valid input with a few bytes wrong.

use std::sync::Mutex;

/// Something to feed with bytes. A run fails by panicking.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// The name on the command line.
    pub name: &'static str,
    /// What must hold, in one line.
    pub about: &'static str,
    /// Valid inputs to begin from; may be empty.
    pub samples: fn() -> Vec<Vec<u8>>,
    /// Takes one input.
    pub run: fn(&[u8]),
}

/// Longest input drawn from nothing, bytes.
const RANDOM_BYTES_MAX: u64 = 4096;
/// Most mutations of a sample in one run.
const MUTATIONS_MAX: u64 = 8;

/// The run under way: printed by the panic hook, which runs before the process aborts.
static RUN: Mutex<Option<(&'static str, u64)>> = Mutex::new(None);

/// Makes a panic print the line that repeats the run it happened in.
pub fn print_reproduction_on_panic() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        before(info);
        let run = RUN.lock().map(|run| *run).unwrap_or(None);
        if let Some((target, seed)) = run {
            eprintln!("reproduce: {}", reproduction(target, seed));
        }
    }));
}

/// The command that repeats one run.
pub fn reproduction(target: &str, seed: u64) -> String {
    format!("cargo xtask fuzz {target} --seed {seed} --runs 1")
}

/// Feeds `target` with `runs` inputs drawn from `seed`, `seed + 1` and so on.
pub fn run(target: &Target, seed: u64, runs: u64, mut progress: impl FnMut(u64)) {
    let samples = (target.samples)();
    for index in 0..runs {
        let seed = seed.wrapping_add(index);
        *RUN.lock().expect("the run's holder does not panic") = Some((target.name, seed));
        (target.run)(&input(&samples, seed));
        progress(index + 1);
    }
    *RUN.lock().expect("the run's holder does not panic") = None;
}

/// The input of the run with this seed.
pub fn input(samples: &[Vec<u8>], seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    if samples.is_empty() || random.below(16) == 0 {
        let length = random.below(RANDOM_BYTES_MAX + 1);
        return (0..length).map(|_| random.next() as u8).collect();
    }
    let sample = &samples[random.below(samples.len() as u64) as usize];
    let mut bytes = sample.clone();
    for _ in 0..random.below(MUTATIONS_MAX) {
        mutate(&mut bytes, samples, &mut random);
    }
    bytes
}

fn mutate(bytes: &mut Vec<u8>, samples: &[Vec<u8>], random: &mut Random) {
    /// Numbers at which length checks go wrong.
    const EDGES: [u64; 8] = [0, 1, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, u64::MAX];
    let length = bytes.len() as u64;
    let at = random.below(length.max(1)) as usize;
    match random.below(8) {
        0 if length > 0 => bytes[at] ^= 1 << random.below(8),
        1 if length > 0 => bytes[at] = random.next() as u8,
        2 => bytes.truncate(at),
        3 => bytes.extend((0..random.below(64)).map(|_| random.next() as u8)),
        4 if length > 0 => {
            let edge = EDGES[random.below(EDGES.len() as u64) as usize].to_le_bytes();
            let width = (1usize << random.below(4)).min(bytes.len() - at);
            bytes[at..at + width].copy_from_slice(&edge[..width]);
        }
        5 if length > 0 => {
            let end = at + random.below(length - at as u64 + 1) as usize;
            bytes.drain(at..end);
        }
        6 if length > 0 => {
            let end = at + random.below(length.min(256) - (at as u64).min(255)) as usize;
            let copy = bytes[at..end.clamp(at, bytes.len())].to_vec();
            let to = random.below(length) as usize;
            bytes.splice(to..to, copy);
        }
        _ => {
            let other = &samples[random.below(samples.len() as u64) as usize];
            let from = random.below(other.len() as u64 + 1) as usize;
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
    }
}

/// SplitMix64: one word of state, good enough to pick bytes, the same on every machine.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which must not be 0.
    fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "no number is below 0");
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets::TARGETS;

    #[test]
    fn a_seed_repeats_its_input() {
        let samples = vec![b"a valid sample".to_vec(), vec![]];
        for seed in 0..2_000 {
            assert_eq!(input(&samples, seed), input(&samples, seed));
        }
    }

    #[test]
    fn inputs_differ_and_reach_samples() {
        let samples = vec![b"a valid sample".to_vec()];
        let inputs: std::collections::BTreeSet<_> = (0..500).map(|s| input(&samples, s)).collect();
        assert!(inputs.len() > 300, "{}", inputs.len());
        assert!(inputs.contains(&samples[0]), "some runs take a sample as it is");
    }

    #[test]
    fn every_target_survives_a_fixed_number_of_runs() {
        for target in TARGETS {
            run(target, 1, 2_000, |_| {});
        }
    }
}
