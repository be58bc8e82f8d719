//! Which agent a launch is of, and how it is had: found, or built first.

use std::path::PathBuf;

use anyhow::{Context, Result};
use smolcellar_launcher::{Egress, ImageRef, SidecarSpec};
use smolcellar_pipeline::{AgentSpec, Source, changed, last_built};
use smolcellar_store::{Event, Lookup, Machine, Reporter, Store, UseLock};

use crate::args::{Launch, RemoteArgs};
use crate::commands::build_agent::{self, How};
use crate::commands::cache::gc;
use crate::config::Config;
use crate::exit::Usage;
use crate::interrupt::EndChildren;
use crate::remote::Remote;
use crate::session::Session;

/// What is to be launched: an agent of the configuration, or one that was
/// built from an archive and has its name from there.
pub(crate) struct Target {
    pub(crate) name: String,
    project: PathBuf,
    config: Option<Config>,
    pub(crate) agent: Option<AgentSpec>,
    pub(crate) image: Option<ImageRef>,
    remote: RemoteArgs,
    /// Why the configuration cannot build it.
    problem: Option<anyhow::Error>,
}

impl Target {
    pub(crate) fn find(session: &Session, args: &Launch) -> Result<Self> {
        let config = session.config()?;
        let project = match &config {
            Some(config) => config.project.clone(),
            None => std::env::current_dir().context("cannot tell the working folder")?,
        };
        let name = match (&args.name, &config) {
            (Some(name), _) => name.clone(),
            (None, Some(config)) => config.only()?.to_owned(),
            (None, None) => session.need_config()?.only()?.to_owned(),
        };
        let mut problem = None;
        let mut agent = match &config {
            Some(config) if config.names().any(|known| known == name) => {
                match config.agent(&name, None::<Source>, None) {
                    Ok(agent) => Some(agent),
                    // It may have been built from an archive.
                    Err(error) => {
                        problem = Some(error);
                        None
                    }
                }
            }
            _ => None,
        };
        let mut image = None;
        if let Some(AgentSpec { source: Source::Build { build, .. }, .. }) = &mut agent {
            let configured = config.as_ref().is_some_and(|config| config.names_image(&name));
            let mut from = if configured { "config" } else { "default" };
            if let Some(reference) = &args.image {
                build.tag.clone_from(reference);
                from = "environment";
            }
            image = Some(ImageRef { reference: build.tag.clone(), from });
        }
        Ok(Self { name, project, config, agent, image, remote: args.remote.clone(), problem })
    }

    /// The artifact that the agent was last built to, unless the configuration
    /// has changed since; or, where the name is no agent's, the one whose key begins
    /// like it. `full`: hash all of it; `moves`: a damaged one goes to
    /// quarantine. It stays until the lock is dropped.
    pub(crate) fn built(
        &mut self,
        session: &Session,
        store: &Store,
        full: bool,
        moves: bool,
    ) -> Result<Option<(Machine, UseLock)>> {
        let pointer = last_built(store, &self.project, &self.name).map(|pointer| pointer.key());
        let by_key = || self.agent.is_none().then(|| store.find_machine(&self.name).ok()).flatten();
        let Some(key) = pointer.or_else(by_key) else { return Ok(None) };
        let in_use = store.lock_use(&key.lock_name(), &session.progress)?;
        match store.machine(&key, full)? {
            Lookup::Hit(machine) => {
                if pointer.is_none() {
                    self.name.clone_from(&machine.receipt.agent);
                }
                let agent = self.agent.as_ref();
                let changed = agent.map(|agent| changed(agent, &machine.receipt.inputs)).unwrap_or_default();
                if changed.is_empty() {
                    return Ok(Some((*machine, in_use)));
                }
                let text = format!(
                    "the configuration of '{}' says something else than at its last build ({}): it is built again",
                    self.name,
                    changed.join(", ")
                );
                session.progress.report(Event::Note { text: &text });
                Ok(None)
            }
            Lookup::Miss => Ok(None),
            Lookup::Damaged { problem } => {
                // Builders wait for its users, not the other way round.
                drop(in_use);
                // Not in a dry run, nor where nothing can be written: a build says it then.
                let set_aside = || store.quarantine_if_damaged(&key, full, &session.progress);
                let moved = moves && set_aside().is_ok_and(|problem| problem.is_some());
                let done = if moved { "it was quarantined and" } else { "it" };
                let text =
                    format!("the artifact of '{}' is damaged ({problem}); {done} is built again", self.name);
                session.progress.report(Event::Warn { text: &text });
                Ok(None)
            }
        }
    }

    /// Whether there is a way to build it; if not, an error that says so.
    pub(crate) fn buildable(&mut self) -> Result<()> {
        if let Some(problem) = self.problem.take() {
            return Err(problem);
        }
        match (&self.agent, &self.config) {
            (Some(_), _) => Ok(()),
            (None, Some(config)) => config.check_name(&self.name),
            (None, None) => {
                let text =
                    format!("there is no artifact of '{}', and no configuration to build it from", self.name);
                Err(Usage(text).into())
            }
        }
    }

    /// Builds it, or gets it from elsewhere; only that, if nothing is to be built.
    /// It stays until the lock is dropped.
    pub(crate) fn build(
        &self,
        session: &Session,
        store: &Store,
        only_cached: bool,
    ) -> Result<(Machine, UseLock)> {
        let Some(agent) = &self.agent else { anyhow::bail!("nothing says how to build '{}'", self.name) };
        let how = if only_cached { "looking for it elsewhere" } else { "building it first" };
        let text = format!("agent '{}' has no artifact: {how}", self.name);
        session.progress.report(Event::Note { text: &text });
        // Standard output belongs to the guest: stages go to standard error.
        let observer = session.progress.stages_on_stderr();
        let _end_children = EndChildren::on_signals()?;
        let remote = Remote::of(session, &self.remote)?;
        let how = How { remote: remote.as_ref(), only_cached, ..How::default() };
        let (outcome, in_use) = build_agent::build_with(session, store, agent, how, &observer)?;
        gc::after_build(session, store, self.config.as_ref());
        match store.machine(&outcome.key(), false)? {
            Lookup::Hit(machine) => Ok((*machine, in_use)),
            Lookup::Miss | Lookup::Damaged { .. } => {
                anyhow::bail!(
                    "the artifact of '{}' was removed by hand as soon as it was built; run the command again",
                    self.name
                )
            }
        }
    }

    /// What the configuration lets it reach.
    pub(crate) fn egress(&self) -> Egress {
        self.config.as_ref().map(|config| config.egress(&self.name)).unwrap_or_default()
    }

    /// The container beside it, if the configuration has one.
    pub(crate) fn sidecar(&self) -> Result<Option<SidecarSpec>> {
        self.config.as_ref().map_or(Ok(None), |config| config.sidecar(&self.name))
    }
}
