//! `cache why`: which inputs had changed when something was built.

use std::time::{Duration, UNIX_EPOCH};

use anyhow::Result;
use serde_json::json;
use smolcellar_pipeline::{InputChange, StageName, StageWhy, between, last_build};
use smolcellar_store::{Lookup, MachineReceipt, Store};

use super::key;
use crate::args::CacheWhy;
use crate::commands::why::lines;
use crate::exit::{self, Miss};
use crate::format;
use crate::output::{self, Format};
use crate::session::Session;

pub(super) fn run(session: &Session, args: &CacheWhy) -> Result<u8> {
    let store = session.store()?;
    let project = key::project(session)?;
    // What an agent's last build saw says more than the receipts do.
    if let Some(record) = last_build(&store, &project, &args.what).filter(|record| !record.why.is_empty()) {
        let at = UNIX_EPOCH + Duration::from_secs(record.missed_at);
        let title = format!("{}, built {}:", record.agent, format::ago(at));
        return show(session, &title, &record.agent, record.missed_at, &record.why);
    }
    let key = key::find(session, &store, &args.what)?;
    let Lookup::Hit(machine) = store.machine(&key, false)? else {
        return Err(Miss(format!("the artifact {key} is not in the cache")).into());
    };
    let receipt = machine.receipt;
    let changes = match before(&store, &receipt)? {
        Some(old) => between((old.image, &old.inputs), (receipt.image, &receipt.inputs)),
        None => vec![InputChange::said(
            "agent",
            format!("no artifact of '{}' in the cache was built before it", receipt.agent),
        )],
    };
    let why = [StageWhy { stage: StageName::Smolmachine, changes }];
    let at = UNIX_EPOCH + Duration::from_secs(receipt.built_at);
    let title = format!("{key} of {}, built {}:", receipt.agent, format::ago(at));
    show(session, &title, &receipt.agent, receipt.built_at, &why)
}

/// The artifact that the same agent was built to before.
fn before(store: &Store, receipt: &MachineReceipt) -> Result<Option<MachineReceipt>> {
    let all = store.machines()?.machines.into_iter().map(|used| used.machine.receipt);
    let older = all.filter(|other| {
        other.agent == receipt.agent && other.key() != receipt.key() && other.built_at <= receipt.built_at
    });
    Ok(older.max_by_key(|other| other.built_at))
}

fn show(session: &Session, title: &str, agent: &str, at: u64, why: &[StageWhy]) -> Result<u8> {
    if session.global.format == Format::Json {
        output::json(&json!({ "agent": agent, "built_at": at, "why": why }))?;
        return Ok(exit::OK);
    }
    output::line(title)?;
    lines(why).iter().try_for_each(|line| output::line(&format!("  {line}")))?;
    Ok(exit::OK)
}
