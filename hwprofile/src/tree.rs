//! Reading small text files below a root.

use spillway_runtime::file;
use std::path::{Path, PathBuf};

/// `/sys` and `/proc` of one machine, live or recorded.
///
/// What cannot be read is absent: kernels, containers and architectures differ in which files
/// they show, and every reader has a fallback.
#[derive(Debug, Clone)]
pub struct Tree {
    root: PathBuf,
}

impl Tree {
    /// The tree below `root`; `/` is the machine this process runs on.
    pub fn new(root: impl Into<PathBuf>) -> Tree {
        Tree { root: root.into() }
    }

    /// The text of a file, without the line break at its end.
    pub fn read(&self, path: impl AsRef<Path>) -> Option<String> {
        let text = file::read_to_string(&self.real(path.as_ref())).ok()?;
        Some(text.trim_end().to_owned())
    }

    /// A file that holds one number.
    pub fn number(&self, path: impl AsRef<Path>) -> Option<u64> {
        self.read(path)?.trim().parse().ok()
    }

    /// Names in a directory, in order.
    pub fn list(&self, path: impl AsRef<Path>) -> Vec<String> {
        let Ok(entries) = file::list_dir(&self.real(path.as_ref())) else { return Vec::new() };
        let name = |entry: PathBuf| Some(entry.file_name()?.to_string_lossy().into_owned());
        entries.into_iter().filter_map(name).collect()
    }

    /// Whether something is there.
    pub fn exists(&self, path: impl AsRef<Path>) -> bool {
        file::exists(&self.real(path.as_ref()))
    }

    /// The path without symbolic links, below the root. A tail that does not exist yet stays as
    /// it is: a directory may be looked at before it is made.
    pub fn resolve(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        let root = file::canonical(&self.root).unwrap_or_else(|_| self.root.clone());
        for ancestor in path.ancestors() {
            let Ok(real) = file::canonical(&self.real(ancestor)) else { continue };
            let Ok(below) = real.strip_prefix(&root) else { continue };
            let tail = path.strip_prefix(ancestor).expect("an ancestor is a prefix");
            return Path::new("/").join(below).join(tail);
        }
        Path::new("/").join(path)
    }

    fn real(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }
}
