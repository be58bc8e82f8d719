//! The store as a registry: the images of its agents, and what was pushed.

use std::collections::BTreeSet;
use std::fs::Metadata;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use smolcellar_oci::{Descriptor, Repository, Selector, Tag, media};
use smolcellar_store::{Digest, Event, PushedManifest, Reporter, Store, StoreError};

use crate::one_image::open;
use crate::shelf::{FoundBlob, FoundManifest, Shelf};
use crate::staging::Staging;

/// The stage whose receipts name manifests.
const STAGE: &str = "registry";
/// The tag of what an agent used last.
const LATEST: &str = "latest";

/// A store, and what is being pushed into it.
pub(crate) struct Library {
    pub(crate) store: Arc<Store>,
    /// `None`: it is for reading only.
    pub(crate) staging: Option<Staging>,
    /// One manifest is put at a time: what two of them need is published once.
    pub(crate) putting: Mutex<()>,
    /// For how long an upload may be left alone.
    idle: Duration,
    ending: AtomicBool,
}

/// An image of an agent's.
struct AgentImage {
    image: Digest,
    /// Its manifest.
    manifest: Digest,
}

/// Whoever waits for a lock gives up when the server ends.
pub(crate) struct Patience<'a>(&'a AtomicBool);

impl Reporter for Patience<'_> {
    fn report(&self, _: Event<'_>) {}

    fn gives_up(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Library {
    pub(crate) fn new(store: Arc<Store>, read_only: bool, idle: Duration) -> Result<Self, StoreError> {
        let staging = if read_only { None } else { Some(Staging::new(store.temp_dir()?)) };
        Ok(Self { store, staging, putting: Mutex::new(()), idle, ending: AtomicBool::new(false) })
    }

    pub(crate) fn patience(&self) -> Patience<'_> {
        Patience(&self.ending)
    }

    /// The images of an agent that have a manifest, the last used first. A
    /// repository is an agent's if it is called like it.
    fn agent(&self, repository: &Repository) -> Result<Vec<AgentImage>, StoreError> {
        let (machines, _) = self.store.list_machines()?;
        let (mut seen, mut images) = (BTreeSet::new(), Vec::new());
        for machine in machines.iter().filter(|machine| machine.agent == repository.as_str()) {
            let image = machine.key.image;
            if !seen.insert(image) {
                continue;
            }
            // A receipt that cannot be read is `verify`'s business; other images are served.
            if let Ok(Some(receipt)) = self.store.stage_receipt(&image, STAGE)
                && let Some(blob) = receipt.blobs.iter().find(|blob| blob.role == "manifest")
            {
                images.push(AgentImage { image, manifest: blob.digest });
            }
        }
        Ok(images)
    }

    /// A small blob, hashed. One that is lost or damaged is not there.
    fn read(&self, digest: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
        match self.store.blobs().get(digest) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(StoreError::Mismatch { .. }) => {
                self.damaged(digest);
                Ok(None)
            }
            Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn pushed(
        &self,
        repository: &Repository,
        which: &Selector,
    ) -> Result<Option<(PushedManifest, Vec<u8>)>, StoreError> {
        let digest = match which {
            Selector::Digest(digest) => *digest,
            Selector::Tag(tag) => match self.store.pushed_tag(repository.as_str(), tag.as_str())? {
                Some(tag) => tag.manifest,
                None => return Ok(None),
            },
        };
        let Some(receipt) = self.store.pushed(repository.as_str(), &digest)? else { return Ok(None) };
        Ok(self.read(&digest)?.map(|bytes| (receipt, bytes)))
    }

    /// Whether a blob is there, and its size.
    pub(crate) fn size(&self, digest: &Digest) -> Option<u64> {
        let waiting = self.staging.as_ref().and_then(|staging| staging.blob(digest));
        let size = waiting.map(|waiting| waiting.blob.size);
        size.or_else(|| {
            open(&self.store.blobs().path(digest)).ok().flatten().map(|found| found.metadata.len())
        })
    }
}

impl Shelf for Library {
    fn manifest(
        &self,
        repository: &Repository,
        which: &Selector,
    ) -> Result<Option<FoundManifest>, StoreError> {
        if let Some((receipt, bytes)) = self.pushed(repository, which)? {
            self.store.touch_pushed(repository.as_str(), &receipt.manifest);
            let (digest, media_type) = (receipt.manifest, receipt.media_type);
            return Ok(Some(FoundManifest { digest, media_type, bytes }));
        }
        let images = self.agent(repository)?;
        let fits = |image: &&AgentImage| match which {
            Selector::Digest(digest) => image.manifest == *digest,
            Selector::Tag(tag) => tag.as_str() == image.image.short(),
        };
        let found = match which {
            Selector::Tag(tag) if tag.as_str() == LATEST => images.first(),
            _ => images.iter().find(fits),
        };
        let Some(found) = found else { return Ok(None) };
        let Some(bytes) = self.read(&found.manifest)? else { return Ok(None) };
        // Whoever pulls it wants its layers too: they are used, and not to be collected first.
        self.store.touch_stage(&found.image, "tarball");
        self.store.touch_stage(&found.image, STAGE);
        Ok(Some(FoundManifest { digest: found.manifest, media_type: media::MANIFEST.into(), bytes }))
    }

    /// Whatever the repository: there is one store, and whoever can ask for a
    /// digest has seen a manifest that names it, or has the bytes.
    fn blob(&self, _: &Repository, digest: &Digest) -> Result<Option<FoundBlob>, StoreError> {
        if let Some(waiting) = self.staging.as_ref().and_then(|staging| staging.blob(digest)) {
            let file = waiting.blob.reopen()?;
            let metadata = file.metadata().map_err(StoreError::io("examine", digest.hex()))?;
            return Ok(Some(FoundBlob { file: Arc::new(file), metadata, sound: true }));
        }
        let found = open(&self.store.blobs().path(digest))?;
        Ok(found
            .map(|found| FoundBlob { sound: self.store.blobs().is_sealed(digest, &found.metadata), ..found }))
    }

    fn hashed(&self, digest: &Digest, metadata: &Metadata) {
        // What cannot be noted is hashed again by the next process.
        let _ = self.store.blobs().seal(digest, metadata);
    }

    fn tags(&self, repository: &Repository) -> Result<Option<Vec<Tag>>, StoreError> {
        let pushed = self.store.pushed_tags(repository.as_str())?;
        let images = self.agent(repository)?;
        let latest = images.first().map(|_| LATEST.to_owned());
        let short = images.iter().map(|image| image.image.short());
        let names: BTreeSet<String> =
            pushed.into_iter().map(|tag| tag.tag).chain(short).chain(latest).collect();
        // One may have manifests and no tags.
        if names.is_empty() && self.store.pushed_manifests(repository.as_str())?.is_empty() {
            return Ok(None);
        }
        Ok(Some(names.iter().filter_map(|name| Tag::parse(name).ok()).collect()))
    }

    fn repositories(&self) -> Result<Vec<Repository>, StoreError> {
        let pushed = self.store.pushed_repositories()?;
        let (machines, _) = self.store.list_machines()?;
        let names = pushed.into_iter().chain(machines.into_iter().map(|machine| machine.agent));
        let names: BTreeSet<_> = names.filter_map(|name| Repository::parse(&name).ok()).collect();
        Ok(names.into_iter().collect())
    }

    fn referrers(&self, repository: &Repository, subject: &Digest) -> Result<Vec<Descriptor>, StoreError> {
        let mut found = self.store.pushed_manifests(repository.as_str())?;
        found.retain(|receipt| receipt.subject.as_ref() == Some(subject));
        let describe = |receipt: PushedManifest| {
            let size = receipt.blobs.first().map_or(0, |blob| blob.size);
            let mut descriptor = Descriptor::named(&receipt.media_type, receipt.manifest, size);
            descriptor.artifact_type = receipt.artifact_type;
            descriptor.annotations = Some(receipt.annotations).filter(|all| !all.is_empty());
            descriptor
        };
        Ok(found.into_iter().map(describe).collect())
    }

    fn damaged(&self, digest: &Digest) {
        // Where it cannot be moved it stays, and is found again by the next who wants it.
        let _ = self.store.blobs().quarantine_if_damaged(digest);
    }

    fn library(&self) -> Option<&Self> {
        Some(self)
    }

    fn tidy(&self) {
        if let Some(staging) = &self.staging {
            staging.expire(self.idle);
        }
    }

    fn end(&self) {
        self.ending.store(true, Ordering::Relaxed);
    }
}
