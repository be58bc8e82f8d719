//! A hash that is computed beside a transfer, on a thread of its own, so that
//! it costs the transfer no time.

use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use smolcellar_store::{Digest, Hasher};

/// Less than this is hashed at once, in bytes.
const LARGE: u64 = 1 << 20;
/// How many pieces may wait: this times the size of a piece is the memory.
const WAITING: usize = 8;

/// The hash of what passes by.
pub(crate) struct Beside(Way);

enum Way {
    Here(Hasher),
    Thread { full: SyncSender<Vec<u8>>, empty: Receiver<Vec<u8>>, thread: JoinHandle<Digest> },
}

impl Beside {
    /// Of about so many bytes.
    pub(crate) fn new(size: u64) -> Self {
        if size < LARGE {
            return Self(Way::Here(Hasher::new()));
        }
        let (full, pieces) = sync_channel::<Vec<u8>>(WAITING);
        let (back, empty) = channel();
        let thread = std::thread::spawn(move || {
            let mut hasher = Hasher::new();
            for piece in pieces {
                hasher.update(&piece);
                // Nobody may want it any more.
                let _ = back.send(piece);
            }
            hasher.finish()
        });
        Self(Way::Thread { full, empty, thread })
    }

    /// Adds bytes.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            Way::Here(hasher) => hasher.update(bytes),
            Way::Thread { full, empty, .. } => {
                let mut piece = empty.try_recv().unwrap_or_default();
                piece.clear();
                piece.extend_from_slice(bytes);
                // It cannot be gone: it ends when this end does.
                let _ = full.send(piece);
            }
        }
    }

    /// The digest of everything added.
    pub(crate) fn finish(self) -> Digest {
        match self.0 {
            Way::Here(hasher) => hasher.finish(),
            Way::Thread { full, thread, .. } => {
                drop(full);
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_the_same_here_and_on_a_thread() {
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n ^ (n >> 9)) as u8).collect();
        for size in [0, u64::MAX] {
            let mut hash = Beside::new(size);
            bytes.chunks(77_777).for_each(|piece| hash.update(piece));
            assert_eq!(hash.finish(), Digest::of(&bytes));
        }
        assert_eq!(Beside::new(u64::MAX).finish(), Digest::of(b""));
    }
}
