//! Writing an export.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};

use smolcellar_store::{
    Bucket, Digest, Event, Lookup, MachineKey, Reporter, StageReceipt, Store, StoreError, UseLock, fsio,
};

use crate::copy::{TarWriter, Task};
use crate::error::{Result, TransferError};
use crate::format::{self, Header, ImageEntry, MachineEntry, REGISTRY, SCHEMA, StageEntry, TARBALL};

/// The task named in events.
const TASK: &str = "export";

/// An artifact that was exported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// Its key.
    pub key: MachineKey,
    /// The agent it was first built for.
    pub agent: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its SHA-256.
    pub sha256: Digest,
    /// Whether its image's blobs were exported too.
    pub with_image: bool,
}

/// Writes the artifacts to `out`, and with `with_image` what their images are
/// made of: the same bytes for the same entries. Every byte is hashed on its
/// way, and nothing of it is collected meanwhile.
///
/// # Errors
/// [`TransferError::NoMachine`] and [`TransferError::NoImage`], before anything
/// is written; [`TransferError::Damaged`], and what was written is then worth
/// nothing, and what is damaged is in quarantine.
pub fn export(
    store: &Store,
    keys: &[MachineKey],
    with_image: bool,
    out: &mut dyn Write,
    reporter: &dyn Reporter,
) -> Result<Vec<Exported>> {
    let keys: BTreeSet<MachineKey> = keys.iter().copied().collect();
    // Its use locks are gone when it returns: whoever moves an artifact waits for none.
    let exported = write(store, &keys, with_image, out, reporter);
    if let Err(TransferError::Damaged { path, .. }) = &exported {
        set_aside(store, &keys, path, reporter);
    }
    exported
}

/// Moves to quarantine what turned out to be damaged; nobody else is to meet it.
/// What cannot be moved stays: the error at hand says more than another.
fn set_aside(store: &Store, keys: &BTreeSet<MachineKey>, path: &Path, reporter: &dyn Reporter) {
    let machines = store.bucket_dir(Bucket::Machines);
    let of = |key: &&MachineKey| machine_path(&machines, key) == path;
    let moved = match keys.iter().find(of) {
        // By all of its bytes: its seal may fit.
        Some(key) => store.quarantine_if_damaged(key, true, reporter).is_ok_and(|problem| problem.is_some()),
        None => {
            path.file_name().and_then(|name| Digest::from_hex(name.to_str()?).ok()).is_some_and(|digest| {
                match store.blobs().check(&digest) {
                    Err(error @ StoreError::Mismatch { .. }) => {
                        store.blobs().quarantine(&digest, &error.to_string()).is_ok()
                    }
                    _ => false,
                }
            })
        }
    };
    if moved {
        let text = format!("{} is damaged; it was quarantined", path.display());
        reporter.report(Event::Warn { text: &text });
    }
}

fn machine_path(machines: &Path, key: &MachineKey) -> PathBuf {
    machines.join(key.image.hex()).join(format!("{}.smolmachine", key.recipe.hex()))
}

fn write(
    store: &Store,
    keys: &BTreeSet<MachineKey>,
    with_image: bool,
    out: &mut dyn Write,
    reporter: &dyn Reporter,
) -> Result<Vec<Exported>> {
    let mut locks = Vec::new();
    let mut images = BTreeMap::new();
    let mut machines = Vec::new();
    let mut paths = Vec::new();
    for key in keys {
        let (entry, path) = machine(store, key, &mut locks, reporter)?;
        machines.push(entry);
        paths.push(path);
        if with_image && !images.contains_key(&key.image) {
            let entry = image(store, &key.image, &mut locks, reporter)?;
            images.insert(key.image, entry);
        }
    }
    let header = Header { schema: SCHEMA, images: images.into_values().collect(), machines };
    let first = header.to_bytes()?;
    if first.len() as u64 > fsio::MAX_JSON {
        return Err(TransferError::TooMany(header.machines.len()));
    }
    let task = Task::begin(reporter, TASK, header.bytes());
    let mut tar = TarWriter::new(out);
    tar.bytes(format::HEADER, &first)?;
    for (_, blob) in header.blobs() {
        let from = store.blobs().path(&blob.digest);
        tar.file(&format::blob_path(&blob.digest), &from, blob.size, &blob.digest, &task)?;
    }
    for (machine, from) in header.machines.iter().zip(&paths) {
        tar.file(&format::machine_path(&machine.key()), from, machine.size, &machine.sha256, &task)?;
    }
    tar.finish()?;
    let exported = |machine: MachineEntry| Exported {
        key: machine.key(),
        agent: machine.agent,
        size: machine.size,
        sha256: machine.sha256,
        with_image,
    };
    Ok(header.machines.into_iter().map(exported).collect())
}

/// The artifact, looked up under its lock, which `locks` keeps.
fn machine(
    store: &Store,
    key: &MachineKey,
    locks: &mut Vec<UseLock>,
    reporter: &dyn Reporter,
) -> Result<(MachineEntry, PathBuf)> {
    locks.push(store.lock_use(&key.lock_name(), reporter)?);
    // It is hashed on its way: here it need only be there.
    match store.machine(key, false)? {
        Lookup::Hit(machine) => Ok((MachineEntry::of(&machine.receipt), machine.path)),
        Lookup::Miss => Err(TransferError::NoMachine(*key)),
        Lookup::Damaged { problem } => {
            let path = machine_path(&store.bucket_dir(Bucket::Machines), key);
            Err(TransferError::Damaged { path, problem })
        }
    }
}

/// The image's receipts, looked up under its lock, which `locks` keeps. All
/// blobs are there, but for those that are collected against the rules.
pub(crate) fn image(
    store: &Store,
    id: &Digest,
    locks: &mut Vec<UseLock>,
    reporter: &dyn Reporter,
) -> Result<ImageEntry> {
    locks.push(store.lock_use(&id.hex(), reporter)?);
    let there = |receipt: &StageReceipt| {
        receipt.image == *id && receipt.blobs.iter().all(|blob| store.blobs().has(&blob.digest, blob.size))
    };
    let receipt = |stage: &str| match store.stage_receipt(id, stage) {
        Ok(receipt) => Ok(receipt.filter(&there).map(StageEntry::of)),
        Err(error @ StoreError::Newer { .. }) => Err(error),
        // As good as none: it is made again with what it names.
        Err(StoreError::Damaged { .. }) => Ok(None),
        Err(error) => Err(error),
    };
    let tarball = receipt(TARBALL)?.ok_or(TransferError::NoImage(*id))?;
    let stages = [Some(tarball), receipt(REGISTRY)?].into_iter().flatten().collect();
    Ok(ImageEntry { image: *id, stages })
}
