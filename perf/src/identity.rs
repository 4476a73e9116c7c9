//! Names of transactions: which connection sent it, and as its how manieth.
//!
//! Everything a generated transaction holds follows from the seed and its [`Origin`], and the
//! origin can be read back from the id that the transaction leaves in a row. So the generator
//! keeps no copy of what it sent, and the verification can still tell every byte.

/// Bits of a counter in a packed origin.
const COUNTER_BITS: u32 = 40;
/// Counters of a connection end here: one bit stays free, so that ids in order are positive.
const COUNTER_END: u64 = 1 << (COUNTER_BITS - 1);
/// Bits of a connection in a packed origin.
const CONNECTION_BITS: u32 = 16;

/// Connections a burst may have: their number must fit a packed origin, and the highest is kept
/// for rows that were loaded before the burst.
pub const CONNECTIONS_MAX: usize = (1 << CONNECTION_BITS) - 1;

/// The connection number of rows that were loaded before the burst.
pub const CONNECTION_LOADER: u16 = u16::MAX;

/// Where a transaction comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    /// The connection, counted from 0.
    pub connection: u16,
    /// The transaction on that connection, counted from 0.
    pub counter: u64,
}

impl Origin {
    /// 64 bits that name the origin. `attempt` tells several ids of one origin apart: where an
    /// id decides about the shard, the first attempt that falls on the right shard is taken.
    pub fn pack(self, attempt: u8) -> u64 {
        assert!(self.counter < COUNTER_END, "a connection sends below 2^39 transactions");
        u64::from(attempt) << (COUNTER_BITS + CONNECTION_BITS)
            | u64::from(self.connection) << COUNTER_BITS
            | self.counter
    }

    /// Reads [`Origin::pack`]'s bits; every value is one.
    pub fn unpack(packed: u64) -> (Self, u8) {
        let origin = Self {
            connection: (packed >> COUNTER_BITS) as u16,
            counter: packed & ((1 << COUNTER_BITS) - 1),
        };
        (origin, (packed >> (COUNTER_BITS + CONNECTION_BITS)) as u8)
    }
}

/// How ids of inserted rows follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum IdOrder {
    /// Spread over the whole range: every insert lands anywhere in the order of keys.
    Random,
    /// Rising with time: every insert lands near the end.
    Sequential,
}

/// A one-to-one mapping between packed origins and ids.
#[derive(Clone, Copy, Debug)]
pub struct IdCode {
    order: IdOrder,
    key: u64,
}

impl IdCode {
    /// The mapping of one burst.
    pub fn new(order: IdOrder, seed: u64) -> Self {
        Self { order, key: mix(seed ^ 0x1D5) }
    }

    /// The id of a transaction.
    pub fn encode(&self, origin: Origin, attempt: u8) -> i64 {
        let packed = origin.pack(attempt);
        match self.order {
            IdOrder::Random => mix(packed ^ self.key).cast_signed(),
            // The counter in front: ids of all connections rise together.
            IdOrder::Sequential => packed.rotate_left(64 - COUNTER_BITS).cast_signed(),
        }
    }

    /// The origin that has this id. Every id is one of some origin: whether that origin ever
    /// sent anything is for the caller to judge.
    pub fn decode(&self, id: i64) -> (Origin, u8) {
        let id = id.cast_unsigned();
        Origin::unpack(match self.order {
            IdOrder::Random => unmix(id) ^ self.key,
            IdOrder::Sequential => id.rotate_right(64 - COUNTER_BITS),
        })
    }
}

/// A bijection of 64 bits in which every input bit moves about half of the output bits
/// (the finalizer of SplitMix64).
pub const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// Takes [`mix`] back.
pub const fn unmix(value: u64) -> u64 {
    let value = (value ^ (value >> 31) ^ (value >> 62)).wrapping_mul(0x3196_42B2_D24D_8EC3);
    let value = (value ^ (value >> 27) ^ (value >> 54)).wrapping_mul(0x96DE_1B17_3F11_9089);
    value ^ (value >> 30) ^ (value >> 60)
}

/// Draws of one transaction: SplitMix64 from a seed, a few cycles per number.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    state: u64,
}

impl Draw {
    /// The draws that belong to `name` under `seed`.
    pub const fn new(seed: u64, name: u64) -> Self {
        Self { state: mix(seed.wrapping_add(0x9E37_79B9_7F4A_7C15)) ^ mix(!name) }
    }

    /// 64 bits.
    pub const fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.state)
    }

    /// A number below `limit`, which is not 0. (Its bias is below limit / 2^64.)
    pub const fn below(&mut self, limit: u64) -> u64 {
        assert!(limit > 0, "there is no number below 0");
        ((self.bits() as u128 * limit as u128) >> 64) as u64
    }

    /// Appends `length` bytes that follow from the state.
    pub fn fill(&mut self, out: &mut Vec<u8>, length: usize) {
        let mut missing = length;
        while missing >= 8 {
            out.extend_from_slice(&self.bits().to_le_bytes());
            missing -= 8;
        }
        out.extend_from_slice(&self.bits().to_le_bytes()[..missing]);
    }
}

impl rand::RngCore for Draw {
    fn next_u32(&mut self) -> u32 {
        (self.bits() >> 32) as u32
    }

    fn next_u64(&mut self) -> u64 {
        self.bits()
    }

    fn fill_bytes(&mut self, target: &mut [u8]) {
        for chunk in target.chunks_mut(8) {
            chunk.copy_from_slice(&self.bits().to_le_bytes()[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn mix_has_an_inverse(value in any::<u64>()) {
            prop_assert_eq!(unmix(mix(value)), value);
            prop_assert_eq!(mix(unmix(value)), value);
        }

        #[test]
        fn ids_name_their_origin(
            seed in any::<u64>(), connection in any::<u16>(),
            counter in 0u64..1 << 39, attempt in any::<u8>(), sequential in any::<bool>(),
        ) {
            let order = if sequential { IdOrder::Sequential } else { IdOrder::Random };
            let code = IdCode::new(order, seed);
            let origin = Origin { connection, counter };
            prop_assert_eq!(code.decode(code.encode(origin, attempt)), (origin, attempt));
        }

        #[test]
        fn draws_stay_below_their_limit(seed in any::<u64>(), limit in 1u64..) {
            prop_assert!(Draw::new(seed, 1).below(limit) < limit);
        }
    }

    #[test]
    fn sequential_ids_rise_with_the_counter() {
        let code = IdCode::new(IdOrder::Sequential, 3);
        let id = |connection, counter| code.encode(Origin { connection, counter }, 0);
        assert!(id(7, 1) < id(0, 2));
        assert!(id(0, 2) < id(1, 2));
    }

    #[test]
    fn filling_is_exact_and_repeatable() {
        for length in 0..40 {
            let (mut first, mut second) = (vec![1], vec![1]);
            Draw::new(1, 2).fill(&mut first, length);
            Draw::new(1, 2).fill(&mut second, length);
            assert_eq!(first.len(), 1 + length);
            assert_eq!(first, second);
        }
    }
}
