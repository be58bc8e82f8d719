//! Container engines: docker, and podman where that is what there is.
//!
//! Architecture invariant: every engine command line is made in `cli`; what
//! an engine prints is understood in `parse`, which runs nothing.

mod cli;
mod error;
mod follow;
mod parse;
mod save;

pub use cli::{BuildSpec, Engine, Kind};
pub use error::{EngineError, Result};
pub use follow::{Tail, follow};
pub use parse::ImageInfo;
pub use save::SaveStream;
