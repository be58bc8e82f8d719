//! What can be wrong with an image: what, where, and what to do.

use std::io;

use smolcellar_store::{Digest, StoreError};

use crate::config::Platform;

/// The crate's result.
pub type Result<T, E = OciError> = std::result::Result<T, E>;

/// An image could not be read.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// Reading or staging failed.
    #[error("cannot read {what}: {source}")]
    Io {
        /// What was read.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// The input ends too early.
    #[error("{what} ends in the middle of {inside}: it is truncated; write or download it again")]
    Truncated {
        /// What was read.
        what: String,
        /// The part it ends in.
        inside: String,
    },
    /// The input is not an image archive.
    #[error(
        "{what} is not an image archive: {problem}; expected `docker save` output or an OCI image layout{hint}"
    )]
    NotAnImage {
        /// What was read.
        what: String,
        /// What it lacks.
        problem: String,
        /// What else it may be and what to do then; starts with a space.
        hint: &'static str,
    },
    /// The archive contradicts itself.
    #[error("{what} is not valid: {problem}; make or download it again")]
    Invalid {
        /// What was read.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Bytes do not have the digest they are named by.
    #[error(
        "{what}: {part} has digest {actual}, expected {expected}: it is damaged or was changed; make or download it again"
    )]
    Mismatch {
        /// What was read.
        what: String,
        /// The part whose digest is wrong.
        part: String,
        /// The digest it should have.
        expected: Digest,
        /// The digest it has.
        actual: Digest,
    },
    /// A layer has an entry that must not be there.
    #[error("layer {layer}, entry '{path}': {problem}; rebuild the image without it")]
    Entry {
        /// The layer, lowest first, from 1.
        layer: usize,
        /// The entry's path as the layer has it.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The image is for another platform.
    #[error("the image is for {found}, wanted {wanted}; build it for {wanted}, or pass --platform {found}")]
    Platform {
        /// The platform that was asked for.
        wanted: Platform,
        /// What the image is for.
        found: String,
    },
    /// More than one image fits.
    #[error("{what} holds {count} images ({names}): write one image per archive")]
    Ambiguous {
        /// What was read.
        what: String,
        /// How many.
        count: usize,
        /// Their names.
        names: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl OciError {
    /// Attaches what was read to an I/O error; an early end is named as such.
    pub(crate) fn io(what: &str, inside: &str) -> impl FnOnce(io::Error) -> Self + use<> {
        let (what, inside) = (what.to_owned(), inside.to_owned());
        move |source| match source.kind() {
            io::ErrorKind::UnexpectedEof => Self::Truncated { what, inside },
            _ => Self::Io { what: format!("{what} ({inside})"), source },
        }
    }
}

/// A path for a message: lossy, without control characters, of bounded length.
pub(crate) fn show(path: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(path).chars().flat_map(char::escape_debug).collect();
    match text.char_indices().nth(200) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
