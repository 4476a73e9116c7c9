//! An entry of the log in memory: the frame that goes to the disk and, without its first block, to
//! other nodes.

use spillway_net::ids::ClusterId;
use spillway_runtime::slot_ring::{Slot, SlotMut};

use super::frame::{BodyView, FrameFault, SharedHeader, body_check};
use super::geometry::Geometry;

/// An entry whose shared part is finished. The block in front of the body is still the node's own
/// to write: the writer puts the local header there when it issues the frame.
#[derive(Debug)]
pub struct EntryFrame {
    /// The header that all nodes share, as it stands in the body.
    pub shared: SharedHeader,
    /// The block in front of the body, in the same memory.
    pub head: SlotMut,
    /// Shared header area and payload, as it is sent to other nodes.
    pub body: Slot,
    /// Highest ticket in it; 0 when there is none, or on a follower.
    pub ticket: u64,
}

impl EntryFrame {
    /// Checks a frame that was received: one block of room, then the body.
    ///
    /// # Errors
    /// What is wrong with the body first. Nothing of it may be used.
    pub fn verify(
        geometry: &Geometry,
        cluster: ClusterId,
        slot: SlotMut,
    ) -> Result<Self, FrameFault> {
        let block = geometry.block();
        if slot.len() <= block {
            return Err(FrameFault::Length { expected: 2 * block, found: slot.len() });
        }
        let (head, body) = slot.split_at(block);
        Self::verify_parts(geometry, cluster, head, body)
    }

    /// Like [`Self::verify`] for a slot that was split behind its first block.
    ///
    /// # Errors
    /// What is wrong with the body first. Nothing of it may be used.
    ///
    /// # Panics
    /// When the head is no block in front of the body: a programming error of the shell.
    pub fn verify_parts(
        geometry: &Geometry,
        cluster: ClusterId,
        head: SlotMut,
        body: SlotMut,
    ) -> Result<Self, FrameFault> {
        assert_eq!(head.len(), geometry.block(), "the local header has one block");
        assert_eq!(head.address() + head.len(), body.address(), "directly in front of the body");
        let shared = body_check(geometry, cluster, &body)?;
        if !shared.kind.is_entry() {
            return Err(FrameFault::Field("kind"));
        }
        Ok(Self { shared, head, body: body.freeze(), ticket: 0 })
    }

    /// Sections and header.
    pub fn view(&self, geometry: &Geometry) -> BodyView<'_> {
        BodyView::of(geometry, self.shared, &self.body)
    }

    /// Whole frame, the local header included.
    pub fn frame_bytes(&self) -> usize {
        self.head.len() + self.body.len()
    }
}

/// Checks the body of an entry that was read back from the disk, or fetched from another node, and
/// that it is the entry with this shared checksum.
///
/// # Errors
/// What is wrong first.
pub fn body_verify(
    geometry: &Geometry,
    cluster: ClusterId,
    body: &[u8],
    checksum: u64,
) -> Result<SharedHeader, FrameFault> {
    let shared = body_check(geometry, cluster, body)?;
    if shared.checksum == checksum { Ok(shared) } else { Err(FrameFault::Other) }
}
