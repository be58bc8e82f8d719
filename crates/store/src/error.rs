//! What can go wrong in the store: the thing, the place and the remedy.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::digest::Digest;

/// The store's result.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// A store operation failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation failed.
    #[error("cannot {operation} {}: {source}{}", path.display(), io_remedy(source))]
    Io {
        /// What was tried, as a verb: "create", "rename".
        operation: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The disk is too full for something that was not begun.
    #[error(
        "{what} needs {need} bytes in {}, and {available} are free; free some space (`cargo xtask cache gc` does, `cargo \
         xtask cache du` shows what the cache holds) or name another folder with --cache-dir; nothing was changed",
        path.display()
    )]
    NoSpace {
        /// What was to be done.
        what: String,
        /// Where.
        path: PathBuf,
        /// The bytes that it needs.
        need: u64,
        /// The bytes that are free.
        available: u64,
    },
    /// The cache folder cannot be used as it is.
    #[error("the cache folder {} {problem}; {remedy}", path.display())]
    Root {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        remedy: &'static str,
    },
    /// Written by a newer smolcellar.
    #[error(
        "{} has format {found}, newer than the {known} this smolcellar knows; update smolcellar, or name another \
         folder with --cache-dir (nothing was changed)", path.display()
    )]
    Newer {
        /// The file that says so.
        path: PathBuf,
        /// Its format number.
        found: u64,
        /// The highest format number known here.
        known: u64,
    },
    /// A file of the store does not say what it should.
    #[error("{} is damaged: {problem}; run `cargo xtask cache verify`", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Bytes do not have the digest they were named by.
    #[error(
        "{what} has digest {actual}, expected {expected}: the source is damaged or was changed; fetch it again"
    )]
    Mismatch {
        /// What was hashed.
        what: String,
        /// The digest it should have.
        expected: Digest,
        /// The digest it has.
        actual: Digest,
    },
    /// Nothing in the store is called that, or more than one thing is.
    #[error("no artifact '{wanted}': {problem}")]
    NoEntry {
        /// What was asked for.
        wanted: String,
        /// Why it names nothing.
        problem: String,
    },
    /// Whoever waited for a lock does not any more.
    #[error("waiting for {key} was interrupted")]
    GaveUp {
        /// What is locked.
        key: String,
    },
    /// Another process kept a lock for longer than allowed.
    #[error(
        "gave up after {} s waiting for {key}, held by {holder}; wait for it or raise --lock-timeout",
        waited.as_secs()
    )]
    LockTimeout {
        /// What was waited for.
        key: String,
        /// Who has it.
        holder: String,
        /// For how long.
        waited: Duration,
    },
}

impl StoreError {
    /// Attaches the operation and the path to an I/O error.
    pub fn io(operation: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Io { operation, path, source }
    }
}

/// What to do about the errors people meet.
fn io_remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; free some space (`cargo xtask cache du` shows what the cache holds) or name another folder with --cache-dir; nothing half-written was kept"
        }
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            "; make the folder writable for you or name another one with --cache-dir"
        }
        _ => "",
    }
}
