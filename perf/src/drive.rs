//! The loop of a load: what is due or allowed goes out, answers come in, time passes.

use std::sync::Arc;

use spillway_net::client::Wait;

use crate::error::PerfError;
use crate::generator::{Generator, TICK_NS};
use crate::pacer::{OpenPacer, frames_allowed};
use crate::recorder::{Counts, Latency};
use crate::schedule::{Phase, Phases, SECOND_NS};
use crate::script::LoadView;

/// What sets the pace of a load.
pub enum Pace {
    /// Answers: as fast as they come back.
    Closed,
    /// The clock.
    Open(OpenPacer),
}

/// A load.
pub struct LoadPlan {
    /// Its phases.
    pub phases: Phases,
    /// Its pace.
    pub pace: Pace,
    /// Unanswered frames per connection at most.
    pub in_flight: usize,
    /// When it ends, nanoseconds.
    pub end_ns: u64,
    /// Whoever may end it before.
    pub view: Arc<LoadView>,
}

/// What an observer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The hold phase begins.
    HoldBegin,
    /// The hold phase is over, or the load ends within it.
    HoldEnd,
    /// A second has passed.
    Second,
    /// About a millisecond has passed.
    Tick,
}

/// A load as an observer sees it.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot {
    /// Nanoseconds since the load began.
    pub now_ns: u64,
    /// The phase.
    pub phase: Phase,
    /// Everything so far.
    pub total: Counts,
    /// Latency of the second that ends; of no other moment.
    pub latency: Latency,
    /// Frames without an answer.
    pub frames_open: usize,
    /// Frames that are due and were not sent.
    pub backlog: u64,
}

/// Told of moments while a load runs; an error ends the load.
pub type Observer<'o> = &'o mut dyn FnMut(Moment, &Snapshot) -> Result<(), PerfError>;

impl Generator<'_> {
    /// Runs a load to its end. Unanswered frames stay in flight.
    pub fn run(&mut self, plan: &mut LoadPlan, observer: Observer<'_>) -> Result<(), PerfError> {
        let hold_begin = plan.phases.ramp_ns;
        let hold_end = (hold_begin + plan.phases.hold_ns).min(plan.end_ns);
        self.books.view = Some(plan.view.clone());
        let mut moments = Moments { hold_begin, hold_end, next_second: SECOND_NS, next_tick: 0 };
        let mut cursor = 0;
        loop {
            let now_ns = self.now_ns();
            moments.pass(self, plan, now_ns, observer)?;
            if now_ns >= plan.end_ns || plan.view.is_enough() {
                break;
            }
            let wait_ns = match &mut plan.pace {
                Pace::Closed => {
                    self.fill_closed(&plan.phases, plan.in_flight, now_ns)?;
                    TICK_NS
                }
                Pace::Open(pacer) => self.fill_open(pacer, plan.in_flight, &mut cursor, now_ns)?,
            };
            self.poll(Wait::Nanos(wait_ns.min(plan.end_ns - now_ns)))?;
        }
        moments.finish(self, plan, observer)
    }

    /// Fills every connection up to what is allowed now.
    fn fill_closed(
        &mut self,
        phases: &Phases,
        in_flight: usize,
        now_ns: u64,
    ) -> Result<(), PerfError> {
        let connections = self.pipeline.connections();
        for connection in 0..connections {
            let allowed = frames_allowed(phases, now_ns, connection, connections, in_flight);
            while self.has_room(connection, allowed, now_ns) {
                let intended_ns = self.now_ns();
                self.submit(connection, intended_ns, false)?;
            }
        }
        Ok(())
    }

    /// Sends all frames that are due, in turn over the connections; tells how long to sleep.
    fn fill_open(
        &mut self,
        pacer: &mut OpenPacer,
        in_flight: usize,
        cursor: &mut usize,
        now_ns: u64,
    ) -> Result<u64, PerfError> {
        let connections = self.pipeline.connections();
        while let Some(due_ns) = pacer.next_due_ns() {
            if due_ns > now_ns {
                return Ok((due_ns - now_ns).min(TICK_NS));
            }
            let free = (0..connections)
                .map(|step| (*cursor + step) % connections)
                .find(|connection| self.has_room(*connection, in_flight, now_ns));
            let Some(connection) = free else {
                self.blocked(now_ns);
                return Ok(TICK_NS);
            };
            *cursor = (connection + 1) % connections;
            let was_blocked = self.was_blocked_since(due_ns);
            self.submit(connection, due_ns, was_blocked)?;
            pacer.take();
        }
        Ok(TICK_NS)
    }
}

/// When the observer is told of what.
struct Moments {
    hold_begin: u64,
    hold_end: u64,
    next_second: u64,
    next_tick: u64,
}

impl Moments {
    fn pass(
        &mut self,
        generator: &mut Generator<'_>,
        plan: &LoadPlan,
        now_ns: u64,
        observer: Observer<'_>,
    ) -> Result<(), PerfError> {
        if now_ns < self.next_tick {
            return Ok(());
        }
        self.next_tick = now_ns + TICK_NS;
        let mut tell = |moment, generator: &mut Generator<'_>| {
            observer(moment, &generator.snapshot(plan, now_ns, moment))
        };
        if now_ns >= self.hold_begin {
            self.hold_begin = u64::MAX;
            tell(Moment::HoldBegin, generator)?;
        }
        if now_ns >= self.hold_end {
            self.hold_end = u64::MAX;
            tell(Moment::HoldEnd, generator)?;
        }
        if now_ns >= self.next_second {
            self.next_second += SECOND_NS;
            tell(Moment::Second, generator)?;
            generator.books.recorder.second_end();
            generator.check_connections()?;
        }
        tell(Moment::Tick, generator)
    }

    /// Tells of the end of a hold phase that the load's own end cut off.
    fn finish(
        &mut self,
        generator: &mut Generator<'_>,
        plan: &LoadPlan,
        observer: Observer<'_>,
    ) -> Result<(), PerfError> {
        if self.hold_begin != u64::MAX || self.hold_end == u64::MAX {
            return Ok(());
        }
        self.hold_end = u64::MAX;
        let now_ns = generator.now_ns();
        observer(Moment::HoldEnd, &generator.snapshot(plan, now_ns, Moment::HoldEnd))
    }
}
