//! Carrying out a plan.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use crate::bucket::Bucket;
use crate::digest::Digest;
use crate::error::{Result, StoreError};
use crate::find::hex_name;
use crate::gc::inventory::{Leased, LooseKind, Root, allocated, allocated_tree};
use crate::gc::plan::{Entry, Plan, Removal};
use crate::lock::{self, Exclusive};
use crate::machines::{Files, MachineKey, list};
use crate::pushed::PushedKey;
use crate::report::Reporter;
use crate::root::Store;
use crate::{fsio, session};

/// How long blobs may be busy before they are left for another time. Whoever
/// publishes has that lock for moments, but one may follow the other.
const BLOBS: Duration = Duration::from_secs(2);

/// The only handle that deletes entries: one process has it at a time.
///
/// It waits for nobody who works: what is busy stays.
#[derive(Debug)]
pub struct Collector<'a> {
    store: &'a Store,
    _lock: Exclusive,
}

/// An entry that stayed, against the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spared {
    /// Which.
    pub entry: Entry,
    /// What holds it.
    pub roots: Vec<Root>,
}

/// What came of a plan.
#[derive(Debug, Default)]
pub struct Collected {
    /// What is gone.
    pub removed: Vec<Entry>,
    /// Allocated bytes of all that is gone.
    pub freed: u64,
    /// What stayed, being used meanwhile.
    pub spared: Vec<Spared>,
    /// What could not be removed, and why; `None` is the blobs that no receipt
    /// names.
    pub failed: Vec<(Option<Entry>, StoreError)>,
    /// Whether there was no time for all of it.
    pub cut_short: bool,
    /// Whether blobs were left because somebody was publishing some.
    pub blobs_busy: bool,
}

impl Store {
    /// Waits for the right to collect.
    ///
    /// # Errors
    /// [`StoreError::LockTimeout`], [`StoreError::GaveUp`], [`StoreError::Io`].
    pub fn collector(&self, reporter: &dyn Reporter) -> Result<Collector<'_>> {
        let path = self.lock_path("gc", "");
        let lock = lock::exclude(&path, "the right to collect", self.options().lock_timeout, reporter)?;
        self.collect_with(lock)
    }

    /// The right to collect, unless another process has it.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn try_collector(&self) -> Result<Option<Collector<'_>>> {
        lock::try_exclude(&self.lock_path("gc", ""))?.map(|lock| self.collect_with(lock)).transpose()
    }

    /// Whether nothing was collected for `interval`, by the clock. One system
    /// call: this is asked after every build.
    pub fn gc_is_due(&self, interval: Duration) -> bool {
        let last = fs::symlink_metadata(self.last_gc_path()).and_then(|metadata| metadata.modified());
        let Ok(last) = last else { return true };
        // A time far in the future is another clock's, and no reason to wait for it.
        let now = SystemTime::now();
        let since = now.duration_since(last).or_else(|_| last.duration_since(now)).unwrap_or_default();
        since >= interval
    }

    fn last_gc_path(&self) -> std::path::PathBuf {
        self.root().join("last-gc")
    }

    fn collect_with(&self, lock: Exclusive) -> Result<Collector<'_>> {
        // Sweeps what dead processes left, as everybody who writes does.
        self.scratch()?;
        fsio::create_dirs(&self.trash_dir())?;
        Ok(Collector { store: self, _lock: lock })
    }
}

impl Collector<'_> {
    /// Carries out a plan, until `deadline` if there is one, or until the reporter
    /// gives up. What cannot be removed keeps nothing else from going.
    pub fn carry_out(&self, plan: &Plan, deadline: Option<Instant>, reporter: &dyn Reporter) -> Collected {
        let mut done = Collected::default();
        let is_blob = |removal: &Removal| matches!(removal.entry, Entry::Blob(_));
        // What nothing can use goes first, should there be no time for the rest.
        if plan.remove.iter().any(is_blob) {
            self.try_orphans(&mut done);
        }
        let mut blobs = false;
        for removal in &plan.remove {
            if reporter.gives_up() || deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                done.cut_short = true;
                break;
            }
            let entry = removal.entry.clone();
            blobs |= matches!(entry, Entry::Image(_) | Entry::Pushed { .. });
            let result = match &entry {
                Entry::Machine(key) => self.remove_machine(key),
                Entry::Image(image) => self.remove_image(image),
                Entry::Pushed { key, touched, .. } => self.remove_pushed(key, *touched),
                Entry::Loose(LooseKind::LeftOver(key), path) => self.remove_left_over(key, path),
                Entry::Loose(LooseKind::Quarantined, path) => self.throw_away(&[path]).map(Ok),
                // All of them at once, above.
                Entry::Blob(_) => continue,
            };
            match result {
                Ok(Ok(freed)) => {
                    done.freed += freed;
                    done.removed.push(entry);
                }
                Ok(Err(roots)) => done.spared.push(Spared { entry, roots }),
                Err(error) => done.failed.push((Some(entry), error)),
            }
        }
        if blobs {
            self.try_orphans(&mut done);
        }
        self.note_time();
        done
    }

    fn try_orphans(&self, done: &mut Collected) {
        if let Err(error) = self.remove_orphans(done) {
            done.failed.push((None, error));
        }
    }

    /// Notes when this was: the time of the file `last-gc`. It only keeps the
    /// automatic collection from coming again too soon.
    fn note_time(&self) {
        let path = self.store.last_gc_path();
        let touched = fs::File::open(&path).is_ok_and(|file| file.set_modified(SystemTime::now()).is_ok());
        if !touched && let Ok(scratch) = self.store.scratch() {
            let _ = fsio::write_atomic(&scratch, &path, b"");
        }
    }

    /// Removes an artifact, if nothing holds it; the bytes freed, or what holds
    /// it.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn remove_machine(&self, key: &MachineKey) -> Result<Result<u64, Vec<Root>>> {
        let Some(_locks) = self.try_locks(&key.lock_name())? else { return Ok(Err(vec![Root::InUse])) };
        // Under the locks: whoever takes a lease or sets a pin has the use lock.
        let mut roots = Leased::read(self.store)?.roots(key);
        roots.extend(self.store.is_pinned(key).then_some(Root::Pinned));
        if !roots.is_empty() {
            return Ok(Err(roots));
        }
        let files = Files::of(self.store, key);
        // The receipt first: without it nothing finds the rest.
        let freed = self.throw_away(&[&files.receipt, &files.stat, &files.artifact])?;
        self.remove_empty(&files.artifact);
        Ok(Ok(freed))
    }

    fn remove_image(&self, image: &Digest) -> Result<Result<u64, Vec<Root>>> {
        let Some(_locks) = self.try_locks(&image.hex())? else { return Ok(Err(vec![Root::InUse])) };
        let dir = self.store.bucket_dir(Bucket::Images).join(image.hex());
        let freed = self.throw_away(&list(&dir)?)?;
        let _ = fs::remove_dir(dir);
        Ok(Ok(freed))
    }

    /// Removes a pushed manifest and the tags that name it, unless it was pushed
    /// or pulled since it was looked at.
    fn remove_pushed(&self, key: &PushedKey, touched: SystemTime) -> Result<Result<u64, Vec<Root>>> {
        let name = crate::pushed::lock_name(&key.repository);
        let Some(_locks) = self.try_locks(&name)? else { return Ok(Err(vec![Root::InUse])) };
        let files = self.store.files_of(key)?;
        let since =
            |path: &Path| fs::symlink_metadata(path).and_then(|m| m.modified()).is_ok_and(|at| at > touched);
        if files.iter().any(|path| since(path)) {
            return Ok(Err(vec![Root::InUse]));
        }
        // The tags first: none of them ever names what is gone.
        let freed = self.throw_away(&files)?;
        let _ = fs::remove_dir(self.store.repository_dir(&key.repository));
        Ok(Ok(freed))
    }

    fn remove_left_over(&self, key: &MachineKey, path: &Path) -> Result<Result<u64, Vec<Root>>> {
        let Some(_locks) = self.try_locks(&key.lock_name())? else { return Ok(Err(vec![Root::InUse])) };
        // Finished since it was seen?
        let files = Files::of(self.store, key);
        if files.receipt.exists() && files.artifact.exists() {
            return Ok(Err(vec![Root::InUse]));
        }
        let freed = self.throw_away(&[path])?;
        self.remove_empty(path);
        Ok(Ok(freed))
    }

    /// Removes every blob that no receipt names. Nobody publishes meanwhile.
    fn remove_orphans(&self, done: &mut Collected) -> Result<()> {
        let began = Instant::now();
        let lock = loop {
            match lock::try_exclude(&self.store.lock_path("blobs", ""))? {
                Some(lock) => break lock,
                None if began.elapsed() < BLOBS => std::thread::sleep(Duration::from_millis(20)),
                None => {
                    done.blobs_busy = true;
                    return Ok(());
                }
            }
        };
        let mut inventory = Default::default();
        self.store.take_in_images(&mut inventory)?;
        self.store.take_in_pushed(&mut inventory)?;
        if !inventory.opaque.is_empty() {
            return Ok(());
        }
        let named: BTreeSet<_> = Store::named_blobs(&inventory).collect();
        for shard in list(&self.store.bucket_dir(Bucket::Blobs).join("sha256"))? {
            for path in list(&shard)? {
                let Some(digest) = hex_name(&path) else { continue };
                if !named.contains(&digest) {
                    done.freed += self.take_away(&path)?;
                    done.removed.push(Entry::Blob(digest));
                }
            }
            let _ = fs::remove_dir(shard);
        }
        // Deleting may take longer than renaming did: others go on meanwhile.
        drop(lock);
        session::empty(&self.store.trash_dir());
        Ok(())
    }

    /// Both locks of a key; `None` if somebody has one of them.
    fn try_locks(&self, key: &str) -> Result<Option<(Exclusive, Exclusive)>> {
        let Some(build) = lock::try_exclude(&self.store.lock_path("build", key))? else { return Ok(None) };
        let read = lock::try_exclude(&self.store.lock_path("use", key))?;
        Ok(read.map(|read| (build, read)))
    }

    /// Takes files out of sight, in this order, and then deletes them.
    fn throw_away(&self, paths: &[impl AsRef<Path>]) -> Result<u64> {
        let mut freed = 0;
        for path in paths {
            freed += self.take_away(path.as_ref())?;
        }
        session::empty(&self.store.trash_dir());
        Ok(freed)
    }

    fn take_away(&self, path: &Path) -> Result<u64> {
        let bytes = match fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_dir() => allocated_tree(path),
            Ok(metadata) => allocated(&metadata),
            Err(_) => 0,
        };
        let gone = fsio::take_away(path, &self.store.trash_dir())?;
        Ok(if gone { bytes } else { 0 })
    }

    /// Removes the folder of a file, if there is nothing left in it.
    fn remove_empty(&self, file: &Path) {
        let _ = file.parent().map(fs::remove_dir);
    }
}
