//! What the shell of a shard does.

use spillway_net::frame::{Assembled, FrameAssembler, FrameKind, HEADER_BYTES};
use spillway_net::ids::{Epoch, Lsn, NodeId, WallMicros};
use spillway_net::limits::FRAME_PAYLOAD_BYTES_MAX;
use spillway_net::message::{ClusterReport, HELLO_BYTES_MAX};
use spillway_updateserver::quorum::ReplicaCommand;
use spillway_updateserver::redo::PARTITION_SYSTEM;
use spillway_updateserver::root::{Replacement, RootInput};
use spillway_updateserver::shard::{
    InboundFrame, LogState, ORIGIN_ROOT, Released, ReplayError, RootOrigin, ShardInput,
    system_commands,
};

use super::{Client, Inbound, Node, Published, Scene, Seat, ShardSeat};
use crate::Failure;
use crate::options::Bug;

/// Bytes of frames that one turn executes, so that an item fits the small batches.
const TURN_BYTES_MAX: usize = 10 << 10;
/// Committed entries applied before clients get their turn.
const TURN_ENTRIES_MAX: usize = 4;

impl ShardSeat {
    fn can_execute(&self) -> bool {
        !self.inbound.is_empty() && self.backlog.is_empty() && self.shard.accepts_frames()
    }

    /// Everything up to a ticket is committed.
    fn committed_to(&mut self, committed: u64) {
        while let Some((ticket, origin, stamp)) = self.handed_over.front().copied() {
            if ticket > committed {
                break;
            }
            self.handed_over.pop_front();
            if origin == ORIGIN_ROOT {
                self.committed_root = stamp;
            } else {
                self.committed = stamp;
            }
        }
    }
}

impl Node {
    /// A client connected to a shard.
    pub fn accepted(&mut self, shard: u16, connection: u64, scene: &mut Scene<'_>) {
        let seat = &mut self.seats[usize::from(shard)];
        let client = Client { assembler: FrameAssembler::default(), first_frame: true };
        seat.clients.insert(connection, client);
        scene.oracle.opened((self.number, shard), connection);
        seat.shard.step(scene.now, ShardInput::Opened(connection), &mut seat.effects);
    }

    /// A connection is gone.
    pub fn closed(&mut self, shard: u16, connection: u64, scene: &mut Scene<'_>) {
        let seat = &mut self.seats[usize::from(shard)];
        if seat.clients.remove(&connection).is_some() {
            scene.oracle.closed((self.number, shard), connection);
            seat.shard.step(scene.now, ShardInput::Closed(connection), &mut seat.effects);
        }
    }

    /// Bytes arrived.
    pub fn received(
        &mut self,
        shard: u16,
        connection: u64,
        mut bytes: &[u8],
        scene: &mut Scene<'_>,
    ) -> Result<(), Failure> {
        let seat = &mut self.seats[usize::from(shard)];
        let Some(client) = seat.clients.get_mut(&connection) else { return Ok(()) };
        loop {
            let limit = if client.first_frame { HELLO_BYTES_MAX } else { FRAME_PAYLOAD_BYTES_MAX };
            let next = client.assembler.next(&mut bytes, limit, &mut Vec::new());
            let (header, frame) = match next {
                Ok(Assembled::InPlace(header, frame)) => (header, frame.to_vec()),
                Ok(Assembled::Owned(header, frame)) => (header, frame),
                Ok(Assembled::Incomplete) => break,
                Err(error) => return Err(Failure::new(format!("a client's frame: {error}"))),
            };
            client.first_frame = false;
            let answered_epoch = scene.oracle.answered_epoch();
            seat.inbound.push_back(Inbound { connection, header, frame, answered_epoch });
        }
        scene.actions.turns.insert(Seat::Shard(shard));
        Ok(())
    }

    /// A shard's turn.
    pub fn shard_turn(&mut self, shard: u16, scene: &mut Scene<'_>) -> Result<(), Failure> {
        let at = usize::from(shard);
        for item in std::mem::take(&mut self.seats[at].recycled) {
            self.seats[at].shard.recycle(item);
        }
        self.state_take(shard, scene)?;
        self.root_turn(shard, scene)?;
        self.entries_apply(shard, scene)?;
        self.apply(shard, scene)?;
        if self.seats[at].can_execute() {
            self.frames(shard, scene)?;
        }
        self.hand_over(shard, scene);
        self.word_publish(shard, scene);
        let seat = &self.seats[at];
        if seat.can_execute() || !seat.apply.is_empty() {
            scene.actions.turns.insert(Seat::Shard(shard));
        }
        Ok(())
    }

    fn frames(&mut self, shard: u16, scene: &mut Scene<'_>) -> Result<(), Failure> {
        let seat = &mut self.seats[usize::from(shard)];
        let (mut count, mut bytes) = (0, 0);
        for inbound in seat.inbound.iter().take(scene.sizes.turn_frames) {
            bytes += inbound.frame.len();
            if count > 0 && bytes > TURN_BYTES_MAX {
                break;
            }
            count += 1;
        }
        let frames: Vec<_> = seat
            .inbound
            .iter()
            .take(count)
            .map(|inbound| InboundFrame {
                connection: inbound.connection,
                header: inbound.header,
                payload: &inbound.frame[HEADER_BYTES..],
            })
            .collect();
        seat.shard.step(scene.now, ShardInput::Frames(&frames), &mut seat.effects);
        // The shard may leave some for later; what it took the model executes too.
        let applied = seat.shard.applied_lsn();
        for inbound in seat.inbound.drain(..seat.effects.frames_taken) {
            let Inbound { connection, header, frame, answered_epoch } = inbound;
            let (at, payload) = ((self.number, shard), &frame[HEADER_BYTES..]);
            let verdict =
                scene.oracle.execute(at, connection, answered_epoch, &header, payload, applied);
            scene.oracle.verdict(verdict)?;
        }
        seat.shard.step(scene.now, ShardInput::TurnEnd, &mut seat.effects);
        self.apply(shard, scene)
    }

    /// Acts on what the log core has published since the last look.
    fn state_take(&mut self, shard: u16, scene: &mut Scene<'_>) -> Result<(), Failure> {
        let mut published = self.shown;
        if scene.bug == Some(Bug::AnswerBeforeCommit) && published.leading {
            published.ticket = self.ticket;
        }
        if scene.bug == Some(Bug::RoundNotAwaited) {
            published.round_confirmed = published.round_started + 1;
        }
        let addresses = self.addresses();
        let seat = &mut self.seats[usize::from(shard)];
        if seat.members_told != self.known_version {
            seat.members_told = self.known_version;
            let input = ShardInput::Members(addresses);
            seat.shard.step(scene.now, input, &mut seat.effects);
        }
        // Reads that may be old are judged by the clock, which goes on while the log stands still.
        if published == seat.seen && seat.inbound.is_empty() {
            return Ok(());
        }
        let failed = published.failed && !seat.seen.failed;
        seat.seen = published;
        if published.role_number != seat.role_acted {
            self.role_change(shard, published, scene)?;
        } else if seat.leading {
            seat.committed_to(published.ticket);
        }
        let root_before = self.root_told;
        self.log_told(shard, self.state_of(published, scene), scene);
        if shard == 0 && self.seats[0].leading && self.root_told > root_before {
            // The root service changes one member at a time.
            self.members_propose(scene);
            self.members_publish(scene);
        }
        self.apply(shard, scene)?;
        if failed {
            scene.oracle.log_failed((self.number, shard));
        }
        Ok(())
    }

    fn state_of(&self, published: Published, scene: &Scene<'_>) -> LogState {
        LogState {
            vdl: Lsn(published.lsn),
            full: published.full,
            failed: published.failed,
            limited: published.limited,
            drained: published.drained,
            round_next: if self.alone { 0 } else { published.round_started + 1 },
            round_confirmed: published.round_confirmed,
            leader: NodeId(published.leader),
            epoch: Epoch(published.epoch),
            fresh: WallMicros(published.fresh_micros),
            wall: scene.wall,
        }
    }

    fn log_told(&mut self, shard: u16, state: LogState, scene: &Scene<'_>) {
        let seat = &mut self.seats[usize::from(shard)];
        let input = ShardInput::Log { stamp: seat.committed, state };
        seat.shard.step(scene.now, input, &mut seat.effects);
        if seat.leading && shard == 0 {
            self.root_told = seat.committed_root;
            let input = RootInput::Committed { stamp: seat.committed_root };
            self.root.step(scene.now, input, &mut self.root_effects);
        }
    }

    /// Ends leadership, begins it, or both.
    fn role_change(
        &mut self,
        shard: u16,
        published: Published,
        scene: &mut Scene<'_>,
    ) -> Result<(), Failure> {
        let at = usize::from(shard);
        if self.seats[at].leading {
            self.seats[at].committed_to(published.barrier_ticket);
            let mut state = self.state_of(published, scene);
            state.vdl = Lsn(published.barrier_lsn);
            self.log_told(shard, state, scene);
            self.apply(shard, scene)?;
            scene.oracle.stepped_down((self.number, shard));
            let seat = &mut self.seats[at];
            seat.leading = false;
            seat.backlog.clear();
            seat.handed_over.clear();
            if shard == 0 {
                let input = RootInput::StepDown { stamp: seat.committed_root };
                self.root.step(scene.now, input, &mut self.root_effects);
            }
            let input = ShardInput::StepDown { stamp: seat.committed };
            seat.shard.step(scene.now, input, &mut seat.effects);
            self.apply(shard, scene)?;
            if !self.seats[at].backlog.is_empty() {
                return Err(Failure::new("a node that does not lead hands something over"));
            }
        }
        if published.leading {
            let epoch = Epoch(published.epoch);
            let seat = &mut self.seats[at];
            let verdict = scene.oracle.shard_leads((self.number, shard), epoch, &seat.shard);
            scene.oracle.verdict(verdict)?;
            seat.shard.step(scene.now, ShardInput::Lead { epoch }, &mut seat.effects);
            seat.leading = true;
            if shard == 0 {
                self.root.step(scene.now, RootInput::Lead { epoch }, &mut self.root_effects);
                self.members_propose(scene);
            }
        }
        self.seats[at].role_acted = published.role_number;
        Ok(())
    }

    /// Applies committed entries of a leader elsewhere.
    fn entries_apply(&mut self, shard: u16, scene: &mut Scene<'_>) -> Result<(), Failure> {
        for _ in 0..TURN_ENTRIES_MAX {
            let seat = &mut self.seats[usize::from(shard)];
            let Some(entry) = seat.apply.pop_front() else { return Ok(()) };
            assert!(!seat.leading, "a leader has executed what it would apply");
            let (root, root_effects) = (&mut self.root, &mut self.root_effects);
            entry.with_batch(|batch| {
                seat.shard.step(scene.now, ShardInput::Apply(batch), &mut seat.effects);
                let system = batch.sections.iter().filter(|s| s.partition.0 == PARTITION_SYSTEM);
                for section in system.filter(|_| shard == 0) {
                    match system_commands(batch.lsn, section) {
                        Ok(commands) => {
                            for command in commands {
                                root.step(scene.now, RootInput::Apply(command), root_effects);
                                if let Some(error) = root_effects.diverged.take() {
                                    let (lsn, partition) = (batch.lsn, section.partition);
                                    let error = ReplayError::Redo { partition, lsn, error };
                                    seat.effects.diverged = Some(error);
                                }
                            }
                        }
                        Err(error) => seat.effects.diverged = Some(error),
                    }
                }
            });
            self.apply(shard, scene)?;
        }
        Ok(())
    }

    /// Tells the log core how far this shard is.
    fn word_publish(&mut self, shard: u16, scene: &mut Scene<'_>) {
        let outstanding = shard == 0 && self.root.orders_outstanding() > 0;
        let seat = &mut self.seats[usize::from(shard)];
        // While shards still carry out orders of a term that is over, nothing new may be applied.
        if !outstanding || seat.leading {
            seat.word.role_number = seat.role_acted;
        }
        seat.word.applied = seat.shard.applied_lsn().0;
        if seat.word != seat.word_out {
            seat.word_out = seat.word;
            scene.actions.turns.insert(Seat::Log);
        }
    }

    /// Carries orders and acknowledgements between the root service and the shards.
    fn root_turn(&mut self, shard: u16, scene: &mut Scene<'_>) -> Result<(), Failure> {
        if shard == 0 {
            while let Some(shard) = self.done.pop_front() {
                let input = RootInput::OrderDone { shard };
                self.root.step(scene.now, input, &mut self.root_effects);
            }
        } else {
            let seat = &mut self.seats[usize::from(shard)];
            while let Some(order) = seat.orders.pop_front() {
                seat.shard.step(scene.now, ShardInput::Root(order), &mut seat.effects);
            }
        }
        self.apply(shard, scene)
    }

    /// See [`Self::apply`].
    pub(super) fn apply_seat(&mut self, shard: u16, scene: &mut Scene<'_>) -> Result<(), Failure> {
        self.apply(shard, scene)
    }

    /// Carries out what the cores want done, until they want nothing more.
    fn apply(&mut self, shard: u16, scene: &mut Scene<'_>) -> Result<(), Failure> {
        loop {
            let at = (self.number, shard);
            let seat = &mut self.seats[usize::from(shard)];
            let mut effects = std::mem::take(&mut seat.effects);
            for frame in &effects.released.frames {
                let bytes = &effects.released.bytes[frame.start..frame.end];
                let verdict = scene.oracle.released(at, frame.connection, bytes);
                scene.oracle.verdict(verdict)?;
            }
            send(&effects.released, scene);
            for connection in effects.closes.drain(..) {
                scene.oracle.closed(at, connection);
                scene.actions.closes.push(connection);
            }
            seat.backlog.extend(effects.items.drain(..));
            for (origin, command) in effects.root_commands.drain(..) {
                let input = RootInput::Command(origin, command);
                self.root.step(scene.now, input, &mut self.root_effects);
            }
            for _ in 0..effects.orders_done {
                if shard == 0 {
                    let input = RootInput::OrderDone { shard: 0 };
                    self.root.step(scene.now, input, &mut self.root_effects);
                } else {
                    self.done.push_back(shard);
                    scene.actions.turns.insert(Seat::Shard(0));
                }
            }
            for origin in effects.cluster_status_requests.drain(..) {
                report(origin, scene);
            }
            seat.word.round_wanted = seat.word.round_wanted.max(effects.round_wanted);
            if let Some(diverged) = effects.diverged.take() {
                seat.diverged = Some(diverged);
            }
            effects.clear();
            seat.effects = effects;
            if shard != 0 || !self.root_effects(scene) {
                return Ok(());
            }
        }
    }

    fn root_effects(&mut self, scene: &mut Scene<'_>) -> bool {
        let mut effects = std::mem::take(&mut self.root_effects);
        for (at, seat) in self.seats.iter_mut().enumerate().skip(1) {
            if scene.bug == Some(Bug::OrderLost) && scene.draw.once_in(2) {
                continue;
            }
            seat.orders.extend(effects.orders.iter().cloned());
            if !effects.orders.is_empty() {
                scene.actions.turns.insert(Seat::Shard(at as u16));
            }
        }
        let has_news = !effects.orders.is_empty() || !effects.answers_of_state.is_empty();
        let seat = &mut self.seats[0];
        for order in effects.orders.drain(..) {
            seat.shard.step(scene.now, ShardInput::Root(order), &mut seat.effects);
        }
        // Behind the shard's own: what the shard handed over because of the order comes first.
        seat.backlog.extend(seat.effects.items.drain(..));
        seat.backlog.extend(effects.items.drain(..));
        send(&effects.answers, scene);
        for (origin, answer) in effects.answers_of_state.drain(..) {
            seat.shard.step(scene.now, ShardInput::Answer(origin, answer), &mut seat.effects);
        }
        for Replacement { old, new, .. } in effects.replacements.drain(..) {
            self.log.commands.push_back(ReplicaCommand::MemberReplace { old, new });
            scene.actions.turns.insert(Seat::Log);
        }
        effects.clear();
        self.root_effects = effects;
        has_news
    }

    fn hand_over(&mut self, shard: u16, scene: &mut Scene<'_>) {
        let seat = &mut self.seats[usize::from(shard)];
        while self.queue.len() < self.queue_max
            && let Some(item) = seat.backlog.pop_front()
        {
            self.ticket += 1;
            seat.handed_over.push_back((self.ticket, item.origin, item.stamp));
            self.queue.push_back((self.ticket, item));
            scene.actions.turns.insert(Seat::Log);
        }
        if !seat.backlog.is_empty() {
            scene.actions.turns.insert(Seat::Shard(shard));
        }
    }

    /// The root service's tick.
    pub fn tick(&mut self, scene: &mut Scene<'_>) -> Result<(), Failure> {
        self.members_publish(scene);
        self.gone_propose(scene);
        let seat = &self.seats[0];
        let log_takes = seat.leading && !seat.seen.full && !seat.seen.failed;
        self.root.step(scene.now, RootInput::Tick { log_takes }, &mut self.root_effects);
        self.apply(0, scene)?;
        scene.actions.turns.insert(Seat::Shard(0));
        Ok(())
    }
}

fn send(released: &Released, scene: &mut Scene<'_>) {
    for frame in &released.frames {
        let bytes = released.bytes[frame.start..frame.end].to_vec();
        scene.actions.frames.push((frame.connection, bytes));
    }
}

fn report(origin: RootOrigin, scene: &mut Scene<'_>) {
    let mut released = Released::default();
    let (connection, request) = (origin.connection, origin.request);
    let report = ClusterReport::default();
    released.push(connection, FrameKind::ClusterReport, request, &report);
    send(&released, scene);
}
