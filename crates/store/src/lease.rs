//! Leases: a machine was made from an artifact and may still be there.
//!
//! A lease is a file `leases/<machine>.json`, written before the machine is
//! made and removed when it is proved gone, so that it outlives a launcher that
//! is killed. The launcher keeps the file locked for as long as it lives: a
//! lease that can be locked has lost its launcher, whatever the clock or the
//! process table says.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Result, StoreError};
use crate::machines::list;
use crate::root::Store;
use crate::session::same_file;
use crate::{fsio, lock};

/// What a lease says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    /// The version of this record; 1.
    pub schema: u64,
    /// The machine's name.
    pub machine: String,
    /// The key of the artifact that it was made from, as locks have it.
    pub artifact: String,
    /// Which machines it is among: a name of the launcher's choice for where they
    /// are kept. Only a launcher of the same place can tell that one is gone.
    pub place: String,
    /// The launcher's process, for people.
    pub pid: u32,
    /// When it was written, in seconds since 1970, for people.
    pub since: u64,
}

impl LeaseRecord {
    /// The newest version known.
    pub const SCHEMA: u64 = 1;
}

/// A lease of this process. Dropping it leaves the file: only [`Lease::end`]
/// says that the machine is gone.
#[derive(Debug)]
pub struct Lease {
    record: LeaseRecord,
    file: File,
    path: PathBuf,
}

impl Lease {
    /// What it says.
    pub fn record(&self) -> &LeaseRecord {
        &self.record
    }

    /// Removes it. The machine must be gone.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn end(self) -> Result<()> {
        // Still locked: whoever waits for the lock finds another file, or none.
        std::fs::remove_file(&self.path).map_err(StoreError::io("remove", &self.path))?;
        self.path.parent().map_or(Ok(()), fsio::sync_dir)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        lock::release(&self.file);
    }
}

impl Store {
    /// Writes a lease; durable when this returns. The artifact's use lock must
    /// be held, so that nothing collects it in between.
    ///
    /// # Errors
    /// [`StoreError::Io`]; [`StoreError::Damaged`] if the machine's name is none.
    pub fn lease(&self, machine: &str, artifact: &str, place: &str) -> Result<Lease> {
        let path = self.leases_dir().join(format!("{machine}.json"));
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if machine.is_empty() || !machine.bytes().all(plain) {
            return Err(StoreError::Damaged {
                path,
                problem: "it would not be the name of a machine".into(),
            });
        }
        let holder = lock::Holder::me();
        let record = LeaseRecord {
            schema: LeaseRecord::SCHEMA,
            machine: machine.to_owned(),
            artifact: artifact.to_owned(),
            place: place.to_owned(),
            pid: holder.pid,
            since: holder.since,
        };
        let scratch = self.scratch()?;
        let temp = fsio::unused_name(&scratch, "lease");
        fsio::write_sealed(&scratch, &temp, &record)?;
        // Locked before it has its name: nobody ever sees it without its owner.
        let file = writable(&temp).map_err(StoreError::io("open", &temp))?;
        if !lock::try_exclusive(&file).map_err(StoreError::io("lock", &temp))? {
            let problem = "a new file is locked by somebody else".into();
            return Err(StoreError::Damaged { path: temp, problem });
        }
        fsio::rename(&temp, &path)?;
        Ok(Lease { record, file, path })
    }

    /// The leases whose launchers are gone, now this process's. Their machines
    /// may still be there.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the folder cannot be read. A lease that cannot be
    /// read is left alone.
    pub fn orphaned_leases(&self) -> Result<Vec<Lease>> {
        let paths = list(&self.leases_dir())?;
        Ok(paths.iter().filter_map(|path| orphan(path)).collect())
    }

    fn leases_dir(&self) -> PathBuf {
        self.root().join("leases")
    }
}

/// Opened for writing: some file systems give an exclusive lock only then.
fn writable(path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))?;
    File::options().read(true).write(true).open(path)
}

fn orphan(path: &Path) -> Option<Lease> {
    let file = File::options().read(true).write(true).open(path).ok()?;
    if !matches!(lock::try_exclusive(&file), Ok(true)) {
        return None;
    }
    // Its owner may have removed it between the two calls.
    let record = same_file(&file, path).then(|| fsio::read_sealed(path, LeaseRecord::SCHEMA));
    match record {
        Some(Ok(Some(record))) => Some(Lease { record, file, path: path.to_owned() }),
        _ => {
            lock::release(&file);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::OpenOptions;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("c"), OpenOptions::default()).unwrap();
        (dir, store)
    }

    #[test]
    fn a_lease_is_an_orphan_only_when_its_owner_is_gone_and_gone_when_ended() {
        let (_dir, store) = store();
        let lease = store.lease("m-1", "key", "here").unwrap();
        assert_eq!((lease.record().machine.as_str(), lease.record().pid), ("m-1", std::process::id()));
        assert!(store.orphaned_leases().unwrap().is_empty());
        drop(lease);
        let mut orphans = store.orphaned_leases().unwrap();
        assert_eq!(orphans.len(), 1);
        // Ours now: nobody else takes it too.
        assert!(store.orphaned_leases().unwrap().is_empty());
        orphans.remove(0).end().unwrap();
        assert!(store.orphaned_leases().unwrap().is_empty());
        assert_eq!(std::fs::read_dir(store.leases_dir()).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_lease_is_left_alone_and_a_name_that_is_a_path_is_refused() {
        let (_dir, store) = store();
        drop(store.lease("m", "key", "here").unwrap());
        let path = store.leases_dir().join("m.json");
        let scratch = store.scratch().unwrap();
        fsio::write_atomic(&scratch, &path, b"{}").unwrap();
        assert!(store.orphaned_leases().unwrap().is_empty());
        assert!(path.exists());
        for name in ["", "../m", "a/b", "a.b"] {
            assert!(store.lease(name, "key", "here").is_err(), "{name}");
        }
    }
}
