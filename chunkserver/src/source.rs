//! Where images come from and go to: the seam between tablets and disks.

use std::convert::Infallible;
use std::ops::Range;

/// Takes an image front to back.
pub trait ByteSink {
    /// How it fails.
    type Error;

    /// Appends bytes.
    fn append(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;
}

impl ByteSink for Vec<u8> {
    type Error = Infallible;

    fn append(&mut self, bytes: &[u8]) -> Result<(), Infallible> {
        self.extend_from_slice(bytes);
        Ok(())
    }
}

/// Gives any part of an image.
pub trait ByteSource {
    /// How it fails.
    type Error;

    /// Length of the image, bytes.
    fn bytes_total(&self) -> u64;

    /// Exactly the bytes of `range`, which lies inside the image: the caller has checked that.
    fn read(&mut self, range: Range<u64>) -> Result<Vec<u8>, Self::Error>;
}

/// An image in memory.
impl ByteSource for &[u8] {
    type Error = Infallible;

    fn bytes_total(&self) -> u64 {
        self.len() as u64
    }

    fn read(&mut self, range: Range<u64>) -> Result<Vec<u8>, Infallible> {
        Ok(self[range.start as usize..range.end as usize].to_vec())
    }
}
