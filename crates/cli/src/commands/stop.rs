//! `stop`: ends all that runs in machines.

use anyhow::Result;
use smolcellar_launcher::{Launcher, Signals};

use crate::args::Stop;
use crate::exit;
use crate::output;
use crate::session::Session;

pub(crate) fn run(session: &Session, args: &Stop) -> Result<u8> {
    let store = session.store()?;
    let signals = Signals::catch()?;
    for machine in &args.machines {
        let (launched, tools) = session.launched(&store, machine)?;
        Launcher::new(tools, &store, &session.progress, &signals).stop(&launched)?;
        output::line(&launched.machine)?;
    }
    Ok(exit::OK)
}
