//! One file per family of rules. Each function takes what it needs and appends what it found.

pub mod bans;
pub mod crates;
pub mod links;
pub mod marks;
pub mod size;
pub mod text;

use crate::functions::{is_test_path, test_ranges};
use crate::house::Violation;
use crate::source::Source;
use crate::tree::File;
use std::ops::Range;

/// A Rust file as the rules see it.
#[derive(Debug)]
pub struct RustFile<'a> {
    /// Path below the root.
    pub path: &'a str,
    /// Text and masked code.
    pub source: Source,
    test_ranges: Vec<Range<usize>>,
}

impl<'a> RustFile<'a> {
    /// Masks `text` and finds its test code.
    pub fn new(path: &'a str, text: &str) -> RustFile<'a> {
        let source = Source::new(text);
        let test_ranges = test_ranges(&source);
        RustFile { path, source, test_ranges }
    }

    /// Whether the code at `offset` is compiled for tests only.
    pub fn is_test(&self, offset: usize) -> bool {
        is_test_path(self.path) || self.test_ranges.iter().any(|range| range.contains(&offset))
    }
}

/// Applies the rules that need one file only.
pub fn check_file(file: &File, out: &mut Vec<Violation>) {
    size::check_blob(file, out);
    let Some(text) = &file.text else { return };
    text::check(file, text, out);
    if file.extension() != "rs" {
        return;
    }
    let rust = RustFile::new(&file.path, text);
    size::check_rust(&rust, out);
    bans::check(&rust, out);
    marks::check(&rust, out);
}
