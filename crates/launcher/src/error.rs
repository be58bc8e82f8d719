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
    /// The container engine failed.
    #[error(transparent)]
    Engine(#[from] smolcellar_engine::EngineError),
    /// The artifact cannot be read.
    #[error(transparent)]
    Artifact(#[from] smolcellar_pack::PackError),
    /// A program that is needed is not there.
    #[error("this needs {0}")]
    NoTool(&'static str),
    /// Every network that was tried has addresses that somebody has.
    #[error("found no free addresses for a network in 10.64.0.0/10; remove networks that are not needed")]
    NoSubnet,
    /// The sidecar is not what it should be.
    #[error("the sidecar {image} is not ready: {problem}; {log}")]
    Sidecar {
        /// Its image.
        image: String,
        /// What is wrong.
        problem: String,
        /// What it printed.
        log: String,
    },
    /// A port of this host cannot be had.
    #[error("cannot listen on port {port} of this host: {source}; choose another with --port HOST:GUEST")]
    Port {
        /// Its number.
        port: u16,
        /// Why not.
        source: std::io::Error,
    },
    /// The machine's name is another one's.
    #[error("there is a machine {0} already; choose another name, or remove it (`cargo xtask rm {0}`)")]
    NameTaken(String),
    /// There is no such machine.
    #[error("there is no machine {wanted}; {}", if known.is_empty() { "there is none at all".to_owned() } else { format!("there is {}", known.join(", ")) })]
    NoMachine {
        /// What was asked for.
        wanted: String,
        /// The machines that there are.
        known: Vec<String>,
    },
    /// Several machines are meant.
    #[error("{wanted} may be any of {}; name one in full", .candidates.join(", "))]
    Ambiguous {
        /// What was asked for.
        wanted: String,
        /// What it may be.
        candidates: Vec<String>,
    },
    /// Nothing can be run in a machine that does not run.
    #[error("machine {0} is not running")]
    NotRunning(String),
    /// A machine that runs is not simply removed.
    #[error("machine {0} is running: stop it first (`cargo xtask stop {0}`), or remove it with --force")]
    Running(String),
    /// What is left of a machine.
    #[error("could not take down machine {machine}: {problem}")]
    Left {
        /// The machine.
        machine: String,
        /// What could not be done.
        problem: String,
    },
    /// smolvm copies files only.
    #[error("{} is a folder, and smolvm copies single files; pack it first (tar), or use a volume", .0.display())]
    FolderCopy(PathBuf),
    /// A signal came. The caller sees its number instead.
    #[error("it was interrupted")]
    Interrupted,
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
    #[error(
        "machine {0} stopped while the command ran in it: somebody stopped it, or its memory was too small (--mem)"
    )]
    MachineDied(String),
    /// Signals cannot be caught.
    #[error("cannot catch signals: {0}")]
    Signals(std::io::Error),
}
