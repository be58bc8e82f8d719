//! `cache`: a look into the store, and its upkeep.

mod du;
mod export;
pub(crate) mod gc;
mod gc_show;
mod import;
mod inspect;
mod key;
mod ls;
mod of_remote;
mod pin;
mod pull;
mod push;
mod repair;
mod rm;
mod stats;
mod verify;
mod why;

use anyhow::Result;
use serde_json::json;

use crate::args::{Cache, OfRemote};
use crate::exit;
use crate::output::{self, Format};
use crate::session::Session;

pub(crate) fn run(session: &Session, command: &Cache) -> Result<u8> {
    match command {
        Cache::Dir => dir(session),
        Cache::Ls(OfRemote { remote: Some(remote) }) => of_remote::ls(session, remote),
        Cache::Ls(OfRemote { remote: None }) => ls::run(session),
        Cache::Du(OfRemote { remote: Some(remote) }) => of_remote::du(session, remote),
        Cache::Du(OfRemote { remote: None }) => du::run(session),
        Cache::Push(args) => push::run(session, args),
        Cache::Pull(args) => pull::run(session, args),
        Cache::Export(args) => export::run(session, args),
        Cache::Import(args) => import::run(session, args),
        Cache::Gc(args) => gc::run(session, args),
        Cache::Pin(args) => pin::pin(session, args),
        Cache::Unpin(args) => pin::unpin(session, args),
        Cache::Rm(args) => rm::run(session, args),
        Cache::Inspect(args) => inspect::run(session, args),
        Cache::Stats(args) => stats::run(session, args),
        Cache::Why(args) => why::run(session, args),
        Cache::Verify(args) => verify::run(session, args),
    }
}

/// Asks nothing of the folder: it need not be there.
fn dir(session: &Session) -> Result<u8> {
    let dir = session.cache_dir()?;
    match session.global.format {
        Format::Human => output::line(&dir.display().to_string())?,
        Format::Json => output::json(&json!({ "dir": dir }))?,
    }
    Ok(exit::OK)
}
