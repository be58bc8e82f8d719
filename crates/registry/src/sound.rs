//! Which files were hashed by this process and found to be what they are called.
//!
//! Blobs of a store have seals that outlast the process. This is for files
//! without a store, and for stores that cannot be written.

use std::collections::HashMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};

use smolcellar_store::Digest;

/// So many are remembered.
const MOST: usize = 1 << 16;

/// What tells one file from another, and from itself before it was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Look {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
    modified: (i64, i64),
}

impl Look {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// The files.
#[derive(Debug, Default)]
pub(crate) struct Sound(Mutex<HashMap<Digest, Look>>);

impl Sound {
    pub(crate) fn knows(&self, digest: &Digest, look: Look) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(digest) == Some(&look)
    }

    pub(crate) fn note(&self, digest: Digest, look: Look) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Forgetting costs hashing, nothing else.
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(digest, look);
    }
}
