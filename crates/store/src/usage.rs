//! What the store takes on disk.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::bucket::Bucket;
use crate::error::Result;
use crate::machines::list;
use crate::root::Store;

/// Disk usage of one folder of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BucketUsage {
    /// The folder's name.
    pub folder: String,
    /// What it is for.
    pub purpose: &'static str,
    /// Files in it.
    pub files: u64,
    /// Bytes that the file system has allocated for them.
    pub allocated: u64,
}

/// Disk usage of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// The store's folder.
    pub root: PathBuf,
    /// Per folder.
    pub buckets: Vec<BucketUsage>,
    /// The sum, in allocated bytes.
    pub allocated: u64,
}

impl Store {
    /// Adds up what is allocated. Sparse files count what they hold.
    ///
    /// # Errors
    /// [`crate::StoreError::Io`] if the store's folder cannot be listed.
    pub fn usage(&self) -> Result<Usage> {
        let mut buckets: Vec<_> =
            Bucket::ALL.iter().map(|bucket| measure(&self.bucket_dir(*bucket), bucket.purpose())).collect();
        let extra = [
            ("launches", "prompts and logs of machines"),
            ("leases", "machines that may still be there"),
            ("pins", "artifacts that are to stay"),
            ("quarantine", "damaged entries, kept for a look"),
            ("tmp", "work under way, or swept by the next build"),
            ("trash", "on its way out"),
        ];
        buckets.extend(extra.iter().map(|(name, purpose)| measure(&self.root().join(name), purpose)));
        // Folders of older formats are left alone, but not kept secret.
        for path in list(self.root())? {
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            let known = buckets.iter().any(|bucket| bucket.folder == name);
            if path.is_dir() && !known && name != "locks" {
                buckets.push(measure(&path, "not of this version; left alone"));
            }
        }
        let allocated = buckets.iter().map(|bucket| bucket.allocated).sum();
        Ok(Usage { root: self.root().to_owned(), buckets, allocated })
    }
}

fn measure(dir: &Path, purpose: &'static str) -> BucketUsage {
    let folder = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let mut usage = BucketUsage { folder, purpose, files: 0, allocated: 0 };
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        // Entries may vanish while we look; what is gone takes no space.
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                pending.push(entry.path());
            } else {
                usage.files += 1;
                usage.allocated += metadata.blocks() * 512;
            }
        }
    }
    usage
}
