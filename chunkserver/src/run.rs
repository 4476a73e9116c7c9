//! Runs: what changed in one partition between two freezes.
//!
//! ```text
//! 0                  section of the first table: an image like a tablet's, of changes
//! ...                sections of further tables, in the order of the tables
//! directory.offset   directory
//! ...                zeros
//! length - 48        trailer, like a tablet's
//! ```
//!
//! The directory, all numbers little-endian:
//!
//! ```text
//! 0    8   freeze
//! 8    2   partition
//! 10   2   zero
//! 12   4   sections, at least 1
//! 16   8   entries of all sections
//! 24   8   zero
//! 32   16  digest: the sum of those of the sections
//! 48       sections, 56 bytes each:
//!          0    2   table
//!          2    6   zero
//!          8    8   begin, a multiple of 4,096: where the section before ends
//!          16   8   length
//!          24   8   entries
//!          32   16  digest
//!          48   8   XXH3-64 of the section's footer
//! ```

use crate::bytes::{ByteReader, is_zero};
use crate::digest::ContentDigest;
use crate::entry::Entry;
use crate::error::{ReadError, TabletError, WriteError};
use crate::footer::{Content, Section};
use crate::limits::{
    BLOCK_BYTES_TARGET, RUN_DIRECTORY_HEAD_BYTES, RUN_SECTION_BYTES, TABLET_ALIGNMENT_BYTES,
    TABLET_BYTES_MAX,
};
use crate::reader::TabletReader;
use crate::source::{ByteSink, ByteSource};
use crate::trailer::{Image, TRAILER_BYTES, Trailer};
use crate::writer::{TabletOptions, TabletWriter};
use spillway_net::ids::{PartitionId, TableId};
use spillway_net::limits::{PARTITIONS_MAX, TABLES_MAX};
use std::ops::Range;
use xxhash_rust::xxh3::xxh3_64;

/// What the run is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunOptions {
    /// Whose changes.
    pub partition: PartitionId,
    /// The freeze that ended them.
    pub version: u64,
    /// A block is closed once it holds this much, bytes.
    pub block_bytes_target: usize,
}

impl RunOptions {
    /// Blocks of the usual size.
    pub fn new(partition: PartitionId, version: u64) -> RunOptions {
        RunOptions { partition, version, block_bytes_target: BLOCK_BYTES_TARGET }
    }
}

/// The changes of one table in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunSection {
    /// The table.
    pub table: TableId,
    /// Where its image begins.
    pub offset: u64,
    /// Length of its image, bytes.
    pub length: u64,
    /// Its entries, deletions included.
    pub rows: u64,
    /// Their content.
    pub digest: ContentDigest,
    /// XXH3-64 of its footer.
    pub footer_checksum: u64,
}

/// What a run holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunDirectory {
    /// Whose changes.
    pub partition: PartitionId,
    /// The freeze that ended them.
    pub version: u64,
    /// The tables, in order; at least one.
    pub sections: Vec<RunSection>,
}

impl RunDirectory {
    /// Entries of all sections.
    pub fn rows(&self) -> u64 {
        self.sections.iter().map(|section| section.rows).sum()
    }

    /// The sum of the sections' digests.
    pub fn digest(&self) -> ContentDigest {
        let add = |sum: u128, section: &RunSection| sum.wrapping_add(section.digest.0);
        ContentDigest(self.sections.iter().fold(0, add))
    }

    /// The section of a table.
    pub fn section(&self, table: TableId) -> Option<&RunSection> {
        let at = self.sections.binary_search_by_key(&table, |section| section.table).ok()?;
        self.sections.get(at)
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&self.version.to_le_bytes());
        out.extend_from_slice(&u32::from(self.partition.0).to_le_bytes());
        out.extend_from_slice(&(self.sections.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.rows().to_le_bytes());
        out.extend_from_slice(&[0; 8]);
        out.extend_from_slice(&self.digest().0.to_le_bytes());
        for section in &self.sections {
            out.extend_from_slice(&u64::from(section.table.0).to_le_bytes());
            for word in [section.offset, section.length, section.rows] {
                out.extend_from_slice(&word.to_le_bytes());
            }
            out.extend_from_slice(&section.digest.0.to_le_bytes());
            out.extend_from_slice(&section.footer_checksum.to_le_bytes());
        }
        assert_eq!(
            out.len(),
            RUN_DIRECTORY_HEAD_BYTES + self.sections.len() * RUN_SECTION_BYTES,
            "the length announced is the length written"
        );
        out
    }

    /// Checks `bytes`, which lie where `at` says, against the checksum and the rules.
    pub fn decode(bytes: &[u8], at: Section) -> Result<RunDirectory, TabletError> {
        let (part, expected, found) = ("directory", at.checksum, xxh3_64(bytes));
        if found != expected {
            return Err(TabletError::Checksum { part, expected, found });
        }
        let directory = RunDirectory::parse(bytes)
            .ok_or(TabletError::Malformed("the directory of the run is none"))?;
        let mut end = 0;
        let mut table = TableId(0);
        for section in &directory.sections {
            let whole = section.length.is_multiple_of(TABLET_ALIGNMENT_BYTES)
                && (1..=TABLET_BYTES_MAX).contains(&section.length);
            if section.offset != end || !whole || section.table <= table || section.rows == 0 {
                return Err(TabletError::Malformed("sections of the run"));
            }
            end += section.length;
            table = section.table;
        }
        if end != at.offset || directory.sections.is_empty() {
            return Err(TabletError::Malformed("the sections end elsewhere"));
        }
        // Sums and reserved fields too: there is one way to write a directory.
        if directory.encode() != bytes {
            return Err(TabletError::Malformed("sums of the run"));
        }
        Ok(directory)
    }

    fn parse(bytes: &[u8]) -> Option<RunDirectory> {
        let mut reader = ByteReader::new(bytes);
        let version = reader.take_u64()?;
        let partition = PartitionId(u16::try_from(reader.take_u32()?).ok()?);
        let count = reader.take_u32()? as usize;
        reader.take(32)?;
        if reader.left() != count.checked_mul(RUN_SECTION_BYTES)? || count > TABLES_MAX {
            return None;
        }
        let mut sections = Vec::with_capacity(count);
        let mut rows = 0u64;
        for _ in 0..count {
            let section = RunSection {
                table: TableId(u16::try_from(reader.take_u64()?).ok()?),
                offset: reader.take_u64()?,
                length: reader.take_u64()?,
                rows: reader.take_u64()?,
                digest: ContentDigest(reader.take_u128()?),
                footer_checksum: reader.take_u64()?,
            };
            rows = rows.checked_add(section.rows)?;
            sections.push(section);
        }
        let known = usize::from(partition.0) < PARTITIONS_MAX && version > 0;
        known.then_some(RunDirectory { partition, version, sections })
    }
}

/// What was written: what the manifest keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunSummary {
    /// The directory.
    pub directory: RunDirectory,
    /// Its XXH3-64.
    pub directory_checksum: u64,
    /// Length of the image, bytes.
    pub image_bytes: u64,
}

#[derive(Debug)]
enum Stage<S> {
    Between(S),
    Table(Box<TabletWriter<S>>),
}

/// Takes tables in order, the entries of each in key order, and writes a run.
#[derive(Debug)]
pub struct RunWriter<S> {
    options: RunOptions,
    /// `None` after the sink was lost in an error.
    stage: Option<Stage<S>>,
    sections: Vec<RunSection>,
    written: u64,
}

impl<S: ByteSink> RunWriter<S> {
    /// Begins a run.
    pub fn new(sink: S, options: RunOptions) -> RunWriter<S> {
        assert!(options.version > 0, "freezes are counted from 1");
        assert!(usize::from(options.partition.0) < PARTITIONS_MAX, "a partition of the cluster");
        RunWriter { options, stage: Some(Stage::Between(sink)), sections: Vec::new(), written: 0 }
    }

    /// Begins the next table. The one before has to have an entry.
    ///
    /// # Errors
    /// As the sink fails: the run is lost then.
    pub fn begin_table(&mut self, table: TableId, schema: u64) -> Result<(), WriteError<S::Error>> {
        self.end_table()?;
        assert!(self.sections.last().is_none_or(|last| last.table < table), "tables rise");
        assert!(self.sections.len() < TABLES_MAX, "no cluster has more tables");
        let Some(Stage::Between(sink)) = self.stage.take() else {
            panic!("a run whose sink failed goes no further");
        };
        let RunOptions { version, block_bytes_target, .. } = self.options;
        let content = Content::Changes;
        let options = TabletOptions::new(table, schema, version);
        let options = TabletOptions { content, block_bytes_target, ..options };
        self.stage = Some(Stage::Table(Box::new(TabletWriter::new(sink, options))));
        Ok(())
    }

    /// Adds an entry of the table that was begun, behind all others of it.
    ///
    /// # Errors
    /// As [`TabletWriter::add`].
    pub fn add(&mut self, key: &[u8], entry: Entry<'_>) -> Result<(), WriteError<S::Error>> {
        match &mut self.stage {
            Some(Stage::Table(writer)) => writer.add(key, entry),
            _ => panic!("an entry of no table"),
        }
    }

    /// Writes what is left, and gives the sink back.
    ///
    /// # Errors
    /// As the sink fails, and [`WriteError::Empty`] without tables.
    pub fn finish(mut self) -> Result<(S, RunSummary), WriteError<S::Error>> {
        self.end_table()?;
        let Some(Stage::Between(mut sink)) = self.stage.take() else {
            panic!("a run whose sink failed goes no further");
        };
        if self.sections.is_empty() {
            return Err(WriteError::Empty);
        }
        let RunOptions { partition, version, .. } = self.options;
        let directory = RunDirectory { partition, version, sections: self.sections };
        let bytes = directory.encode();
        let (offset, length, checksum) = (self.written, bytes.len() as u64, xxh3_64(&bytes));
        let trailer = Trailer::behind(Section { offset, length, checksum });
        let zeros = trailer.image_bytes - TRAILER_BYTES as u64 - offset - length;
        let tail = [&bytes[..], &vec![0; zeros as usize], &trailer.encode(Image::Run)].concat();
        sink.append(&tail).map_err(WriteError::Sink)?;
        let image_bytes = trailer.image_bytes;
        Ok((sink, RunSummary { directory, directory_checksum: checksum, image_bytes }))
    }

    fn end_table(&mut self) -> Result<(), WriteError<S::Error>> {
        let writer = match self.stage.take() {
            Some(Stage::Table(writer)) => writer,
            other => {
                self.stage = other;
                return Ok(());
            }
        };
        let (sink, summary) = writer.finish()?;
        self.sections.push(RunSection {
            table: summary.footer.table,
            offset: self.written,
            length: summary.image_bytes,
            rows: summary.footer.rows,
            digest: summary.footer.digest,
            footer_checksum: summary.footer_checksum,
        });
        self.written += summary.image_bytes;
        self.stage = Some(Stage::Between(sink));
        Ok(())
    }
}

/// A part of a source as a source of its own.
#[derive(Debug)]
pub struct Window<'a, S> {
    source: &'a mut S,
    range: Range<u64>,
}

impl<S: ByteSource> ByteSource for Window<'_, S> {
    type Error = S::Error;

    fn bytes_total(&self) -> u64 {
        self.range.end - self.range.start
    }

    fn read(&mut self, range: Range<u64>) -> Result<Vec<u8>, S::Error> {
        let base = self.range.start;
        assert!(base + range.end <= self.range.end, "a window shows no more than it is");
        self.source.read(base + range.start..base + range.end)
    }
}

/// A run over a source that can be asked and answers.
#[derive(Debug)]
pub struct RunReader<S> {
    source: S,
    directory: RunDirectory,
    directory_checksum: u64,
}

impl<S: ByteSource> RunReader<S> {
    /// Reads and checks trailer and directory.
    ///
    /// # Errors
    /// As the source fails, and what is wrong with the image.
    pub fn open(mut source: S) -> Result<RunReader<S>, ReadError<S::Error>> {
        let total = source.bytes_total();
        let Some(trailer_start) = total.checked_sub(TRAILER_BYTES as u64) else {
            return Err(TabletError::Magic.into());
        };
        let bytes = source.read(trailer_start..total).map_err(ReadError::Source)?;
        let bytes = bytes.as_slice().try_into().expect("a source gives what it was asked for");
        let section = Trailer::decode(Image::Run, bytes, total)?.footer;
        let tail = source.read(section.offset..trailer_start).map_err(ReadError::Source)?;
        let (directory, zeros) = tail.split_at(section.length as usize);
        if !is_zero(zeros) {
            return Err(TabletError::Malformed("bytes between directory and trailer").into());
        }
        let directory = RunDirectory::decode(directory, section)?;
        Ok(RunReader { source, directory, directory_checksum: section.checksum })
    }

    /// What is in it.
    pub fn directory(&self) -> &RunDirectory {
        &self.directory
    }

    /// XXH3-64 of the directory: which file this is.
    pub fn directory_checksum(&self) -> u64 {
        self.directory_checksum
    }

    /// The changes of a table: reads and checks the section's footer, index and filter.
    ///
    /// # Errors
    /// As the source fails, and what is wrong with the section.
    pub fn table(
        &mut self,
        table: TableId,
    ) -> Result<Option<TabletReader<Window<'_, S>>>, ReadError<S::Error>> {
        let Some(section) = self.directory.section(table).copied() else { return Ok(None) };
        let range = section.offset..section.offset + section.length;
        let reader = TabletReader::open(Window { source: &mut self.source, range })?;
        let footer = reader.meta().footer();
        let fits = footer.table == section.table
            && footer.content == Content::Changes
            && footer.version == self.directory.version
            && footer.rows == section.rows
            && footer.digest == section.digest
            && reader.footer_checksum() == section.footer_checksum;
        if !fits {
            return Err(TabletError::Malformed("a section that is not the directory's").into());
        }
        Ok(Some(reader))
    }

    /// Reads everything, and checks that it is as directory and footers say.
    ///
    /// # Errors
    /// As the source fails, and the first thing that is wrong.
    pub fn verify(&mut self) -> Result<(), ReadError<S::Error>> {
        let tables: Vec<_> = self.directory.sections.iter().map(|section| section.table).collect();
        for table in tables {
            let reader = self.table(table)?;
            reader.expect("a table of the directory is in it").verify()?;
        }
        Ok(())
    }
}
