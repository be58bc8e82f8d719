//! Finding the image among an archive's parts.
//!
//! Two conventions: `manifest.json` as `docker save` writes it (alone up to
//! engine 24, beside an OCI layout from 25 on), and the OCI image layout
//! (image-spec `image-layout.md`): `index.json` and `blobs/sha256/`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use smolcellar_store::Digest;

use crate::archive::{Image, Part, StagedLayer, Wanted};
use crate::config::{ImageConfig, Platform};
use crate::error::{OciError, Result};
use crate::image_id::ImageId;

/// The parts of an archive, by path.
pub(crate) trait Parts {
    /// A JSON part; `None` if there is none of that name.
    fn small(&mut self, path: &str) -> Result<Option<Vec<u8>>>;
    /// A part that is a layer, staged.
    fn layer(&mut self, path: &str) -> Result<Option<Part>>;
    /// What else the archive may be; empty, or starts with a space.
    fn hint(&self) -> &'static str;
}

/// An entry of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

/// A content descriptor (image-spec `descriptor.md`).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    size: u64,
    platform: Option<DescriptorPlatform>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct DescriptorPlatform {
    #[serde(default)]
    os: String,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// A layer as the manifest names it.
struct LayerRef {
    path: String,
    /// The digest of the part's bytes, where the manifest gives one.
    raw: Option<Digest>,
}

/// An image that was found, before its layers are looked at.
struct Candidate {
    names: Vec<String>,
    id: ImageId,
    config: Vec<u8>,
    parsed: ImageConfig,
    layers: Vec<LayerRef>,
}

/// How many images an archive may name: each takes memory until one is chosen.
const MAX_IMAGES: usize = 16;

/// How many manifests an index may name: platforms, with provenance beside each.
const MAX_MANIFESTS: usize = 64;

/// How deep an index may refer to indexes.
const MAX_DEPTH: usize = 3;

/// Finds the wanted image and its layers, and checks its config.
pub(crate) fn resolve(parts: &mut dyn Parts, wanted: &Wanted) -> Result<Image> {
    let chosen = find(parts, wanted)?;
    let layers = find_layers(parts, &chosen, &wanted.what)?;
    let what = wanted.what.clone();
    Ok(Image { id: chosen.id, config: chosen.config, parsed: chosen.parsed, layers, what })
}

/// Finds the wanted image and checks its config only.
pub(crate) fn identify(parts: &mut dyn Parts, wanted: &Wanted) -> Result<ImageId> {
    find(parts, wanted).map(|chosen| chosen.id)
}

fn find(parts: &mut dyn Parts, wanted: &Wanted) -> Result<Candidate> {
    let what = wanted.what.as_str();
    let mut candidates = Vec::new();
    if let Some(json) = parts.small("manifest.json")? {
        if json.trim_ascii_start().starts_with(b"{") {
            let problem = "its manifest.json is a registry's: this looks like skopeo's `dir:`".into();
            let hint = "; copy it to `oci:` or `docker-archive:`";
            return Err(OciError::NotAnImage { what: what.into(), problem, hint });
        }
        let saved = parse::<Vec<SavedImage>>(&json, what, "manifest.json")?;
        if saved.len() > MAX_IMAGES {
            let problem = format!("it names {} images, more than {MAX_IMAGES}", saved.len());
            return Err(OciError::Invalid { what: what.into(), problem });
        }
        for saved in saved {
            candidates.push(saved_image(parts, saved, what)?);
        }
    }
    if candidates.is_empty()
        && let Some(json) = parts.small("index.json")?
    {
        let index: Index = parse(&json, what, "index.json")?;
        walk(parts, index, what, MAX_DEPTH, &mut candidates)?;
    }
    choose(candidates, parts.hint(), wanted)
}

fn choose(candidates: Vec<Candidate>, hint: &'static str, wanted: &Wanted) -> Result<Candidate> {
    let what = wanted.what.as_str();
    if candidates.is_empty() {
        let problem =
            "it has no manifest.json and no index.json, or they name no image; it may be truncated".into();
        return Err(OciError::NotAnImage { what: what.into(), problem, hint });
    }
    let platforms: Vec<String> = candidates.iter().map(|c| c.parsed.platform().to_string()).collect();
    let fits = |candidate: &Candidate| accepts(&wanted.platform, &candidate.parsed);
    let mut fitting: Vec<Candidate> = candidates.into_iter().filter(fits).collect();
    fitting.sort_by_key(|candidate| candidate.id);
    fitting.dedup_by_key(|candidate| candidate.id);
    if fitting.len() > 1 {
        let names = fitting.iter().map(|c| c.names.first().cloned().unwrap_or_else(|| c.id.to_string()));
        let names = names.collect::<Vec<_>>().join(", ");
        return Err(OciError::Ambiguous { what: what.into(), count: fitting.len(), names });
    }
    let Some(chosen) = fitting.pop() else {
        let found = platforms.join(", ");
        return Err(OciError::Platform { wanted: wanted.platform.clone(), found });
    };
    match wanted.id {
        Some(id) if id != chosen.id => Err(OciError::Mismatch {
            what: what.into(),
            part: "the image config".into(),
            expected: id.0,
            actual: chosen.id.0,
        }),
        _ => Ok(chosen),
    }
}

/// Holds an image's platform against the wanted one.
///
/// # Errors
/// [`OciError::Platform`].
pub fn check_platform(wanted: &Platform, config: &ImageConfig) -> Result<()> {
    match accepts(wanted, config) {
        true => Ok(()),
        false => Err(OciError::Platform { wanted: wanted.clone(), found: config.platform().to_string() }),
    }
}

/// Some importers leave the platform empty; then it is whatever is wanted.
fn accepts(wanted: &Platform, config: &ImageConfig) -> bool {
    (config.os.is_empty() && config.architecture.is_empty()) || wanted.accepts(&config.platform())
}

fn saved_image(parts: &mut dyn Parts, saved: SavedImage, what: &str) -> Result<Candidate> {
    let config = need(parts.small(&saved.config)?, what, &saved.config)?;
    // Both layouts name the config by its digest: `<hex>.json`, `blobs/sha256/<hex>`.
    let stem = saved.config.rsplit('/').next().unwrap_or_default().trim_end_matches(".json");
    if let Ok(expected) = Digest::from_hex(stem) {
        check(&config, &expected, what, &saved.config)?;
    }
    let raw = |path: &str| path.strip_prefix("blobs/sha256/").and_then(|hex| Digest::from_hex(hex).ok());
    let layers = saved.layers.unwrap_or_default();
    let layers = layers.into_iter().map(|path| LayerRef { raw: raw(&path), path }).collect();
    candidate(saved.repo_tags.unwrap_or_default(), config, layers, what)
}

/// Follows an index to the manifests of images.
fn walk(
    parts: &mut dyn Parts,
    index: Index,
    what: &str,
    depth: usize,
    found: &mut Vec<Candidate>,
) -> Result<()> {
    let lonely = index.manifests.len() == 1;
    if index.manifests.len() > MAX_MANIFESTS {
        let problem =
            format!("an index names {} manifests, more than {MAX_MANIFESTS}", index.manifests.len());
        return Err(OciError::Invalid { what: what.into(), problem });
    }
    for descriptor in index.manifests {
        let annotation = |name: &str| descriptor.annotations.as_ref().and_then(|all| all.get(name)).cloned();
        // BuildKit keeps provenance beside images, as manifests of no platform.
        if annotation("vnd.docker.reference.type").is_some()
            || descriptor.platform.as_ref().is_some_and(|platform| platform.os == "unknown")
        {
            continue;
        }
        let path = blob_path(&descriptor.digest);
        let Some(json) = parts.small(&path)? else {
            // An index may list platforms that the archive does not carry.
            if lonely {
                return Err(missing(what, &path));
            }
            continue;
        };
        check(&json, &descriptor.digest, what, &path)?;
        if is_index(&descriptor, &json) {
            if depth == 0 {
                return Err(invalid(what, "its index is nested too deeply"));
            }
            walk(parts, parse(&json, what, &path)?, what, depth - 1, found)?;
            continue;
        }
        let manifest: Manifest = parse(&json, what, &path)?;
        let config_path = blob_path(&manifest.config.digest);
        let config = need(parts.small(&config_path)?, what, &config_path)?;
        check(&config, &manifest.config.digest, what, &config_path)?;
        if config.len() as u64 != manifest.config.size {
            return Err(invalid(what, &format!("{config_path} does not have the size its manifest says")));
        }
        let layers = manifest.layers.iter();
        let layers = layers
            .map(|layer| LayerRef { path: blob_path(&layer.digest), raw: Some(layer.digest) })
            .collect();
        let names = annotation("org.opencontainers.image.ref.name").into_iter().collect();
        found.push(candidate(names, config, layers, what)?);
    }
    Ok(())
}

fn is_index(descriptor: &Descriptor, json: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Shape {
        manifests: Option<serde::de::IgnoredAny>,
    }
    matches!(
        descriptor.media_type.as_str(),
        "application/vnd.oci.image.index.v1+json"
            | "application/vnd.docker.distribution.manifest.list.v2+json"
    ) || (descriptor.media_type.is_empty()
        && serde_json::from_slice::<Shape>(json).is_ok_and(|shape| shape.manifests.is_some()))
}

fn candidate(names: Vec<String>, config: Vec<u8>, layers: Vec<LayerRef>, what: &str) -> Result<Candidate> {
    let parsed =
        ImageConfig::parse(&config).map_err(|error| invalid(what, &format!("its image config: {error}")))?;
    if parsed.rootfs.diff_ids.len() != layers.len() {
        let (have, want) = (layers.len(), parsed.rootfs.diff_ids.len());
        return Err(invalid(what, &format!("its manifest names {have} layers, its config {want}")));
    }
    Ok(Candidate { names, id: ImageId::of_config(&config), config, parsed, layers })
}

fn find_layers(parts: &mut dyn Parts, image: &Candidate, what: &str) -> Result<Vec<StagedLayer>> {
    let mut layers = Vec::new();
    for (layer, diff_id) in image.layers.iter().zip(&image.parsed.rootfs.diff_ids) {
        let part = need(parts.layer(&layer.path)?, what, &layer.path)?;
        layers.push(StagedLayer {
            blob: part.blob,
            diff_id: *diff_id,
            path: layer.path.clone(),
            stored: (layer.raw, part.raw),
        });
    }
    Ok(layers)
}

fn check(bytes: &[u8], expected: &Digest, what: &str, path: &str) -> Result<()> {
    let actual = Digest::of(bytes);
    if actual == *expected {
        return Ok(());
    }
    Err(OciError::Mismatch { what: what.into(), part: path.into(), expected: *expected, actual })
}

fn parse<T: DeserializeOwned>(json: &[u8], what: &str, path: &str) -> Result<T> {
    serde_json::from_slice(json).map_err(|error| invalid(what, &format!("{path}: {error}")))
}

fn need<T>(part: Option<T>, what: &str, path: &str) -> Result<T> {
    part.ok_or_else(|| missing(what, path))
}

fn missing(what: &str, path: &str) -> OciError {
    invalid(what, &format!("it names '{path}', which it does not hold; it may be truncated"))
}

fn invalid(what: &str, problem: &str) -> OciError {
    OciError::Invalid { what: what.into(), problem: problem.into() }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}
