//! What was pushed into this store's registry: manifests by repository, and
//! their tags.
//!
//! ```text
//! registry-v1/<SHA-256 of the repository's name>/<manifest>.json
//! registry-v1/<SHA-256 of the repository's name>/tag-<SHA-256 of the tag>.json
//! ```
//!
//! Names are hashed for the sake of their lengths and slashes; each file says
//! whose it is. A manifest's receipt names every blob that it needs, itself
//! among them, and is written under the lock that these were published under.
//! Whoever changes a repository has its build lock.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::bucket::Bucket;
use crate::digest::Digest;
use crate::error::{Result, StoreError};
use crate::find::hex_name;
use crate::fsio;
use crate::lock::{BuildLock, Publishing};
use crate::machines::list;
use crate::report::Reporter;
use crate::root::Store;
use crate::session;
use crate::stage::BlobRef;

/// A manifest that was pushed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushedManifest {
    /// The format of this receipt: [`PushedManifest::SCHEMA`].
    pub schema: u64,
    /// The repository's name.
    pub repository: String,
    /// The manifest's digest.
    pub manifest: Digest,
    /// Its media type.
    pub media_type: String,
    /// What it is a manifest of, if it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The manifest that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Digest>,
    /// Its annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The manifests of an index that the repository has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub children: Vec<Digest>,
    /// The blobs that it needs: "manifest", then "config" and "layer"s.
    pub blobs: Vec<BlobRef>,
    /// When it was pushed: seconds since 1970. For people.
    pub pushed_at: u64,
}

impl PushedManifest {
    /// The newest format known.
    pub const SCHEMA: u64 = 1;
}

/// A tag that was pushed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushedTag {
    /// The format of this file: [`PushedTag::SCHEMA`].
    pub schema: u64,
    /// The repository's name.
    pub repository: String,
    /// The tag.
    pub tag: String,
    /// The digest of the manifest that it names.
    pub manifest: Digest,
    /// When it was pushed: seconds since 1970. For people.
    pub pushed_at: u64,
}

impl PushedTag {
    /// The newest format known.
    pub const SCHEMA: u64 = 1;
}

/// A pushed manifest's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PushedKey {
    /// The SHA-256 of the repository's name.
    pub repository: Digest,
    /// The manifest.
    pub manifest: Digest,
}

impl PushedKey {
    /// In a repository of this name.
    pub fn new(repository: &str, manifest: Digest) -> Self {
        Self { repository: Digest::of(repository.as_bytes()), manifest }
    }
}

/// The name of a repository's build lock, after its `build-`.
pub(crate) fn lock_name(repository: &Digest) -> String {
    format!("registry-{}", repository.hex())
}

/// What a file in a repository's folder is, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Named {
    Manifest(Digest),
    /// The SHA-256 of the tag.
    Tag(Digest),
}

impl Named {
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let stem = path.file_name()?.to_str()?.strip_suffix(".json")?;
        match stem.strip_prefix("tag-") {
            Some(tag) => Digest::from_hex(tag).ok().map(Self::Tag),
            None => Digest::from_hex(stem).ok().map(Self::Manifest),
        }
    }
}

impl Store {
    /// Waits for the right to change a repository.
    ///
    /// # Errors
    /// [`StoreError::LockTimeout`], [`StoreError::GaveUp`].
    pub fn lock_repository(&self, repository: &str, reporter: &dyn Reporter) -> Result<BuildLock> {
        self.lock_build(&lock_name(&Digest::of(repository.as_bytes())), reporter)
    }

    /// Commits a manifest: the last write of it, under the repository's lock and
    /// the one that its blobs were published under.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Newer`].
    pub fn commit_pushed(&self, receipt: &PushedManifest, _: &BuildLock, _: &Publishing) -> Result<()> {
        let path = self.pushed_path(&receipt.repository, &receipt.manifest);
        fsio::write_sealed(&self.scratch()?, &path, receipt)
    }

    /// Points a tag at a manifest that was committed, under the repository's lock.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Newer`].
    pub fn commit_tag(&self, tag: &PushedTag, _: &BuildLock) -> Result<()> {
        fsio::write_sealed(&self.scratch()?, &self.tag_path(&tag.repository, &tag.tag), tag)
    }

    /// A manifest of a repository. One whose receipt is damaged is not there.
    ///
    /// # Errors
    /// [`StoreError::Newer`], [`StoreError::Io`].
    pub fn pushed(&self, repository: &str, manifest: &Digest) -> Result<Option<PushedManifest>> {
        let read =
            trusted::<PushedManifest>(&self.pushed_path(repository, manifest), PushedManifest::SCHEMA)?;
        Ok(read.filter(|receipt| receipt.repository == repository && receipt.manifest == *manifest))
    }

    /// What a tag of a repository names. A damaged tag is not there.
    ///
    /// # Errors
    /// [`StoreError::Newer`], [`StoreError::Io`].
    pub fn pushed_tag(&self, repository: &str, tag: &str) -> Result<Option<PushedTag>> {
        let read = trusted::<PushedTag>(&self.tag_path(repository, tag), PushedTag::SCHEMA)?;
        Ok(read.filter(|found| found.repository == repository && found.tag == tag))
    }

    /// All manifests of a repository that can be read, in order.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the folder cannot be listed.
    pub fn pushed_manifests(&self, repository: &str) -> Result<Vec<PushedManifest>> {
        let is = |named| matches!(named, Named::Manifest(_));
        let mut found = self.read_all::<PushedManifest>(repository, PushedManifest::SCHEMA, is)?;
        found.retain(|receipt| receipt.repository == repository);
        Ok(found)
    }

    /// All tags of a repository that can be read.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the folder cannot be listed.
    pub fn pushed_tags(&self, repository: &str) -> Result<Vec<PushedTag>> {
        let is = |named| matches!(named, Named::Tag(_));
        let mut found = self.read_all::<PushedTag>(repository, PushedTag::SCHEMA, is)?;
        found.retain(|tag| tag.repository == repository);
        Ok(found)
    }

    fn read_all<T: DeserializeOwned>(
        &self,
        repository: &str,
        schema: u64,
        is: impl Fn(Named) -> bool,
    ) -> Result<Vec<T>> {
        let paths = list(&self.repository_dir(&Digest::of(repository.as_bytes())))?;
        let paths = paths.iter().filter(|path| Named::of(path).is_some_and(&is));
        Ok(paths.filter_map(|path| fsio::read_sealed(path, schema).ok().flatten()).collect())
    }

    /// The names of all repositories that something was pushed to, in order.
    ///
    /// # Errors
    /// [`StoreError::Io`] if a folder cannot be listed.
    pub fn pushed_repositories(&self) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Whose {
            repository: String,
        }
        let mut names = Vec::new();
        for dir in list(&self.bucket_dir(Bucket::Registry))? {
            let Some(key) = hex_name(&dir) else { continue };
            let paths = list(&dir)?;
            // Every file says it; the first that is whole will do.
            let mut said = paths.iter().filter(|path| Named::of(path).is_some()).filter_map(|path| {
                let schema = PushedManifest::SCHEMA.max(PushedTag::SCHEMA);
                fsio::read_sealed::<Whose>(path, schema).ok().flatten()
            });
            names.extend(said.find(|whose| Digest::of(whose.repository.as_bytes()) == key));
        }
        let mut names: Vec<_> = names.into_iter().map(|whose| whose.repository).collect();
        names.sort();
        Ok(names)
    }

    /// Removes a tag, under the repository's lock; whether there was one.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn remove_tag(&self, repository: &str, tag: &str, _: &BuildLock) -> Result<bool> {
        self.take_pushed(&[self.tag_path(repository, tag)])
    }

    /// Removes a manifest and the tags that name it, under the repository's
    /// lock; whether there was one. Its blobs are the collector's to remove.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn remove_pushed(&self, repository: &str, manifest: &Digest, _: &BuildLock) -> Result<bool> {
        let receipt = self.pushed_path(repository, manifest);
        if fs::symlink_metadata(&receipt).is_err() {
            return Ok(false);
        }
        self.take_pushed(&self.files_of(&PushedKey::new(repository, *manifest))?)
    }

    /// Everything of a manifest, in the order in which it goes: the tags that name it, and its receipt.
    pub(crate) fn files_of(&self, key: &PushedKey) -> Result<Vec<PathBuf>> {
        let dir = self.repository_dir(&key.repository);
        let mut files = Vec::new();
        for path in list(&dir)? {
            if let Some(Named::Tag(_)) = Named::of(&path)
                && let Ok(Some(tag)) = fsio::read_sealed::<PushedTag>(&path, PushedTag::SCHEMA)
                && tag.manifest == key.manifest
            {
                files.push(path);
            }
        }
        files.push(dir.join(format!("{}.json", key.manifest.hex())));
        Ok(files)
    }

    fn take_pushed(&self, files: &[PathBuf]) -> Result<bool> {
        let trash = self.trash_dir();
        fsio::create_dirs(&trash)?;
        let mut there = false;
        for file in files {
            there |= fsio::take_away(file, &trash)?;
        }
        session::empty(&trash);
        // Fails while there is more in it.
        let _ = files.first().and_then(|file| file.parent()).map(fs::remove_dir);
        Ok(there)
    }

    /// Notes that a manifest was used just now: the modification time of its
    /// receipt, without any fsync. Only ranks entries for gc.
    pub fn touch_pushed(&self, repository: &str, manifest: &Digest) {
        touch(&self.pushed_path(repository, manifest));
    }

    /// Notes that an image's receipts were used just now, as [`Store::touch_pushed`]
    /// does.
    pub fn touch_stage(&self, image: &Digest, stage: &str) {
        touch(&self.bucket_dir(Bucket::Images).join(image.hex()).join(format!("{stage}.json")));
    }

    pub(crate) fn repository_dir(&self, repository: &Digest) -> PathBuf {
        self.bucket_dir(Bucket::Registry).join(repository.hex())
    }

    fn pushed_path(&self, repository: &str, manifest: &Digest) -> PathBuf {
        let dir = self.repository_dir(&Digest::of(repository.as_bytes()));
        dir.join(format!("{}.json", manifest.hex()))
    }

    fn tag_path(&self, repository: &str, tag: &str) -> PathBuf {
        let dir = self.repository_dir(&Digest::of(repository.as_bytes()));
        dir.join(format!("tag-{}.json", Digest::of(tag.as_bytes()).hex()))
    }
}

fn touch(path: &Path) {
    if let Ok(file) = fs::File::open(path) {
        let _ = file.set_modified(SystemTime::now());
    }
}

/// What is damaged is not there: nobody trusts it, and `verify` names it.
fn trusted<T: DeserializeOwned>(path: &Path, schema: u64) -> Result<Option<T>> {
    match fsio::read_sealed(path, schema) {
        Err(StoreError::Damaged { .. }) => Ok(None),
        read => read,
    }
}

#[cfg(test)]
#[path = "pushed_tests.rs"]
mod tests;
