//! Container engines: docker, and podman where that is what there is.
//!
//! Architecture invariant: every engine command line is made in `cli`; what
//! an engine prints is understood in `parse`, which runs nothing.

mod children;
mod cli;
mod error;
mod follow;
mod parse;
mod save;

pub use children::end_all;
pub use cli::{BuildSpec, Engine, Kind};
pub use error::{EngineError, Result};
pub use follow::{Tail, follow};
pub use parse::ImageInfo;
pub use save::SaveStream;

/// The parsers of what engines print, for fuzzing.
#[cfg(fuzzing)]
pub mod fuzzing {
    /// See [`crate::parse`].
    pub fn image_info(json: &str) -> Result<crate::ImageInfo, String> {
        crate::parse::image_info(json)
    }

    /// See [`crate::parse`].
    pub fn image_id(text: &str) -> Result<smolcellar_store::Digest, String> {
        crate::parse::image_id(text)
    }
}
