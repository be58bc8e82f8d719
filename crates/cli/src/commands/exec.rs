//! `exec`: a command in a machine that was launched.

use anyhow::{Context, Result};
use smolcellar_launcher::{ExecRequest, Launcher, Signals};

use crate::args::{Exec, InGuest};
use crate::commands::launch::{as_usage, parsed, streams, variables};
use crate::exit;
use crate::session::Session;

pub(crate) fn run(session: &Session, args: &Exec) -> Result<u8> {
    in_guest(session, &args.machine, args.command.clone(), &args.with)
}

/// Runs a command with our streams; its exit code.
pub(crate) fn in_guest(session: &Session, machine: &str, command: Vec<String>, with: &InGuest) -> Result<u8> {
    let request = ExecRequest {
        command,
        env: variables(&with.env)?,
        secrets: parsed("--secret-env", &with.secret_env)?,
        workdir: with.workdir.clone(),
        user: with.user.clone(),
    };
    let store = session.store()?;
    let (launched, tools) = session.launched(&store, machine)?;
    let signals = Signals::catch()?;
    let code = Launcher::new(tools, &store, &session.progress, &signals)
        .exec(&launched, request, streams())
        .map_err(as_usage)
        .with_context(|| format!("cannot run a command in machine {}", launched.machine))?;
    Ok(u8::try_from(code).unwrap_or(exit::LAUNCHER))
}
