//! What there is to verify.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Subject, VerifyOptions, WINDOW};
use crate::bucket::Bucket;
use crate::digest::Digest;
use crate::error::Result;
use crate::find::hex_name;
use crate::machines::{Files, MachineKey, list};
use crate::pushed::{Named, PushedKey};
use crate::quarantine::receipt_at;
use crate::root::Store;

/// An entry whose bytes are to be looked at.
#[derive(Debug)]
pub(super) struct Item {
    /// What it is in order by: the digest in its name.
    pub(super) hex: String,
    pub(super) path: PathBuf,
    /// Bytes.
    pub(super) size: u64,
    pub(super) work: Work,
}

/// Kinds of entries, in the order of those with one digest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Work {
    Blob(Digest),
    Stage(Digest, String),
    Machine(MachineKey),
    /// A pushed manifest's receipt.
    Pushed(PushedKey),
    /// A pushed tag: its repository's and its own SHA-256.
    Tag(Digest, Digest),
}

impl Work {
    pub(super) fn subject(&self, store: &Store) -> Subject {
        match self {
            Self::Blob(digest) => Subject::Blob(*digest),
            Self::Stage(image, stage) => Subject::Stage(*image, stage.clone()),
            Self::Pushed(_) | Self::Tag(..) => Subject::Other,
            Self::Machine(key) => {
                let receipt = receipt_at(&Files::of(store, key).receipt);
                let receipt = receipt.filter(|receipt| receipt.key() == *key);
                Subject::Machine(*key, receipt.map(Box::new))
            }
        }
    }
}

/// All there is.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) items: Vec<Item>,
    /// Names that do not belong, and whether the folder they are in is one
    /// whose every name is known.
    pub(super) strange: Vec<(PathBuf, bool)>,
    pub(super) leftovers: Vec<PathBuf>,
}

impl Listing {
    pub(super) fn of(store: &Store, options: &VerifyOptions) -> Result<Self> {
        let mut listed = Self::default();
        listed.blobs(store)?;
        listed.images(store)?;
        listed.machines(store)?;
        listed.registry(store)?;
        if let Some(keys) = &options.keys {
            listed.only(store, keys);
        }
        Ok(listed)
    }

    /// Sorts, leaves out what is done, and puts the large ones of each window
    /// first.
    pub(super) fn order(&mut self, from: Option<&str>) {
        if let Some(from) = from {
            self.items.retain(|item| item.hex.as_str() >= from);
        }
        self.items.sort_by(|a, b| a.hex.cmp(&b.hex).then_with(|| a.work.cmp(&b.work)));
        for window in self.items.chunks_mut(WINDOW) {
            window.sort_by_key(|item| std::cmp::Reverse(item.size));
        }
    }

    /// Leaves out all that is not of these artifacts and their images.
    fn only(&mut self, store: &Store, keys: &BTreeSet<MachineKey>) {
        let images: BTreeSet<Digest> = keys.iter().map(|key| key.image).collect();
        let stages = self.items.iter().filter_map(|item| match &item.work {
            Work::Stage(image, stage) if images.contains(image) => Some((image, stage)),
            _ => None,
        });
        let mut blobs = images.clone();
        for (image, stage) in stages {
            if let Ok(Some(receipt)) = store.stage_receipt(image, stage) {
                blobs.extend(receipt.blobs.iter().map(|blob| blob.digest));
            }
        }
        self.items.retain(|item| match &item.work {
            Work::Blob(digest) => blobs.contains(digest),
            Work::Stage(image, _) => images.contains(image),
            Work::Machine(key) => keys.contains(key),
            Work::Pushed(_) | Work::Tag(..) => false,
        });
        self.strange.clear();
        self.leftovers.retain(|path| {
            keys.iter().any(|key| {
                let files = Files::of(store, key);
                [files.artifact, files.receipt, files.stat].contains(path)
            })
        });
    }

    fn item(&mut self, hex: String, path: PathBuf, work: Work) {
        let size = fs::symlink_metadata(&path).map_or(0, |metadata| metadata.len());
        self.items.push(Item { hex, path, size, work });
    }

    fn blobs(&mut self, store: &Store) -> Result<()> {
        let bucket = store.bucket_dir(Bucket::Blobs);
        // Another algorithm's folder may be a newer version's.
        let others = list(&bucket)?.into_iter().filter(|path| !path.ends_with("sha256"));
        self.strange.extend(others.map(|path| (path, false)));
        for shard in list(&bucket.join("sha256"))? {
            let name = name_of(&shard);
            let is_shard = !is_no_folder(&shard) && name.len() == 2 && is_hex(name);
            if !is_shard {
                self.strange.push((shard, true));
                continue;
            }
            for path in list(&shard)? {
                match hex_name(&path).filter(|digest| digest.hex().starts_with(name)) {
                    Some(digest) => self.item(digest.hex(), path, Work::Blob(digest)),
                    None => self.strange.push((path, true)),
                }
            }
        }
        Ok(())
    }

    fn images(&mut self, store: &Store) -> Result<()> {
        for dir in list(&store.bucket_dir(Bucket::Images))? {
            let Some(image) = hex_name(&dir).filter(|_| !is_no_folder(&dir)) else {
                self.strange.push((dir, true));
                continue;
            };
            for path in list(&dir)? {
                match name_of(&path).strip_suffix(".json") {
                    Some(stage) if !stage.is_empty() => {
                        let work = Work::Stage(image, stage.to_owned());
                        self.item(image.hex(), path, work);
                    }
                    _ => self.strange.push((path, true)),
                }
            }
        }
        Ok(())
    }

    fn registry(&mut self, store: &Store) -> Result<()> {
        for dir in list(&store.bucket_dir(Bucket::Registry))? {
            let Some(repository) = hex_name(&dir).filter(|_| !is_no_folder(&dir)) else {
                self.strange.push((dir, true));
                continue;
            };
            for path in list(&dir)? {
                let (digest, work) = match Named::of(&path) {
                    Some(Named::Manifest(manifest)) => {
                        (manifest, Work::Pushed(PushedKey { repository, manifest }))
                    }
                    Some(Named::Tag(tag)) => (tag, Work::Tag(repository, tag)),
                    None => {
                        self.strange.push((path, true));
                        continue;
                    }
                };
                self.item(digest.hex(), path, work);
            }
        }
        Ok(())
    }

    fn machines(&mut self, store: &Store) -> Result<()> {
        for dir in list(&store.bucket_dir(Bucket::Machines))? {
            let Some(image) = hex_name(&dir).filter(|_| !is_no_folder(&dir)) else {
                self.strange.push((dir, true));
                continue;
            };
            for path in list(&dir)? {
                let (stem, extension) = name_of(&path).split_once('.').unwrap_or_default();
                match (Digest::from_hex(stem), extension) {
                    (Ok(recipe), "json") => {
                        let artifact = path.with_extension("smolmachine");
                        if fs::symlink_metadata(&artifact).is_err() {
                            self.leftovers.push(path);
                            continue;
                        }
                        // The artifact is what takes the time and what matters.
                        let key = MachineKey { image, recipe };
                        self.item(image.hex(), artifact, Work::Machine(key));
                    }
                    (Ok(_), "smolmachine" | "stat") => {
                        if fs::symlink_metadata(path.with_extension("json")).is_err() {
                            self.leftovers.push(path);
                        }
                    }
                    _ => self.strange.push((path, true)),
                }
            }
        }
        Ok(())
    }
}

/// Whether something else than a folder is there. A folder that is gone was
/// collected when it was empty, and may be back by now.
pub(super) fn is_no_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| !metadata.is_dir())
}

fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}
