//! A bare `.smolmachine`, as smolvm's own packer or another's writes it.
//!
//! It says what it runs, not which image it was made of: whoever imports it
//! does. Its recipe is that of its own bytes and of what its manifest says.

use std::collections::BTreeMap;
use std::io::Read;

use serde_json::{Value, json};
use smolcellar_oci::ImageId;
use smolcellar_pack::Artifact;
use smolcellar_store::{BlobWriter, Digest, MachineReceipt, Reporter, StagedBlob, Store};

use crate::copy;
use crate::error::Result;
use crate::format::{FOREIGN, MachineEntry};
use crate::import::Imported;
use crate::publish::{self, Staged};

/// Stages all of `input`, checks it, and publishes it as an artifact of `image`.
pub(crate) fn import(
    store: &Store,
    input: &mut dyn Read,
    what: &str,
    image: ImageId,
    agent: Option<&str>,
    reporter: &dyn Reporter,
) -> Result<Imported> {
    let dir = store.temp_dir()?;
    let mut writer = BlobWriter::create(&dir)?;
    let path = writer.path().to_owned();
    copy::all(input, &mut writer, what, &path)?;
    let staged = Staged { path, blob: writer.finish(), sum: None };
    publish(store, &staged, what, image, agent, reporter)
}

/// Publishes a `.smolmachine` that another packer wrote as an artifact of
/// `image`, whose ID the caller vouches for. `sum` is what a
/// [`smolcellar_pack::Sum`] told of the file.
///
/// # Errors
/// [`crate::TransferError::Invalid`] if it is not a whole one;
/// [`crate::TransferError::Store`].
pub fn publish_foreign(
    store: &Store,
    what: &str,
    image: ImageId,
    agent: Option<&str>,
    blob: StagedBlob,
    sum: Option<u32>,
    reporter: &dyn Reporter,
) -> Result<Imported> {
    let staged = Staged { path: blob.path().to_owned(), blob, sum };
    publish(store, &staged, what, image, agent, reporter)
}

fn publish(
    store: &Store,
    staged: &Staged,
    what: &str,
    image: ImageId,
    agent: Option<&str>,
    reporter: &dyn Reporter,
) -> Result<Imported> {
    let artifact = publish::artifact(what, "the artifact", staged)?;
    let sha256 = staged.blob.digest()?;
    let inputs = inputs(&artifact, &sha256);
    let entry = MachineEntry {
        image: image.0,
        recipe: MachineReceipt::recipe_of(&inputs),
        inputs,
        size: staged.blob.size,
        sha256,
        agent: agent.unwrap_or(FOREIGN).to_owned(),
    };
    publish::machine(store, what, &entry, staged, reporter)
}

fn inputs(artifact: &Artifact, sha256: &Digest) -> BTreeMap<String, Value> {
    let manifest = &artifact.manifest;
    let pairs = [
        ("cmd", json!(manifest.cmd)),
        ("cpus", json!(manifest.cpus)),
        ("entrypoint", json!(manifest.entrypoint)),
        ("env", json!(manifest.env)),
        ("host-platform", json!(manifest.host_platform)),
        ("memory-mib", json!(manifest.mem)),
        ("packer", json!(FOREIGN)),
        ("platform", json!(manifest.platform)),
        ("sha256", json!(sha256)),
        ("smolvm-version", json!(manifest.smolvm_version)),
        ("user", json!(manifest.user)),
        ("workdir", json!(manifest.workdir)),
    ];
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
