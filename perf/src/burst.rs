//! A burst from its first to its last step.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use spillway_net::client::{Pipeline, PipelineOptions, Spread};
use spillway_net::ids::TableId;
use spillway_net::limits::SESSION_FRAMES_IN_FLIGHT_MAX;
use spillway_runtime::clock::{MonotonicNanos, monotonic_now, wall_now_micros};
use spillway_runtime::{file, thread};

use crate::arguments::{BurstArguments, BurstOptions};
use crate::cluster::{Agreement, Cluster, Processes};
use crate::control::{Control, NodeRows, StatusNumbers, pipeline_options};
use crate::cpu;
use crate::disturbance::{Event, WindowLatency};
use crate::drive::{LoadPlan, Moment, Pace, Snapshot};
use crate::error::PerfError;
use crate::generator::{Generator, Resolved, Strictness};
use crate::identity::mix;
use crate::pacer::OpenPacer;
use crate::plan::Plan;
use crate::progress::Progress;
use crate::recorder::{Counts, Latency};
use crate::report::{BurstReport, Lateness, Sample, Seconds, thousands};
use crate::schedule::{SECOND_NS, Schedule};
use crate::script::{Field, LoadView, Script};
use crate::shape::Shape;
use crate::site::Site;
use crate::slow_disk::HealthyDisk;
use crate::verification::Verification;
use crate::warden::{Pending, Warden};
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

/// Runs a burst. An error means that it could not be run to its end; whether the nodes kept what
/// they acknowledged is in the report.
pub fn burst(options: &BurstOptions) -> Result<BurstReport, PerfError> {
    options.arguments.check()?;
    let plan = Plan::of(&options.arguments);
    let windows = plan.windows(&options.arguments.phases());
    let act = plan.script().map(|script| Act { script, windows, ends_load: false });
    run(options, act)
}

/// Runs a load as long as `script` does things to the nodes; the phases' lengths bound it.
pub fn burst_with(options: &BurstOptions, script: Script) -> Result<BurstReport, PerfError> {
    options.arguments.check()?;
    run(options, Some(Act { script, windows: Vec::new(), ends_load: true }))
}

/// What is done to the nodes while the load runs.
struct Act {
    script: Script,
    windows: Vec<(String, u64, u64)>,
    /// Whether the load is over when the script is.
    ends_load: bool,
}

fn run(options: &BurstOptions, act: Option<Act>) -> Result<BurstReport, PerfError> {
    let arguments = &options.arguments;
    let seed = arguments.seed.unwrap_or_else(|| mix(wall_now_micros()) >> 16);
    let schedule = schedule(arguments)?;
    let mut progress = Progress::new();
    progress.say(&format!("seed {seed}; measuring the log device"));
    let site = Site::prepare(options, seed)?;
    let result = Stage::prepare(&site, arguments, seed, &mut progress)
        .and_then(|(stage, workload)| stage.play(workload, schedule.as_ref(), act));
    site.unbind_generator()?;
    progress.finish();
    if result.is_err() && arguments.keep {
        progress.say(&format!("the nodes' directories are in {}", site.path().display()));
    }
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
    warden: Warden,
    processes: Arc<Processes>,
    /// Where clients reach the nodes, the one first that led last.
    addresses: Vec<SocketAddr>,
    leader: usize,
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
    windows: Vec<WindowLatency>,
    events: Vec<Event>,
    /// When the load ended, nanoseconds since it began.
    ended_ns: u64,
}

/// A script under way: its events in the end.
type Acting = Pending<Result<Vec<Event>, PerfError>>;

impl<'a> Stage<'a> {
    /// Formats and starts the nodes and creates the tables.
    fn prepare(
        site: &'a Site,
        arguments: &'a BurstArguments,
        seed: u64,
        progress: &'a mut Progress,
    ) -> Result<(Self, Box<dyn Workload>), PerfError> {
        let mut seconds = Seconds::default();
        let mebibytes = thousands(site.log_bytes >> 20);
        progress.say(&match arguments.nodes {
            1 => format!("formatting a log of {mebibytes} MiB"),
            nodes => format!("formatting {nodes} logs of {mebibytes} MiB"),
        });
        let disk = HealthyDisk {
            name: site.machine.log_device.clone(),
            write_us: site.device.write_p50_us,
        };
        let cluster =
            Cluster::new(site.homes.clone(), site.nodes.clone(), site.mesh.clone()).with_disk(disk);
        let processes = cluster.processes();
        let warden = Warden::new(cluster)?;
        let began = monotonic_now();
        warden.call(|cluster| cluster.format())?;
        seconds.format = since(began);
        let began = monotonic_now();
        warden.call(Cluster::start_all)?;
        let (leader, addresses) = leader_first(&warden)?;
        seconds.start = since(began);
        site.bind_generator()?;
        let mut control = Control::connect(&addresses)?;
        let options = arguments.workload_options(seed);
        let workload = workload::build(&options, control.placement())?;
        let mut tables = Vec::new();
        for table in workload.tables() {
            tables.push(control.create_table(&table.definition)?);
        }
        let stage = Self {
            site,
            arguments,
            seed,
            warden,
            processes,
            addresses,
            leader,
            control,
            tables,
            seconds,
            progress,
        };
        Ok((stage, workload))
    }

    /// Connects the load's connections.
    fn connect(&self, shard_only: Option<u16>) -> Result<Pipeline, PerfError> {
        let options = PipelineOptions {
            client_name: "perf".to_owned(),
            connections: self.arguments.connections,
            spread: shard_only.map_or(Spread::RoundRobin, Spread::Shard),
            frames_in_flight_max: SESSION_FRAMES_IN_FLIGHT_MAX,
            // A single node may take long to replay its log; another one is better asked soon.
            request_timeout_ms: if self.addresses.len() == 1 { 30_000 } else { 2_000 },
            give_up_ms: 600_000,
            connect_ms: 10_000,
            seed: self.seed,
            ..pipeline_options(&self.addresses)
        };
        Pipeline::connect(options).map_err(PerfError::client("connecting to the nodes"))
    }

    /// Everything from loading rows to the report.
    fn play(
        mut self,
        mut workload: Box<dyn Workload>,
        schedule: Option<&Schedule>,
        act: Option<Act>,
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
        let mut loaded = self.run_load(&mut generator, schedule, act)?;
        let (resolved, status_restart) = if self.arguments.kills_at_end() {
            let resolved = self.kill_and_restart(&mut generator)?;
            (Some(resolved), Some(self.control.status()?))
        } else {
            (None, None)
        };
        generator.gaps().fill_in(&mut loaded.events, loaded.ended_ns);
        let unknown = generator.unknown();
        let asked_again = generator.asked_again();
        let (total, ledger) = generator.finish();
        let agreement = self.compare_nodes()?;

        self.progress.say("verifying");
        let began = monotonic_now();
        let mut rows = NodeRows::new(&mut self.control, self.tables.clone());
        let verification = workload.verify(&ledger, &mut rows)?;
        self.seconds.verify = since(began);
        let offered_tps = self.offered_tps(&loaded, schedule);
        let report = self.report(loaded, verification);
        self.warden.call(Cluster::stop)?;
        Ok(BurstReport {
            total,
            offered_tps,
            payload_bytes: workload.payload_bytes(),
            resolved,
            status_restart,
            unknown,
            asked_again,
            agreement,
            ..report
        })
    }

    /// What all nodes of a cluster hold once the load is over; the leader of then answers what
    /// is asked next.
    fn compare_nodes(&mut self) -> Result<Option<Agreement>, PerfError> {
        if self.arguments.nodes == 1 {
            return Ok(None);
        }
        self.progress.say("comparing the nodes");
        let agreement = self.warden.call(Cluster::agreement)?;
        (self.leader, self.addresses) = leader_first(&self.warden)?;
        self.control = Control::connect(&self.addresses)?;
        Ok(Some(agreement))
    }

    /// What is known without the last steps.
    fn report(&self, loaded: Loaded, verification: Verification) -> BurstReport {
        BurstReport {
            nodes: self.arguments.nodes,
            leader: self.leader,
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
            events: loaded.events,
            windows: loaded.windows,
            payload_bytes: 0.0,
            seconds: self.seconds.clone(),
            status_restart: None,
            resolved: None,
            unknown: 0,
            asked_again: 0,
            agreement: None,
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
        let Self { warden, progress, .. } = self;
        let mut looked_at = began;
        generator.load(LOAD_IN_FLIGHT, &mut |done| {
            progress.step("loaded", done, rows);
            if since(looked_at) > 0.5 {
                looked_at = monotonic_now();
                warden.call(Cluster::check_alive)?;
            }
            Ok(())
        })?;
        self.seconds.load = since(began);
        Ok(())
    }

    /// Begins what is to be done to the nodes.
    fn begin_act(&self, act: Act, view: &Arc<LoadView>) -> Acting {
        let view = view.clone();
        self.warden.begin(move |cluster| {
            let mut field = Field::new(cluster, &view);
            let result = (act.script)(&mut field);
            let events = field.finish();
            if act.ends_load {
                view.enough();
            }
            result.map(|()| events)
        })
    }

    /// Ramp, hold and fall, as far as a kill of all nodes lets them, and then the last answers.
    fn run_load(
        &mut self,
        generator: &mut Generator<'_>,
        schedule: Option<&Schedule>,
        mut act: Option<Act>,
    ) -> Result<Loaded, PerfError> {
        let phases = self.arguments.phases();
        let kill_ns = self.arguments.kill_after.map(|at| (at * SECOND_NS as f64) as u64);
        let end_ns = kill_ns.unwrap_or(u64::MAX).min(phases.total_ns());
        let grid_ns = self.arguments.arrival_grid * 1_000;
        let pace = schedule.map_or(Pace::Closed, |schedule| {
            Pace::Open(OpenPacer::new(schedule.clone(), self.arguments.batch, grid_ns))
        });
        let in_flight = self.arguments.in_flight;
        let view = Arc::new(LoadView::default());
        let mut plan = LoadPlan { phases, pace, in_flight, end_ns, view: view.clone() };
        self.progress.load_begins();
        if let Some(act) = &mut act {
            generator.expect_disturbance(std::mem::take(&mut act.windows));
        }
        cpu::timer_slack(TIMER_SLACK_NS);
        generator.begin(Strictness::Burst);
        view.begin(generator.began());
        let acting = act.map(|act| self.begin_act(act, &view));
        let mut watch = Watch::new(self, acting, &view, end_ns);
        let result = generator
            .run(&mut plan, &mut |moment, snapshot| watch.observe(moment, snapshot))
            .and_then(|()| watch.sampler.settle(watch.control));
        cpu::timer_slack(0);
        view.end();
        let (samples, events) = watch.finish(result)?;
        let ended_ns = generator.now_ns().min(end_ns);
        self.seconds.burst = ended_ns as f64 / SECOND_NS as f64;
        let hold_ns = ended_ns.saturating_sub(phases.ramp_ns).min(phases.hold_ns);
        self.seconds.hold = hold_ns as f64 / SECOND_NS as f64;
        if !self.arguments.kills_at_end() {
            self.settle(generator)?;
        }
        let events = events.map_or(Ok(Vec::new()), Pending::wait)?;
        Ok(Loaded {
            hold: generator.hold_counts(),
            hold_seconds: self.seconds.hold,
            samples,
            lateness: generator.lateness(),
            latency: generator.latency(),
            windows: generator.windows(),
            events,
            ended_ns,
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
            tail: self.warden.call(|cluster| cluster.tails()),
        })
    }

    /// Kills all nodes while they work, starts them again, and has every unanswered frame
    /// answered.
    fn kill_and_restart(&mut self, generator: &mut Generator<'_>) -> Result<Resolved, PerfError> {
        self.warden.call(Cluster::check_alive)?;
        generator.last_volley(self.arguments.in_flight)?;
        // Some of the last frames are executed, some are not: another moment with every seed.
        let moment = mix(self.seed ^ 0x9) % KILL_DELAY_US_MAX;
        thread::sleep(Duration::from_micros(moment));
        self.processes.kill()?;
        self.warden.call(|cluster| {
            let all: Vec<usize> = (0..cluster.len()).collect();
            cluster.bury(&all)
        })?;
        // What the nodes had sent before they died is still to be read: it counts as acknowledged.
        generator.drain(QUIET_AFTER_KILL_NS)?;
        self.progress.say(&format!(
            "killed with {} frames in flight; starting again",
            generator.open_frames()
        ));
        let restart = self.warden.call(Cluster::start_all)?;
        let began = monotonic_now();
        (self.leader, self.addresses) = leader_first(&self.warden)?;
        self.seconds.restart = Some(restart + since(began));
        self.control = Control::connect(&self.addresses)?;
        let began = monotonic_now();
        generator.begin(Strictness::Resolve);
        generator.drain(SETTLE_NS)?;
        self.seconds.resolve = Some(since(began));
        self.warden.call(Cluster::check_alive)?;
        Ok(generator.resolved())
    }
}

/// Waits for a leader: which node it is, and where clients reach all nodes, it first.
fn leader_first(warden: &Warden) -> Result<(usize, Vec<SocketAddr>), PerfError> {
    warden.call(|cluster| {
        let leader = cluster.leader_wait()?;
        let mut addresses = cluster.clients();
        addresses[..=leader].rotate_right(1);
        Ok((leader, addresses))
    })
}

/// Watches a load: numbers, processes, the script.
struct Watch<'s> {
    sampler: Sampler,
    warden: &'s Warden,
    processes: &'s Processes,
    control: &'s mut Control,
    progress: &'s mut Progress,
    health: Option<Pending<Result<(), PerfError>>>,
    acting: Option<Acting>,
    /// What the script has done, if it is over.
    acted: Option<Vec<Event>>,
    view: &'s LoadView,
    end_ns: u64,
}

impl<'s> Watch<'s> {
    fn new(
        stage: &'s mut Stage<'_>,
        acting: Option<Acting>,
        view: &'s LoadView,
        end_ns: u64,
    ) -> Self {
        let is_disturbed = acting.is_some();
        Self {
            sampler: Sampler { is_disturbed, ..Sampler::default() },
            warden: &stage.warden,
            processes: &stage.processes,
            control: &mut stage.control,
            progress: stage.progress,
            health: None,
            acting,
            acted: None,
            view,
            end_ns,
        }
    }

    fn observe(&mut self, moment: Moment, snapshot: &Snapshot) -> Result<(), PerfError> {
        match moment {
            Moment::HoldBegin | Moment::HoldEnd => {
                self.sampler.sample(snapshot, self.processes, self.control)
            }
            Moment::Tick => {
                self.look()?;
                self.sampler.take(self.control)
            }
            Moment::Second => {
                // A script looks after the nodes itself.
                if self.health.is_none() && self.acting.is_none() {
                    self.health = Some(self.warden.begin(Cluster::check_alive));
                }
                for line in self.view.take_lines() {
                    self.progress.say(&line);
                }
                self.progress.second(snapshot, self.end_ns);
                Ok(())
            }
        }
    }

    /// Whether a node or the script has failed. Never waits.
    fn look(&mut self) -> Result<(), PerfError> {
        if let Some(result) = self.health.as_mut().and_then(Pending::take) {
            self.health = None;
            result?;
        }
        if let Some(result) = self.acting.as_mut().and_then(Pending::take) {
            self.acting = None;
            self.acted = Some(result?);
        }
        Ok(())
    }

    /// The samples, and the events if the script is still to end.
    fn finish(
        mut self,
        result: Result<(), PerfError>,
    ) -> Result<(Option<[Sample; 2]>, Option<Acting>), PerfError> {
        if result.is_err() {
            // A node that is gone is the cause of whatever else failed.
            thread::sleep(Duration::from_millis(20));
            self.look()?;
            if self.acting.is_none() {
                self.warden.call(Cluster::check_alive)?;
            }
        }
        result?;
        for line in self.view.take_lines() {
            self.progress.say(&line);
        }
        let events = match self.acted {
            Some(events) => Some(Pending::done(Ok(events))),
            None => self.acting,
        };
        Ok((self.sampler.finish(), events))
    }
}

/// Takes CPU times and the node's numbers at both ends of the hold phase.
#[derive(Default)]
struct Sampler {
    samples: Vec<Sample>,
    is_waiting: bool,
    /// Whether nodes are killed in the middle of the load: then the numbers may be missing.
    is_disturbed: bool,
}

impl Sampler {
    fn sample(
        &mut self,
        snapshot: &Snapshot,
        processes: &Processes,
        control: &mut Control,
    ) -> Result<(), PerfError> {
        // A hold phase shorter than the answer to the first question: wait for that answer.
        self.settle(control)?;
        self.samples.push(Sample {
            at_ns: snapshot.now_ns,
            total: snapshot.total,
            client_cpu_ns: cpu::own_ns(),
            nodes_cpu_ns: processes.cpu_ns(),
            status: None,
        });
        let asked = control.status_begin();
        self.is_waiting = asked.is_ok();
        if self.is_disturbed { Ok(()) } else { asked }
    }

    fn take(&mut self, control: &mut Control) -> Result<(), PerfError> {
        if !self.is_waiting {
            return Ok(());
        }
        match control.status_take() {
            Ok(Some(numbers)) => self.put(numbers),
            Err(error) if !self.is_disturbed => return Err(error),
            Err(_) => self.is_waiting = false,
            Ok(None) => {}
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
