//! What every backend can do with a guest.

use std::path::Path;

use serde::Serialize;
use smolcellar_run::{ExecIo, Limits};
use smolcellar_smolvm::ExecRequest;

use crate::error::Result;
use crate::plan::Plan;
use crate::signals::Interrupt;

/// One guest: a machine or a container. Its name is its own for ever.
///
/// `stop` and `delete` are what teardown is made of: each is bounded in time,
/// accepts that there is nothing, and says in words what it could not do.
pub(crate) trait Guest {
    /// Makes it, not started.
    fn create(&self, plan: &Plan, interrupt: &dyn Interrupt) -> Result<()>;

    /// Starts it: commands can be run in it afterwards.
    fn start(&self, interrupt: &dyn Interrupt) -> Result<()>;

    /// Runs a command in it; its exit code.
    fn exec(&self, request: &ExecRequest, io: ExecIo, interrupt: &dyn Interrupt) -> Result<i32>;

    /// Puts a small file into it, readable for everybody there.
    fn put(&self, contents: &Path, path: &str, limits: Limits<'_>) -> Result<()>;

    /// Copies between this host and the guest.
    fn copy(&self, copy: &Transfer, limits: Limits<'_>) -> Result<()>;

    /// What it is doing; `None`: there is none.
    fn state(&self) -> Result<Option<State>>;

    /// The connections that were refused to it, for people. Empty where that
    /// cannot be told.
    fn denials(&self) -> Vec<String>;

    /// Ends all that runs in it.
    fn stop(&self) -> Result<(), String>;

    /// Removes it.
    fn delete(&self) -> Result<(), String>;
}

/// A copy between this host and a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transfer {
    /// Into the guest.
    In {
        /// A path on this host.
        from: std::path::PathBuf,
        /// An absolute path in the guest.
        to: String,
    },
    /// Out of the guest.
    Out {
        /// An absolute path in the guest.
        from: String,
        /// A path on this host.
        to: std::path::PathBuf,
    },
}

/// What a guest is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Made, or stopped.
    Stopped,
    /// Commands can be run in it.
    Running,
    /// Neither: on its way, or broken.
    Unclear,
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Stopped => "stopped",
            Self::Running => "running",
            Self::Unclear => "unclear",
        })
    }
}
