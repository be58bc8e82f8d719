//! Large files that come in pieces, in any order, from several threads.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::blobs::StagedBlob;
use crate::digest::{Digest, Hasher};
use crate::error::{Result, StoreError};
use crate::fsio;
use crate::session::TempDir;

/// Bytes that are hashed at a time.
const PIECE: usize = 1 << 18;

/// So many written bytes are sent to the disk together.
const FLUSH: u64 = 32 << 20;

/// What else sees the bytes, in order and once each, while they are hashed.
pub type Watch = Box<dyn FnMut(&[u8]) + Send>;

/// Writes a file of known size whose pieces come in any order, each once.
///
/// Two threads work behind the writers: one hashes what is there from the start
/// on, out of the page cache, and one has the disk begin early. So when the
/// last piece is there, little is left to hash, and little to wait for when the
/// file is published.
pub struct BlobParts {
    shared: Arc<Shared>,
    path: PathBuf,
    size: u64,
    hashing: Option<JoinHandle<io::Result<Digest>>>,
    flushing: Option<JoinHandle<io::Result<()>>>,
}

struct Shared {
    file: Arc<File>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// What a writer has said it will write.
    claimed: Spans,
    /// What is written.
    there: Spans,
    /// Nobody writes any more: it is all there, or never will be.
    ended: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, until: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let state = self.changed.wait_while(self.state(), |state| !until(state));
        state.unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) {
        self.state().ended = true;
        self.changed.notify_all();
    }
}

impl BlobParts {
    /// Starts a file of `size` bytes in `dir`. `watch` sees all of them.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn create(dir: &TempDir, size: u64, watch: Watch) -> Result<Self> {
        let path = fsio::unused_name(dir.path(), "blob");
        let file = Arc::new(fsio::create_new(&path)?);
        file.set_len(size).map_err(StoreError::io("make room for", &path))?;
        let shared = Arc::new(Shared { file, state: Mutex::default(), changed: Condvar::new() });
        let (behind, beside) = (Arc::clone(&shared), Arc::clone(&shared));
        let hashing = Some(std::thread::spawn(move || hash(&behind, size, watch)));
        // A small file is not worth a second wait for the disk.
        let flushing = (size > FLUSH).then(|| std::thread::spawn(move || flush(&beside, size)));
        Ok(Self { shared, path, size, hashing, flushing })
    }

    /// Writes a piece.
    ///
    /// # Errors
    /// Whatever writing yields; [`io::ErrorKind::InvalidInput`] if some of these
    /// bytes were written before, or are beyond the end: what was hashed is
    /// never written again.
    pub fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let end = at.checked_add(bytes.len() as u64).filter(|end| *end <= self.size);
        let end = end.ok_or_else(|| refused("a piece goes beyond the end of its file"))?;
        if !self.shared.state().claimed.insert(at, end) {
            return Err(refused("a piece of a file came twice"));
        }
        self.shared.file.write_all_at(bytes, at)?;
        self.shared.state().there.insert(at, end);
        self.shared.changed.notify_all();
        Ok(())
    }

    /// Where it is being written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The finished file. Its digest may take longer.
    ///
    /// # Errors
    /// [`StoreError::Io`] if a piece is missing, or the disk failed.
    pub fn finish(mut self) -> Result<StagedBlob> {
        self.shared.end();
        if let Some(flushing) = self.flushing.take() {
            let flushed = flushing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            flushed.map_err(StoreError::io("fsync", &self.path))?;
        }
        let missing = || StoreError::io("finish", &self.path)(io::ErrorKind::UnexpectedEof.into());
        if self.shared.state().there.prefix() != self.size {
            return Err(missing());
        }
        let hashing = self.hashing.take().ok_or_else(missing)?;
        let path = std::mem::take(&mut self.path);
        Ok(StagedBlob::hashed_by(Arc::clone(&self.shared.file), path, self.size, hashing))
    }
}

impl Drop for BlobParts {
    fn drop(&mut self) {
        self.shared.end();
    }
}

fn refused(problem: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, problem)
}

/// Hashes what is there from the start on, as it grows.
fn hash(shared: &Shared, size: u64, mut watch: Watch) -> io::Result<Digest> {
    let mut hasher = Hasher::new();
    let mut piece = vec![0; PIECE];
    let mut seen = 0;
    while seen < size {
        let there = shared.wait(|state| state.ended || state.there.prefix() > seen).there.prefix();
        if there <= seen {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while seen < there {
            let length = piece.len().min(usize::try_from(there - seen).unwrap_or(usize::MAX));
            shared.file.read_exact_at(&mut piece[..length], seen)?;
            hasher.update(&piece[..length]);
            watch(&piece[..length]);
            seen += length as u64;
        }
    }
    Ok(hasher.finish())
}

/// Has the disk write what there is, again and again. A failure is final: the
/// file is dropped by whoever finishes it.
fn flush(shared: &Shared, size: u64) -> io::Result<()> {
    let mut flushed = 0;
    loop {
        let due = |state: &State| {
            let there = state.there.total();
            state.ended || there == size || there >= flushed + FLUSH
        };
        let state = shared.wait(due);
        let (there, ended) = (state.there.total(), state.ended);
        drop(state);
        if ended && there < size {
            return Ok(());
        }
        shared.file.sync_data()?;
        if there == size {
            return Ok(());
        }
        flushed = there;
    }
}

/// Disjoint spans of bytes; those that touch are one.
#[derive(Debug, Default)]
struct Spans(BTreeMap<u64, u64>);

impl Spans {
    /// Adds `start..end`; nothing, if some of it was there.
    fn insert(&mut self, start: u64, end: u64) -> bool {
        if start >= end {
            return start == end;
        }
        let before = self.0.range(..=start).next_back().map(|(s, e)| (*s, *e));
        let after = self.0.range(start..).next().map(|(s, e)| (*s, *e));
        if before.is_some_and(|(_, e)| e > start) || after.is_some_and(|(s, _)| s < end) {
            return false;
        }
        let start = before.filter(|(_, e)| *e == start).map_or(start, |(s, _)| s);
        let end = match after {
            Some((s, e)) if s == end => {
                self.0.remove(&s);
                e
            }
            _ => end,
        };
        self.0.insert(start, end);
        true
    }

    /// How far it is without a gap from the start on.
    fn prefix(&self) -> u64 {
        self.0.get(&0).copied().unwrap_or(0)
    }

    fn total(&self) -> u64 {
        self.0.iter().map(|(start, end)| end - start).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{OpenOptions, Store};
    use proptest::prelude::*;

    fn store(dir: &Path) -> Store {
        Store::open(&dir.join("c"), OpenOptions::default()).unwrap()
    }

    #[test]
    fn pieces_in_any_order_from_several_threads_have_the_digest_of_the_whole() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let bytes: Vec<u8> = (0..40_000_000u32).map(|n| (n ^ (n >> 9)) as u8).collect();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let watched = Arc::clone(&seen);
        let watch = Box::new(move |piece: &[u8]| watched.lock().unwrap().extend_from_slice(piece));
        let temp = store.temp_dir().unwrap();
        let parts = BlobParts::create(&temp, bytes.len() as u64, watch).unwrap();
        let pieces: Vec<_> = bytes.chunks(777_777).enumerate().collect();
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let (pieces, parts) = (&pieces, &parts);
                scope.spawn(move || {
                    for (number, piece) in pieces.iter().rev().filter(|(n, _)| n % 3 == thread) {
                        parts.write_at(piece, *number as u64 * 777_777).unwrap();
                    }
                });
            }
        });
        let staged = parts.finish().unwrap();
        assert_eq!((staged.digest().unwrap(), staged.size), (Digest::of(&bytes), bytes.len() as u64));
        assert!(*seen.lock().unwrap() == bytes);
    }

    #[test]
    fn a_missing_piece_a_second_one_and_one_beyond_the_end_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let temp = store.temp_dir().unwrap();
        let parts = BlobParts::create(&temp, 10, Box::new(|_| {})).unwrap();
        parts.write_at(b"0123", 0).unwrap();
        assert!(parts.write_at(b"45", 3).is_err(), "byte 3 is hashed already");
        assert!(parts.write_at(b"0123", 7).is_err());
        assert!(parts.write_at(b"x", u64::MAX).is_err());
        parts.write_at(b"89", 8).unwrap();
        assert!(parts.finish().is_err());
        let empty = BlobParts::create(&temp, 0, Box::new(|_| {})).unwrap();
        assert_eq!(empty.finish().unwrap().digest().unwrap(), Digest::of(b""));
        drop(BlobParts::create(&temp, 100 << 20, Box::new(|_| {})).unwrap());
    }

    proptest! {
        #[test]
        fn spans_say_what_is_there(spans in proptest::collection::vec((0..60u64, 0..12u64), 0..40)) {
            let mut model = [false; 80];
            let mut all = Spans::default();
            for (start, length) in spans {
                let range = start as usize..(start + length) as usize;
                let free = !model[range.clone()].contains(&true);
                prop_assert_eq!(all.insert(start, start + length), free);
                if free {
                    model[range].fill(true);
                }
                prop_assert_eq!(all.total(), model.iter().filter(|there| **there).count() as u64);
                prop_assert_eq!(all.prefix(), model.iter().take_while(|there| **there).count() as u64);
            }
        }
    }
}
