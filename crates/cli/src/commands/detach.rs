//! `launch --detach`: this program once more, in the background. It is the
//! launcher of its machine like any other, with its streams in a file; this
//! half waits until the machine is up.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use smolcellar_launcher::{Interrupt, Signals, launches};
use smolcellar_store::Store;

use crate::exit;
use crate::host;
use crate::output::{self, Format};
use crate::session::Session;

/// How often it is looked whether the machine is up.
const LOOK: Duration = Duration::from_millis(20);

#[derive(Serialize)]
struct Detached<'a> {
    machine: &'a str,
}

/// The foreground half.
pub(crate) fn run(session: &Session, store: &Store, machine: &str, signals: &Signals) -> Result<u8> {
    let mine: Vec<OsString> = std::env::args_os().skip(1).collect();
    // Its input is ours only if the prompt is read from there.
    let input = mine.windows(2).any(|words| matches!(words, [a, b] if a == "--prompt-file" && b == "-"))
        || mine.iter().any(|word| word == "--prompt-file=-");
    let mut child = host::myself(&background_args(mine, machine), input)?;
    let mut told = false;
    loop {
        let ended = child.try_wait().context("cannot wait for the part in the background")?;
        // Its own lease: there may be one of that name already, which it is then refused for.
        let up = launches(store)?
            .iter()
            .any(|launched| launched.machine == machine && launched.is_kept() && launched.pid == child.id());
        if up && signals.signal().is_none() {
            match session.global.format {
                Format::Human => output::line(machine)?,
                Format::Json => output::json(&Detached { machine })?,
            }
            return Ok(exit::OK);
        }
        if let Some(status) = ended {
            // It said why.
            let signal = signals.signal().and_then(|signal| u8::try_from(128 + signal).ok());
            let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(exit::LAUNCHER);
            return Ok(signal.unwrap_or(code));
        }
        if signals.signal().is_some() && !told {
            told = true;
            // It takes everything down, and we wait for that.
            let pid = rustix::process::Pid::from_child(&child);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        std::thread::sleep(LOOK);
    }
}

/// Our arguments, with what makes it the other half before the guest's.
fn background_args(mut args: Vec<OsString>, machine: &str) -> Vec<OsString> {
    let at = args.iter().position(|word| word == OsStr::new("--")).unwrap_or(args.len());
    args.splice(at..at, [OsString::from(format!("--background={machine}"))]);
    args
}

/// The background half: no terminal's signals any more.
pub(crate) fn leave_the_terminal() {
    // Fails only for one that leads its group already, as nobody starts it.
    let _ = rustix::process::setsid();
}

/// The background half, once it is up: its output goes to `log` from here on.
pub(crate) fn write_to(log: &File) -> io::Result<()> {
    rustix::stdio::dup2_stdout(log)?;
    rustix::stdio::dup2_stderr(log)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_background_half_gets_its_name_before_the_guests_words() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        let args = background_args(words("launch -d a -- x -- y"), "m");
        assert_eq!(args, words("launch -d a --background=m -- x -- y"));
        assert_eq!(background_args(words("launch -d"), "m"), words("launch -d --background=m"));
    }
}
