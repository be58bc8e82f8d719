//! `cache pin` and `cache unpin`.

use anyhow::Result;
use serde_json::json;
use smolcellar_store::{Lookup, MachineKey, Store};

use crate::args::Keys;
use crate::exit::{self, Usage};
use crate::output::{self, Format};
use crate::session::Session;

use super::key;

pub(super) fn pin(session: &Session, args: &Keys) -> Result<u8> {
    let store = session.store()?;
    for text in &args.keys {
        let key = key::find(session, &store, text)?;
        let lock = store.lock_use(&key.lock_name(), &session.progress)?;
        // What is not there any more cannot be kept.
        if matches!(store.machine(&key, false)?, Lookup::Miss) {
            return Err(Usage(format!("the artifact {key} is gone; build it again first")).into());
        }
        let new = store.pin(&key, &lock)?;
        say(session, &key, true, if new { "pinned" } else { "pinned already" })?;
    }
    Ok(exit::OK)
}

pub(super) fn unpin(session: &Session, args: &Keys) -> Result<u8> {
    let store = session.store()?;
    for text in &args.keys {
        let key = pinned(session, &store, text)?;
        let gone = store.unpin(&key)?;
        say(session, &key, false, if gone { "unpinned" } else { "was not pinned" })?;
    }
    Ok(exit::OK)
}

/// The artifact that is meant. A pin may be left of one that was deleted by
/// hand.
fn pinned(session: &Session, store: &Store, text: &str) -> Result<MachineKey> {
    let found = key::find(session, store, text);
    let Err(error) = found else { return found };
    let mut left = store.pins()?.into_iter().filter(|key| {
        let name = key.lock_name();
        let wanted = text.replace("sha256:", "").replace('/', "-");
        let (short, long) = (key.to_string().replace('/', "-"), name);
        wanted.len() >= 4 && (long.starts_with(&wanted) || short.starts_with(&wanted))
    });
    match (left.next(), left.next()) {
        (Some(key), None) => Ok(key),
        _ => Err(error),
    }
}

fn say(session: &Session, key: &MachineKey, pinned: bool, text: &str) -> Result<()> {
    match session.global.format {
        Format::Human => output::line(&format!("{key} {text}")),
        Format::Json => {
            output::json(&json!({ "image_id": key.image, "recipe": key.recipe, "pinned": pinned }))
        }
    }
}
