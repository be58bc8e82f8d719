//! The registry stage: the blobs get an OCI manifest, so that a registry can
//! serve them as an image.

use std::collections::BTreeMap;

use serde_json::json;
use smolcellar_oci::{ImageId, image_manifest};
use smolcellar_store::{Digest, StageReceipt, Store};

use crate::error::Result;
use crate::outcome::Observer;
use crate::tarball::blob;

/// The stage's name in the store.
pub(crate) const STAGE: &str = "registry";

/// Commits the manifest. It depends on nothing but the image.
pub(crate) fn commit(
    store: &Store,
    id: ImageId,
    config_size: u64,
    layers: &[(Digest, u64)],
    observer: &dyn Observer,
) -> Result<StageReceipt> {
    let began = std::time::Instant::now();
    let manifest = image_manifest((id.0, config_size), layers);
    let publishing = store.publishing(observer)?;
    let digest = store.blobs().put(&manifest, &publishing)?;
    let receipt = StageReceipt {
        schema: StageReceipt::SCHEMA,
        stage: STAGE.into(),
        image: id.0,
        inputs: BTreeMap::from([("image".into(), json!(id))]),
        blobs: vec![blob("manifest", digest, manifest.len() as u64)],
        built_at: crate::run::now(),
        millis: began.elapsed().as_millis() as u64,
    };
    store.commit_stage(&receipt, &publishing)?;
    Ok(receipt)
}
