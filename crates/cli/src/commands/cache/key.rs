//! Artifacts by what people type.

use anyhow::Result;
use smolcellar_pipeline::last_built;
use smolcellar_store::{MachineKey, Store, StoreError};

use crate::exit::Usage;
use crate::session::Session;

/// The artifact that is meant: by its key, or the last one of an agent of the
/// configuration.
pub(crate) fn find(session: &Session, store: &Store, text: &str) -> Result<MachineKey> {
    let config = session.config()?;
    if let Some(config) = config.filter(|config| config.names().any(|name| name == text)) {
        let built = last_built(store, &config.project, text);
        return built.map(|pointer| pointer.key()).ok_or_else(|| {
            Usage(format!("agent '{text}' has no artifact: `cargo xtask build-agent {text}`")).into()
        });
    }
    store.find_machine(text).map_err(|error| match error {
        StoreError::NoEntry { .. } => Usage(error.to_string()).into(),
        error => error.into(),
    })
}
