//! How blocks are stored: as they are, or compressed.
//!
//! A block says for itself whether it is compressed, by its two lengths. Nothing that zones compare
//! depends on compressed bytes or lengths: another release may compress better.

use crate::error::BlockError;
use crate::limits::BLOCK_BYTES_MAX;
use bytes::Bytes;

/// How the blocks of a table are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Codec {
    /// As they are.
    #[default]
    Plain,
    /// The block format of LZ4, where it spares an eighth.
    Lz4,
}

impl Codec {
    /// The bytes to store for a block.
    pub(crate) fn encode(self, plain: &Bytes) -> Bytes {
        assert!(plain.len() <= BLOCK_BYTES_MAX, "a block within its limit");
        match self {
            Codec::Plain => plain.clone(),
            Codec::Lz4 => {
                let packed = lz4_flex::block::compress(plain);
                let is_worth_it = packed.len() <= plain.len() - plain.len() / 8;
                // A block whose lengths are equal would count as stored as it is.
                let is_shorter = packed.len() < plain.len();
                if is_worth_it && is_shorter { Bytes::from(packed) } else { plain.clone() }
            }
        }
    }
}

/// The block behind stored bytes whose checksum was checked. `plain_bytes` is its length.
pub(crate) fn decode(stored: &Bytes, plain_bytes: u32) -> Result<Bytes, BlockError> {
    let plain_bytes = plain_bytes as usize;
    if stored.len() == plain_bytes {
        return Ok(stored.clone());
    }
    let malformed = |what| BlockError::Malformed { bytes: stored.len(), what };
    if plain_bytes > BLOCK_BYTES_MAX {
        return Err(malformed("length beyond the limits"));
    }
    // A new buffer, all zeros: nothing of another block can come out of a strange one.
    let mut plain = vec![0; plain_bytes];
    match lz4_flex::block::decompress_into(stored, &mut plain) {
        Ok(bytes) if bytes == plain_bytes => Ok(Bytes::from(plain)),
        Ok(_) => Err(malformed("length after decompression")),
        Err(_) => Err(malformed("it is not LZ4")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_come_back() {
        let random: Vec<u8> =
            (0..5_000u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u8).collect();
        for plain in [vec![], vec![1; 3], vec![7; 20_000], random] {
            let plain = Bytes::from(plain);
            for codec in [Codec::Plain, Codec::Lz4] {
                let stored = codec.encode(&plain);
                assert!(stored.len() <= plain.len());
                assert_eq!(decode(&stored, plain.len() as u32), Ok(plain.clone()));
            }
        }
        let zeros = Bytes::from(vec![0; 20_000]);
        assert!(Codec::Lz4.encode(&zeros).len() < 200);
    }

    #[test]
    fn wrong_lengths_and_bytes_are_refused() {
        let plain = Bytes::from(vec![7; 20_000]);
        let stored = Codec::Lz4.encode(&plain);
        for length in [0, 19_999, 20_001, u32::MAX] {
            assert!(decode(&stored, length).is_err(), "{length}");
        }
        for at in 0..stored.len() {
            let mut broken = stored.to_vec();
            broken[at] ^= 0x55;
            if let Ok(other) = decode(&Bytes::from(broken), 20_000) {
                assert_eq!(other.len(), 20_000);
            }
        }
    }
}
