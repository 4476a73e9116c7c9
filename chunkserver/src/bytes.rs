//! Little-endian fields of byte slices, and a reader that never leaves its slice.

macro_rules! field {
    ($get:ident, $put:ident, $take:ident, $kind:ty) => {
        /// Reads the field at `at`.
        pub(crate) fn $get(bytes: &[u8], at: usize) -> $kind {
            const SIZE: usize = size_of::<$kind>();
            let field: [u8; SIZE] =
                bytes[at..at + SIZE].try_into().expect("a slice of SIZE bytes is SIZE bytes long");
            <$kind>::from_le_bytes(field)
        }

        /// Writes the field at `at`.
        pub(crate) fn $put(bytes: &mut [u8], at: usize, value: $kind) {
            bytes[at..at + size_of::<$kind>()].copy_from_slice(&value.to_le_bytes());
        }

        impl<'a> ByteReader<'a> {
            /// The next field, if it is there.
            pub(crate) fn $take(&mut self) -> Option<$kind> {
                let field = self.take(size_of::<$kind>())?;
                Some(<$kind>::from_le_bytes(field.try_into().expect("as long as it was asked")))
            }
        }
    };
}

/// Reads a slice front to back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ByteReader<'a> {
    rest: &'a [u8],
}

impl<'a> ByteReader<'a> {
    /// At the front of `bytes`.
    pub(crate) fn new(bytes: &'a [u8]) -> ByteReader<'a> {
        ByteReader { rest: bytes }
    }

    /// The next `length` bytes, if they are there.
    pub(crate) fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(taken)
    }

    /// Bytes that are left.
    pub(crate) fn left(&self) -> usize {
        self.rest.len()
    }
}

field!(get_u16, put_u16, take_u16, u16);
field!(get_u32, put_u32, take_u32, u32);
field!(get_u64, put_u64, take_u64, u64);
field!(get_u128, put_u128, take_u128, u128);

/// True when every byte is zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (chunks, rest) = bytes.as_chunks::<16>();
    chunks.iter().all(|chunk| u128::from_ne_bytes(*chunk) == 0) && rest.iter().all(|b| *b == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_little_endian_and_exact() {
        let mut bytes = [0u8; 31];
        put_u16(&mut bytes, 1, 0x0201);
        put_u32(&mut bytes, 3, 0x0605_0403);
        put_u64(&mut bytes, 7, 0x0e0d_0c0b_0a09_0807);
        put_u128(&mut bytes, 15, 0x1e1d_1c1b_1a19_1817_1615_1413_1211_100f);
        let expected: Vec<u8> = (0..=0x1e).collect();
        assert_eq!(&bytes[..], expected.as_slice());
        assert_eq!(get_u16(&bytes, 1), 0x0201);
        assert_eq!(get_u32(&bytes, 3), 0x0605_0403);
        assert_eq!(get_u64(&bytes, 7), 0x0e0d_0c0b_0a09_0807);
        assert_eq!(get_u128(&bytes, 15), 0x1e1d_1c1b_1a19_1817_1615_1413_1211_100f);
        let mut reader = ByteReader::new(&bytes[1..7]);
        assert_eq!((reader.take_u16(), reader.take_u64(), reader.left()), (Some(0x0201), None, 4));
        assert_eq!((reader.take_u32(), reader.take_u16()), (Some(0x0605_0403), None));
    }

    #[test]
    fn zero_is_seen_at_every_position() {
        for at in 0..33 {
            let mut bytes = [0u8; 33];
            assert!(is_zero(&bytes));
            bytes[at] = 1;
            assert!(!is_zero(&bytes), "byte {at}");
        }
    }
}
