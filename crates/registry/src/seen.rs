//! What was asked for.

use std::sync::atomic::{AtomicU64, Ordering};

/// One request, when its answer begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// As `GET`.
    pub method: String,
    /// The target, without its query; what a terminal could trip over is escaped.
    pub path: String,
    /// The status of the answer.
    pub status: u16,
    /// How long it took until there was an answer, in milliseconds.
    pub millis: u64,
}

/// How much was asked for so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// Requests, refused ones included.
    pub requests: u64,
    /// Manifests that were asked for and found, by HEAD or GET.
    pub manifests: u64,
    /// Blobs, or parts of them, of which all that was asked for was handed out.
    pub blobs: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// Requests that were answered with a status of 400 or more.
    pub refused: u64,
}

/// Counts.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) requests: AtomicU64,
    pub(crate) manifests: AtomicU64,
    pub(crate) blobs: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) refused: AtomicU64,
}

impl Counts {
    pub(crate) fn seen(&self) -> Seen {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Seen {
            requests: get(&self.requests),
            manifests: get(&self.manifests),
            blobs: get(&self.blobs),
            bytes: get(&self.bytes),
            refused: get(&self.refused),
        }
    }
}

/// Adds to a count.
pub(crate) fn add(count: &AtomicU64, more: u64) {
    count.fetch_add(more, Ordering::Relaxed);
}
