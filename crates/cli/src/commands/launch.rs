//! `launch`: an artifact in a microVM. Joins the pipeline, which makes
//! artifacts, and the launcher, which knows nothing of how they are made.

use std::io::{IsTerminal, stdin, stdout};
use std::path::PathBuf;

use anyhow::{Context, Result};
use smolcellar_launcher::{
    Artifact, Cli, Egress, ExecIo, ImageRef, LaunchError, LaunchSpec, NotationError, Plan, Signals, launch,
    machine_name, preflight,
};
use smolcellar_pipeline::{AgentSpec, Source, last_built};
use smolcellar_smolvm::{PINNED_VERSION, Runtime, RuntimeConfig};
use smolcellar_store::{Event, Lookup, Machine, MachineKey, Reporter, Store};

use crate::args::Launch;
use crate::commands::build_agent;
use crate::commands::summary;
use crate::config::Config;
use crate::exit::{self, Usage};
use crate::interrupt::EndChildren;
use crate::output::{self, Format};
use crate::session::Session;

pub(crate) fn run(session: &Session, args: &Launch) -> Result<u8> {
    let mut target = Target::find(session, args)?;
    // Before there is a store, it must not be made just to look.
    let store = match session.cache_dir()?.join("format.json").exists() {
        true => Some(session.store()?),
        false => None,
    };
    let built = match &store {
        Some(store) => target.built(session, store)?,
        None => None,
    };
    if built.is_none() {
        target.buildable()?;
    }
    let spec = spec(args, &target, built.as_ref())?;
    let config = RuntimeConfig { dir: session.global.smolvm_dir.clone() };
    let known = match &store {
        Some(store) => smolcellar_smolvm::known(store, &config)?,
        None => None,
    };
    let cli = match &known {
        Some(runtime) => Cli::new(runtime)?,
        None => Cli::assumed(PINNED_VERSION),
    };
    let plan = Plan::resolve(spec, &cli).map_err(as_usage)?;
    if args.dry_run {
        match session.global.format {
            Format::Human => output::line(summary::of(&plan).trim_end())?,
            Format::Json => output::json(&plan)?,
        }
        return Ok(exit::OK);
    }
    // Where nothing can boot, nothing is asked, built or made.
    preflight::Host::default().virtualisation()?;
    if !args.yes && !summary::confirm(&plan)? {
        return Ok(exit::DECLINED);
    }
    let store = match store {
        Some(store) => store,
        None => session.store()?,
    };
    // From here on, so that none is lost between the build's end and the
    // launch; while it builds, a signal still ends the build and us.
    let signals = Signals::catch()?;
    let machine = match built {
        Some(machine) => machine,
        None => target.build(session, &store)?,
    };
    store.touch_machine(&machine.receipt.key());
    let runtime: Runtime = session.runtime(&store)?;
    let mut spec = spec_of_machine(args, &target, &machine)?;
    spec.machine_name.clone_from(&plan.machine);
    let code = launch(&runtime, &store, spec, &session.progress, &signals)
        .map_err(as_usage)
        .with_context(|| format!("cannot launch agent '{}'", target.name))?;
    // Guests have codes of one byte, as we do.
    Ok(u8::try_from(code).unwrap_or(exit::LAUNCHER))
}

/// What is to be launched: an agent of the configuration, or one that was
/// built from an archive and has its name from there.
struct Target {
    name: String,
    project: PathBuf,
    config: Option<Config>,
    agent: Option<AgentSpec>,
    image: Option<ImageRef>,
    /// Why the configuration cannot build it.
    problem: Option<anyhow::Error>,
}

impl Target {
    fn find(session: &Session, args: &Launch) -> Result<Self> {
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
        Ok(Self { name, project, config, agent, image, problem })
    }

    /// The artifact that the agent was last built to.
    fn built(&self, session: &Session, store: &Store) -> Result<Option<Machine>> {
        let Some(pointer) = last_built(store, &self.project, &self.name) else { return Ok(None) };
        match store.machine(&pointer.key(), false)? {
            Lookup::Hit(machine) => Ok(Some(*machine)),
            Lookup::Miss => Ok(None),
            Lookup::Damaged { problem } => {
                let text =
                    format!("the artifact of '{}' is damaged ({problem}); it is built again", self.name);
                session.progress.report(Event::Warn { text: &text });
                Ok(None)
            }
        }
    }

    /// Whether there is a way to build it; if not, an error that says so.
    fn buildable(&mut self) -> Result<()> {
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

    fn build(&self, session: &Session, store: &Store) -> Result<Machine> {
        let Some(agent) = &self.agent else { anyhow::bail!("nothing says how to build '{}'", self.name) };
        let text = format!("agent '{}' has no artifact yet: building it first", self.name);
        session.progress.report(Event::Note { text: &text });
        // Standard output belongs to the guest: stages go to standard error.
        let observer = session.progress.stages_on_stderr();
        let _end_children = EndChildren::on_signals()?;
        let outcome = build_agent::build_with(session, store, agent, &observer)?;
        let key = MachineKey { image: outcome.image_id.0, recipe: outcome.recipe };
        match store.machine(&key, false)? {
            Lookup::Hit(machine) => Ok(*machine),
            Lookup::Miss | Lookup::Damaged { .. } => {
                anyhow::bail!(
                    "the artifact of '{}' was removed as soon as it was built; run the command again",
                    self.name
                )
            }
        }
    }
}

/// What is asked for, with the artifact's own values where it is built.
fn spec(args: &Launch, target: &Target, built: Option<&Machine>) -> Result<LaunchSpec> {
    match built {
        Some(machine) => spec_of_machine(args, target, machine),
        None => {
            let mut spec = common(args, target)?;
            if let Some(agent) = &target.agent {
                let overrides = &agent.overrides;
                if spec.command.is_empty()
                    && let Some(entrypoint) = &overrides.entrypoint
                {
                    spec.command = [entrypoint.clone(), overrides.cmd.clone().unwrap_or_default()].concat();
                }
                spec.workdir.clone_from(&overrides.workdir);
                spec.user.clone_from(&overrides.user);
                spec.cpus = spec.cpus.or(Some(u32::from(agent.cpus)));
                spec.memory_mib = spec.memory_mib.or(Some(agent.memory_mib));
            }
            Ok(spec)
        }
    }
}

fn spec_of_machine(args: &Launch, target: &Target, machine: &Machine) -> Result<LaunchSpec> {
    let manifest = smolcellar_pack::read(&machine.path)?.manifest;
    let spec = common(args, target)?;
    Ok(LaunchSpec {
        artifact: Some(Artifact { key: machine.receipt.key().lock_name(), path: machine.path.clone() }),
        command: match spec.command.is_empty() {
            true => [manifest.entrypoint, manifest.cmd].concat(),
            false => spec.command,
        },
        workdir: manifest.workdir,
        user: manifest.user,
        cpus: spec.cpus.or(Some(u32::from(manifest.cpus))),
        memory_mib: spec.memory_mib.or(Some(manifest.mem)),
        ..spec
    })
}

fn common(args: &Launch, target: &Target) -> Result<LaunchSpec> {
    fn parsed<T: std::str::FromStr<Err = NotationError>>(option: &str, texts: &[String]) -> Result<Vec<T>> {
        let parse = |text: &String| text.parse().map_err(|error| Usage(format!("{option}: {error}")).into());
        texts.iter().map(parse).collect()
    }
    let mut volumes: Vec<smolcellar_launcher::Volume> = parsed("--volume", &args.volume)?;
    for volume in &mut volumes {
        // smolvm keeps it, and runs elsewhere.
        volume.host = std::path::absolute(&volume.host).context("cannot tell the working folder")?;
    }
    Ok(LaunchSpec {
        agent: target.name.clone(),
        image: target.image.clone(),
        artifact: None,
        machine_name: machine_name(&target.name),
        command: args.command.clone(),
        env: args.env.iter().map(|pair| variable(pair)).collect::<Result<Vec<_>>>()?,
        secrets: parsed("--secret-env", &args.secret_env)?,
        workdir: None,
        user: None,
        cpus: args.cpus.map(u32::from),
        memory_mib: args.mem,
        volumes,
        ports: parsed("--port", &args.port)?,
        egress: Egress { allow_cidr: args.allow_cidr.clone(), allow_host: args.allow_host.clone() },
        io: streams(),
    })
}

/// A terminal for the guest if we have one, else our streams as they are.
fn streams() -> ExecIo {
    match stdin().is_terminal() && stdout().is_terminal() {
        true => ExecIo::Terminal,
        false => ExecIo::Interactive,
    }
}

/// A wrong option is the caller's mistake, wherever it is noticed.
fn as_usage(error: LaunchError) -> anyhow::Error {
    match error {
        LaunchError::BadOption { .. } | LaunchError::NoCommand => Usage(error.to_string()).into(),
        other => other.into(),
    }
}

fn variable(pair: &str) -> Result<(String, String)> {
    match pair.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(Usage(format!("--env '{pair}': write it as NAME=VALUE")).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_needs_a_name_and_may_hold_equals_signs() {
        assert_eq!(variable("A=b=c").unwrap(), ("A".to_owned(), "b=c".to_owned()));
        assert!(variable("A").is_err() && variable("=x").is_err());
    }
}
