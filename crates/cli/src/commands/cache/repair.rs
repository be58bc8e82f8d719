//! `cache verify --repair`: what can be made again from what is left.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use smolcellar_engine::Engine;
use smolcellar_pipeline::{Repaired, repair_image, repair_machine};
use smolcellar_smolvm::Repaired as RuntimeRepaired;
use smolcellar_store::{
    Action, Bucket, Digest, Finding, Lookup, MachineKey, MachineReceipt, Store, Subject, Verification,
};

use crate::interrupt::EndChildren;
use crate::session::Session;

/// Repairs runtimes first, then images, then artifacts: each is made of those
/// before it.
pub(super) fn run(
    session: &Session,
    store: &Store,
    found: &mut Verification,
    keys: Option<&BTreeSet<MachineKey>>,
) -> Result<()> {
    let _end_children = EndChildren::on_signals()?;
    runtimes(session, store, found);
    images(session, store, found);
    machines(session, store, found, keys)
}

fn runtimes(session: &Session, store: &Store, found: &mut Verification) {
    let options = session.install_options();
    for finding in found.damaged.iter_mut().filter(|finding| finding.subject == Subject::Runtime) {
        finding.action = match smolcellar_smolvm::repair(store, &session.progress, &finding.path, &options) {
            // What was derived is derived again by the next use, which knows from what.
            Ok(RuntimeRepaired::Whole | RuntimeRepaired::Discarded) => Action::Repaired,
            Ok(RuntimeRepaired::Foreign) => {
                Action::Kept("it is no runtime of this version's; delete it".into())
            }
            Err(error) => Action::Kept(error.to_string()),
        };
    }
}

/// A blob is whole again when all images are that name it.
fn images(session: &Session, store: &Store, found: &mut Verification) {
    let blobs: BTreeSet<Digest> = found
        .damaged
        .iter()
        .filter_map(|f| match f.subject {
            Subject::Blob(digest) => Some(digest),
            _ => None,
        })
        .collect();
    let mut images: BTreeSet<Digest> = found
        .damaged
        .iter()
        .filter_map(|f| match f.subject {
            Subject::Stage(image, _) => Some(image),
            // The config of an image whose receipts may be gone with it.
            Subject::Blob(digest) if store.bucket_dir(Bucket::Images).join(digest.hex()).is_dir() => {
                Some(digest)
            }
            _ => None,
        })
        .collect();
    if images.is_empty() && blobs.is_empty() {
        return;
    }
    if let Ok(inventory) = store.inventory() {
        let naming = inventory.images.iter().filter(|image| !image.blobs.is_disjoint(&blobs));
        images.extend(naming.map(|image| image.image));
    }
    let engine = Engine::find(session.global.engine.as_deref()).ok();
    let mut done = BTreeMap::new();
    for image in images {
        let repaired = repair_image(store, engine.as_ref(), &image, &session.progress);
        done.insert(image, action(repaired.map_err(Into::into)));
    }
    for finding in &mut found.damaged {
        match &finding.subject {
            Subject::Stage(image, _) => {
                if let Some(action) = done.get(image) {
                    better(finding, action.clone());
                }
            }
            Subject::Blob(digest) if store.blobs().check(digest).is_ok() => finding.action = Action::Repaired,
            _ => {}
        }
    }
}

/// Those that were found damaged, now or before, and those that lost their
/// artifact.
fn machines(
    session: &Session,
    store: &Store,
    found: &mut Verification,
    keys: Option<&BTreeSet<MachineKey>>,
) -> Result<()> {
    let mut receipts: BTreeMap<MachineKey, MachineReceipt> = BTreeMap::new();
    let quarantined = store.quarantined_machines()?.into_iter();
    let lost = store.machines()?.machines.into_iter().map(|used| used.machine);
    let lost = lost.filter(|machine| !machine.path.exists()).map(|machine| machine.receipt);
    receipts.extend(quarantined.chain(lost).map(|receipt| (receipt.key(), receipt)));
    for finding in &found.damaged {
        if let Subject::Machine(key, Some(receipt)) = &finding.subject {
            receipts.insert(*key, MachineReceipt::clone(receipt));
        }
    }
    receipts.retain(|key, _| keys.is_none_or(|keys| keys.contains(key)));
    receipts.retain(|key, _| !matches!(store.machine(key, false), Ok(Lookup::Hit(_))));
    if receipts.is_empty() {
        no_receipt(store, found);
        return Ok(());
    }
    let runtime = session.runtime(store)?;
    for (key, receipt) in receipts {
        let done = action(repair_machine(store, &runtime, &receipt, &session.progress).map_err(Into::into));
        let path = machine_path(store, &key);
        found
            .leftovers
            .retain(|left| left.with_extension("") != path.with_extension("") || done != Action::Repaired);
        let of_it =
            |finding: &&mut Finding| matches!(&finding.subject, Subject::Machine(of, _) if *of == key);
        match found.damaged.iter_mut().find(of_it) {
            Some(finding) => better(finding, done),
            None => found.damaged.push(Finding {
                path,
                problem: "its artifact is missing".into(),
                action: done,
                subject: Subject::Machine(key, Some(Box::new(receipt))),
            }),
        }
    }
    no_receipt(store, found);
    Ok(())
}

/// Only its receipt says what an artifact was made from.
fn no_receipt(store: &Store, found: &mut Verification) {
    for finding in &mut found.damaged {
        if let Subject::Machine(key, None) = &finding.subject {
            finding.action = match store.machine(key, false) {
                Ok(Lookup::Hit(_)) => Action::Repaired,
                _ => Action::Kept(
                    "its receipt is lost, which said what it was made from; the next build makes it".into(),
                ),
            };
        }
    }
}

fn machine_path(store: &Store, key: &MachineKey) -> std::path::PathBuf {
    let dir = store.bucket_dir(Bucket::Machines).join(key.image.hex());
    dir.join(format!("{}.smolmachine", key.recipe.hex()))
}

fn action(repaired: Result<Repaired>) -> Action {
    match repaired {
        Ok(Repaired::Whole | Repaired::Done) => Action::Repaired,
        Ok(Repaired::Not(why)) => Action::Kept(why),
        Err(error) => Action::Kept(format!("{error:#}")),
    }
}

/// What was moved stays moved, with the reason why it was not made again.
fn better(finding: &mut Finding, action: Action) {
    match (&finding.action, &action) {
        (Action::Quarantined(_), Action::Kept(why)) => {
            finding.problem = format!("{} (not repaired: {why})", finding.problem)
        }
        _ => finding.action = action,
    }
}
