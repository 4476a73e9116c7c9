//! What a shard wants done.

use spillway_net::frame::FrameKind;
use spillway_net::ids::{NodeId, SessionId};
use spillway_net::message::{ClusterCommand, Refusal, RefusalCode};
use spillway_net::schema::TableDefinition;

use super::{LogItem, Released, ReplayError};

/// A request for the root service, on shard 0 of the leader.
#[derive(Debug, Clone, PartialEq)]
pub enum RootCommand {
    /// Open a session.
    SessionOpen {
        /// For lists.
        client_name: String,
    },
    /// Close one.
    SessionClose {
        /// Its id.
        session: SessionId,
    },
    /// Create a table.
    TableCreate {
        /// Its definition, not yet validated.
        definition: TableDefinition,
    },
    /// Drop a table.
    TableDrop {
        /// Its name.
        name: String,
    },
    /// Note where a node is reached.
    MemberSet {
        /// The node.
        node: NodeId,
        /// Where peers reach it.
        peer_address: String,
        /// Where clients reach its shard 0.
        client_address: String,
    },
    /// Forget a node that is no member any more.
    MemberRemove {
        /// The node.
        node: NodeId,
    },
    /// Keep leadership and reads away from a node, or no longer.
    ZoneDrain {
        /// The node.
        node: NodeId,
        /// Which of the two.
        drained: bool,
    },
    /// Note where a new node is reached, and then have it take the place of another. The root
    /// service commits the addresses and passes the rest on as
    /// [`crate::root::RootEffects::replacements`].
    MemberReplace {
        /// The node that leaves, if one does.
        old: Option<NodeId>,
        /// The node that comes.
        new: NodeId,
        /// Where peers reach it.
        peer_address: String,
        /// Where clients reach its shard 0.
        client_address: String,
    },
}

/// Who asked the root service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootOrigin {
    /// The connection.
    pub connection: u64,
    /// The frame's request number.
    pub request: u64,
}

/// What a step wants done. Reused from step to step.
#[derive(Debug, Default)]
pub struct ShardEffects {
    /// Hand-overs in order; the boxes come back through [`super::Shard::recycle`].
    pub items: Vec<Box<LogItem>>,
    /// Frames that may leave.
    pub released: Released,
    /// Connections to close once what was released for them is sent.
    pub closes: Vec<u64>,
    /// Requests for the root service.
    pub root_commands: Vec<(RootOrigin, RootCommand)>,
    /// Commands for the quorum alone: transfers of leadership. The shell answers.
    pub cluster_commands: Vec<(RootOrigin, ClusterCommand)>,
    /// How many orders of the root service were carried out.
    pub orders_done: u32,
    /// Status requests, answered by the shell, which knows the numbers of all cores.
    pub status_requests: Vec<RootOrigin>,
    /// Requests for the cluster's status, answered by the shell.
    pub cluster_status_requests: Vec<RootOrigin>,
    /// How many of the last [`super::ShardInput::Frames`] were executed. The others, if any, are
    /// to be given again once [`super::Shard::accepts_frames`].
    pub frames_taken: usize,
    /// The newest leadership round that an answer waits for; 0: none.
    pub round_wanted: u64,
    /// A batch could not be applied: this replica is not what the leader has. It applies and
    /// serves nothing more, and the node must stop.
    pub diverged: Option<ReplayError>,
}

impl ShardEffects {
    /// Forgets everything, keeping the memory.
    pub fn clear(&mut self) {
        self.items.clear();
        self.released.clear();
        self.closes.clear();
        self.root_commands.clear();
        self.cluster_commands.clear();
        self.orders_done = 0;
        self.status_requests.clear();
        self.cluster_status_requests.clear();
        self.round_wanted = 0;
        self.diverged = None;
    }

    pub(super) fn refuse(
        &mut self,
        connection: u64,
        request: u64,
        code: RefusalCode,
        message: String,
    ) {
        self.refusal(connection, request, &Refusal::new(code, message));
    }

    pub(super) fn refusal(&mut self, connection: u64, request: u64, refusal: &Refusal) {
        self.released.push(connection, FrameKind::Refusal, request, refusal);
    }

    pub(super) fn refuse_log_failed(&mut self, connection: u64, request: u64) {
        let text = "the log device failed: repair it and start the node again".to_owned();
        self.refuse(connection, request, RefusalCode::LogUnavailable, text);
    }

    pub(super) fn refuse_and_close(
        &mut self,
        connection: u64,
        request: u64,
        code: RefusalCode,
        message: String,
    ) {
        self.refuse(connection, request, code, message);
        self.closes.push(connection);
    }
}
