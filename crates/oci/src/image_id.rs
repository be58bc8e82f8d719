//! The image ID.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use smolcellar_store::{Digest, DigestError};

/// An image ID: the SHA-256 of the image's config JSON (OCI image-spec
/// `config.md`, "ImageID"). Since a config lists the digests of all its
/// layers, it names the image's whole contents.
///
/// It is not what every engine calls ID: Docker's containerd store reports the
/// digest of a manifest or an index, which a fully cached rebuild changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ImageId(pub Digest);

impl ImageId {
    /// The ID of the image with this config.
    pub fn of_config(config: &[u8]) -> Self {
        Self(Digest::of(config))
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for ImageId {
    type Err = DigestError;
    fn from_str(text: &str) -> Result<Self, DigestError> {
        text.parse().map(Self)
    }
}
