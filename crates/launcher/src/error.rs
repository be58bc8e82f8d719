//! Why a launch failed, as opposed to the guest's command.

use std::path::PathBuf;

use smolcellar_store::StoreError;

use crate::preflight::NoVirtualisation;

/// This crate's result.
pub type Result<T, E = LaunchError> = std::result::Result<T, E>;

/// The launcher's own failure.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// No machine can run here.
    #[error(transparent)]
    NoVirtualisation(#[from] NoVirtualisation),
    /// The store's lock could not be had.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// smolvm failed.
    #[error(transparent)]
    Smolvm(#[from] smolcellar_smolvm::Error),
    /// There is nothing to boot.
    #[error("the artifact {} is not there; build it again (`cargo xtask build-agent`)", .0.display())]
    NoArtifact(PathBuf),
    /// There is nothing to run.
    #[error("there is no command to run: the image has neither entrypoint nor cmd; give one after `--`")]
    NoCommand,
    /// An option that cannot be right.
    #[error("{what} {value:?} {problem}")]
    BadOption {
        /// What it is: "allowed address".
        what: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The machine went away under the command.
    #[error("machine {0} stopped while the command ran in it; its memory may have been too small (--mem)")]
    MachineDied(String),
    /// Signals cannot be caught.
    #[error("cannot catch signals: {0}")]
    Signals(std::io::Error),
}
