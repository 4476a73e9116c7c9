//! A fixed number of inputs for the entry points of the fuzzers.

use spillway_net::layout::TableLayout;
use spillway_net::rows_fuzz::{TABLES, fuzz_key, fuzz_patch, fuzz_row};
use spillway_net::schema::TableDefinition;

const INPUTS: usize = 100_000;

/// Small steps of a fixed sequence: every run sees the same inputs.
struct Sequence(u64);

impl Sequence {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below as u64) as usize
    }

    /// Bytes that the encodings treat in a special way, more often than others.
    fn byte(&mut self) -> u8 {
        const SPECIAL: [u8; 8] = [0, 1, 2, 3, 0x7f, 0x80, 0xfe, 0xff];
        if self.next(4) == 0 { self.next(256) as u8 } else { SPECIAL[self.next(8)] }
    }

    fn bytes(&mut self, length_max: usize) -> Vec<u8> {
        let length = self.next(length_max + 1);
        (0..length).map(|_| self.byte()).collect()
    }

    /// Bytes that begin like a patch of one or two columns.
    fn patch(&mut self) -> Vec<u8> {
        let mut patch = vec![1 + self.next(2) as u8, self.next(14) as u8, self.next(2) as u8];
        patch.extend_from_slice(&self.bytes(18));
        patch
    }
}

#[test]
fn keys() {
    let mut sequence = Sequence(1);
    for _ in 0..INPUTS {
        fuzz_key(&sequence.bytes(24));
    }
    fuzz_key(&[]);
}

#[test]
fn rows() {
    let mut sequence = Sequence(2);
    for _ in 0..INPUTS {
        fuzz_row(&sequence.bytes(30));
    }
    fuzz_row(&[]);
}

#[test]
fn patches() {
    let mut sequence = Sequence(3);
    for _ in 0..INPUTS {
        fuzz_patch(&sequence.bytes(60));
        let patch = sequence.patch();
        let mut input = vec![sequence.byte(), patch.len() as u8];
        input.extend_from_slice(&patch);
        input.extend_from_slice(&sequence.bytes(30));
        fuzz_patch(&input);
    }
    fuzz_patch(&[]);
    fuzz_patch(&[0]);
}

/// The inputs must not all be refused: that would test little.
#[test]
fn inputs_reach_the_accepting_side() {
    use spillway_net::rows_fuzz::{key_check, patch_check, row_check};
    let layouts =
        TABLES.map(|text| TableLayout::new(&TableDefinition::parse(text).unwrap()).unwrap());
    let mut sequence = Sequence(4);
    let mut accepted = [0; 3];
    for _ in 0..INPUTS {
        let layout = &layouts[sequence.next(TABLES.len())];
        accepted[0] += usize::from(key_check(layout, &sequence.bytes(24)));
        accepted[1] += usize::from(row_check(layout, &sequence.bytes(30)));
        accepted[2] += usize::from(patch_check(layout, &[], &sequence.patch()));
    }
    assert!(accepted.iter().all(|count| *count > 100), "accepted: {accepted:?}");
}
