//! Machines: the `.smolmachine` artifacts, found by image and recipe.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::bucket::Bucket;
use crate::digest::Digest;
use crate::error::{Result, StoreError};
use crate::fsio;
use crate::lock::BuildLock;
use crate::parallel;
use crate::report::Reporter;
use crate::root::Store;
use crate::stat::StatSeal;

/// The name of an artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MachineKey {
    /// The image ID: the SHA-256 of the image's config JSON.
    pub image: Digest,
    /// The SHA-256 of the canonical JSON of everything else that shapes it.
    pub recipe: Digest,
}

impl MachineKey {
    /// The key's name among the locks.
    pub fn lock_name(&self) -> String {
        format!("{}-{}", self.image.hex(), self.recipe.hex())
    }
}

impl fmt::Display for MachineKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.image.short(), self.recipe.short())
    }
}

/// What made an artifact and what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineReceipt {
    /// The format of this receipt: [`MachineReceipt::SCHEMA`].
    pub schema: u64,
    /// The image ID.
    pub image: Digest,
    /// The recipe: [`MachineReceipt::recipe_of`] the inputs.
    pub recipe: Digest,
    /// Every input but the image, by name and value.
    pub inputs: BTreeMap<String, Value>,
    /// The artifact's size in bytes.
    pub size: u64,
    /// The artifact's SHA-256: what is verified.
    pub sha256: Digest,
    /// The agent that it was first built for. For people.
    pub agent: String,
    /// When it was built: seconds since 1970. Ranks, never decides.
    pub built_at: u64,
    /// How long packing took, in milliseconds.
    pub millis: u64,
}

impl MachineReceipt {
    /// The newest format known.
    pub const SCHEMA: u64 = 1;

    /// The recipe of a set of inputs: the SHA-256 of them as JSON with sorted
    /// keys and no white space.
    pub fn recipe_of(inputs: &BTreeMap<String, Value>) -> Digest {
        let object: serde_json::Map<_, _> = inputs.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        Digest::of(Value::Object(object).to_string().as_bytes())
    }

    /// The artifact's key.
    pub fn key(&self) -> MachineKey {
        MachineKey { image: self.image, recipe: self.recipe }
    }
}

/// An artifact that is whole.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Where it is, absolute.
    pub path: PathBuf,
    /// Its receipt.
    pub receipt: MachineReceipt,
}

/// An artifact, as a list has it: nothing of it was verified.
#[derive(Debug, Clone)]
pub struct UsedMachine {
    /// The artifact.
    pub machine: Machine,
    /// When it was last used; 1970 if that is not known.
    pub used: SystemTime,
}

/// The same in short: what a list of thousands shows.
#[derive(Debug, Clone)]
pub struct ListedMachine {
    /// Its key.
    pub key: MachineKey,
    /// Where it is.
    pub path: PathBuf,
    /// The agent that it was first built for.
    pub agent: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its SHA-256, by its receipt.
    pub sha256: Digest,
    /// When it was built: seconds since 1970.
    pub built_at: u64,
    /// When it was last used; 1970 if that is not known.
    pub used: SystemTime,
    /// Its allocated bytes; 0 if it is not there.
    pub allocated: u64,
}

/// A receipt without its inputs, which are most of it.
#[derive(Deserialize)]
pub(crate) struct ReceiptHead {
    image: Digest,
    recipe: Digest,
    size: u64,
    pub(crate) sha256: Digest,
    pub(crate) agent: String,
    built_at: u64,
}

/// All artifacts.
#[derive(Debug, Default)]
pub struct MachineList {
    /// Those with a receipt, most recently used first.
    pub machines: Vec<UsedMachine>,
    /// What is wrong with receipts that cannot be read.
    pub broken: Vec<StoreError>,
}

/// What looking for an artifact found.
#[derive(Debug)]
pub enum Lookup {
    /// It is there and whole.
    Hit(Box<Machine>),
    /// It is not there.
    Miss,
    /// It is there, and must not be used.
    Damaged {
        /// What is wrong.
        problem: String,
    },
}

impl Store {
    /// Looks for an artifact. A hit costs a few system calls: the whole file
    /// is hashed only when its stat seal does not fit, or when `full` asks.
    ///
    /// # Errors
    /// [`StoreError::Newer`], [`StoreError::Io`]. Damage is no error: see
    /// [`Lookup::Damaged`].
    pub fn machine(&self, key: &MachineKey, full: bool) -> Result<Lookup> {
        self.machine_hashed_by(key, full, &Digest::of_file)
    }

    /// What [`Store::machine`] does, with another's way of hashing a file.
    pub(crate) fn machine_hashed_by(
        &self,
        key: &MachineKey,
        full: bool,
        hash: &dyn Fn(&Path) -> std::io::Result<Digest>,
    ) -> Result<Lookup> {
        let files = Files::of(self, key);
        let receipt = match fsio::read_sealed::<MachineReceipt>(&files.receipt, MachineReceipt::SCHEMA) {
            Ok(Some(receipt)) => receipt,
            Ok(None) => return Ok(Lookup::Miss),
            Err(StoreError::Damaged { problem, .. }) => {
                return Ok(Lookup::Damaged { problem: format!("its receipt is damaged: {problem}") });
            }
            Err(error) => return Err(error),
        };
        if receipt.key() != *key || MachineReceipt::recipe_of(&receipt.inputs) != key.recipe {
            return Ok(Lookup::Damaged { problem: "its receipt is another artifact's".into() });
        }
        let metadata = match fs::symlink_metadata(&files.artifact) {
            Ok(metadata) if metadata.is_file() => metadata,
            Ok(_) => return Ok(Lookup::Damaged { problem: "it is no file".into() }),
            // Deleted by hand, which is allowed: there is nothing to save.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Lookup::Miss),
            Err(error) => return Err(StoreError::io("look at", &files.artifact)(error)),
        };
        if metadata.len() != receipt.size {
            let problem = format!("it has {} bytes, its receipt says {}", metadata.len(), receipt.size);
            return Ok(Lookup::Damaged { problem });
        }
        // A damaged or newer seal is as good as none.
        let seal = fsio::read_sealed::<StatSeal>(&files.stat, StatSeal::SCHEMA).ok().flatten();
        let sealed = seal == Some(StatSeal::of(&metadata));
        if full || !sealed {
            let actual = hash(&files.artifact).map_err(StoreError::io("read", &files.artifact))?;
            if actual != receipt.sha256 {
                let problem = format!("its bytes have {actual}, its receipt says {}", receipt.sha256);
                return Ok(Lookup::Damaged { problem });
            }
            // A store that cannot be written still serves hits, only slower. A
            // seal that fits stays: its time is the artifact's last use. The facts
            // are those from before the hashing: what changed since fits no seal.
            if !sealed && let Ok(scratch) = self.scratch() {
                let _ = fsio::write_sealed(&scratch, &files.stat, &StatSeal::of(&metadata));
            }
        }
        Ok(Lookup::Hit(Box::new(Machine { path: files.artifact, receipt })))
    }

    /// Publishes a written artifact, then its receipt, then its stat seal.
    /// Until the receipt is there, nothing finds the artifact.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn publish_machine(&self, file: &fs::File, temp: &Path, receipt: MachineReceipt) -> Result<Machine> {
        let files = Files::of(self, &receipt.key());
        fsio::publish_file(file, temp, &files.artifact)?;
        fsio::write_sealed(&self.scratch()?, &files.receipt, &receipt)?;
        self.seal(&files)?;
        Ok(Machine { path: files.artifact, receipt })
    }

    /// Moves what there is of an artifact to quarantine, with a note that says
    /// why; where it is then. The lock is the key's.
    ///
    /// # Errors
    /// [`StoreError::Io`] if a file cannot be moved.
    pub fn quarantine_machine(&self, key: &MachineKey, problem: &str, _: &BuildLock) -> Result<PathBuf> {
        let files = Files::of(self, key);
        // The receipt first: without it nothing finds the rest.
        self.quarantine(&[files.receipt, files.stat, files.artifact], problem)
    }

    /// Moves an artifact to quarantine if it is damaged, which is looked at again
    /// under its build lock: another may have replaced it. What was wrong with
    /// it. Nothing of the key may be locked by the caller.
    ///
    /// # Errors
    /// [`StoreError::LockTimeout`], [`StoreError::Newer`], [`StoreError::Io`].
    pub fn quarantine_if_damaged(
        &self,
        key: &MachineKey,
        full: bool,
        reporter: &dyn Reporter,
    ) -> Result<Option<String>> {
        let lock = self.lock_build(&key.lock_name(), reporter)?;
        match self.machine(key, full)? {
            Lookup::Hit(_) | Lookup::Miss => Ok(None),
            Lookup::Damaged { problem } => {
                self.quarantine_machine(key, &problem, &lock)?;
                Ok(Some(problem))
            }
        }
    }

    /// Notes that an artifact was used just now: the modification time of its
    /// stat seal, without any fsync. Only ranks entries for gc.
    pub fn touch_machine(&self, key: &MachineKey) {
        let files = Files::of(self, key);
        if let Ok(file) = fs::File::open(files.stat) {
            let _ = file.set_modified(SystemTime::now());
        }
    }

    /// All artifacts that have a receipt.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the folder cannot be listed.
    pub fn machines(&self) -> Result<MachineList> {
        let mut found = MachineList::default();
        for read in self.each_receipt(|path, receipt: MachineReceipt| {
            let machine = Machine { path: path.with_extension("smolmachine"), receipt };
            UsedMachine { machine, used: last_use(path) }
        })? {
            match read {
                Ok(machine) => found.machines.push(machine),
                Err(error) => found.broken.push(error),
            }
        }
        found.machines.sort_by(|a, b| b.used.cmp(&a.used).then_with(|| a.machine.path.cmp(&b.machine.path)));
        Ok(found)
    }

    /// The same in short, and the receipts that cannot be read; most recently
    /// used first.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the folder cannot be listed.
    pub fn list_machines(&self) -> Result<(Vec<ListedMachine>, Vec<StoreError>)> {
        let (mut machines, mut broken) = (Vec::new(), Vec::new());
        for read in self.each_receipt(|path, head: ReceiptHead| {
            let artifact = path.with_extension("smolmachine");
            let allocated = fs::symlink_metadata(&artifact).map_or(0, |m| crate::gc::allocated(&m));
            ListedMachine {
                key: MachineKey { image: head.image, recipe: head.recipe },
                path: artifact,
                agent: head.agent,
                size: head.size,
                sha256: head.sha256,
                built_at: head.built_at,
                used: last_use(path),
                allocated,
            }
        })? {
            match read {
                Ok(machine) => machines.push(machine),
                Err(error) => broken.push(error),
            }
        }
        machines.sort_by(|a, b| b.used.cmp(&a.used).then_with(|| a.path.cmp(&b.path)));
        Ok((machines, broken))
    }

    /// Reads every receipt, on all cores.
    fn each_receipt<R: DeserializeOwned, T: Send>(
        &self,
        make: impl Fn(&Path, R) -> T + Sync,
    ) -> Result<Vec<Result<T>>> {
        let folders = list(&self.bucket_dir(Bucket::Machines))?;
        let read = |path: PathBuf| {
            let receipt = fsio::read_sealed::<R>(&path, MachineReceipt::SCHEMA).transpose()?;
            Some(receipt.map(|receipt| make(&path, receipt)))
        };
        let is_receipt = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "json");
        let read = parallel::map(&folders, |folder| -> Result<Vec<Result<T>>> {
            Ok(list(folder)?.into_iter().filter(is_receipt).filter_map(read).collect())
        });
        Ok(read.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    fn seal(&self, files: &Files) -> Result<()> {
        let metadata =
            fs::symlink_metadata(&files.artifact).map_err(StoreError::io("examine", &files.artifact))?;
        fsio::write_sealed(&self.scratch()?, &files.stat, &StatSeal::of(&metadata))
    }
}

/// When the artifact of a receipt was last used.
fn last_use(receipt: &Path) -> SystemTime {
    let stat = fs::metadata(receipt.with_extension("stat"));
    stat.and_then(|metadata| metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// The files of one artifact.
pub(crate) struct Files {
    pub(crate) artifact: PathBuf,
    pub(crate) receipt: PathBuf,
    pub(crate) stat: PathBuf,
}

impl Files {
    pub(crate) fn of(store: &Store, key: &MachineKey) -> Self {
        let dir = store.bucket_dir(Bucket::Machines).join(key.image.hex());
        let recipe = key.recipe.hex();
        Self {
            artifact: dir.join(format!("{recipe}.smolmachine")),
            receipt: dir.join(format!("{recipe}.json")),
            stat: dir.join(format!("{recipe}.stat")),
        }
    }
}

/// The entries of a folder, sorted; none if there is no such folder.
pub(crate) fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error)
            if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) =>
        {
            return Ok(paths);
        }
        Err(error) => return Err(StoreError::io("list", dir)(error)),
    };
    for entry in entries {
        paths.push(entry.map_err(StoreError::io("list", dir))?.path());
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OpenOptions;
    use std::io::{Seek, SeekFrom, Write};
    use std::os::unix::fs::PermissionsExt;

    fn store(dir: &Path) -> Store {
        Store::open(&dir.join("c"), OpenOptions::default()).unwrap()
    }

    fn publish(store: &Store, bytes: &[u8]) -> Machine {
        let inputs = BTreeMap::from([("cpus".to_owned(), Value::from(2))]);
        let receipt = MachineReceipt {
            schema: MachineReceipt::SCHEMA,
            image: Digest::of(b"config"),
            recipe: MachineReceipt::recipe_of(&inputs),
            inputs,
            size: bytes.len() as u64,
            sha256: Digest::of(bytes),
            agent: "a".into(),
            built_at: 0,
            millis: 1,
        };
        let temp = store.temp_dir().unwrap();
        let path = temp.path().join("x");
        let mut file = fsio::create_new(&path).unwrap();
        file.write_all(bytes).unwrap();
        store.publish_machine(&file, &path, receipt).unwrap()
    }

    fn is_hit(store: &Store, key: &MachineKey) -> bool {
        matches!(store.machine(key, false).unwrap(), Lookup::Hit(_))
    }

    #[test]
    fn a_published_machine_is_a_hit_and_read_only() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let machine = publish(&store, b"bytes");
        let key = machine.receipt.key();
        assert!(is_hit(&store, &key));
        assert_eq!(fs::metadata(&machine.path).unwrap().permissions().mode() & 0o777, 0o444);
        assert!(machine.path.ends_with(format!(
            "machines-v1/{}/{}.smolmachine",
            key.image.hex(),
            key.recipe.hex()
        )));
        assert_eq!(store.machines().unwrap().machines.len(), 1);
    }

    #[test]
    fn a_flipped_bit_a_cut_tail_and_a_lost_file_are_found_before_use() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        for damage in 0..3 {
            let machine = publish(&store, b"0123456789");
            let key = machine.receipt.key();
            fs::set_permissions(&machine.path, fs::Permissions::from_mode(0o644)).unwrap();
            let mut file = fs::File::options().write(true).open(&machine.path).unwrap();
            match damage {
                0 => {
                    file.seek(SeekFrom::Start(3)).unwrap();
                    file.write_all(b"#").unwrap();
                }
                1 => file.set_len(9).unwrap(),
                _ => fs::remove_file(&machine.path).unwrap(),
            }
            match (damage, store.machine(&key, false).unwrap()) {
                // Deleting it by hand is allowed, and no damage.
                (2, Lookup::Miss) | (0 | 1, Lookup::Damaged { .. }) => {}
                (damage, found) => panic!("damage {damage}: {found:?}"),
            }
            let lock = store.lock_build(&key.lock_name(), &crate::Quiet).unwrap();
            store.quarantine_machine(&key, "a test", &lock).unwrap();
            assert!(matches!(store.machine(&key, false).unwrap(), Lookup::Miss));
        }
    }

    #[test]
    fn a_changed_stat_with_the_same_bytes_is_hashed_once_and_sealed_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let machine = publish(&store, b"bytes");
        let key = machine.receipt.key();
        fs::set_permissions(&machine.path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(is_hit(&store, &key));
        let files = Files::of(&store, &key);
        let sealed: StatSeal = fsio::read_sealed(&files.stat, StatSeal::SCHEMA).unwrap().unwrap();
        assert_eq!(sealed, StatSeal::of(&fs::metadata(&machine.path).unwrap()));
    }

    #[test]
    fn an_artifact_without_a_receipt_is_a_miss() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let machine = publish(&store, b"bytes");
        let key = machine.receipt.key();
        fs::remove_file(Files::of(&store, &key).receipt).unwrap();
        assert!(matches!(store.machine(&key, false).unwrap(), Lookup::Miss));
    }

    #[test]
    fn a_receipt_moved_to_another_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let machine = publish(&store, b"bytes");
        let key = machine.receipt.key();
        let other = MachineKey { image: Digest::of(b"other"), ..key };
        let (from, to) = (Files::of(&store, &key), Files::of(&store, &other));
        fsio::rename(&from.receipt, &to.receipt).unwrap();
        fsio::rename(&from.artifact, &to.artifact).unwrap();
        assert!(matches!(store.machine(&other, false).unwrap(), Lookup::Damaged { .. }));
    }
}
