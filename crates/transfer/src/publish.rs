//! From a temporary folder into the store, entry by entry, under its locks.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use smolcellar_oci::{ImageConfig, OciError};
use smolcellar_pack::{Artifact, PackError};
use smolcellar_store::{
    BuildLock, Digest, Event, Lookup, Machine, MachineReceipt, Reporter, StageReceipt, StagedBlob, Store,
    StoreError, fsio,
};

use crate::error::{Result, TransferError};
use crate::format::{self, ImageEntry, MachineEntry};
use crate::import::{Imported, Status, What};

/// A file in a temporary folder, whose digest was checked.
pub(crate) struct Staged {
    pub(crate) path: PathBuf,
    pub(crate) blob: StagedBlob,
    /// What a [`smolcellar_pack::Sum`] told that saw all of an artifact.
    pub(crate) sum: Option<u32>,
}

/// Publishes an image: its blobs, then its receipts. Blobs that are not staged
/// came with an image before it.
pub(crate) fn image(
    store: &Store,
    what: &str,
    entry: &ImageEntry,
    staged: &HashMap<Digest, Staged>,
    reporter: &dyn Reporter,
) -> Result<Status> {
    sound(store, what, entry, staged)?;
    let _lock = store.lock_build(&entry.image.hex(), reporter)?;
    let mut status = Status::Present;
    let blobs = store.blobs();
    // Hashing takes long, and so comes before the lock that collectors wait for.
    for (digest, staged) in staged {
        if !blobs.has(digest, staged.blob.size) {
            if status == Status::Present {
                status = Status::Imported;
            }
            continue;
        }
        match blobs.check(digest) {
            Ok(()) => {}
            Err(error @ StoreError::Mismatch { .. }) => {
                blobs.quarantine(digest, &error.to_string())?;
                status = Status::Replaced;
            }
            // Collected since it was looked for.
            Err(_) if !blobs.has(digest, staged.blob.size) => status = Status::Imported,
            Err(error) => return Err(error.into()),
        }
    }
    let publishing = store.publishing(reporter)?;
    for staged in staged.values() {
        blobs.publish(&staged.blob, &publishing)?;
    }
    // What came with an image before it may be collected with that one.
    if !entry.blobs().all(|blob| blobs.has(&blob.digest, blob.size)) {
        return Err(TransferError::Collected(entry.image));
    }
    for stage in &entry.stages {
        let known = match store.stage_receipt(&entry.image, &stage.stage) {
            Ok(known) => known.map(|known| known.image == entry.image && known.blobs == stage.blobs),
            Err(StoreError::Damaged { .. }) => Some(false),
            Err(error) => return Err(error.into()),
        };
        match known {
            Some(true) => continue,
            Some(false) => status = Status::Replaced,
            None if status == Status::Present => status = Status::Imported,
            None => {}
        }
        let receipt = StageReceipt {
            schema: StageReceipt::SCHEMA,
            stage: stage.stage.clone(),
            image: entry.image,
            inputs: stage.inputs.clone(),
            blobs: stage.blobs.clone(),
            built_at: now(),
            millis: 0,
        };
        store.commit_stage(&receipt, &publishing)?;
    }
    Ok(status)
}

/// Whether the config names the layers, and the layers can be an image: what
/// is found at a build when an image is taken in.
fn sound(store: &Store, what: &str, entry: &ImageEntry, staged: &HashMap<Digest, Staged>) -> Result<()> {
    let invalid = |problem: String| TransferError::Invalid {
        what: what.to_owned(),
        entry: format!("the image {}", entry.image.short()),
        problem,
    };
    let path = |digest: &Digest| match staged.get(digest) {
        Some(staged) => staged.path.clone(),
        None => store.blobs().path(digest),
    };
    let (config, layers) = entry.tarball().ok_or_else(|| invalid("it has no tarball stage".into()))?;
    let at = path(&config.digest);
    let json = std::fs::read(&at).map_err(StoreError::io("read", &at))?;
    let config = ImageConfig::parse(&json).map_err(|error| invalid(format!("its config: {error}")))?;
    if !config.rootfs.diff_ids.iter().eq(layers.iter().map(|layer| &layer.digest)) {
        return Err(invalid("its layers are not those that its config names".into()));
    }
    let files = layers.iter().map(|layer| fsio::open(&path(&layer.digest)));
    smolcellar_oci::flatten(files.collect::<Result<_, StoreError>>()?).map(drop).map_err(
        |error| match error {
            OciError::Store(error) => error.into(),
            error => invalid(error.to_string()),
        },
    )
}

/// Publishes an artifact, unless the store has it whole.
pub(crate) fn machine(
    store: &Store,
    what: &str,
    entry: &MachineEntry,
    staged: &Staged,
    reporter: &dyn Reporter,
) -> Result<Imported> {
    let key = entry.key();
    sound_machine(what, entry, staged)?;
    let lock = store.lock_build(&key.lock_name(), reporter)?;
    let (machine, status) = under_lock(store, what, entry, staged, &lock, reporter)?;
    let receipt = machine.receipt;
    let (agent, size, sha256) = (receipt.agent, receipt.size, receipt.sha256);
    Ok(Imported { what: What::Machine { key, agent, path: machine.path, size, sha256 }, status })
}

/// Publishes a file as the artifact that a receipt describes, unless the store
/// has that whole: what came from elsewhere is believed here, after its digest,
/// its parts and its manifest were found to be the receipt's. `what` is what
/// messages call it; `sum` what a [`smolcellar_pack::Sum`] told of the file;
/// the lock is the key's.
///
/// # Errors
/// [`TransferError::Mismatch`] and [`TransferError::Invalid`] if it is not what
/// the receipt says; [`TransferError::Store`].
pub fn publish_received(
    store: &Store,
    what: &str,
    entry: &MachineEntry,
    blob: StagedBlob,
    sum: Option<u32>,
    lock: &BuildLock,
    reporter: &dyn Reporter,
) -> Result<(Machine, Status)> {
    let staged = Staged { path: blob.path().to_owned(), blob, sum };
    let actual = staged.blob.digest()?;
    if actual != entry.sha256 {
        let (what, entry, expected) = (what.to_owned(), format::machine_path(&entry.key()), entry.sha256);
        return Err(TransferError::Mismatch { what, entry, expected, actual });
    }
    if staged.blob.size != entry.size {
        let problem = format!("it has {} bytes, its receipt says {}", staged.blob.size, entry.size);
        let (what, entry) = (what.to_owned(), format::machine_path(&entry.key()));
        return Err(TransferError::Invalid { what, entry, problem });
    }
    sound_machine(what, entry, &staged)?;
    under_lock(store, what, entry, &staged, lock, reporter)
}

/// Whether a staged artifact is what its receipt says.
fn sound_machine(what: &str, entry: &MachineEntry, staged: &Staged) -> Result<()> {
    let artifact = artifact(what, &format::machine_path(&entry.key()), staged)?;
    let invalid = |problem: &str| TransferError::Invalid {
        what: what.to_owned(),
        entry: format::machine_path(&entry.key()),
        problem: problem.to_owned(),
    };
    // Only ours say which image they are of, and have an index.
    if entry.is_native() {
        if artifact.manifest.digest != entry.image.to_string() {
            return Err(invalid("its manifest names another image"));
        }
        if artifact.index.is_none() {
            return Err(invalid("it has no frame index"));
        }
    }
    Ok(())
}

fn under_lock(
    store: &Store,
    what: &str,
    entry: &MachineEntry,
    staged: &Staged,
    lock: &BuildLock,
    reporter: &dyn Reporter,
) -> Result<(Machine, Status)> {
    let key = entry.key();
    let status = match store.machine(&key, true)? {
        Lookup::Hit(machine) => {
            if machine.receipt.sha256 != entry.sha256 {
                let text =
                    format!("the cache has another artifact {key}, whole: it stays, {what}'s is left out");
                reporter.report(Event::Warn { text: &text });
            }
            return Ok((*machine, Status::Present));
        }
        Lookup::Miss => Status::Imported,
        Lookup::Damaged { problem } => {
            store.quarantine_machine(&key, &problem, lock)?;
            let text = format!("the artifact {key} is damaged ({problem}); it was quarantined");
            reporter.report(Event::Warn { text: &text });
            Status::Replaced
        }
    };
    let receipt = MachineReceipt {
        schema: MachineReceipt::SCHEMA,
        image: entry.image,
        recipe: entry.recipe,
        inputs: entry.inputs.clone(),
        size: entry.size,
        sha256: entry.sha256,
        agent: entry.agent.clone(),
        built_at: now(),
        millis: 0,
    };
    Ok((store.publish_machine(&staged.blob.reopen()?, &staged.path, receipt)?, status))
}

/// What a staged artifact says of itself.
pub(crate) fn artifact(what: &str, entry: &str, staged: &Staged) -> Result<Artifact> {
    smolcellar_pack::read_foreign(&staged.path, staged.sum).map_err(|error| match error {
        // Its path is a temporary one, and building it again no remedy here.
        PackError::Artifact { problem, .. } => TransferError::Invalid {
            what: what.to_owned(),
            entry: entry.to_owned(),
            problem: format!("it is not a whole .smolmachine: {problem}"),
        },
        error => error.into(),
    })
}

/// Seconds since 1970, for people and for ranking.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}
