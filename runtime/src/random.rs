//! Random bytes from the kernel, for what nobody may guess or repeat: nonces, numbers of
//! processes. Cores get theirs as arguments.

use crate::error::Errno;

/// Fresh random bytes.
#[must_use]
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut out = [0; N];
    let mut filled = 0;
    while filled < N {
        let rest = &mut out[filled..];
        // SAFETY: the rest is writable for its length.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match got {
            got if got > 0 => filled += got as usize,
            _ => assert!(
                Errno::last() == Errno(libc::EINTR),
                "the kernel has no random bytes: {}",
                Errno::last()
            ),
        }
    }
    out
}

/// A fresh random number.
#[must_use]
pub fn number() -> u64 {
    u64::from_le_bytes(bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_draws_are_alike() {
        let mut seen: Vec<[u8; 32]> = (0..100).map(|_| bytes()).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 100);
        // One more than one call of the kernel gives at once without being asked again.
        let long: [u8; 1025] = bytes();
        assert!(long[1000..].iter().any(|byte| *byte != 0));
        assert_ne!(number(), number());
    }
}
