//! The image stage: a Dockerfile or an archive becomes an image ID.

use std::fs::File;
use std::path::Path;

use smolcellar_engine::{BuildSpec, Engine};
use smolcellar_oci::{ImageId, Wanted};
use smolcellar_store::{BuildLock, Digest, Store};

use crate::agent::{AgentSpec, Source};
use crate::error::{PipelineError, Result};
use crate::facts::BuildFacts;
use crate::outcome::StageName;
use crate::record::BuildRecord;
use crate::run::Context;
use crate::{before, pointer};

/// What the stage found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// The image, where it can be told without reading all of it.
    pub(crate) id: Option<ImageId>,
    /// What the engine calls it; `None` if the engine was not asked to build it.
    pub(crate) engine_id: Option<Digest>,
    /// What its build saw.
    pub(crate) facts: Option<BuildFacts>,
    /// Uncompressed bytes, where the engine was asked.
    pub(crate) size: Option<u64>,
    /// What keeps others from building the same sources; to be held until it is
    /// remembered what they made.
    pub(crate) lock: Option<BuildLock>,
}

/// Runs the stage. An engine is asked to build unless what it would see was
/// built before, here or elsewhere for this recipe.
pub(crate) fn resolve(
    context: Context<'_>,
    agent: &AgentSpec,
    recipe: &Digest,
    last: Option<&BuildRecord>,
) -> Result<Found> {
    match &agent.source {
        Source::Build { before, build } => {
            let engine = context.engine.ok_or(PipelineError::NoEngine)?;
            before::run(before, &agent.project, &|line| context.observer.line(line))?;
            let facts = BuildFacts::gather(build, engine, last.and_then(|last| last.facts.as_ref()));
            let seen = facts.fingerprint().filter(|_| context.force != Some(StageName::Image));
            let here = || seen.and_then(|seen| pointer::built_from(context.store, &seen));
            let found = |id, lock| Found { id: Some(id), facts: None, lock, ..Found::default() };
            if let Some(id) = here() {
                return Ok(Found { facts: Some(facts), ..found(id, None) });
            }
            // Of many that find the same sources new, one asks elsewhere and has
            // them built; the others wait for what it makes of them.
            let lock = match seen {
                Some(seen) => {
                    let name = format!("seen-{}", seen.hex());
                    Some(context.store.lock_build(&name, context.observer)?)
                }
                None => None,
            };
            if let Some(id) = here() {
                return Ok(Found { facts: Some(facts), ..found(id, None) });
            }
            let elsewhere =
                seen.zip(context.elsewhere).and_then(|(seen, elsewhere)| elsewhere.image_of(&seen, recipe));
            match elsewhere {
                Some(id) => Ok(Found { facts: Some(facts), ..found(id, lock) }),
                None if context.only_cached => Err(PipelineError::NotCached),
                None => Ok(Found { lock, ..ask(context, build, facts)? }),
            }
        }
        Source::Archive(path) => Ok(Found { id: peek(agent, path)?, ..Found::default() }),
        Source::Stdin => Ok(Found::default()),
    }
}

/// The image in an archive, where that can be told without reading all of it.
pub(crate) fn peek(agent: &AgentSpec, path: &Path) -> Result<Option<ImageId>> {
    // A pipe can be read once, and that is the next stage's part.
    if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
        return Ok(None);
    }
    let opened = File::open(path);
    let file = opened.map_err(|source| PipelineError::Archive { path: path.to_owned(), source })?;
    Ok(smolcellar_oci::peek(&file, &wanted(agent, None)))
}

/// Has the engine build the image.
pub(crate) fn ask(context: Context<'_>, build: &BuildSpec, facts: BuildFacts) -> Result<Found> {
    let Context { store, observer, .. } = context;
    let engine = context.engine.ok_or(PipelineError::NoEngine)?;
    let fresh = BuildSpec { no_cache: context.force == Some(StageName::Image), ..build.clone() };
    let id = engine.build(&fresh, &store.scratch()?, &|line| observer.line(line))?;
    let (image, size) = config_digest(store, engine, &id)?;
    Ok(Found { id: image, engine_id: Some(id), facts: Some(facts), size, lock: None })
}

/// The image ID behind an engine's ID, where the store or the engine can tell.
/// And its size, if the engine was asked.
fn config_digest(store: &Store, engine: &Engine, id: &Digest) -> Result<(Option<ImageId>, Option<u64>)> {
    // The warm path asks nobody: an image that was taken in before has its
    // tarball receipt under its ID.
    if store.stage_receipt(id, crate::tarball::STAGE).is_ok_and(|receipt| receipt.is_some()) {
        return Ok((Some(ImageId(*id)), None));
    }
    if let Some(image) = pointer::image_of(store, id) {
        return Ok((Some(image), None));
    }
    let info = engine.inspect(&id.to_string())?;
    let size = info.as_ref().map(|info| info.size);
    Ok((info.filter(|info| info.id_is_config).map(|_| ImageId(*id)), size))
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
