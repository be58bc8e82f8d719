//! Blobs that were pushed and that no manifest names yet.
//!
//! They lie in a temporary folder of the store's, which the next process sweeps
//! if this one is killed; what is in it is published with the first manifest
//! that needs it, or removed when nobody has asked for it for a while.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use smolcellar_oci::Repository;
use smolcellar_store::{BlobWriter, Digest, StagedBlob, Store, StoreError, TempDir};

/// So many uploads may be under way.
const UPLOADS: usize = 128;
/// So many blobs may wait for a manifest.
const BLOBS: usize = 256;
/// So many bytes both may have together.
const BYTES: u64 = 64 << 30;
/// When there are so many, one that got so little for so long may have to go.
const PATIENCE: Duration = Duration::from_secs(5);
/// So many bytes at once are progress.
const STEP: usize = 4096;
/// After so many bytes it is asked again whether the disk has room.
const LOOK: u64 = 64 << 20;

/// Why an upload is refused.
#[derive(Debug)]
pub(crate) enum Refused {
    /// There are as many as there may be.
    Full(&'static str),
    /// It is over, or never was.
    Gone,
    /// Its bytes have another digest.
    Digest(Digest),
    Store(StoreError),
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Staging {
    dir: TempDir,
    /// What all take together, in bytes.
    bytes: Arc<AtomicU64>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    uploads: HashMap<String, Arc<Upload>>,
    blobs: HashMap<Digest, Arc<Waiting>>,
}

/// A blob on its way in.
#[derive(Debug)]
pub(crate) struct Upload {
    pub(crate) id: String,
    pub(crate) repository: Repository,
    received: AtomicU64,
    /// Whether a request writes to it.
    busy: AtomicBool,
    touched: Mutex<Instant>,
    /// `None` once it is finished or discarded.
    writer: Mutex<Option<Writing>>,
}

struct Writing {
    writer: BlobWriter,
    kept: Kept,
}

impl std::fmt::Debug for Writing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.kept.fmt(f)
    }
}

/// A file and its share of the bytes; both go when it is dropped.
#[derive(Debug)]
struct Kept {
    path: PathBuf,
    size: u64,
    all: Arc<AtomicU64>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.all.fetch_sub(self.size, Ordering::Relaxed);
        // Published, and so renamed, or of no more use.
        let _ = fs::remove_file(&self.path);
    }
}

/// A blob that waits for its manifest.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) blob: StagedBlob,
    touched: Mutex<Instant>,
    _kept: Kept,
}

/// The right to write to an upload: of one request at a time.
#[derive(Debug)]
pub(crate) struct Lease(pub(crate) Arc<Upload>);

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.touch();
        self.0.busy.store(false, Ordering::Release);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Upload {
    /// The right to write to it, if no other request has it.
    pub(crate) fn lease(self: &Arc<Self>) -> Option<Lease> {
        let free = self.busy.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
        free.is_ok().then(|| Lease(Arc::clone(self)))
    }

    /// How many bytes there are.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    fn touch(&self) {
        *locked(&self.touched) = Instant::now();
    }
}

impl Staging {
    pub(crate) fn new(dir: TempDir) -> Self {
        Self { dir, bytes: Arc::default(), state: Mutex::default() }
    }

    /// Begins an upload.
    pub(crate) fn begin(&self, id: String, repository: Repository) -> Result<Arc<Upload>, Refused> {
        self.make_room(PATIENCE)?;
        let writer = BlobWriter::create(&self.dir)?;
        let kept = Kept { path: writer.path().to_owned(), size: 0, all: Arc::clone(&self.bytes) };
        let upload = Arc::new(Upload {
            id: id.clone(),
            repository,
            received: AtomicU64::new(0),
            busy: AtomicBool::new(false),
            touched: Mutex::new(Instant::now()),
            writer: Mutex::new(Some(Writing { writer, kept })),
        });
        let mut state = locked(&self.state);
        if state.uploads.len() >= UPLOADS {
            return Err(Refused::Full("as many uploads are under way as may be"));
        }
        state.uploads.insert(id, Arc::clone(&upload));
        Ok(upload)
    }

    /// Makes room for one more: of as many as there may be, the one that nobody
    /// has gone on with for longest goes, if that is long enough.
    fn make_room(&self, patience: Duration) -> Result<(), Refused> {
        let idlest = {
            let state = locked(&self.state);
            if state.uploads.len() < UPLOADS {
                return Ok(());
            }
            state.uploads.values().min_by_key(|upload| *locked(&upload.touched)).cloned()
        };
        match idlest.filter(|upload| locked(&upload.touched).elapsed() >= patience) {
            Some(upload) => {
                self.cancel(&upload);
                Ok(())
            }
            None => Err(Refused::Full("as many uploads are under way as may be")),
        }
    }

    /// An upload of this repository.
    pub(crate) fn find(&self, id: &str, repository: &Repository) -> Option<Arc<Upload>> {
        let found = locked(&self.state).uploads.get(id).cloned();
        found.filter(|upload| upload.repository == *repository)
    }

    /// Adds to an upload.
    pub(crate) fn write(&self, store: &Store, lease: &Lease, pieces: &[Bytes]) -> Result<(), Refused> {
        let mut writing = locked(&lease.0.writer);
        let Some(Writing { writer, kept }) = writing.as_mut() else { return Err(Refused::Gone) };
        for piece in pieces {
            let more = piece.len() as u64;
            let before = self.bytes.fetch_add(more, Ordering::Relaxed);
            kept.size += more;
            if before.saturating_add(more) > BYTES {
                return Err(Refused::Full("as many bytes wait for their manifests as may"));
            }
            let at = lease.0.received();
            if at / LOOK != (at + more) / LOOK {
                store.need(LOOK, "an upload")?;
            }
            writer.write_all(piece).map_err(StoreError::io("write", &kept.path))?;
            lease.0.received.store(at + more, Ordering::Relaxed);
        }
        // One that trickles makes no progress.
        if pieces.iter().map(Bytes::len).sum::<usize>() >= STEP {
            lease.0.touch();
        }
        Ok(())
    }

    /// Ends an upload: with its last byte, whatever becomes of it.
    pub(crate) fn finish(&self, lease: &Lease, digest: &Digest) -> Result<(), Refused> {
        let Some(Writing { writer, kept }) = self.take(&lease.0) else { return Err(Refused::Gone) };
        let blob = writer.finish();
        let actual = blob.digest()?;
        if actual != *digest {
            return Err(Refused::Digest(actual));
        }
        let waiting = Arc::new(Waiting { blob, touched: Mutex::new(Instant::now()), _kept: kept });
        let mut state = locked(&self.state);
        if let Some(known) = state.blobs.get(digest) {
            *locked(&known.touched) = Instant::now();
            return Ok(());
        }
        if state.blobs.len() >= BLOBS {
            return Err(Refused::Full("as many blobs wait for their manifests as may"));
        }
        state.blobs.insert(*digest, waiting);
        Ok(())
    }

    /// Discards an upload; whether there was one.
    pub(crate) fn cancel(&self, upload: &Upload) -> bool {
        self.take(upload).is_some()
    }

    fn take(&self, upload: &Upload) -> Option<Writing> {
        locked(&self.state).uploads.remove(&upload.id);
        locked(&upload.writer).take()
    }

    /// A blob that waits.
    pub(crate) fn blob(&self, digest: &Digest) -> Option<Arc<Waiting>> {
        let found = locked(&self.state).blobs.get(digest).cloned()?;
        *locked(&found.touched) = Instant::now();
        Some(found)
    }

    /// Blobs that wait no more: published, or not wanted. Whether one of them waited.
    pub(crate) fn forget<'a>(&self, digests: impl IntoIterator<Item = &'a Digest>) -> bool {
        let mut state = locked(&self.state);
        // Files are removed once the lock is let go of.
        let gone: Vec<_> = digests.into_iter().filter_map(|digest| state.blobs.remove(digest)).collect();
        drop(state);
        !gone.is_empty()
    }

    /// Removes uploads that nobody has gone on with for `idle`, and blobs that nobody
    /// has asked for during six times that.
    pub(crate) fn expire(&self, idle: Duration) {
        let mut state = locked(&self.state);
        let since = |touched: &Mutex<Instant>| locked(touched).elapsed();
        let old = |upload: &Upload| !upload.busy.load(Ordering::Relaxed) && since(&upload.touched) > idle;
        let uploads: Vec<_> = state.uploads.values().filter(|upload| old(upload)).cloned().collect();
        let stale = |waiting: &&Arc<Waiting>| since(&waiting.touched) > idle * 6;
        let blobs: Vec<_> = state.blobs.iter().filter(|(_, w)| stale(w)).map(|(d, _)| *d).collect();
        let blobs: Vec<_> = blobs.iter().filter_map(|digest| state.blobs.remove(digest)).collect();
        drop(state);
        drop(blobs);
        for upload in uploads {
            self.cancel(&upload);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smolcellar_store::OpenOptions;

    fn lab() -> (tempfile::TempDir, Store, Staging) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("c"), OpenOptions::default()).unwrap();
        let staging = Staging::new(store.temp_dir().unwrap());
        (dir, store, staging)
    }

    fn begin(staging: &Staging, id: &str) -> Arc<Upload> {
        staging.begin(id.into(), Repository::parse("a").unwrap()).unwrap()
    }

    fn files(staging: &Staging) -> usize {
        fs::read_dir(staging.dir.path()).unwrap().count()
    }

    #[test]
    fn an_upload_is_one_requests_at_a_time_and_ends_with_its_digest() {
        let (_dir, store, staging) = lab();
        let upload = begin(&staging, "x");
        let lease = upload.lease().unwrap();
        assert!(upload.lease().is_none());
        staging.write(&store, &lease, &[Bytes::from_static(b"by"), Bytes::from_static(b"tes")]).unwrap();
        assert_eq!(upload.received(), 5);
        drop(lease);
        let lease = upload.lease().unwrap();
        staging.finish(&lease, &Digest::of(b"bytes")).unwrap();
        assert!(matches!(staging.finish(&lease, &Digest::of(b"bytes")), Err(Refused::Gone)));
        assert!(staging.find("x", &Repository::parse("a").unwrap()).is_none());
        assert_eq!(staging.blob(&Digest::of(b"bytes")).unwrap().blob.size, 5);
        assert_eq!((files(&staging), staging.bytes.load(Ordering::Relaxed)), (1, 5));
        assert!(staging.forget([&Digest::of(b"bytes")]));
        assert_eq!((files(&staging), staging.bytes.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn what_has_another_digest_or_is_cancelled_or_forgotten_leaves_nothing() {
        let (_dir, store, staging) = lab();
        let wrong = begin(&staging, "wrong");
        let lease = wrong.lease().unwrap();
        staging.write(&store, &lease, &[Bytes::from_static(b"x")]).unwrap();
        assert!(matches!(staging.finish(&lease, &Digest::of(b"y")), Err(Refused::Digest(_))));
        assert!(staging.cancel(&begin(&staging, "cancelled")));
        let busy = begin(&staging, "busy");
        let _lease = busy.lease().unwrap();
        begin(&staging, "idle");
        std::thread::sleep(Duration::from_millis(5));
        staging.expire(Duration::from_millis(1));
        let repository = Repository::parse("a").unwrap();
        assert!(staging.find("busy", &repository).is_some() && staging.find("idle", &repository).is_none());
        assert!(staging.find("busy", &Repository::parse("b").unwrap()).is_none(), "of another repository");
        assert_eq!(files(&staging), 1);
    }

    #[test]
    fn there_is_an_end_to_how_many_may_be_under_way() {
        let (_dir, _store, staging) = lab();
        for n in 0..UPLOADS {
            begin(&staging, &n.to_string());
        }
        let repository = Repository::parse("a").unwrap();
        assert!(matches!(staging.begin("more".into(), repository), Err(Refused::Full(_))));
        assert_eq!(files(&staging), UPLOADS);
        staging.make_room(Duration::ZERO).unwrap();
        let repository = Repository::parse("a").unwrap();
        assert!(staging.find("0", &repository).is_none() && staging.find("1", &repository).is_some());
        assert_eq!(files(&staging), UPLOADS - 1);
    }
}
