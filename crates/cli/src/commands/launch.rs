//! `launch`: an artifact in a microVM. Joins the pipeline, which makes
//! artifacts, and the launcher, which knows nothing of how they are made.

use std::io::{IsTerminal, stdin, stdout};

use anyhow::{Context, Result};
use smolcellar_launcher::{ExecIo, LaunchSpec, Signals, launch, machine_name, preflight};
use smolcellar_pipeline::{Source, last_built};
use smolcellar_store::{Event, Lookup, Machine, MachineKey, Reporter, Store};

use crate::args::Launch;
use crate::commands::build_agent;
use crate::exit::Usage;
use crate::session::Session;

pub(crate) fn run(session: &Session, args: &Launch) -> Result<u8> {
    let env = args.env.iter().map(|pair| variable(pair)).collect::<Result<Vec<_>>>()?;
    // First of all: where nothing can boot, nothing is built or made.
    preflight::Host::default().virtualisation()?;
    let store = session.store()?;
    let (name, machine) = artifact(session, &store, args)?;
    let packed = smolcellar_pack::read(&machine.path)?;
    let command = match args.command.is_empty() {
        true => [packed.manifest.entrypoint.clone(), packed.manifest.cmd.clone()].concat(),
        false => args.command.clone(),
    };
    let runtime = session.runtime(&store)?;
    let spec = LaunchSpec {
        artifact: machine.path.clone(),
        artifact_key: machine.receipt.key().lock_name(),
        machine_name: machine_name(&name),
        command,
        env,
        workdir: packed.manifest.workdir.clone(),
        user: packed.manifest.user.clone(),
        cpus: args.cpus.map(u32::from),
        memory_mib: args.mem,
        allow_cidrs: args.allow_cidr.clone(),
        io: streams(),
    };
    let signals = Signals::catch()?;
    let code = launch(&runtime, &store, spec, &session.progress, &signals)
        .with_context(|| format!("cannot launch agent '{name}'"))?;
    // Guests have codes of one byte, as we do.
    Ok(u8::try_from(code).unwrap_or(crate::exit::LAUNCHER))
}

/// A terminal for the guest if we have one, else our streams as they are.
fn streams() -> ExecIo {
    match stdin().is_terminal() && stdout().is_terminal() {
        true => ExecIo::Terminal,
        false => ExecIo::Interactive,
    }
}

/// The artifact that the agent was last built to; built now if there is none.
fn artifact(session: &Session, store: &Store, args: &Launch) -> Result<(String, Machine)> {
    let config = session.need_config()?;
    let name = match &args.name {
        Some(name) => name.as_str(),
        None => config.only()?,
    };
    config.check_name(name)?;
    if let Some(pointer) = last_built(store, &config.project, name) {
        match store.machine(&pointer.key(), false)? {
            Lookup::Hit(machine) => {
                store.touch_machine(&pointer.key());
                return Ok((name.to_owned(), *machine));
            }
            Lookup::Miss => {}
            Lookup::Damaged { problem } => {
                let text = format!("the artifact of '{name}' is damaged ({problem}); it is built again");
                session.progress.report(Event::Warn { text: &text });
            }
        }
    }
    let text = format!("agent '{name}' has no artifact yet: building it first");
    session.progress.report(Event::Note { text: &text });
    let agent = config.agent(name, None::<Source>, None)?;
    // Standard output belongs to the guest: stages go to standard error.
    let observer = session.progress.stages_on_stderr();
    let outcome = build_agent::build_with(session, store, &agent, &observer)?;
    let key = MachineKey { image: outcome.image_id.0, recipe: outcome.recipe };
    match store.machine(&key, false)? {
        Lookup::Hit(machine) => Ok((name.to_owned(), *machine)),
        Lookup::Miss | Lookup::Damaged { .. } => {
            anyhow::bail!(
                "the artifact of '{name}' was removed as soon as it was built; run the command again"
            )
        }
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
