//! Folders that are never half there, and the locks under which they are made.

use anyhow::{Context as _, Result, bail};
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long to wait for another process before giving up: longer than any test may take.
pub(super) const LOCK_WAIT: Duration = Duration::from_secs(3600);

/// Takes the lock in `file`, which is held until the returned file is dropped.
pub(super) fn lock(file: &Path, wait: Duration) -> Result<File> {
    let open = File::options().create(true).truncate(false).write(true).open(file);
    let lock = open.with_context(|| format!("cannot open {}", file.display()))?;
    let start = Instant::now();
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::Error(e)) if e.kind() != std::io::ErrorKind::Interrupted => {
                return Err(e).with_context(|| format!("cannot lock {}", file.display()));
            }
            Err(_) if start.elapsed() >= wait => {
                bail!("{} was held by another process for {wait:?}", file.display());
            }
            Err(_) => sleep(Duration::from_millis(100)),
        }
    }
}

/// A folder that is removed when this is dropped.
#[derive(Debug)]
pub(super) struct Scratch(PathBuf);

impl Scratch {
    /// An empty folder at `path`, also if a killed process left one there. The caller holds the lock that
    /// makes the path its own.
    pub(super) fn fresh(path: &Path) -> Result<Self> {
        remove(path)?;
        fs::create_dir(path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path.to_owned()))
    }

    /// The folder.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Makes the folder permanent under another name.
    pub(super) fn publish(self, to: &Path) -> Result<()> {
        fs::rename(&self.0, to)
            .with_context(|| format!("cannot move {} to {}", self.0.display(), to.display()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next `fresh`, which does report it.
        let _ = remove(&self.0);
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
