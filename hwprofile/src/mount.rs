//! The mount table of this process.

use crate::tree::Tree;
use std::path::{Path, PathBuf};

/// One line of `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// `major:minor` of the file system; major 0 has no block device of its own.
    pub device: String,
    /// The directory of the file system that is mounted: not `/` for a bind mount.
    pub root: PathBuf,
    /// Where it is mounted.
    pub point: PathBuf,
    /// Type of the file system.
    pub kind: String,
    /// What was mounted, as the mounter named it.
    pub source: String,
    /// Options of the file system.
    pub options: Vec<String>,
}

/// All mounts, the later ones hiding the earlier ones.
pub fn discover(tree: &Tree) -> Vec<Mount> {
    let text = tree.read("/proc/self/mountinfo").unwrap_or_default();
    text.lines().filter_map(parse).collect()
}

/// The mount that a path lies on. The path must be absolute and free of symbolic links.
pub fn holding<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    let depth = |mount: &&Mount| mount.point.components().count();
    // `max_by_key` takes the last of equals: the mount on top.
    mounts.iter().filter(|mount| path.starts_with(&mount.point)).max_by_key(depth)
}

fn parse(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let left: Vec<&str> = left.split(' ').collect();
    let mut right = right.split(' ');
    let (kind, source) = (right.next()?, right.next()?);
    let options = right.next().unwrap_or("").split(',').map(str::to_owned).collect();
    Some(Mount {
        device: (*left.get(2)?).to_owned(),
        root: PathBuf::from(unescape(left.get(3)?)),
        point: PathBuf::from(unescape(left.get(4)?)),
        kind: kind.to_owned(),
        source: unescape(source),
        options,
    })
}

/// The kernel writes blanks, tabs, line breaks and backslashes as three octal digits.
fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(byte) => {
                out.push(char::from(byte));
                rest = &rest[at + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
30 27 8:1 / /srv rw shared:1 - xfs /dev/sda1 rw
31 27 8:17 /sub /srv/my\\040data rw - ext4 /dev/sdb1 rw
32 27 0:40 / /srv rw - tmpfs none rw,size=4k";

    #[test]
    fn the_deepest_and_latest_mount_holds_a_path() {
        let mounts: Vec<Mount> = TABLE.lines().filter_map(parse).collect();
        assert_eq!(mounts.len(), 4);
        let device = |path: &str| holding(&mounts, Path::new(path)).map(|m| m.device.as_str());
        assert_eq!(device("/home/x"), Some("254:0"));
        assert_eq!(device("/srv/my data/x"), Some("8:17"));
        assert_eq!(device("/srv/x"), Some("0:40"));
        assert_eq!(device("/srvx"), Some("254:0"));
    }

    #[test]
    fn broken_lines_are_skipped() {
        assert_eq!(parse("27 1 254:0"), None);
        assert_eq!(unescape("a\\0"), "a\\0");
    }
}
