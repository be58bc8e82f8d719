//! What the store takes on disk.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;

use crate::bucket::Bucket;
use crate::error::Result;
use crate::gc::{self, Entry, LooseKind, Policy};
use crate::machines::list;
use crate::parallel;
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
    /// How many of these the collector could free: what nothing holds.
    pub reclaimable: u64,
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
    /// The sum of what the collector could free.
    pub reclaimable: u64,
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
        self.mark_reclaimable(&mut buckets)?;
        let allocated = buckets.iter().map(|bucket| bucket.allocated).sum();
        let reclaimable = buckets.iter().map(|bucket| bucket.reclaimable).sum();
        Ok(Usage { root: self.root().to_owned(), buckets, allocated, reclaimable })
    }
}

impl Store {
    /// What `gc --all` would free, by folder. A blob that only images name that
    /// would go counts once, as a blob.
    fn mark_reclaimable(&self, buckets: &mut [BucketUsage]) -> Result<()> {
        let inventory = self.inventory()?;
        let plan = gc::plan(&inventory, &Policy { all: true, ..Policy::default() }, SystemTime::now());
        let receipts: BTreeMap<_, _> =
            inventory.images.iter().map(|image| (image.image, image.allocated)).collect();
        let pushed: BTreeMap<_, _> =
            inventory.pushed.iter().map(|pushed| (pushed.key, pushed.allocated)).collect();
        let mut add = |folder: &str, bytes: u64| {
            if let Some(bucket) = buckets.iter_mut().find(|bucket| bucket.folder == folder) {
                bucket.reclaimable += bytes;
            }
        };
        for removal in &plan.remove {
            match &removal.entry {
                Entry::Machine(_) | Entry::Loose(LooseKind::LeftOver(_), _) => {
                    add(Bucket::Machines.folder(), removal.frees);
                }
                Entry::Image(image) => {
                    let own = receipts.get(image).copied().unwrap_or(0).min(removal.frees);
                    add(Bucket::Images.folder(), own);
                    add(Bucket::Blobs.folder(), removal.frees - own);
                }
                Entry::Pushed { key, .. } => {
                    let own = pushed.get(key).copied().unwrap_or(0).min(removal.frees);
                    add(Bucket::Registry.folder(), own);
                    add(Bucket::Blobs.folder(), removal.frees - own);
                }
                Entry::Blob(_) => add(Bucket::Blobs.folder(), removal.frees),
                Entry::Loose(LooseKind::Quarantined, _) => add("quarantine", removal.frees),
            }
        }
        Ok(())
    }
}

fn measure(dir: &Path, purpose: &'static str) -> BucketUsage {
    let folder = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let mut usage = BucketUsage { folder, purpose, files: 0, allocated: 0, reclaimable: 0 };
    let inside: Vec<_> =
        fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    for (files, allocated) in parallel::map(&inside, |path| add_up(path)) {
        usage.files += files;
        usage.allocated += allocated;
    }
    usage
}

/// Files under a path, and their allocated bytes.
fn add_up(path: &Path) -> (u64, u64) {
    let (mut files, mut allocated) = (0, 0);
    let mut pending = vec![path.to_owned()];
    while let Some(path) = pending.pop() {
        // Entries may vanish while we look; what is gone takes no space.
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.is_dir() {
            pending.extend(fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()));
        } else {
            files += 1;
            allocated += metadata.blocks() * 512;
        }
    }
    (files, allocated)
}
