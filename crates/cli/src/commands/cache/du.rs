//! `cache du`: what it takes on disk.

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;
use smolcellar_store::Usage;

use crate::commands::extractions::Held;
use crate::exit;
use crate::format;
use crate::output::{self, Format};
use crate::session::Session;

#[derive(Serialize)]
struct Du {
    #[serde(flatten)]
    usage: Usage,
    smolvm_extractions: Option<Value>,
}

pub(super) fn run(session: &Session) -> Result<u8> {
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
            let reclaimable = format::bytes(bucket.reclaimable);
            let (folder, purpose) = (bucket.folder.clone(), bucket.purpose.to_owned());
            vec![format::bytes(bucket.allocated), reclaimable, files, folder, purpose]
        })
        .collect();
    let files = usage.buckets.iter().map(|bucket| bucket.files).sum::<u64>().to_string();
    let (allocated, reclaimable) = (format::bytes(usage.allocated), format::bytes(usage.reclaimable));
    rows.push(vec![allocated, reclaimable, files, "total".into(), usage.root.display().to_string()]);
    rows.extend(held.and_then(|held| held.row()));
    output::table(
        &["ON DISK", "RECLAIMABLE", "FILES", "FOLDER", ""],
        &[true, true, true, false, false],
        &rows,
    )?;
    Ok(exit::OK)
}
