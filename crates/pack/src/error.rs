//! What can go wrong with an artifact.

use std::io;
use std::path::PathBuf;

/// The crate's result.
pub type Result<T, E = PackError> = std::result::Result<T, E>;

/// Packing, or reading a pack, failed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The output could not be written.
    #[error("cannot write the artifact: {0}; free some space or name another folder with --cache-dir")]
    Write(#[source] io::Error),
    /// An input could not be read.
    #[error("cannot read {what}: {source}")]
    Input {
        /// The input.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// An input changed while it was packed.
    #[error("{0} changed while it was being packed; run the command again")]
    Changed(&'static str),
    /// The runtime's agent root filesystem is not what was installed.
    #[error("{} is damaged; run `cargo xtask setup --force` to install the runtime again", .0.display())]
    Damaged(PathBuf),
    /// The manifest cannot be written as JSON.
    #[error("cannot write the manifest: {0}")]
    Manifest(#[from] smolvm_pack::PackError),
    /// A file is not an artifact, or a damaged one.
    #[error("{} is not a whole .smolmachine: {problem}; build it again", path.display())]
    Artifact {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}
