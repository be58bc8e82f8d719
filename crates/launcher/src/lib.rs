//! The launcher: boots a cached artifact in a microVM, runs one command in it
//! and always takes it down.
//!
//! [`launch`] goes through plan → preflight → bring-up → exec → teardown. It
//! knows the store and smolvm, never how an artifact is made: give it one and
//! it launches. It prints nothing; the guest's output goes straight to ours.
//!
//! Architecture invariant: whatever bring-up makes, it registers for undo
//! before it makes it, and undo runs on every way out: success, error, panic
//! and signal.

mod bringup;
mod error;
mod handle;
mod plan;
pub mod preflight;
mod process;
mod signals;
mod undo;

pub use bringup::{Bounds, Launcher, launch};
pub use error::{LaunchError, Result};
pub use plan::{Artifact, Egress, ImageRef, LABEL, LaunchSpec, Plan, machine_name, slug};
pub use preflight::NoVirtualisation;
pub use signals::{Interrupt, Signals};
pub use smolcellar_smolvm::{Cli, ExecIo, NotationError, Port, Secret, Volume};
