//! The image stage: a Dockerfile or an archive becomes an image ID.

use std::fs::File;

use smolcellar_engine::Engine;
use smolcellar_oci::{ImageId, Wanted};
use smolcellar_store::{Digest, Store};

use crate::agent::{AgentSpec, Source};
use crate::error::{PipelineError, Result};
use crate::outcome::Observer;
use crate::{before, pointer};

/// What the stage found.
#[derive(Debug)]
pub(crate) struct Found {
    /// The image, where it can be told without reading all of it.
    pub(crate) id: Option<ImageId>,
    /// What the engine calls it.
    pub(crate) engine_id: Option<Digest>,
}

/// Runs the stage.
pub(crate) fn resolve(
    store: &Store,
    engine: Option<&Engine>,
    agent: &AgentSpec,
    observer: &dyn Observer,
) -> Result<Found> {
    match &agent.source {
        Source::Build { before, build } => {
            let engine = engine.ok_or(PipelineError::NoEngine)?;
            before::run(before, &agent.project, &|line| observer.line(line))?;
            let id = engine.build(build, &store.scratch()?, &|line| observer.line(line))?;
            Ok(Found { id: config_digest(store, engine, &id)?, engine_id: Some(id) })
        }
        // A pipe can be read once, and that is the next stage's part.
        Source::Archive(path) if path.metadata().is_ok_and(|metadata| !metadata.is_file()) => {
            Ok(Found { id: None, engine_id: None })
        }
        Source::Archive(path) => {
            let opened = File::open(path);
            let file = opened.map_err(|source| PipelineError::Archive { path: path.clone(), source })?;
            let id = smolcellar_oci::peek(&file, &wanted(agent, None));
            Ok(Found { id, engine_id: None })
        }
        Source::Stdin => Ok(Found { id: None, engine_id: None }),
    }
}

/// The image ID behind an engine's ID, where the store or the engine can tell.
fn config_digest(store: &Store, engine: &Engine, id: &Digest) -> Result<Option<ImageId>> {
    // The warm path asks nobody: an image that was taken in before has its
    // tarball receipt under its ID.
    if store.stage_receipt(id, crate::tarball::STAGE).is_ok_and(|receipt| receipt.is_some()) {
        return Ok(Some(ImageId(*id)));
    }
    if let Some(image) = pointer::image_of(store, id) {
        return Ok(Some(image));
    }
    let info = engine.inspect(&id.to_string())?;
    Ok(info.filter(|info| info.id_is_config).map(|_| ImageId(*id)))
}

/// How the image is called in messages, and what it must be.
pub(crate) fn wanted(agent: &AgentSpec, id: Option<ImageId>) -> Wanted {
    let what = match &agent.source {
        Source::Build { .. } => "the engine's saved image".to_owned(),
        Source::Archive(path) => path.display().to_string(),
        Source::Stdin => "standard input".to_owned(),
    };
    Wanted { what, platform: agent.platform.clone(), id }
}
