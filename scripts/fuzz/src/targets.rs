//! The registry of fuzz targets: whoever writes a decoder adds a line here.
//!
//! A target without samples is fed with noise only, which no checksum lets through: give samples.

use crate::run::Target;
use spillway_chunkserver::fuzz as chunk;
use spillway_net::frame::{self, FrameKind, fuzz_frame};
use spillway_net::ids::{ClusterId, Lsn, NodeId};
use spillway_net::key::key_write;
use spillway_net::layout::TableLayout;
use spillway_net::message::{Hello, Scan, archive, fuzz_message};
use spillway_net::peer::{
    ClusterKey, Handshake, Hello as PeerHello, LogFormat, Step, fuzz_handshake,
};
use spillway_net::row::row_write;
use spillway_net::rows_fuzz::{TABLES, fuzz_key, fuzz_patch, fuzz_row};
use spillway_net::schema::TableDefinition;
use spillway_net::value::Value;
use spillway_updateserver::log::{
    DurableWrite, FormatPlan, Geometry, Members, SUPERBLOCK_COPIES, fuzz_scan,
};
use spillway_updateserver::redo;
use xtask::functions::{functions, test_ranges};
use xtask::source::Source;

/// All targets, in the order of their names.
pub const TARGETS: &[Target] = &[
    Target {
        name: "chunk_block",
        about: "a block with a right checksum is read without leaving its bytes",
        samples: || chunk::sample_parts()[..1].to_vec(),
        run: chunk::fuzz_block,
    },
    Target {
        name: "chunk_edit",
        about: "an edit of a manifest that decodes encodes to the same bytes",
        samples: || vec![chunk::sample_edit()],
        run: chunk::fuzz_edit,
    },
    Target {
        name: "chunk_footer",
        about: "a footer that decodes encodes to one that decodes alike",
        samples: || chunk::sample_parts()[2..].to_vec(),
        run: chunk::fuzz_footer,
    },
    Target {
        name: "chunk_index",
        about: "an index that opens leads every first key to its block",
        samples: || chunk::sample_parts()[1..2].to_vec(),
        run: chunk::fuzz_index,
    },
    Target {
        name: "chunk_manifest",
        about: "the two files of a manifest are read or refused",
        samples: || vec![chunk::sample_manifest()],
        run: chunk::fuzz_manifest,
    },
    Target {
        name: "chunk_run",
        about: "a run that opens can be read and verified",
        samples: || vec![chunk::sample_run()],
        run: chunk::fuzz_run,
    },
    Target {
        name: "chunk_tablet",
        about: "a tablet that opens can be read, scanned and verified",
        samples: || vec![chunk::sample_tablet(), chunk::sample_tablet_compressed()],
        run: chunk::fuzz_tablet,
    },
    Target {
        name: "house_source",
        about: "the house rules read any text",
        samples: || vec![include_bytes!("run.rs").to_vec(), include_bytes!("main.rs").to_vec()],
        run: house_source,
    },
    Target {
        name: "log_scan",
        about: "recovery reads any segments and names what is wrong with them",
        samples: || vec![log()],
        run: |bytes| assert!(fuzz_scan(bytes) <= 4 * bytes.len() + LOG.segments_count as usize),
    },
    Target {
        name: "net_frame",
        about: "the assembler takes any bytes in any pieces and holds one frame at most",
        samples: frames,
        run: fuzz_frame,
    },
    Target {
        name: "net_key",
        about: "a key that validates has exactly one encoding",
        samples: || vec![row_sample(|layout, out| key_write(layout, &integers(), out).is_ok())],
        run: fuzz_key,
    },
    Target {
        name: "net_message",
        about: "a message is validated before anything is allocated for it",
        samples: messages,
        run: fuzz_message,
    },
    Target {
        name: "net_patch",
        about: "a patch that validates applies, merges and compares alike",
        samples: Vec::new,
        run: fuzz_patch,
    },
    Target {
        name: "net_peer",
        about: "the handshake of two nodes takes any messages and lets nobody in without the key",
        samples: handshakes,
        run: fuzz_handshake,
    },
    Target {
        name: "net_row",
        about: "a row that validates has exactly one encoding",
        samples: || vec![row_sample(|layout, out| row_write(layout, &columns(), out).is_ok())],
        run: fuzz_row,
    },
    Target {
        name: "redo_fragment",
        about: "a fragment that opens yields its records and outcomes",
        samples: || vec![fragment()],
        run: redo::fuzz_redo,
    },
];

/// A decoder with a mistake: it must be found, or the machinery is broken. Not in the list,
/// because it never passes.
pub const CANARY: Target = Target {
    name: "canary",
    about: "fails on every input that was cut",
    samples: || vec![vec![7; 32]],
    run: |bytes| assert!(bytes.len() >= 32, "the canary fell"),
};

/// The target with this name.
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().chain([&CANARY]).find(|target| target.name == name)
}

fn house_source(bytes: &[u8]) {
    let source = Source::new(&String::from_utf8_lossy(bytes));
    let _ = (functions(&source), test_ranges(&source));
}

/// What node 1 says to node 2, which is the one that the target plays, with another key: a good
/// hello and a proof, and a refusal. The first byte picks the side.
fn handshakes() -> Vec<Vec<u8>> {
    let key = ClusterKey::new(b"a key that is not the one of the target").expect("long enough");
    let own = PeerHello {
        cluster: ClusterId(1),
        limits: 2,
        format: LogFormat { block_bytes: 512, batch_bytes_max: 1 << 20, partitions: 4 },
        node: NodeId(1),
        boot: 1,
        instance: 1,
        is_founded: true,
    };
    let other = PeerHello { node: NodeId(2), ..own };
    let (mut one, first) = Handshake::initiator(own, NodeId(2), key.clone(), &[1; 32]);
    let Step::Reply(second) =
        Handshake::responder(other, key.clone(), &[2; 32]).receive(&first, &mut |_| Ok(()))
    else {
        panic!("the hello is good");
    };
    let Step::Reply(proof) = one.receive(&second, &mut |_| Ok(())) else {
        panic!("the hello is good");
    };
    let mut stranger = Handshake::responder(PeerHello { limits: 3, ..other }, key, &[2; 32]);
    let Step::Refused { reply, .. } = stranger.receive(&first, &mut |_| Ok(())) else {
        panic!("the limits differ");
    };
    vec![[&[0][..], &first, &proof].concat(), [&[1][..], &reply].concat()]
}

fn hello() -> Vec<u8> {
    let mut out = Vec::new();
    archive(&mut out, &Hello { limits_fingerprint: 1, cluster: 2, session: 3, attempt: 4 });
    out
}

fn scan() -> Vec<u8> {
    let mut out = Vec::new();
    archive(&mut out, &Scan { table: 1, start: vec![1; 9], end: vec![2; 9], rows_max: 100 });
    out
}

/// Two frames behind each other; the first byte is also the length of the pieces.
fn frames() -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    for payload in [hello(), scan()] {
        let start = frame::begin(&mut out);
        out.extend_from_slice(&payload);
        frame::finish(&mut out[start..], FrameKind::Hello, 7, Lsn(0));
    }
    vec![out]
}

/// The first byte picks the type.
fn messages() -> Vec<Vec<u8>> {
    vec![[vec![0], hello()].concat(), [vec![2], scan()].concat()]
}

fn integers() -> Vec<Value> {
    vec![Value::Int8(1), Value::Int8(-2)]
}

fn columns() -> Vec<Value> {
    vec![Value::Int8(300), Value::Bytea(b"note".to_vec())]
}

/// Bytes of the first of the tables, behind the byte that picks it.
fn row_sample(write: impl Fn(&TableLayout, &mut Vec<u8>) -> bool) -> Vec<u8> {
    let definition = TableDefinition::parse(TABLES[0]).expect("a valid table");
    let layout = TableLayout::new(&definition).expect("a valid table");
    let mut bytes = Vec::new();
    assert!(write(&layout, &mut bytes), "the sample fits the first table");
    [vec![0], bytes].concat()
}

/// The sizes that the target reads its input with.
const LOG: Geometry = Geometry {
    block_bytes: 512,
    segment_bytes: 64 << 10,
    segments_count: 4,
    partitions: 4,
    batch_bytes_max: 8 << 10,
};

/// The superblocks of a log, and the start of its first segment.
fn log() -> Vec<u8> {
    let plan = FormatPlan::new(
        ClusterId(1),
        NodeId(1),
        LOG,
        DurableWrite::SyncedWrite,
        Members::of_voters([NodeId(1)]),
    );
    let plan = plan.expect("a valid geometry");
    let block_bytes = LOG.block_bytes as usize;
    let mut out = vec![0; SUPERBLOCK_COPIES * block_bytes];
    for (copy, block) in out.chunks_mut(block_bytes).enumerate() {
        plan.superblock.encode(copy, block);
    }
    out.extend(plan.segment_start(0));
    out
}

fn fragment() -> Vec<u8> {
    let fragment = redo::Fragment {
        first_number: 100,
        records: &[redo::RecordHead { kind: 1, table: 3, key_length: 2, value_length: 4 }; 2],
        numbers: &[],
        runs: &[redo::SessionRun {
            session: 9,
            base_number: 50,
            outcomes: 1,
            acknowledged_behind: 0,
        }],
        outcomes: &[redo::OutcomeRecord { number_delta: 0, request_hash: 7, result_length: 3 }],
        bytes: b"k1row1k2row2res",
    };
    let mut out = Vec::new();
    archive(&mut out, &fragment);
    assert!(redo::FragmentReader::new(&out).is_ok(), "the sample is valid");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_rise() {
        assert!(TARGETS.windows(2).all(|pair| pair[0].name < pair[1].name));
    }

    #[test]
    fn samples_are_taken() {
        for target in TARGETS {
            for sample in (target.samples)() {
                (target.run)(&sample);
            }
        }
    }
}
