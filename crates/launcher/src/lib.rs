//! The launcher: boots a cached artifact in a microVM or a container, runs one
//! command in it and always takes it down.
//!
//! [`Launcher::run`] goes through plan → preflight → bring-up → exec → teardown;
//! [`launches`] and [`find`] are about guests that are there. It knows the store,
//! smolvm and container engines, never how an artifact is made: give it one and
//! it launches. It prints nothing; the guest's output goes straight to ours.
//!
//! Architecture invariant: whatever bring-up makes, it registers for undo
//! before it makes it, and undo runs on every way out: success, error, panic
//! and signal.

mod bounds;
mod bringup;
mod check;
mod container;
mod container_image;
mod error;
mod extract;
mod forward;
mod guest;
mod handle;
mod idle;
mod machine;
mod names;
mod plan;
pub mod preflight;
mod process;
mod record;
mod sidecar;
mod sidecar_up;
mod signals;
mod spec;
mod subnet;
mod undo;
mod upkeep;

pub use bounds::Bounds;
pub use bringup::{Launcher, TakeLog};
pub use error::{LaunchError, Result};
pub use guest::{State, Transfer};
pub use handle::{Launched, find, launches};
pub use names::{machine_name, slug};
pub use plan::Plan;
pub use preflight::NoVirtualisation;
pub use sidecar::{Network, Reach, Sidecar, SidecarPort, SidecarSpec};
pub use signals::{Interrupt, Signals};
pub use smolcellar_engine::{BuildSpec, Engine};
pub use smolcellar_run::ExecIo;
pub use smolcellar_smolvm::{Cli, ExecRequest, NotationError, Port, Secret, Volume};
pub use spec::{Artifact, Backend, Egress, ImageRef, LABEL, LaunchSpec, PROMPT, Prompt, Tools};
