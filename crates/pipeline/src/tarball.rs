//! The tarball stage: the image's config and layers become blobs.

use std::collections::BTreeMap;
use std::fs::File;

use serde_json::json;
use smolcellar_engine::Engine;
use smolcellar_oci::{Image, ImageConfig, ImageId, Limits, Platform, RootFs, Wanted, flatten};
use smolcellar_store::{BlobRef, Digest, Event, StageReceipt, Store, StoreError, TempDir};

use crate::agent::{AgentSpec, Source};
use crate::error::{PipelineError, Result};
use crate::image::wanted;
use crate::outcome::Observer;

/// The stage's name in the store.
pub(crate) const STAGE: &str = "tarball";

/// An image that was taken in: its root filesystem is known to be sound.
pub(crate) struct Taken {
    pub(crate) id: ImageId,
    pub(crate) config: ImageConfig,
    pub(crate) rootfs: RootFs,
    /// What is still to be published; empty for an image from the store.
    pub(crate) staged: Option<Staged>,
    pub(crate) layers: Vec<(Digest, u64)>,
    pub(crate) config_size: u64,
}

/// An image in a temporary folder. Its layers may still be being hashed.
pub(crate) struct Staged {
    image: Image,
    /// Holds the blobs' files until they are published.
    _dir: TempDir,
}

impl Taken {
    pub(crate) fn bytes(&self) -> u64 {
        self.config_size + self.layers.iter().map(|(_, size)| size).sum::<u64>()
    }
}

/// Takes the image out of its source. Nothing is visible in the store yet: a
/// layer that must not be is found here, before anything is published.
pub(crate) fn take(
    store: &Store,
    engine: Option<&Engine>,
    agent: &AgentSpec,
    id: Option<ImageId>,
    engine_id: Option<Digest>,
    observer: &dyn Observer,
) -> Result<Taken> {
    let dir = store.temp_dir()?;
    let wanted = wanted(agent, id);
    let limits = Limits::default();
    let image = match &agent.source {
        Source::Build { .. } => {
            let engine = engine.ok_or(PipelineError::NoEngine)?;
            let id = engine_id.or(id.map(|id| id.0)).ok_or(PipelineError::NoEngine)?;
            saved(engine, &id, &dir, &wanted, observer)?
        }
        Source::Archive(path) if path.is_dir() => {
            smolcellar_oci::ingest_folder(path, &dir, &wanted, limits, observer)?
        }
        Source::Archive(path) => {
            let opened = File::open(path);
            let file = opened.map_err(|source| PipelineError::Archive { path: path.clone(), source })?;
            smolcellar_oci::ingest_stream(file, &dir, &wanted, limits, observer)?
        }
        Source::Stdin => {
            smolcellar_oci::ingest_stream(std::io::stdin().lock(), &dir, &wanted, limits, observer)?
        }
    };
    sound(image, dir)
}

/// The image `wanted`, which the engine calls `engine_id`, out of an engine
/// that still has it.
pub(crate) fn take_again(
    store: &Store,
    engine: &Engine,
    engine_id: &Digest,
    wanted: &Wanted,
    observer: &dyn Observer,
) -> Result<Taken> {
    let dir = store.temp_dir()?;
    sound(saved(engine, engine_id, &dir, wanted, observer)?, dir)
}

fn saved(
    engine: &Engine,
    id: &Digest,
    dir: &TempDir,
    wanted: &Wanted,
    observer: &dyn Observer,
) -> Result<Image> {
    let mut stream = engine.save(id)?;
    let read = smolcellar_oci::ingest_stream(&mut stream, dir, wanted, Limits::default(), observer);
    match read {
        // An engine that failed explains a short tar better than the tar does.
        Err(
            error
            @ (smolcellar_oci::OciError::Truncated { .. } | smolcellar_oci::OciError::NotAnImage { .. }),
        ) => {
            stream.finish()?;
            Err(error.into())
        }
        Err(error) => Err(error.into()),
        Ok(image) => {
            stream.finish()?;
            Ok(image)
        }
    }
}

fn sound(image: Image, dir: TempDir) -> Result<Taken> {
    let files = image.layers.iter().map(|layer| layer.blob.reopen()).collect::<Result<Vec<_>, _>>()?;
    let rootfs = flatten(files).map_err(|error| {
        // What is wrong with a damaged layer is that it is damaged.
        image.verify().err().unwrap_or(error)
    })?;
    Ok(Taken {
        id: image.id,
        config: image.parsed.clone(),
        rootfs,
        layers: image.layers.iter().map(|layer| (layer.diff_id, layer.blob.size)).collect(),
        config_size: image.config.len() as u64,
        staged: Some(Staged { image, _dir: dir }),
    })
}

/// How an image came here, as its receipt has it.
pub(crate) fn route(source: &Source) -> &'static str {
    match source {
        Source::Build { .. } => SAVE,
        Source::Archive(_) | Source::Stdin => "archive",
    }
}

/// The route of what was saved from an engine.
pub(crate) const SAVE: &str = "save";

/// Checks every layer, publishes the blobs, and then the receipt that names
/// them. `heal`: what the store has of them is hashed too, and replaced if it
/// is damaged.
pub(crate) fn publish(
    store: &Store,
    id: ImageId,
    route: &str,
    staged: Staged,
    millis: u64,
    heal: bool,
    observer: &dyn Observer,
) -> Result<StageReceipt> {
    let (blobs, image) = (store.blobs(), &staged.image);
    // Waits for the layers to be hashed, and so comes before the lock.
    image.verify()?;
    for layer in image.layers.iter().filter(|layer| heal && blobs.has(&layer.diff_id, layer.blob.size)) {
        if let Err(error @ StoreError::Mismatch { .. }) = blobs.check(&layer.diff_id) {
            blobs.quarantine(&layer.diff_id, &error.to_string())?;
            observer.report(Event::Warn { text: &format!("{error}; it was quarantined and is replaced") });
        }
    }
    let publishing = store.publishing(observer)?;
    for layer in &image.layers {
        blobs.publish(&layer.blob, &publishing)?;
    }
    let config = blobs.put(&image.config, &publishing)?;
    let mut refs = vec![blob("config", config, image.config.len() as u64)];
    refs.extend(image.layers.iter().map(|layer| blob("layer", layer.diff_id, layer.blob.size)));
    let receipt = StageReceipt {
        schema: StageReceipt::SCHEMA,
        stage: STAGE.into(),
        image: id.0,
        inputs: BTreeMap::from([("image".into(), json!(id)), ("route".into(), json!(route))]),
        blobs: refs,
        built_at: crate::run::now(),
        millis,
    };
    store.commit_stage(&receipt, &publishing)?;
    Ok(receipt)
}

/// Whether the store seems to have all blobs of an image. Nothing is hashed:
/// [`from_store`] does that.
pub(crate) fn is_whole(store: &Store, id: ImageId) -> bool {
    let receipt = store.stage_receipt(&id.0, STAGE).ok().flatten();
    receipt.is_some_and(|receipt| receipt.blobs.iter().all(|blob| store.blobs().has(&blob.digest, blob.size)))
}

/// The image from the store's own blobs; `None` if they are not all there and
/// whole. They are hashed first: bytes that lay on a disk are believed only
/// after that.
pub(crate) fn from_store(
    store: &Store,
    id: ImageId,
    receipt: &StageReceipt,
    platform: &Platform,
    observer: &dyn Observer,
) -> Result<Option<Taken>> {
    let blobs = store.blobs();
    let missing = receipt.blobs.iter().any(|blob| !blobs.has(&blob.digest, blob.size));
    if missing || receipt.image != id.0 {
        return Ok(None);
    }
    let mut damaged = false;
    for blob in &receipt.blobs {
        match blobs.check(&blob.digest) {
            Ok(()) => {}
            // All of them: what stays would be taken for whole.
            Err(error @ StoreError::Mismatch { .. }) => {
                blobs.quarantine(&blob.digest, &error.to_string())?;
                observer.report(Event::Warn {
                    text: &format!("{error}; it was quarantined and is taken in again"),
                });
                damaged = true;
            }
            Err(error) => return Err(error.into()),
        }
    }
    if damaged {
        return Ok(None);
    }
    let of_role = |role: &'static str| receipt.blobs.iter().filter(move |blob| blob.role == role);
    let Some(config_ref) = of_role("config").next() else { return Ok(None) };
    let Ok(config) = ImageConfig::parse(&blobs.get(&config_ref.digest)?) else { return Ok(None) };
    // An archive is held against it when it is taken in; so is what is kept.
    smolcellar_oci::check_platform(platform, &config)?;
    let layers: Vec<_> = of_role("layer").map(|blob| (blob.digest, blob.size)).collect();
    if config_ref.digest != id.0 || config.rootfs.diff_ids != layers.iter().map(|l| l.0).collect::<Vec<_>>() {
        return Ok(None);
    }
    let open = |(digest, _): &(Digest, u64)| smolcellar_store::fsio::open(&blobs.path(digest));
    let files = layers.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    Ok(Some(Taken {
        id,
        config,
        rootfs: flatten(files)?,
        staged: None,
        layers,
        config_size: config_ref.size,
    }))
}

pub(crate) fn blob(role: &str, digest: Digest, size: u64) -> BlobRef {
    BlobRef { role: role.into(), digest, size }
}
