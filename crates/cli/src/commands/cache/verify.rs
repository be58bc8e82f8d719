//! `cache verify`: everything hashed again.

use anyhow::Result;
use smolcellar_store::{Finding, UsedMachine};

use crate::exit;
use crate::format;
use crate::output::{self, Format};
use crate::session::Session;

pub(super) fn run(session: &Session) -> Result<u8> {
    let store = session.store()?;
    let mut found = store.verify(&session.progress)?;
    // What an artifact says of its own parts, beyond its digest.
    for UsedMachine { machine, .. } in store.machines()?.machines {
        // What is there now is there until it was read.
        let _in_use = store.lock_use(&machine.receipt.key().lock_name(), &session.progress)?;
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
