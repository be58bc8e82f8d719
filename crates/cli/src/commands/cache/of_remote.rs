//! `cache ls --remote` and `cache du --remote`: what others share.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Result;
use serde_json::json;
use smolcellar_remote::{Listed, Listing};
use smolcellar_store::{Digest, Event, Reporter};

use crate::exit::{self, Usage};
use crate::format;
use crate::output::{self, Format};
use crate::remote::Remote;
use crate::session::Session;

/// The one that `--remote[=REF]` means; without REF, what builds use.
fn named<'a>(session: &'a Session, named: &str) -> Result<Remote<'a>> {
    let variable = std::env::var("SMOLCELLAR_REMOTE").unwrap_or_default();
    let place = match if named.is_empty() { variable.as_str() } else { named } {
        "" => None,
        text => Some(text.parse().map_err(|problem| Usage(format!("--remote: {problem}")))?),
    };
    Remote::named(session, place)
}

/// What is there; what cannot be read of it is told, and is no failure.
fn listing(session: &Session, remote: &Remote<'_>) -> Result<Listing> {
    let listing = remote.cache().list()?;
    if listing.left_out > 0 || listing.more {
        let text = match listing.more {
            true => "the registry has more tags than are read; this is not all".to_owned(),
            false => format!("{} more tags were not looked into", listing.left_out),
        };
        session.progress.report(Event::Warn { text: &text });
    }
    Ok(listing)
}

pub(super) fn ls(session: &Session, name: &str) -> Result<u8> {
    let remote = named(session, name)?;
    let mut entries = listing(session, &remote)?.entries;
    // The newest first, as the machine's own list has those used last first.
    entries.sort_by(|a, b| b.built_at.cmp(&a.built_at).then_with(|| a.tag.cmp(&b.tag)));
    if session.global.format == Format::Json {
        for entry in &entries {
            output::json(&json!({
                "tag": entry.tag,
                "agent": entry.agent,
                "image_id": entry.key.map(|key| key.image),
                "recipe": entry.key.map(|key| key.recipe),
                "size": entry.size,
                "sha256": entry.sha256,
                "platform": entry.platform,
                "built_at": entry.built_at,
                "problem": entry.problem,
            }))?;
        }
        return Ok(exit::OK);
    }
    if entries.is_empty() {
        output::line(&format!("{} has no artifacts; `cargo xtask cache push` sends some", remote.place()))?;
        return Ok(exit::OK);
    }
    let rows: Vec<Vec<String>> = entries.iter().map(row).collect();
    output::table(
        &["AGENT", "IMAGE", "RECIPE", "SIZE", "PLATFORM", "BUILT", ""],
        &[false, false, false, true, false, false, false],
        &rows,
    )?;
    Ok(exit::OK)
}

fn row(entry: &Listed) -> Vec<String> {
    let dash = || "-".to_owned();
    let built = entry.built_at.and_then(|at| UNIX_EPOCH.checked_add(Duration::from_secs(at)));
    vec![
        entry.agent.clone().unwrap_or_else(dash),
        entry.key.map_or_else(dash, |key| key.image.short()),
        entry.key.map_or_else(dash, |key| key.recipe.short()),
        entry.size.map_or_else(dash, format::bytes),
        entry.platform.clone().unwrap_or_else(dash),
        built.map_or_else(dash, format::ago),
        match (&entry.problem, entry.key) {
            (Some(problem), _) => format!("{}: {problem}", entry.tag),
            // Not ours: known by its name only.
            (None, None) => entry.tag.to_string(),
            (None, Some(_)) => String::new(),
        },
    ]
}

pub(super) fn du(session: &Session, name: &str) -> Result<u8> {
    let remote = named(session, name)?;
    let listing = listing(session, &remote)?;
    let artifacts: Vec<&Listed> = listing.entries.iter().filter(|entry| entry.size.is_some()).collect();
    // A registry keeps equal files once.
    let mut once = BTreeSet::new();
    let mut of_agents: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    let mut bytes = 0;
    for entry in &artifacts {
        let size = entry.size.unwrap_or(0);
        let first = entry.sha256.is_none_or(|digest: Digest| once.insert(digest));
        let new = if first { size } else { 0 };
        bytes += new;
        let sum = of_agents.entry(entry.agent.as_deref().unwrap_or("-")).or_default();
        *sum = (sum.0 + 1, sum.1 + new);
    }
    let problems = listing.entries.iter().filter(|entry| entry.problem.is_some()).count();
    if session.global.format == Format::Json {
        let agents: Vec<_> = of_agents
            .iter()
            .map(|(agent, (count, bytes))| json!({ "agent": agent, "artifacts": count, "bytes": bytes }))
            .collect();
        output::json(&json!({
            "remote": remote.place().to_string(),
            "artifacts": artifacts.len(),
            "bytes": bytes,
            "pointers": listing.pointers,
            "unreadable": problems,
            "agents": agents,
        }))?;
        return Ok(exit::OK);
    }
    let row =
        |name: &str, count: usize, bytes: u64| vec![format::bytes(bytes), count.to_string(), name.to_owned()];
    let mut rows: Vec<_> =
        of_agents.iter().map(|(agent, (count, bytes))| row(agent, *count, *bytes)).collect();
    rows.push(row(&format!("total, {}", remote.place()), artifacts.len(), bytes));
    output::table(&["SIZE", "ARTIFACTS", "AGENT"], &[true, true, false], &rows)?;
    let mut notes = vec![format::count(listing.pointers, "pointer", "pointers")];
    notes.extend((problems > 0).then(|| format!("{problems} that cannot be read")));
    output::line(&format!("and {}", notes.join(", ")))?;
    Ok(exit::OK)
}
