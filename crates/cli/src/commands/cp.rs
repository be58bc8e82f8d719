//! `cp`: a file into a machine, or out of it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use smolcellar_launcher::{Launcher, Signals, Transfer};

use crate::args::Cp;
use crate::commands::as_usage;
use crate::exit::{self, Usage};
use crate::session::Session;

pub(crate) fn run(session: &Session, args: &Cp) -> Result<u8> {
    let (machine, copy) = match (in_machine(&args.from), in_machine(&args.to)) {
        (None, Some((machine, to))) => {
            let from = PathBuf::from(&args.from);
            if !from.exists() {
                return Err(Usage(format!("there is no {}", from.display())).into());
            }
            (machine, Transfer::In { to: absolute(to)?, from })
        }
        (Some((machine, from)), None) => {
            let from = absolute(from)?;
            let mut to = PathBuf::from(&args.to);
            if to.is_dir() {
                to.push(Path::new(&from).file_name().unwrap_or_default());
            }
            (machine, Transfer::Out { from, to })
        }
        _ => {
            let text = "one of the two must be in a machine (MACHINE:/PATH), and the other on this host";
            return Err(Usage(text.into()).into());
        }
    };
    let store = session.store()?;
    let (launched, tools) = session.launched(&store, machine)?;
    let signals = Signals::catch()?;
    Launcher::new(tools, &store, &session.progress, &signals)
        .copy(&launched, &copy)
        .map_err(as_usage)
        .with_context(|| format!("cannot copy {} to {}", args.from, args.to))?;
    Ok(exit::OK)
}

/// The machine and the path of `MACHINE:PATH`. What has a `/` before its first
/// colon is a path of this host.
fn in_machine(text: &str) -> Option<(&str, &str)> {
    text.split_once(':').filter(|(machine, _)| !machine.is_empty() && !machine.contains('/'))
}

fn absolute(path: &str) -> Result<String> {
    match path.starts_with('/') {
        true => Ok(path.to_owned()),
        false => Err(Usage(format!("'{path}' must be absolute: there is no folder it could be in")).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::in_machine;

    #[test]
    fn a_path_with_a_colon_can_be_told_from_a_machine() {
        assert_eq!(in_machine("m:/a:b"), Some(("m", "/a:b")));
        assert_eq!(in_machine("m:"), Some(("m", "")));
        for host in ["./m:a", "/m:a", "a", ":a", ""] {
            assert_eq!(in_machine(host), None, "{host}");
        }
    }
}
