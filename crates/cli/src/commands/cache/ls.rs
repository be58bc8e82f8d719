//! `cache ls`: the artifacts.

use std::collections::HashMap;
use std::time::UNIX_EPOCH;

use anyhow::Result;
use serde_json::json;
use smolcellar_store::{Event, MachineKey, Reporter};

use crate::exit;
use crate::format;
use crate::output::{self, Format};
use crate::session::Session;

pub(super) fn run(session: &Session) -> Result<u8> {
    let store = session.store()?;
    let (machines, broken) = store.list_machines()?;
    let (pins, leases) = (store.pins()?, store.leases()?);
    for error in &broken {
        session.progress.report(Event::Warn { text: &error.to_string() });
    }
    let mut launched: HashMap<&str, Vec<&str>> = HashMap::new();
    for lease in &leases {
        launched.entry(&lease.record.artifact).or_default().push(&lease.record.machine);
    }
    let of = |key: &MachineKey| {
        let machines = match launched.is_empty() {
            true => Vec::new(),
            false => launched.get(key.lock_name().as_str()).cloned().unwrap_or_default(),
        };
        (pins.contains(key), machines)
    };
    if session.global.format == Format::Json {
        for machine in &machines {
            let (pinned, launched) = of(&machine.key);
            let used = machine.used.duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
            output::json(&json!({
                "agent": machine.agent,
                "image_id": machine.key.image,
                "recipe": machine.key.recipe,
                "artifact": machine.path,
                "size": machine.size,
                "allocated": machine.allocated,
                "sha256": machine.sha256,
                "built_at": machine.built_at,
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
        .map(|machine| {
            let (pinned, launched) = of(&machine.key);
            let mut held = if pinned { vec!["pinned".to_owned()] } else { Vec::new() };
            held.extend((!launched.is_empty()).then(|| format::count(launched.len(), "machine", "machines")));
            vec![
                machine.agent.clone(),
                machine.key.image.short(),
                machine.key.recipe.short(),
                format::bytes(machine.size),
                format::bytes(machine.allocated),
                format::ago(machine.used),
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
