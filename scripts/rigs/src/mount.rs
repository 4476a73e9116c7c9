//! Puts the file system into the tree, and takes it out again however the process ends.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use fuser::{BackgroundSession, Config, MountOption};
use spillway_runtime::file;

use crate::error::RigError;
use crate::file_system::Disks;

/// Threads that answer the kernel.
const THREADS: usize = 4;

/// Waits for the end of its input, which is the end of the rig, and cleans up after it.
const JANITOR: &str = "read -r end; umount -l -- \"$1\" 2>/dev/null || \
                       fusermount3 -u -z -- \"$1\" 2>/dev/null; \
                       rm -rf --one-file-system -- \"$2\"";

/// A mounted file system in a directory of its own. Dropping it removes both; so does a process
/// that outlives this one, should it be killed.
pub struct Mount {
    session: Option<BackgroundSession>,
    disks: Disks,
    directory: PathBuf,
    janitor: Child,
}

/// Mounts, and says in words that people understand why that is not possible.
///
/// # Errors
/// [`RigError::NoFuse`] on machines without.
pub fn mount(disks: &Disks, at: &Path) -> Result<BackgroundSession, RigError> {
    let mut config = Config::default();
    let name = "spillway-rigs".to_owned();
    config.mount_options = vec![MountOption::FSName(name), MountOption::NoAtime];
    config.n_threads = Some(THREADS);
    let session = fuser::spawn_mount(disks.file_system(), at, &config);
    session.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => RigError::NoFuse(error),
        _ => RigError::System { doing: format!("mounting {}", at.display()), cause: error },
    })
}

impl Mount {
    /// Mounts so many disks somewhere in `parent`, or in the system's temporary directory.
    ///
    /// # Errors
    /// [`RigError::NoFuse`] on machines without.
    pub fn new(parent: Option<&Path>, disks: usize, seed: u64) -> Result<Self, RigError> {
        let parent = parent.map_or_else(std::env::temp_dir, Path::to_owned);
        file::create_dir_all(&parent)?;
        let directory = tempfile::Builder::new().prefix("spillway-rig-").tempdir_in(&parent);
        let directory = directory.map_err(RigError::system("a directory for the rig"))?.keep();
        let (below, at) = (directory.join("below"), directory.join("mount"));
        // Before there is anything to clean up.
        let janitor = janitor(&at, &directory)?;
        let mut mount =
            Self { session: None, disks: Disks::new(&below, disks, seed)?, directory, janitor };
        file::create_dir_all(&below)?;
        file::create_dir_all(&at)?;
        mount.session = Some(self::mount(&mount.disks, &at)?);
        Ok(mount)
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.directory.join("mount")
    }

    /// Where its files really are: what the disks have for good.
    pub fn below(&self) -> PathBuf {
        self.directory.join("below")
    }

    /// A directory beside it, for what is on no disk.
    pub fn beside(&self) -> &Path {
        &self.directory
    }

    /// Its disks.
    pub fn disks(&self) -> &Disks {
        &self.disks
    }
}

fn janitor(at: &Path, directory: &Path) -> Result<Child, RigError> {
    Command::new("sh")
        .args(["-c", JANITOR, "janitor"])
        .arg(at)
        .arg(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // An interrupt from the keyboard must not reach it.
        .process_group(0)
        .spawn()
        .map_err(RigError::system("starting a shell that cleans up"))
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            // The janitor detaches what somebody still uses.
            drop(session.umount_and_join());
        }
        drop(self.janitor.stdin.take());
        drop(self.janitor.wait());
    }
}
