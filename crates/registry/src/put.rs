//! A manifest on its way in: what it names has to be there, and is published
//! with it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;
use std::time::{SystemTime, UNIX_EPOCH};

use hyper::StatusCode;
use smolcellar_oci::{Descriptor, Manifest, Repository, Selector, media};
use smolcellar_store::{BlobRef, Digest, PushedManifest, PushedTag};

use crate::library::Library;
use crate::problem::Problem;
use crate::shelf::Shelf;
use crate::sound::Look;

/// What was put.
#[derive(Debug)]
pub(crate) struct Put {
    pub(crate) digest: Digest,
    pub(crate) subject: Option<Digest>,
}

impl Library {
    /// Takes a manifest in. Blocks.
    pub(crate) fn put(
        &self,
        repository: &Repository,
        which: &Selector,
        content_type: Option<&str>,
        bytes: &[u8],
    ) -> Result<Put, Problem> {
        let invalid = |problem: String| Problem::bad("MANIFEST_INVALID", problem);
        let manifest = Manifest::parse(bytes).map_err(invalid)?;
        let media_type = media_type(&manifest, content_type)?;
        let digest = Digest::of(bytes);
        if let Selector::Digest(named) = which
            && *named != digest
        {
            return Err(Problem::bad("DIGEST_INVALID", format!("the manifest has digest {digest}")));
        }
        let store = |error| Problem::of_store(&error);
        let _one = self.putting.lock().unwrap_or_else(PoisonError::into_inner);
        let lock = self.store.lock_repository(repository.as_str(), &self.patience()).map_err(store)?;
        let publishing = self.store.publishing(&self.patience()).map_err(store)?;
        // Under the lock: what is there now stays until there is a receipt.
        let (needed, children) = self.needed(repository, &manifest)?;
        let blobs = self.store.blobs();
        let mut fresh = Vec::new();
        if let Some(staging) = &self.staging {
            for blob in &needed {
                if let Some(waiting) = staging.blob(&blob.digest) {
                    let published = blobs.publish(&waiting.blob, &publishing);
                    // Published or lost: it waits no more.
                    staging.forget([&blob.digest]);
                    published.map_err(store)?;
                    fresh.push((blob.digest, waiting));
                }
            }
        }
        blobs.put(bytes, &publishing).map_err(store)?;
        let own = BlobRef { role: "manifest".into(), digest, size: bytes.len() as u64 };
        let subject = manifest.subject.as_ref().map(|subject| subject.digest);
        let config_type = manifest.config.as_ref().map(|config| config.media_type.clone());
        let pushed_at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let receipt = PushedManifest {
            schema: PushedManifest::SCHEMA,
            repository: repository.as_str().to_owned(),
            manifest: digest,
            media_type,
            artifact_type: manifest.artifact_type.or(config_type).filter(|kind| !kind.is_empty()),
            subject,
            annotations: manifest.annotations.unwrap_or_default(),
            children,
            blobs: [vec![own], needed].concat(),
            pushed_at,
        };
        self.store.commit_pushed(&receipt, &lock, &publishing).map_err(store)?;
        if let Selector::Tag(tag) = which {
            let (schema, tag) = (PushedTag::SCHEMA, tag.as_str().to_owned());
            let tag = PushedTag { schema, repository: receipt.repository, tag, manifest: digest, pushed_at };
            self.store.commit_tag(&tag, &lock).map_err(store)?;
        }
        drop((lock, publishing));
        // They were hashed as they came: whoever sends them need not do it again. Unless the store had a file of
        // this name and size before, which nobody has looked at.
        for (digest, waiting) in fresh {
            let there = std::fs::symlink_metadata(blobs.path(&digest));
            let written = waiting.blob.reopen().ok().and_then(|file| file.metadata().ok());
            if let (Ok(there), Some(written)) = (there, written)
                && Look::of(&there) == Look::of(&written)
            {
                self.hashed(&digest, &there);
            }
        }
        Ok(Put { digest, subject })
    }

    /// The blobs that a manifest needs, and the manifests of an index.
    fn needed(
        &self,
        repository: &Repository,
        manifest: &Manifest,
    ) -> Result<(Vec<BlobRef>, Vec<Digest>), Problem> {
        let mut needed: BTreeMap<Digest, BlobRef> = BTreeMap::new();
        let mut order = Vec::new();
        let mut need = |role: &str, blob: &Descriptor| {
            let blob = BlobRef { role: role.to_owned(), digest: blob.digest, size: blob.size };
            if needed.insert(blob.digest, blob.clone()).is_none() {
                order.push(blob);
            }
        };
        if let Some(config) = &manifest.config {
            self.there(config)?;
            need("config", config);
        }
        for layer in manifest.layers.iter().flatten().filter(|layer| !is_foreign(layer)) {
            self.there(layer)?;
            need("layer", layer);
        }
        let mut children = BTreeSet::new();
        for child in manifest.manifests.iter().flatten() {
            let which = Selector::Digest(child.digest);
            let found = self.manifest(repository, &which).map_err(|error| Problem::of_store(&error))?;
            if found.is_some() {
                children.insert(child.digest);
            } else {
                // An index may name blobs too.
                self.there(child)?;
                need("layer", child);
            }
        }
        Ok((order, children.into_iter().collect()))
    }

    /// Whether the blob is there, with the size that the manifest says.
    fn there(&self, blob: &Descriptor) -> Result<(), Problem> {
        match self.size(&blob.digest) {
            Some(size) if size == blob.size => Ok(()),
            Some(size) => {
                let text = format!("{} has {size} bytes, and the manifest says {}", blob.digest, blob.size);
                Err(Problem::bad("MANIFEST_INVALID", text))
            }
            None => Err(Problem::bad("MANIFEST_BLOB_UNKNOWN", format!("{} was not pushed", blob.digest))),
        }
    }

    /// Removes a manifest, or a tag. Blocks.
    pub(crate) fn delete(&self, repository: &Repository, which: &Selector) -> Result<(), Problem> {
        let store = |error| Problem::of_store(&error);
        let name = repository.as_str();
        let lock = self.store.lock_repository(name, &self.patience()).map_err(store)?;
        let gone = match which {
            Selector::Tag(tag) => self.store.remove_tag(name, tag.as_str(), &lock),
            Selector::Digest(digest) => self.store.remove_pushed(name, digest, &lock),
        };
        if gone.map_err(store)? {
            return Ok(());
        }
        if self.manifest(repository, which).map_err(store)?.is_some() {
            return Err(Problem::unsupported("this is an agent's image: `cargo xtask cache rm` removes it"));
        }
        Err(Problem::missing("MANIFEST_UNKNOWN", format!("{repository} has no manifest {which}")))
    }
}

/// Layers that a registry need not have (image-spec `layer.md`,
/// "Non-Distributable Layers", and Docker's older name for the same).
fn is_foreign(layer: &Descriptor) -> bool {
    layer.media_type.contains(".layer.nondistributable.") || layer.media_type.contains(".rootfs.foreign.")
}

/// The type that a manifest has, by its own words and its sender's.
pub(crate) fn media_type(manifest: &Manifest, content_type: Option<&str>) -> Result<String, Problem> {
    let said = content_type.map(|said| said.split(';').next().unwrap_or_default().trim());
    let said = said.filter(|said| !said.is_empty());
    let own = manifest.media_type.as_deref().filter(|own| !own.is_empty());
    match (own, said) {
        (Some(own), Some(said)) if own != said => Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "MANIFEST_INVALID",
            "its mediaType and its Content-Type are not the same",
        )),
        // It is said in a header to whoever pulls.
        (Some(kind), _) | (None, Some(kind)) => match is_media_type(kind) {
            true => Ok(kind.to_owned()),
            false => Err(Problem::bad("MANIFEST_INVALID", "its media type is none")),
        },
        (None, None) if manifest.manifests.is_some() => Ok(media::INDEX.into()),
        (None, None) => Ok(media::MANIFEST.into()),
    }
}

/// Whether this can be a media type in a header: 255 bytes at most that RFC 9110,
/// section 5.5, lets a value have.
fn is_media_type(kind: &str) -> bool {
    kind.len() <= 255 && kind.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_that_no_header_can_say_is_none() {
        let typed = |kind: &str| media_type(&Manifest::new(kind), None).map_err(|problem| problem.status);
        assert_eq!(typed(media::INDEX), Ok(media::INDEX.to_owned()));
        assert_eq!(typed(""), Ok(media::MANIFEST.to_owned()));
        for bad in ["a/b\nc: d", "a/b\r\n", "a/\u{1b}", "a/é", &"a".repeat(256)] {
            assert_eq!(typed(bad), Err(StatusCode::BAD_REQUEST), "{bad:?}");
        }
    }
}
