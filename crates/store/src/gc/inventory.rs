//! What is in the store, as far as collecting it is concerned.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::bucket::Bucket;
use crate::digest::Digest;
use crate::error::{Result, StoreError};
use crate::find::hex_name;
use crate::gc::pushed::PushedEntry;
use crate::machines::{MachineKey, MachineReceipt, ReceiptHead, list};
use crate::parallel;
use crate::root::Store;
use crate::stage::StageReceipt;
use crate::{fsio, lock};

/// The file system that the store is on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Disk {
    /// Bytes in all.
    pub total: u64,
    /// Bytes that its user may still fill.
    pub available: u64,
}

/// Why an entry must not be collected.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Root {
    /// A person wants it kept.
    Pinned,
    /// A machine was made from it and may still be there.
    Leased {
        /// The machine's name.
        machine: String,
    },
    /// A process uses it just now.
    InUse,
    /// It is among the last of an agent's.
    Last {
        /// The agent's name.
        agent: String,
    },
    /// It cannot be told whether a machine was made from it: a lease cannot be
    /// read.
    Unknown {
        /// The lease.
        lease: PathBuf,
    },
}

/// An artifact.
#[derive(Debug, Clone)]
pub struct MachineEntry {
    /// Its key.
    pub key: MachineKey,
    /// The agent that it was first built for; empty if its receipt is damaged.
    pub agent: String,
    /// Its SHA-256, by its receipt.
    pub sha256: Option<Digest>,
    /// Allocated bytes that go with it.
    pub allocated: u64,
    /// When it was last used.
    pub used: SystemTime,
    /// What holds it, the policy apart.
    pub roots: Vec<Root>,
}

/// What was taken in of an image: its receipts, and the blobs they name.
#[derive(Debug, Clone)]
pub struct ImageEntry {
    /// The image ID.
    pub image: Digest,
    /// Allocated bytes of the receipts.
    pub allocated: u64,
    /// The blobs that they name.
    pub blobs: BTreeSet<Digest>,
    /// When it was last used.
    pub used: SystemTime,
    /// Whether a process uses it just now.
    pub in_use: bool,
}

/// Something that is no entry, and that nothing trusts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loose {
    /// Which kind of thing.
    pub kind: LooseKind,
    /// The file or folder.
    pub path: PathBuf,
    /// Allocated bytes.
    pub allocated: u64,
    /// When it was last changed.
    pub changed: SystemTime,
}

/// What a loose thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LooseKind {
    /// Part of an artifact that has no receipt, or a receipt without artifact,
    /// from a run that was cut off; removed under this key's locks.
    LeftOver(MachineKey),
    /// A damaged entry, moved aside for a person to look at.
    Quarantined,
}

/// Everything that can be collected, and what the rest takes.
#[derive(Debug, Clone, Default)]
pub struct Inventory {
    /// The file system.
    pub disk: Disk,
    /// Artifacts with a receipt.
    pub machines: Vec<MachineEntry>,
    /// Images that were taken in.
    pub images: Vec<ImageEntry>,
    /// What was pushed.
    pub pushed: Vec<PushedEntry>,
    /// Allocated bytes of every blob.
    pub blobs: BTreeMap<Digest, u64>,
    /// What nothing trusts.
    pub loose: Vec<Loose>,
    /// Allocated bytes of what is never collected: runtimes, leases, pointers.
    pub fixed: u64,
    /// Receipts that cannot be read, being of a newer version or for want of a
    /// permission, say: blobs that they may name are not collected.
    pub opaque: Vec<PathBuf>,
}

impl Inventory {
    /// Allocated bytes of the whole store.
    pub fn allocated(&self) -> u64 {
        self.machines.iter().map(|machine| machine.allocated).sum::<u64>()
            + self.images.iter().map(|image| image.allocated).sum::<u64>()
            + self.pushed.iter().map(|pushed| pushed.allocated).sum::<u64>()
            + self.blobs.values().sum::<u64>()
            + self.loose.iter().map(|loose| loose.allocated).sum::<u64>()
            + self.fixed
    }
}

/// What the leases of a store hold.
pub(super) struct Leased {
    by_key: BTreeMap<String, Vec<String>>,
    unreadable: Option<PathBuf>,
}

impl Leased {
    pub(super) fn read(store: &Store) -> Result<Self> {
        let mut found = Self { by_key: BTreeMap::new(), unreadable: None };
        for path in list(&store.leases_dir())? {
            match store.lease_at(&path) {
                Ok(Some(record)) => found.by_key.entry(record.artifact).or_default().push(record.machine),
                Ok(None) => {}
                // It holds something; what, nobody knows.
                Err(_) => found.unreadable = Some(path),
            }
        }
        Ok(found)
    }

    pub(super) fn roots(&self, key: &MachineKey) -> Vec<Root> {
        let machines = self.by_key.get(&key.lock_name()).into_iter().flatten();
        let mut roots: Vec<_> = machines.map(|machine| Root::Leased { machine: machine.clone() }).collect();
        roots.extend(self.unreadable.iter().map(|lease| Root::Unknown { lease: lease.clone() }));
        roots
    }
}

impl Store {
    /// Looks at everything there is. Changes nothing and waits for nothing; what
    /// comes or goes meanwhile may be in it or not.
    ///
    /// # Errors
    /// [`StoreError::Io`] if a folder cannot be listed.
    pub fn inventory(&self) -> Result<Inventory> {
        let mut found = Inventory { disk: self.disk()?, ..Inventory::default() };
        self.take_in_machines(&mut found)?;
        self.take_in_images(&mut found)?;
        self.take_in_pushed(&mut found)?;
        for shard in list(&self.bucket_dir(Bucket::Blobs).join("sha256"))? {
            for path in list(&shard)? {
                if let (Some(digest), Ok(metadata)) = (hex_name(&path), fs::symlink_metadata(&path)) {
                    found.blobs.insert(digest, allocated(&metadata));
                }
            }
        }
        for path in list(&self.quarantine_dir())? {
            let changed = fs::symlink_metadata(&path).and_then(|metadata| metadata.modified());
            let changed = changed.unwrap_or(SystemTime::UNIX_EPOCH);
            let kind = LooseKind::Quarantined;
            found.loose.push(Loose { kind, allocated: allocated_tree(&path), path, changed });
        }
        let collected =
            [Bucket::Machines, Bucket::Images, Bucket::Registry, Bucket::Blobs].map(Bucket::folder);
        for path in list(self.root())? {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if !collected.contains(&name) && name != "quarantine" {
                found.fixed += allocated_tree(&path);
            }
        }
        Ok(found)
    }

    /// The file system that the store is on.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn disk(&self) -> Result<Disk> {
        let stat = rustix::fs::statvfs(self.root())
            .map_err(|error| StoreError::io("examine the file system of", self.root())(error.into()))?;
        Ok(Disk {
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
            available: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }

    /// Every digest that a receipt needs.
    pub(super) fn named_blobs(found: &Inventory) -> impl Iterator<Item = &Digest> {
        let images = found.images.iter().flat_map(|image| &image.blobs);
        images.chain(found.pushed.iter().flat_map(|pushed| &pushed.blobs))
    }

    fn take_in_machines(&self, found: &mut Inventory) -> Result<()> {
        let leased = Leased::read(self)?;
        let pins = self.pins()?;
        let folders = list(&self.bucket_dir(Bucket::Machines))?;
        let read = parallel::map(&folders, |dir| -> Result<Folder> {
            let Some(image) = hex_name(dir) else { return Ok(Folder::default()) };
            let mut folder = Folder::default();
            // The three files of an artifact, of which any may be missing.
            let mut files: BTreeMap<MachineKey, Vec<PathBuf>> = BTreeMap::new();
            for path in list(dir)? {
                let recipe = path.file_stem().and_then(|stem| Digest::from_hex(stem.to_str()?).ok());
                match (recipe, path.extension().and_then(|extension| extension.to_str())) {
                    (Some(recipe), Some("smolmachine" | "json" | "stat")) => {
                        files.entry(MachineKey { image, recipe }).or_default().push(path);
                    }
                    // Not ours to judge.
                    _ => folder.strange += allocated_tree(&path),
                }
            }
            let look = |(key, paths): (MachineKey, Vec<PathBuf>)| {
                let seen = self.look_at_machine(&key, &paths);
                (key, paths, seen)
            };
            folder.machines = files.into_iter().map(look).collect();
            Ok(folder)
        });
        let mut machines = Vec::new();
        for folder in read {
            let folder = folder?;
            found.fixed += folder.strange;
            machines.extend(folder.machines);
        }
        for (key, paths, seen) in machines {
            match seen {
                Seen::Machine { agent, sha256, allocated, used, in_use } => {
                    let mut roots = leased.roots(&key);
                    roots.extend(pins.contains(&key).then_some(Root::Pinned));
                    roots.extend(in_use.then_some(Root::InUse));
                    roots.sort();
                    found.machines.push(MachineEntry { key, agent, sha256, allocated, used, roots });
                }
                Seen::LeftOver => {
                    for path in paths {
                        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
                        let changed = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                        let (kind, allocated) = (LooseKind::LeftOver(key), allocated(&metadata));
                        found.loose.push(Loose { kind, path, allocated, changed });
                    }
                }
                Seen::Opaque(path) => {
                    found.fixed += paths.iter().map(|path| allocated_tree(path)).sum::<u64>();
                    found.opaque.push(path);
                }
            }
        }
        Ok(())
    }

    fn look_at_machine(&self, key: &MachineKey, paths: &[PathBuf]) -> Seen {
        let of = |extension: &str| paths.iter().find(|path| path.extension().is_some_and(|e| e == extension));
        let (Some(artifact), Some(receipt)) = (of("smolmachine"), of("json")) else { return Seen::LeftOver };
        let (agent, sha256) = match fsio::read_sealed::<ReceiptHead>(receipt, MachineReceipt::SCHEMA) {
            Ok(Some(receipt)) => (receipt.agent, Some(receipt.sha256)),
            // Damaged: nothing trusts it, and `verify` names it. Until then it is
            // an artifact of nobody's, that goes as all others do.
            Ok(None) | Err(StoreError::Damaged { .. }) => (String::new(), None),
            // Newer, or it cannot be read just now: it may say anything.
            Err(_) => return Seen::Opaque(receipt.clone()),
        };
        let size = |path: &Path| fs::symlink_metadata(path).map_or(0, |metadata| allocated(&metadata));
        let used = of("stat").unwrap_or(artifact);
        Seen::Machine {
            agent,
            sha256,
            allocated: paths.iter().map(|path| size(path)).sum(),
            used: fs::metadata(used).and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH),
            in_use: lock::is_held_at(&self.lock_path("use", &key.lock_name()))
                || lock::is_held_at(&self.lock_path("build", &key.lock_name())),
        }
    }

    pub(super) fn take_in_images(&self, found: &mut Inventory) -> Result<()> {
        let folders = list(&self.bucket_dir(Bucket::Images))?;
        let read = parallel::map(&folders, |dir| -> Result<Option<(ImageEntry, Vec<PathBuf>)>> {
            let Some(image) = hex_name(dir) else { return Ok(None) };
            let mut entry = ImageEntry {
                image,
                allocated: 0,
                blobs: BTreeSet::new(),
                used: SystemTime::UNIX_EPOCH,
                in_use: lock::is_held_at(&self.lock_path("build", &image.hex()))
                    || lock::is_held_at(&self.lock_path("use", &image.hex())),
            };
            let mut opaque = Vec::new();
            for path in list(dir)? {
                if let Ok(metadata) = fs::symlink_metadata(&path) {
                    entry.allocated += allocated(&metadata);
                    entry.used = entry.used.max(metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH));
                }
                match fsio::read_sealed::<StageReceipt>(&path, StageReceipt::SCHEMA) {
                    Ok(Some(receipt)) => entry.blobs.extend(receipt.blobs.iter().map(|blob| blob.digest)),
                    // Damaged: nothing trusts what it names.
                    Ok(None) | Err(StoreError::Damaged { .. }) => {}
                    // Newer, or it cannot be read just now: it may name anything.
                    Err(_) => opaque.push(path),
                }
            }
            Ok(Some((entry, opaque)))
        });
        for read in read {
            let Some((entry, opaque)) = read? else { continue };
            if opaque.is_empty() {
                found.images.push(entry);
            } else {
                found.fixed += entry.allocated;
                found.opaque.extend(opaque);
            }
        }
        Ok(())
    }
}

/// What is in the folder of one image's artifacts.
#[derive(Default)]
struct Folder {
    machines: Vec<(MachineKey, Vec<PathBuf>, Seen)>,
    /// Allocated bytes of what belongs to none of them.
    strange: u64,
}

enum Seen {
    Machine { agent: String, sha256: Option<Digest>, allocated: u64, used: SystemTime, in_use: bool },
    LeftOver,
    Opaque(PathBuf),
}

/// The bytes that are free once the file is gone: none, if it has another name
/// elsewhere.
pub(crate) fn allocated(metadata: &Metadata) -> u64 {
    if metadata.nlink() > 1 && !metadata.is_dir() { 0 } else { metadata.blocks() * 512 }
}

/// The same for all that is under a path.
pub(crate) fn allocated_tree(path: &Path) -> u64 {
    let mut sum = 0;
    let mut pending = vec![path.to_owned()];
    while let Some(path) = pending.pop() {
        // Entries may vanish while we look; what is gone takes no space.
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.is_dir() {
            pending.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        } else {
            sum += allocated(&metadata);
        }
    }
    sum
}
