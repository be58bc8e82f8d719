//! Which files were hashed by this process and found to be what they are called.
//!
//! Blobs of a store have seals that outlast the process. This is for files
//! without a store, and for stores that cannot be written.
//!
//! Whoever wants a part of a file that nobody hashed has all of it hashed: many
//! may want parts at once, and the threads that do it serve everybody. So one
//! file is hashed by one of them, and no more than [`AT_ONCE`] files at a time;
//! those who wait take no thread.

use std::collections::HashMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use smolcellar_store::Digest;
use tokio::sync::{Mutex as Turns, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};

/// So many are remembered.
const MOST: usize = 1 << 16;
/// So many files are hashed at a time.
pub(crate) const AT_ONCE: usize = 2;

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
#[derive(Debug)]
pub(crate) struct Sound {
    known: Mutex<HashMap<Digest, (Look, bool)>>,
    /// Whose turn it is, of those who want the same file hashed.
    turns: Mutex<HashMap<Digest, Weak<Turns<()>>>>,
    room: Arc<Semaphore>,
}

/// May hash a file. Goes with the thread that does: who asked may be gone by then.
#[derive(Debug)]
pub(crate) struct Turn {
    _turn: OwnedMutexGuard<()>,
    _room: OwnedSemaphorePermit,
}

impl Default for Sound {
    fn default() -> Self {
        let room = Arc::new(Semaphore::new(AT_ONCE));
        Self { known: Mutex::default(), turns: Mutex::default(), room }
    }
}

impl Sound {
    /// Whether a file is what it is called, if it was hashed.
    pub(crate) fn verdict(&self, digest: &Digest, look: Look) -> Option<bool> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(digest).filter(|known| known.0 == look).map(|known| known.1)
    }

    pub(crate) fn note(&self, digest: Digest, look: Look, sound: bool) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // Forgetting costs hashing, nothing else.
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(digest, (look, sound));
    }

    /// Waits until nobody hashes this file and few hash others; the first may
    /// have done it by then. `None`: the server ends.
    pub(crate) async fn turn(&self, digest: &Digest) -> Option<Turn> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            let there = turns.get(digest).and_then(Weak::upgrade);
            there.unwrap_or_else(|| {
                turns.retain(|_, turn| turn.strong_count() > 0);
                let turn = Arc::new(Turns::new(()));
                turns.insert(*digest, Arc::downgrade(&turn));
                turn
            })
        };
        let turn = turn.lock_owned().await;
        let room = Arc::clone(&self.room).acquire_owned().await.ok()?;
        Some(Turn { _turn: turn, _room: room })
    }
}
