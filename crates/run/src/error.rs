//! Why a program could not be run, or what it did instead.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

/// This crate's result.
pub type Result<T, E = RunError> = std::result::Result<T, E>;

/// A program did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It could not be started.
    #[error("cannot run {}: {source}{}", program.display(), spawn_remedy(source))]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There is no place for what it prints.
    #[error("cannot use a temporary file in {}: {source}", dir.display())]
    Scratch {
        /// The folder for temporary files.
        dir: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It said no.
    #[error("`{operation}` failed ({}): {}", status_text(*status), if stderr.is_empty() { "it printed no reason" } else { stderr })]
    Failed {
        /// The command without its arguments: `smolvm machine start`.
        operation: String,
        /// How it ended.
        status: ExitStatus,
        /// What it printed on stderr, its end if that was long.
        stderr: String,
    },
    /// It did not end in time and was killed.
    #[error("`{operation}` did not end within {:.1} s and was killed{}", limit.as_secs_f64(), printed(stderr))]
    TimedOut {
        /// The command without its arguments.
        operation: String,
        /// The time it had.
        limit: Duration,
        /// What it had printed on stderr, its end if that was long; empty where it is not kept.
        stderr: String,
    },
    /// The caller changed its mind; the command was killed.
    #[error("`{operation}` was interrupted")]
    Cancelled {
        /// The command without its arguments.
        operation: String,
    },
    /// It printed something that it should not.
    #[error("cannot understand the output of `{operation}`: {problem}")]
    Output {
        /// The command without its arguments.
        operation: String,
        /// What is wrong with it.
        problem: String,
    },
    /// What it was to be given could not be had.
    #[error("cannot feed `{operation}`: {source}")]
    Input {
        /// The command without its arguments.
        operation: String,
        /// Why not.
        source: io::Error,
    },
}

fn printed(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!("; it had printed: {stderr}") }
}

fn spawn_remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; make it executable (chmod +x)",
        io::ErrorKind::NotFound => "; it, or the loader it names, is missing",
        _ => "",
    }
}

/// "exit code 3", "signal 9".
pub fn status_text(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// The end of a message, without the space around it.
pub fn tail(message: &[u8]) -> String {
    const SHOWN: usize = 4096;
    let start = message.len().saturating_sub(SHOWN);
    String::from_utf8_lossy(message.get(start..).unwrap_or_default()).trim().to_owned()
}
