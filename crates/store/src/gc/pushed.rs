//! What was pushed, as far as collecting it is concerned.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::bucket::Bucket;
use crate::digest::Digest;
use crate::error::{Result, StoreError};
use crate::find::hex_name;
use crate::gc::inventory::{Inventory, allocated, allocated_tree};
use crate::machines::list;
use crate::pushed::{Named, PushedKey, PushedManifest, PushedTag};
use crate::root::Store;
use crate::{fsio, lock};

/// A manifest that was pushed, and the tags that name it.
#[derive(Debug, Clone)]
pub struct PushedEntry {
    /// Its place.
    pub key: PushedKey,
    /// The repository's name; empty if nothing there can be read.
    pub repository: String,
    /// Allocated bytes of the receipt and the tags.
    pub allocated: u64,
    /// The blobs that it names.
    pub blobs: BTreeSet<Digest>,
    /// The manifests that it is an index of.
    pub children: BTreeSet<Digest>,
    /// When its own files were last changed or used.
    pub touched: SystemTime,
    /// When it, or an index that it is part of, was last used.
    pub used: SystemTime,
    /// Whether a process changes its repository just now.
    pub in_use: bool,
}

impl Store {
    pub(super) fn take_in_pushed(&self, found: &mut Inventory) -> Result<()> {
        for dir in list(&self.bucket_dir(Bucket::Registry))? {
            let Some(repository) = hex_name(&dir) else {
                // Not ours to judge.
                found.fixed += allocated_tree(&dir);
                continue;
            };
            let in_use = lock::is_held_at(&self.lock_path("build", &crate::pushed::lock_name(&repository)));
            let mut entries: BTreeMap<Digest, PushedEntry> = BTreeMap::new();
            for path in list(&dir)? {
                let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
                let (manifest, receipt) = match self.look_at_pushed(&path) {
                    Ok(Some(seen)) => seen,
                    Ok(None) => {
                        found.fixed += allocated_tree(&path);
                        continue;
                    }
                    Err(path) => {
                        found.fixed += allocated_tree(&path);
                        found.opaque.push(path);
                        continue;
                    }
                };
                let touched = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                let entry = entries.entry(manifest).or_insert_with(|| PushedEntry {
                    key: PushedKey { repository, manifest },
                    repository: String::new(),
                    allocated: 0,
                    blobs: BTreeSet::new(),
                    children: BTreeSet::new(),
                    touched,
                    used: touched,
                    in_use,
                });
                entry.allocated += allocated(&metadata);
                entry.touched = entry.touched.max(touched);
                if let Some(receipt) = receipt {
                    entry.repository = receipt.repository;
                    entry.blobs = receipt.blobs.iter().map(|blob| blob.digest).collect();
                    entry.children = receipt.children.into_iter().collect();
                }
            }
            found.pushed.extend(with_indexes(entries));
        }
        Ok(())
    }

    /// The manifest that a file is of, and its receipt if that is what it is and
    /// whole. `Err`: it may name anything.
    fn look_at_pushed(
        &self,
        path: &Path,
    ) -> std::result::Result<Option<(Digest, Option<PushedManifest>)>, PathBuf> {
        match Named::of(path) {
            Some(Named::Manifest(manifest)) => {
                match fsio::read_sealed::<PushedManifest>(path, PushedManifest::SCHEMA) {
                    Ok(receipt) => Ok(Some((manifest, receipt))),
                    // Nothing trusts what it names.
                    Err(StoreError::Damaged { .. }) => Ok(Some((manifest, None))),
                    Err(_) => Err(path.to_owned()),
                }
            }
            // A tag names no blobs. One that cannot be read belongs to nothing.
            Some(Named::Tag(_)) => {
                let tag = fsio::read_sealed::<PushedTag>(path, PushedTag::SCHEMA);
                Ok(tag.ok().flatten().map(|tag| (tag.manifest, None)))
            }
            None => Ok(None),
        }
    }
}

/// What is part of an index was used when that was: so no index outlives its
/// parts.
fn with_indexes(mut entries: BTreeMap<Digest, PushedEntry>) -> impl Iterator<Item = PushedEntry> {
    for entry in entries.values_mut() {
        entry.used = entry.touched;
    }
    let mut pending: Vec<Digest> = entries.keys().copied().collect();
    while let Some(parent) = pending.pop() {
        let Some((used, children)) = entries.get(&parent).map(|e| (e.used, e.children.clone())) else {
            continue;
        };
        for child in children {
            if let Some(entry) = entries.get_mut(&child)
                && entry.used < used
            {
                entry.used = used;
                pending.push(child);
            }
        }
    }
    entries.into_values()
}
