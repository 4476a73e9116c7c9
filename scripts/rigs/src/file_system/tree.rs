//! Names and numbers of files, and which of them are open.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::Backed;
use crate::disk::Part;
use crate::sectors::Unflushed;

/// Number of the root directory.
const ROOT: u64 = 1;
/// Number of the control file.
pub const CONTROL_NUMBER: u64 = 2;
/// Files and directories that may be known at once.
const NUMBERS_MAX: usize = 1 << 16;

struct Open {
    backed: Arc<Backed>,
    handles: u64,
    is_gone: bool,
}

/// An open file as its user knows it.
#[derive(Clone)]
pub struct Handle {
    pub id: u64,
    pub backed: Arc<Backed>,
    pub number: u64,
    /// Power cuts of its disk before it was opened.
    pub cuts: u64,
}

/// See the module. Paths are relative to the root.
pub struct Tree {
    paths: BTreeMap<u64, PathBuf>,
    numbers: BTreeMap<PathBuf, u64>,
    open: BTreeMap<u64, Open>,
    handles: BTreeMap<u64, Handle>,
    next: u64,
}

impl Default for Tree {
    fn default() -> Self {
        Self {
            paths: BTreeMap::from([(ROOT, PathBuf::new())]),
            numbers: BTreeMap::from([(PathBuf::new(), ROOT)]),
            open: BTreeMap::new(),
            handles: BTreeMap::new(),
            next: CONTROL_NUMBER + 1,
        }
    }
}

fn missing() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOENT)
}

impl Tree {
    /// The path of a file.
    pub fn path(&self, number: u64) -> io::Result<PathBuf> {
        self.paths.get(&number).cloned().ok_or_else(missing)
    }

    /// The path of an entry of a directory.
    pub fn path_in(&self, parent: u64, name: &OsStr) -> io::Result<PathBuf> {
        Ok(self.path(parent)?.join(name))
    }

    /// The number of what has this path.
    pub fn number(&mut self, path: &Path) -> io::Result<u64> {
        if let Some(number) = self.numbers.get(path) {
            return Ok(*number);
        }
        if self.numbers.len() == NUMBERS_MAX {
            return Err(io::Error::from_raw_os_error(libc::ENFILE));
        }
        let number = self.next;
        self.next += 1;
        self.paths.insert(number, path.to_owned());
        self.numbers.insert(path.to_owned(), number);
        Ok(number)
    }

    /// A name is gone. Who has the file open keeps it.
    pub fn remove(&mut self, path: &Path) {
        let Some(number) = self.numbers.remove(path) else { return };
        self.paths.remove(&number);
        if let Some(open) = self.open.get_mut(&number) {
            open.is_gone = true;
            if open.handles == 0 {
                self.open.remove(&number);
            }
        }
    }

    /// A name has changed, and all names below it.
    pub fn rename(&mut self, from: &Path, to: &Path) {
        self.remove(to);
        let moved: Vec<(PathBuf, u64)> = self
            .numbers
            .iter()
            .filter(|(path, _)| path.starts_with(from))
            .map(|(path, number)| (path.clone(), *number))
            .collect();
        for (path, number) in moved {
            let below = path.strip_prefix(from).expect("filtered above");
            let new = if below.as_os_str().is_empty() { to.to_owned() } else { to.join(below) };
            self.numbers.remove(&path);
            self.numbers.insert(new.clone(), number);
            self.paths.insert(number, new);
        }
    }

    /// Opens a file; `cuts` tells how often a disk was without power.
    pub fn open(
        &mut self,
        root: &Path,
        number: u64,
        disks: usize,
        cuts: impl FnOnce(usize) -> u64,
    ) -> io::Result<u64> {
        let path = self.path(number)?;
        let open = match self.open.entry(number) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(vacant) => {
                let backed = Arc::new(Backed {
                    file: open_below(&root.join(&path))?,
                    place: place(&path, disks),
                    unflushed: Mutex::new(Unflushed::default()),
                });
                vacant.insert(Open { backed, handles: 0, is_gone: false })
            }
        };
        open.handles += 1;
        let backed = open.backed.clone();
        let cuts = backed.place.map_or(0, |(disk, _)| cuts(disk));
        let handle = self.next;
        self.next += 1;
        self.handles.insert(handle, Handle { id: handle, backed, number, cuts });
        Ok(handle)
    }

    /// Handles that are given from now on are no smaller.
    pub fn handle_next(&self) -> u64 {
        self.next
    }

    /// An open file.
    pub fn handle(&self, handle: u64) -> io::Result<Handle> {
        let found = self.handles.get(&handle).cloned();
        found.ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }

    /// An open file is closed. What it holds that is volatile stays.
    pub fn close(&mut self, handle: u64) {
        let Some(Handle { number, .. }) = self.handles.remove(&handle) else { return };
        let open = self.open.get_mut(&number).expect("a handle keeps its file open");
        open.handles -= 1;
        if open.handles == 0 && (open.is_gone || open.backed.place.is_none()) {
            self.open.remove(&number);
        }
    }

    /// The file with this number, if it is open.
    pub fn backed(&self, number: u64) -> Option<Arc<Backed>> {
        self.open.get(&number).map(|open| open.backed.clone())
    }

    /// Files of a disk that may hold something volatile.
    pub fn files_of(&self, disk: usize) -> Vec<Arc<Backed>> {
        let all = self.open.values().map(|open| &open.backed);
        all.filter(|file| file.place.is_some_and(|place| place.0 == disk)).cloned().collect()
    }
}

fn open_below(path: &Path) -> io::Result<File> {
    let both = OpenOptions::new().read(true).write(true).open(path);
    match both {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            OpenOptions::new().read(true).open(path)
        }
        both => both,
    }
}

/// On which disk a file is, and as what.
pub fn place(path: &Path, disks: usize) -> Option<(usize, Part)> {
    let name = path.file_name()?.to_str()?;
    let part = match name {
        name if name.starts_with("segment-") => Part::Segments,
        name if name.starts_with("superblock") => Part::Superblock,
        _ => return None,
    };
    let number = path.components().find_map(|component| match component {
        Component::Normal(name) => name.to_str()?.strip_prefix("node-")?.parse::<usize>().ok(),
        _ => None,
    });
    let disk = number.unwrap_or(1).checked_sub(1).filter(|disk| *disk < disks)?;
    Some((disk, part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_name_disks() {
        let place = |path: &str| place(Path::new(path), 3);
        assert_eq!(place("a/node-2/log/segment-00000.log"), Some((1, Part::Segments)));
        assert_eq!(place("a/node-3/log/superblock.new"), Some((2, Part::Superblock)));
        assert_eq!(place("log/superblock"), Some((0, Part::Superblock)));
        assert_eq!(place("a/node-4/log/superblock"), None, "there is no such disk");
        assert_eq!(place("a/node-1/node.toml"), None);
    }

    #[test]
    fn names_move_with_what_is_below_them() {
        let mut tree = Tree::default();
        let number = |tree: &mut Tree, path: &str| tree.number(Path::new(path)).expect("room");
        let (a, b) = (number(&mut tree, "a"), number(&mut tree, "a/b"));
        let other = number(&mut tree, "ab");
        assert_eq!(number(&mut tree, "c"), number(&mut tree, "c"));
        tree.rename(Path::new("a"), Path::new("c"));
        assert_eq!(tree.path(a).expect("there"), Path::new("c"));
        assert_eq!(tree.path(b).expect("there"), Path::new("c/b"));
        assert_eq!(tree.path(other).expect("there"), Path::new("ab"));
        tree.remove(Path::new("c/b"));
        tree.path(b).expect_err("gone");
        assert_ne!(number(&mut tree, "c/b"), b);
    }
}
