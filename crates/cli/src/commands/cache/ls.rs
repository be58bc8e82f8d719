//! `cache ls`: the artifacts.

use std::time::UNIX_EPOCH;

use anyhow::Result;
use serde_json::json;
use smolcellar_store::{Event, Reporter, UsedMachine};

use crate::exit;
use crate::format;
use crate::output::{self, Format};
use crate::session::Session;

pub(super) fn run(session: &Session) -> Result<u8> {
    let list = session.store()?.machines()?;
    let machines = &list.machines;
    for error in &list.broken {
        session.progress.report(Event::Warn { text: &error.to_string() });
    }
    if session.global.format == Format::Json {
        for UsedMachine { machine, used } in machines {
            let receipt = &machine.receipt;
            let used = used.duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
            output::json(&json!({
                "agent": receipt.agent,
                "image_id": receipt.image,
                "recipe": receipt.recipe,
                "artifact": machine.path,
                "size": receipt.size,
                "sha256": receipt.sha256,
                "built_at": receipt.built_at,
                "used_at": used,
            }))?;
        }
        return Ok(exit::OK);
    }
    if machines.is_empty() {
        output::line("no artifacts; `cargo xtask build-agent` makes one")?;
        return Ok(exit::OK);
    }
    let rows: Vec<Vec<String>> = machines
        .iter()
        .map(|UsedMachine { machine, used }| {
            let receipt = &machine.receipt;
            vec![
                receipt.agent.clone(),
                receipt.image.short(),
                receipt.recipe.short(),
                format::bytes(receipt.size),
                format::ago(*used),
            ]
        })
        .collect();
    output::table(&["AGENT", "IMAGE", "RECIPE", "SIZE", "USED"], &[false, false, false, true, false], &rows)?;
    Ok(exit::OK)
}
