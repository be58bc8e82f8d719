//! Rehashes the runtimes of the store.

use std::fs;
use std::path::{Component, Path, PathBuf};

use smolcellar_store::{Bucket, Digest, Reporter, Store, StoreError};

use crate::error::Result;
use crate::managed::InstallOptions;
use crate::receipt::{FILE, FileFact, Receipt};
use crate::{local, managed, rootfs, sparse};

/// What [`verify`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// The folders that were looked at.
    pub runtimes: usize,
    /// The files that were hashed.
    pub files: usize,
    /// The bytes that were hashed; holes do not count.
    pub bytes: u64,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

/// Something in a runtime that is not as its receipt says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file or folder.
    pub path: PathBuf,
    /// What is wrong with it.
    pub what: String,
}

/// Rehashes every runtime in the Runtimes bucket. A folder with a problem may
/// be removed: what is needed is made again.
///
/// # Errors
/// [`crate::Error::Store`] when the bucket cannot be listed; a file that
/// cannot be read is a [`Problem`].
pub fn verify(store: &Store) -> Result<Verified> {
    let bucket = store.bucket_dir(Bucket::Runtimes);
    let mut verified = Verified::default();
    let entries = match fs::read_dir(&bucket) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(verified),
        Err(error) => return Err(StoreError::io("list", &bucket)(error).into()),
    };
    let mut folders = Vec::new();
    for entry in entries {
        let path = entry.map_err(StoreError::io("list", &bucket))?.path();
        // A file here is a wheel that somebody put here; its user checks it.
        if path.is_dir() {
            folders.push(path);
        }
    }
    folders.sort();
    for folder in folders {
        verified.runtimes += 1;
        verified.folder(&folder);
    }
    Ok(verified)
}

/// What is wrong with one folder of the bucket.
pub(crate) fn problems(folder: &Path) -> Vec<Problem> {
    let mut verified = Verified::default();
    verified.folder(folder);
    verified.problems
}

/// What [`repair`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repaired {
    /// It is whole, as it was or again.
    Whole,
    /// It was derived from another smolvm and is gone: its next use derives it
    /// again.
    Discarded,
    /// It is of another version, which this smolcellar neither uses nor installs.
    Foreign,
}

/// Makes the runtime whole that a [`Problem`]'s path is of: the pinned one is
/// installed again, what was derived from another is discarded.
///
/// # Errors
/// As [`crate::install`].
pub fn repair(
    store: &Store,
    reporter: &dyn Reporter,
    path: &Path,
    options: &InstallOptions,
) -> Result<Repaired> {
    let bucket = store.bucket_dir(Bucket::Runtimes);
    let first = path.strip_prefix(&bucket).ok().and_then(|below| below.components().next());
    let Some(Component::Normal(name)) = first else { return Ok(Repaired::Foreign) };
    let folder = bucket.join(name);
    let name = name.to_string_lossy();
    if managed::is_pinned(&name) {
        if !problems(&folder).is_empty() {
            managed::install(store, reporter, &InstallOptions { force: true, ..*options })?;
        }
        return Ok(Repaired::Whole);
    }
    if !name.starts_with(local::PREFIX) {
        return Ok(Repaired::Foreign);
    }
    local::discard_damaged(store, reporter, &folder).map(|gone| match gone {
        true => Repaired::Discarded,
        false => Repaired::Whole,
    })
}

impl Verified {
    fn folder(&mut self, dir: &Path) {
        let receipt = match smolcellar_store::fsio::read_sealed::<Receipt>(&dir.join(FILE), Receipt::SCHEMA) {
            Ok(Some(receipt)) => receipt,
            Ok(None) => return self.problem(dir, format!("it has no {FILE}")),
            Err(error) => return self.problem(dir, error.to_string()),
        };
        for fact in &receipt.files {
            self.file(dir, fact);
        }
        // Another smolvm's own agent rootfs is not ours to judge.
        if receipt.agent_rootfs == Path::new(local::ROOTFS) {
            self.rootfs(&dir.join(local::ROOTFS), &receipt.rootfs_digest);
        }
    }

    fn file(&mut self, dir: &Path, fact: &FileFact) {
        let path = dir.join(&fact.path);
        let found = if fact.sparse {
            sparse::examine(&path).map(|facts| (facts.digest, facts.size)).map_err(|error| error.to_string())
        } else {
            let size = path.metadata().map(|metadata| metadata.len());
            let both = size.and_then(|size| Digest::of_file(&path).map(|digest| (digest, size)));
            both.map_err(|error| format!("it cannot be read: {error}"))
        };
        match found {
            Ok((digest, size)) => {
                self.files += 1;
                self.bytes += if fact.sparse { 0 } else { size };
                if size != fact.size {
                    self.problem(&path, format!("it has {size} bytes, not {}", fact.size));
                } else if digest != fact.sha256 {
                    self.problem(&path, format!("its digest is {digest}, not {}", fact.sha256));
                }
            }
            Err(problem) => self.problem(&path, problem),
        }
    }

    fn rootfs(&mut self, folder: &Path, expected: &Digest) {
        match rootfs::write_canonical(folder, std::io::sink(), folder) {
            Ok((digest, size)) => {
                self.bytes += size;
                if digest != *expected {
                    self.problem(folder, "it is not what was unpacked".into());
                }
            }
            Err(error) => self.problem(folder, error.to_string()),
        }
    }

    fn problem(&mut self, path: &Path, what: String) {
        self.problems.push(Problem { path: path.to_owned(), what });
    }
}
