//! Which repository of a registry has which blob: remembered from pushes, so
//! that the next repository there takes its blobs from it. A pointer: it saves
//! work and proves nothing. The registry says whether it is so.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use smolcellar_oci::Repository;
use smolcellar_store::{Bucket, Digest, Store, fsio};

const SCHEMA: u64 = 1;
/// How many blobs are remembered per registry, the latest: some 100 KiB.
const MOST: usize = 1000;

/// What was pushed to one registry, latest first.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Mounts {
    schema: u64,
    /// `HOST` or `HOST:PORT`.
    registry: String,
    blobs: Vec<(Digest, Repository)>,
}

impl Mounts {
    /// What is remembered; nothing if that is lost or damaged.
    pub(crate) fn read(store: &Store, registry: &str) -> Self {
        let known = fsio::read_sealed::<Self>(&path(store, registry), SCHEMA).ok().flatten();
        let own = known.filter(|known| known.registry == registry);
        own.unwrap_or_else(|| Self { schema: SCHEMA, registry: registry.to_owned(), blobs: Vec::new() })
    }

    /// Where a blob may be.
    pub(crate) fn of(&self, digest: &Digest) -> Vec<Repository> {
        let found = self.blobs.iter().filter(|(known, _)| known == digest);
        found.map(|(_, repository)| repository.clone()).collect()
    }

    /// Remembers that a repository has these. What cannot be written is not
    /// remembered: the next push uploads.
    pub(crate) fn remember(mut self, store: &Store, repository: &Repository, digests: &[Digest]) {
        let known = |digest: &Digest| self.blobs.iter().any(|(d, r)| d == digest && r == repository);
        if digests.iter().all(known) {
            return;
        }
        self.blobs.retain(|(digest, r)| r != repository || !digests.contains(digest));
        self.blobs.splice(0..0, digests.iter().map(|digest| (*digest, repository.clone())));
        self.blobs.truncate(MOST);
        if let Ok(scratch) = store.scratch() {
            let _ = fsio::write_sealed(&scratch, &path(store, &self.registry), &self);
        }
    }
}

fn path(store: &Store, registry: &str) -> PathBuf {
    let name = Digest::of(registry.as_bytes()).hex();
    store.bucket_dir(Bucket::Pointers).join("pushed").join(format!("{name}.json"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use smolcellar_store::OpenOptions;

    #[test]
    fn blobs_are_remembered_per_registry_latest_first_and_not_without_end() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("c"), OpenOptions::default()).unwrap();
        let [a, b] = ["a", "team/b"].map(|name| Repository::parse(name).unwrap());
        let digest = Digest::of(b"blob");
        Mounts::read(&store, "h.x").remember(&store, &a, &[digest]);
        Mounts::read(&store, "h.x").remember(&store, &b, &[digest]);
        assert_eq!(Mounts::read(&store, "h.x").of(&digest), [b, a.clone()]);
        assert_eq!(Mounts::read(&store, "h.y").of(&digest), []);
        let many: Vec<_> = (0..MOST as u32).map(|n| Digest::of(&n.to_le_bytes())).collect();
        Mounts::read(&store, "h.x").remember(&store, &a, &many);
        let after = Mounts::read(&store, "h.x");
        assert_eq!((after.blobs.len(), after.of(&digest).len()), (MOST, 0));
        // Another registry's, moved here, is not believed.
        std::fs::copy(path(&store, "h.x"), path(&store, "h.y")).unwrap();
        assert_eq!(Mounts::read(&store, "h.y").blobs.len(), 0);
    }
}
