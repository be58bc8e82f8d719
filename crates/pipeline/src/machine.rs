//! The smolmachine stage: the root filesystem becomes an artifact.

use std::collections::BTreeMap;
use std::fs::File;
use std::time::Instant;

use serde_json::Value;
use smolcellar_pack::{AgentRootfs, Packed};
use smolcellar_smolvm::Runtime;
use smolcellar_store::{Digest, Event, Lookup, Machine, MachineKey, MachineReceipt, Store, TempDir, fsio};

use crate::agent::AgentSpec;
use crate::error::Result;
use crate::outcome::Observer;
use crate::recipe::machine_spec;
use crate::tarball::Taken;

/// A written artifact that is not published yet.
pub(crate) struct Written {
    dir: TempDir,
    file: File,
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
    let rootfs = AgentRootfs {
        path: runtime.rootfs_tar.clone(),
        size: runtime.rootfs_size,
        digest: runtime.rootfs_digest,
    };
    let dir = store.temp_dir()?;
    let mut file = fsio::create_new(&dir.path().join(NAME))?;
    let packed = smolcellar_pack::pack(&spec, &taken.rootfs, &rootfs, &mut file, observer)?;
    Ok(Written { dir, file, packed, millis: began.elapsed().as_millis() as u64 })
}

const NAME: &str = "machine";

/// Publishes a written artifact under its key.
pub(crate) fn publish(
    store: &Store,
    written: Written,
    key: &MachineKey,
    inputs: BTreeMap<String, Value>,
    agent: &AgentSpec,
) -> Result<Machine> {
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
    Ok(store.publish_machine(&written.file, &written.dir.path().join(NAME), receipt)?)
}

/// Looks for the artifact. With `quarantine` (which needs the key's build
/// lock) a damaged one is moved away, with a line that says so.
pub(crate) fn look(
    store: &Store,
    key: &MachineKey,
    quarantine: bool,
    observer: &dyn Observer,
) -> Result<Option<Machine>> {
    match store.machine(key, false)? {
        Lookup::Hit(machine) => {
            store.touch_machine(key);
            Ok(Some(*machine))
        }
        Lookup::Miss => Ok(None),
        Lookup::Damaged { problem } => {
            if quarantine {
                store.quarantine_machine(key)?;
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
