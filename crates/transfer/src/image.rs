//! An image as a tar that is `docker save` output and an OCI layout at once,
//! as Docker 25 and newer writes it: `docker load` and skopeo's
//! `docker-archive:` read `manifest.json`, `oci-archive:` reads `index.json`,
//! and both find the same blobs. Formats: moby's image specification v1.2
//! ("Combined Image JSON + Filesystem Changeset Format"), image-spec
//! `image-layout.md`.

use std::collections::HashSet;
use std::io::Write;

use serde_json::{Value, json};
use smolcellar_oci::{ImageConfig, image_manifest, media};
use smolcellar_store::{Digest, Reporter, Store};

use crate::copy::{TarWriter, Task};
use crate::error::{Result, TransferError};
use crate::export;
use crate::format::blob_path;

/// The task named in events.
const TASK: &str = "export";

/// An image that was exported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportedImage {
    /// Its ID.
    pub image: Digest,
    /// The digest of its manifest: its name in a registry.
    pub manifest: Digest,
    /// What it is called in the tar, completed to `NAME:TAG`.
    pub tag: Option<String>,
    /// Bytes of the whole tar.
    pub size: u64,
}

/// Writes the image to `out`: the same bytes for the same image and tag.
///
/// # Errors
/// [`TransferError::NoImage`] and [`TransferError::Tag`], before anything is
/// written; [`TransferError::Damaged`], and what was written is then worth
/// nothing.
pub fn export_image(
    store: &Store,
    image: &Digest,
    tag: Option<&str>,
    out: &mut dyn Write,
    reporter: &dyn Reporter,
) -> Result<ExportedImage> {
    let tag = tag.map(full_tag).transpose()?;
    let mut locks = Vec::new();
    let entry = export::image(store, image, &mut locks, reporter)?;
    let (config, layers) = entry.tarball().ok_or(TransferError::NoImage(*image))?;
    let damaged = |problem: String| TransferError::Damaged { path: store.blobs().path(image), problem };
    let parsed =
        ImageConfig::parse(&store.blobs().get(&config.digest)?).map_err(|e| damaged(e.to_string()))?;
    let pairs: Vec<_> = layers.iter().map(|layer| (layer.digest, layer.size)).collect();
    let manifest = image_manifest((config.digest, config.size), &pairs);
    let digest = Digest::of(&manifest);

    let mut descriptor = json!({
        "mediaType": media::MANIFEST,
        "digest": digest,
        "size": manifest.len(),
        "platform": { "architecture": parsed.architecture, "os": parsed.os },
    });
    if let Some(tag) = &tag {
        let short = tag.rsplit(':').next().unwrap_or_default();
        // As containerd and skopeo look for it.
        let annotations =
            json!({ "io.containerd.image.name": tag, "org.opencontainers.image.ref.name": short });
        descriptor["annotations"] = annotations;
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [descriptor],
    });
    let paths: Vec<String> = layers.iter().map(|layer| blob_path(&layer.digest)).collect();
    let saved = json!([{
        "Config": blob_path(&config.digest),
        "RepoTags": tag.as_ref().map(|tag| vec![tag]),
        "Layers": paths,
    }]);
    let text = |value: Value| value.to_string().into_bytes();

    let mut seen = HashSet::new();
    let blobs: Vec<_> = [config].into_iter().chain(layers).filter(|blob| seen.insert(blob.digest)).collect();
    let task = Task::begin(reporter, TASK, blobs.iter().map(|blob| blob.size).sum());
    let mut tar = TarWriter::new(out);
    tar.bytes("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    tar.bytes("index.json", &text(index))?;
    tar.bytes("manifest.json", &text(saved))?;
    tar.bytes(&blob_path(&digest), &manifest)?;
    for blob in blobs {
        tar.file(
            &blob_path(&blob.digest),
            &store.blobs().path(&blob.digest),
            blob.size,
            &blob.digest,
            &task,
        )?;
    }
    Ok(ExportedImage { image: *image, manifest: digest, tag, size: tar.finish()? })
}

/// `NAME[:TAG]` with its tag, `latest` by default (distribution's reference
/// grammar, as far as it matters to a loader).
fn full_tag(tag: &str) -> Result<String> {
    let bad = |problem| Err(TransferError::Tag { tag: tag.chars().take(100).collect(), problem });
    let (name, version) = match tag.rsplit_once(':') {
        // The colon of a port is before the last slash.
        Some((name, version)) if !version.contains('/') => (name, version),
        _ => (tag, "latest"),
    };
    let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let path = name.rsplit('/').next().unwrap_or_default();
    if tag.contains('@') {
        return bad("a digest is not chosen but computed; write it as NAME:TAG");
    }
    if name.len() > 255 || !name.split('/').all(|part| part.starts_with(|c: char| c.is_ascii_alphanumeric()))
    {
        return bad("write it as NAME:TAG, the name in words of letters and digits between slashes");
    }
    if !name.chars().all(|c| word(c) || matches!(c, '/' | ':'))
        || path.chars().any(|c| c.is_ascii_uppercase())
    {
        return bad("names are of lower-case letters, digits, '.', '_', '-' and '/'");
    }
    if version.is_empty()
        || version.len() > 128
        || !version.chars().all(word)
        || version.starts_with(['.', '-'])
    {
        return bad("its tag is of letters, digits, '.', '_' and '-'");
    }
    Ok(format!("{name}:{version}"))
}

#[cfg(test)]
mod tests {
    use super::full_tag;

    #[test]
    fn a_name_gets_its_tag_and_what_no_loader_would_take_is_refused() {
        for (tag, full) in [
            ("a", "a:latest"),
            ("a/b:1.0", "a/b:1.0"),
            ("host:5000/a", "host:5000/a:latest"),
            ("Host:5000/a:X", "Host:5000/a:X"),
        ] {
            assert_eq!(full_tag(tag).unwrap(), full);
        }
        for bad in ["", ":x", "a:", "A", "a b", "a@sha256:00", "/a", "a//b", "a:-x", "a\n"] {
            assert!(full_tag(bad).is_err(), "{bad:?}");
        }
    }
}
