//! `cache push`: artifacts to a registry.

use anyhow::{Context, Result};
use serde_json::json;
use smolcellar_pipeline::seen_of;

use super::key;
use crate::args::CachePush;
use crate::exit;
use crate::output::{self, Format};
use crate::remote::Remote;
use crate::session::Session;

pub(super) fn run(session: &Session, args: &CachePush) -> Result<u8> {
    let store = session.store()?;
    let keys = args.keys.iter().map(|text| key::find(session, &store, text)).collect::<Result<Vec<_>>>()?;
    let remote = Remote::named(session, args.to.clone())?;
    for key in keys {
        // Every build that is known to have made the image leads to it from elsewhere too.
        let seen = seen_of(&store, smolcellar_oci::ImageId(key.image));
        let sent = remote
            .send(&store, &key, &seen)
            .with_context(|| format!("cannot send {key} to {}", remote.place()))?;
        match session.global.format {
            Format::Human => output::line(&format!("{key}: {}", sent.text()))?,
            Format::Json => output::json(&json!({
                "image_id": key.image, "recipe": key.recipe, "to": sent.to, "status": sent.status, "bytes": sent.bytes,
            }))?,
        }
    }
    Ok(exit::OK)
}
