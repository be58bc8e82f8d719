//! Repair: what was damaged or lost is made again from what is left, under the
//! same locks as in a build, and only if it is the very same.

use smolcellar_engine::Engine;
use smolcellar_oci::{ImageConfig, ImageId, Platform, Wanted};
use smolcellar_smolvm::Runtime;
use smolcellar_store::{Digest, Lookup, MachineReceipt, StageReceipt, Store};

use crate::error::Result;
use crate::outcome::Observer;
use crate::tarball::Taken;
use crate::{machine, pointer, recipe, registry, tarball};

/// What came of a repair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Repaired {
    /// It was whole when it came to it.
    Whole,
    /// It is whole again.
    Done,
    /// It cannot be made again from what is there; why, and what does it.
    Not(String),
}

/// Packs an artifact again from its image's blobs: the same bytes, under the
/// same receipt. Nothing is published if they are not the same.
///
/// # Errors
/// [`crate::PipelineError`]; nothing is published then.
pub fn repair_machine(
    store: &Store,
    runtime: &Runtime,
    receipt: &MachineReceipt,
    observer: &dyn Observer,
) -> Result<Repaired> {
    match receipt.inputs.get("packer").and_then(serde_json::Value::as_str) {
        Some("foreign") => return Ok(not("another packer made it; import it again")),
        // Whatever it packs differs in the times of folders at least.
        Some("smolvm") => {
            return Ok(not("smolvm packed it; the next build with `--packer smolvm` makes a new one"));
        }
        _ => {}
    }
    let agent = match recipe::agent_of(&receipt.agent, &receipt.inputs) {
        Ok(agent) => agent,
        Err(name) => {
            return Ok(not(&format!(
                "its receipt's {name} is not understood; the next build makes a new one"
            )));
        }
    };
    let differing = recipe::differing(&recipe::inputs(&agent, runtime), &receipt.inputs);
    if !differing.is_empty() {
        let differing = differing.join(", ");
        return Ok(not(&format!(
            "it was made with another {differing} than is here now; the next build makes a new one"
        )));
    }
    let (key, id) = (receipt.key(), ImageId(receipt.image));
    let image_lock = store.lock_build(&id.0.hex(), observer)?;
    let Some(taken) = from_store(store, id, &agent.platform, observer)? else {
        return Ok(not("its image is not whole in the cache; the next build makes it"));
    };
    let _key_lock = store.lock_build(&key.lock_name(), observer)?;
    // Its files are open: they stay.
    drop(image_lock);
    if matches!(store.machine(&key, false)?, Lookup::Hit(_)) {
        return Ok(Repaired::Whole);
    }
    let written = machine::write(store, runtime, &agent, &taken, observer)?;
    match machine::publish_again(store, &written, receipt)? {
        true => Ok(Repaired::Done),
        false => Ok(not(
            "packed again, it has other bytes than its receipt says, which must not be: nothing was published; \
             please report it",
        )),
    }
}

fn from_store(
    store: &Store,
    id: ImageId,
    platform: &Platform,
    observer: &dyn Observer,
) -> Result<Option<Taken>> {
    match store.stage_receipt(&id.0, tarball::STAGE).ok().flatten() {
        Some(receipt) => tarball::from_store(store, id, &receipt, platform, observer),
        None => Ok(None),
    }
}

/// Makes what there is of an image whole: layers that are lost are taken again
/// from an engine that still has the image; its manifest follows from them.
///
/// # Errors
/// [`crate::PipelineError`]; whatever was published before stays and is whole.
pub fn repair_image(
    store: &Store,
    engine: Option<&Engine>,
    image: &Digest,
    observer: &dyn Observer,
) -> Result<Repaired> {
    let id = ImageId(*image);
    let _lock = store.lock_build(&image.hex(), observer)?;
    let there = |receipt: &StageReceipt| {
        receipt.image == *image && receipt.blobs.iter().all(|blob| store.blobs().has(&blob.digest, blob.size))
    };
    let mut done = Repaired::Whole;
    let tarball = match store.stage_receipt(image, tarball::STAGE).ok().flatten().filter(&there) {
        Some(receipt) => receipt,
        None => {
            let Some((engine, engine_id)) =
                engine.and_then(|engine| Some((engine, known_as(store, engine, id)?)))
            else {
                return Ok(not(
                    "no container engine here has its image; a build from its source takes it in again",
                ));
            };
            let wanted = Wanted {
                what: "the engine's saved image".into(),
                platform: platform(store, id),
                id: Some(id),
            };
            let began = std::time::Instant::now();
            let taken = tarball::take_again(store, engine, &engine_id, &wanted, observer)?;
            let Some(staged) = taken.staged else {
                return Ok(not("it was taken in, and there is nothing to publish"));
            };
            let millis = began.elapsed().as_millis() as u64;
            done = Repaired::Done;
            tarball::publish(store, id, tarball::SAVE, staged, millis, true, observer)?
        }
    };
    let registry = store.stage_receipt(image, registry::STAGE).ok().flatten().filter(&there);
    let whole =
        |receipt: StageReceipt| receipt.blobs.iter().all(|blob| store.blobs().get(&blob.digest).is_ok());
    if !registry.is_some_and(whole) {
        let config = tarball.blobs.iter().find(|blob| blob.role == "config").map_or(0, |blob| blob.size);
        let layers = tarball.blobs.iter().filter(|blob| blob.role == "layer");
        let layers: Vec<_> = layers.map(|blob| (blob.digest, blob.size)).collect();
        registry::commit(store, id, config, &layers, observer)?;
        done = Repaired::Done;
    }
    Ok(done)
}

/// What an engine calls the image, if it has it.
fn known_as(store: &Store, engine: &Engine, id: ImageId) -> Option<Digest> {
    let has = |name: &Digest| engine.inspect(&name.to_string()).ok().flatten();
    if has(&id.0).is_some_and(|info| info.id_is_config) {
        return Some(id.0);
    }
    pointer::engine_ids(store, id).into_iter().find(|name| has(name).is_some())
}

/// The image's, if its config is whole.
fn platform(store: &Store, id: ImageId) -> Platform {
    let config = store.blobs().get(&id.0).ok().and_then(|bytes| ImageConfig::parse(&bytes).ok());
    config.map_or_else(Platform::guest, |config| config.platform())
}

fn not(why: &str) -> Repaired {
    Repaired::Not(why.to_owned())
}
