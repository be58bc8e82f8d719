//! `runtime.json`: what a folder of the Runtimes bucket holds, written last.
//!
//! ```text
//! runtimes-v1/<sha256 of the wheel>/      an installed runtime, whole
//!     runtime.json                        this receipt, sealed
//!     smolvm                              the wheel's smol-vmm
//!     libkrun.so  libkrunfw.so.5
//!     agent-rootfs/  agent-rootfs.tar     unpacked, and the canonical archive
//!     storage-template.ext4  overlay-template.ext4    sparse, 20 and 10 GiB
//!     licenses/  THIRD_PARTY_NOTICES.md
//! runtimes-v1/local-<fingerprint>/        what was derived from another smolvm
//!     runtime.json
//!     agent-rootfs.tar
//!     agent-rootfs/                       only where the other has an archive
//! runtimes-v1/<file name of the wheel>    optional: a copy put there by hand
//! ```

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use smolcellar_store::{Digest, StoreError, TempDir, fsio};

use crate::error::Result;
use crate::runtime::{Origin, Runtime};
use crate::version::Version;

/// The receipt's file name.
pub(crate) const FILE: &str = "runtime.json";

/// Every fact of a [`Runtime`]. Paths are relative to the receipt's folder
/// unless absolute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Receipt {
    /// The format of this receipt: [`Receipt::SCHEMA`].
    pub(crate) schema: u64,
    pub(crate) version: Version,
    pub(crate) program: PathBuf,
    pub(crate) lib_dir: PathBuf,
    pub(crate) agent_rootfs: PathBuf,
    pub(crate) rootfs_tar: PathBuf,
    pub(crate) rootfs_digest: Digest,
    /// Bytes of `rootfs_tar`.
    pub(crate) rootfs_size: u64,
    /// The files of this folder that nothing changes while the runtime is
    /// used; all but the agent rootfs.
    pub(crate) files: Vec<FileFact>,
}

/// A file of the receipt's folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileFact {
    pub(crate) path: PathBuf,
    /// Bytes; logical ones of a sparse file.
    pub(crate) size: u64,
    /// SHA-256 of the contents, or of the data of a sparse file (module
    /// `sparse`).
    pub(crate) sha256: Digest,
    /// Whether it is sparse.
    #[serde(default)]
    pub(crate) sparse: bool,
}

impl Receipt {
    pub(crate) const SCHEMA: u64 = 1;

    /// Of `dir`. `None` when there is none, or when it does not fit what lies
    /// beside it: the folder is then as good as absent. Looks at metadata only.
    ///
    /// # Errors
    /// [`StoreError::Newer`].
    pub(crate) fn load(dir: &Path) -> Result<Option<Self>> {
        let receipt = match fsio::read_sealed::<Self>(&dir.join(FILE), Self::SCHEMA) {
            Ok(Some(receipt)) => receipt,
            Ok(None) | Err(StoreError::Damaged { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        Ok(receipt.fits(dir).then_some(receipt))
    }

    fn fits(&self, dir: &Path) -> bool {
        let sizes = self.files.iter().all(|fact| {
            let metadata = dir.join(&fact.path).symlink_metadata();
            metadata.is_ok_and(|metadata| metadata.is_file() && metadata.len() == fact.size)
        });
        sizes && dir.join(&self.agent_rootfs).is_dir() && dir.join(&self.program).is_file()
    }

    /// Writes it into a folder that is not published yet.
    pub(crate) fn write(&self, dir: &TempDir) -> Result<()> {
        Ok(fsio::write_sealed(dir.path(), &dir.path().join(FILE), self)?)
    }

    /// The runtime that lies in `dir`.
    pub(crate) fn runtime(self, dir: &Path, origin: Origin) -> Runtime {
        Runtime {
            version: self.version,
            vmm: dir.join(self.program),
            // Joined with nothing, a path would end in a slash.
            lib_dir: dir.join(self.lib_dir).components().collect(),
            agent_rootfs: dir.join(self.agent_rootfs),
            rootfs_tar: dir.join(self.rootfs_tar),
            rootfs_digest: self.rootfs_digest,
            rootfs_size: self.rootfs_size,
            origin,
        }
    }
}
