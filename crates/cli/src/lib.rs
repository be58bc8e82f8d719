//! The smolcellar commands. The only crate that prints: data goes to standard
//! output, progress and complaints to standard error.

mod args;
mod ask;
mod commands;
mod config;
mod config_gc;
mod config_launch;
mod exit;
mod format;
mod host;
mod interrupt;
mod near;
mod output;
mod progress;
mod remote_options;
mod session;

use std::ffi::OsString;
use std::process::ExitCode;

/// Runs the command that `args` (program name first) asks for.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let args = match args::parse(args) {
        Ok(args) => args,
        Err(error) => {
            // Help and version are asked for: not errors, and on stdout.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { exit::USAGE } else { exit::OK });
        }
    };
    use args::Command::{Exec, Launch, Shell};
    let in_guest = matches!(args.command, Launch(_) | Exec(_) | Shell(_));
    match commands::run(args) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            output::complain(&error);
            ExitCode::from(exit::code_of(&error, in_guest))
        }
    }
}
