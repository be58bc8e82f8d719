//! What can go wrong with smolvm: the operation, the thing and the remedy.

use std::path::PathBuf;

use smolcellar_run::RunError;
use smolcellar_store::{Digest, StoreError};

use crate::version::{Feature, Version};

/// This crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The runtime could not be had, or did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A folder that was named as a runtime is none.
    #[error(
        "{} is no smolvm runtime: {problem}; name a folder that holds smolvm (or smol-vmm), libkrun, libkrunfw and the \
         agent rootfs, or leave SMOLCELLAR_SMOLVM_DIR unset to have the pinned one installed", dir.display()
    )]
    NotARuntime {
        /// The folder.
        dir: PathBuf,
        /// What is missing or wrong.
        problem: String,
    },
    /// The program does not say which version it is.
    #[error("`{} --version` does not name a smolvm version: {output:?}", program.display())]
    NoVersion {
        /// The program.
        program: PathBuf,
        /// What it printed, shortened.
        output: String,
    },
    /// A version older than can be driven.
    #[error(
        "{} is smolvm {version}, older than {}; upgrade it, or set SMOLCELLAR_SMOLVM_DIR to a newer one",
        program.display(), Version::MINIMUM
    )]
    TooOld {
        /// The program.
        program: PathBuf,
        /// Its version.
        version: Version,
    },
    /// This version cannot do what was asked.
    #[error("smolvm {version} has no `{}`; it needs {} or newer", feature.option(), feature.since())]
    Unsupported {
        /// What is missing.
        feature: Feature,
        /// The version that lacks it.
        version: Version,
    },
    /// No runtime is published for this machine.
    #[error(
        "no smolvm runtime is published for {os} on {arch}; build smolvm there and set SMOLCELLAR_SMOLVM_DIR to its folder"
    )]
    NoWheel {
        /// The operating system.
        os: &'static str,
        /// The processor.
        arch: &'static str,
    },
    /// The pinned wheel could not be fetched.
    #[error(
        "cannot fetch the smolvm runtime: {problem}\nput the file {wheel} (sha256 {}, from PyPI, package smolmachines) \
         into {} and try again, or set SMOLCELLAR_SMOLVM_DIR to a folder that holds a smolvm runtime",
        digest.hex(), folder.display()
    )]
    Fetch {
        /// What went wrong.
        problem: String,
        /// The wheel's file name.
        wheel: &'static str,
        /// Its digest.
        digest: Digest,
        /// Where a copy made by hand is looked for.
        folder: PathBuf,
    },
    /// The wheel's bytes are not the pinned ones.
    #[error("{} has SHA-256 {}, expected {}: it is damaged or another file; remove it and try again",
        path.display(), actual.hex(), expected.hex())]
    WrongWheel {
        /// The file.
        path: PathBuf,
        /// The pinned digest.
        expected: Digest,
        /// Its digest.
        actual: Digest,
    },
    /// An archive of the runtime cannot be read.
    #[error("cannot unpack {}: {problem}", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// smolvm, or pip, did not do what it was told.
    #[error(transparent)]
    Run(#[from] RunError),
    /// An argument that smolvm would misread.
    #[error("{what} {value:?} {problem}")]
    Argument {
        /// What it is: "machine name".
        what: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl Error {
    /// Wraps an error of reading an archive.
    pub(crate) fn archive(path: &std::path::Path) -> impl Fn(&dyn std::fmt::Display) -> Self + '_ {
        move |problem| Self::Archive { path: path.to_owned(), problem: problem.to_string() }
    }
}
