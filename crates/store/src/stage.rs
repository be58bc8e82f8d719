//! Receipts of the stages before the artifact, per image.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::bucket::Bucket;
use crate::digest::Digest;
use crate::error::Result;
use crate::fsio;
use crate::lock::Publishing;
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
        self.blobs.iter().map(|blob| blob.size).sum()
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

    fn stage_path(&self, image: &Digest, stage: &str) -> std::path::PathBuf {
        self.bucket_dir(Bucket::Images).join(image.hex()).join(format!("{stage}.json"))
    }
}
