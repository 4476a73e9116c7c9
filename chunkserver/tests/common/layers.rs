//! Layers of random changes, in memory and as images, and the map that they amount to.

#![allow(dead_code, reason = "each test binary uses a part")]

use super::common::Draw;
use bytes::Bytes;
use spillway_chunkserver::EntryOwned;
use spillway_chunkserver::manifest::FileId;
use spillway_chunkserver::merge::{BlockNeed, TabletOfView};
use spillway_chunkserver::reader::CheckedBlock;
use spillway_chunkserver::run::{RunOptions, RunReader, RunWriter};
use spillway_chunkserver::{TabletOptions, TabletReader, TabletWriter};
use spillway_net::ids::{PartitionId, TableId};
use std::collections::BTreeMap;
use std::sync::Arc;

pub const TABLE: TableId = TableId(3);
pub const SCHEMA: u64 = 11;

pub type Layer = BTreeMap<Vec<u8>, EntryOwned>;

/// Files by id, as bytes.
#[derive(Default)]
pub struct Files {
    pub images: BTreeMap<FileId, Vec<u8>>,
}

impl Files {
    pub fn add(&mut self, image: Vec<u8>) -> FileId {
        let id = FileId(self.images.len() as u64 + 1);
        self.images.insert(id, image);
        id
    }

    /// The block, read and checked.
    pub fn read(&self, view: &[TabletOfView], need: &BlockNeed) -> CheckedBlock {
        let of_need =
            |part: &&TabletOfView| (part.file, part.image_offset) == (need.file, need.image_offset);
        let part = view.iter().find(of_need).expect("a part of the view");
        let start = need.offset() as usize;
        let bytes = &self.images[&need.file][start..start + need.handle.length as usize];
        let bytes = Bytes::copy_from_slice(bytes);
        CheckedBlock::new(&part.meta, need.handle, bytes).expect("sound")
    }

    /// Writes tablets of the layer's rows, cut at random.
    pub fn tablets(&mut self, draw: &mut Draw, layer: &Layer, block: usize) -> Vec<TabletOfView> {
        let mut view = Vec::new();
        let rows: Vec<_> = layer.iter().collect();
        let mut rest = &rows[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(draw.range(1, rest.len() + 1));
            rest = later;
            let options = TabletOptions::new(TABLE, SCHEMA, 1);
            let options = TabletOptions { block_bytes_target: block, ..options };
            let mut writer = TabletWriter::new(Vec::new(), options);
            for (key, entry) in now {
                writer.add(key, entry.as_entry()).expect("sorted");
            }
            let image = writer.finish().expect("rows").0;
            let meta = TabletReader::open(image.as_slice()).expect("sound").meta().clone();
            let (file, meta) = (self.add(image), Arc::new(meta));
            view.push(TabletOfView { file, image_offset: 0, meta });
        }
        view
    }

    /// Writes the layer as the section of a run that holds another table in front of it.
    pub fn run(&mut self, layer: &Layer, version: u64, block: usize) -> Option<TabletOfView> {
        if layer.is_empty() {
            return None;
        }
        let options = RunOptions::new(PartitionId(0), version);
        let options = RunOptions { block_bytes_target: block, ..options };
        let mut writer = RunWriter::new(Vec::new(), options);
        for table in [TableId(1), TABLE] {
            writer.begin_table(table, SCHEMA).expect("memory");
            for (key, entry) in layer {
                writer.add(key, entry.as_entry()).expect("sorted");
            }
        }
        let image = writer.finish().expect("entries").0;
        let mut reader = RunReader::open(image.as_slice()).expect("sound");
        let image_offset = reader.directory().section(TABLE).expect("there").offset;
        let meta = reader.table(TABLE).expect("sound").expect("there").meta().clone();
        Some(TabletOfView { file: self.add(image), image_offset, meta: Arc::new(meta) })
    }
}

/// A short key, often one that others draw too.
pub fn key(draw: &mut Draw) -> Vec<u8> {
    let length = draw.range(1, 4);
    (0..length).map(|_| draw.pick(&[0, 1, 7, 255, b'a', b'b'])).collect()
}

/// Layers of changes, the oldest first; the oldest is a baseline without deletions. With each key
/// the row versions rise from layer to layer.
pub fn layers(draw: &mut Draw, count: usize, entries_max: usize) -> Vec<Layer> {
    let mut version = 0;
    let mut layers = Vec::new();
    for number in 0..count {
        let mut layer = Layer::new();
        for _ in 0..draw.below(entries_max + 1) {
            version += 1;
            let row = vec![version as u8; draw.below(60)];
            let row = (number == 0 || !draw.once_in(3)).then_some(row);
            layer.insert(key(draw), EntryOwned { version, row });
        }
        layers.push(layer);
    }
    layers
}

/// What the layers amount to: each key's newest entry, deletions included.
pub fn newest(layers: &[Layer]) -> Layer {
    let mut newest = Layer::new();
    for layer in layers {
        newest.extend(layer.iter().map(|(key, entry)| (key.clone(), entry.clone())));
    }
    newest
}
