//! What the collector does, for people and as JSON.

use anyhow::Result;
use serde_json::{Value, json};
use smolcellar_store::gc::{self, Collected, Entry, Limit, LooseKind, Plan, Reason, Root};
use smolcellar_store::{Event, Reporter};

use crate::exit;
use crate::format;
use crate::output::{self, Format};
use crate::session::Session;

/// So many rows of a long list are shown.
const ROWS: usize = 40;

pub(super) fn show(plan: &Plan) -> Result<()> {
    if plan.remove.is_empty() {
        return output::line(&format!("nothing to remove; the cache holds {}", format::bytes(plan.before)));
    }
    let row = |removal: &gc::Removal| {
        vec![format::bytes(removal.frees), what(&removal.entry), why(&removal.reason)]
    };
    let rows: Vec<_> = plan.remove.iter().take(ROWS).map(row).collect();
    output::table(&["FREES", "ENTRY", "REASON"], &[true, false, false], &rows)?;
    if plan.remove.len() > ROWS {
        output::line(&format!("… and {} more (all of them with --format json)", plan.remove.len() - ROWS))?;
    }
    let (removed, frees) = (entries(plan.remove.len()), format::bytes(plan.frees()));
    let (before, after) = (format::bytes(plan.before), format::bytes(plan.after));
    output::line(&format!("{removed}, {frees}: the cache goes from {before} to {after}"))
}

pub(super) fn roots(session: &Session, plan: &Plan) -> Result<u8> {
    if session.global.format == Format::Json {
        for kept in &plan.kept {
            output::json(&kept_json(kept))?;
        }
        return Ok(exit::OK);
    }
    if plan.kept.is_empty() {
        output::line("nothing is held: no pins, no machines, and nothing that --keep-last keeps")?;
        return Ok(exit::OK);
    }
    let row = |kept: &gc::Kept| {
        let by: Vec<_> = kept.roots.iter().map(held_by).collect();
        vec![kept.key.to_string(), format::bytes(kept.allocated), by.join(", ")]
    };
    let rows: Vec<_> = plan.kept.iter().map(row).collect();
    output::table(&["ARTIFACT", "ON DISK", "HELD BY"], &[false, true, false], &rows)?;
    Ok(exit::OK)
}

pub(super) fn summary(done: &Collected) -> String {
    let rest = match (done.cut_short, done.blobs_busy) {
        (true, _) => "; there was no time for the rest: run it again",
        (false, true) => "; somebody was busy with blobs, which go another time",
        (false, false) => "",
    };
    let (blobs, others): (Vec<_>, Vec<_>) =
        done.removed.iter().partition(|entry| matches!(entry, Entry::Blob(_)));
    let removed = match (others.len(), blobs.len()) {
        (n, 0) => entries(n),
        (0, n) => format::count(n, "blob", "blobs"),
        (n, m) => format!("{} and {}", entries(n), format::count(m, "blob", "blobs")),
    };
    format!("{removed} removed, {} freed{rest}", format::bytes(done.freed))
}

pub(super) fn warn_unmet(session: &Session, plan: &Plan) {
    for limit in &plan.unmet {
        let text = match limit {
            Limit::MaxSize(most) => format!(
                "the cache still takes {}, more than the limit of {} (max-size): all else is held (--roots shows by whom) \
                 or is no artifact (`cargo xtask cache du`)",
                format::bytes(plan.after),
                format::bytes(*most)
            ),
            Limit::MinFree(least) => format!(
                "less than the {} of min-free are free: what is left in the cache, {}, is held (--roots shows by \
                 whom) or is no artifact (`cargo xtask cache du`)",
                format::bytes(*least),
                format::bytes(plan.after)
            ),
        };
        session.progress.report(Event::Warn { text: &text });
    }
}

pub(super) fn entries(count: usize) -> String {
    format::count(count, "entry", "entries")
}

pub(super) fn what(entry: &Entry) -> String {
    match entry {
        Entry::Machine(key) => format!("artifact {key}"),
        Entry::Image(image) => format!("image {}", image.short()),
        Entry::Pushed { key, repository, .. } => format!("pushed {repository}@{}", key.manifest.short()),
        Entry::Blob(digest) => format!("blob {}", digest.short()),
        Entry::Loose(LooseKind::LeftOver(key), _) => format!("left over of {key}"),
        Entry::Loose(LooseKind::Quarantined, path) => {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            format!("quarantined {name}")
        }
    }
}

fn why(reason: &Reason) -> String {
    match reason {
        Reason::Orphan => "no receipt names it".into(),
        Reason::LeftOver => "from a run that was cut off".into(),
        Reason::Quarantined(age) => format!("damaged, put aside {} ago", format::age(*age)),
        Reason::Unused(age) => format!("not used for {}", format::age(*age)),
        Reason::Damaged(limit) => format!("damaged and put aside, and {}", exceeded(limit)),
        Reason::Derived(limit) => format!("its artifact is there, and {}", exceeded(limit)),
        Reason::LeastRecent(limit) => format!("used longest ago, and {}", exceeded(limit)),
        Reason::All => "all is to go".into(),
    }
}

fn exceeded(limit: &Limit) -> String {
    match limit {
        Limit::MaxSize(most) => format!("the cache takes more than {}", format::bytes(*most)),
        Limit::MinFree(least) => format!("less than {} of the disk are free", format::bytes(*least)),
    }
}

pub(super) fn held_by(root: &Root) -> String {
    match root {
        Root::Pinned => "pinned".into(),
        Root::Leased { machine } => format!("machine {machine}"),
        Root::InUse => "in use".into(),
        Root::Last { agent } => format!("one of the last of agent {agent}"),
        Root::Unknown { lease } => {
            format!("a lease that cannot be read: {} (see cache-layout.md)", lease.display())
        }
    }
}

pub(super) fn root_json(root: &Root) -> Value {
    match root {
        Root::Pinned => json!({ "kind": "pinned" }),
        Root::Leased { machine } => json!({ "kind": "leased", "machine": machine }),
        Root::InUse => json!({ "kind": "in-use" }),
        Root::Last { agent } => json!({ "kind": "last", "agent": agent }),
        Root::Unknown { lease } => json!({ "kind": "unknown", "lease": lease }),
    }
}

fn kept_json(kept: &gc::Kept) -> Value {
    let roots: Vec<_> = kept.roots.iter().map(root_json).collect();
    let (image, recipe) = (kept.key.image, kept.key.recipe);
    json!({ "image_id": image, "recipe": recipe, "allocated": kept.allocated, "roots": roots })
}

fn entry_json(entry: &Entry) -> Value {
    match entry {
        Entry::Machine(key) => json!({ "kind": "artifact", "image_id": key.image, "recipe": key.recipe }),
        Entry::Image(image) => json!({ "kind": "image", "image_id": image }),
        Entry::Pushed { key, repository, .. } => {
            json!({ "kind": "pushed", "repository": repository, "digest": key.manifest })
        }
        Entry::Blob(digest) => json!({ "kind": "blob", "digest": digest }),
        Entry::Loose(LooseKind::LeftOver(_), path) => json!({ "kind": "left-over", "path": path }),
        Entry::Loose(LooseKind::Quarantined, path) => json!({ "kind": "quarantined", "path": path }),
    }
}

fn reason_name(reason: &Reason) -> &'static str {
    match reason {
        Reason::Orphan => "orphan",
        Reason::LeftOver => "left-over",
        Reason::Quarantined(_) => "quarantined",
        Reason::Unused(_) => "unused",
        Reason::Damaged(_) => "damaged",
        Reason::Derived(_) => "derived",
        Reason::LeastRecent(_) => "least-recent",
        Reason::All => "all",
    }
}

/// The plan, and what came of it if it was carried out.
pub(super) fn plan_json(plan: &Plan, done: Option<&Collected>) -> Value {
    let removal = |removal: &gc::Removal| {
        let age = match removal.reason {
            Reason::Unused(age) | Reason::Quarantined(age) => Some(age.as_secs()),
            _ => None,
        };
        json!({
            "entry": entry_json(&removal.entry),
            "reason": reason_name(&removal.reason),
            "age": age,
            "frees": removal.frees,
        })
    };
    let limit = |limit: &Limit| match limit {
        Limit::MaxSize(bytes) => json!({ "limit": "max-size", "bytes": bytes }),
        Limit::MinFree(bytes) => json!({ "limit": "min-free", "bytes": bytes }),
    };
    let done = done.map(|done| {
        let spared = |spared: &gc::Spared| {
            let roots: Vec<_> = spared.roots.iter().map(root_json).collect();
            json!({ "entry": entry_json(&spared.entry), "roots": roots })
        };
        json!({
            "removed": done.removed.iter().map(entry_json).collect::<Vec<_>>(),
            "freed": done.freed,
            "failed": done.failed.iter().map(|(entry, error)| {
                json!({ "entry": entry.as_ref().map(entry_json), "problem": error.to_string() })
            }).collect::<Vec<_>>(),
            "spared": done.spared.iter().map(spared).collect::<Vec<_>>(),
            "cut_short": done.cut_short,
            "blobs_busy": done.blobs_busy,
        })
    });
    json!({
        "remove": plan.remove.iter().map(removal).collect::<Vec<_>>(),
        "kept": plan.kept.iter().map(kept_json).collect::<Vec<_>>(),
        "before": plan.before,
        "after": plan.after,
        "unmet": plan.unmet.iter().map(limit).collect::<Vec<_>>(),
        "done": done,
    })
}
