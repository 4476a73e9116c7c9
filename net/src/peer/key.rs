//! The secret that all nodes of a cluster share.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::Message;
use super::hello::{CODE_BYTES, Role};

/// Least bytes of a key.
pub const KEY_BYTES_MIN: usize = 32;
/// Most bytes of a key: more is another file by mistake.
const KEY_BYTES_MAX: usize = 4096;

/// Why bytes are no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Too short to be a secret, or too long to be meant.
    #[error(
        "a cluster key of {0} bytes: it must have {KEY_BYTES_MIN} to {KEY_BYTES_MAX}; make one \
         with `head -c 32 /dev/urandom > FILE` and copy it to every node"
    )]
    Length(usize),
    /// One byte over and over: a file that was never filled.
    #[error(
        "the cluster key is one byte repeated, not a secret: make one with \
         `head -c 32 /dev/urandom > FILE` and copy it to every node"
    )]
    Constant,
}

/// See the module. All bytes of the key file count, a line end too. Cannot be printed.
#[derive(Clone)]
pub struct ClusterKey {
    code: Hmac<Sha256>,
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey")
    }
}

impl ClusterKey {
    /// The key with these bytes.
    ///
    /// # Errors
    /// If they cannot be a secret.
    pub fn new(bytes: &[u8]) -> Result<Self, KeyError> {
        if !(KEY_BYTES_MIN..=KEY_BYTES_MAX).contains(&bytes.len()) {
            return Err(KeyError::Length(bytes.len()));
        }
        if bytes.iter().all(|byte| *byte == bytes[0]) {
            return Err(KeyError::Constant);
        }
        Ok(Self::of(bytes))
    }

    /// No secret at all: for links whose other end is proven by a certificate.
    #[must_use]
    pub fn certified() -> Self {
        Self::of(b"certificates prove who is there")
    }

    fn of(bytes: &[u8]) -> Self {
        let code = Hmac::<Sha256>::new_from_slice(bytes);
        Self { code: code.expect("HMAC takes keys of any length") }
    }

    fn over(&self, role: Role, initiator: &Message, responder: &Message) -> Hmac<Sha256> {
        let label: &[u8; 32] = match role {
            Role::Initiator => b"spillway peer proof 1: initiator",
            Role::Responder => b"spillway peer proof 1: responder",
        };
        let mut code = self.code.clone();
        code.update(label);
        code.update(initiator);
        code.update(responder);
        code
    }

    /// Proves, in `role`, to whoever sent one hello and got the other, that the key is known.
    pub(super) fn proof(
        &self,
        role: Role,
        initiator: &Message,
        responder: &Message,
    ) -> [u8; CODE_BYTES] {
        self.over(role, initiator, responder).finalize().into_bytes().into()
    }

    /// Checks a proof in a time that does not depend on its bytes.
    pub(super) fn proves(
        &self,
        role: Role,
        initiator: &Message,
        responder: &Message,
        proof: &[u8; CODE_BYTES],
    ) -> bool {
        self.over(role, initiator, responder).verify_slice(proof).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_secret_is_refused() {
        assert_eq!(ClusterKey::new(&[]).err(), Some(KeyError::Length(0)));
        assert_eq!(ClusterKey::new(&[7; 31]).err(), Some(KeyError::Length(31)));
        assert_eq!(ClusterKey::new(&[7; 4097]).err(), Some(KeyError::Length(4097)));
        assert_eq!(ClusterKey::new(&[0; 64]).err(), Some(KeyError::Constant));
        let good: Vec<u8> = (0..32).collect();
        let key = ClusterKey::new(&good).expect("32 bytes");
        assert_eq!(format!("{key:?}"), "ClusterKey");
    }

    /// The code is plain HMAC-SHA256 over label and hellos, computed here by its definition
    /// (RFC 2104) so that another implementation can be written from the description.
    #[test]
    fn proof_is_the_hmac_of_the_description() {
        use sha2::Digest;
        let secret: Vec<u8> = (1..=40).collect();
        let (first, second) = ([3; 128], [5; 128]);
        let key = ClusterKey::new(&secret).expect("40 bytes");
        let mut padded = [0u8; 64];
        padded[..40].copy_from_slice(&secret);
        let inner = Sha256::new()
            .chain_update(padded.map(|byte| byte ^ 0x36))
            .chain_update(b"spillway peer proof 1: responder")
            .chain_update(first)
            .chain_update(second)
            .finalize();
        let outer = Sha256::new()
            .chain_update(padded.map(|byte| byte ^ 0x5c))
            .chain_update(inner)
            .finalize();
        let proof = key.proof(Role::Responder, &first, &second);
        assert_eq!(proof[..], outer[..]);
        assert!(key.proves(Role::Responder, &first, &second, &proof));
        assert!(!key.proves(Role::Initiator, &first, &second, &proof));
        assert!(!key.proves(Role::Responder, &second, &first, &proof));
    }
}
