//! Blobs: bytes named by their SHA-256.

use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};

use crate::bucket::Bucket;
use crate::digest::{Digest, Hasher};
use crate::error::{Result, StoreError};
use crate::fsio;
use crate::lock::Publishing;
use crate::root::Store;
use crate::session::TempDir;
use crate::stat::StatSeal;

/// The blobs of a store.
#[derive(Debug, Clone, Copy)]
pub struct Blobs<'a>(&'a Store);

/// What a blob's file was like when it was hashed.
#[derive(Serialize, Deserialize)]
struct Sealed {
    schema: u64,
    blob: Digest,
    stat: StatSeal,
}

impl Sealed {
    const SCHEMA: u64 = 1;
}

impl Store {
    /// The blobs.
    pub fn blobs(&self) -> Blobs<'_> {
        Blobs(self)
    }
}

impl<'a> Blobs<'a> {
    /// Whose they are.
    pub(crate) fn store(&self) -> &'a Store {
        self.0
    }

    /// Where the blob is, or would be.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.0.bucket_dir(Bucket::Blobs).join("sha256").join(&hex[..2]).join(hex)
    }

    /// Whether a blob of this size is there. Its bytes are not looked at:
    /// [`Blobs::check`] does that.
    pub fn has(&self, digest: &Digest, size: u64) -> bool {
        fs::symlink_metadata(self.path(digest)).is_ok_and(|m| m.is_file() && m.len() == size)
    }

    /// Hashes the blob.
    ///
    /// # Errors
    /// [`StoreError::Mismatch`] if its bytes are not its name's,
    /// [`StoreError::Io`] if it cannot be read.
    pub fn check(&self, digest: &Digest) -> Result<()> {
        let path = self.path(digest);
        let actual = Digest::of_file(&path).map_err(StoreError::io("read", &path))?;
        if actual == *digest {
            return Ok(());
        }
        Err(StoreError::Mismatch { what: format!("the blob {}", path.display()), expected: *digest, actual })
    }

    /// Whether the blob's file is still the one that was hashed when it was sealed:
    /// as with an artifact's stat seal, that it has not been written since.
    pub fn is_sealed(&self, digest: &Digest, metadata: &Metadata) -> bool {
        // A damaged or newer seal is as good as none.
        let sealed = fsio::read_sealed::<Sealed>(&self.seal_path(digest), Sealed::SCHEMA).ok().flatten();
        sealed.is_some_and(|sealed| sealed.blob == *digest && sealed.stat == StatSeal::of(metadata))
    }

    /// Notes that all of the blob's file was hashed when it had this metadata, and
    /// has its digest.
    ///
    /// # Errors
    /// [`StoreError::Io`]; then it is hashed again another time.
    pub fn seal(&self, digest: &Digest, metadata: &Metadata) -> Result<()> {
        let sealed = Sealed { schema: Sealed::SCHEMA, blob: *digest, stat: StatSeal::of(metadata) };
        fsio::write_sealed(&self.0.scratch()?, &self.seal_path(digest), &sealed)
    }

    fn seal_path(&self, digest: &Digest) -> PathBuf {
        self.0.bucket_dir(Bucket::Pointers).join("blob").join(format!("{}.json", digest.hex()))
    }

    /// Moves a damaged blob to quarantine, with a note that says why; where it
    /// is then.
    ///
    /// # Errors
    /// [`StoreError::Io`] if it cannot be moved.
    pub fn quarantine(&self, digest: &Digest, problem: &str) -> Result<PathBuf> {
        self.0.quarantine(&[self.path(digest)], problem)
    }

    /// Stores a small blob. [`Publishing`] must last until there is the receipt
    /// that names it.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn put(&self, bytes: &[u8], _: &Publishing) -> Result<Digest> {
        let digest = Digest::of(bytes);
        // Small enough to look: what is there may be damaged, and this is not.
        if self.get(&digest).is_err() {
            fsio::write_atomic(&self.0.scratch()?, &self.path(&digest), bytes)?;
        }
        Ok(digest)
    }

    /// Reads a small blob and checks its digest.
    ///
    /// # Errors
    /// [`StoreError::Mismatch`], [`StoreError::Io`].
    pub fn get(&self, digest: &Digest) -> Result<Vec<u8>> {
        let path = self.path(digest);
        let bytes = fs::read(&path).map_err(StoreError::io("read", &path))?;
        let actual = Digest::of(&bytes);
        if actual != *digest {
            return Err(StoreError::Mismatch {
                what: format!("the blob {}", path.display()),
                expected: *digest,
                actual,
            });
        }
        Ok(bytes)
    }

    /// Publishes a written blob, unless the store has one of this name and
    /// size. That one is hashed before anything is made of it. [`Publishing`]
    /// must last until there is the receipt that names it.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn publish(&self, staged: &StagedBlob, _: &Publishing) -> Result<()> {
        let digest = staged.digest()?;
        if self.has(&digest, staged.size) {
            return Ok(());
        }
        fsio::publish_file(&staged.file, &staged.path, &self.path(&digest))
    }
}

/// Writes a blob into a temporary folder, and hashes it beside that.
///
/// A large blob is hashed by a thread that reads behind the writer, out of the
/// page cache. Whoever feeds the writer, often an engine that waits for us in
/// turn, is never held up by hashing; [`StagedBlob::digest`] waits instead.
pub struct BlobWriter {
    file: Arc<File>,
    path: PathBuf,
    hashing: Hashing,
    size: u64,
}

enum Hashing {
    Here(Hasher),
    Behind(Arc<Progress>, JoinHandle<io::Result<Digest>>),
}

/// How far the writer is.
#[derive(Default)]
struct Progress {
    state: Mutex<(u64, bool)>,
    changed: Condvar,
}

/// A blob of this many bytes is hashed by a thread of its own.
const LARGE: u64 = 1 << 20;

impl Progress {
    fn set(&self, written: u64, done: bool) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = (written, done);
        self.changed.notify_one();
    }

    /// Waits for more than `seen` bytes, or for the end.
    fn beyond(&self, seen: u64) -> (u64, bool) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let more = self.changed.wait_while(state, |(written, done)| *written <= seen && !*done);
        *more.unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hashes a file while it is written.
fn hash_behind(file: &File, progress: &Progress) -> io::Result<Digest> {
    use std::os::unix::fs::FileExt;
    let mut hasher = Hasher::new();
    // Small: a server has many uploads under way.
    let mut piece = vec![0; 1 << 16];
    let mut seen = 0;
    loop {
        let (written, done) = progress.beyond(seen);
        while seen < written {
            let length = piece.len().min(usize::try_from(written - seen).unwrap_or(usize::MAX));
            file.read_exact_at(&mut piece[..length], seen)?;
            hasher.update(&piece[..length]);
            seen += length as u64;
        }
        if done {
            return Ok(hasher.finish());
        }
    }
}

/// A written blob that is not published yet.
pub struct StagedBlob {
    file: Arc<File>,
    path: PathBuf,
    /// Bytes.
    pub size: u64,
    digest: OnceLock<Digest>,
    thread: Mutex<Option<JoinHandle<io::Result<Digest>>>>,
}

impl BlobWriter {
    /// Starts a blob in `dir`.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn create(dir: &TempDir) -> Result<Self> {
        let path = fsio::unused_name(dir.path(), "blob");
        let file = Arc::new(fsio::create_new(&path)?);
        Ok(Self { file, path, hashing: Hashing::Here(Hasher::new()), size: 0 })
    }

    /// Where it is being written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The finished blob. Its digest may take longer.
    pub fn finish(mut self) -> StagedBlob {
        let hashing = std::mem::replace(&mut self.hashing, Hashing::Here(Hasher::new()));
        let (digest, thread) = match hashing {
            Hashing::Here(hasher) => (OnceLock::from(hasher.finish()), None),
            Hashing::Behind(progress, thread) => {
                progress.set(self.size, true);
                (OnceLock::new(), Some(thread))
            }
        };
        let path = std::mem::take(&mut self.path);
        StagedBlob { file: Arc::clone(&self.file), path, size: self.size, digest, thread: Mutex::new(thread) }
    }
}

impl Write for BlobWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = (&*self.file).write(buf)?;
        self.size += n as u64;
        match &mut self.hashing {
            Hashing::Here(hasher) if self.size < LARGE => hasher.update(&buf[..n]),
            Hashing::Here(_) => {
                let (file, progress) = (Arc::clone(&self.file), Arc::<Progress>::default());
                progress.set(self.size, false);
                let behind = Arc::clone(&progress);
                let thread = std::thread::spawn(move || hash_behind(&file, &behind));
                self.hashing = Hashing::Behind(progress, thread);
            }
            Hashing::Behind(progress, _) => progress.set(self.size, false),
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        // An unfinished blob: let its thread end.
        if let Hashing::Behind(progress, _) = &self.hashing {
            progress.set(0, true);
        }
    }
}

impl StagedBlob {
    /// A file that a thread hashes.
    pub(crate) fn hashed_by(
        file: Arc<File>,
        path: PathBuf,
        size: u64,
        thread: JoinHandle<io::Result<Digest>>,
    ) -> Self {
        Self { file, path, size, digest: OnceLock::new(), thread: Mutex::new(Some(thread)) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its digest. Waits until it is hashed.
    ///
    /// # Errors
    /// [`StoreError::Io`] if it could not be read back.
    pub fn digest(&self) -> Result<Digest> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take() {
            let joined = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let digest = joined.map_err(StoreError::io("read back", &self.path))?;
            return Ok(*self.digest.get_or_init(|| digest));
        }
        let lost = || StoreError::io("read back", &self.path)(io::Error::other("it failed before"));
        self.digest.get().copied().ok_or_else(lost)
    }

    /// Opens the written bytes anew; they stay readable after publication.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn reopen(&self) -> Result<File> {
        self.file.try_clone().map_err(StoreError::io("reopen", &self.path))
    }
}

impl std::fmt::Debug for StagedBlob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StagedBlob")
            .field("path", &self.path)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OpenOptions;

    #[test]
    fn a_large_blob_hashed_on_a_thread_has_the_same_digest() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("c"), OpenOptions::default()).unwrap();
        let temp = store.temp_dir().unwrap();
        let bytes: Vec<u8> = (0..5_000_000u32).map(|n| (n ^ (n >> 7)) as u8).collect();
        for step in [1 << 20, 77_777] {
            let mut writer = BlobWriter::create(&temp).unwrap();
            bytes.chunks(step).for_each(|piece| writer.write_all(piece).unwrap());
            let staged = writer.finish();
            assert_eq!((staged.digest().unwrap(), staged.size), (Digest::of(&bytes), 5_000_000));
            assert_eq!(staged.digest().unwrap(), Digest::of(&bytes), "asked twice");
        }
    }

    #[test]
    fn a_seal_fits_the_file_that_was_hashed_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("c"), OpenOptions::default()).unwrap();
        let digest = store.blobs().put(b"bytes", &store.publishing(&crate::Quiet).unwrap()).unwrap();
        let (blobs, path) = (store.blobs(), store.blobs().path(&digest));
        let look = || fs::metadata(&path).unwrap();
        assert!(!blobs.is_sealed(&digest, &look()));
        blobs.seal(&digest, &look()).unwrap();
        assert!(blobs.is_sealed(&digest, &look()));
        // The same seal under another name says nothing of that.
        let other = Digest::of(b"other");
        fs::copy(blobs.seal_path(&digest), blobs.seal_path(&other)).unwrap();
        assert!(!blobs.is_sealed(&other, &look()));
        fsio::write_atomic(&store.scratch().unwrap(), &path, b"bytez").unwrap();
        assert!(!blobs.is_sealed(&digest, &look()));
        let found = store.verify(&crate::VerifyOptions::default(), &crate::Quiet).unwrap();
        assert_eq!(found.damaged.len(), 2, "the blob, and the seal under another's name: {found:?}");
    }

    #[test]
    fn a_blob_is_found_under_its_digest_and_damage_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("c"), OpenOptions::default()).unwrap();
        let temp = store.temp_dir().unwrap();
        let mut writer = BlobWriter::create(&temp).unwrap();
        writer.write_all(b"layer").unwrap();
        let staged = writer.finish();
        let digest = staged.digest().unwrap();
        assert_eq!(digest, Digest::of(b"layer"));
        let blobs = store.blobs();
        assert!(!blobs.has(&digest, 5));
        blobs.publish(&staged, &store.publishing(&crate::Quiet).unwrap()).unwrap();
        assert!(blobs.has(&digest, 5));
        blobs.check(&digest).unwrap();
        let path = blobs.path(&digest);
        fs::remove_file(&path).unwrap();
        fsio::write_atomic(temp.path(), &path, b"lager").unwrap();
        assert!(matches!(blobs.check(&digest), Err(StoreError::Mismatch { .. })));
        blobs.quarantine(&digest, "a test").unwrap();
        assert!(!path.exists());
        assert_eq!(fs::read_dir(store.quarantine_dir()).unwrap().count(), 1);
    }
}
