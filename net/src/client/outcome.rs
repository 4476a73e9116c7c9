//! Outcomes of transactions, decoded.

use crate::client::error::ClientError;
use crate::message::{ArchivedOutcomeHead, GET_RESULT_HEADER_BYTES, OutcomeStatus};

/// A row that a `Get` found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundRow {
    /// Its version.
    pub version: u64,
    /// Its encoded columns without the key.
    pub row: Vec<u8>,
}

/// How one transaction ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How.
    pub status: OutcomeStatus,
    /// The operation that failed, counted from 0 within the transaction; a shard's index for
    /// `WrongShard`; else 0.
    pub operation: u16,
    /// One entry per `Get` of a committed transaction, in order: the row, or that there is none.
    pub gets: Vec<Option<FoundRow>>,
}

impl Outcome {
    /// Whether all operations took effect and are durable.
    pub fn is_committed(&self) -> bool {
        self.status.is_committed()
    }
}

/// Reads the results of a transaction's `Get`s from its data.
#[derive(Clone, Debug)]
pub struct GetResults<'a> {
    rest: &'a [u8],
}

impl<'a> GetResults<'a> {
    /// Over the data of one outcome.
    pub fn new(data: &'a [u8]) -> Self {
        Self { rest: data }
    }

    fn read(&mut self) -> Option<Option<(u64, &'a [u8])>> {
        let (header, rest) = self.rest.split_first_chunk::<GET_RESULT_HEADER_BYTES>()?;
        let [present, v0, v1, v2, v3, v4, v5, v6, v7, l0, l1, l2, l3] = *header;
        let version = u64::from_le_bytes([v0, v1, v2, v3, v4, v5, v6, v7]);
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        let (row, rest) = rest.split_at_checked(length as usize)?;
        self.rest = rest;
        match present {
            1 => Some(Some((version, row))),
            0 if length == 0 => Some(None),
            _ => None,
        }
    }
}

impl<'a> Iterator for GetResults<'a> {
    /// Version and row, or that there is no row.
    type Item = Result<Option<(u64, &'a [u8])>, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let result = self.read();
        if result.is_none() {
            self.rest = &[];
        }
        Some(result.ok_or(ClientError::Protocol("the results of its gets are malformed")))
    }
}

/// Decodes the outcomes of a frame.
pub fn outcomes(
    heads: &[ArchivedOutcomeHead],
    mut bytes: &[u8],
) -> Result<Vec<Outcome>, ClientError> {
    let mut outcomes = Vec::with_capacity(heads.len());
    for head in heads {
        let length = head.data_length.to_native() as usize;
        let parts = bytes.split_at_checked(length);
        let status = OutcomeStatus::from_wire(head.status.to_native());
        let (Some((data, rest)), Some(status)) = (parts, status) else {
            return Err(ClientError::Protocol("its outcomes are malformed"));
        };
        bytes = rest;
        let own = |found: Option<(u64, &[u8])>| {
            found.map(|(version, row)| FoundRow { version, row: row.to_vec() })
        };
        let gets = GetResults::new(data).map(|found| found.map(own));
        let gets = gets.collect::<Result<Vec<_>, _>>()?;
        outcomes.push(Outcome { status, operation: head.operation.to_native(), gets });
    }
    if !bytes.is_empty() {
        return Err(ClientError::Protocol("its outcomes are malformed"));
    }
    Ok(outcomes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::{self, OutcomeHead, Outcomes};

    fn get_bytes(found: &Option<FoundRow>, out: &mut Vec<u8>) {
        out.push(u8::from(found.is_some()));
        out.extend_from_slice(&found.as_ref().map_or(0, |f| f.version).to_le_bytes());
        let row = found.as_ref().map_or(&[][..], |f| &f.row);
        out.extend_from_slice(&(row.len() as u32).to_le_bytes());
        out.extend_from_slice(row);
    }

    fn found() -> impl Strategy<Value = Option<FoundRow>> {
        let row = (any::<u64>(), prop::collection::vec(any::<u8>(), 0..20));
        prop::option::of(row.prop_map(|(version, row)| FoundRow { version, row }))
    }

    proptest! {
        #[test]
        fn outcomes_round_trip(
            expected in prop::collection::vec(prop::collection::vec(found(), 0..4), 0..6),
        ) {
            let mut message = Outcomes::default();
            for gets in &expected {
                let start = message.bytes.len();
                gets.iter().for_each(|found| get_bytes(found, &mut message.bytes));
                let data_length = (message.bytes.len() - start) as u32;
                message.outcomes.push(OutcomeHead { status: 0, operation: 0, data_length });
            }
            let mut archive = Vec::new();
            message::archive(&mut archive, &message);
            let read = message::access::<Outcomes>(&archive).expect("valid");
            let read = outcomes(read.outcomes.as_slice(), read.bytes.as_slice()).expect("valid");
            let read: Vec<_> = read.into_iter().map(|outcome| outcome.gets).collect();
            prop_assert_eq!(read, expected);
        }

        #[test]
        fn arbitrary_results_do_no_harm(data in prop::collection::vec(any::<u8>(), 0..60)) {
            let results = GetResults::new(&data).count();
            prop_assert!(results <= data.len() / GET_RESULT_HEADER_BYTES + 1);
        }
    }

    #[test]
    fn a_cut_result_is_an_error() {
        let mut data = Vec::new();
        get_bytes(&Some(FoundRow { version: 1, row: b"row".to_vec() }), &mut data);
        for cut in 1..data.len() {
            let last = GetResults::new(&data[..cut]).last().expect("there are bytes");
            assert!(matches!(last, Err(ClientError::Protocol(_))), "cut at {cut}");
        }
    }
}
