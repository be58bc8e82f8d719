//! The smolvm runtime: find it or install it, speak each dialect of its
//! command line.
//!
//! smolvm boots `.smolmachine` artifacts as microVMs. [`find`] looks for a
//! runtime where the user says, where an installed smolvm is, and in the
//! store; [`install`] puts the pinned one into the store. [`Cli`] runs it.
//!
//! Architecture invariant: every program that this crate starts, it starts as a
//! `smolcellar_run::Invocation`, so within bounds; what smolvm is told is made by pure functions
//! (`argv`), what it says is read by pure functions (`parse`).

mod argv;
mod cli;
mod error;
mod extraction;
mod fingerprint;
mod host;
mod layout;
mod local;
mod managed;
mod pip;
mod receipt;
mod request;
mod rootfs;
mod runtime;
mod sparse;
mod unpack;
mod verify;
mod version;
mod wheel;

pub use argv::CopyPath;
pub use cli::{Cli, ExecOutput, Pruned};
pub use error::{Error, Result};
pub use extraction::{Extraction, Extractions};
pub use host::hypervisor_framework;
pub use managed::{InstallOptions, install};
pub use parse::{EgressEvent, MachineInfo, MachineState};
pub use request::{CreateRequest, ExecRequest, NotationError, PackRequest, Port, Secret, Volume};
pub use runtime::{Origin, Runtime, RuntimeConfig, discard_damaged, find, known};
pub use verify::{Problem, Repaired, Verified, repair, verify};
pub use version::{Dialect, Feature, Version, VersionError};
pub use wheel::{PINNED_VERSION, Pin};

mod parse;

/// The parsers of what smolvm prints, for fuzzing.
#[cfg(fuzzing)]
pub mod fuzzing {
    /// Everything that is parsed of an output, or of a small file beside a
    /// machine; an absolute path if it is one.
    pub fn output(stdout: &[u8]) -> Option<std::path::PathBuf> {
        let _ = crate::parse::version(stdout);
        let _ = crate::parse::machines(stdout);
        let _ = crate::parse::machine(stdout);
        let _ = crate::parse::egress_events(stdout);
        let _ = crate::extraction::pointed(stdout);
        let _ = crate::extraction::digest(stdout);
        let _ = crate::extraction::machine_name(stdout);
        crate::parse::path(stdout)
    }
}
