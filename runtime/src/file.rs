//! Files through the page cache, for start-up, manifests and reports. With [`crate::direct`] this
//! is the only place that opens files.
#![expect(clippy::disallowed_methods, reason = "this module is what the ban points to")]

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Errno, RuntimeError};

/// Creates a directory and its missing parents.
///
/// # Errors
/// Fails as the file system does.
pub fn create_dir_all(path: &Path) -> Result<(), RuntimeError> {
    fs::create_dir_all(path).map_err(|error| explain("create directory", path, &error))
}

/// Reads a whole file as UTF-8.
///
/// # Errors
/// Fails as the file system does, and if the content is not UTF-8.
pub fn read_to_string(path: &Path) -> Result<String, RuntimeError> {
    fs::read_to_string(path).map_err(|error| explain("read", path, &error))
}

/// Reads a whole file.
///
/// # Errors
/// Fails as the file system does.
pub fn read(path: &Path) -> Result<Vec<u8>, RuntimeError> {
    fs::read(path).map_err(|error| explain("read", path, &error))
}

/// Replaces the content of a file so that after a crash it is either the old or the new one, and
/// after return the new one: temporary file, fsync, rename, fsync of the directory.
///
/// # Errors
/// Fails as the file system does; the old content then stays.
pub fn write_atomic(path: &Path, content: &[u8]) -> Result<(), RuntimeError> {
    let temporary = temporary_of(path);
    let written = write_synced(&temporary, content)
        .and_then(|()| fs::rename(&temporary, path).map_err(|error| (error, "rename")));
    if let Err((error, operation)) = written {
        let bytes = content.len() as u64;
        let explained = explain_space(operation, path, &error, bytes);
        // The write already failed: what remains of the temporary file is only in the way.
        drop(fs::remove_file(&temporary));
        return Err(explained);
    }
    sync_dir(parent_of(path))
}

fn write_synced(path: &Path, content: &[u8]) -> Result<(), (std::io::Error, &'static str)> {
    let mut file = File::create(path).map_err(|error| (error, "create"))?;
    file.write_all(content).map_err(|error| (error, "write"))?;
    file.sync_all().map_err(|error| (error, "fsync"))
}

fn temporary_of(path: &Path) -> PathBuf {
    let mut name = path.file_name().expect("a file to write has a name").to_owned();
    name.push(".temporary");
    path.with_file_name(name)
}

/// The directory that holds the name.
pub(crate) fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Creates an empty file for writing, emptying one that exists. For reports.
///
/// # Errors
/// Fails as the file system does.
pub fn create(path: &Path) -> Result<File, RuntimeError> {
    File::create(path).map_err(|error| explain("create", path, &error))
}

/// Opens a file for appending, creating it if absent. For reports.
///
/// # Errors
/// Fails as the file system does.
pub fn append(path: &Path) -> Result<File, RuntimeError> {
    let opened = OpenOptions::new().append(true).create(true).open(path);
    opened.map_err(|error| explain("open for append", path, &error))
}

/// Renames a file inside one file system and makes the new name durable.
///
/// # Errors
/// Fails as the file system does.
pub fn rename(from: &Path, to: &Path) -> Result<(), RuntimeError> {
    fs::rename(from, to).map_err(|error| explain("rename", from, &error))?;
    sync_dir(parent_of(to))?;
    if parent_of(from) == parent_of(to) { Ok(()) } else { sync_dir(parent_of(from)) }
}

/// Removes a file.
///
/// # Errors
/// Fails as the file system does.
pub fn remove_file(path: &Path) -> Result<(), RuntimeError> {
    fs::remove_file(path).map_err(|error| explain("remove", path, &error))
}

/// Removes a directory with all it holds.
///
/// # Errors
/// Fails as the file system does.
pub fn remove_dir_all(path: &Path) -> Result<(), RuntimeError> {
    fs::remove_dir_all(path).map_err(|error| explain("remove directory", path, &error))
}

/// Whether something has this name. A name that cannot be looked up counts as absent.
#[must_use]
pub fn exists(path: &Path) -> bool {
    path.exists()
}

/// Size of a file in bytes.
///
/// # Errors
/// Fails as the file system does.
pub fn bytes_of(path: &Path) -> Result<u64, RuntimeError> {
    let facts = fs::metadata(path).map_err(|error| explain("stat", path, &error))?;
    Ok(facts.len())
}

/// The device that holds a file, as (major, minor).
///
/// # Errors
/// Fails as the file system does.
pub fn device_of(path: &Path) -> Result<(u32, u32), RuntimeError> {
    let facts = fs::metadata(path).map_err(|error| explain("stat", path, &error))?;
    Ok((libc::major(facts.dev()), libc::minor(facts.dev())))
}

/// The absolute path without links.
///
/// # Errors
/// Fails as the file system does.
pub fn canonical(path: &Path) -> Result<PathBuf, RuntimeError> {
    fs::canonicalize(path).map_err(|error| explain("resolve", path, &error))
}

/// The entries of a directory, sorted.
///
/// # Errors
/// Fails as the file system does.
pub fn list_dir(path: &Path) -> Result<Vec<PathBuf>, RuntimeError> {
    let explain_this = |error: std::io::Error| explain("list directory", path, &error);
    let mut entries = Vec::new();
    for entry in fs::read_dir(path).map_err(explain_this)? {
        entries.push(entry.map_err(explain_this)?.path());
    }
    entries.sort();
    Ok(entries)
}

/// Makes the names in a directory durable.
///
/// # Errors
/// Fails as the file system does.
pub fn sync_dir(path: &Path) -> Result<(), RuntimeError> {
    let synced = File::open(path).and_then(|directory| directory.sync_all());
    synced.map_err(|error| explain("fsync directory", path, &error))
}

/// Bytes that this user can still write to the file system of `path`.
///
/// # Errors
/// Fails as the file system does.
pub fn free_bytes(path: &Path) -> Result<u64, RuntimeError> {
    let name = c_path(path)?;
    // SAFETY: all-zero is a valid statvfs, overwritten below.
    let mut facts: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the name is a C string and `facts` is writable.
    if unsafe { libc::statvfs(name.as_ptr(), &raw mut facts) } != 0 {
        return Err(RuntimeError::file("statvfs", path, Errno::last()));
    }
    Ok(facts.f_bavail.saturating_mul(facts.f_frsize))
}

pub(crate) fn c_path(path: &Path) -> Result<CString, RuntimeError> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| RuntimeError::file("name with a zero byte", path, Errno(libc::EINVAL)))
}

/// The full-file-system error of `path`, with what is free there now.
pub(crate) fn disk_full(path: &Path, bytes_needed: u64) -> RuntimeError {
    // An unreadable free space is reported as none: the write just failed for lack of it.
    RuntimeError::disk_full(path, bytes_needed, free_bytes(parent_of(path)).unwrap_or(0))
}

fn explain_space(
    operation: &'static str,
    path: &Path,
    error: &std::io::Error,
    bytes: u64,
) -> RuntimeError {
    match Errno::of(error) {
        Errno(libc::ENOSPC | libc::EDQUOT) => disk_full(path, bytes),
        errno => RuntimeError::file(operation, path, errno),
    }
}

fn explain(operation: &'static str, path: &Path, error: &std::io::Error) -> RuntimeError {
    explain_space(operation, path, error, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_atomic_replaces_and_leaves_no_temporary() {
        let root = tempfile::tempdir().expect("temp dir");
        let path = root.path().join("state");
        write_atomic(&path, b"one").expect("first");
        write_atomic(&path, b"two").expect("second");
        assert_eq!(read(&path).expect("read"), b"two");
        assert_eq!(read_to_string(&path).expect("read"), "two");
        assert_eq!(list_dir(root.path()).expect("list"), vec![path.clone()]);
        assert_eq!(bytes_of(&path).expect("stat"), 3);
    }

    #[test]
    fn failed_write_keeps_the_old_content() {
        let root = tempfile::tempdir().expect("temp dir");
        let path = root.path().join("state");
        // A directory of the temporary file's name makes the write fail.
        write_atomic(&path, b"old").expect("first");
        create_dir_all(&temporary_of(&path)).expect("obstacle");
        write_atomic(&path, b"new").expect_err("obstructed");
        assert_eq!(read(&path).expect("read"), b"old");
    }

    #[test]
    fn writers_append_and_truncate() {
        let root = tempfile::tempdir().expect("temp dir");
        let path = root.path().join("report");
        create(&path).expect("create").write_all(b"a").expect("write");
        append(&path).expect("append").write_all(b"b").expect("write");
        assert_eq!(read(&path).expect("read"), b"ab");
        create(&path).expect("create again");
        assert_eq!(bytes_of(&path).expect("stat"), 0);
    }

    #[test]
    fn names_come_and_go() {
        let root = tempfile::tempdir().expect("temp dir");
        let directory = root.path().join("a/b");
        create_dir_all(&directory).expect("create");
        let (one, two) = (directory.join("one"), root.path().join("two"));
        write_atomic(&one, b"x").expect("write");
        rename(&one, &two).expect("rename");
        assert!(exists(&two) && !exists(&one));
        remove_file(&two).expect("remove");
        remove_dir_all(&root.path().join("a")).expect("remove");
        assert_eq!(list_dir(root.path()).expect("list"), Vec::<PathBuf>::new());
        let error = read(&two).expect_err("gone");
        assert_eq!(error, RuntimeError::NotFound { path: two });
    }

    #[test]
    fn free_space_is_known() {
        assert!(free_bytes(Path::new("/")).expect("statvfs") > 0);
    }
}
