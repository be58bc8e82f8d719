//! Artifacts at hand that one from elsewhere may share frames with.

use std::fs::File;
use std::os::unix::fs::FileExt;

use smolcellar_pack::FrameIndex;
use smolcellar_store::{ListedMachine, Lookup, Reporter, Store, UseLock, fsio};
use smolcellar_transfer::MachineEntry;

use crate::cache_error::CacheResult;

/// So many are copied from at most: each is a lock, an index and an open file.
const MOST: usize = 8;
/// So many are looked at to find them.
const LOOKED_AT: usize = 24;

/// The inputs that shape a frame's bytes beside what is in it. Equal contents
/// are equal bytes where these are alike.
const ALIKE: [&str; 5] = ["compression-level", "cut-version", "packer", "packer-version", "zstd-version"];

/// An artifact to copy from, which is not collected meanwhile.
pub(crate) struct Local {
    file: File,
    pub(crate) index: FrameIndex,
    _lock: UseLock,
}

impl Local {
    /// Reads exactly these bytes.
    pub(crate) fn read_at(&self, into: &mut [u8], at: u64) -> std::io::Result<()> {
        self.file.read_exact_at(into, at)
    }
}

/// The artifacts that `wanted` is most likely to share frames with: the same
/// agent's first, and of these what was used last. What cannot be used is left
/// out: it is not needed.
pub(crate) fn candidates(
    store: &Store,
    wanted: &MachineEntry,
    agent: &str,
    reporter: &dyn Reporter,
) -> CacheResult<Vec<Local>> {
    let (mut listed, _) = store.list_machines()?;
    // Stable: within each, most recently used first.
    listed.sort_by_key(|machine| machine.agent != agent);
    let mut chosen = Vec::new();
    for machine in listed.iter().take(LOOKED_AT) {
        if chosen.len() == MOST {
            break;
        }
        chosen.extend(usable(store, machine, wanted, reporter)?);
    }
    Ok(chosen)
}

fn usable(
    store: &Store,
    listed: &ListedMachine,
    wanted: &MachineEntry,
    reporter: &dyn Reporter,
) -> CacheResult<Option<Local>> {
    if listed.key == wanted.key() {
        return Ok(None);
    }
    let lock = store.lock_use(&listed.key.lock_name(), reporter)?;
    let Lookup::Hit(machine) = store.machine(&listed.key, false)? else { return Ok(None) };
    let inputs = &machine.receipt.inputs;
    if ALIKE.iter().any(|name| inputs.get(*name) != wanted.inputs.get(*name)) {
        return Ok(None);
    }
    let Ok(artifact) = smolcellar_pack::read(&machine.path) else { return Ok(None) };
    let (Some(index), 0) = (artifact.index, artifact.footer.assets_offset) else { return Ok(None) };
    Ok(Some(Local { file: fsio::open(&machine.path)?, index, _lock: lock }))
}
