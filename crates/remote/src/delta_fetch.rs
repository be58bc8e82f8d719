//! Carries out a plan: copies and fetches side by side, into one file.
//!
//! The file is hashed, and sent to the disk, behind the writers
//! ([`BlobParts`]): every byte is written once and hashed once, in the order of
//! the file, by one thread, while the others copy and fetch. SHA-256 of one
//! file cannot be had faster than one core hashes it, and so copies and
//! connections only have to keep ahead of that thread.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use smolcellar_oci::Descriptor;
use smolcellar_pack::Sum;
use smolcellar_store::{BlobParts, Digest, Reporter, StagedBlob, StoreError, TempDir};

use crate::cache_error::{CacheError, CacheResult};
use crate::client::Client;
use crate::delta_local::Local;
use crate::delta_plan::{Copy, Plan, Range};
use crate::pull::Ranged;

/// Ranges that are fetched at a time.
const CONNECTIONS: usize = 4;
/// Threads that copy. One copies twice as fast as another hashes; a second
/// only takes time from that one (measured on two cores: 1.1 times slower).
const COPIERS: usize = 1;
/// What a transfer may take before its rate counts.
const START: Duration = Duration::from_secs(20);
/// The longest that a transfer may take whose rate counts, whatever size a
/// manifest claims: others wait for what it is about.
const MOST: Duration = Duration::from_secs(600);
/// Bytes copied at a time: they stay in a core's own cache.
const PIECE: usize = 1 << 18;

/// What is being carried out.
pub(crate) struct Assembly<'a> {
    pub(crate) client: &'a Client,
    /// The whole file, as the registry has it.
    pub(crate) layer: &'a Descriptor,
    pub(crate) locals: &'a [Local],
    /// The last bytes, if they are known already.
    pub(crate) tail: &'a [u8],
    pub(crate) dir: &'a TempDir,
    /// Told of bytes that are there.
    pub(crate) advance: &'a (dyn Fn(u64) + Sync),
    pub(crate) patience: &'a Patience<'a>,
}

/// How long a transfer is waited for.
pub(crate) struct Patience<'a> {
    reporter: &'a dyn Reporter,
    within: Option<(Instant, Duration)>,
}

impl<'a> Patience<'a> {
    /// So long as whoever waits wants to; and with `least`, so long as these
    /// bytes take at that many a second, after a start of [`START`], and [`MOST`] at most.
    pub(crate) fn new(reporter: &'a dyn Reporter, bytes: u64, least: Option<u64>) -> Self {
        let long = |least: u64| START.saturating_add(Duration::from_secs(bytes / least.max(1))).min(MOST);
        Self { reporter, within: least.map(|least| (Instant::now(), long(least))) }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.reporter.gives_up() || self.is_late()
    }

    fn is_late(&self) -> bool {
        self.within.is_some_and(|(began, long)| began.elapsed() > long)
    }

    /// For those that can only fail by an I/O error.
    pub(crate) fn check(&self) -> io::Result<()> {
        // Not `Interrupted`: that is tried again.
        if self.is_over() { Err(io::Error::other("the transfer was given up")) } else { Ok(()) }
    }

    /// What failed, or what ended it before.
    pub(crate) fn blame(&self, error: CacheError) -> CacheError {
        match self.within {
            _ if self.reporter.gives_up() => CacheError::GivenUp,
            Some((_, long)) if self.is_late() => CacheError::TooSlow(long.as_secs()),
            _ => error,
        }
    }
}

/// A file that is all there, with the digest of its descriptor.
pub(crate) struct Assembled {
    pub(crate) blob: StagedBlob,
    pub(crate) sum: Option<u32>,
}

/// How it went.
pub(crate) enum Outcome {
    /// Its digest is right.
    Done(Assembled),
    /// It is another's: something of it was not what it was taken for.
    Different(Digest),
    /// The registry sends everything or nothing.
    NoRanges,
}

impl Assembly<'_> {
    /// By ranges and copies. `probed`: the registry is known to do ranges.
    pub(crate) fn by_plan(&self, plan: &Plan, probed: bool) -> CacheResult<Outcome> {
        self.planned(plan, probed).map_err(|error| self.patience.blame(error))
    }

    fn planned(&self, plan: &Plan, probed: bool) -> CacheResult<Outcome> {
        let (parts, sum) = self.parts()?;
        let mut ranges = plan.ranges.as_slice();
        if !probed && let Some((first, rest)) = ranges.split_first() {
            if self.fetch(first, &parts)? == Ranged::NoRanges {
                return Ok(Outcome::NoRanges);
            }
            ranges = rest;
        }
        let tail_at = self.layer.size - self.tail.len() as u64;
        parts.write_at(self.tail, tail_at).map_err(StoreError::io("write", parts.path()))?;
        (self.advance)(self.tail.len() as u64);
        let work = Work { failed: Mutex::new(None), stop: AtomicBool::new(false) };
        let no_ranges = AtomicBool::new(false);
        let (next_copy, next_range) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..COPIERS.min(plan.copies.len()) {
                scope.spawn(|| {
                    let mut piece = vec![0; PIECE];
                    work.each(&plan.copies, &next_copy, |copy| self.copy(copy, &parts, &mut piece));
                });
            }
            for _ in 0..CONNECTIONS.min(ranges.len()) {
                scope.spawn(|| {
                    work.each(ranges, &next_range, |range| match self.fetch(range, &parts)? {
                        Ranged::Done => Ok(()),
                        // It did before; another server of the registry's, perhaps.
                        Ranged::NoRanges => {
                            no_ranges.store(true, Ordering::Relaxed);
                            work.stop.store(true, Ordering::Relaxed);
                            Ok(())
                        }
                    });
                });
            }
        });
        if let Some(error) = work.failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        if no_ranges.into_inner() {
            return Ok(Outcome::NoRanges);
        }
        self.finish(parts, &sum)
    }

    /// In one piece.
    pub(crate) fn in_one(&self) -> CacheResult<Outcome> {
        let (parts, sum) = self.parts()?;
        let mut out = InOrder { parts: &parts, at: 0, assembly: self };
        let came = self.client.blob(self.layer, &mut out, &|_| ());
        came.map_err(|error| self.patience.blame(error.into()))?;
        self.finish(parts, &sum)
    }

    fn parts(&self) -> CacheResult<(BlobParts, Arc<Mutex<Sum>>)> {
        let sum = Arc::new(Mutex::new(Sum::new(self.layer.size)));
        let watched = Arc::clone(&sum);
        let watch = move |bytes: &[u8]| watched.lock().unwrap_or_else(PoisonError::into_inner).update(bytes);
        Ok((BlobParts::create(self.dir, self.layer.size, Box::new(watch))?, sum))
    }

    fn finish(&self, parts: BlobParts, sum: &Mutex<Sum>) -> CacheResult<Outcome> {
        let blob = parts.finish()?;
        let actual = blob.digest()?;
        if actual != self.layer.digest {
            return Ok(Outcome::Different(actual));
        }
        let sum = sum.lock().unwrap_or_else(PoisonError::into_inner).clone().finish();
        Ok(Outcome::Done(Assembled { blob, sum }))
    }

    fn copy(&self, copy: &Copy, parts: &BlobParts, piece: &mut [u8]) -> CacheResult<()> {
        let local = self.locals.get(copy.source).ok_or(CacheError::GivenUp)?;
        let mut done = 0;
        while done < copy.length {
            if self.patience.is_over() {
                return Err(CacheError::GivenUp);
            }
            let length = piece.len().min(usize::try_from(copy.length - done).unwrap_or(usize::MAX));
            let piece = &mut piece[..length];
            local
                .read_at(piece, copy.from + done)
                .map_err(|error| CacheError::unsound("an artifact at hand", error.to_string()))?;
            parts.write_at(piece, copy.at + done).map_err(StoreError::io("write", parts.path()))?;
            (self.advance)(length as u64);
            done += length as u64;
        }
        Ok(())
    }

    fn fetch(&self, range: &Range, parts: &BlobParts) -> CacheResult<Ranged> {
        let mut at = range.at;
        let mut sink = |bytes: &[u8]| {
            self.patience.check()?;
            parts.write_at(bytes, at)?;
            at += bytes.len() as u64;
            (self.advance)(bytes.len() as u64);
            Ok(())
        };
        Ok(self.client.blob_range(&self.layer.digest, range.at, range.length, &mut sink)?)
    }
}

/// What several threads do, until it is done or one fails.
struct Work {
    failed: Mutex<Option<CacheError>>,
    stop: AtomicBool,
}

impl Work {
    fn each<T>(&self, things: &[T], next: &AtomicUsize, mut work: impl FnMut(&T) -> CacheResult<()>) {
        while !self.stop.load(Ordering::Relaxed)
            && let Some(thing) = things.get(next.fetch_add(1, Ordering::Relaxed))
        {
            if let Err(error) = work(thing) {
                self.stop.store(true, Ordering::Relaxed);
                self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        }
    }
}

/// Writes one byte after another.
struct InOrder<'a> {
    parts: &'a BlobParts,
    at: u64,
    assembly: &'a Assembly<'a>,
}

impl Write for InOrder<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.assembly.patience.check()?;
        self.parts.write_at(bytes, self.at)?;
        self.at += bytes.len() as u64;
        (self.assembly.advance)(bytes.len() as u64);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smolcellar_store::Quiet;

    #[test]
    fn nobody_waits_for_hours_for_a_size_that_a_manifest_claims() {
        let long = |bytes, least| Patience::new(&Quiet, bytes, least).within.map(|(_, long)| long);
        assert_eq!(long(100 << 20, Some(1 << 20)), Some(START + Duration::from_secs(100)));
        assert_eq!(long(u64::MAX, Some(1)), Some(MOST));
        assert_eq!(long(u64::MAX, None), None);
    }
}
