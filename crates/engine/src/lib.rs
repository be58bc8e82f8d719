//! Container engines: docker, and podman where that is what there is.
//!
//! Architecture invariant: every engine command line is made in `cli` (images)
//! and `container_argv` (containers, networks); what an engine prints is
//! understood in `parse`, which runs nothing. `context` knows what a build
//! reads, without an engine.

mod cli;
mod container_argv;
mod containers;
pub mod context;
mod error;
mod follow;
mod parse;
mod save;

pub use cli::{BuildSpec, Engine, Kind, check_inputs};
pub use container_argv::{Attachment, ContainerExec, ContainerSpec, NetworkSpec};
pub use error::{EngineError, Result};
pub use follow::{Tail, follow};
pub use parse::{ContainerInfo, ImageInfo};
pub use save::SaveStream;

/// Command lines, for showing them.
pub mod container_args {
    pub use crate::cli::build_args as build;
    pub use crate::container_argv::{
        connect, copy_tar, create, create_network, exec, import, remove, remove_image, remove_network, start,
        tag,
    };
}

/// The parsers of what engines print, for fuzzing.
#[cfg(fuzzing)]
pub mod fuzzing {
    /// See [`crate::parse`].
    pub fn image_info(json: &str) -> Result<crate::ImageInfo, String> {
        crate::parse::image_info(json)
    }

    /// See [`crate::parse`].
    pub fn container_info(json: &str) -> Result<crate::ContainerInfo, String> {
        crate::parse::container_info(json)
    }

    /// See [`crate::parse`].
    pub fn image_id(text: &str) -> Result<smolcellar_store::Digest, String> {
        crate::parse::image_id(text)
    }
}
