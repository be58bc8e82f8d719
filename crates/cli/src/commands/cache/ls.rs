//! `cache ls`: the artifacts.

use std::collections::HashMap;
use std::time::UNIX_EPOCH;

use anyhow::Result;
use serde_json::json;
use smolcellar_store::{Event, MachineReceipt, Reporter, UsedMachine};

use crate::exit;
use crate::format;
use crate::output::{self, Format};
use crate::session::Session;

pub(super) fn run(session: &Session) -> Result<u8> {
    let store = session.store()?;
    let list = store.machines()?;
    let (pins, leases) = (store.pins()?, store.leases()?);
    let machines = &list.machines;
    for error in &list.broken {
        session.progress.report(Event::Warn { text: &error.to_string() });
    }
    let mut launched: HashMap<&str, Vec<&str>> = HashMap::new();
    for lease in &leases {
        launched.entry(&lease.record.artifact).or_default().push(&lease.record.machine);
    }
    let of = |receipt: &MachineReceipt| {
        let machines = launched.get(receipt.key().lock_name().as_str()).cloned().unwrap_or_default();
        (pins.contains(&receipt.key()), machines)
    };
    if session.global.format == Format::Json {
        for UsedMachine { machine, used, allocated } in machines {
            let receipt = &machine.receipt;
            let (pinned, launched) = of(receipt);
            let used = used.duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
            output::json(&json!({
                "agent": receipt.agent,
                "image_id": receipt.image,
                "recipe": receipt.recipe,
                "artifact": machine.path,
                "size": receipt.size,
                "allocated": allocated,
                "sha256": receipt.sha256,
                "built_at": receipt.built_at,
                "used_at": used,
                "pinned": pinned,
                "machines": launched,
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
        .map(|UsedMachine { machine, used, allocated }| {
            let receipt = &machine.receipt;
            let (pinned, launched) = of(receipt);
            let mut held = if pinned { vec!["pinned".to_owned()] } else { Vec::new() };
            held.extend((!launched.is_empty()).then(|| format::count(launched.len(), "machine", "machines")));
            vec![
                receipt.agent.clone(),
                receipt.image.short(),
                receipt.recipe.short(),
                format::bytes(receipt.size),
                format::bytes(*allocated),
                format::ago(*used),
                held.join(", "),
            ]
        })
        .collect();
    output::table(
        &["AGENT", "IMAGE", "RECIPE", "SIZE", "ON DISK", "USED", "HELD"],
        &[false, false, false, true, true, false, false],
        &rows,
    )?;
    Ok(exit::OK)
}
