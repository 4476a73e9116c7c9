//! A burst from its first to its last step.

use std::time::Duration;

use spillway_net::client::{Pipeline, PipelineOptions, Spread};
use spillway_net::ids::TableId;
use spillway_net::limits::SESSION_FRAMES_IN_FLIGHT_MAX;
use spillway_runtime::clock::{MonotonicNanos, monotonic_now, wall_now_micros};
use spillway_runtime::{file, thread};

use crate::arguments::{BurstArguments, BurstOptions};
use crate::control::{Control, NodeRows, StatusNumbers};
use crate::cpu;
use crate::drive::{LoadPlan, Moment, Pace, Snapshot};
use crate::error::PerfError;
use crate::generator::{Generator, Resolved, Strictness};
use crate::identity::mix;
use crate::node::Node;
use crate::pacer::OpenPacer;
use crate::progress::Progress;
use crate::recorder::{Counts, Latency};
use crate::report::{BurstReport, Lateness, Sample, Seconds, thousands};
use crate::schedule::{SECOND_NS, Schedule};
use crate::shape::Shape;
use crate::site::{Site, wait_until_free};
use crate::verification::Verification;
use crate::workload::{self, Workload};

/// Frames per connection while rows are loaded.
const LOAD_IN_FLIGHT: usize = 4;
/// The kill comes up to so long after the last frames left.
const KILL_DELAY_US_MAX: u64 = 200;
/// An answer that did not come in so long after the kill never will.
const QUIET_AFTER_KILL_NS: u64 = 20_000_000;
/// How long the last answers may take: without a kill, and after the restart.
const SETTLE_NS: u64 = 60 * SECOND_NS;
/// How long the load's end waits for the node's numbers.
const STATUS_NS: u64 = SECOND_NS / 2;
/// Precision of the generator's sleeps while it sends by the clock.
const TIMER_SLACK_NS: u64 = 1_000;

/// Runs a burst. An error means that it could not be run to its end; whether the node kept what
/// it acknowledged is in the report.
pub fn burst(options: &BurstOptions) -> Result<BurstReport, PerfError> {
    let arguments = &options.arguments;
    arguments.check()?;
    let seed = arguments.seed.unwrap_or_else(|| mix(wall_now_micros()) >> 16);
    let schedule = schedule(arguments)?;
    let mut progress = Progress::new();
    progress.say(&format!("seed {seed}; measuring the log device"));
    let site = Site::prepare(options)?;
    let result = Stage::prepare(&site, arguments, seed, &mut progress)
        .and_then(|(stage, workload)| stage.play(workload, schedule.as_ref()));
    site.unbind_generator()?;
    progress.finish();
    let kept = site.close(arguments)?;
    result.map(|report| BurstReport { kept, ..report })
}

/// Seconds since `began`.
fn since(began: MonotonicNanos) -> f64 {
    monotonic_now().saturating_since(began).as_secs_f64()
}

/// The offered rate over time; none if answers set the pace.
fn schedule(arguments: &BurstArguments) -> Result<Option<Schedule>, PerfError> {
    let phases = arguments.phases();
    let Some(path) = &arguments.shape else {
        let rate = arguments.rate;
        return Ok((rate > 0.0).then(|| Schedule::trapezoid(&phases, rate)));
    };
    let text = file::read_to_string(path)?;
    let shape = Shape::parse(&text)
        .map_err(|error| PerfError::Shape { file: path.display().to_string(), error })?;
    Ok(Some(Schedule::shaped(&phases, arguments.rate, &shape)))
}

/// A burst under way.
struct Stage<'a> {
    site: &'a Site,
    arguments: &'a BurstArguments,
    seed: u64,
    node: Node,
    control: Control,
    tables: Vec<TableId>,
    seconds: Seconds,
    progress: &'a mut Progress,
}

/// What a load left behind.
struct Loaded {
    hold: Counts,
    hold_seconds: f64,
    samples: Option<[Sample; 2]>,
    lateness: Lateness,
    latency: Latency,
}

impl<'a> Stage<'a> {
    /// Formats and starts the node and creates the tables.
    fn prepare(
        site: &'a Site,
        arguments: &'a BurstArguments,
        seed: u64,
        progress: &'a mut Progress,
    ) -> Result<(Self, Box<dyn Workload>), PerfError> {
        let mut seconds = Seconds::default();
        progress.say(&format!("formatting a log of {} MiB", thousands(site.log_bytes >> 20)));
        let began = monotonic_now();
        site.home.format()?;
        seconds.format = since(began);
        let node = site.home.start()?;
        seconds.start = node.ready_seconds();
        site.bind_generator()?;
        let mut control = Control::connect(node.address())?;
        let options = arguments.workload_options(seed);
        let workload = workload::build(&options, control.placement())?;
        let mut tables = Vec::new();
        for table in workload.tables() {
            tables.push(control.create_table(&table.definition)?);
        }
        let stage = Self { site, arguments, seed, node, control, tables, seconds, progress };
        Ok((stage, workload))
    }

    /// Connects the load's connections.
    fn connect(&self, shard_only: Option<u16>) -> Result<Pipeline, PerfError> {
        let options = PipelineOptions {
            client_name: "perf".to_owned(),
            connections: self.arguments.connections,
            spread: shard_only.map_or(Spread::RoundRobin, Spread::Shard),
            frames_in_flight_max: SESSION_FRAMES_IN_FLIGHT_MAX,
            request_timeout_ms: 30_000,
            give_up_ms: 600_000,
            connect_ms: 10_000,
            seed: self.seed,
            ..PipelineOptions::new(self.node.address())
        };
        Pipeline::connect(options).map_err(PerfError::client("connecting to the node"))
    }

    /// Everything from loading rows to the report.
    fn play(
        mut self,
        mut workload: Box<dyn Workload>,
        schedule: Option<&Schedule>,
    ) -> Result<BurstReport, PerfError> {
        let pipeline = self.connect(workload.shard_only())?;
        let shards: Vec<u16> =
            (0..pipeline.connections()).map(|connection| pipeline.shard_of(connection)).collect();
        workload.bind(&self.tables, &shards);
        let mut generator = Generator::new(
            pipeline,
            workload.as_mut(),
            self.arguments.workload.name(),
            self.arguments.batch,
            self.arguments.phases(),
        );
        self.load_rows(&mut generator)?;
        let loaded = self.run_load(&mut generator, schedule)?;
        let (resolved, status_restart) = if self.arguments.no_kill {
            self.settle(&mut generator)?;
            (None, None)
        } else {
            let resolved = self.kill_and_restart(&mut generator)?;
            (Some(resolved), Some(self.control.status()?))
        };
        let (total, ledger) = generator.finish();

        self.progress.say("verifying");
        let began = monotonic_now();
        let mut rows = NodeRows::new(&mut self.control, self.tables.clone());
        let verification = workload.verify(&ledger, &mut rows)?;
        self.seconds.verify = since(began);
        let offered_tps = self.offered_tps(&loaded, schedule);
        let report = self.report(loaded, verification);
        self.node.stop()?;
        Ok(BurstReport {
            total,
            offered_tps,
            payload_bytes: workload.payload_bytes(),
            resolved,
            status_restart,
            ..report
        })
    }

    /// What is known without the last steps.
    fn report(&self, loaded: Loaded, verification: Verification) -> BurstReport {
        BurstReport {
            nodes: self.arguments.nodes,
            workload: self.arguments.workload.name(),
            batch: self.arguments.batch,
            connections: self.arguments.connections,
            in_flight: self.arguments.in_flight,
            shards: self.arguments.shards,
            seed: self.seed,
            rate: self.arguments.rate,
            is_pinned: self.site.is_pinned,
            server_cpus: self.site.server_cpus(),
            total: Counts::default(),
            hold: loaded.hold,
            offered_tps: 0.0,
            latency: loaded.latency,
            lateness: loaded.lateness,
            samples: loaded.samples,
            payload_bytes: 0.0,
            seconds: self.seconds.clone(),
            status_restart: None,
            resolved: None,
            verification,
            device: self.site.device,
            machine: self.site.machine.clone(),
            kept: None,
        }
    }

    /// Transactions due per second in the hold phase.
    fn offered_tps(&self, loaded: &Loaded, schedule: Option<&Schedule>) -> f64 {
        if loaded.hold_seconds <= 0.0 {
            return 0.0;
        }
        let offered = schedule.map_or(loaded.hold.sent as f64, |schedule| {
            let begin_ns = self.arguments.phases().ramp_ns;
            let end_ns = begin_ns + (loaded.hold_seconds * SECOND_NS as f64) as u64;
            schedule.arrivals(end_ns) - schedule.arrivals(begin_ns)
        });
        offered / loaded.hold_seconds
    }

    fn load_rows(&mut self, generator: &mut Generator<'_>) -> Result<(), PerfError> {
        let rows = generator.load_rows();
        if rows > 1 {
            self.progress.say(&format!("loading {} rows", thousands(rows)));
        }
        let began = monotonic_now();
        let Self { node, progress, .. } = self;
        let mut looked_at = began;
        generator.load(LOAD_IN_FLIGHT, &mut |done| {
            progress.step("loaded", done, rows);
            if since(looked_at) > 0.5 {
                looked_at = monotonic_now();
                node.check_alive()?;
            }
            Ok(())
        })?;
        self.seconds.load = since(began);
        Ok(())
    }

    /// Ramp, hold and fall, as far as the kill lets them.
    fn run_load(
        &mut self,
        generator: &mut Generator<'_>,
        schedule: Option<&Schedule>,
    ) -> Result<Loaded, PerfError> {
        let phases = self.arguments.phases();
        let kill_ns = self.arguments.kill_after.map(|at| (at * SECOND_NS as f64) as u64);
        let end_ns = kill_ns.unwrap_or(u64::MAX).min(phases.total_ns());
        let grid_ns = self.arguments.arrival_grid * 1_000;
        let pace = schedule.map_or(Pace::Closed, |schedule| {
            Pace::Open(OpenPacer::new(schedule.clone(), self.arguments.batch, grid_ns))
        });
        let in_flight = self.arguments.in_flight;
        let mut plan = LoadPlan { phases, pace, in_flight, end_ns };
        let mut sampler = Sampler::default();
        self.progress.load_begins();
        cpu::timer_slack(TIMER_SLACK_NS);
        generator.begin(Strictness::Burst);
        let Self { node, control, progress, .. } = self;
        let result = generator.run(&mut plan, &mut |moment, snapshot| {
            match moment {
                Moment::HoldBegin | Moment::HoldEnd => sampler.sample(snapshot, node, control)?,
                Moment::Tick => sampler.take(control)?,
                Moment::Second => {
                    node.check_alive()?;
                    progress.second(snapshot, end_ns);
                }
            }
            Ok(())
        });
        cpu::timer_slack(0);
        // A node that is gone is the cause of whatever else failed.
        if result.is_err() {
            thread::sleep(Duration::from_millis(20));
            node.check_alive()?;
        }
        result?;
        sampler.settle(control)?;
        let ended_ns = generator.now_ns().min(end_ns);
        self.seconds.burst = ended_ns as f64 / SECOND_NS as f64;
        let hold_ns = ended_ns.saturating_sub(phases.ramp_ns).min(phases.hold_ns);
        self.seconds.hold = hold_ns as f64 / SECOND_NS as f64;
        Ok(Loaded {
            hold: generator.hold_counts(),
            hold_seconds: self.seconds.hold,
            samples: sampler.finish(),
            lateness: generator.lateness(),
            latency: generator.latency(),
        })
    }

    /// Waits for all answers.
    fn settle(&mut self, generator: &mut Generator<'_>) -> Result<(), PerfError> {
        generator.drain(SETTLE_NS)?;
        if generator.open_frames() == 0 {
            return Ok(());
        }
        Err(PerfError::TimedOut {
            what: "the last answers",
            seconds: SETTLE_NS / SECOND_NS,
            tail: self.node.tail(),
        })
    }

    /// Kills the node while it works, starts it again, and has every unanswered frame answered.
    fn kill_and_restart(&mut self, generator: &mut Generator<'_>) -> Result<Resolved, PerfError> {
        generator.last_volley(self.arguments.in_flight)?;
        // Some of the last frames are executed, some are not: another moment with every seed.
        let moment = mix(self.seed ^ 0x9) % KILL_DELAY_US_MAX;
        thread::sleep(Duration::from_micros(moment));
        self.node.kill()?;
        // What the node had sent before it died is still to be read: it counts as acknowledged.
        generator.drain(QUIET_AFTER_KILL_NS)?;
        let address = self.node.address();
        self.progress.say(&format!(
            "killed with {} frames in flight; starting again",
            generator.open_frames()
        ));
        self.site.configure(address, self.arguments.shards)?;
        wait_until_free(address, self.arguments.shards)?;
        self.node = self.site.home.start()?;
        self.seconds.restart = Some(self.node.ready_seconds());
        self.control = Control::connect(self.node.address())?;
        let began = monotonic_now();
        generator.begin(Strictness::Resolve);
        generator.drain(SETTLE_NS)?;
        self.seconds.resolve = Some(since(began));
        self.node.check_alive()?;
        Ok(generator.resolved())
    }
}

/// Takes CPU times and the node's numbers at both ends of the hold phase.
#[derive(Default)]
struct Sampler {
    samples: Vec<Sample>,
    is_waiting: bool,
}

impl Sampler {
    fn sample(
        &mut self,
        snapshot: &Snapshot,
        node: &Node,
        control: &mut Control,
    ) -> Result<(), PerfError> {
        // A hold phase shorter than the answer to the first question: wait for that answer.
        self.settle(control)?;
        self.samples.push(Sample {
            at_ns: snapshot.now_ns,
            total: snapshot.total,
            client_cpu_ns: cpu::own_ns(),
            server_cpu_ns: node.cpu_ns(),
            status: None,
        });
        self.is_waiting = true;
        control.status_begin()
    }

    fn take(&mut self, control: &mut Control) -> Result<(), PerfError> {
        if self.is_waiting
            && let Some(numbers) = control.status_take()?
        {
            self.put(numbers);
        }
        Ok(())
    }

    fn put(&mut self, numbers: StatusNumbers) {
        self.is_waiting = false;
        if let Some(sample) = self.samples.last_mut() {
            sample.status = Some(numbers);
        }
    }

    /// Waits for the numbers asked for last, but not for long.
    fn settle(&mut self, control: &mut Control) -> Result<(), PerfError> {
        let began = monotonic_now();
        while self.is_waiting && monotonic_now().saturating_nanos_since(began) < STATUS_NS {
            self.take(control)?;
            thread::sleep(Duration::from_micros(200));
        }
        self.is_waiting = false;
        Ok(())
    }

    fn finish(self) -> Option<[Sample; 2]> {
        self.samples.try_into().ok()
    }
}
