//! What can go wrong in a run.

use smolcellar_engine::EngineError;
use smolcellar_oci::OciError;
use smolcellar_pack::PackError;
use smolcellar_store::StoreError;

/// The crate's result.
pub type Result<T, E = PipelineError> = std::result::Result<T, E>;

/// A stage failed.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The command before the image build failed.
    #[error("the command before the image build, `{command}`, failed with {status}:\n{output}")]
    Before {
        /// The command line.
        command: String,
        /// How it ended.
        status: String,
        /// The end of what it printed.
        output: String,
    },
    /// The command before the image build could not be run.
    #[error(
        "cannot run the command before the image build, `{command}`: {source}; correct `before` in the agent's configuration"
    )]
    BeforeRun {
        /// The command line.
        command: String,
        /// Why not.
        source: std::io::Error,
    },
    /// The archive could not be opened.
    #[error("cannot open the archive {}: {source}", path.display())]
    Archive {
        /// The archive.
        path: std::path::PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// It is not in the cache, and nothing was to be built.
    #[error("it is not in the cache, and was not to be built")]
    NotCached,
    /// What the store had of the image was damaged, and a new build of it gave
    /// another image.
    #[error(
        "what the cache had of the image was damaged, and building it again gave another one; run the command again"
    )]
    Moved,
    /// smolvm's packer did something else than it was asked to.
    #[error(
        "`smolvm pack create` did not do what it was to: {0}; leave `--packer smolvm` out, and smolcellar packs itself"
    )]
    Packer(String),
    /// The registry for smolvm's packer failed.
    #[error(transparent)]
    Registry(#[from] smolcellar_registry::RegistryError),
    /// smolvm's packer failed.
    #[error(transparent)]
    Smolvm(#[from] smolcellar_smolvm::Error),
    /// An engine is needed and there is none.
    #[error("an image build needs a container engine")]
    NoEngine,
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The image could not be read.
    #[error(transparent)]
    Oci(#[from] OciError),
    /// Packing failed.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
