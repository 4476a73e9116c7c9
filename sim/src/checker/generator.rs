//! Valid histories of concurrent clients, from seeds.
//!
//! One transaction after the other takes effect on one store, each at a moment between its
//! invocation and its completion: the history is strictly serializable because it was made so.
//! Failed transactions have no effect, unknown ones have one at any later time, or none.

use std::num::NonZeroU64;

use super::history::{Datum, History, Kind, Micro, NEVER, Name};
use crate::draw::Draw;

/// What keys hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// Lists.
    Lists,
    /// Registers without versions.
    Registers,
    /// Registers whose reads tell versions, and whose writes do so now and then.
    Versions,
}

/// How a history looks.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// What keys hold.
    pub workload: Workload,
    /// Transactions.
    pub transactions: usize,
    /// Clients, each with one transaction at a time.
    pub clients: usize,
    /// Keys in use at a time; four at least.
    pub keys: usize,
    /// Writes of a key after which another takes its place.
    pub key_writes_max: u32,
    /// Steps of a transaction at most; an update counts as one.
    pub steps_max: u64,
    /// Of 100 steps, how many write.
    pub write_percent: u64,
    /// Of 100 writes of registers, how many read before.
    pub update_percent: u64,
    /// One access in so many is to one and the same key; 0: none.
    pub hot_in: u64,
    /// One transaction in so many fails; 0: none.
    pub fail_in: u64,
    /// The end of one in so many is not known; 0: none.
    pub info_in: u64,
}

impl Shape {
    /// A small one, drawn.
    pub fn draw(draw: &mut Draw, workload: Workload) -> Self {
        Self {
            workload,
            transactions: draw.range(20, 600) as usize,
            clients: draw.pick(&[1, 3, 5, 10, 30]),
            keys: draw.range(4, 12) as usize,
            key_writes_max: draw.pick(&[4, 16, 100, 100_000]),
            steps_max: draw.range(1, 6),
            write_percent: draw.pick(&[20, 50, 80]),
            update_percent: draw.pick(&[0, 50, 100]),
            hot_in: draw.pick(&[0, 2, 5]),
            fail_in: draw.pick(&[0, 5, 30]),
            info_in: draw.pick(&[0, 5, 30]),
        }
    }
}

/// A transaction in the making.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub process: u64,
    pub invoked: u64,
    pub completed: u64,
    pub kind: Kind,
    pub micros: Vec<Micro>,
}

#[derive(Clone, Copy, Debug)]
enum Client {
    Idle,
    Invoked(usize),
    Executed(usize),
}

/// What a key holds.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    pub list: Vec<i64>,
    pub value: Datum,
    pub version: Option<NonZeroU64>,
    next_value: i64,
    writes: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Generator {
    pub(super) shape: Shape,
    pub(super) draw: Draw,
    pub(super) history: History,
    pub(super) drafts: Vec<Draft>,
    pub(super) cells: Vec<Cell>,
    active: Vec<u32>,
    /// Keys that the clients must not touch now.
    pub(super) reserved: Vec<u32>,
    /// Each client's process and state.
    clients: Vec<(u64, Client)>,
    processes: u64,
    begun: usize,
    /// Unknown transactions that may still take effect.
    limbo: Vec<usize>,
    clock: u64,
    versions: u64,
}

impl Generator {
    /// Before the first transaction.
    pub fn new(shape: Shape, draw: Draw) -> Self {
        assert!(shape.keys >= 4, "a plant reserves two keys");
        let mut generator = Self {
            shape,
            draw,
            history: History::new(),
            drafts: Vec::new(),
            cells: Vec::new(),
            active: Vec::new(),
            reserved: Vec::new(),
            clients: (0..shape.clients as u64).map(|process| (process, Client::Idle)).collect(),
            processes: shape.clients as u64,
            begun: 0,
            limbo: Vec::new(),
            clock: 0,
            versions: 0,
        };
        generator.active = (0..shape.keys).map(|_| generator.key_new()).collect();
        generator
    }

    fn key_new(&mut self) -> u32 {
        let name = Name::Number(self.cells.len() as i64);
        let (list, value) = (Vec::new(), Datum::Nil);
        self.cells.push(Cell { list, value, version: None, next_value: 1, writes: 0 });
        self.history.key(name)
    }

    /// A key for a client.
    pub(super) fn key(&mut self) -> u32 {
        loop {
            let hot = self.shape.hot_in > 0 && self.draw.once_in(self.shape.hot_in);
            let at = if hot { 0 } else { self.draw.below(self.active.len() as u64) as usize };
            let key = self.active[at];
            if self.reserved.contains(&key) {
                // The hot key may be the reserved one for long.
                self.active.swap(at, self.shape.keys - 1);
                continue;
            }
            if self.cells[key as usize].writes < self.shape.key_writes_max {
                return key;
            }
            self.active[at] = self.key_new();
        }
    }

    /// A process that has run nothing yet.
    pub(super) fn process(&mut self) -> u64 {
        self.processes += 1;
        self.processes - 1
    }

    /// A later time.
    pub(super) fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// A write of a new value to a key.
    pub(super) fn write(&mut self, key: u32) -> Micro {
        let cell = &mut self.cells[key as usize];
        let value = cell.next_value;
        cell.next_value += 1;
        cell.writes += 1;
        match self.shape.workload {
            Workload::Lists => Micro::Append { key, value },
            _ => Micro::Write { key, value: Datum::Is(value), version: None },
        }
    }

    /// A read without a result.
    pub(super) fn read(key: u32) -> Micro {
        Micro::Read { key, value: Datum::Unknown, version: None }
    }

    fn steps(&mut self) -> Vec<Micro> {
        let mut micros = Vec::new();
        for _ in 0..self.draw.range(1, self.shape.steps_max + 1) {
            let key = self.key();
            let writes = self.draw.below(100) < self.shape.write_percent;
            let updates = writes
                && self.shape.workload != Workload::Lists
                && self.draw.below(100) < self.shape.update_percent;
            if updates || !writes {
                micros.push(Self::read(key));
            }
            if writes {
                micros.push(self.write(key));
            }
        }
        micros
    }

    /// A transaction of these steps.
    pub(super) fn draft(&mut self, process: u64, micros: Vec<Micro>) -> usize {
        let (invoked, completed) = (0, NEVER);
        self.drafts.push(Draft { process, invoked, completed, kind: Kind::Info, micros });
        self.drafts.len() - 1
    }

    /// One step takes effect.
    pub(super) fn execute(&mut self, draft: usize, at: usize) {
        let micro = self.drafts[draft].micros[at];
        let cell = &mut self.cells[micro.key() as usize];
        self.drafts[draft].micros[at] = match micro {
            Micro::Append { value, .. } => {
                cell.list.push(value);
                micro
            }
            Micro::Write { key, value, .. } => {
                self.versions += self.draw.range(1, 4);
                cell.value = value;
                let version = NonZeroU64::new(self.versions);
                cell.version = version.filter(|_| self.shape.workload == Workload::Versions);
                let reported = cell.version.filter(|_| self.draw.once_in(2));
                Micro::Write { key, value, version: reported }
            }
            Micro::List { key, .. } | Micro::Read { key, .. } => {
                if self.shape.workload == Workload::Lists {
                    self.history.list(key, &cell.list)
                } else {
                    Micro::Read { key, value: cell.value, version: cell.version }
                }
            }
        };
    }

    fn execute_all(&mut self, draft: usize) {
        (0..self.drafts[draft].micros.len()).for_each(|at| self.execute(draft, at));
    }

    /// Results of a transaction whose end nobody heard are not known.
    fn forget(draft: &mut Draft) {
        for micro in &mut draft.micros {
            match micro {
                Micro::List { key, .. } | Micro::Read { key, .. } => *micro = Self::read(*key),
                Micro::Write { version, .. } => *version = None,
                Micro::Append { .. } => {}
            }
        }
    }

    fn is_reserved(&self, draft: usize) -> bool {
        self.drafts[draft].micros.iter().any(|micro| self.reserved.contains(&micro.key()))
    }

    /// A client, or a transaction that nobody waits for, does its next step.
    pub fn step(&mut self) {
        if !self.limbo.is_empty() && self.draw.once_in(20) {
            let at = self.draw.below(self.limbo.len() as u64) as usize;
            if !self.is_reserved(self.limbo[at]) {
                let draft = self.limbo.swap_remove(at);
                self.execute_all(draft);
                Self::forget(&mut self.drafts[draft]);
            }
        }
        let at = self.draw.below(self.clients.len() as u64) as usize;
        let (process, state) = self.clients[at];
        match state {
            Client::Idle if self.begun < self.shape.transactions => {
                self.begun += 1;
                let micros = self.steps();
                let draft = self.draft(process, micros);
                self.drafts[draft].invoked = self.tick();
                self.clients[at].1 = Client::Invoked(draft);
            }
            Client::Idle => {}
            Client::Invoked(draft) if self.is_reserved(draft) => {}
            Client::Invoked(draft) => self.end(at, draft),
            Client::Executed(draft) => {
                self.complete(draft, Kind::Ok);
                self.clients[at].1 = Client::Idle;
            }
        }
    }

    fn end(&mut self, client: usize, draft: usize) {
        let once_in = |draw: &mut Draw, n| n > 0 && draw.once_in(n);
        if once_in(&mut self.draw, self.shape.fail_in) {
            self.complete(draft, Kind::Fail);
            self.clients[client].1 = Client::Idle;
        } else if once_in(&mut self.draw, self.shape.info_in) {
            if self.draw.once_in(2) {
                self.limbo.push(draft);
            }
            self.clients[client] = (self.process(), Client::Idle);
        } else {
            self.execute_all(draft);
            self.clients[client].1 = Client::Executed(draft);
        }
    }

    /// The end of a transaction is heard.
    pub(super) fn complete(&mut self, draft: usize, kind: Kind) {
        self.drafts[draft].completed = self.tick();
        self.drafts[draft].kind = kind;
    }

    fn is_done(&self) -> bool {
        let idle = |(_, state): &(u64, Client)| matches!(state, Client::Idle);
        self.begun == self.shape.transactions && self.clients.iter().all(idle)
    }

    /// Lets the clients do all the rest.
    pub fn run(&mut self) {
        while !self.is_done() {
            self.step();
        }
    }

    /// The history of all that was done.
    pub fn finish(mut self) -> History {
        for Draft { process, invoked, completed, kind, micros } in self.drafts.drain(..) {
            let times = (invoked, completed);
            self.history.push(process, times, kind, &micros).expect("drafts are well formed");
        }
        self.history
    }
}

/// A valid history.
pub fn valid(shape: Shape, seed: u64) -> History {
    let mut generator = Generator::new(shape, Draw::new(seed));
    generator.run();
    generator.finish()
}
