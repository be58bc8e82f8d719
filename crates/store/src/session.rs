//! Temporary folders whose owner's death is provable.
//!
//! Each process that writes has one folder `tmp/<random>/` with a file `owner`
//! in it that it keeps locked for as long as it lives; the kernel lets go of
//! the lock however the process ends. A folder whose `owner` can be locked by
//! somebody else is therefore litter, whatever the clock or the process table
//! says, and the next process that writes sweeps it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Result, StoreError};
use crate::{fsio, lock};

/// A process's own folder under `tmp/`; removed when dropped.
#[derive(Debug)]
pub(crate) struct Session {
    dir: PathBuf,
    owner: File,
}

impl Session {
    /// Sweeps what dead processes left and makes a folder for this one.
    pub(crate) fn begin(tmp: &Path, trash: &Path) -> Result<Self> {
        fsio::create_dirs(tmp)?;
        sweep(tmp, trash)?;
        empty(trash);
        loop {
            let dir = fsio::unused_name(tmp, "run");
            fs::create_dir(&dir).map_err(StoreError::io("create folder", &dir))?;
            let path = dir.join("owner");
            let owner = match fsio::create_new(&path) {
                Ok(owner) => owner,
                // A sweeper took the empty folder away: make another.
                Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let locked = lock::try_exclusive(&owner).map_err(StoreError::io("lock", &path))?;
            // A sweeper may have locked and moved it between the two calls.
            if locked && same_file(&owner, &path) {
                return Ok(Self { dir, owner });
            }
        }
    }

    pub(crate) fn temp_dir(&self) -> Result<TempDir> {
        let path = fsio::unused_name(&self.dir, "work");
        fs::create_dir(&path).map_err(StoreError::io("create folder", &path))?;
        Ok(TempDir { path: Some(path) })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Removed while still locked, so that no sweeper races with it.
        let _ = fs::remove_dir_all(&self.dir);
        lock::release(&self.owner);
    }
}

/// A private folder on the store's file system; removed with all it holds when
/// dropped, or by the next process that writes if this one is killed.
#[derive(Debug)]
pub struct TempDir {
    path: Option<PathBuf>,
}

impl TempDir {
    /// Where it is.
    pub fn path(&self) -> &Path {
        self.path.as_deref().unwrap_or(Path::new(""))
    }

    /// Gives up the folder: whoever takes the path owns it.
    pub(crate) fn into_path(mut self) -> PathBuf {
        self.path.take().unwrap_or_default()
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if let Some(path) = self.path.take() {
            // What cannot be removed now is swept once this process is gone.
            let _ = fs::remove_dir_all(path);
        }
    }
}

fn sweep(tmp: &Path, trash: &Path) -> Result<()> {
    for entry in fs::read_dir(tmp).map_err(StoreError::io("list", tmp))? {
        let dir = entry.map_err(StoreError::io("list", tmp))?.path();
        let path = dir.join("owner");
        match File::options().read(true).write(true).open(&path) {
            Ok(owner) if matches!(lock::try_exclusive(&owner), Ok(true)) => {
                if same_file(&owner, &path) {
                    fsio::rename(&dir, &fsio::unused_name(trash, "swept"))?;
                }
                lock::release(&owner);
            }
            // Alive, or on its way: leave it.
            Ok(_) => {}
            // Succeeds only on an empty folder: its maker died, or will retry.
            Err(_) => drop(fs::remove_dir(&dir)),
        }
    }
    Ok(())
}

/// Deletes what is in the trash. Nothing there is ever looked at again, so a
/// failure costs only space and the next process tries again.
pub(crate) fn empty(trash: &Path) {
    for entry in fs::read_dir(trash).into_iter().flatten().flatten() {
        let path = entry.path();
        let _ = if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            fs::remove_dir_all(path)
        } else {
            fs::remove_file(path)
        };
    }
}

/// Whether the path still names the open file.
pub(crate) fn same_file(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_live_sessions_folder_survives_a_sweep_and_a_dead_ones_does_not() {
        let root = tempfile::tempdir().unwrap();
        let (tmp, trash) = (root.path().join("tmp"), root.path().join("trash"));
        let alive = Session::begin(&tmp, &trash).unwrap();
        let work = alive.temp_dir().unwrap();
        // What a killed process leaves: a folder whose owner nobody locks.
        let dead = tmp.join("run-dead");
        fs::create_dir(&dead).unwrap();
        drop(fsio::create_new(&dead.join("owner")).unwrap());
        drop(fsio::create_new(&dead.join("half")).unwrap());
        let other = Session::begin(&tmp, &trash).unwrap();
        assert!(work.path().is_dir());
        assert!(!dead.exists());
        assert_eq!(fs::read_dir(&trash).unwrap().count(), 0);
        drop(work);
        drop((alive, other));
        assert_eq!(fs::read_dir(&tmp).unwrap().count(), 0);
    }
}
