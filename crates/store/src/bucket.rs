//! The folders of the store: one enum names them all.

/// A versioned folder of the store. A change of what is written in one is a
/// new number here and a new folder on disk; the older folder is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bucket {
    /// Bytes by their SHA-256: image configs, layers, manifests.
    ///
    /// ```text
    /// blobs-v1/sha256/<first 2 hex digits>/<64 hex digits>
    /// ```
    Blobs,
    /// What was taken out of an engine or an archive, per image.
    ///
    /// ```text
    /// images-v1/<image-id>/tarball.json
    /// images-v1/<image-id>/registry.json
    /// ```
    Images,
    /// The artifacts, and the receipt and stat seal of each.
    ///
    /// ```text
    /// machines-v1/<image-id>/<recipe>.smolmachine
    /// machines-v1/<image-id>/<recipe>.json
    /// machines-v1/<image-id>/<recipe>.stat
    /// ```
    Machines,
    /// Pointers that save work and prove nothing: engine image IDs to config
    /// digests, agents to their last artifact.
    ///
    /// ```text
    /// pointers-v1/<kind>/<name>.json
    /// ```
    Pointers,
    /// Runtimes installed by smolcellar, and what was derived from others.
    ///
    /// ```text
    /// runtimes-v1/<sha256 of the wheel>/…
    /// ```
    Runtimes,
    /// What runs did, a line of JSON per run, a file per thirty days.
    ///
    /// ```text
    /// stats-v1/<days since 1970, divided by 30>.jsonl
    /// ```
    Stats,
    /// What was pushed into the registry.
    ///
    /// ```text
    /// registry-v1/<SHA-256 of the repository's name>/<manifest>.json
    /// registry-v1/<SHA-256 of the repository's name>/tag-<SHA-256 of the tag>.json
    /// ```
    Registry,
}

impl Bucket {
    /// Every bucket, in the order in which `cache du` shows them.
    pub const ALL: [Self; 7] = [
        Self::Machines,
        Self::Blobs,
        Self::Images,
        Self::Registry,
        Self::Runtimes,
        Self::Pointers,
        Self::Stats,
    ];

    /// The folder's name, its version included.
    pub const fn folder(self) -> &'static str {
        match self {
            Self::Blobs => "blobs-v1",
            Self::Images => "images-v1",
            Self::Machines => "machines-v1",
            Self::Pointers => "pointers-v1",
            Self::Runtimes => "runtimes-v1",
            Self::Stats => "stats-v1",
            Self::Registry => "registry-v1",
        }
    }

    /// One line for people.
    pub const fn purpose(self) -> &'static str {
        match self {
            Self::Blobs => "layers, configs and manifests",
            Self::Images => "receipts of tarballs and manifests",
            Self::Machines => ".smolmachine artifacts",
            Self::Pointers => "look-ups that save work",
            Self::Runtimes => "smolvm runtimes",
            Self::Stats => "what runs did",
            Self::Registry => "what was pushed",
        }
    }
}
