//! Writing an OCI image manifest.

use serde_json::{Value, json};
use smolcellar_store::Digest;

use crate::descriptor::media;

/// The manifest of an image whose layers are uncompressed, so that their
/// digests are their diff IDs: the same bytes for the same image. Digests come
/// with sizes in bytes; layers lowest first.
pub fn image_manifest(config: (Digest, u64), layers: &[(Digest, u64)]) -> Vec<u8> {
    let descriptor = |media_type: &str, (digest, size): (Digest, u64)| -> Value {
        json!({ "mediaType": media_type, "digest": digest.to_string(), "size": size })
    };
    let layers: Vec<Value> = layers.iter().map(|layer| descriptor(media::LAYER, *layer)).collect();
    json!({
        "schemaVersion": 2,
        "mediaType": media::MANIFEST,
        "config": descriptor(media::CONFIG, config),
        "layers": layers,
    })
    .to_string()
    .into_bytes()
}
