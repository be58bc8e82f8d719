//! What a run did, stage by stage.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use smolcellar_oci::ImageId;
use smolcellar_store::{Digest, MachineKey, Reporter};

use crate::elsewhere::Pulled;
use crate::explain::StageWhy;

/// The stages, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StageName {
    /// A Dockerfile or an archive becomes an image ID.
    Image,
    /// The image's layers become blobs.
    Tarball,
    /// The blobs get an OCI manifest.
    Registry,
    /// The root filesystem becomes an artifact.
    Smolmachine,
}

impl StageName {
    /// All, in order.
    pub const ALL: [Self; 4] = [Self::Image, Self::Tarball, Self::Registry, Self::Smolmachine];

    /// The name as commands and JSON have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Tarball => "tarball",
            Self::Registry => "registry",
            Self::Smolmachine => "smolmachine",
        }
    }
}

/// Whether a stage had to work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StageStatus {
    /// What it makes was there.
    Hit,
    /// What it makes was made.
    Miss,
    /// What it makes was neither there nor needed.
    Skipped,
}

impl StageStatus {
    /// The name as JSON has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Skipped => "skipped",
        }
    }
}

/// One stage of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageReport {
    /// Which.
    pub name: StageName,
    /// Whether it had to work.
    pub status: StageStatus,
    /// How long it took. JSON has it in whole microseconds.
    #[serde(serialize_with = "microseconds")]
    pub seconds: f64,
    /// The size of what it makes, in bytes; 0 where that is not there.
    pub bytes: u64,
}

fn microseconds<S: serde::Serializer>(seconds: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((seconds * 1e6).round() / 1e6)
}

/// The result of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// The agent's name.
    pub agent: String,
    /// The image.
    pub image_id: ImageId,
    /// The recipe.
    pub recipe: Digest,
    /// The artifact's absolute path.
    pub artifact: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// Its SHA-256.
    pub sha256: Digest,
    /// What each stage did.
    pub stages: Vec<StageReport>,
    /// What it took to bring it here, if it came from a cache elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pulled: Option<Pulled>,
    /// What leads to the image: [`crate::BuildFacts::fingerprint`]; `None` if
    /// that cannot be told, or had changed when the build ended.
    #[serde(skip)]
    pub seen: Option<Digest>,
    /// Why those that had to work had to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub why: Vec<StageWhy>,
}

impl Outcome {
    /// The artifact's key.
    pub fn key(&self) -> MachineKey {
        MachineKey { image: self.image_id.0, recipe: self.recipe }
    }
}

/// Hears of stages as they end, besides what every reporter hears.
pub trait Observer: Reporter {
    /// A stage of `agent` ended.
    fn stage(&self, agent: &str, report: &StageReport);
    /// A program that a stage runs printed a line.
    fn line(&self, line: &str);
}
