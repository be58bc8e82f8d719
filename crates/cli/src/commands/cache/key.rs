//! Artifacts and images by what people type.

use std::path::PathBuf;

use anyhow::{Context, Result};
use smolcellar_pipeline::last_built;
use smolcellar_store::{Digest, MachineKey, Store, StoreError};

use crate::exit::{Miss, Usage};
use crate::session::Session;

/// The artifact that `text` names: what an agent of this project was last
/// built to, or the one with such a key.
pub(super) fn find(session: &Session, store: &Store, text: &str) -> Result<MachineKey> {
    match of_agent(session, store, text)? {
        Some(key) => Ok(key),
        None => store.find_machine(text).map_err(as_usage),
    }
}

fn of_agent(session: &Session, store: &Store, name: &str) -> Result<Option<MachineKey>> {
    let config = session.config()?;
    if let Some(pointer) = last_built(store, &project(session)?, name) {
        return Ok(Some(pointer.key()));
    }
    match config.is_some_and(|config| config.names().any(|known| known == name)) {
        true => {
            let text =
                format!("agent '{name}' has no artifact yet; `cargo xtask build-agent {name}` makes one");
            Err(Miss(text).into())
        }
        false => Ok(None),
    }
}

/// The folder whose agents are meant: the configuration's, or this one.
pub(super) fn project(session: &Session) -> Result<PathBuf> {
    match session.config()? {
        Some(config) => Ok(config.project),
        None => std::env::current_dir().context("cannot tell the working folder"),
    }
}

/// The image that `text` names: an agent's, or by its ID, or by an artifact's key.
pub(super) fn find_image(session: &Session, store: &Store, text: &str) -> Result<Digest> {
    if let Some(key) = of_agent(session, store, text)? {
        return Ok(key.image);
    }
    match store.find_image(text) {
        Ok(image) => Ok(image),
        // A key of an artifact, whose image may be gone: that is told better then.
        Err(error @ StoreError::NoEntry { .. }) => match store.find_machine(text) {
            Ok(key) => Ok(key.image),
            Err(_) => Err(as_usage(error)),
        },
        Err(error) => Err(error.into()),
    }
}

/// A name that names nothing is the caller's mistake.
fn as_usage(error: StoreError) -> anyhow::Error {
    match error {
        StoreError::NoEntry { .. } => {
            Usage(format!("{error}; an agent of the configuration here would do too")).into()
        }
        error => error.into(),
    }
}
