//! What the links to the peers are made from, read before the threads serve: a key that cannot be
//! read must keep the node from starting.

use spillway_net::ids::NodeId;
use spillway_net::limits;
use spillway_net::peer::{ClusterKey, Hello, LogFormat, Message};
use spillway_runtime::random;
use spillway_runtime::tcp::ListenerId;

use crate::config::Config;
use crate::log::{Geometry, Superblock};
use crate::quorum::PeerHeader;

use super::NodeError;
use super::peers::{PeerLinksOptions, PeerTls};

/// See the module.
pub(super) struct PeerPlan {
    hello: Hello,
    key: ClusterKey,
    tls: Option<PeerTls>,
    configured: Vec<(NodeId, String)>,
    geometry: Geometry,
}

impl PeerPlan {
    /// For a node that only repairs its log: it begins no boot.
    pub fn repairing(mut self) -> Self {
        self.hello.instance = Hello::INSTANCE_REPAIRING;
        self
    }

    /// Completed on the thread that listens.
    pub fn links(self, listener: Option<ListenerId>) -> PeerLinksOptions {
        let Self { hello, key, tls, configured, geometry } = self;
        let body_bytes_of = Box::new(move |header: &Message| body_bytes_of(&geometry, header));
        PeerLinksOptions { hello, key, tls, listener, configured, body_bytes_of }
    }
}

fn body_bytes_of(geometry: &Geometry, header: &Message) -> Result<u32, String> {
    let header = PeerHeader::decode(geometry, header).map_err(|fault| fault.to_string())?;
    Ok(header.body_bytes)
}

/// The plan of a node that has peers, or waits for some.
pub(super) fn of(config: &Config, superblock: &Superblock) -> Result<Option<PeerPlan>, NodeError> {
    if !config.cluster.has_peers() {
        return Ok(None);
    }
    let Geometry { block_bytes, partitions, batch_bytes_max, .. } = superblock.geometry;
    let hello = Hello {
        cluster: superblock.cluster,
        limits: limits::fingerprint(),
        format: LogFormat { block_bytes, batch_bytes_max, partitions },
        node: superblock.node,
        boot: superblock.boot,
        instance: random::number(),
        is_founded: false,
    };
    let key = config.cluster.key_load()?.unwrap_or_else(ClusterKey::certified);
    let tls = config.cluster.tls.as_ref();
    let tls = tls.map(|tls| PeerTls::load(tls, superblock.node)).transpose()?;
    let configured = config.cluster.nodes.iter().map(|n| (NodeId(n.id), n.peer.clone())).collect();
    let geometry = superblock.geometry;
    Ok(Some(PeerPlan { hello, key, tls, configured, geometry }))
}
