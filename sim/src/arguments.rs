//! A run in words: the arguments that name it, and the line that repeats it.

use std::collections::BTreeSet;

use clap::Args;
use spillway_runtime::faults::Point;

use crate::plan::{FAULT_KINDS, FaultKind, FaultKinds, plan};
use crate::runner::seed_of;
use crate::{Bug, Mode, Options};

/// Digits behind the point of a second.
const DIGITS: usize = 9;

/// What a run is made of, but for its seed.
#[derive(Args, Clone, Debug)]
pub struct RunArguments {
    /// Only this seed, with its numbers; a word (the hash of a commit) is a seed too.
    #[arg(long, value_parser = seed_of)]
    pub seed: Option<u64>,
    /// Nodes of the cluster.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=7))]
    pub nodes: u16,
    /// Virtual time with faults, seconds, such as 60 or 2.5.
    #[arg(long, value_parser = nanos_of)]
    pub seconds: Option<u64>,
    /// Links between nodes lose and repeat single messages.
    #[arg(long)]
    pub lossy: bool,
    /// Change what is durable, too: a node may then refuse to start, but never lose silently.
    #[arg(long)]
    pub beyond: bool,
    /// Plant a bug.
    #[arg(long, value_parser = Bug::parse)]
    pub bug: Option<Bug>,
    /// Only these kinds of faults, such as power-loss,cut; else the seed draws them.
    #[arg(long, value_delimiter = ',', value_parser = kind_of)]
    pub kinds: Vec<FaultKind>,
    /// Leave these kinds of faults out; all others stay where they are.
    #[arg(long, value_delimiter = ',', value_parser = kind_of)]
    pub off: Vec<FaultKind>,
    /// Leave the faults of these numbers out, such as 3,5-9; all others stay where they are.
    #[arg(long, value_parser = Ranges::parse)]
    pub skip: Option<Ranges>,
    /// Leave all faults out but those of these numbers.
    #[arg(long, value_parser = Ranges::parse, conflicts_with = "skip")]
    pub keep: Option<Ranges>,
    /// The faults end earlier, after so many seconds of the same plan.
    #[arg(long, value_parser = nanos_of)]
    pub until: Option<u64>,
    /// Nothing forces rare paths in the product.
    #[arg(long)]
    pub no_points: bool,
    /// These points in the product force nothing, such as write-held,item-later; all others do.
    #[arg(long, value_delimiter = ',', value_parser = point_of)]
    pub disarm: Vec<Point>,
    /// The same plan with other chance around it.
    #[arg(long, default_value_t = 0)]
    pub salt: u64,
    /// Clients with a session, for each shard, at most.
    #[arg(long)]
    pub workers: Option<u16>,
}

impl RunArguments {
    /// The run of this seed.
    pub fn options(&self, seed: u64) -> Options {
        let mut options = match self.nodes {
            1 => Options::new(seed),
            nodes => Options::cluster(seed, nodes),
        };
        options.faults_nanos = self.seconds.unwrap_or(options.faults_nanos);
        options.lossy = self.lossy;
        options.mode = if self.beyond { Mode::Beyond } else { Mode::Promised };
        options.bug = self.bug;
        let kinds = FaultKinds::of(self.kinds.iter().copied());
        options.kinds = (!self.kinds.is_empty()).then_some(kinds);
        options.kinds_off = FaultKinds::of(self.off.iter().copied());
        options.until_nanos = self.until;
        options.points_off = self.no_points;
        options.points_disarmed = self.disarm.iter().copied().collect();
        options.salt = self.salt;
        options.workers_max = self.workers;
        if let Some(skip) = &self.skip {
            options.faults_skipped = skip.0.clone();
        }
        if let Some(keep) = &self.keep {
            let ordinals = plan(&options).into_iter().map(|fault| fault.ordinal);
            options.faults_skipped = ordinals.filter(|at| !keep.0.contains(at)).collect();
        }
        options
    }
}

impl Options {
    /// The line that repeats the run.
    pub fn to_line(&self) -> String {
        let plain = match self.nodes {
            1 => Self::new(self.seed),
            nodes => Self::cluster(self.seed, nodes),
        };
        let mut line = format!("cargo xtask sim --seed {}", self.seed);
        let mut add = |words: String| {
            line.push(' ');
            line.push_str(&words);
        };
        if self.nodes > 1 {
            add(format!("--nodes {}", self.nodes));
        }
        if self.faults_nanos != plain.faults_nanos {
            add(format!("--seconds {}", seconds(self.faults_nanos)));
        }
        if self.lossy {
            add("--lossy".to_owned());
        }
        if self.mode == Mode::Beyond {
            add("--beyond".to_owned());
        }
        if let Some(bug) = self.bug {
            add(format!("--bug {}", bug.name()));
        }
        if let Some(kinds) = self.kinds {
            add(format!("--kinds {}", names(kinds)));
        }
        if self.kinds_off != FaultKinds::NONE {
            add(format!("--off {}", names(self.kinds_off)));
        }
        if !self.faults_skipped.is_empty() {
            add(self.skip_words());
        }
        if let Some(until) = self.until_nanos {
            add(format!("--until {}", seconds(until)));
        }
        if self.points_off {
            add("--no-points".to_owned());
        }
        if !self.points_disarmed.is_empty() {
            let names: Vec<String> = self.points_disarmed.iter().map(|at| at.name()).collect();
            add(format!("--disarm {}", names.join(",")));
        }
        if self.salt != 0 {
            add(format!("--salt {}", self.salt));
        }
        if let Some(workers) = self.workers_max {
            add(format!("--workers {workers}"));
        }
        line
    }

    /// What is left out, or what is left: the shorter.
    fn skip_words(&self) -> String {
        let skip = format!("--skip {}", Ranges(self.faults_skipped.clone()).text());
        let ordinals: BTreeSet<u64> = plan(self).into_iter().map(|fault| fault.ordinal).collect();
        let kept: BTreeSet<u64> = ordinals.difference(&self.faults_skipped).copied().collect();
        let keep = format!("--keep {}", Ranges(kept.clone()).text());
        let is_same = self.faults_skipped.is_subset(&ordinals) && !kept.is_empty();
        if is_same && keep.len() < skip.len() { keep } else { skip }
    }
}

fn names(kinds: FaultKinds) -> String {
    kinds.iter().map(FaultKind::name).collect::<Vec<_>>().join(",")
}

fn kind_of(name: &str) -> Result<FaultKind, String> {
    let names: Vec<String> = FAULT_KINDS.into_iter().map(FaultKind::name).collect();
    FaultKind::of_name(name).ok_or_else(|| format!("one of {}", names.join(", ")))
}

fn point_of(name: &str) -> Result<Point, String> {
    let point = Point::ALL.into_iter().find(|point| point.name() == name);
    point.ok_or_else(|| format!("one of {}", Point::ALL.map(Point::name).join(", ")))
}

/// Seconds in decimal as nanoseconds, without rounding.
fn nanos_of(text: &str) -> Result<u64, String> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let wrong = || "seconds, such as 60 or 2.5".to_owned();
    if whole.is_empty() || part.len() > DIGITS || !digits(whole) || !digits(part) {
        return Err(wrong());
    }
    let nanos: u64 = format!("{whole}{part:0<DIGITS$}").parse().map_err(|_| wrong())?;
    if nanos == 0 { Err(wrong()) } else { Ok(nanos) }
}

/// The other way round.
pub fn seconds(nanos: u64) -> String {
    let text = format!("{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Numbers such as `3,5-9`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(pub BTreeSet<u64>);

/// More numbers than any plan has.
const RANGES_MAX: u64 = 1 << 20;

impl Ranges {
    fn parse(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse::<u64>().ok().filter(|number| *number < RANGES_MAX);
        let mut numbers = BTreeSet::new();
        for part in text.split(',') {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            let (from, to) = number(from).zip(number(to)).ok_or("numbers such as 3,5-9")?;
            numbers.extend(from..=to);
        }
        Ok(Self(numbers))
    }

    fn text(&self) -> String {
        let mut parts: Vec<(u64, u64)> = Vec::new();
        for number in &self.0 {
            match parts.last_mut() {
                Some((_, to)) if *to + 1 == *number => *to = *number,
                _ => parts.push((*number, *number)),
            }
        }
        let text = |(from, to): &(u64, u64)| match to - from {
            0 => from.to_string(),
            _ => format!("{from}-{to}"),
        };
        parts.iter().map(text).collect::<Vec<_>>().join(",")
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::draw::Draw;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        run: RunArguments,
    }

    fn parse(line: &str) -> Options {
        // "cargo xtask sim" is one name.
        let words = line.split(' ').skip(2);
        let arguments = Line::parse_from(words).run;
        arguments.options(arguments.seed.expect("the line names a seed"))
    }

    #[test]
    fn a_line_repeats_its_run() {
        let mut draw = Draw::new(1);
        for seed in 0..300 {
            let mut options = match draw.pick(&[1, 3, 5]) {
                1 => Options::new(seed),
                nodes => Options::cluster(seed, nodes),
            };
            if draw.once_in(2) {
                options.faults_nanos = draw.range(1, 60_000_000_000);
            }
            options.lossy = options.nodes > 1 && draw.once_in(3);
            options.mode = draw.pick(&[Mode::Promised, Mode::Beyond]);
            options.bug = draw.pick(&[None, Some(crate::BUGS[3])]);
            let mut kinds = || {
                let kinds = FAULT_KINDS.into_iter().filter(|_| draw.once_in(3));
                FaultKinds::of(kinds)
            };
            options.kinds = Some(kinds()).filter(|kinds| *kinds != FaultKinds::NONE);
            options.kinds_off = kinds();
            let ordinals = plan(&options).into_iter().map(|fault| fault.ordinal);
            let density = draw.range(1, 5);
            options.faults_skipped = ordinals.filter(|_| !draw.once_in(density)).collect();
            options.until_nanos = draw.pick(&[None, Some(1_234_567_890)]);
            options.points_off = draw.once_in(3);
            let disarmed = Point::ALL.into_iter().filter(|_| draw.once_in(20));
            options.points_disarmed = disarmed.collect();
            options.salt = draw.below(3);
            options.workers_max = draw.pick(&[None, Some(2)]);
            let line = options.to_line();
            assert_eq!(format!("{:?}", parse(&line)), format!("{options:?}"), "{line}");
        }
    }

    #[test]
    fn seconds_are_exact() {
        for (text, nanos) in
            [("60", 60_000_000_000), ("0.4", 400_000_000), ("1.000000001", 1_000_000_001)]
        {
            assert_eq!(nanos_of(text), Ok(nanos));
            assert_eq!(seconds(nanos), text);
        }
        for wrong in ["", "0", "0.0", "-1", "1.0000000001", ".5", "1e3", "99999999999999999999"] {
            assert!(nanos_of(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ranges_are_short() {
        let ranges = Ranges::parse("3,5-9,12").expect("numbers");
        assert_eq!(ranges.0, BTreeSet::from([3, 5, 6, 7, 8, 9, 12]));
        assert_eq!(ranges.text(), "3,5-9,12");
        for wrong in ["", "a", "1-", "1,,2", "0-99999999999"] {
            assert!(Ranges::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_word_is_a_seed() {
        assert_eq!(seed_of("4711"), Ok(4711));
        assert_ne!(seed_of("deadbeef"), seed_of("deadbee"));
        assert!(seed_of("0123456789012345678901234567890123456789").is_ok());
        assert!(seed_of("").is_err());
    }
}
