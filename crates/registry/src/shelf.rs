//! What a server has to offer.

use std::fs::{File, Metadata};
use std::sync::Arc;

use smolcellar_oci::{Descriptor, Repository, Selector, Tag};
use smolcellar_store::{Digest, StoreError};

use crate::library::Library;

type Result<T> = std::result::Result<T, StoreError>;

/// A manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FoundManifest {
    pub(crate) digest: Digest,
    pub(crate) media_type: String,
    /// Its bytes, hashed.
    pub(crate) bytes: Vec<u8>,
}

/// A blob, open for reading.
#[derive(Debug)]
pub(crate) struct FoundBlob {
    pub(crate) file: Arc<File>,
    pub(crate) metadata: Metadata,
    /// Whether its bytes were hashed by this very process, which has had the
    /// file open ever since, or the store knows that they were since they were written.
    pub(crate) sound: bool,
}

/// Everything blocks, and is called where that is allowed.
pub(crate) trait Shelf: Send + Sync + 'static {
    /// A manifest of a repository.
    fn manifest(&self, repository: &Repository, which: &Selector) -> Result<Option<FoundManifest>>;

    /// A blob.
    fn blob(&self, repository: &Repository, digest: &Digest) -> Result<Option<FoundBlob>>;

    /// The tags of a repository, in order; `None` if there is no such repository.
    fn tags(&self, repository: &Repository) -> Result<Option<Vec<Tag>>>;

    /// All repositories, in order.
    fn repositories(&self) -> Result<Vec<Repository>>;

    /// The manifests of a repository that are about this one.
    fn referrers(&self, repository: &Repository, subject: &Digest) -> Result<Vec<Descriptor>>;

    /// Notes that a blob was hashed and is what it is called, when its file had
    /// this metadata.
    fn hashed(&self, _: &Digest, _: &Metadata) {}

    /// Takes a blob away that was found not to have its digest.
    fn damaged(&self, digest: &Digest);

    /// Where it can be pushed to, if it can.
    fn library(&self) -> Option<&Library> {
        None
    }

    /// Removes what nobody goes on with. Called now and then.
    fn tidy(&self) {}

    /// The server ends: whoever waits for something gives up.
    fn end(&self) {}
}
