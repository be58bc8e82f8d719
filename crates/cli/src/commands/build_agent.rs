//! `build-agent`: agents into artifacts.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use smolcellar_engine::Engine;
use smolcellar_oci::Reference;
use smolcellar_pipeline::{AgentSpec, Context, Observer, Outcome, Source, StageName, StageStatus};
use smolcellar_store::{MachineKey, Store, UseLock};

use crate::args::{BuildAgent, Stage};
use crate::commands::cache::gc;
use crate::commands::{plan, push_image, why};
use crate::config::bare_agent;
use crate::exit::{self, Usage};
use crate::format;
use crate::interrupt::EndChildren;
use crate::output::{self, Format};
use crate::session::Session;

pub(crate) fn run(session: &Session, args: &BuildAgent) -> Result<u8> {
    let _end_children = EndChildren::on_signals()?;
    let agents = agents(session, args)?;
    let targets = push_image::targets(session, args.registry.as_deref(), &agents)?;
    let store = session.store()?;
    if args.plan {
        return plan::show(session, &store, &agents);
    }
    if args.require_cache {
        plan::require(session, &store, &agents)?;
    }
    let began = Instant::now();
    let mut outcomes = Vec::new();
    for (agent, target) in agents.iter().zip(&targets) {
        outcomes.push(build(session, &store, agent, args, target.as_ref())?);
    }
    if session.global.format == Format::Human {
        output::line(&total(&outcomes, began.elapsed().as_secs_f64()))?;
    }
    if outcomes.iter().flat_map(|outcome| &outcome.stages).any(|stage| stage.status == StageStatus::Miss) {
        // What was just built stays, however small the limits. In the order of the keys.
        let mut keys: Vec<_> = outcomes.iter().map(Outcome::key).collect();
        keys.sort();
        let lock = |key: &MachineKey| store.lock_use(&key.lock_name(), &session.progress);
        let _in_use = keys.iter().map(lock).collect::<Result<Vec<_>, _>>()?;
        gc::after_build(session, &store, session.config()?.as_ref());
    }
    Ok(exit::OK)
}

/// Builds one agent, pushes its image if it has somewhere to go, and prints what
/// came of it.
fn build(
    session: &Session,
    store: &Store,
    agent: &AgentSpec,
    args: &BuildAgent,
    target: Option<&Reference>,
) -> Result<Outcome> {
    let human = session.global.format == Format::Human;
    // Set-up may have things to say of its own.
    session.runtime(store)?;
    if human {
        output::line(&agent.name)?;
    }
    let how = How { force: args.force.map(stage), only_cached: args.require_cache };
    let (mut outcome, _in_use) = build_with(session, store, agent, how, &session.progress)?;
    if !args.explain {
        outcome.why.clear();
    }
    // The artifact is in the cache, whatever becomes of this.
    let pushed = target.map(|target| push_image::push(session, store, agent, &outcome, how, target));
    if human {
        for line in why::lines(&outcome.why) {
            output::line(&format!("  {line}"))?;
        }
        output::line(&format!("  {}", outcome.artifact.display()))?;
    } else {
        output::json(&push_image::WithPush::new(&outcome, pushed.as_ref()))?;
    }
    push_image::say(session, pushed)?;
    Ok(outcome)
}

/// How to build.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct How {
    /// From which stage on everything is made again.
    pub(crate) force: Option<StageName>,
    /// Whether nothing is to be made.
    pub(crate) only_cached: bool,
}

fn stage(stage: Stage) -> StageName {
    match stage {
        Stage::Image => StageName::Image,
        Stage::Tarball => StageName::Tarball,
        Stage::Registry => StageName::Registry,
        Stage::Smolmachine => StageName::Smolmachine,
    }
}

/// Builds one agent; who hears of it is `observer`. The artifact stays until the
/// lock is dropped.
pub(crate) fn build_with(
    session: &Session,
    store: &Store,
    agent: &AgentSpec,
    how: How,
    observer: &dyn Observer,
) -> Result<(Outcome, UseLock)> {
    let engine = match &agent.source {
        Source::Build { .. } => Some(Engine::find(session.global.engine.as_deref())?),
        Source::Archive(_) | Source::Stdin => None,
    };
    let runtime = session.runtime(store)?;
    let How { force, only_cached } = how;
    let context = Context { store, runtime: &runtime, engine: engine.as_ref(), observer, force, only_cached };
    smolcellar_pipeline::run(context, agent).with_context(|| format!("cannot build agent '{}'", agent.name))
}

fn agents(session: &Session, args: &BuildAgent) -> Result<Vec<AgentSpec>> {
    let platform = args.platform.as_deref();
    let config = session.config()?;
    if let Some(archive) = &args.archive {
        let source = match archive == Path::new("-") {
            true => Source::Stdin,
            false => Source::Archive(archive.clone()),
        };
        return match (args.names.as_slice(), config) {
            ([], config) if !args.all => {
                // Where `launch NAME` looks for it.
                let project = match config {
                    Some(config) => config.project,
                    None => std::env::current_dir().context("cannot tell the working folder")?,
                };
                Ok(vec![bare_agent(source, project, platform)?])
            }
            ([name], Some(config)) => Ok(vec![config.agent(name, Some(source), platform)?]),
            ([name], None) => {
                Err(Usage(format!("there is no configuration that could name agent '{name}'")).into())
            }
            _ => Err(Usage("--archive holds one image: name one agent at most".into()).into()),
        };
    }
    let config = match config {
        Some(config) => config,
        None => session.need_config()?,
    };
    let names: Vec<&str> = match args.names.as_slice() {
        [] if args.all => config.names().collect(),
        [] => vec![config.only()?],
        names => names.iter().map(String::as_str).collect(),
    };
    names.into_iter().map(|name| config.agent(name, None, platform)).collect()
}

/// One line for all of it.
fn total(outcomes: &[Outcome], seconds: f64) -> String {
    let stages = || outcomes.iter().flat_map(|outcome| &outcome.stages);
    let count = |status| stages().filter(|stage| stage.status == status).count();
    let size = outcomes.iter().map(|outcome| outcome.size).sum();
    format!(
        "{}, {}, {}, {}, {}",
        format::count(outcomes.len(), "agent", "agents"),
        format::bytes(size),
        format::count(count(StageStatus::Hit), "hit", "hits"),
        format::count(count(StageStatus::Miss), "miss", "misses"),
        format::seconds(seconds)
    )
}
