//! `cache rm`: artifacts, whatever the policy says; never one that is held.

use anyhow::Result;
use serde_json::json;
use smolcellar_store::gc::{Entry, Root};

use crate::args::Keys;
use crate::exit;
use crate::format;
use crate::output::{self, Format};
use crate::session::Session;

use super::{gc, gc_show, key};

pub(super) fn run(session: &Session, args: &Keys) -> Result<u8> {
    let store = session.store()?;
    let keys = args.keys.iter().map(|text| key::find(session, &store, text)).collect::<Result<Vec<_>>>()?;
    gc::reap(session, &store);
    let digests = gc::Digests::of(&store.inventory()?);
    let collector = store.collector(&session.progress)?;
    let (mut held, mut removed) = (0, Vec::new());
    for key in &keys {
        match collector.remove_machine(key)? {
            Ok(freed) => {
                removed.push(Entry::Machine(*key));
                let (image, recipe) = (key.image, key.recipe);
                match session.global.format {
                    Format::Human => output::line(&format!("{key} removed, {} freed", format::bytes(freed)))?,
                    Format::Json => {
                        output::json(&json!({ "image_id": image, "recipe": recipe, "freed": freed }))?;
                    }
                }
            }
            Err(roots) => {
                held += 1;
                let by: Vec<_> = roots.iter().map(gc_show::held_by).collect();
                let pinned = roots.contains(&Root::Pinned);
                let remedy = if pinned { "; `cargo xtask cache unpin` lets it go" } else { "" };
                output::note(&format!("error: {key} stays: {}{remedy}", by.join(", ")));
            }
        }
    }
    drop(collector);
    gc::tidy(session, &store, &digests.among(&removed), gc::TIDY);
    Ok(if held == 0 { exit::OK } else { exit::FAILED })
}
