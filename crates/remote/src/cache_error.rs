//! Why the remote cache could not do something, and what that says of the rest.

use std::sync::atomic::{AtomicBool, Ordering};

use smolcellar_pack::PackError;
use smolcellar_store::StoreError;
use smolcellar_transfer::TransferError;

use crate::error::RemoteError;
use crate::text;

/// The remote cache's result.
pub type CacheResult<T, E = CacheError> = Result<T, E>;

/// The remote cache failed.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// What is under a tag is not what the tag says, or not sound.
    #[error(
        "{at} is not what it should be and was not used: {problem}; remove it there if it is to be replaced"
    )]
    Unsound {
        /// The reference.
        at: String,
        /// What is wrong with it, fit to be shown.
        problem: String,
    },
    /// No artifact, or more than one, is called so.
    #[error("'{wanted}' names no artifact of {at}: {problem}")]
    NoEntry {
        /// What was asked for.
        wanted: String,
        /// The repository.
        at: String,
        /// Why it does not name one.
        problem: String,
    },
    /// A bare artifact does not tell its image.
    #[error(
        "{0} was pushed by another program and does not say which image it was made of; name it with --image-id sha256:…"
    )]
    NeedsImage(String),
    /// An artifact tells its image itself.
    #[error(
        "{0} says itself of which image it is, and it is not the one that was named; leave --image-id out"
    )]
    OtherImage(String),
    /// It cannot be described in a manifest.
    #[error("the artifact cannot be pushed: {0}")]
    Unfit(String),
    /// The caller does not want to wait any more.
    #[error("the transfer was given up")]
    GivenUp,
    /// It makes progress, and too little of it.
    #[error(
        "the transfer was not done within {0} s, and was given up; `cargo xtask cache pull` and `cache push` wait as long \
         as it takes"
    )]
    TooSlow(u64),
    /// The registry failed.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// What came is not a sound artifact.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// An artifact at hand is not sound.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl CacheError {
    /// [`CacheError::Unsound`]; `problem` may quote what came, and is made fit to
    /// be shown.
    pub(crate) fn unsound(at: impl Into<String>, problem: impl AsRef<str>) -> Self {
        Self::Unsound { at: at.into(), problem: text::problem(problem.as_ref()) }
    }

    /// Whether it concerns one entry and nothing else: others may be asked for.
    pub fn is_of_one_entry(&self) -> bool {
        match self {
            Self::Unsound { .. }
            | Self::NoEntry { .. }
            | Self::NeedsImage(_)
            | Self::OtherImage(_)
            | Self::Unfit(_)
            | Self::Transfer(_)
            | Self::Pack(_) => true,
            // 404: a manifest whose blobs somebody removed.
            Self::Remote(error) => {
                matches!(error, RemoteError::Wrong { .. } | RemoteError::Damaged { .. })
                    || error.status() == Some(404)
            }
            Self::GivenUp | Self::TooSlow(_) | Self::Store(_) => false,
        }
    }

    /// Whether whoever failed to write may still read: the registry answers,
    /// and says no.
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Remote(error) if error.status().is_some() && !error.is_transient())
            || matches!(self, Self::Remote(RemoteError::Refused { status: 507, .. }))
    }
}

/// Lets a run find out once that a remote cache does not work: what failed is
/// told to whoever tried, and then it is left alone. So it costs a run the
/// bounds of one look-up or transfer at most, and one warning.
#[derive(Debug, Default)]
pub struct Breaker {
    no_reads: AtomicBool,
    no_writes: AtomicBool,
}

impl Breaker {
    /// Nothing has failed yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether it is still read from.
    pub fn reads(&self) -> bool {
        !self.no_reads.load(Ordering::Relaxed)
    }

    /// Whether it is still written to.
    pub fn writes(&self) -> bool {
        !self.no_writes.load(Ordering::Relaxed)
    }

    /// It is left alone from now on.
    pub fn trip(&self) {
        self.no_reads.store(true, Ordering::Relaxed);
        self.no_writes.store(true, Ordering::Relaxed);
    }

    /// Reads from it. `None`: it failed before, and was not asked.
    pub fn read<T>(&self, work: impl FnOnce() -> CacheResult<T>) -> Option<CacheResult<T>> {
        self.reads().then(|| {
            let result = work();
            if result.as_ref().is_err_and(|error| !error.is_of_one_entry()) {
                self.trip();
            }
            result
        })
    }

    /// Writes to it. `None`: it failed before, and was not asked.
    pub fn write<T>(&self, work: impl FnOnce() -> CacheResult<T>) -> Option<CacheResult<T>> {
        self.writes().then(|| {
            let result = work();
            if let Err(error) = &result
                && !error.is_of_one_entry()
            {
                self.no_writes.store(true, Ordering::Relaxed);
                if !error.is_refusal() {
                    self.no_reads.store(true, Ordering::Relaxed);
                }
            }
            result
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16) -> CacheError {
        let (registry, what, said) = ("r".into(), "w".into(), String::new());
        RemoteError::Refused { registry, what, status, said, retry_after: None }.into()
    }

    #[test]
    fn the_first_failure_is_told_and_then_it_is_left_alone() {
        let breaker = Breaker::new();
        assert!(matches!(breaker.read(|| Ok(1)), Some(Ok(1))));
        assert!(matches!(breaker.read::<()>(|| Err(refused(503))), Some(Err(_))));
        assert!(breaker.read(|| Ok(1)).is_none() && breaker.write(|| Ok(1)).is_none());
    }

    #[test]
    fn a_registry_that_only_takes_nothing_is_still_read_from() {
        for (status, reads) in
            [(403, true), (405, true), (413, true), (507, true), (500, false), (429, false)]
        {
            let breaker = Breaker::new();
            assert!(matches!(breaker.write::<()>(|| Err(refused(status))), Some(Err(_))));
            assert_eq!((breaker.reads(), breaker.writes()), (reads, false), "{status}");
        }
    }

    #[test]
    fn what_is_quoted_of_the_registry_steers_no_terminal() {
        let error = CacheError::unsound("r", "unknown field `\u{1b}]0;x\u{7}\u{202e}`…");
        assert!(error.to_string().contains("`\\u{1b}]0;x\\u{7}\\u{202e}`…;"), "{error}");
        assert!(CacheError::unsound("r", "x".repeat(1 << 20)).to_string().len() < 2000);
    }

    #[test]
    fn one_bad_entry_says_nothing_of_the_others() {
        let breaker = Breaker::new();
        let unsound = || CacheError::Unsound { at: "r".into(), problem: "p".into() };
        assert!(matches!(breaker.read::<()>(|| Err(unsound())), Some(Err(_))));
        assert!(breaker.reads() && breaker.writes());
    }
}
