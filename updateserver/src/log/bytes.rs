//! Little-endian fields at fixed offsets of byte slices, and the checksum of a block.

use xxhash_rust::xxh3::xxh3_64;

/// Values of counters on disk (sequences, indexes, terms, boots) stay below this, so that adding
/// to one that was read from a damaged or hostile disk cannot overflow.
pub const COUNTER_LIMIT: u64 = 1 << 62;

/// Offset of the checksum in every header; it covers everything behind itself. What stands before
/// it (magic, version) is compared with constants instead.
pub const CHECKSUM_OFFSET: usize = 8;
/// First byte that a header's checksum covers.
pub const CHECKSUM_COVERS_FROM: usize = 16;

macro_rules! field {
    ($get:ident, $put:ident, $kind:ty) => {
        #[doc = concat!("Reads the `", stringify!($kind), "` at `at`.")]
        pub fn $get(bytes: &[u8], at: usize) -> $kind {
            const SIZE: usize = size_of::<$kind>();
            let field: [u8; SIZE] =
                bytes[at..at + SIZE].try_into().expect("a slice of SIZE bytes is SIZE bytes long");
            <$kind>::from_le_bytes(field)
        }

        #[doc = concat!("Writes the `", stringify!($kind), "` at `at`.")]
        pub fn $put(bytes: &mut [u8], at: usize, value: $kind) {
            bytes[at..at + size_of::<$kind>()].copy_from_slice(&value.to_le_bytes());
        }
    };
}

field!(get_u16, put_u16, u16);
field!(get_u32, put_u32, u32);
field!(get_u64, put_u64, u64);
field!(get_u128, put_u128, u128);

/// `value` rounded up to a multiple of `unit`, a power of two.
pub const fn align_up(value: usize, unit: usize) -> usize {
    assert!(unit.is_power_of_two());
    (value + unit - 1) & !(unit - 1)
}

/// Checksum of one block as it stands on disk.
pub fn block_checksum(block: &[u8]) -> u64 {
    xxh3_64(block)
}

/// Checksum of a header area whose own checksum stands at [`CHECKSUM_OFFSET`].
pub fn header_checksum(header: &[u8]) -> u64 {
    xxh3_64(&header[CHECKSUM_COVERS_FROM..])
}

/// Computes and stores the checksum of a header area. Returns it.
pub fn header_seal(header: &mut [u8]) -> u64 {
    let checksum = header_checksum(header);
    put_u64(header, CHECKSUM_OFFSET, checksum);
    checksum
}

/// True when every byte is zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (chunks, rest) = bytes.as_chunks::<16>();
    chunks.iter().all(|chunk| u128::from_ne_bytes(*chunk) == 0) && rest.iter().all(|b| *b == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_little_endian_and_exact() {
        let mut bytes = [0u8; 40];
        put_u16(&mut bytes, 1, 0x0201);
        put_u32(&mut bytes, 3, 0x0605_0403);
        put_u64(&mut bytes, 7, 0x0e0d_0c0b_0a09_0807);
        put_u128(&mut bytes, 15, 0x1e1d_1c1b_1a19_1817_1615_1413_1211_100f);
        let expected: Vec<u8> = (0..=0x1e).collect();
        assert_eq!(&bytes[..0x1f], expected.as_slice());
        assert_eq!(get_u16(&bytes, 1), 0x0201);
        assert_eq!(get_u32(&bytes, 3), 0x0605_0403);
        assert_eq!(get_u64(&bytes, 7), 0x0e0d_0c0b_0a09_0807);
        assert_eq!(get_u128(&bytes, 15), 0x1e1d_1c1b_1a19_1817_1615_1413_1211_100f);
    }

    #[test]
    fn zero_is_seen_at_every_position() {
        for length in [0, 1, 15, 16, 17, 512, 515] {
            let mut bytes = vec![0u8; length];
            assert!(is_zero(&bytes));
            for at in 0..length {
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "byte {at} of {length}");
                bytes[at] = 0;
            }
        }
    }

    #[test]
    fn align_up_rounds_to_the_unit() {
        assert_eq!([0, 1, 16, 17].map(|v| align_up(v, 16)), [0, 16, 16, 32]);
    }
}
