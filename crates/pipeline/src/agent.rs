//! What to build: an agent, resolved from its configuration.

use std::path::PathBuf;

use smolcellar_engine::BuildSpec;
use smolcellar_oci::Platform;

/// An agent, with every path absolute and every default filled in.
#[derive(Debug, Clone)]
pub struct AgentSpec {
    /// Its name in the configuration.
    pub name: String,
    /// The folder whose configuration names it; tells agents of one name apart.
    pub project: PathBuf,
    /// Where its image comes from.
    pub source: Source,
    /// What the guest must be.
    pub platform: Platform,
    /// Virtual CPUs.
    pub cpus: u8,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// What replaces the image's own.
    pub overrides: Overrides,
    /// zstd's level.
    pub level: i32,
    /// Who packs it.
    pub packer: Packer,
}

/// Who packs an artifact.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Packer {
    /// We do, in this process.
    #[default]
    Native,
    /// `smolvm pack create` does, in a machine that it boots, from a registry
    /// that we run for it.
    Smolvm,
}

impl Packer {
    /// The name as receipts and the command line have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Smolvm => "smolvm",
        }
    }
}

/// What the configuration says instead of the image. `None` and empty leave
/// the image's as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Replaces the entrypoint, and drops the image's `cmd`, as `docker run
    /// --entrypoint` does.
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the arguments.
    pub cmd: Option<Vec<String>>,
    /// `(name, value)`: replaces variables of these names, adds the others.
    pub env: Vec<(String, String)>,
    /// Replaces the working folder.
    pub workdir: Option<String>,
    /// Replaces `user[:group]`.
    pub user: Option<String>,
}

/// Where an image comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A Dockerfile.
    Build {
        /// A command to run first, in the project's folder; may be empty.
        before: Vec<String>,
        /// What the engine builds.
        build: BuildSpec,
    },
    /// An archive file or an OCI image layout folder.
    Archive(PathBuf),
    /// An archive on standard input.
    Stdin,
}
