//! What can go wrong with an engine.

use std::io;
use std::path::PathBuf;

/// The crate's result.
pub type Result<T, E = EngineError> = std::result::Result<T, E>;

/// An engine could not do something.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// There is none.
    #[error(
        "no container engine: {wanted} not found on PATH; install Docker or Podman, or build from an archive with \
         `--archive FILE`"
    )]
    NotFound {
        /// The programs looked for.
        wanted: String,
    },
    /// It is there but does not answer.
    #[error(
        "{program} cannot reach its engine: {said}\n{}, or build from an archive with `--archive FILE`",
        if said.contains("permission denied") {
            "you may not use it: join its group (`sudo usermod -aG docker $USER`, then log in again)"
        } else {
            "start it (`docker info` must work for you)"
        }
    )]
    Unreachable {
        /// The program.
        program: String,
        /// What it said.
        said: String,
    },
    /// A command failed.
    #[error("`{command}` failed with {status}:\n{output}")]
    Failed {
        /// The command line.
        command: String,
        /// How it ended.
        status: String,
        /// The end of what it printed.
        output: String,
    },
    /// A command said it succeeded, but its result is not there.
    #[error("`{command}` succeeded but {problem}")]
    Unexpected {
        /// The command line.
        command: String,
        /// What is missing or wrong.
        problem: String,
    },
    /// The program could not be run.
    #[error("cannot run `{command}`: {source}")]
    Run {
        /// The command line.
        command: String,
        /// Why not.
        source: io::Error,
    },
    /// A command on containers or networks failed, or could not be run.
    #[error(transparent)]
    Program(#[from] smolcellar_run::RunError),
    /// The build's context or Dockerfile is not there.
    #[error("there is no {what} at {}; correct `{key}` in the agent's configuration", path.display())]
    NoInput {
        /// "build context", "Dockerfile".
        what: &'static str,
        /// Where it should be.
        path: PathBuf,
        /// The configuration key that names it.
        key: &'static str,
    },
}
