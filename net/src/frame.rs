//! The frame: what travels on a connection, in both directions.
//!
//! ```text
//! offset size field
//!      0    8 checksum  XXH3-64 of bytes 8..40 and the payload
//!      8    4 magic     "SPLW"
//!     12    2 version   protocol version, 1
//!     14    2 kind      FrameKind
//!     16    4 length    payload bytes
//!     20    4 reserved  zero
//!     24    8 request   chosen by the client, repeated in the answer
//!     32    8 lsn       answer: a committed LSN at or above everything the answer saw; else 0
//!     40    - payload   one rkyv archive, root at the end
//! ```
//!
//! All integers are little-endian. Nothing of a frame is believed before the length was checked
//! against the limit and the checksum against the bytes; the payload is then validated again as
//! an archive by whoever reads it.

use xxhash_rust::xxh3::xxh3_64;

use crate::ids::Lsn;
use crate::limits::PROTOCOL_VERSION;

/// Bytes of the flat header in front of every payload.
pub const HEADER_BYTES: usize = 40;
const MAGIC: u32 = u32::from_le_bytes(*b"SPLW");

/// What a payload is. Requests are odd, answers are even.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum FrameKind {
    /// [`crate::message::Hello`], the first frame of every connection.
    Hello = 1,
    /// [`crate::message::Welcome`].
    Welcome = 2,
    /// [`crate::message::SessionOpen`].
    SessionOpen = 3,
    /// [`crate::message::SessionOpened`].
    SessionOpened = 4,
    /// [`crate::message::Submit`].
    Submit = 5,
    /// [`crate::message::Outcomes`].
    Outcomes = 6,
    /// [`crate::message::Scan`].
    Scan = 7,
    /// [`crate::message::ScanPage`].
    ScanPage = 8,
    /// [`crate::message::TableCreate`].
    TableCreate = 9,
    /// [`crate::message::TableCreated`].
    TableCreated = 10,
    /// [`crate::message::TableDrop`].
    TableDrop = 11,
    /// [`crate::message::Done`].
    Done = 12,
    /// [`crate::message::TableList`].
    TableList = 13,
    /// [`crate::message::TableListing`].
    TableListing = 14,
    /// [`crate::message::Status`].
    Status = 15,
    /// [`crate::message::StatusReport`].
    StatusReport = 16,
    /// [`crate::message::SessionClose`], answered by `Done`.
    SessionClose = 17,
    /// [`crate::message::Refusal`]: the answer to a request that could not be served at all.
    Refusal = 18,
    /// [`crate::message::ClusterStatus`].
    ClusterStatus = 19,
    /// [`crate::message::ClusterReport`].
    ClusterReport = 20,
    /// [`crate::message::ClusterCommand`], answered by `Done`.
    ClusterCommand = 21,
}

impl FrameKind {
    const fn from_wire(kind: u16) -> Option<Self> {
        Some(match kind {
            1 => Self::Hello,
            2 => Self::Welcome,
            3 => Self::SessionOpen,
            4 => Self::SessionOpened,
            5 => Self::Submit,
            6 => Self::Outcomes,
            7 => Self::Scan,
            8 => Self::ScanPage,
            9 => Self::TableCreate,
            10 => Self::TableCreated,
            11 => Self::TableDrop,
            12 => Self::Done,
            13 => Self::TableList,
            14 => Self::TableListing,
            15 => Self::Status,
            16 => Self::StatusReport,
            17 => Self::SessionClose,
            18 => Self::Refusal,
            19 => Self::ClusterStatus,
            20 => Self::ClusterReport,
            21 => Self::ClusterCommand,
            _ => return None,
        })
    }
}

/// Why bytes are not a frame. The connection is closed: after a bad header nobody knows where
/// the next frame begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The peer does not speak this protocol at all.
    #[error("wrong magic {0:#010x}: the peer does not speak the Spillway protocol")]
    Magic(u32),
    /// The peer speaks another version of it.
    #[error("protocol version {0}, expected {PROTOCOL_VERSION}: install matching releases")]
    Version(u16),
    /// A kind nobody knows.
    #[error("unknown frame kind {0}")]
    Kind(u16),
    /// A payload above the limit of this direction or state.
    #[error("payload of {length} bytes exceeds the limit of {limit}")]
    Length {
        /// Announced payload bytes.
        length: u32,
        /// The limit in force.
        limit: u32,
    },
    /// Reserved bits are set.
    #[error("reserved header field is not zero")]
    Reserved,
    /// Damaged on the way.
    #[error("frame checksum does not match its bytes")]
    Checksum,
}

/// A header whose magic, version, kind and length were checked. Its checksum was not: that takes
/// the payload, see [`FrameHeader::check`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Checksum as announced.
    pub checksum: u64,
    /// What the payload is.
    pub kind: FrameKind,
    /// Payload bytes, at most the limit given to [`FrameHeader::parse`].
    pub length: u32,
    /// Correlation number.
    pub request: u64,
    /// See the module's table.
    pub lsn: Lsn,
}

fn u16_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

impl FrameHeader {
    /// Reads a header; `payload_bytes_max` is what this direction and connection state allow.
    pub fn parse(bytes: &[u8; HEADER_BYTES], payload_bytes_max: usize) -> Result<Self, FrameError> {
        let magic = u32_at(bytes, 8);
        if magic != MAGIC {
            return Err(FrameError::Magic(magic));
        }
        let version = u16_at(bytes, 12);
        if version != PROTOCOL_VERSION {
            return Err(FrameError::Version(version));
        }
        let kind = u16_at(bytes, 14);
        let Some(kind) = FrameKind::from_wire(kind) else {
            return Err(FrameError::Kind(kind));
        };
        let length = u32_at(bytes, 16);
        if length as usize > payload_bytes_max {
            return Err(FrameError::Length { length, limit: payload_bytes_max as u32 });
        }
        if u32_at(bytes, 20) != 0 {
            return Err(FrameError::Reserved);
        }
        Ok(Self {
            checksum: u64_at(bytes, 0),
            kind,
            length,
            request: u64_at(bytes, 24),
            lsn: Lsn(u64_at(bytes, 32)),
        })
    }

    /// Bytes of the whole frame.
    pub const fn frame_bytes(&self) -> usize {
        HEADER_BYTES + self.length as usize
    }

    /// Checks the checksum of a whole frame, header included, as received.
    pub fn check(&self, frame: &[u8]) -> Result<(), FrameError> {
        assert_eq!(frame.len(), self.frame_bytes(), "check takes exactly one frame");
        if xxh3_64(&frame[8..]) == self.checksum { Ok(()) } else { Err(FrameError::Checksum) }
    }
}

/// Appends room for a header; [`finish`] fills it once the payload stands behind it. Returns the
/// frame's start in `out`.
pub fn begin(out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    start
}

/// Fills the header of the frame that began at the front of `frame` and ends at its end.
pub fn finish(frame: &mut [u8], kind: FrameKind, request: u64, lsn: Lsn) {
    assert!(frame.len() >= HEADER_BYTES, "a frame has a header");
    let length = u32::try_from(frame.len() - HEADER_BYTES).expect("payloads are below 4 GiB");
    frame[8..12].copy_from_slice(&MAGIC.to_le_bytes());
    frame[12..14].copy_from_slice(&PROTOCOL_VERSION.to_le_bytes());
    frame[14..16].copy_from_slice(&(kind as u16).to_le_bytes());
    frame[16..20].copy_from_slice(&length.to_le_bytes());
    frame[20..24].copy_from_slice(&0u32.to_le_bytes());
    frame[24..32].copy_from_slice(&request.to_le_bytes());
    frame[32..40].copy_from_slice(&lsn.0.to_le_bytes());
    let checksum = xxh3_64(&frame[8..]);
    frame[0..8].copy_from_slice(&checksum.to_le_bytes());
}

/// Cuts a stream of bytes into frames and bounds what a silent or greedy peer can make it hold:
/// memory grows with bytes received, never with a length announced.
#[derive(Debug, Default)]
pub struct FrameAssembler {
    partial: Vec<u8>,
}

/// One step of [`FrameAssembler::next`].
#[derive(Debug, PartialEq, Eq)]
pub enum Assembled<'a> {
    /// A whole frame that lies in the received bytes, not copied.
    InPlace(FrameHeader, &'a [u8]),
    /// A whole frame that came in pieces, moved out of the assembler.
    Owned(FrameHeader, Vec<u8>),
    /// All received bytes were used; more are needed.
    Incomplete,
}

impl FrameAssembler {
    /// Bytes held for an unfinished frame: its memory, also what is not filled yet.
    pub fn held_bytes(&self) -> usize {
        self.partial.capacity()
    }

    /// Takes the next frame from `bytes`, advancing it. `spare` is an empty buffer to recycle.
    pub fn next<'a>(
        &mut self,
        bytes: &mut &'a [u8],
        payload_bytes_max: usize,
        spare: &mut Vec<Vec<u8>>,
    ) -> Result<Assembled<'a>, FrameError> {
        if self.partial.is_empty() {
            if let Some(header) = bytes.first_chunk::<HEADER_BYTES>() {
                let header = FrameHeader::parse(header, payload_bytes_max)?;
                if let Some((frame, rest)) = bytes.split_at_checked(header.frame_bytes()) {
                    header.check(frame)?;
                    *bytes = rest;
                    return Ok(Assembled::InPlace(header, frame));
                }
            }
            if bytes.is_empty() {
                return Ok(Assembled::Incomplete);
            }
            self.partial = spare.pop().unwrap_or_default();
        }
        self.take(bytes, HEADER_BYTES);
        let Some(header) = self.partial.first_chunk::<HEADER_BYTES>() else {
            return Ok(Assembled::Incomplete);
        };
        let header = FrameHeader::parse(header, payload_bytes_max)?;
        self.take(bytes, header.frame_bytes());
        if self.partial.len() < header.frame_bytes() {
            return Ok(Assembled::Incomplete);
        }
        header.check(&self.partial)?;
        Ok(Assembled::Owned(header, std::mem::take(&mut self.partial)))
    }

    /// Moves bytes into the partial frame until it holds `target`.
    fn take(&mut self, bytes: &mut &[u8], target: usize) {
        let missing = target.saturating_sub(self.partial.len()).min(bytes.len());
        let (now, rest) = bytes.split_at(missing);
        self.partial.extend_from_slice(now);
        *bytes = rest;
    }
}

/// Feeds arbitrary bytes to the assembler in pieces: must neither panic nor hold more than one
/// frame's limit. The fuzz target `frame` and the tests call this.
pub fn fuzz_frame(data: &[u8]) {
    let mut assembler = FrameAssembler::default();
    let mut spare = Vec::new();
    let piece = usize::from(data.first().copied().unwrap_or(1)).max(1);
    for chunk in data.chunks(piece) {
        let mut rest = chunk;
        loop {
            match assembler.next(&mut rest, 1 << 16, &mut spare) {
                Ok(Assembled::InPlace(header, frame)) => {
                    assert_eq!(frame.len(), header.frame_bytes());
                }
                Ok(Assembled::Owned(header, frame)) => {
                    assert_eq!(frame.len(), header.frame_bytes());
                    assert_eq!(assembler.held_bytes(), 0);
                }
                Ok(Assembled::Incomplete) => break,
                Err(_) => return,
            }
        }
        assert!(rest.is_empty(), "an incomplete frame takes all bytes");
        // A vector grows by doubling.
        assert!(assembler.held_bytes() <= 2 * (HEADER_BYTES + (1 << 16)));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(payload: &[u8], request: u64) -> Vec<u8> {
        let mut out = Vec::new();
        begin(&mut out);
        out.extend_from_slice(payload);
        finish(&mut out, FrameKind::Submit, request, Lsn(7));
        out
    }

    fn cut(
        stream: &[u8],
        pieces: &[usize],
        limit: usize,
    ) -> Result<Vec<(u64, Vec<u8>)>, FrameError> {
        let mut assembler = FrameAssembler::default();
        let mut spare = Vec::new();
        let mut found = Vec::new();
        let mut rest = stream;
        let mut sizes = pieces.iter().cycle();
        while !rest.is_empty() {
            let size = (*sizes.next().expect("cycle never ends")).clamp(1, rest.len());
            let (mut now, later) = rest.split_at(size);
            rest = later;
            loop {
                match assembler.next(&mut now, limit, &mut spare)? {
                    Assembled::InPlace(h, f) => found.push((h.request, f[HEADER_BYTES..].to_vec())),
                    Assembled::Owned(h, f) => found.push((h.request, f[HEADER_BYTES..].to_vec())),
                    Assembled::Incomplete => break,
                }
            }
        }
        Ok(found)
    }

    proptest! {
        #[test]
        fn frames_survive_any_cutting(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..8),
            pieces in prop::collection::vec(1usize..200, 1..10),
        ) {
            let mut stream = Vec::new();
            let mut expected = Vec::new();
            for (i, payload) in payloads.iter().enumerate() {
                stream.extend_from_slice(&frame(payload, i as u64));
                expected.push((i as u64, payload.clone()));
            }
            prop_assert_eq!(cut(&stream, &pieces, 1000).expect("good frames"), expected);
        }

        #[test]
        fn one_flipped_bit_is_always_an_error_or_incomplete(
            payload in prop::collection::vec(any::<u8>(), 0..100),
            bit in any::<prop::sample::Index>(),
        ) {
            let mut bytes = frame(&payload, 3);
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            // A longer announced length leaves the frame incomplete; everything else is told.
            if let Ok(found) = cut(&bytes, &[usize::MAX], 1 << 20) {
                prop_assert!(found.is_empty());
            }
        }

        #[test]
        fn arbitrary_bytes_do_no_harm(data in prop::collection::vec(any::<u8>(), 0..2000)) {
            fuzz_frame(&data);
        }
    }

    fn refused(change: impl Fn(&mut Vec<u8>)) -> FrameError {
        let mut bytes = frame(b"payload", 1);
        change(&mut bytes);
        cut(&bytes, &[usize::MAX], 100).expect_err("a bad header must be refused")
    }

    #[test]
    fn bad_headers_are_typed_errors() {
        assert!(matches!(refused(|b| b[8] ^= 1), FrameError::Magic(_)));
        assert_eq!(refused(|b| b[12] = 9), FrameError::Version(9));
        assert_eq!(refused(|b| b[14] = 200), FrameError::Kind(200));
        assert_eq!(refused(|b| b[20] = 1), FrameError::Reserved);
        assert_eq!(refused(|b| b[40] ^= 1), FrameError::Checksum);
        assert_eq!(refused(|b| b[24] ^= 1), FrameError::Checksum);
        let length = refused(|b| b[16..20].copy_from_slice(&101u32.to_le_bytes()));
        assert_eq!(length, FrameError::Length { length: 101, limit: 100 });
    }

    #[test]
    fn an_announced_length_allocates_nothing() {
        let mut bytes = frame(&[], 1);
        bytes[16..20].copy_from_slice(&1_000_000u32.to_le_bytes());
        let mut assembler = FrameAssembler::default();
        let mut rest = &bytes[..];
        let step = assembler.next(&mut rest, 1 << 20, &mut Vec::new()).expect("within limits");
        assert_eq!(step, Assembled::Incomplete);
        assert!(assembler.partial.capacity() < 200);
    }
}
