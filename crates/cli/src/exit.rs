//! Exit codes, all in one place.

use smolcellar_launcher::LaunchError;
use smolcellar_pipeline::PipelineError;
use smolcellar_remote::RemoteError;
use smolcellar_store::StoreError;
use smolcellar_transfer::TransferError;

/// It worked.
pub(crate) const OK: u8 = 0;
/// It failed.
pub(crate) const FAILED: u8 = 1;
/// The command line or the configuration is wrong.
pub(crate) const USAGE: u8 = 2;
/// What was to be in the cache is not.
pub(crate) const MISS: u8 = 3;
/// The launch was not wanted, or nobody could be asked.
pub(crate) const DECLINED: u8 = 4;
/// Another process kept a lock for longer than `--lock-timeout`.
pub(crate) const LOCK_TIMEOUT: u8 = 5;
/// `launch`, `exec` or `shell` failed itself: any other code is the guest's, or 128 plus the
/// number of the signal that ended it.
pub(crate) const LAUNCHER: u8 = 125;

/// A mistake of the caller's: exits with [`USAGE`].
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// It is not in the cache, and was not to be made: exits with [`MISS`].
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Miss(pub(crate) String);

/// Nobody said yes: exits with [`DECLINED`].
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Declined(pub(crate) String);

/// The code for an error.
pub(crate) fn code_of(error: &anyhow::Error, in_guest: bool) -> u8 {
    if error.chain().any(is_lock_timeout) {
        LOCK_TIMEOUT
    } else if error.chain().any(|cause| cause.is::<Usage>() || is_configuration(cause) || is_misuse(cause)) {
        USAGE
    } else if error.chain().any(|cause| cause.is::<Miss>() || is_miss(cause)) {
        MISS
    } else if error.chain().any(|cause| cause.is::<Declined>()) {
        DECLINED
    } else if in_guest {
        LAUNCHER
    } else {
        FAILED
    }
}

/// An export or an import was asked for wrongly.
fn is_misuse(cause: &(dyn std::error::Error + 'static)) -> bool {
    use TransferError::{NeedsImage, NeedsNoImage, NotOne, Tag};
    let error = cause.downcast_ref();
    matches!(error, Some(NeedsImage(_) | NeedsNoImage(_) | NotOne { .. } | Tag { .. }))
}

/// What was to be exported is not in the cache.
fn is_miss(cause: &(dyn std::error::Error + 'static)) -> bool {
    matches!(cause.downcast_ref(), Some(TransferError::NoMachine(_) | TransferError::NoImage(_)))
        || matches!(cause.downcast_ref(), Some(PipelineError::NotCached))
}

/// A configured path or program is not there.
fn is_configuration(cause: &(dyn std::error::Error + 'static)) -> bool {
    use smolcellar_engine::EngineError;
    let no_input = |error: &EngineError| matches!(error, EngineError::NoInput { .. });
    match cause.downcast_ref() {
        Some(PipelineError::BeforeRun { .. }) => true,
        Some(PipelineError::Engine(error)) => no_input(error),
        _ if matches!(cause.downcast_ref(), Some(LaunchError::Engine(error)) if no_input(error)) => true,
        _ => cause.downcast_ref().is_some_and(no_input),
    }
}

/// The crates pass store errors on transparently: the chain shows the wrapper.
fn is_lock_timeout(cause: &(dyn std::error::Error + 'static)) -> bool {
    let store = if let Some(PipelineError::Store(error)) = cause.downcast_ref() {
        Some(error)
    } else if let Some(LaunchError::Store(error)) = cause.downcast_ref() {
        Some(error)
    } else if let Some(smolcellar_smolvm::Error::Store(error)) = cause.downcast_ref() {
        Some(error)
    } else if let Some(TransferError::Store(error)) = cause.downcast_ref() {
        Some(error)
    } else if let Some(RemoteError::Store(error)) = cause.downcast_ref() {
        Some(error)
    } else {
        cause.downcast_ref()
    };
    matches!(store, Some(StoreError::LockTimeout { .. }))
}
