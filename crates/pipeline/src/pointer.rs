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

/// 1. The first.
/// 2. With `engine` or `seen`: one that lies under another's name is noticed.
const IMAGE_SCHEMA: u64 = 2;

#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct ImagePointer {
    schema: u64,
    /// What the engine calls it; missing in 1, which is not believed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    engine: Option<Digest>,
    /// What a build saw: see [`crate::BuildFacts::fingerprint`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seen: Option<Digest>,
    image: Digest,
}

/// The artifact that the agent `name` of `project` was last built to, if it
/// ever was. Asks nobody but the store.
pub fn last_built(store: &Store, project: &Path, name: &str) -> Option<AgentPointer> {
    let pointer: AgentPointer = read(&agent_path(store, project, name), SCHEMA)?;
    // One that was moved here is of somebody else.
    (pointer.project == project && pointer.agent == name).then_some(pointer)
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
    write(store, &agent_path(store, project, name), &pointer, SCHEMA);
}

/// The image that an engine calls `id`, where that is no config digest.
pub(crate) fn image_of(store: &Store, id: &Digest) -> Option<ImageId> {
    let pointer: ImagePointer = read(&path(store, ENGINE, id), IMAGE_SCHEMA)?;
    (pointer.engine == Some(*id)).then_some(ImageId(pointer.image))
}

/// What engines call an image, where that is not its ID.
pub(crate) fn engine_ids(store: &Store, image: ImageId) -> Vec<Digest> {
    names(store, ENGINE).filter(|id| image_of(store, id) == Some(image)).collect()
}

/// What there are pointers of.
fn names(store: &Store, kind: &str) -> impl Iterator<Item = Digest> {
    let dir = store.bucket_dir(Bucket::Pointers).join(kind);
    let paths = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    paths.filter_map(|path| Digest::from_hex(path.file_stem()?.to_str()?).ok())
}

pub(crate) fn remember_image(store: &Store, id: &Digest, image: ImageId) {
    let pointer = ImagePointer { schema: IMAGE_SCHEMA, engine: Some(*id), seen: None, image: image.0 };
    write(store, &path(store, ENGINE, id), &pointer, IMAGE_SCHEMA);
}

/// The image that a build made of what it saw: [`crate::BuildFacts::fingerprint`].
pub(crate) fn built_from(store: &Store, fingerprint: &Digest) -> Option<ImageId> {
    let pointer: ImagePointer = read(&path(store, SEEN, fingerprint), IMAGE_SCHEMA)?;
    (pointer.seen == Some(*fingerprint)).then_some(ImageId(pointer.image))
}

/// What builds saw that are known to have made an image.
pub fn seen_of(store: &Store, image: ImageId) -> Vec<Digest> {
    names(store, SEEN).filter(|seen| built_from(store, seen) == Some(image)).collect()
}

pub(crate) fn remember_seen(store: &Store, fingerprint: &Digest, image: ImageId) {
    let pointer =
        ImagePointer { schema: IMAGE_SCHEMA, engine: None, seen: Some(*fingerprint), image: image.0 };
    write(store, &path(store, SEEN, fingerprint), &pointer, IMAGE_SCHEMA);
}

/// Removes pointers to images and blobs of which the store has nothing any
/// more, and those of projects that are gone. How many.
pub fn sweep_pointers(store: &Store, _: &Collector<'_>) -> usize {
    let gone = |path: &Path| match read::<Value>(path, IMAGE_SCHEMA) {
        // Damaged: no use to anybody. One of a newer version is not read at all.
        None => matches!(fsio::read_sealed::<Value>(path, IMAGE_SCHEMA), Err(StoreError::Damaged { .. })),
        Some(pointer) => match (pointer["project"].as_str(), pointer["blob"].as_str()) {
            (Some(project), _) => !Path::new(project).exists(),
            (None, Some(blob)) => {
                blob.parse::<Digest>().is_ok_and(|blob| !store.blobs().path(&blob).exists())
            }
            (None, None) => {
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
        ["agent", "build", ENGINE, SEEN, BLOB].into_iter().flat_map(|kind| files(kind).into_iter().flatten());
    let removed = paths.flatten().map(|entry| entry.path()).filter(|path| gone(path));
    removed.filter(|path| std::fs::remove_file(path).is_ok()).count()
}

const ENGINE: &str = "engine-image";
const SEEN: &str = "seen";
/// What the store itself keeps there: seals of blobs.
const BLOB: &str = "blob";

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

pub(crate) fn read<T: DeserializeOwned>(path: &Path, schema: u64) -> Option<T> {
    fsio::read_sealed(path, schema).ok().flatten()
}

/// Writes only what changed: a hit stays free of fsyncs. What cannot be
/// written is found out again next time.
pub(crate) fn write<T: Serialize + DeserializeOwned + PartialEq>(
    store: &Store,
    path: &Path,
    pointer: &T,
    schema: u64,
) {
    if read::<T>(path, schema).as_ref() != Some(pointer)
        && let Ok(scratch) = store.scratch()
    {
        let _ = fsio::write_sealed(&scratch, path, pointer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smolcellar_store::OpenOptions;

    #[test]
    fn a_pointer_that_lies_under_anothers_name_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("c"), OpenOptions::default()).unwrap();
        let key = MachineKey { image: Digest::of(b"i"), recipe: Digest::of(b"r") };
        let project = Path::new("/p");
        remember_built(&store, project, "a", &key);
        assert_eq!(last_built(&store, project, "a").map(|pointer| pointer.key()), Some(key));
        let [one, two] = [b"1", b"2"].map(|id| Digest::of(id));
        remember_image(&store, &one, ImageId(key.image));
        assert_eq!(image_of(&store, &one), Some(ImageId(key.image)));
        assert_eq!(engine_ids(&store, ImageId(key.image)), [one]);
        let moved = [
            (agent_path(&store, project, "a"), agent_path(&store, project, "b")),
            (path(&store, ENGINE, &one), path(&store, ENGINE, &two)),
        ];
        for (from, to) in moved {
            let bytes = std::fs::read(from).unwrap();
            fsio::write_atomic(&store.scratch().unwrap(), &to, &bytes).unwrap();
        }
        assert_eq!(last_built(&store, project, "b"), None);
        assert_eq!(image_of(&store, &two), None);
    }
}
