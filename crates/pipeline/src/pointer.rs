//! Pointers: look-ups that save work and prove nothing. A lost or damaged one
//! costs a question to the engine, no more.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use smolcellar_oci::ImageId;
use smolcellar_store::{Bucket, Collector, Digest, MachineKey, Store, StoreError, fsio};

const SCHEMA: u64 = 1;

/// Where an agent's last build went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentPointer {
    schema: u64,
    /// The agent's name.
    pub agent: String,
    /// The folder whose configuration names it.
    pub project: PathBuf,
    /// The image.
    pub image: Digest,
    /// The recipe.
    pub recipe: Digest,
}

impl AgentPointer {
    /// The artifact's key.
    pub fn key(&self) -> MachineKey {
        MachineKey { image: self.image, recipe: self.recipe }
    }
}

#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct ImagePointer {
    schema: u64,
    image: Digest,
}

/// The artifact that the agent `name` of `project` was last built to, if it
/// ever was. Asks nobody but the store.
pub fn last_built(store: &Store, project: &Path, name: &str) -> Option<AgentPointer> {
    read(&agent_path(store, project, name))
}

/// Makes an artifact what the agent `name` of `project` was last built to. What
/// cannot be written is not remembered: the next build finds it out again.
pub fn remember_built(store: &Store, project: &Path, name: &str, key: &MachineKey) {
    let pointer = AgentPointer {
        schema: SCHEMA,
        agent: name.to_owned(),
        project: project.to_owned(),
        image: key.image,
        recipe: key.recipe,
    };
    write(store, &agent_path(store, project, name), &pointer);
}

/// The image that an engine calls `id`, where that is no config digest.
pub(crate) fn image_of(store: &Store, id: &Digest) -> Option<ImageId> {
    read::<ImagePointer>(&path(store, ENGINE, id)).map(|pointer| ImageId(pointer.image))
}

pub(crate) fn remember_image(store: &Store, id: &Digest, image: ImageId) {
    write(store, &path(store, ENGINE, id), &ImagePointer { schema: SCHEMA, image: image.0 });
}

/// The image that a build made of what it saw: [`crate::BuildFacts::fingerprint`].
pub(crate) fn built_from(store: &Store, fingerprint: &Digest) -> Option<ImageId> {
    read::<ImagePointer>(&path(store, SEEN, fingerprint)).map(|pointer| ImageId(pointer.image))
}

pub(crate) fn remember_seen(store: &Store, fingerprint: &Digest, image: ImageId) {
    write(store, &path(store, SEEN, fingerprint), &ImagePointer { schema: SCHEMA, image: image.0 });
}

/// Removes pointers to images of which the store has nothing any more, and
/// those of projects that are gone. How many.
pub fn sweep_pointers(store: &Store, _: &Collector<'_>) -> usize {
    let gone = |path: &Path| match read::<Value>(path) {
        // Damaged: no use to anybody. One of a newer version is not read at all.
        None => matches!(fsio::read_sealed::<Value>(path, SCHEMA), Err(StoreError::Damaged { .. })),
        Some(pointer) => match pointer["project"].as_str() {
            Some(project) => !Path::new(project).exists(),
            None => {
                let image = pointer["image"].as_str().and_then(|image| image.parse::<Digest>().ok());
                image.is_some_and(|image| {
                    let known = |bucket| store.bucket_dir(bucket).join(image.hex()).exists();
                    !known(Bucket::Images) && !known(Bucket::Machines)
                })
            }
        },
    };
    let files = |kind: &str| std::fs::read_dir(store.bucket_dir(Bucket::Pointers).join(kind));
    let paths =
        ["agent", "build", ENGINE, SEEN].into_iter().flat_map(|kind| files(kind).into_iter().flatten());
    let removed = paths.flatten().map(|entry| entry.path()).filter(|path| gone(path));
    removed.filter(|path| std::fs::remove_file(path).is_ok()).count()
}

const ENGINE: &str = "engine-image";
const SEEN: &str = "seen";

/// What an agent is looked up by.
pub(crate) fn agent_key(project: &Path, name: &str) -> Digest {
    use std::os::unix::ffi::OsStrExt;
    Digest::of(&[project.as_os_str().as_bytes(), &[0], name.as_bytes()].concat())
}

fn agent_path(store: &Store, project: &Path, name: &str) -> PathBuf {
    path(store, "agent", &agent_key(project, name))
}

pub(crate) fn path(store: &Store, kind: &str, key: &Digest) -> PathBuf {
    store.bucket_dir(Bucket::Pointers).join(kind).join(format!("{}.json", key.hex()))
}

pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    fsio::read_sealed(path, SCHEMA).ok().flatten()
}

/// Writes only what changed: a hit stays free of fsyncs. What cannot be
/// written is found out again next time.
pub(crate) fn write<T: Serialize + DeserializeOwned + PartialEq>(store: &Store, path: &Path, pointer: &T) {
    if read::<T>(path).as_ref() != Some(pointer)
        && let Ok(scratch) = store.scratch()
    {
        let _ = fsio::write_sealed(&scratch, path, pointer);
    }
}
