//! What a person sees while a burst runs: a line that moves on a terminal, one line per second
//! elsewhere. All of it goes to standard error.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use spillway_runtime::clock::{MonotonicNanos, monotonic_now};

use crate::drive::Snapshot;
use crate::recorder::Counts;
use crate::report::{thousands, time_text};

/// The display.
pub struct Progress {
    bar: Option<ProgressBar>,
    last: Counts,
    last_at_ns: u64,
    said_at: MonotonicNanos,
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress {
    /// A display that suits standard error.
    pub fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(100);
            let style = ProgressStyle::with_template("[{bar:24}] {msg}").expect("a good template");
            bar.set_style(style.progress_chars("=> "));
            bar
        });
        Self { bar, last: Counts::default(), last_at_ns: 0, said_at: MonotonicNanos(0) }
    }

    /// One line that stays.
    pub fn say(&mut self, line: &str) {
        self.said_at = monotonic_now();
        match &self.bar {
            Some(bar) => bar.println(line),
            None => eprintln!("{line}"),
        }
    }

    /// How far a step has come; elsewhere than on a terminal once per second.
    pub fn step(&mut self, name: &str, done: u64, total: u64) {
        let waited = monotonic_now().saturating_since(self.said_at);
        match &self.bar {
            Some(bar) if waited >= Duration::from_millis(50) => {
                bar.set_length(total.max(1));
                bar.set_position(done);
                bar.set_message(format!("{name} {}", thousands(done)));
                self.said_at = monotonic_now();
            }
            None if waited >= Duration::from_secs(1) => {
                self.say(&format!("{name} {} of {}", thousands(done), thousands(total)));
            }
            _ => {}
        }
    }

    /// A load begins.
    pub fn load_begins(&mut self) {
        self.last = Counts::default();
        self.last_at_ns = 0;
    }

    /// A second of the load.
    pub fn second(&mut self, snapshot: &Snapshot, total_ns: u64) {
        let seconds = (snapshot.now_ns - self.last_at_ns) as f64 / 1e9;
        let now = snapshot.total.since(&self.last);
        let rate = |count: u64| thousands((count as f64 / seconds) as u64);
        let backlog = match snapshot.backlog {
            0 => String::new(),
            frames => format!("  behind {} frames", thousands(frames)),
        };
        let refused = match now.refused {
            0 => String::new(),
            count => format!("  refused {}/s", rate(count)),
        };
        let line = format!(
            "{} {:>4.0} s  offered {:>10}/s  committed {:>10}/s  p50 {:>8}  p99 {:>8}  \
             in flight {:>5}{refused}{backlog}",
            snapshot.phase.name(),
            snapshot.now_ns as f64 / 1e9,
            rate(now.offered),
            rate(now.committed),
            time_text(snapshot.latency.p50),
            time_text(snapshot.latency.p99),
            snapshot.frames_open,
        );
        (self.last, self.last_at_ns) = (snapshot.total, snapshot.now_ns);
        match &self.bar {
            Some(bar) => {
                bar.set_length(total_ns.max(1));
                bar.set_position(snapshot.now_ns);
                bar.set_message(line);
            }
            None => eprintln!("{line}"),
        }
    }

    /// Removes the moving line.
    pub fn finish(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
