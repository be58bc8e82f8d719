//! `cache verify`: everything hashed again, damage moved away or made good.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::Result;
use smolcellar_launcher::{Interrupt, Signals};
use smolcellar_store::{
    Action, Event, Finding, MachineKey, Reporter, Store, Subject, UsedMachine, Verification, VerifyOptions,
};

use crate::args::CacheVerify;
use crate::exit;
use crate::format;
use crate::output::{self, Format};
use crate::session::Session;

use super::gc::Patient;
use super::{key, repair};

/// The task named in events.
const FRAMES: &str = "frames";

pub(super) fn run(session: &Session, args: &CacheVerify) -> Result<u8> {
    let store = session.store()?;
    let keys =
        args.keys.iter().map(|text| key::find(session, &store, text)).collect::<Result<BTreeSet<_>>>()?;
    let options = VerifyOptions {
        quarantine: !args.keep,
        from: args.from.clone(),
        keys: (!keys.is_empty()).then_some(keys),
    };
    let signals = Signals::catch()?;
    let patient = Patient(session, &signals);
    let mut found = look(&store, &options, args.frames, &patient)?;
    let interrupted = signals.signal();
    drop(signals);
    if args.repair && found.unfinished.is_none() && interrupted.is_none() {
        repair::run(session, &store, &mut found, options.keys.as_ref())?;
    }
    show(session, &store, &found)?;
    if let Some(signal) = interrupted {
        return Ok(128_u8.saturating_add(u8::try_from(signal).unwrap_or(0)));
    }
    let bad = |finding: &Finding| finding.action != Action::Repaired;
    let clean = found.unfinished.is_none() && !found.damaged.iter().any(bad);
    Ok(if clean { exit::OK } else { exit::FAILED })
}

/// All that can be looked at, runtimes beside the rest.
fn look(
    store: &Store,
    options: &VerifyOptions,
    frames: bool,
    reporter: &dyn Reporter,
) -> Result<Verification> {
    let (found, runtimes) = std::thread::scope(|scope| {
        let runtimes = options.keys.is_none().then(|| scope.spawn(|| smolcellar_smolvm::verify(store)));
        let found = store.verify(options, reporter);
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        (found, runtimes.map(join))
    });
    let mut found = found?;
    if let Some(runtimes) = runtimes.transpose()? {
        found.entries += runtimes.runtimes as u64;
        found.bytes += runtimes.bytes;
        found.damaged.extend(runtimes.problems.into_iter().map(|problem| Finding {
            path: problem.path,
            problem: problem.what,
            action: Action::Kept("`cargo xtask cache verify --repair` makes it again".into()),
            subject: Subject::Runtime,
        }));
    }
    if found.unfinished.is_none() {
        artifacts(store, options, frames, reporter, &mut found)?;
    }
    Ok(found)
}

/// What an artifact says of its own parts, beyond its digest.
fn artifacts(
    store: &Store,
    options: &VerifyOptions,
    frames: bool,
    reporter: &dyn Reporter,
    found: &mut Verification,
) -> Result<()> {
    let mut machines: Vec<_> =
        store.machines()?.machines.into_iter().map(|UsedMachine { machine, .. }| machine).collect();
    machines.sort_by_key(|machine| machine.receipt.key());
    machines.retain(|machine| {
        let key = machine.receipt.key();
        let known = found.damaged.iter().any(|finding| finding.path == machine.path);
        let wanted = options.keys.as_ref().is_none_or(|keys| keys.contains(&key));
        let from = options.from.as_ref().is_none_or(|from| key.image.hex() >= *from);
        // One that was deleted is among the leftovers.
        !known && wanted && from && machine.path.exists()
    });
    if frames {
        let total = machines.iter().map(|machine| machine.receipt.size).sum();
        reporter.report(Event::Begin { task: FRAMES, total: Some(total) });
    }
    for machine in machines {
        let receipt = machine.receipt;
        // What is there now is there until it was read.
        let in_use = store.lock_use(&receipt.key().lock_name(), reporter)?;
        if !machine.path.exists() {
            continue;
        }
        let checked = match frames {
            false => smolcellar_pack::check_structure(&machine.path).map(|_| Some(0)),
            true => smolcellar_pack::check_frames(&machine.path, reporter),
        };
        drop(in_use);
        match checked {
            Ok(Some(_)) if frames => reporter.report(Event::Advance { task: FRAMES, bytes: receipt.size }),
            Ok(Some(_)) => {}
            Ok(None) => {
                found.unfinished = Some(receipt.image.hex());
                break;
            }
            Err(error) => {
                let key = receipt.key();
                found.damaged.push(Finding {
                    path: machine.path,
                    problem: error.to_string(),
                    action: set_aside(store, options, &key, &error.to_string(), reporter),
                    subject: Subject::Machine(key, Some(Box::new(receipt))),
                });
            }
        }
    }
    if frames {
        reporter.report(Event::End { task: FRAMES });
    }
    Ok(())
}

/// Its bytes are those of its receipt, and yet no artifact's.
fn set_aside(
    store: &Store,
    options: &VerifyOptions,
    key: &MachineKey,
    problem: &str,
    reporter: &dyn Reporter,
) -> Action {
    if !options.quarantine {
        return Action::Kept("nothing was to be moved".into());
    }
    let moved = store
        .lock_build(&key.lock_name(), reporter)
        .and_then(|lock| store.quarantine_machine(key, problem, &lock));
    moved.map_or_else(|error| Action::Kept(error.to_string()), Action::Quarantined)
}

fn show(session: &Session, store: &Store, found: &Verification) -> Result<()> {
    if session.global.format == Format::Json {
        return output::json(found);
    }
    for finding in &found.damaged {
        output::line(&format!("{}: {}; {}", finding.path.display(), finding.problem, finding.action))?;
    }
    let also = |paths: &[PathBuf], what: &str| {
        paths.iter().try_for_each(|path| output::line(&format!("{}: {what}", path.display())))
    };
    also(&found.leftovers, "left over from a run that was cut off; nothing uses it")?;
    also(&found.newer, "of a newer smolcellar; neither judged nor touched")?;
    let entries = format::count(found.entries as usize, "entry", "entries");
    output::line(&format!("{entries}, {} hashed: {}", format::bytes(found.bytes), result(found)))?;
    let kept = store.quarantined()?;
    if kept > 0 && !found.damaged.iter().any(|finding| matches!(finding.action, Action::Quarantined(_))) {
        let kept = format::count(kept, "entry", "entries");
        output::line(&format!(
            "in quarantine: {kept}; `cargo xtask cache verify --repair` makes again what it can, `cargo xtask cache gc` \
             lets them go"
        ))?;
    }
    if let Some(from) = &found.unfinished {
        output::line(&format!("cut off; go on with: cargo xtask cache verify --from {from}"))?;
    } else if found.damaged.iter().any(|finding| matches!(finding.action, Action::Quarantined(_))) {
        output::line(
            "a build that needs a quarantined entry makes it again; so does `cargo xtask cache verify --repair` where it can",
        )?;
    }
    Ok(())
}

fn result(found: &Verification) -> String {
    let repaired = found.damaged.iter().filter(|finding| finding.action == Action::Repaired).count();
    let damaged = match found.damaged.len() - repaired {
        0 if found.unfinished.is_some() => "all is well so far".to_owned(),
        0 => "all is well".to_owned(),
        1 => "1 is damaged".to_owned(),
        n => format!("{n} are damaged"),
    };
    match repaired {
        0 => damaged,
        n => format!("{n} repaired, {damaged}"),
    }
}
