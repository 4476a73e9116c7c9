//! What the shell of the log core does.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use spillway_net::ids::{ClusterId, Epoch, Lsn, NodeId, WallMicros};
use spillway_runtime::slot_ring::{Slot, SlotRing};
use spillway_updateserver::log::{
    EntryFrame, Geometry, LogWriterOptions, RawContent, RawFile, RawWrite, ReadRequest, Section,
    Superblock, sections_bytes,
};
use spillway_updateserver::quorum::{
    Freshness, Now, PeerHeader, PeerSend, Replica, ReplicaCommand, ReplicaEffects, ReplicaFailure,
    ReplicaInput, ReplicaOptions, ReplicaStart, Role, RoleChange, Room, Round,
};
use spillway_updateserver::shard::{LogItem, ORIGIN_ROOT};

use super::{Node, PeerEvent, PeerMessage, Published, Scene, Seat, ShardWord, Token};
use crate::Failure;
use crate::disk::File;
use crate::entry::{Entry, EntrySection};
use crate::options::{Bug, Sizes};
use crate::start::RecoveredLog;

/// Entries that may wait for one shard of a follower.
pub(super) const APPLY_ENTRIES_MAX: usize = 8;

/// A write that has ended.
#[derive(Debug)]
enum Completion {
    Frame(u64, Result<u32, i32>),
    Raw(u32, Result<u32, i32>),
    Read(Lsn, Result<Slot, i32>),
}

/// The log's place in a node.
pub struct LogSeat {
    pub(super) replica: Replica,
    cluster: ClusterId,
    geometry: Geometry,
    slots: SlotRing,
    effects: ReplicaEffects,
    pub(super) published: Published,
    waiting: Option<(u64, Box<LogItem>)>,
    raw_waiting: VecDeque<RawWrite>,
    completions: VecDeque<Completion>,
    shards_seen: ShardWord,
    /// What the links have told, by node.
    inbox: BTreeMap<NodeId, VecDeque<PeerEvent>>,
    /// Bytes on their way to each node, and what of it the replica was told.
    outgoing: BTreeMap<NodeId, (usize, usize)>,
    pub(super) commands: VecDeque<ReplicaCommand>,
    /// The members as the quorum last told them, and those that are none any more.
    members: Vec<NodeId>,
    pub(super) gone: Vec<NodeId>,
    freshness: Freshness,
    /// Why the replica must not go on.
    pub(super) failure: Option<ReplicaFailure>,
    batches: u64,
    margin_bytes: u64,
    /// Sections that were appended and not yet seen in an entry, with their items' tickets.
    appended: VecDeque<(u64, EntrySection)>,
    /// Ticket and LSN of the newest own entry that was written or sent.
    issued: (u64, u64),
    /// Own entries of this leadership were seen without a gap up to here, and those behind it.
    proposed_to: u64,
    proposed_early: BTreeMap<u64, Rc<Entry>>,
    /// When the log wants a tick.
    pub(super) deadline: Option<u64>,
    /// Whether the device has failed.
    pub(super) failed: bool,
}

fn margin_bytes(geometry: &Geometry, queue_items: usize) -> u64 {
    let total = u64::from(geometry.segment_bytes) * u64::from(geometry.segments_count);
    let wanted = (queue_items + 8) as u64 * u64::from(geometry.batch_bytes_max)
        + 3 * u64::from(geometry.segment_bytes);
    wanted.min(total / 2)
}

fn replica_options(superblock: &Superblock, sizes: &Sizes) -> ReplicaOptions {
    let writer = LogWriterOptions {
        cluster: superblock.cluster,
        node: superblock.node,
        term: superblock.term,
        vote: superblock.vote,
        boot: superblock.boot,
        in_flight_max: sizes.in_flight_max,
        watermark_idle_nanos: sizes.watermark_idle_nanos,
    };
    let slots = sizes.slots_bytes as u64;
    ReplicaOptions {
        tick_nanos: sizes.tick_nanos,
        inflight_bytes_max: slots / 4,
        uncommitted_bytes_max: slots / 4,
        tail_bytes_max: slots / 4,
        cache_bytes_max: slots / 3,
        in_flight_small_max: 1 + sizes.batch_bytes_wait % 2,
        batch_bytes_wait: sizes.batch_bytes_wait,
        ..ReplicaOptions::new(writer, superblock.boot)
    }
}

impl LogSeat {
    /// Goes on where recovery ended.
    pub(super) fn new(
        log: RecoveredLog,
        superblock: Superblock,
        sizes: &Sizes,
        queue_max: usize,
    ) -> Self {
        let applied = log.applied;
        let start = ReplicaStart {
            position: log.recovered.position,
            entries: log.recovered.entries,
            tail: log.tail,
            superblock,
            applied,
            config_entries: log.config_entries,
        };
        let published = Published { lsn: applied.0, ..Published::default() };
        Self {
            replica: Replica::new(replica_options(&superblock, sizes), start),
            cluster: superblock.cluster,
            geometry: superblock.geometry,
            slots: SlotRing::new("log", sizes.slots_bytes).expect("a little memory"),
            effects: ReplicaEffects::default(),
            published,
            waiting: None,
            raw_waiting: VecDeque::new(),
            completions: VecDeque::new(),
            shards_seen: ShardWord::default(),
            inbox: BTreeMap::new(),
            outgoing: BTreeMap::new(),
            commands: VecDeque::from([ReplicaCommand::Drained(Vec::new())]),
            members: Vec::new(),
            gone: Vec::new(),
            freshness: Freshness::default(),
            failure: None,
            batches: 0,
            margin_bytes: margin_bytes(&superblock.geometry, queue_max),
            appended: VecDeque::new(),
            issued: (0, 0),
            proposed_to: 0,
            proposed_early: BTreeMap::new(),
            deadline: Some(0),
            failed: false,
        }
    }
}

impl Node {
    /// The links tell something of another node. What it has not read when a link ends is gone.
    pub fn peer_event(&mut self, from: NodeId, event: PeerEvent) {
        let inbox = self.log.inbox.entry(from).or_default();
        if matches!(event, PeerEvent::Lost) {
            inbox.retain(|event| !matches!(event, PeerEvent::Message(_)));
        }
        inbox.push_back(event);
    }

    /// Where it stands, for reports.
    pub fn report(&self, monotonic_nanos: u64, wall: WallMicros) -> String {
        let log = &self.log;
        let now = Now { monotonic_nanos, wall };
        let status = log.replica.status(now);
        let inbox: usize = log.inbox.values().map(VecDeque::len).sum();
        let space = log.replica.space();
        format!(
            "{:?} of term {}, log {} to {}, applied {} on all shards, {} messages wait, {} of {} \
             bytes of slots, {} of {} of the log, raw writes {}, waiting: {}, writes: {}",
            status.role,
            status.term,
            status.vdl,
            status.last,
            self.applied(),
            inbox,
            log.slots.bytes_used(),
            log.slots.bytes_total(),
            space.used_bytes,
            space.total_bytes,
            log.raw_waiting.len(),
            log.waiting.is_some(),
            !log.replica.is_quiet(),
        )
    }

    /// How much is on its way to another node.
    pub fn outgoing_set(&mut self, to: NodeId, bytes: usize) {
        self.log.outgoing.entry(to).or_default().0 = bytes;
    }

    /// A write ended; the log takes its turn.
    pub fn written(
        &mut self,
        token: &Token,
        bytes: &[u8],
        result: Result<u32, i32>,
        scene: &mut Scene<'_>,
    ) -> Result<(), Failure> {
        match token {
            Token::Frame(sequence, slot) => {
                if slot[..] != *bytes {
                    return Err(Failure::new("a slot was changed while it was being written"));
                }
                self.log.completions.push_back(Completion::Frame(*sequence, result));
            }
            Token::Raw(id) => self.log.completions.push_back(Completion::Raw(*id, result)),
        }
        self.log_turn(scene)
    }

    /// An entry was read back; the log takes its turn.
    pub fn read(
        &mut self,
        lsn: u64,
        result: Result<Vec<u8>, i32>,
        scene: &mut Scene<'_>,
    ) -> Result<(), Failure> {
        scene.oracle.counts.read_back += 1;
        let result = result.map(Slot::from_vec);
        self.log.completions.push_back(Completion::Read(Lsn(lsn), result));
        self.log_turn(scene)
    }

    /// The operator wants another node to lead.
    pub fn transfer(&mut self, scene: &mut Scene<'_>) -> Result<(), Failure> {
        scene.oracle.counts.transfers += u64::from(self.leads());
        self.log.commands.push_back(ReplicaCommand::Transfer { to: None });
        self.log_turn(scene)
    }

    /// The log's turn.
    pub fn log_turn(&mut self, scene: &mut Scene<'_>) -> Result<(), Failure> {
        // Items first: a completion then lets a fuller batch go.
        self.drain(scene);
        self.peers_turn(scene)?;
        self.outgoing_tell(scene)?;
        self.reap(scene)?;
        self.shards_turn(scene)?;
        self.freshness_turn(scene)?;
        while let Some(command) = self.log.commands.pop_front() {
            self.step(ReplicaInput::Command(command), scene)?;
        }
        if self.log.deadline.is_some_and(|deadline| deadline <= scene.now) {
            self.step(ReplicaInput::Tick, scene)?;
        }
        loop {
            self.drain(scene);
            let issued = self.log.batches;
            self.step(ReplicaInput::TurnEnd, scene)?;
            if self.log.batches == issued || self.log.waiting.is_none() {
                break;
            }
        }
        self.apply_push(scene)?;
        self.publish(scene);
        Ok(())
    }

    fn peers_turn(&mut self, scene: &mut Scene<'_>) -> Result<(), Failure> {
        let nodes: Vec<NodeId> = self.log.inbox.keys().copied().collect();
        for from in nodes {
            loop {
                let inbox = self.log.inbox.get_mut(&from).expect("listed above");
                let body = match inbox.front() {
                    None => break,
                    Some(PeerEvent::Message(message)) => message.body.as_ref(),
                    Some(_) => None,
                };
                let block = self.log.geometry.block();
                let mut memory = None;
                if let Some(body) = body {
                    let (log, bytes) = (&mut self.log.replica, block + body.len());
                    memory = log.reserve(bytes, &mut self.log.slots);
                    if memory.is_none() {
                        scene.actions.memory_short = true;
                        break;
                    }
                }
                match inbox.pop_front().expect("seen above") {
                    PeerEvent::Connected => {
                        self.step(ReplicaInput::PeerConnected(from), scene)?;
                    }
                    PeerEvent::Lost => self.step(ReplicaInput::PeerLost(from), scene)?,
                    PeerEvent::Message(message) => {
                        let taken = (from, message.generation, message.bytes());
                        scene.actions.taken.push(taken);
                        if let (Some(memory), Some(body)) = (&mut memory, message.body) {
                            memory[block..].copy_from_slice(&body);
                        }
                        let header = PeerHeader::decode(&self.log.geometry, &message.header)
                            .map_err(|fault| Failure::new(format!("a message: {fault}")))?;
                        let (geometry, cluster) = (self.log.geometry, self.log.cluster);
                        let frame = memory
                            .map(|slot| EntryFrame::verify(&geometry, cluster, slot))
                            .transpose()
                            .map_err(|fault| Failure::new(format!("an entry sent: {fault}")))?;
                        let log = &mut self.log;
                        let leader = NodeId(log.published.leader);
                        let leader = Some(leader).filter(|leader| leader.0 > 0);
                        log.freshness.heard(leader, from, header.committed, header.time);
                        self.step(ReplicaInput::Peer { from, header, frame }, scene)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn outgoing_tell(&mut self, scene: &mut Scene<'_>) -> Result<(), Failure> {
        let nodes: Vec<NodeId> = self.log.outgoing.keys().copied().collect();
        for node in nodes {
            let (now, told) = self.log.outgoing[&node];
            if now != told {
                self.log.outgoing.insert(node, (now, now));
                self.step(ReplicaInput::PeerOutgoing { node, bytes: now }, scene)?;
            }
        }
        Ok(())
    }

    fn reap(&mut self, scene: &mut Scene<'_>) -> Result<(), Failure> {
        while let Some(completion) = self.log.completions.pop_front() {
            match completion {
                Completion::Frame(sequence, result) => {
                    self.step(ReplicaInput::WriteCompleted { sequence, result }, scene)?;
                    if scene.bug == Some(Bug::CommitOutOfOrder) && self.log.published.leading {
                        (self.log.published.ticket, self.log.published.lsn) = self.log.issued;
                    }
                }
                Completion::Raw(id, result) => {
                    self.step(ReplicaInput::RawCompleted { id, result }, scene)?;
                    self.log.raw_waiting.pop_front().expect("a raw write was in flight");
                    if self.log.failed {
                        // Rounds behind one that failed must not be written.
                        self.log.raw_waiting.clear();
                    }
                    self.raw_submit(scene);
                }
                Completion::Read(lsn, result) => {
                    self.step(ReplicaInput::EntryRead { lsn, result }, scene)?;
                }
            }
        }
        Ok(())
    }

    /// The least that all shards have done, and the most that any wants.
    fn shards_word(&self) -> ShardWord {
        let mut least = ShardWord { role_number: u64::MAX, applied: u64::MAX, round_wanted: 0 };
        for seat in &self.seats {
            let word = seat.word_out;
            least.role_number = least.role_number.min(word.role_number);
            least.applied = least.applied.min(word.applied);
            least.round_wanted = least.round_wanted.max(word.round_wanted);
        }
        least
    }

    fn shards_turn(&mut self, scene: &mut Scene<'_>) -> Result<(), Failure> {
        let word = self.shards_word();
        let seen = std::mem::replace(&mut self.log.shards_seen, word);
        if word.role_number != seen.role_number {
            self.step(ReplicaInput::RoleAcknowledged(word.role_number), scene)?;
        }
        if word.applied != seen.applied {
            self.step(ReplicaInput::Applied(Lsn(word.applied)), scene)?;
        }
        self.log.freshness.applied(Lsn(word.applied));
        if word.round_wanted > seen.round_wanted {
            self.step(ReplicaInput::RoundWanted(word.round_wanted), scene)?;
        }
        Ok(())
    }

    /// Tells the shards how fresh this node is.
    fn freshness_turn(&mut self, scene: &mut Scene<'_>) -> Result<(), Failure> {
        if self.alone {
            return Ok(());
        }
        let Published { round_started, round_confirmed, .. } = self.log.published;
        let round = Round { started: round_started, confirmed: round_confirmed };
        let now = Now { monotonic_nanos: scene.now, wall: scene.wall };
        if let Some(round) = self.log.freshness.round_due(now, round) {
            self.step(ReplicaInput::RoundWanted(round), scene)?;
        }
        self.log.published.fresh_micros = self.log.freshness.fresh().0;
        Ok(())
    }

    /// Moves items into the open batch until it is full or there are none.
    fn drain(&mut self, scene: &mut Scene<'_>) {
        loop {
            let next = self.log.waiting.take().or_else(|| self.queue.pop_front());
            let Some((ticket, item)) = next else { return };
            let log = &mut self.log;
            if item.epoch.0 != log.published.epoch || !log.published.leading {
                // Of a term that is over: the shard has taken it back, or is about to.
                self.recycle(item);
                continue;
            }
            let mut sections: Vec<Section<'_>> = item
                .sections
                .iter()
                .map(|section| Section {
                    partition: section.partition,
                    digest: section.digest,
                    bytes: &item.bytes[section.start as usize..section.end as usize],
                })
                .collect();
            let bytes = sections_bytes(&sections);
            let room = log.replica.room(sections.len(), bytes, &mut log.slots);
            if !matches!(room, Room::Fits) {
                drop(sections);
                log.waiting = Some((ticket, item));
                return;
            }
            match scene.bug {
                Some(Bug::SectionDropped) if sections.len() > 1 => drop(sections.pop()),
                Some(Bug::HandOverLost) if scene.draw.once_in(30) => continue,
                _ => {}
            }
            let epoch = Epoch(log.published.epoch);
            let taken = log.replica.append(epoch, ticket, &sections, &mut log.slots);
            assert!(taken, "there was room for an item of this term");
            log.appended.extend(sections.iter().map(|section| {
                let (partition, bytes) = (section.partition.0, section.bytes.to_vec());
                (ticket, EntrySection { partition, digest: section.digest, bytes })
            }));
            drop(sections);
            self.recycle(item);
        }
    }

    fn recycle(&mut self, mut item: Box<LogItem>) {
        item.clear();
        if item.origin != ORIGIN_ROOT {
            self.seats[usize::from(item.origin)].recycled.push(item);
        }
    }

    fn step(&mut self, input: ReplicaInput, scene: &mut Scene<'_>) -> Result<(), Failure> {
        let now = Now { monotonic_nanos: scene.now, wall: scene.wall };
        let mut effects = std::mem::take(&mut self.log.effects);
        effects.clear();
        self.log.replica.step(now, input, &mut self.log.slots, &mut effects);
        let done = self.carry_out(&mut effects, scene);
        self.log.effects = effects;
        done
    }

    fn carry_out(
        &mut self,
        effects: &mut ReplicaEffects,
        scene: &mut Scene<'_>,
    ) -> Result<(), Failure> {
        self.judge(effects, scene)?;
        if let Some(role) = effects.role {
            self.role_changed(&role, scene)?;
        }
        let log = &mut self.log;
        if let Some(round) = effects.round {
            log.published.round_started = round.started;
            log.published.round_confirmed = round.confirmed;
        }
        if let Some(committed) = effects.committed {
            log.published.lsn = committed.lsn.0;
            log.published.ticket = committed.ticket;
        }
        if effects.role.is_some() || effects.round.is_some() {
            self.publish(scene);
        }
        let (committed, time) = (Lsn(self.log.published.lsn), self.log.freshness.proof());
        for PeerSend { to, header, body } in effects.sends.drain(..) {
            let header = PeerHeader { committed, time, ..header };
            let message = PeerMessage { header: header.encode(), body, generation: 0 };
            scene.actions.sends.push((to, message));
        }
        scene.actions.resets.append(&mut effects.resets);
        for write in effects.writes.drain(..) {
            self.log.batches += 1;
            let bytes = write.slot[..].to_vec();
            let token = Token::Frame(write.sequence, write.slot);
            scene.actions.writes.push((File::Segment(write.segment), write.offset, bytes, token));
        }
        let idle = self.log.raw_waiting.is_empty();
        self.log.raw_waiting.extend(effects.raw_writes.drain(..));
        if idle {
            self.raw_submit(scene);
        }
        for read in effects.reads.drain(..) {
            let (segment, offset, bytes) = (read.segment, read.offset, read.bytes);
            scene.actions.reads.push((read.lsn.0, ReadRequest { segment, offset, bytes }));
        }
        if let Some(leader) = effects.leader {
            self.log.published.leader = leader.map_or(0, |NodeId(node)| node);
        }
        if effects.poisoned.is_some() {
            self.log.published.failed = true;
            self.log.failed = true;
        }
        if let Some(members) = effects.members.take() {
            let log = &mut self.log;
            if log.published.leading {
                log.gone.extend(log.members.iter().filter(|node| !members.contains(node)));
            }
            log.members = members;
        }
        if let Some(failure) = effects.failed.take() {
            self.log.failure = Some(failure);
        }
        self.log.deadline = effects.next_deadline_nanos;
        Ok(())
    }

    /// Tells the judge what went into the log, and what is committed.
    fn judge(&mut self, effects: &ReplicaEffects, scene: &mut Scene<'_>) -> Result<(), Failure> {
        for send in &effects.sends {
            let verdict = scene.oracle.sent(&send.header);
            scene.oracle.verdict(verdict)?;
        }
        let block = self.log.geometry.block();
        let sent = effects.sends.iter().filter_map(|send| send.body.as_deref());
        for body in sent {
            if let Some(entry) = scene.oracle.proposed(body)? {
                self.log.proposed(&entry)?;
            }
        }
        for write in &effects.writes {
            let body = &write.slot[block..];
            if let Some(entry) = scene.oracle.wrote(self.number, write.sequence, body)? {
                self.log.proposed(&entry)?;
            }
        }
        if let Some(committed) = effects.committed {
            let verdict = scene.oracle.committed(self.number, committed.lsn, committed.epoch);
            scene.oracle.verdict(verdict)?;
        }
        Ok(())
    }

    fn role_changed(&mut self, change: &RoleChange, scene: &mut Scene<'_>) -> Result<(), Failure> {
        let published = &mut self.log.published;
        assert!(change.number > published.role_number, "role changes are numbered upwards");
        published.role_number = change.number;
        published.fresh_micros = 0;
        published.barrier_ticket = change.barrier.ticket;
        published.barrier_lsn = change.barrier.lsn.0;
        self.log.appended.clear();
        self.log.proposed_early.clear();
        self.log.proposed_to = change.barrier.lsn.0;
        self.log.freshness.role_changed(matches!(change.role, Role::Lead { .. }));
        match change.role {
            Role::Lead { epoch } => {
                published.leading = true;
                published.epoch = epoch.0;
                let verdict = scene.oracle.leads(self.number, epoch, change.barrier.lsn);
                scene.oracle.verdict(verdict)
            }
            Role::Follow => {
                published.leading = false;
                Ok(())
            }
        }
    }

    /// Raw writes go one by one.
    fn raw_submit(&mut self, scene: &mut Scene<'_>) {
        let Some(write) = self.log.raw_waiting.front() else { return };
        let bytes = match &write.content {
            RawContent::Zeros(bytes) => vec![0; *bytes as usize],
            RawContent::Bytes(bytes) => bytes.clone(),
        };
        let file = match write.file {
            RawFile::Segment(segment) => File::Segment(segment),
            RawFile::Superblock => File::Superblock,
        };
        scene.actions.writes.push((file, write.offset, bytes, Token::Raw(write.id)));
    }

    /// Gives committed entries to the shards of a follower, as many as all have room for.
    fn apply_push(&mut self, scene: &mut Scene<'_>) -> Result<(), Failure> {
        while let Some((lsn, body)) = self.log.replica.apply_next() {
            if self.seats.iter().any(|seat| seat.apply.len() >= APPLY_ENTRIES_MAX) {
                return Ok(());
            }
            let entry = scene.oracle.history.at(lsn).filter(|entry| entry.body == body[..]);
            let entry = Rc::clone(entry.ok_or_else(|| {
                let number = self.number + 1;
                Failure::new(format!("node {number} applies another LSN {lsn} than is committed"))
            })?);
            for (at, seat) in (0..).zip(&mut self.seats) {
                seat.apply.push_back(Rc::clone(&entry));
                scene.actions.turns.insert(Seat::Shard(at));
            }
            self.log.replica.apply_taken();
        }
        Ok(())
    }

    fn publish(&mut self, scene: &mut Scene<'_>) {
        let log = &mut self.log;
        let space = log.replica.space();
        log.published.limited = log.replica.is_held_up();
        log.published.full = space.used_bytes + log.margin_bytes >= space.total_bytes;
        if log.published != self.shown {
            self.shown = log.published;
            scene.actions.turns.extend((0..self.seats.len() as u16).map(Seat::Shard));
        }
    }
}

impl LogSeat {
    /// Memory for entries in use.
    pub(super) fn slots_used(&self) -> usize {
        self.slots.bytes_used()
    }

    /// An entry is seen for the first time, perhaps before those in front of it, whose messages
    /// were lost: each of this node's own holds what was appended.
    fn proposed(&mut self, entry: &Rc<Entry>) -> Result<(), Failure> {
        if !self.published.leading {
            return Ok(());
        }
        if entry.term.0 != self.published.epoch {
            let late = Failure::new(format!("LSN {} appears late", entry.lsn));
            return if entry.has_sections() { Err(late) } else { Ok(()) };
        }
        self.proposed_early.insert(entry.lsn.0, Rc::clone(entry));
        while let Some(entry) = self.proposed_early.remove(&(self.proposed_to + 1)) {
            self.proposed_to += 1;
            if entry.has_sections() {
                self.proposed_next(&entry)?;
            }
        }
        Ok(())
    }

    /// The next own entry behind those that were seen before.
    fn proposed_next(&mut self, entry: &Entry) -> Result<(), Failure> {
        for section in &entry.sections {
            match self.appended.pop_front() {
                Some((ticket, appended)) if appended == *section => {
                    self.issued = (ticket, entry.lsn.0);
                }
                found => {
                    let found = found.map(|(ticket, next)| (ticket, next.partition));
                    return Err(Failure::new(format!(
                        "LSN {} was not appended: partition {} where ticket and partition \
                         {found:?} come next, with {} behind it",
                        entry.lsn,
                        section.partition,
                        self.appended.len()
                    )));
                }
            }
        }
        Ok(())
    }
}
