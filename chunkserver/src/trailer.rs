//! The trailer: the last bytes of a tablet or run, by which a reader finds all others.
//!
//! ```text
//! 0                      blocks, one behind the other
//! blocks_bytes           index of the blocks (rkyv)
//! ...                    Bloom filter
//! footer.offset          footer (rkyv)
//! ...                    zeros
//! length - 48            trailer
//! ```
//!
//! and the trailer itself, all numbers little-endian:
//!
//! ```text
//! 0    8   magic: "SPLLTABL", of a run "SPLLRUNF"
//! 8    4   version of the format
//! 12   4   length of the footer, of a run: of its directory
//! 16   8   begin of it
//! 24   8   length of the image, a multiple of 4,096
//! 32   8   XXH3-64 of it
//! 40   8   XXH3-64 of the 40 bytes before
//! ```
//!
//! It is written last, so a tablet whose writing was cut off has none.

use crate::error::TabletError;
use crate::footer::Section;
use crate::limits::{
    FOOTER_BYTES_MAX, RUN_BYTES_MAX, RUN_DIRECTORY_BYTES_MAX, TABLET_ALIGNMENT_BYTES,
    TABLET_BYTES_MAX,
};
use xxhash_rust::xxh3::xxh3_64;

/// Length of the trailer, bytes.
pub const TRAILER_BYTES: usize = 48;
/// Version of the format that this release reads and writes.
pub const FORMAT_VERSION: u32 = 1;
const CHECKED_BYTES: usize = TRAILER_BYTES - 8;

/// What a trailer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Image {
    /// A tablet, or a section of a run.
    Tablet,
    /// A run.
    Run,
}

impl Image {
    fn magic(self) -> [u8; 8] {
        match self {
            Image::Tablet => *b"SPLLTABL",
            Image::Run => *b"SPLLRUNF",
        }
    }

    /// The longest image, and the longest footer.
    fn bytes_max(self) -> (u64, u64) {
        match self {
            Image::Tablet => (TABLET_BYTES_MAX, FOOTER_BYTES_MAX),
            Image::Run => (RUN_BYTES_MAX, RUN_DIRECTORY_BYTES_MAX),
        }
    }
}

/// A trailer whose checksum and lengths were checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    /// Where the footer lies.
    pub footer: Section,
    /// Length of the whole image, bytes.
    pub image_bytes: u64,
}

impl Trailer {
    /// The trailer of an image whose footer is the last part: everything else follows.
    pub fn behind(footer: Section) -> Trailer {
        let end = footer.range().end + TRAILER_BYTES as u64;
        Trailer { footer, image_bytes: end.next_multiple_of(TABLET_ALIGNMENT_BYTES) }
    }

    /// Its bytes.
    pub fn encode(&self, image: Image) -> [u8; TRAILER_BYTES] {
        let length = u32::try_from(self.footer.length).expect("a footer is small");
        let mut bytes = [0; TRAILER_BYTES];
        bytes[0..8].copy_from_slice(&image.magic());
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&length.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.footer.offset.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.image_bytes.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.footer.checksum.to_le_bytes());
        seal(&mut bytes);
        bytes
    }

    /// Checks the last bytes of an image that is `image_bytes` long.
    pub fn decode(
        image: Image,
        bytes: &[u8; TRAILER_BYTES],
        image_bytes: u64,
    ) -> Result<Trailer, TabletError> {
        let word = |at: usize| {
            u64::from_le_bytes(bytes[at..at + 8].try_into().expect("a slice of eight bytes"))
        };
        if bytes[0..8] != image.magic() {
            return Err(TabletError::Magic);
        }
        let (expected, found) = (word(40), xxh3_64(&bytes[..CHECKED_BYTES]));
        if found != expected {
            return Err(TabletError::Checksum { part: "trailer", expected, found });
        }
        let version = word(8) as u32;
        if version != FORMAT_VERSION {
            return Err(TabletError::Version { found: version, supported: FORMAT_VERSION });
        }
        let (offset, length, checksum) = (word(16), word(8) >> 32, word(32));
        let trailer =
            Trailer { footer: Section { offset, length, checksum }, image_bytes: word(24) };
        let (image_bytes_max, length_max) = image.bytes_max();
        if image_bytes > image_bytes_max || length > length_max {
            return Err(TabletError::Malformed("length beyond the limits"));
        }
        if trailer.image_bytes != image_bytes {
            return Err(TabletError::Malformed("the image has another length than was written"));
        }
        // The footer lies inside, so this sum cannot overflow; and the image is the shortest that
        // holds it, so there is no room for bytes that nobody vouches for.
        if offset >= image_bytes || Trailer::behind(trailer.footer) != trailer {
            return Err(TabletError::Malformed("place of the footer"));
        }
        Ok(trailer)
    }
}

/// Writes the trailer's own checksum into its last bytes.
pub(crate) fn seal(bytes: &mut [u8; TRAILER_BYTES]) {
    let checksum = xxh3_64(&bytes[..CHECKED_BYTES]);
    bytes[CHECKED_BYTES..].copy_from_slice(&checksum.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Trailer {
        Trailer::behind(Section { offset: 5_000, length: 300, checksum: 9 })
    }

    #[test]
    fn a_trailer_comes_back() {
        let trailer = sample();
        assert_eq!(trailer.image_bytes, 8_192);
        assert_eq!(
            Trailer::decode(Image::Tablet, &trailer.encode(Image::Tablet), 8_192),
            Ok(trailer)
        );
    }

    #[test]
    fn a_run_is_no_tablet() {
        let bytes = sample().encode(Image::Run);
        assert_eq!(Trailer::decode(Image::Tablet, &bytes, 8_192), Err(TabletError::Magic));
        assert_eq!(Trailer::decode(Image::Run, &bytes, 8_192), Ok(sample()));
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let bytes = sample().encode(Image::Tablet);
        for bit in 0..8 * TRAILER_BYTES {
            let mut broken = bytes;
            broken[bit / 8] ^= 1 << (bit % 8);
            assert!(Trailer::decode(Image::Tablet, &broken, 8_192).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn sealed_nonsense_is_refused() {
        let refused = |at: usize, value: u64| {
            let mut bytes = sample().encode(Image::Tablet);
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            seal(&mut bytes);
            Trailer::decode(Image::Tablet, &bytes, 8_192).expect_err("nonsense")
        };
        assert_eq!(refused(8, 2 | 300 << 32), TabletError::Version { found: 2, supported: 1 });
        assert_eq!(
            refused(8, 1 | u64::from(u32::MAX) << 32),
            TabletError::Malformed("length beyond the limits")
        );
        assert_eq!(refused(16, u64::MAX), TabletError::Malformed("place of the footer"));
        assert_eq!(refused(16, 100), TabletError::Malformed("place of the footer"));
        assert!(matches!(refused(24, 4_096), TabletError::Malformed(_)));
        assert!(
            Trailer::decode(Image::Tablet, &sample().encode(Image::Tablet), 4_096).is_err(),
            "a file that was cut"
        );
    }
}
