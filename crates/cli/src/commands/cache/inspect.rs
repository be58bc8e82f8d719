//! `cache inspect`: all that is known of an artifact.

use std::time::{Duration, UNIX_EPOCH};

use anyhow::Result;
use serde_json::json;
use smolcellar_store::gc::MachineEntry;
use smolcellar_store::{Lookup, Machine, StageReceipt};

use super::{gc_show, key};
use crate::args::Keys;
use crate::commands::why::value;
use crate::exit::{self, Miss};
use crate::format;
use crate::output::{self, Format};
use crate::session::Session;

pub(super) fn run(session: &Session, args: &Keys) -> Result<u8> {
    let store = session.store()?;
    // Before our own lock, which would count as a use.
    let inventory = store.inventory()?;
    for text in &args.keys {
        let key = key::find(session, &store, text)?;
        let _in_use = store.lock_use(&key.lock_name(), &session.progress)?;
        let entry = inventory.machines.iter().find(|entry| entry.key == key);
        let (Lookup::Hit(machine), Some(entry)) = (store.machine(&key, false)?, entry) else {
            let text =
                format!("the artifact {key} is not in the cache, or damaged: `cargo xtask cache verify`");
            return Err(Miss(text).into());
        };
        let stages = ["tarball", "registry"].into_iter();
        let stages: Vec<_> =
            stages.filter_map(|stage| store.stage_receipt(&key.image, stage).ok().flatten()).collect();
        let frames = smolcellar_pack::read(&machine.path)?.index.map(|index| index.frames.len());
        match session.global.format {
            Format::Json => {
                let used = entry.used.duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
                output::json(&json!({
                    "artifact": machine.path,
                    "receipt": machine.receipt,
                    "allocated": entry.allocated,
                    "frames": frames,
                    "used_at": used,
                    "held_by": entry.roots.iter().map(gc_show::root_json).collect::<Vec<_>>(),
                    "stages": stages,
                }))?;
            }
            Format::Human => {
                for (name, value) in rows(&machine, entry, &stages, frames) {
                    output::line(format!("{name:<20} {value}").trim_end())?;
                }
            }
        }
    }
    Ok(exit::OK)
}

fn rows(
    machine: &Machine,
    entry: &MachineEntry,
    stages: &[StageReceipt],
    frames: Option<usize>,
) -> Vec<(String, String)> {
    let receipt = &machine.receipt;
    let built = UNIX_EPOCH + Duration::from_secs(receipt.built_at);
    let held: Vec<_> = entry.roots.iter().map(gc_show::held_by).collect();
    let frames = frames.map_or("not ours: no index".to_owned(), |frames| frames.to_string());
    let took = format::seconds(receipt.millis as f64 / 1e3);
    let mut rows = vec![
        ("artifact", machine.path.display().to_string()),
        ("agent", receipt.agent.clone()),
        ("image", receipt.image.to_string()),
        ("recipe", receipt.recipe.to_string()),
        ("sha256", receipt.sha256.to_string()),
        ("size", format!("{} ({} bytes)", format::bytes(receipt.size), receipt.size)),
        ("on disk", format::bytes(entry.allocated)),
        ("frames", frames),
        ("built", format!("{}, in {took}", format::ago(built))),
        ("used", format::ago(entry.used)),
        ("held by", if held.is_empty() { "nothing".to_owned() } else { held.join(", ") }),
    ];
    for stage in stages {
        let blobs = format::count(stage.blobs.len(), "blob", "blobs");
        rows.push((stage.stage.as_str(), format!("{}, {blobs}", format::bytes(stage.bytes()))));
    }
    rows.push(("inputs", String::new()));
    let named = rows.into_iter().map(|(name, value)| (name.to_owned(), value));
    let inputs = receipt.inputs.iter().map(|(name, input)| (format!("  {name}"), value(Some(input))));
    named.chain(inputs).collect()
}
