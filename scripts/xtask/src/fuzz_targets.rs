//! The registry of fuzz targets: whoever writes a decoder adds a line here.

use crate::functions::{functions, test_ranges};
use crate::fuzz::Target;
use crate::source::Source;

/// All targets, in the order of their names.
pub const TARGETS: &[Target] = &[Target {
    name: "house_source",
    about: "the house rules read any text without panicking",
    samples: || vec![include_bytes!("source.rs").to_vec(), include_bytes!("fuzz.rs").to_vec()],
    run: |bytes| {
        let source = Source::new(&String::from_utf8_lossy(bytes));
        let _ = (functions(&source), test_ranges(&source));
    },
}];

/// The target with this name.
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
