//! Opening the store: where it is, whether it may be used, what it is made of.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::bucket::Bucket;
use crate::error::{Result, StoreError};
use crate::fsio;
use crate::lock::{self, BuildLock, Publishing, UseLock};
use crate::network::network_kind;
use crate::report::Reporter;
use crate::session::{Session, TempDir};

/// The format of the store as a whole, as `format.json` names it.
///
/// 1. The first.
pub const STORE_FORMAT: u64 = 1;

/// What CACHEDIR.TAG says, after the Cache Directory Tagging Specification
/// (bford.info/cachedir): back-up programs leave such a folder out.
const CACHEDIR_TAG: &[u8] = b"Signature: 8a477f597d28d172789f06886806bc55\n\
# This folder is a cache of smolcellar; cache-layout.md in its repository describes it.\n";

/// How to open a store.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// The longest wait for any one lock; `None` waits for ever.
    pub lock_timeout: Option<Duration>,
    /// Whether a file system that other machines may write to will do: locks
    /// may not hold there.
    pub allow_network: bool,
}

/// An open store.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    options: OpenOptions,
    session: Mutex<Option<Arc<Session>>>,
}

#[derive(Serialize, Deserialize)]
struct Format {
    schema: u64,
}

impl Store {
    /// Opens the store at `root`, making it if there is none.
    ///
    /// An existing store on a read-only file system opens too: hits work
    /// there, and the first write says why it cannot.
    ///
    /// # Errors
    /// [`StoreError::Root`] if the folder is a symlink, somebody else's, writable
    /// by everybody, or on a network file system; [`StoreError::Newer`] if a newer smolcellar
    /// wrote it; [`StoreError::Io`].
    pub fn open(root: &Path, options: OpenOptions) -> Result<Self> {
        let root = std::path::absolute(root).map_err(StoreError::io("find", root))?;
        let exists = check_root(&root)?;
        if !options.allow_network
            && let Some(kind) = network_kind(&root)
        {
            return Err(StoreError::Root {
                path: root,
                problem: format!("is on a network file system ({kind}), where locks may not hold"),
                remedy: "name a folder on a local disk with --cache-dir or SMOLCELLAR_CACHE_DIR, or say \
                         --allow-network-cache if only this machine uses it",
            });
        }
        let format = root.join("format.json");
        let store = Self { root, options, session: Mutex::new(None) };
        if exists && fsio::read_sealed::<Format>(&format, STORE_FORMAT)?.is_some() {
            return Ok(store);
        }
        if exists && !is_empty_or_ours(&store.root)? {
            return Err(StoreError::Root {
                path: store.root,
                problem: "holds files of something else".into(),
                remedy: "name an empty or a new folder with --cache-dir or SMOLCELLAR_CACHE_DIR",
            });
        }
        fsio::create_dirs(&store.locks_dir())?;
        let scratch = store.scratch()?;
        fsio::write_atomic(&scratch, &store.root.join("CACHEDIR.TAG"), CACHEDIR_TAG)?;
        fsio::write_sealed(&scratch, &format, &Format { schema: STORE_FORMAT })?;
        Ok(store)
    }

    /// The store's folder, absolute.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of a bucket. It may not exist yet.
    pub fn bucket_dir(&self, bucket: Bucket) -> PathBuf {
        self.root.join(bucket.folder())
    }

    /// Where damaged entries are moved, for a person to look at.
    pub fn quarantine_dir(&self) -> PathBuf {
        self.root.join("quarantine")
    }

    /// How many damaged entries lie in quarantine.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn quarantined(&self) -> Result<usize> {
        Ok(crate::machines::list(&self.quarantine_dir())?.len())
    }

    /// A private folder on the store's own file system, removed when dropped.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn temp_dir(&self) -> Result<TempDir> {
        self.session()?.temp_dir()
    }

    /// Where this process may put short-lived files of its own.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn scratch(&self) -> Result<PathBuf> {
        Ok(self.session()?.dir().to_owned())
    }

    /// Makes sure, as far as can be told, that `bytes` more fit on the store's
    /// file system: that `what` need not fail half-way.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`].
    pub fn need(&self, bytes: u64, what: &str) -> Result<()> {
        // A file system that does not say is not asked.
        let available = self.disk().map_or(u64::MAX, |disk| disk.available);
        if bytes <= available {
            return Ok(());
        }
        Err(StoreError::NoSpace { what: what.to_owned(), path: self.root.clone(), need: bytes, available })
    }

    /// Publishes a whole folder: fsync of all it holds, rename, fsync of the
    /// parent. A folder that was at `dest` goes to the trash.
    ///
    /// # Errors
    /// [`StoreError::Io`]; `dest` is then as it was, or gone.
    pub fn publish_dir(&self, temp: TempDir, dest: &Path) -> Result<()> {
        fsio::sync_tree(temp.path())?;
        if fs::symlink_metadata(dest).is_ok() {
            self.discard(dest)?;
        }
        fsio::rename(&temp.into_path(), dest)
    }

    /// Takes something out of sight at once and deletes it.
    ///
    /// # Errors
    /// [`StoreError::Io`] if it cannot be moved.
    pub fn discard(&self, path: &Path) -> Result<()> {
        let trash = self.trash_dir();
        fsio::rename(path, &fsio::unused_name(&trash, "discarded"))?;
        crate::session::empty(&trash);
        Ok(())
    }

    /// Waits for the right to build `key`, saying for whom.
    ///
    /// # Errors
    /// [`StoreError::LockTimeout`] after [`OpenOptions::lock_timeout`].
    pub fn lock_build(&self, key: &str, reporter: &dyn Reporter) -> Result<BuildLock> {
        lock::build(&self.lock_path("build", key), key, self.options.lock_timeout, reporter)
    }

    /// The right to build `key`, if nobody has it.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub(crate) fn try_lock_build(&self, key: &str) -> Result<Option<BuildLock>> {
        lock::try_build(&self.lock_path("build", key))
    }

    /// Waits for the right to read `key` undisturbed: until the lock is dropped,
    /// nothing of it is collected. Where the store cannot be written, nothing
    /// can be, and there is no lock to wait for.
    ///
    /// # Errors
    /// [`StoreError::LockTimeout`] after [`OpenOptions::lock_timeout`].
    pub fn lock_use(&self, key: &str, reporter: &dyn Reporter) -> Result<UseLock> {
        lock::share(&self.lock_path("use", key), key, self.options.lock_timeout, reporter)
    }

    /// Waits for the right to load the artifact `key` into an engine.
    ///
    /// # Errors
    /// [`StoreError::LockTimeout`] after [`OpenOptions::lock_timeout`].
    pub fn lock_load(&self, key: &str, reporter: &dyn Reporter) -> Result<BuildLock> {
        lock::build(&self.lock_path("load", key), key, self.options.lock_timeout, reporter)
    }

    /// Waits for the right to publish blobs, and receipts that name them. Take
    /// it as late, and have it for as short, as may be: while anybody has it, no
    /// blob can be collected.
    ///
    /// # Errors
    /// [`StoreError::LockTimeout`] after [`OpenOptions::lock_timeout`].
    pub fn publishing(&self, reporter: &dyn Reporter) -> Result<Publishing> {
        lock::publish(&self.lock_path("blobs", ""), self.options.lock_timeout, reporter)
    }

    /// The lock file of a kind for a key; for the whole store if that is empty.
    pub(crate) fn lock_path(&self, kind: &str, key: &str) -> PathBuf {
        let safe: String =
            key.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
        self.locks_dir().join(if safe.is_empty() { kind.to_owned() } else { format!("{kind}-{safe}") })
    }

    fn session(&self) -> Result<Arc<Session>> {
        // A panic while holding the mutex leaves a valid `Option` behind.
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = session.as_ref() {
            return Ok(Arc::clone(session));
        }
        let new = Arc::new(Session::begin(&self.root.join("tmp"), &self.trash_dir())?);
        *session = Some(Arc::clone(&new));
        Ok(new)
    }

    fn locks_dir(&self) -> PathBuf {
        self.root.join("locks")
    }

    pub(crate) fn options(&self) -> &OpenOptions {
        &self.options
    }

    pub(crate) fn trash_dir(&self) -> PathBuf {
        self.root.join("trash")
    }
}

/// Refuses a folder that would not keep what is put there; whether it exists.
fn check_root(root: &Path) -> Result<bool> {
    let refuse = |problem: String, remedy| Err(StoreError::Root { path: root.to_owned(), problem, remedy });
    let metadata = match fs::symlink_metadata(root) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(StoreError::io("examine", root)(error)),
    };
    if metadata.is_symlink() {
        let target = fs::canonicalize(root).map_or_else(|_| "nothing".into(), |p| p.display().to_string());
        return refuse(
            format!("is a symlink to {target}"),
            "name the real folder with --cache-dir or SMOLCELLAR_CACHE_DIR: two names for one store would lock it twice",
        );
    }
    if !metadata.is_dir() {
        return refuse("is not a folder".into(), "name a folder with --cache-dir or SMOLCELLAR_CACHE_DIR");
    }
    let me = rustix::process::geteuid();
    // Root may use anybody's: a container's root often meets a host user's folder.
    if !me.is_root() && metadata.uid() != me.as_raw() {
        return refuse(
            format!("belongs to user {}, not to you ({})", metadata.uid(), me.as_raw()),
            "name a folder of your own with --cache-dir or SMOLCELLAR_CACHE_DIR",
        );
    }
    let mode = metadata.permissions().mode();
    if mode & 0o002 != 0 {
        return refuse(
            format!("can be written by everybody (mode {:04o})", mode & 0o7777),
            "run `chmod o-w` on it, or name another one with --cache-dir",
        );
    }
    Ok(true)
}

/// Whether a folder without `format.json` is empty or a half-made store.
fn is_empty_or_ours(root: &Path) -> Result<bool> {
    for entry in fs::read_dir(root).map_err(StoreError::io("list", root))? {
        let name = entry.map_err(StoreError::io("list", root))?.file_name();
        // `format.json` too: another process may have made it since it was looked for.
        let ours = [
            "tmp",
            "trash",
            "locks",
            "leases",
            "launches",
            "pins",
            "CACHEDIR.TAG",
            "quarantine",
            "last-gc",
            "format.json",
        ];
        let bucket = Bucket::ALL.iter().any(|bucket| name == *bucket.folder());
        if !bucket && !ours.iter().any(|known| name == **known) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn open(path: &Path) -> Result<Store> {
        Store::open(path, OpenOptions::default())
    }

    #[test]
    fn a_new_store_is_tagged_as_a_cache_and_opens_again() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("cellar");
        drop(open(&root).unwrap());
        assert!(
            fs::read(root.join("CACHEDIR.TAG"))
                .unwrap()
                .starts_with(b"Signature: 8a477f597d28d172789f06886806bc55")
        );
        drop(open(&root).unwrap());
        assert_eq!(fs::read_dir(root.join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn a_symlink_a_file_and_a_world_writable_folder_are_refused_untouched() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real");
        fs::create_dir(&real).unwrap();
        let link = dir.path().join("link");
        symlink(&real, &link).unwrap();
        let error = open(&link).unwrap_err().to_string();
        assert!(error.contains("symlink") && error.contains("--cache-dir"), "{error}");
        fs::set_permissions(&real, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(open(&real).unwrap_err().to_string().contains("everybody"));
        assert_eq!(fs::read_dir(&real).unwrap().count(), 0);
        let file = dir.path().join("file");
        drop(fsio::create_new(&file).unwrap());
        assert!(open(&file).unwrap_err().to_string().contains("not a folder"));
    }

    #[test]
    fn a_store_from_the_future_is_refused_and_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("cellar");
        let store = open(&root).unwrap();
        fsio::write_sealed(&store.scratch().unwrap(), &root.join("format.json"), &Format { schema: 99 })
            .unwrap();
        drop(store);
        let before = fs::read(root.join("format.json")).unwrap();
        assert!(matches!(open(&root), Err(StoreError::Newer { found: 99, known: 1, .. })));
        assert_eq!(fs::read(root.join("format.json")).unwrap(), before);
    }

    #[test]
    fn a_folder_with_foreign_files_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(fsio::create_new(&dir.path().join("thesis.tex")).unwrap());
        assert!(open(dir.path()).unwrap_err().to_string().contains("something else"));
    }

    #[test]
    fn everything_of_a_stores_own_is_known_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir.path().join("cellar")).unwrap();
        let collector = store.collector(&crate::Quiet).unwrap();
        collector.carry_out(&crate::gc::Plan::default(), None, &crate::Quiet);
        let key = crate::MachineKey { image: crate::Digest::of(b"i"), recipe: crate::Digest::of(b"r") };
        store.pin(&key, &store.lock_use(&key.lock_name(), &crate::Quiet).unwrap()).unwrap();
        // As it looks to one who came while it was being made.
        fs::remove_file(store.root().join("format.json")).unwrap();
        open(store.root()).unwrap();
        let usage = store.usage().unwrap();
        assert!(usage.buckets.iter().all(|bucket| !bucket.purpose.contains("left alone")), "{usage:?}");
    }

    #[test]
    fn publishing_a_folder_replaces_the_old_one_whole() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir.path().join("cellar")).unwrap();
        let dest = store.bucket_dir(Bucket::Runtimes).join("x");
        for text in ["one", "two"] {
            let temp = store.temp_dir().unwrap();
            fsio::write_atomic(&store.scratch().unwrap(), &temp.path().join(text), b"").unwrap();
            store.publish_dir(temp, &dest).unwrap();
            let names: Vec<_> = fs::read_dir(&dest).unwrap().map(|e| e.unwrap().file_name()).collect();
            assert_eq!(names, [text]);
        }
    }
}
