//! `shell`: one in a machine that was launched.

use anyhow::Result;

use crate::args::Shell;
use crate::commands::exec::in_guest;
use crate::session::Session;

pub(crate) fn run(session: &Session, args: &Shell) -> Result<u8> {
    in_guest(session, &args.machine, vec![args.shell.clone()], &args.with)
}
