//! Why a node cannot be formatted, started or kept running. Each text names the probable cause
//! and, where there is one, the command that mends it.

use std::path::PathBuf;

use spillway_runtime::error::RuntimeError;

use super::peers::TlsError;
use crate::config::ConfigError;
use crate::log::{GeometryError, LogDamaged, Poisoned, SuperblockError};
use crate::quorum::ReplicaFailure;
use crate::shard::ReplayError;

/// See the module.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The kernel, a file, a socket.
    #[error("{0}")]
    Runtime(#[from] RuntimeError),
    /// The configuration file.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// Sizes that do not fit each other.
    #[error("{0}")]
    Geometry(#[from] GeometryError),
    /// Formatting would destroy a node.
    #[error(
        "{path} already holds a node: start it with `spillway start`, or, if its data is to be \
         given up, remove {path} and the log directory first"
    )]
    AlreadyFormatted {
        /// Its superblock.
        path: PathBuf,
    },
    /// There is no node.
    #[error("{path} does not exist: format the node first with `spillway format --config FILE`")]
    NotFormatted {
        /// The superblock that should be there.
        path: PathBuf,
    },
    /// The superblock cannot be used.
    #[error("{path}: {error}")]
    Superblock {
        /// The file.
        path: PathBuf,
        /// Why.
        error: SuperblockError,
    },
    /// What was fixed at format differs from the configuration.
    #[error(
        "{key} is {configured} in the configuration and {formatted} on disk: it is fixed at \
         format, so change the configuration back"
    )]
    Fixed {
        /// The key.
        key: &'static str,
        /// Configured.
        configured: u64,
        /// On disk.
        formatted: u64,
    },
    /// Every shard needs some memory.
    #[error(
        "a memory budget of {budget} bytes is too small for {shards} shards: raise \
         memory.budget_bytes to 128 MiB per shard, or lower node.shards"
    )]
    BudgetSmall {
        /// Shards.
        shards: u16,
        /// The node's budget.
        budget: u64,
    },
    /// The log is damaged.
    #[error("{0}")]
    Damaged(#[from] LogDamaged),
    /// A frame is damaged and stays so.
    #[error(
        "{path}: the damaged frame at offset {offset} could not be repaired: {cause}. The disk is \
         bad: replace it, and let this node join anew with `spillway admin replace-node`"
    )]
    Unmendable {
        /// Segment file.
        path: PathBuf,
        /// Of the frame.
        offset: u64,
        /// What was tried.
        cause: String,
    },
    /// The log cannot be applied.
    #[error("replay of the log failed: {0}")]
    Replay(#[from] ReplayError),
    /// The certificates for the links between nodes.
    #[error("{0}")]
    Tls(#[from] TlsError),
    /// The configuration names another cluster than the disk.
    #[error(
        "cluster.id is {configured:032x} in the configuration and {formatted:032x} on disk: it is \
         fixed at format, so change the configuration back"
    )]
    FixedCluster {
        /// Configured.
        configured: u128,
        /// On disk.
        formatted: u128,
    },
    /// This replica is not what the leader has, and must not go on.
    #[error(
        "this replica stops, the others go on: {0}; if it stops again after a start, replace the \
         node with `spillway admin replace-node`"
    )]
    Diverged(ReplayError),
    /// The replica core cannot go on.
    #[error("{0}")]
    Replica(ReplicaFailure),
    /// The log failed, and other nodes can do without this one.
    #[error(
        "this node ends, the others go on: {0}; if the disk is lost, let the node join anew with \
         `spillway admin replace-node`"
    )]
    LogFailed(Poisoned),
    /// A node that is alone did not come to lead itself.
    #[error(
        "the node has no peers and did not begin to lead within {waited:?}: its log disk does not \
         complete writes; check the disk, then start the node again"
    )]
    NotLeading {
        /// Since it was ready.
        waited: std::time::Duration,
    },
    /// Shards listen at ports that follow each other, and these end.
    #[error(
        "node.listen = {address}: there is no port left for shard {shard}: choose a lower port or \
         fewer shards"
    )]
    Ports {
        /// Of shard 0.
        address: std::net::SocketAddr,
        /// The shard without a port.
        shard: spillway_net::ids::ShardIndex,
    },
    /// A core's thread ended although nobody asked it to.
    #[error("the thread of {0} ended")]
    ThreadEnded(String),
}
