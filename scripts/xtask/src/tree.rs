//! The files of the working tree.

use std::io;
use std::path::{Path, PathBuf};

/// One file: its path below the root, with `/` between the parts, and its bytes.
#[derive(Debug, Clone)]
pub struct File {
    /// Path below the root.
    pub path: String,
    /// Size on disk, bytes.
    pub bytes_total: u64,
    /// The text; `None` if the file is not UTF-8 or too large to be a source.
    pub text: Option<String>,
}

impl File {
    /// A file that only a test knows.
    #[cfg(test)]
    pub fn fake(path: &str, text: &str) -> File {
        File { path: path.into(), bytes_total: text.len() as u64, text: Some(text.into()) }
    }

    /// The ending of the file's name, or of a name without one an empty string.
    pub fn extension(&self) -> &str {
        Path::new(&self.path).extension().and_then(|e| e.to_str()).unwrap_or("")
    }
}

/// Texts above this size are not read: the rule on blobs has refused them by then.
const TEXT_BYTES_MAX: u64 = 4 << 20;
/// Hidden directories that belong to the project; all others belong to tools.
const HIDDEN_KEPT: [&str; 3] = [".ci", ".cargo", ".github"];

/// The workspace root, found from this crate's own place in it.
pub fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = manifest.ancestors().nth(2).expect("scripts/xtask lies two levels below the root");
    root.to_owned()
}

/// All files below `root` except build output, fuzzing corpora and hidden directories of tools.
pub fn files(root: &Path) -> io::Result<Vec<File>> {
    let mut found = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let kind = entry.file_type()?;
            if kind.is_dir() {
                let hidden = name.starts_with('.') && !HIDDEN_KEPT.contains(&name.as_ref());
                if !hidden && !matches!(name.as_ref(), "target" | "corpus" | "artifacts") {
                    open.push(entry.path());
                }
            } else if kind.is_file() && name != ".git" {
                found.push(read(root, &entry.path())?);
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

#[expect(clippy::disallowed_methods, reason = "reads sources, not data, and must build alone")]
fn read(root: &Path, path: &Path) -> io::Result<File> {
    let below = path.strip_prefix(root).expect("the walk stays below its root");
    let parts: Vec<_> = below.iter().map(|part| part.to_string_lossy()).collect();
    let bytes_total = std::fs::metadata(path)?.len();
    let text = if bytes_total <= TEXT_BYTES_MAX {
        String::from_utf8(std::fs::read(path)?).ok()
    } else {
        None
    };
    Ok(File { path: parts.join("/"), bytes_total, text })
}
