//! Hashing files of a context, on all cores.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{Mode, OFlags};
use smolcellar_store::{Digest, Hasher};

use super::error::{ContextError, Result};
use super::listing::FileStat;

/// Bytes read at a time, by each thread.
const PIECE: usize = 256 << 10;

/// The longest list of names of extended attributes (XATTR_LIST_MAX), and the
/// longest value (XATTR_SIZE_MAX), in bytes.
const MAX_ATTRIBUTES: usize = 64 << 10;

/// How often a file that changes while it is read is read again.
const TRIES: usize = 3;

/// What one reading of a file gave.
#[derive(Debug, Clone)]
pub(super) struct Hashed {
    pub(super) metadata: Metadata,
    pub(super) digest: Digest,
    pub(super) attributes: Option<Digest>,
}

/// What says whether anything wrote to a file.
pub(super) fn stat_of(metadata: &Metadata) -> FileStat {
    let nanos = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    FileStat {
        mtime: nanos(metadata.mtime(), metadata.mtime_nsec()),
        ctime: nanos(metadata.ctime(), metadata.ctime_nsec()),
        inode: metadata.ino(),
    }
}

/// Hashes every file, in the order given. Memory does not grow with them.
///
/// # Errors
/// The first [`ContextError`].
pub(super) fn hash_all(paths: &[PathBuf]) -> Result<Vec<Hashed>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(paths.len());
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(paths.len()));
    let work = || -> Result<()> {
        let mut piece = vec![0; PIECE];
        let mut own = Vec::new();
        while let Some((at, path)) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, paths.get(at)?)))
        {
            match hash_file(path, &mut piece, &mut || {}) {
                Ok(hashed) => own.push((at, hashed)),
                Err(error) => {
                    // The others need not finish what nobody will see.
                    next.store(paths.len(), Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
        done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).append(&mut own);
        Ok(())
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut result = work();
        for other in others {
            let ended = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            result = result.and(ended);
        }
        result
    })?;
    let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_unstable_by_key(|(at, _)| *at);
    Ok(done.into_iter().map(|(_, hashed)| hashed).collect())
}

/// Hashes a file that does not change meanwhile; `midway` is called once all
/// of it is read, for tests.
pub(super) fn hash_file(path: &Path, piece: &mut [u8], midway: &mut dyn FnMut()) -> Result<Hashed> {
    let io = |operation| ContextError::io(operation, path);
    for _ in 0..TRIES {
        let mut file = open(path).map_err(io("open"))?;
        let before = file.metadata().map_err(io("examine"))?;
        if !before.is_file() {
            break;
        }
        let mut hasher = Hasher::new();
        let mut size = 0;
        loop {
            match file.read(piece) {
                Ok(0) => break,
                Ok(n) => {
                    hasher.update(&piece[..n]);
                    size += n as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(io("read")(error)),
            }
        }
        let attributes = attributes(&file).map_err(io("read the attributes of"))?;
        midway();
        // By name: an editor that saves puts another file in its place.
        let after = path.symlink_metadata().map_err(io("examine"))?;
        let same = stat_of(&before) == stat_of(&after) && before.dev() == after.dev();
        if same && before.mode() == after.mode() && size == after.size() {
            return Ok(Hashed { metadata: after, digest: hasher.finish(), attributes });
        }
    }
    Err(ContextError::Unsteady { path: path.to_owned() })
}

/// Opens without following a link or waiting for the other end of a pipe:
/// what was a file may have become one.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => Ok(File::from(fd)),
        // A link by now.
        Err(rustix::io::Errno::LOOP) => Err(io::ErrorKind::NotFound.into()),
        Err(error) => Err(error.into()),
    }
}

/// The digest of the extended attributes that builders carry over.
fn attributes(file: &File) -> io::Result<Option<Digest>> {
    use rustix::io::Errno;
    // Most files have none; only then is there anything to take memory for.
    match rustix::fs::flistxattr(file, &mut [0u8; 0][..]) {
        Ok(0) | Err(Errno::NOTSUP | Errno::NOSYS) => return Ok(None),
        Ok(_) => {}
        Err(error) => return Err(error.into()),
    }
    let mut names = vec![0; MAX_ATTRIBUTES];
    let length = rustix::fs::flistxattr(file, &mut names[..])?;
    let mut names: Vec<&[u8]> = names[..length].split(|byte| *byte == 0).collect();
    names.retain(|name| *name == b"security.capability" || name.starts_with(b"user."));
    names.sort_unstable();
    let mut hasher = Hasher::new();
    let mut value = vec![0; MAX_ATTRIBUTES];
    for name in &names {
        let length = rustix::fs::fgetxattr(file, *name, &mut value[..])?;
        for part in [*name, &value[..length]] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
    }
    Ok((!names.is_empty()).then(|| hasher.finish()))
}
