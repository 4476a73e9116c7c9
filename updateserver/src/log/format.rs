//! The files of a fresh node, as a plan.

use spillway_net::ids::{ClusterId, Epoch, NodeId};
use spillway_net::limits;

use super::geometry::{Geometry, GeometryError};
use super::members::Members;
use super::position::{ChainState, Floor, Tail};
use super::segment::{Contents, segment_recycle};
use super::superblock::{DurableWrite, Superblock, SuperblockWrite, superblock_update};

/// What a shell writes to format the log of a node. Segments first, then the superblock: without
/// it the node does not start, so that a format that was cut short is never taken for a node.
#[derive(Clone, Debug)]
pub struct FormatPlan {
    /// Sizes that were checked.
    pub geometry: Geometry,
    /// The first superblock.
    pub superblock: Superblock,
}

impl FormatPlan {
    /// Checks the sizes and lays out the plan. `members` are those that the cluster begins with;
    /// none on a node that joins it later.
    ///
    /// # Errors
    /// A geometry that does not hold.
    ///
    /// # Panics
    /// On a node id out of range, or members that contradict each other.
    pub fn new(
        cluster: ClusterId,
        node: NodeId,
        geometry: Geometry,
        durable_write: DurableWrite,
        members: Members,
    ) -> Result<Self, GeometryError> {
        geometry.check()?;
        assert!((1..=limits::NODE_ID_MAX).contains(&node.0), "node id {node} out of range");
        assert_eq!(members.fault(), None, "members of a fresh node");
        let offset = geometry.data_offset();
        let superblock = Superblock {
            sequence: 1,
            cluster,
            node,
            geometry,
            durable_write,
            fingerprint: limits::fingerprint(),
            term: Epoch(0),
            vote: NodeId(0),
            boot: 0,
            floor: Floor { ordinal: 0, chain: ChainState::EMPTY },
            tail: Tail { ordinal: 0, offset, sequence: 1, wipe_end: offset },
            durable_sequence: 0,
            members,
        };
        Ok(Self { geometry, superblock })
    }

    /// Number of segment files, each written in full: [`Self::segment_start`], then zeros up to
    /// `segment_bytes`.
    pub fn segments(&self) -> u32 {
        self.geometry.segments_count
    }

    /// The first bytes of a segment file: its header and the empty table. All behind is zero.
    pub fn segment_start(&self, segment: u32) -> Vec<u8> {
        assert!(segment < self.geometry.segments_count, "no segment {segment}");
        let Superblock { cluster, node, .. } = self.superblock;
        let chain = ChainState::EMPTY;
        let ordinal = u64::from(segment);
        segment_recycle(&self.geometry, cluster, node, ordinal, &chain, &Contents::Zeros)
    }

    /// The writes of the superblock file, in rounds, after all segments are durable.
    pub fn superblock_writes(&self) -> [Vec<SuperblockWrite>; 2] {
        superblock_update(&self.superblock)
    }
}
