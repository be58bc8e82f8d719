//! `cache`: a look into the store.

mod export;
mod import;

use std::time::UNIX_EPOCH;

use anyhow::Result;
use serde::Serialize;
use serde_json::{Value, json};
use smolcellar_store::{Event, Finding, Reporter, Usage, UsedMachine};

use crate::args::Cache;
use crate::commands::extractions::Held;
use crate::exit;
use crate::format;
use crate::output::{self, Format};
use crate::session::Session;

pub(crate) fn run(session: &Session, command: &Cache) -> Result<u8> {
    match command {
        Cache::Dir => dir(session),
        Cache::Ls => ls(session),
        Cache::Du => du(session),
        Cache::Verify => verify(session),
        Cache::Export(args) => export::run(session, args),
        Cache::Import(args) => import::run(session, args),
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

fn ls(session: &Session) -> Result<u8> {
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

#[derive(Serialize)]
struct Du {
    #[serde(flatten)]
    usage: Usage,
    smolvm_extractions: Option<Value>,
}

fn du(session: &Session) -> Result<u8> {
    let store = session.store()?;
    let usage = store.usage()?;
    let held = Held::find(session, &store);
    if session.global.format == Format::Json {
        output::json(&Du { usage, smolvm_extractions: held.map(|held| held.json()) })?;
        return Ok(exit::OK);
    }
    let mut rows: Vec<Vec<String>> = usage
        .buckets
        .iter()
        .filter(|bucket| bucket.files > 0)
        .map(|bucket| {
            let files = bucket.files.to_string();
            vec![format::bytes(bucket.allocated), files, bucket.folder.clone(), bucket.purpose.to_owned()]
        })
        .collect();
    let files = usage.buckets.iter().map(|bucket| bucket.files).sum::<u64>().to_string();
    rows.push(vec![format::bytes(usage.allocated), files, "total".into(), usage.root.display().to_string()]);
    rows.extend(held.and_then(|held| held.row()));
    output::table(&["ON DISK", "FILES", "FOLDER", ""], &[true, true, false, false], &rows)?;
    Ok(exit::OK)
}

fn verify(session: &Session) -> Result<u8> {
    let store = session.store()?;
    let mut found = store.verify(&session.progress)?;
    // What an artifact says of its own parts, beyond its digest.
    for UsedMachine { machine, .. } in store.machines()?.machines {
        let known = found.damaged.iter().any(|finding| finding.path == machine.path);
        // One that was deleted is among the leftovers.
        if !known
            && machine.path.exists()
            && let Err(error) = smolcellar_pack::read(&machine.path)
        {
            found.damaged.push(Finding { path: machine.path, problem: error.to_string() });
        }
    }
    let runtimes = smolcellar_smolvm::verify(&store)?;
    found.entries += runtimes.runtimes as u64;
    found.bytes += runtimes.bytes;
    found.damaged.extend(runtimes.problems.into_iter().map(|p| Finding { path: p.path, problem: p.what }));
    let clean = found.damaged.is_empty();
    if session.global.format == Format::Json {
        output::json(&found)?;
    } else {
        for finding in &found.damaged {
            output::line(&format!("{}: {}", finding.path.display(), finding.problem))?;
        }
        for path in &found.leftovers {
            output::line(&format!(
                "{}: left over from a run that was cut off; nothing uses it",
                path.display()
            ))?;
        }
        let result = match found.damaged.len() {
            0 => "all is well".to_owned(),
            1 => "1 is damaged".to_owned(),
            n => format!("{n} are damaged"),
        };
        let entries = format::count(found.entries as usize, "entry", "entries");
        output::line(&format!("{entries}, {} hashed: {result}", format::bytes(found.bytes)))?;
        if !clean {
            output::line(
                "a build that needs a damaged entry quarantines it and makes it again; to be rid of it now, delete it",
            )?;
        }
    }
    Ok(if clean { exit::OK } else { exit::FAILED })
}
