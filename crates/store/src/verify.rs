//! Rehashing everything.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use crate::bucket::Bucket;
use crate::digest::Digest;
use crate::error::{Result, StoreError};
use crate::find::hex_name;
use crate::machines::{Lookup, MachineKey, list};
use crate::report::{Event, Reporter};
use crate::root::Store;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: String,
}

/// What verifying found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Verification {
    /// Entries looked at.
    pub entries: u64,
    /// Bytes hashed.
    pub bytes: u64,
    /// What is wrong. Empty: all is well.
    pub damaged: Vec<Finding>,
    /// Files that nothing trusts: harmless, from runs that were cut off.
    pub leftovers: Vec<PathBuf>,
}

enum Work {
    Blob(PathBuf, Digest),
    Machine(PathBuf, MachineKey),
    Stage(PathBuf, Digest, String),
}

impl Store {
    /// Rehashes every blob and artifact and checks every receipt, on all
    /// cores. Changes nothing but that it sweeps what dead processes left. What
    /// is collected meanwhile is no damage.
    ///
    /// # Errors
    /// [`StoreError::Io`] if a folder cannot be listed;
    /// [`StoreError::LockTimeout`], [`StoreError::GaveUp`].
    pub fn verify(&self, reporter: &dyn Reporter) -> Result<Verification> {
        let mut found = Verification::default();
        // What dead processes left is swept by whoever writes next, and by
        // this. On a store that cannot be written it stays.
        drop(self.scratch());
        let work = self.collect(&mut found)?;
        let total: u64 = work.iter().map(|work| size_of_file(work.path())).sum();
        let task = "verify";
        reporter.report(Event::Begin { task, total: Some(total) });
        let next = AtomicUsize::new(0);
        let results = Mutex::new(Ok(found));
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(work.len().max(1));
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while let Some(work) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let examined = self.examine(work, reporter);
                        let bytes = size_of_file(work.path());
                        reporter.report(Event::Advance { task, bytes });
                        let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                        let Ok(found) = results.as_mut() else { return };
                        found.entries += 1;
                        found.bytes += bytes;
                        match examined {
                            Ok(None) => {}
                            Ok(Some(problem)) => {
                                found.damaged.push(Finding { path: work.path().clone(), problem });
                            }
                            Err(error) => *results = Err(error),
                        }
                    }
                });
            }
        });
        reporter.report(Event::End { task });
        let mut found = results.into_inner().unwrap_or_else(PoisonError::into_inner)?;
        found.damaged.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// What is wrong with it. Under its use lock: half of what is being
    /// collected would look damaged.
    fn examine(&self, work: &Work, reporter: &dyn Reporter) -> Result<Option<String>> {
        Ok(match work {
            Work::Blob(_, digest) => match self.blobs().check(digest) {
                // Collected. If anything needs it, its receipt will tell.
                Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => None,
                checked => checked.err().map(|error| error.to_string()),
            },
            Work::Machine(_, key) => {
                let _in_use = self.lock_use(&key.lock_name(), reporter)?;
                match self.machine(key, true) {
                    Ok(Lookup::Hit(_)) => None,
                    Ok(Lookup::Miss) => None, // Replaced or collected while we looked.
                    Ok(Lookup::Damaged { problem }) => Some(problem),
                    Err(error) => Some(error.to_string()),
                }
            }
            Work::Stage(_, image, stage) => {
                let _in_use = self.lock_use(&image.hex(), reporter)?;
                match self.stage_receipt(image, stage) {
                    Ok(Some(receipt)) if receipt.image != *image || receipt.stage != *stage => {
                        Some("it is the receipt of something else".into())
                    }
                    Ok(Some(receipt)) => {
                        let lost =
                            receipt.blobs.iter().find(|blob| !self.blobs().has(&blob.digest, blob.size));
                        lost.map(|blob| {
                            format!("its {} {} is missing or has another size", blob.role, blob.digest)
                        })
                    }
                    Ok(None) => None,
                    Err(error) => Some(error.to_string()),
                }
            }
        })
    }

    /// Lists what there is to verify; names that do not belong are findings.
    fn collect(&self, found: &mut Verification) -> Result<Vec<Work>> {
        let mut work = Vec::new();
        let mut strange = |path: PathBuf| {
            found
                .damaged
                .push(Finding { path, problem: "its name is none that cache-layout.md knows".into() });
        };
        for shard in list(&self.bucket_dir(Bucket::Blobs).join("sha256"))? {
            for path in list(&shard)? {
                match hex_name(&path) {
                    Some(digest) => work.push(Work::Blob(path, digest)),
                    None => strange(path),
                }
            }
        }
        for image_dir in list(&self.bucket_dir(Bucket::Images))? {
            let Some(image) = hex_name(&image_dir) else {
                strange(image_dir);
                continue;
            };
            for path in list(&image_dir)? {
                let stage =
                    path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
                match path.extension().and_then(|e| e.to_str()) {
                    Some("json") => work.push(Work::Stage(path, image, stage)),
                    _ => strange(path),
                }
            }
        }
        let mut leftovers = Vec::new();
        for image_dir in list(&self.bucket_dir(Bucket::Machines))? {
            let Some(image) = hex_name(&image_dir) else {
                strange(image_dir);
                continue;
            };
            for path in list(&image_dir)? {
                let recipe = path.file_stem().and_then(|stem| Digest::from_hex(&stem.to_string_lossy()).ok());
                match (recipe, path.extension().and_then(|e| e.to_str())) {
                    (Some(recipe), Some("json")) => {
                        // The artifact is what takes the time and what matters.
                        let artifact = path.with_extension("smolmachine");
                        if !artifact.exists() {
                            leftovers.push(path);
                            continue;
                        }
                        work.push(Work::Machine(artifact, MachineKey { image, recipe }));
                    }
                    (Some(_), Some("smolmachine" | "stat")) => {
                        if !path.with_extension("json").exists() {
                            leftovers.push(path);
                        }
                    }
                    _ => strange(path),
                }
            }
        }
        found.leftovers = leftovers;
        Ok(work)
    }
}

impl Work {
    fn path(&self) -> &PathBuf {
        match self {
            Self::Blob(path, _) | Self::Machine(path, _) | Self::Stage(path, _, _) => path,
        }
    }
}

fn size_of_file(path: &std::path::Path) -> u64 {
    std::fs::symlink_metadata(path).map_or(0, |metadata| metadata.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Quiet;
    use crate::{OpenOptions, fsio};

    #[test]
    fn a_clean_store_verifies_and_each_kind_of_damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("c"), OpenOptions::default()).unwrap();
        let digest = store.blobs().put(b"good", &store.publishing(&Quiet).unwrap()).unwrap();
        assert_eq!(store.verify(&Quiet).unwrap().damaged, []);
        let path = store.blobs().path(&digest);
        std::fs::remove_file(&path).unwrap();
        let scratch = store.scratch().unwrap();
        fsio::write_atomic(&scratch, &path, b"evil").unwrap();
        let strange = store.bucket_dir(Bucket::Machines).join(digest.hex()).join("notes.txt");
        fsio::write_atomic(&scratch, &strange, b"").unwrap();
        let damaged = store.verify(&Quiet).unwrap().damaged;
        let paths: Vec<_> = damaged.iter().map(|finding| finding.path.clone()).collect();
        assert_eq!(paths, [path, strange]);
    }
}
