//! Writing and reading `.smolmachine` artifacts.
//!
//! The format is smolvm's (crate `smolvm-pack`, module `format`): a blob of
//! assets, which is a tar of `agent-rootfs.tar` and the image's layers under
//! zstd; a JSON manifest; a footer of 64 bytes. [`pack`] writes the blob as
//! many independent zstd frames, cut where the rule in [`cut`] says, and ends
//! it with a skippable frame that lists them ([`FrameIndex`]). Frames are
//! compressed on all cores and written in order; the same input gives the
//! same bytes on every machine.

mod assets;
pub mod cut;
mod error;
mod frames;
mod index;
mod layer;
mod read;
mod tail;
mod write;

pub use assets::{AgentRootfs, MachineSpec};
pub use error::{PackError, Result};
pub use frames::{check_frames, check_structure};
pub use index::{Frame, FrameIndex, INDEX_VERSION};
pub use layer::with_layer;
pub use read::{Artifact, Sum, read, read_foreign};
pub use tail::{Tail, TailRead, read_tail};
pub use write::{Packed, pack, zstd_version};

/// The version of the packer, part of every recipe: what is written for one
/// input never changes under one version.
///
/// 1. The first: cut rule 1, frame index 1.
pub const PACKER_VERSION: u32 = 1;

/// The version of smolvm's own format that is written.
pub const SMOLPACK_VERSION: u32 = smolvm_pack::format::FORMAT_VERSION;
