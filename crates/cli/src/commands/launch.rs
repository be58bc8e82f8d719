//! `launch`: an artifact in a microVM, or in a container. Joins the pipeline,
//! which makes artifacts, and the launcher, which knows nothing of how they are
//! made.

use std::fs::File;
use std::io::{IsTerminal, Read, stdin, stdout};
use std::path::Path;

use anyhow::{Context, Result};
use smolcellar_launcher::{
    Artifact, Backend, Egress, ExecIo, LaunchError, LaunchSpec, Launcher, NotationError, Plan, Prompt,
    Signals, machine_name, preflight,
};
use smolcellar_store::{Event, Machine, Reporter};

use crate::args::{BackendArg, Launch};
use crate::commands::target::Target;
use crate::commands::{detach, summary};
use crate::exit::{self, Miss, Usage};
use crate::output::{self, Format};
use crate::remote::Remote;
use crate::session::Session;

pub(crate) fn run(session: &Session, args: &Launch) -> Result<u8> {
    if args.background.is_some() {
        detach::leave_the_terminal();
    }
    let mut target = Target::find(session, args)?;
    // Before there is a store, it must not be made just to look.
    let store = match session.cache_dir()?.join("format.json").exists() {
        true => Some(session.store()?),
        false => None,
    };
    // From here on, nothing collects it.
    let built = match &store {
        Some(store) => target.built(session, store, args.verify, !args.dry_run)?,
        None => None,
    };
    if built.is_none() {
        // Elsewhere is asked once all is agreed upon.
        if args.require_cache && (args.dry_run || Remote::of(session, &args.remote)?.is_none()) {
            let name = &target.name;
            return Err(
                Miss(format!("agent '{name}' has no artifact: `cargo xtask build-agent {name}`")).into()
            );
        }
        target.buildable()?;
    }
    // Once: a prompt may come from standard input.
    let asked = common(args, &target)?;
    let plan = complete(asked.clone(), &target, built.as_ref().map(|(machine, _)| machine))?;
    let plan = Plan::resolve(&plan, &session.assumed_tools(store.as_ref())?).map_err(as_usage)?;
    if args.dry_run {
        match session.global.format {
            Format::Human => output::line(summary::of(&plan).trim_end())?,
            Format::Json => output::json(&plan)?,
        }
        return Ok(exit::OK);
    }
    // Where nothing can boot, nothing is asked, built or made.
    let host = (!args.assume_virtualisation).then(preflight::Host::default);
    if let (Backend::Smolvm, Some(host)) = (plan.backend, &host) {
        host.virtualisation()?;
    }
    if !args.yes && args.background.is_none() && !summary::confirm(&plan)? {
        return Ok(exit::DECLINED);
    }
    let store = match store {
        Some(store) => store,
        None => session.store()?,
    };
    // From here on, so that none is lost between the build's end and the
    // launch; while it builds, a signal still ends the build and us.
    let signals = Signals::catch()?;
    let (machine, _in_use) = match built {
        Some(built) => built,
        None => target.build(session, &store, args.require_cache)?,
    };
    if args.detach && args.background.is_none() {
        return detach::run(session, &store, &plan.machine, &signals);
    }
    store.touch_machine(&machine.receipt.key());
    let spec = of_machine(asked, &machine)?;
    let tools = session.tools(&store, spec.backend, spec.sidecar.is_some())?;
    let take_log = |log: File| detach::write_to(&log);
    let mut launcher = Launcher::new(tools, &store, &session.progress, &signals).with_host(host);
    if args.background.is_some() {
        launcher = launcher.with_log(&take_log);
    }
    let code = launcher
        .run(&spec)
        .map_err(as_usage)
        .with_context(|| format!("cannot launch agent '{}'", target.name))?;
    if spec.keep && args.background.is_none() && signal_of(&signals).is_none() {
        let name = &spec.machine_name;
        let text =
            format!("machine {name} is kept: `cargo xtask exec {name} -- CMD`, `cargo xtask rm -f {name}`");
        session.progress.report(Event::Note { text: &text });
    }
    // Guests have codes of one byte, as we do.
    Ok(u8::try_from(code).unwrap_or(exit::LAUNCHER))
}

fn signal_of(signals: &Signals) -> Option<i32> {
    smolcellar_launcher::Interrupt::signal(signals)
}

/// What is asked for, with the values of the artifact, or of the agent that is
/// to be built.
fn complete(spec: LaunchSpec, target: &Target, built: Option<&Machine>) -> Result<LaunchSpec> {
    match (built, &target.agent) {
        (Some(machine), _) => of_machine(spec, machine),
        (None, None) => Ok(spec),
        (None, Some(agent)) => {
            let overrides = agent.overrides.clone();
            let command = match (spec.command.is_empty(), overrides.entrypoint) {
                (true, Some(entrypoint)) => [entrypoint, overrides.cmd.unwrap_or_default()].concat(),
                _ => spec.command,
            };
            Ok(LaunchSpec {
                command,
                workdir: overrides.workdir,
                user: overrides.user,
                cpus: spec.cpus.or(Some(u32::from(agent.cpus))),
                memory_mib: spec.memory_mib.or(Some(agent.memory_mib)),
                ..spec
            })
        }
    }
}

fn of_machine(spec: LaunchSpec, machine: &Machine) -> Result<LaunchSpec> {
    let manifest = smolcellar_pack::read(&machine.path)?.manifest;
    Ok(LaunchSpec {
        artifact: Some(Artifact {
            key: machine.receipt.key().lock_name(),
            path: machine.path.clone(),
            sha256: machine.receipt.sha256,
        }),
        image_env: manifest.env.iter().filter_map(|pair| pair.split_once('=')).map(owned).collect(),
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

/// What is asked for, by the command line and the configuration.
fn common(args: &Launch, target: &Target) -> Result<LaunchSpec> {
    let mut volumes: Vec<smolcellar_launcher::Volume> = parsed("--volume", &args.volume)?;
    for volume in &mut volumes {
        // It is kept, and used in other folders.
        volume.host = std::path::absolute(&volume.host).context("cannot tell the working folder")?;
    }
    let mut egress: Egress = target.egress();
    egress.allow_cidr.extend(args.allow_cidr.iter().cloned());
    egress.allow_host.extend(args.allow_host.iter().cloned());
    let background = args.background.is_some();
    Ok(LaunchSpec {
        agent: target.name.clone(),
        backend: match args.backend {
            BackendArg::Smolvm => Backend::Smolvm,
            BackendArg::Docker => Backend::Docker,
        },
        image: target.image.clone(),
        artifact: None,
        machine_name: match (&args.background, &args.name_machine) {
            (Some(name), _) | (None, Some(name)) => name.clone(),
            (None, None) => machine_name(&target.name),
        },
        name_chosen: args.name_machine.is_some(),
        command: args.command.clone(),
        image_env: Vec::new(),
        env: variables(&args.env)?,
        secrets: parsed("--secret-env", &args.secret_env)?,
        workdir: None,
        user: None,
        cpus: args.cpus.map(u32::from),
        memory_mib: args.mem,
        volumes,
        ports: parsed("--port", &args.port)?,
        egress,
        sidecar: target.sidecar()?,
        prompt: match &args.prompt_file {
            // The other half reads it.
            Some(path) if args.detach && !background && path == Path::new("-") => {
                Some(Prompt { from: "standard input".into(), text: Vec::new() })
            }
            Some(path) => Some(prompt(path)?),
            None => None,
        },
        keep: args.keep || args.detach,
        io: if args.detach { ExecIo::Stream } else { streams() },
    })
}

/// Options that have a notation.
pub(crate) fn parsed<T>(option: &str, texts: &[String]) -> Result<Vec<T>>
where
    T: std::str::FromStr<Err = NotationError>,
{
    let parse = |text: &String| text.parse().map_err(|error| Usage(format!("{option}: {error}")).into());
    texts.iter().map(parse).collect()
}

/// The largest prompt that is taken, in bytes.
const PROMPT_LIMIT: u64 = 16 << 20;

fn prompt(path: &Path) -> Result<Prompt> {
    let mut text = Vec::new();
    let bad = |problem: String| Usage(format!("--prompt-file {}: {problem}", path.display()));
    let (from, read) = match path == Path::new("-") {
        true => ("standard input".to_owned(), stdin().lock().take(PROMPT_LIMIT + 1).read_to_end(&mut text)),
        false => {
            let file = File::open(path).map_err(|error| bad(error.to_string()))?;
            (path.display().to_string(), file.take(PROMPT_LIMIT + 1).read_to_end(&mut text))
        }
    };
    read.map_err(|error| bad(error.to_string()))?;
    if text.len() as u64 > PROMPT_LIMIT {
        return Err(bad(format!("is longer than {PROMPT_LIMIT} bytes; use a volume")).into());
    }
    Ok(Prompt { from, text })
}

/// A terminal for the guest if we have one, else our streams as they are.
pub(crate) fn streams() -> ExecIo {
    match stdin().is_terminal() && stdout().is_terminal() {
        true => ExecIo::Terminal,
        false => ExecIo::Interactive,
    }
}

/// A wrong option is the caller's mistake, wherever it is noticed.
pub(crate) fn as_usage(error: LaunchError) -> anyhow::Error {
    match error {
        LaunchError::BadOption { .. }
        | LaunchError::NoCommand
        | LaunchError::NoMachine { .. }
        | LaunchError::Ambiguous { .. } => Usage(error.to_string()).into(),
        other => other.into(),
    }
}

/// What `--env` says.
pub(crate) fn variables(pairs: &[String]) -> Result<Vec<(String, String)>> {
    let variable = |pair: &String| match pair.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(Usage(format!("--env '{pair}': write it as NAME=VALUE")).into()),
    };
    pairs.iter().map(variable).collect()
}

fn owned((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_needs_a_name_and_may_hold_equals_signs() {
        let one = |pair: &str| variables(&[pair.to_owned()]);
        assert_eq!(one("A=b=c").unwrap(), [("A".to_owned(), "b=c".to_owned())]);
        assert!(one("A").is_err() && one("=x").is_err());
    }
}
