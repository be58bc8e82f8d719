//! `build-agent`: agents into artifacts.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use smolcellar_engine::Engine;
use smolcellar_oci::Reference;
use smolcellar_pipeline::{
    AgentSpec, Context, Elsewhere, Observer, Outcome, Packer, Pulled, Source, StageName, StageStatus,
};
use smolcellar_store::{Store, UseLock};

use crate::args::{BuildAgent, PackerArg, Stage};
use crate::commands::cache::gc;
use crate::commands::{plan, push_image, why};
use crate::config::bare_agent;
use crate::exit::{self, Usage};
use crate::format;
use crate::interrupt::EndChildren;
use crate::output::{self, Format};
use crate::remote::Remote;
use crate::session::Session;

pub(crate) fn run(session: &Session, args: &BuildAgent) -> Result<u8> {
    let _end_children = EndChildren::on_signals()?;
    let mut agents = agents(session, args)?;
    for agent in &mut agents {
        agent.packer = match args.packer {
            PackerArg::Native => Packer::Native,
            PackerArg::Smolvm => Packer::Smolvm,
        };
    }
    let agents = agents;
    let targets = push_image::targets(session, args.registry.as_deref(), &agents)?;
    let store = session.store()?;
    if args.plan {
        return plan::show(session, &store, &agents);
    }
    let remote = Remote::of(session, &args.remote)?;
    // Where others may have it, that is found out by asking them.
    if args.require_cache && (remote.is_none() || args.registry.is_some()) {
        plan::require(session, &store, &agents)?;
    }
    let began = Instant::now();
    let mut outcomes = Vec::new();
    for (agent, target) in agents.iter().zip(&targets) {
        outcomes.push(build(session, &store, agent, args, remote.as_ref(), target.as_ref())?);
    }
    if session.global.format == Format::Human {
        output::line(&total(&outcomes, began.elapsed().as_secs_f64()))?;
    }
    if outcomes.iter().flat_map(|outcome| &outcome.stages).any(|stage| stage.status == StageStatus::Miss) {
        let keys = outcomes.iter().map(Outcome::key).collect();
        gc::after_build_of(session, &store, session.config()?.as_ref(), keys)?;
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
    remote: Option<&Remote<'_>>,
    target: Option<&Reference>,
) -> Result<Outcome> {
    let human = session.global.format == Format::Human;
    // Set-up may have things to say of its own.
    session.runtime(store)?;
    if human {
        output::line(&agent.name)?;
    }
    let (force, only_cached) = (args.force.map(stage), args.require_cache);
    // A remote cache has artifacts, no images.
    let how = How { force, only_cached, remote, needs_image: target.is_some() };
    let (mut outcome, in_use) = build_with(session, store, agent, how, &session.progress)?;
    let pushed = target.map(|target| {
        if !push_image::is_here(session, store, agent, &outcome, how)? {
            // Its image was collected since. What is made again may be another one.
            let again = How { force: Some(StageName::Tarball), ..how };
            // Nobody waits for a build lock who has a use lock.
            drop(in_use);
            outcome = build_with(session, store, agent, again, &session.progress.stages_on_stderr())?.0;
        }
        push_image::push(session, store, &outcome, target)
            .with_context(|| format!("cannot push the image of agent '{}' to {target}", agent.name))
    });
    // The artifact is in the cache, whatever becomes of the push.
    if !args.explain {
        outcome.why.clear();
    }
    if human {
        for line in why::lines(&outcome.why) {
            output::line(&format!("  {line}"))?;
        }
        if let Some(pulled) = &outcome.pulled {
            output::line(&format!("  {}", pulled_line(pulled)))?;
        }
        output::line(&format!("  {}", outcome.artifact.display()))?;
    } else {
        output::json(&push_image::WithPush::new(&outcome, pushed.as_ref()))?;
    }
    push_image::say(session, pushed)?;
    Ok(outcome)
}

/// What came from elsewhere, for people.
fn pulled_line(pulled: &Pulled) -> String {
    let reused = match pulled.reused {
        0 => String::new(),
        reused => format!(", {} were here", format::bytes(reused)),
    };
    format!("pulled       {}: {}{reused}", pulled.from, format::bytes(pulled.fetched))
}

/// How to build.
#[derive(Clone, Copy, Default)]
pub(crate) struct How<'a> {
    /// From which stage on everything is made again.
    pub(crate) force: Option<StageName>,
    /// Whether nothing is to be made.
    pub(crate) only_cached: bool,
    /// The cache that others share.
    pub(crate) remote: Option<&'a Remote<'a>>,
    /// Whether the image is to be here too: then nothing is pulled.
    pub(crate) needs_image: bool,
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
    how: How<'_>,
    observer: &dyn Observer,
) -> Result<(Outcome, UseLock)> {
    let engine = match &agent.source {
        Source::Build { .. } => Some(Engine::find(session.global.engine.as_deref())?),
        Source::Archive(_) | Source::Stdin => None,
    };
    let runtime = session.runtime(store)?;
    let How { force, only_cached, remote, needs_image } = how;
    let elsewhere = remote.filter(|_| !needs_image).map(|remote| remote as &dyn Elsewhere);
    let context = Context {
        store,
        runtime: &runtime,
        engine: engine.as_ref(),
        observer,
        force,
        only_cached,
        elsewhere,
    };
    let (outcome, in_use) = smolcellar_pipeline::run(context, agent)
        .with_context(|| format!("cannot build agent '{}'", agent.name))?;
    if let Some(remote) = remote {
        remote.offer(store, &outcome);
    }
    Ok((outcome, in_use))
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
