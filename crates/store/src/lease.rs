//! Leases: a machine was made from an artifact and may still be there.
//!
//! A lease is a file `leases/<machine>.json`, written before the machine is
//! made and removed when it is proved gone, so that it outlives a launcher that
//! is killed. The launcher keeps the file locked for as long as it lives: a
//! lease that can be locked has lost its launcher, whatever the clock or the
//! process table says.
//!
//! `launches/<machine>/` holds what else a launch has on this disk, readable by
//! its user only; it goes with the lease.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Result, StoreError};
use crate::machines::list;
use crate::root::Store;
use crate::session::same_file;
use crate::{fsio, lock};

/// What a lease says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    /// The version of this record; 2. In 1, `kept`, `ended` and `launch` were
    /// not there.
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
    /// Whether the machine is to stay when its launcher has ended.
    #[serde(default)]
    pub kept: bool,
    /// The exit code of the command that it was launched for, once that ended.
    #[serde(default)]
    pub ended: Option<i32>,
    /// What the launcher knows of the launch, in its own words.
    #[serde(default)]
    pub launch: Value,
}

impl LeaseRecord {
    /// The newest version known.
    pub const SCHEMA: u64 = 2;
}

/// A lease, and whether the launcher that has it lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenLease {
    /// What it says.
    pub record: LeaseRecord,
    /// Whether its launcher lives.
    pub attended: bool,
}

/// What a new lease is to say.
#[derive(Debug, Clone)]
pub struct NewLease {
    /// See [`LeaseRecord::machine`].
    pub machine: String,
    /// See [`LeaseRecord::artifact`].
    pub artifact: String,
    /// See [`LeaseRecord::place`].
    pub place: String,
    /// See [`LeaseRecord::launch`].
    pub launch: Value,
}

/// A lease of this process. Dropping it leaves the file: only [`Lease::end`]
/// says that the machine is gone.
#[derive(Debug)]
pub struct Lease {
    record: LeaseRecord,
    file: File,
    path: PathBuf,
    folder: PathBuf,
}

impl Lease {
    /// What it says.
    pub fn record(&self) -> &LeaseRecord {
        &self.record
    }

    /// The folder of the launch, of this user only. It may not be there yet.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Says something else; durable when this returns.
    ///
    /// # Errors
    /// [`StoreError::Io`]; it then says what it said.
    pub fn update(&mut self, store: &Store, change: impl FnOnce(&mut LeaseRecord)) -> Result<()> {
        let mut record = self.record.clone();
        change(&mut record);
        let (file, temp) = write_locked(store, &record)?;
        fsio::rename(&temp, &self.path)?;
        lock::release(&self.file);
        (self.record, self.file) = (record, file);
        Ok(())
    }

    /// A new file in [`Lease::folder`], which is made if need be. Nobody but
    /// this user can open it, from the start.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn create_private(&self, name: &str) -> Result<File> {
        let folder = StoreError::io("create", &self.folder);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder).map_err(folder)?;
        let path = self.folder.join(name);
        let mut options = File::options();
        options.create_new(true).read(true).append(true).mode(0o600);
        options.open(&path).map_err(StoreError::io("create", &path))
    }

    /// Removes it, and the launch's folder. The machine must be gone.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn end(self) -> Result<()> {
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::io("remove", &self.folder)(error));
            }
            _ => {}
        }
        // Still locked: whoever waits for the lock finds another file, or none.
        fs::remove_file(&self.path).map_err(StoreError::io("remove", &self.path))?;
        self.path.parent().map_or(Ok(()), fsio::sync_dir)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        lock::release(&self.file);
    }
}

impl Store {
    /// Writes a lease; durable when this returns. `None`: there is one of that
    /// name. The artifact's use lock must be held, so that nothing collects it
    /// in between.
    ///
    /// # Errors
    /// [`StoreError::Io`]; [`StoreError::Damaged`] if the machine's name is none.
    pub fn lease(&self, new: NewLease) -> Result<Option<Lease>> {
        let path = self.lease_path(&new.machine)?;
        let holder = lock::Holder::me();
        let record = LeaseRecord {
            schema: LeaseRecord::SCHEMA,
            machine: new.machine,
            artifact: new.artifact,
            place: new.place,
            pid: holder.pid,
            since: holder.since,
            kept: false,
            ended: None,
            launch: new.launch,
        };
        let (file, temp) = write_locked(self, &record)?;
        fsio::create_dirs(&self.leases_dir())?;
        // Not by rename, which would replace another launch's.
        match fs::hard_link(&temp, &path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
            Err(error) => return Err(StoreError::io("write", &path)(error)),
        }
        // The other name goes with this process's folder, if not now.
        let _ = fs::remove_file(&temp);
        fsio::sync_dir(&self.leases_dir())?;
        let folder = self.launch_dir(&record.machine);
        Ok(Some(Lease { record, file, path, folder }))
    }

    /// Every lease that can be read, by the machines' names.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the folder cannot be read.
    pub fn leases(&self) -> Result<Vec<SeenLease>> {
        let mut seen = Vec::new();
        for path in list(&self.leases_dir())? {
            if let Ok(Some(record)) = fsio::read_sealed::<LeaseRecord>(&path, LeaseRecord::SCHEMA) {
                // Looked at without any wait: what is locked has its launcher.
                let attended = lock::is_locked(&path);
                seen.push(SeenLease { record, attended });
            }
        }
        Ok(seen)
    }

    /// The lease of this machine, if its launcher is gone: now this process's.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if the machine's name is none.
    pub fn orphaned_lease(&self, machine: &str) -> Result<Option<Lease>> {
        Ok(self.orphan(&self.lease_path(machine)?))
    }

    /// What the launch of a machine has on this disk.
    pub fn launch_dir(&self, machine: &str) -> PathBuf {
        self.root().join("launches").join(machine)
    }

    fn lease_path(&self, machine: &str) -> Result<PathBuf> {
        let path = self.leases_dir().join(format!("{machine}.json"));
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if machine.is_empty() || !machine.bytes().all(plain) {
            let problem = "it would not be the name of a machine".into();
            return Err(StoreError::Damaged { path, problem });
        }
        Ok(path)
    }

    /// What a lease file says; `None` if it is gone.
    pub(crate) fn lease_at(&self, path: &Path) -> Result<Option<LeaseRecord>> {
        fsio::read_sealed(path, LeaseRecord::SCHEMA)
    }

    pub(crate) fn leases_dir(&self) -> PathBuf {
        self.root().join("leases")
    }

    fn orphan(&self, path: &Path) -> Option<Lease> {
        let file = File::options().read(true).write(true).open(path).ok()?;
        if !matches!(lock::try_exclusive(&file), Ok(true)) {
            return None;
        }
        // Its owner may have removed or replaced it between the two calls.
        let record = same_file(&file, path).then(|| fsio::read_sealed(path, LeaseRecord::SCHEMA));
        match record {
            Some(Ok(Some(record))) => {
                let record: LeaseRecord = record;
                let folder = self.launch_dir(&record.machine);
                Some(Lease { record, file, path: path.to_owned(), folder })
            }
            _ => {
                lock::release(&file);
                None
            }
        }
    }
}

/// Writes a record to a temporary file and locks that, before it has its name:
/// nobody ever sees it without its owner.
fn write_locked(store: &Store, record: &LeaseRecord) -> Result<(File, PathBuf)> {
    let scratch = store.scratch()?;
    let temp = fsio::unused_name(&scratch, "lease");
    fsio::write_sealed(&scratch, &temp, record)?;
    let file = writable(&temp).map_err(StoreError::io("open", &temp))?;
    if !lock::try_exclusive(&file).map_err(StoreError::io("lock", &temp))? {
        let problem = "a new file is locked by somebody else".into();
        return Err(StoreError::Damaged { path: temp, problem });
    }
    Ok((file, temp))
}

/// Opened for writing: some file systems give an exclusive lock only then.
fn writable(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))?;
    File::options().read(true).write(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::OpenOptions;

    fn new(machine: &str) -> NewLease {
        let launch = serde_json::json!({ "agent": "a" });
        NewLease { machine: machine.into(), artifact: "key".into(), place: "here".into(), launch }
    }

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("c"), OpenOptions::default()).unwrap();
        (dir, store)
    }

    #[test]
    fn a_lease_is_an_orphan_only_when_its_owner_is_gone_and_gone_when_ended() {
        let (_dir, store) = store();
        let lease = store.lease(new("m-1")).unwrap().unwrap();
        assert_eq!((lease.record().machine.as_str(), lease.record().pid), ("m-1", std::process::id()));
        assert!(store.orphaned_lease("m-1").unwrap().is_none());
        drop(lease);
        let orphan = store.orphaned_lease("m-1").unwrap().unwrap();
        // Ours now: nobody else takes it too.
        assert!(store.orphaned_lease("m-1").unwrap().is_none());
        orphan.end().unwrap();
        assert!(store.orphaned_lease("m-1").unwrap().is_none());
        assert_eq!(fs::read_dir(store.leases_dir()).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_lease_is_left_alone_and_a_name_that_is_a_path_is_refused() {
        let (_dir, store) = store();
        drop(store.lease(new("m")).unwrap().unwrap());
        let path = store.leases_dir().join("m.json");
        let scratch = store.scratch().unwrap();
        fsio::write_atomic(&scratch, &path, b"{}").unwrap();
        assert!(store.orphaned_lease("m").unwrap().is_none() && store.leases().unwrap().is_empty());
        assert!(path.exists());
        for name in ["", "../m", "a/b", "a.b"] {
            assert!(store.lease(new(name)).is_err(), "{name}");
        }
    }

    #[test]
    fn a_name_is_one_launchs_and_an_update_keeps_the_owner() {
        let (_dir, store) = store();
        let mut lease = store.lease(new("m")).unwrap().unwrap();
        assert!(store.lease(new("m")).unwrap().is_none(), "the name is taken");
        lease.update(&store, |record| (record.kept, record.ended) = (true, Some(3))).unwrap();
        let seen = store.leases().unwrap();
        assert_eq!(seen.len(), 1);
        assert!(seen[0].attended && seen[0].record.kept && seen[0].record.ended == Some(3));
        assert_eq!(seen[0].record.launch["agent"], "a");
        assert!(store.orphaned_lease("m").unwrap().is_none());
        drop(lease);
        assert!(!store.leases().unwrap()[0].attended);
        let lease = store.orphaned_lease("m").unwrap().unwrap();
        assert!(store.leases().unwrap()[0].attended && store.orphaned_lease("m").unwrap().is_none());
        lease.end().unwrap();
        assert!(store.leases().unwrap().is_empty() && store.orphaned_lease("m").unwrap().is_none());
    }

    #[test]
    fn a_launchs_files_are_its_users_only_and_go_with_the_lease() {
        use std::os::unix::fs::MetadataExt;
        let (_dir, store) = store();
        let lease = store.lease(new("m")).unwrap().unwrap();
        let file = lease.create_private("prompt").unwrap();
        assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(lease.folder()).unwrap().mode() & 0o777, 0o700);
        assert!(lease.create_private("prompt").is_err(), "there is one");
        let folder = lease.folder().to_owned();
        lease.end().unwrap();
        assert!(!folder.exists());
    }

    #[test]
    fn a_lease_of_the_first_version_is_understood() {
        let (_dir, store) = store();
        let old = serde_json::json!({
            "schema": 1, "machine": "m", "artifact": "key", "place": "here", "pid": 1, "since": 2,
        });
        let path = store.leases_dir().join("m.json");
        fsio::write_sealed(&store.scratch().unwrap(), &path, &old).unwrap();
        let lease = store.orphaned_lease("m").unwrap().unwrap();
        assert!(!lease.record().kept && lease.record().launch.is_null());
    }
}
