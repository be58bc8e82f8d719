//! The smolmachine stage: the root filesystem becomes an artifact.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::time::Instant;

use serde_json::Value;
use smolcellar_pack::{AgentRootfs, Packed};
use smolcellar_smolvm::Runtime;
use smolcellar_store::{
    BuildLock, Digest, Event, Lookup, Machine, MachineKey, MachineReceipt, Store, TempDir, UseLock, fsio,
};

use crate::agent::{AgentSpec, Packer};
use crate::error::Result;
use crate::outcome::Observer;
use crate::recipe::machine_spec;
use crate::smolvm_packer;
use crate::tarball::Taken;

/// A written artifact that is not published yet.
pub(crate) struct Written {
    /// Holds the file until it is published.
    _dir: TempDir,
    file: File,
    path: PathBuf,
    packed: Packed,
    millis: u64,
}

/// Packs into a temporary folder.
pub(crate) fn write(
    store: &Store,
    runtime: &Runtime,
    agent: &AgentSpec,
    taken: &Taken,
    observer: &dyn Observer,
) -> Result<Written> {
    let began = Instant::now();
    let spec = machine_spec(agent, runtime, taken.id, &taken.config);
    if agent.packer == Packer::Smolvm {
        let (dir, file, path, packed) = smolvm_packer::pack(store, runtime, &spec, &taken.rootfs, observer)?;
        return Ok(Written { _dir: dir, file, path, packed, millis: began.elapsed().as_millis() as u64 });
    }
    let rootfs = AgentRootfs {
        path: runtime.rootfs_tar.clone(),
        size: runtime.rootfs_size,
        digest: runtime.rootfs_digest,
    };
    let dir = store.temp_dir()?;
    let path = dir.path().join("machine");
    let mut file = fsio::create_new(&path)?;
    let packed = smolcellar_pack::pack(&spec, &taken.rootfs, &rootfs, &mut file, observer)?;
    Ok(Written { _dir: dir, file, path, packed, millis: began.elapsed().as_millis() as u64 })
}

/// Publishes a written artifact under its key.
pub(crate) fn publish(
    store: &Store,
    written: Written,
    key: &MachineKey,
    inputs: BTreeMap<String, Value>,
    agent: &AgentSpec,
    observer: &dyn Observer,
) -> Result<InUse> {
    let receipt = MachineReceipt {
        schema: MachineReceipt::SCHEMA,
        image: key.image,
        recipe: key.recipe,
        inputs,
        size: written.packed.size,
        sha256: written.packed.sha256,
        agent: agent.name.clone(),
        built_at: crate::run::now(),
        millis: written.millis,
    };
    let machine = store.publish_machine(&written.file, &written.path, receipt)?;
    let lock = store.lock_use(&key.lock_name(), observer)?;
    Ok(InUse { machine, lock })
}

/// Publishes an artifact that was packed again under the receipt that it had.
/// `false`: it is not the same one, and nothing was published.
pub(crate) fn publish_again(store: &Store, written: &Written, receipt: &MachineReceipt) -> Result<bool> {
    if (written.packed.size, written.packed.sha256) != (receipt.size, receipt.sha256) {
        return Ok(false);
    }
    store.publish_machine(&written.file, &written.path, receipt.clone())?;
    Ok(true)
}

/// An artifact that nothing collects until this is dropped.
pub(crate) struct InUse {
    pub(crate) machine: Machine,
    pub(crate) lock: UseLock,
}

/// Looks for the artifact, under its use lock: what is found stays. With the
/// key's build lock a damaged one is moved away, with a line that says so.
pub(crate) fn look(
    store: &Store,
    key: &MachineKey,
    lock: Option<&BuildLock>,
    observer: &dyn Observer,
) -> Result<Option<InUse>> {
    let in_use = store.lock_use(&key.lock_name(), observer)?;
    match store.machine(key, false)? {
        Lookup::Hit(machine) => {
            store.touch_machine(key);
            Ok(Some(InUse { machine: *machine, lock: in_use }))
        }
        Lookup::Miss => Ok(None),
        Lookup::Damaged { problem } => {
            if let Some(lock) = lock {
                store.quarantine_machine(key, &problem, lock)?;
                let text = format!(
                    "the artifact {key} is damaged ({problem}); it was quarantined and is built again"
                );
                observer.report(Event::Warn { text: &text });
            }
            Ok(None)
        }
    }
}

/// The recipe of a set of inputs.
pub(crate) fn recipe(inputs: &BTreeMap<String, Value>) -> Digest {
    MachineReceipt::recipe_of(inputs)
}
