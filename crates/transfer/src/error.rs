//! What can go wrong on the way out or in.

use std::io;
use std::path::PathBuf;

use smolcellar_oci::OciError;
use smolcellar_pack::PackError;
use smolcellar_store::{Digest, MachineKey, StoreError};

use crate::import::Imported;

/// The crate's result.
pub type Result<T, E = TransferError> = std::result::Result<T, E>;

/// An export or an import failed.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The export could not be written.
    #[error("cannot write the export: {0}")]
    Write(#[source] io::Error),
    /// The input could not be read.
    #[error("cannot read {what}: {source}")]
    Read {
        /// What was read.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// The input ends too early.
    #[error("{what} ends in the middle of {inside}: it is truncated; copy or export it again")]
    Cut {
        /// What was read.
        what: String,
        /// The part it ends in.
        inside: String,
    },
    /// The input is neither an export nor a `.smolmachine`.
    #[error("{0} is no export of `cargo xtask cache export` and no .smolmachine")]
    NotExport(String),
    /// A bare artifact does not tell its image.
    #[error(
        "{0} is a bare .smolmachine, which does not say which image it was made of; name it with --image-id sha256:…"
    )]
    NeedsImage(String),
    /// An export tells its images itself.
    #[error("{0} is an export, which says itself of which images it is; leave --image-id out")]
    NeedsNoImage(String),
    /// One artifact was expected.
    #[error("{what} holds {count} artifacts, of which an agent can have one; import it without --agent")]
    NotOne {
        /// What was read.
        what: String,
        /// How many.
        count: usize,
    },
    /// A part of the input is not what it must be.
    #[error("{what}: {entry}: {problem}; copy or export it again")]
    Invalid {
        /// What was read.
        what: String,
        /// The entry.
        entry: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Bytes do not have the digest they are named by.
    #[error(
        "{what}: {entry} has digest {actual}, expected {expected}: it is damaged or was changed; copy or export it again"
    )]
    Mismatch {
        /// What was read.
        what: String,
        /// The entry.
        entry: String,
        /// The digest it should have.
        expected: Digest,
        /// The digest it has.
        actual: Digest,
    },
    /// More artifacts than one export describes.
    #[error("{0} artifacts are more than one export can describe; export fewer at a time")]
    TooMany(usize),
    /// The artifact is not in the store.
    #[error("there is no artifact {0} in the cache; `cargo xtask cache ls` lists those there are")]
    NoMachine(MachineKey),
    /// The image is not in the store, or not all of it.
    #[error(
        "the layers of the image {} are not in the cache, or were collected; `cargo xtask build-agent --force=tarball` \
         brings them back", .0.short()
    )]
    NoImage(Digest),
    /// A file of the store is not what it should be.
    #[error("{} is damaged: {problem}; run `cargo xtask cache verify --repair`", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// What was just imported is gone again.
    #[error("a blob of the image {} was collected while it was imported; run the command again", .0.short())]
    Collected(Digest),
    /// The name for the image is none.
    #[error("'{tag}' cannot name an image: {problem}")]
    Tag {
        /// The name.
        tag: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// An image's layers are not sound.
    #[error(transparent)]
    Oci(#[from] OciError),
    /// An artifact is not sound.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// An import ended early. What was imported before is whole and stays.
#[derive(Debug, thiserror::Error)]
#[error("{error} ({})", so_far(imported.len(), *entries))]
pub struct Stopped {
    /// What was imported before.
    pub imported: Vec<Imported>,
    /// How many entries there are; 0 if that was not known yet.
    pub entries: usize,
    /// What ended it.
    #[source]
    pub error: TransferError,
}

fn so_far(imported: usize, entries: usize) -> String {
    match imported {
        0 => "nothing was imported".into(),
        1 => format!("1 of {entries} entries was imported before, and is whole"),
        n => format!("{n} of {entries} entries were imported before, and are whole"),
    }
}
