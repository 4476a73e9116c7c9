//! What reads must have seen.

use std::time::Duration;

use crate::ids::Lsn;
use crate::message::ReadMode;

/// What the reads of a frame must have seen. Only a frame that changes nothing may ask for less
/// than everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Freshness {
    /// Everything acknowledged before the request. Only the leader serves it.
    #[default]
    Strong,
    /// Everything up to an LSN, for example that of an own write (see
    /// [`crate::client::Client::lsn`]). Any node that has applied it serves it.
    AtLsn(Lsn),
    /// Everything older than this. Any node that is so fresh serves it; as exact as the nodes'
    /// clocks agree.
    Stale(Duration),
}

impl Freshness {
    /// Mode and bound of a frame.
    pub(crate) fn to_wire(self) -> (u8, u64) {
        let (mode, bound) = match self {
            Self::Strong => (ReadMode::Strong, 0),
            Self::AtLsn(lsn) => (ReadMode::AtLsn, lsn.0),
            Self::Stale(age) => {
                (ReadMode::Stale, u64::try_from(age.as_micros()).unwrap_or(u64::MAX))
            }
        };
        (mode as u8, bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wire_form_names_mode_and_bound() {
        assert_eq!(Freshness::default().to_wire(), (ReadMode::Strong as u8, 0));
        assert_eq!(Freshness::AtLsn(Lsn(7)).to_wire(), (ReadMode::AtLsn as u8, 7));
        let stale = |age| Freshness::Stale(age).to_wire();
        assert_eq!(stale(Duration::from_millis(3)), (ReadMode::Stale as u8, 3_000));
        assert_eq!(stale(Duration::MAX), (ReadMode::Stale as u8, u64::MAX));
    }
}
