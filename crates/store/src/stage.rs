//! Receipts of the stages before the artifact, per image.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::bucket::Bucket;
use crate::digest::Digest;
use crate::error::{Result, StoreError};
use crate::find::hex_name;
use crate::fsio;
use crate::lock::Publishing;
use crate::machines::list;
use crate::root::Store;

/// A blob that a receipt needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobRef {
    /// What it is to the receipt: "config", "layer", "manifest".
    pub role: String,
    /// Its digest, which is also its name.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
}

/// What a stage made for an image, and from what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageReceipt {
    /// The format of this receipt: [`StageReceipt::SCHEMA`].
    pub schema: u64,
    /// The stage's name: "tarball", "registry".
    pub stage: String,
    /// The image it belongs to.
    pub image: Digest,
    /// Every input by name and value.
    pub inputs: BTreeMap<String, Value>,
    /// The blobs it is made of, in order.
    pub blobs: Vec<BlobRef>,
    /// When it was made: seconds since 1970. Ranks, never decides.
    pub built_at: u64,
    /// How long it took, in milliseconds.
    pub millis: u64,
}

impl StageReceipt {
    /// The newest format known.
    pub const SCHEMA: u64 = 1;

    /// The sum of the sizes of its blobs.
    pub fn bytes(&self) -> u64 {
        self.blobs.iter().fold(0, |sum, blob| sum.saturating_add(blob.size))
    }
}

impl Store {
    /// The receipt of `stage` for `image`, if there is one.
    ///
    /// # Errors
    /// [`crate::StoreError::Damaged`] or [`crate::StoreError::Newer`].
    pub fn stage_receipt(&self, image: &Digest, stage: &str) -> Result<Option<StageReceipt>> {
        fsio::read_sealed(&self.stage_path(image, stage), StageReceipt::SCHEMA)
    }

    /// Commits a stage: the last write of it, under the lock that its blobs were
    /// published under.
    ///
    /// # Errors
    /// [`crate::StoreError::Io`].
    pub fn commit_stage(&self, receipt: &StageReceipt, _: &Publishing) -> Result<()> {
        fsio::write_sealed(&self.scratch()?, &self.stage_path(&receipt.image, &receipt.stage), receipt)
    }

    /// The image with a receipt whose ID begins with `text`: four digits or
    /// more, with or without `sha256:`. Reads names only.
    ///
    /// # Errors
    /// [`StoreError::NoEntry`] if there is none, or several;
    /// [`StoreError::Io`].
    pub fn find_image(&self, text: &str) -> Result<Digest> {
        let refuse = |problem: String| StoreError::NoEntry { wanted: text.to_owned(), problem };
        let digits = text.strip_prefix("sha256:").unwrap_or(text).to_ascii_lowercase();
        if digits.len() < 4 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(refuse("an image is named by the first digits of its ID, four or more".into()));
        }
        let folders = list(&self.bucket_dir(Bucket::Images))?;
        let mut images = folders.iter().filter_map(|folder| hex_name(folder));
        let mut fits = images.by_ref().filter(|image| image.hex().starts_with(&digits));
        match (fits.next(), fits.next()) {
            (Some(image), None) => Ok(image),
            (None, _) => Err(refuse("no image has such an ID".into())),
            (Some(_), Some(_)) => Err(refuse("several images have such an ID; give more digits".into())),
        }
    }

    fn stage_path(&self, image: &Digest, stage: &str) -> std::path::PathBuf {
        self.bucket_dir(Bucket::Images).join(image.hex()).join(format!("{stage}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OpenOptions;

    #[test]
    fn an_image_is_found_by_its_first_digits_and_only_if_it_is_the_only_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("c"), OpenOptions::default()).unwrap();
        let ids = ["aa", "ab"].map(|pair| Digest::from_hex(&format!("12345678{}", pair.repeat(28))).unwrap());
        for id in ids {
            fsio::create_dirs(&store.bucket_dir(Bucket::Images).join(id.hex())).unwrap();
        }
        assert_eq!(store.find_image("sha256:12345678AB").unwrap(), ids[1]);
        assert_eq!(store.find_image(&ids[0].to_string()).unwrap(), ids[0]);
        for (text, says) in [("1234", "several"), ("9999", "no image"), ("12", "four"), ("../12", "four")] {
            let problem = store.find_image(text).unwrap_err().to_string();
            assert!(problem.contains(says), "{problem}");
        }
    }
}
