//! `rm`: takes machines down, with all that belongs to them.

use anyhow::Result;
use smolcellar_launcher::{Launcher, Signals};

use crate::args::Rm;
use crate::exit;
use crate::output;
use crate::session::Session;

pub(crate) fn run(session: &Session, args: &Rm) -> Result<u8> {
    let store = session.store()?;
    let signals = Signals::catch()?;
    for machine in &args.machines {
        let (launched, tools) = session.launched(&store, machine)?;
        Launcher::new(tools, &store, &session.progress, &signals).remove(&launched, args.force)?;
        output::line(&launched.machine)?;
    }
    Ok(exit::OK)
}
