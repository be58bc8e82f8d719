//! Pointers: look-ups that save work and prove nothing. A lost or damaged one
//! costs a question to the engine, no more.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use smolcellar_oci::ImageId;
use smolcellar_store::{Bucket, Digest, MachineKey, Store, fsio};

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
struct EngineImage {
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
    read::<EngineImage>(&engine_path(store, id)).map(|pointer| ImageId(pointer.image))
}

pub(crate) fn remember_image(store: &Store, id: &Digest, image: ImageId) {
    write(store, &engine_path(store, id), &EngineImage { schema: SCHEMA, image: image.0 });
}

fn agent_path(store: &Store, project: &Path, name: &str) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    let key = Digest::of(&[project.as_os_str().as_bytes(), &[0], name.as_bytes()].concat());
    store.bucket_dir(Bucket::Pointers).join("agent").join(format!("{}.json", key.hex()))
}

fn engine_path(store: &Store, id: &Digest) -> PathBuf {
    store.bucket_dir(Bucket::Pointers).join("engine-image").join(format!("{}.json", id.hex()))
}

fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    fsio::read_sealed(path, SCHEMA).ok().flatten()
}

/// Writes only what changed: a hit stays free of fsyncs. What cannot be
/// written is found out again next time.
fn write<T: Serialize + DeserializeOwned + PartialEq>(store: &Store, path: &Path, pointer: &T) {
    if read::<T>(path).as_ref() != Some(pointer)
        && let Ok(scratch) = store.scratch()
    {
        let _ = fsio::write_sealed(&scratch, path, pointer);
    }
}
