//! Manifests and indexes as registries keep them (image-spec `manifest.md`,
//! `image-index.md`, `descriptor.md`). Fields that we have no use for are not
//! kept: what is passed on is the bytes, never a parsed and printed copy.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use smolcellar_store::Digest;

/// Media types of the image and distribution specifications, and Docker's older
/// names for the same.
pub mod media {
    /// An image manifest.
    pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// An image index.
    pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// An image's config.
    pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// An uncompressed layer.
    pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    /// Docker's image manifest.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker's image index.
    pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// The config of what has none, `{}` (`manifest.md`, "Guidance for an empty descriptor").
    pub const EMPTY: &str = "application/vnd.oci.empty.v1+json";
}

/// The largest manifest that is read, in bytes: what the distribution
/// specification asks registries to accept.
pub const MAX_MANIFEST: usize = 4 << 20;

/// A content descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the bytes are.
    #[serde(default)]
    pub media_type: String,
    /// Their digest.
    pub digest: Digest,
    /// How many there are.
    pub size: u64,
    /// What an artifact manifest is of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// What an image is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<DescriptorPlatform>,
    /// What else is said of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

impl Descriptor {
    /// Of these bytes.
    pub fn of(media_type: &str, bytes: &[u8]) -> Self {
        Self::named(media_type, Digest::of(bytes), bytes.len() as u64)
    }

    /// Of bytes with this digest and length.
    pub fn named(media_type: &str, digest: Digest, size: u64) -> Self {
        let media_type = media_type.to_owned();
        Self { media_type, digest, size, artifact_type: None, platform: None, annotations: None }
    }
}

/// The platform in a descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorPlatform {
    /// As `linux`.
    #[serde(default)]
    pub os: String,
    /// As `amd64`.
    #[serde(default)]
    pub architecture: String,
    /// As `v8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// A manifest or an index: whatever a registry keeps by tag or digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// 2.
    pub schema_version: u32,
    /// What it is; older ones do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// What it is a manifest of, if that is no image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The config; an index has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Descriptor>,
    /// The layers, lowest first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<Descriptor>>,
    /// The manifests of an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifests: Option<Vec<Descriptor>>,
    /// The manifest that this one is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// What else is said of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

impl Manifest {
    /// An empty one of this media type.
    pub fn new(media_type: &str) -> Self {
        Self {
            schema_version: 2,
            media_type: Some(media_type.to_owned()),
            artifact_type: None,
            config: None,
            layers: None,
            manifests: None,
            subject: None,
            annotations: None,
        }
    }

    /// Parses a manifest or an index.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > MAX_MANIFEST {
            return Err(format!("it has {} bytes, more than {MAX_MANIFEST}", bytes.len()));
        }
        let parsed: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if parsed.schema_version != 2 {
            return Err(format!("its schemaVersion is {}, not 2", parsed.schema_version));
        }
        // So that no two readers take it for different things (CVE-2021-41190).
        if parsed.manifests.is_some() && (parsed.layers.is_some() || parsed.config.is_some()) {
            return Err("it is a manifest and an index at once".into());
        }
        Ok(parsed)
    }

    /// Its bytes: the same for the same manifest.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Strings, numbers, and maps with strings for keys: it cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Every blob that an image manifest needs: config and layers.
    pub fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        self.config.iter().chain(self.layers.iter().flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_manifest_reads_back_and_leaves_out_what_it_does_not_have() {
        let mut manifest = Manifest::new(media::MANIFEST);
        manifest.config = Some(Descriptor::of(media::EMPTY, b"{}"));
        manifest.layers = Some(vec![Descriptor::of(media::LAYER, b"layer")]);
        let bytes = manifest.to_bytes();
        assert_eq!(Manifest::parse(&bytes).unwrap(), manifest);
        assert!(!String::from_utf8(bytes).unwrap().contains("subject"));
        assert_eq!(manifest.blobs().count(), 2);
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let both = br#"{"schemaVersion":2,"manifests":[],"layers":[]}"#;
        assert!(Manifest::parse(both).unwrap_err().contains("at once"));
        assert!(Manifest::parse(br#"{"schemaVersion":1}"#).unwrap_err().contains("schemaVersion"));
        assert!(Manifest::parse(&vec![b' '; MAX_MANIFEST + 1]).unwrap_err().contains("more than"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = Manifest::parse(&bytes);
        }
    }
}
