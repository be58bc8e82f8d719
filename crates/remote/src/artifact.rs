//! How `.smolmachine` artifacts, and what points to them, lie in a registry.
//!
//! An artifact is smolvm's (crate `smolvm-registry`, what its `pack push`
//! writes and `pack pull` reads): an OCI manifest whose config is the
//! artifact's own manifest, and whose one layer is the whole file. What smolvm
//! puts behind an index of platforms is here under a tag of its own, which
//! smolvm reads as well: it takes one request to learn all of it. The receipt
//! is an annotation of the manifest, and so has the manifest's digest over it.
//!
//! Tags: `m-<32 hex of the image ID>-<32 hex of the recipe>` for an artifact,
//! for a tag has 128 characters at most and the receipt tells the rest;
//! `s-<32 hex of what an image build saw>-<32 hex of the recipe>` for a pointer
//! to the image of which there is an artifact of that recipe.

use std::collections::BTreeMap;

use smolcellar_oci::{Descriptor, Manifest, Tag, media};
use smolcellar_store::{Digest, MachineKey};
use smolcellar_transfer::MachineEntry;

use crate::text;

/// The media type of a whole `.smolmachine`.
pub const SMOLMACHINE: &str = "application/vnd.smolmachines.smolmachine.v1";
/// The media type of an artifact's own manifest, as a config.
pub const SMOLMACHINE_CONFIG: &str = "application/vnd.smolmachines.machine.config.v1+json";
/// The artifact type of a pointer.
pub const POINTER: &str = "application/vnd.smolcellar.pointer.v1";

/// The largest config that is read or pushed, in bytes.
pub const MAX_CONFIG: u64 = 1 << 20;
/// The largest receipt that is pushed, in bytes: a manifest with it stays well
/// below what every registry takes.
pub const MAX_RECEIPT: usize = 1 << 20;

const RECEIPT: &str = "smolcellar.receipt.v1";
const BUILT_AT: &str = "smolcellar.built-at";
const IMAGE: &str = "smolcellar.image";
const RECIPE: &str = "smolcellar.recipe";
const SEEN: &str = "smolcellar.seen";
const TITLE: &str = "org.opencontainers.image.title";
const MODE: &str = "com.smolmachines.pack.mode";

/// Hex digits of each half of a key that a tag has room for.
const HALF: usize = 32;

/// The tag of an artifact.
pub fn machine_tag(key: &MachineKey) -> Tag {
    tag(format!("m-{}-{}", &key.image.hex()[..HALF], &key.recipe.hex()[..HALF]))
}

/// The tag of a pointer.
pub fn pointer_tag(seen: &Digest, recipe: &Digest) -> Tag {
    tag(format!("s-{}-{}", &seen.hex()[..HALF], &recipe.hex()[..HALF]))
}

fn tag(text: String) -> Tag {
    // Hex digits and dashes, and short enough: always a tag.
    Tag::parse(&text).unwrap_or_else(|_| unreachable!("hex digits and dashes are a tag"))
}

/// What the name of a tag tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named<'a> {
    /// An artifact of ours: the first digits of its image ID and recipe.
    Machine(&'a str, &'a str),
    /// A pointer of ours: the first digits of what was seen and of the recipe.
    Pointer(&'a str, &'a str),
    /// Anything else.
    Other,
}

/// What the name of a tag tells.
pub fn named(tag: &Tag) -> Named<'_> {
    let hex = |text: &str| text.len() == HALF && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let halves = |kind: &str| {
        let halves = tag.as_str().strip_prefix(kind)?.split_once('-')?;
        (hex(halves.0) && hex(halves.1)).then_some(halves)
    };
    match (halves("m-"), halves("s-")) {
        (Some((image, recipe)), _) => Named::Machine(image, recipe),
        (None, Some((seen, recipe))) => Named::Pointer(seen, recipe),
        (None, None) => Named::Other,
    }
}

/// An artifact, as its manifest describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// The artifact's own manifest.
    pub config: Descriptor,
    /// The whole file.
    pub layer: Descriptor,
    /// Its receipt, which is of this very file; `None` if another packer's
    /// program pushed it.
    pub receipt: Option<MachineEntry>,
    /// When it was built, by whoever pushed it: seconds since 1970. For people.
    pub built_at: Option<u64>,
}

/// What a tag or a digest names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// An artifact.
    Machine(Box<Remote>),
    /// A pointer: what an image build saw, and the artifact that there is of it.
    Pointer {
        /// The digest of what it saw.
        seen: Digest,
        /// The image that it made, and the recipe.
        key: MachineKey,
    },
    /// One manifest per platform, as smolvm pushes.
    Index(Vec<Descriptor>),
}

/// Reads a manifest or an index.
///
/// # Errors
/// What is wrong with it, or that it is something else; fit to be shown.
pub fn parse(bytes: &[u8]) -> Result<Content, String> {
    read(bytes).map_err(|problem| text::problem(&problem))
}

fn read(bytes: &[u8]) -> Result<Content, String> {
    let manifest = Manifest::parse(bytes)?;
    if let Some(manifests) = manifest.manifests {
        return Ok(Content::Index(manifests));
    }
    let annotations = manifest.annotations.unwrap_or_default();
    if manifest.artifact_type.as_deref() == Some(POINTER) {
        let digest = |name: &str| {
            let text = annotations.get(name).ok_or_else(|| format!("it has no annotation {name}"))?;
            Digest::parse(text).map_err(|error| error.to_string())
        };
        let key = MachineKey { image: digest(IMAGE)?, recipe: digest(RECIPE)? };
        return Ok(Content::Pointer { seen: digest(SEEN)?, key });
    }
    let config = manifest.config.ok_or("it has no config")?;
    let mut layers = manifest.layers.unwrap_or_default();
    layers.retain(|layer| layer.media_type == SMOLMACHINE);
    // Of several, no two readers need take the same.
    let layer = match <[Descriptor; 1]>::try_from(layers) {
        Ok([layer]) => layer,
        Err(layers) if layers.is_empty() => return Err("it is no .smolmachine".into()),
        Err(layers) => return Err(format!("it has {} .smolmachines", layers.len())),
    };
    let receipt = annotations.get(RECEIPT).map(|text| MachineEntry::parse(text)).transpose();
    let receipt = receipt.map_err(|problem| format!("its receipt: {problem}"))?;
    if let Some(receipt) = &receipt
        && (receipt.sha256, receipt.size) != (layer.digest, layer.size)
    {
        return Err("its receipt is another file's".into());
    }
    let built_at = annotations.get(BUILT_AT).and_then(|seconds| seconds.parse().ok());
    Ok(Content::Machine(Box::new(Remote { config, layer, receipt, built_at })))
}

/// The manifest of an artifact. `config` is the artifact's own manifest, `mode`
/// what that calls its mode.
///
/// # Errors
/// That its receipt is too large for one.
pub fn manifest(entry: &MachineEntry, built_at: u64, config: &[u8], mode: &str) -> Result<Manifest, String> {
    let receipt = entry.to_text();
    if receipt.len() > MAX_RECEIPT {
        return Err(format!(
            "its receipt has {} bytes, of which a manifest takes {MAX_RECEIPT}",
            receipt.len()
        ));
    }
    let mut manifest = Manifest::new(media::MANIFEST);
    manifest.artifact_type = Some(SMOLMACHINE.to_owned());
    manifest.config = Some(Descriptor::of(SMOLMACHINE_CONFIG, config));
    manifest.layers = Some(vec![Descriptor::named(SMOLMACHINE, entry.sha256, entry.size)]);
    manifest.annotations = Some(annotations([
        (MODE, mode.to_owned()),
        (TITLE, entry.agent.clone()),
        (BUILT_AT, built_at.to_string()),
        (RECEIPT, receipt),
    ]));
    Ok(manifest)
}

/// The manifest of a pointer. Its config and its layer are [`EMPTY_BLOB`].
pub fn pointer(seen: &Digest, key: &MachineKey) -> Manifest {
    let mut manifest = Manifest::new(media::MANIFEST);
    manifest.artifact_type = Some(POINTER.to_owned());
    manifest.config = Some(Descriptor::of(media::EMPTY, EMPTY_BLOB));
    manifest.layers = Some(vec![Descriptor::of(media::EMPTY, EMPTY_BLOB)]);
    manifest.annotations = Some(annotations([
        (IMAGE, key.image.to_string()),
        (RECIPE, key.recipe.to_string()),
        (SEEN, seen.to_string()),
    ]));
    manifest
}

/// What an empty descriptor is of (image-spec `manifest.md`).
pub const EMPTY_BLOB: &[u8] = b"{}";

fn annotations<const N: usize>(pairs: [(&str, String); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use smolcellar_store::MachineReceipt;

    fn entry(cpus: u64, env: &str) -> MachineEntry {
        let inputs = BTreeMap::from([
            ("cpus".to_owned(), json!(cpus)),
            ("env".to_owned(), json!({ "A": env })),
            ("packer".to_owned(), json!("native")),
        ]);
        MachineEntry {
            image: Digest::of(b"config"),
            recipe: MachineReceipt::recipe_of(&inputs),
            inputs,
            size: 3,
            sha256: Digest::of(b"abc"),
            agent: "reviewer".into(),
        }
    }

    fn machine(bytes: &[u8]) -> Result<Remote, String> {
        match parse(bytes)? {
            Content::Machine(remote) => Ok(*remote),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn tags_tell_what_they_are_of() {
        let key = entry(1, "").key();
        let tag = machine_tag(&key);
        let (image, recipe) = (key.image.hex(), key.recipe.hex());
        assert_eq!(named(&tag), Named::Machine(&image[..32], &recipe[..32]));
        assert_eq!(named(&pointer_tag(&key.image, &key.recipe)), Named::Pointer(&image[..32], &recipe[..32]));
        for other in ["latest", "m-", "m-12-34", "s-12", "v1-linux-amd64", &tag.as_str().to_uppercase()] {
            assert_eq!(named(&Tag::parse(other).unwrap()), Named::Other, "{other}");
        }
    }

    #[test]
    fn a_pointer_reads_back() {
        let (seen, key) = (Digest::of(b"seen"), entry(1, "").key());
        let bytes = pointer(&seen, &key).to_bytes();
        assert_eq!(parse(&bytes).unwrap(), Content::Pointer { seen, key });
        let broken = String::from_utf8(bytes).unwrap().replace("smolcellar.seen", "smolcellar.sewn");
        assert!(parse(broken.as_bytes()).unwrap_err().contains(SEEN));
    }

    #[test]
    fn a_receipt_of_another_file_a_changed_one_and_two_layers_are_refused() {
        let entry = entry(2, "x");
        let good = manifest(&entry, 7, b"{}", "container").unwrap();
        let remote = machine(&good.to_bytes()).unwrap();
        assert_eq!((remote.receipt.as_ref(), remote.built_at), (Some(&entry), Some(7)));

        let mut other_layer = good.clone();
        other_layer.layers = Some(vec![Descriptor::of(SMOLMACHINE, b"xyz")]);
        assert!(machine(&other_layer.to_bytes()).unwrap_err().contains("another file"));

        let receipt = |change: &dyn Fn(&mut Value)| {
            let mut value: Value = serde_json::from_str(&entry.to_text()).unwrap();
            change(&mut value);
            let mut changed = good.clone();
            changed.annotations.as_mut().unwrap().insert(RECEIPT.into(), value.to_string());
            machine(&changed.to_bytes())
        };
        for field in ["image", "recipe", "inputs", "size", "sha256", "agent"] {
            assert!(receipt(&|value| drop(value.as_object_mut().unwrap().remove(field))).is_err(), "{field}");
        }
        assert!(receipt(&|value| value["inputs"]["cpus"] = json!(3)).unwrap_err().contains("recipe"));
        assert!(receipt(&|value| value["recipe"] = json!(Digest::of(b"r"))).unwrap_err().contains("recipe"));
        assert!(receipt(&|value| value["agent"] = json!("\u{1b}[2J")).is_err());
        assert!(receipt(&|value| value["more"] = json!(1)).is_err());

        let mut two = good.clone();
        two.layers.as_mut().unwrap().push(Descriptor::of(SMOLMACHINE, b"xyz"));
        assert!(machine(&two.to_bytes()).unwrap_err().contains("2 .smolmachines"));
    }

    #[test]
    fn what_smolvm_pushes_is_an_artifact_without_a_receipt_behind_an_index() {
        let index = json!({
            "schemaVersion": 2, "mediaType": media::INDEX,
            "manifests": [{"mediaType": media::MANIFEST, "digest": Digest::of(b"m"), "size": 1,
                           "platform": {"os": "linux", "architecture": "amd64"}}],
        });
        assert!(matches!(parse(index.to_string().as_bytes()), Ok(Content::Index(all)) if all.len() == 1));
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media::MANIFEST, "artifactType": SMOLMACHINE,
            "config": {"mediaType": SMOLMACHINE_CONFIG, "digest": Digest::of(b"c"), "size": 996},
            "layers": [{"mediaType": SMOLMACHINE, "digest": Digest::of(b"l"), "size": 5}],
            "annotations": {MODE: "container", TITLE: "probe:v1"},
        });
        let remote = machine(manifest.to_string().as_bytes()).unwrap();
        assert_eq!((remote.receipt, remote.layer.size), (None, 5));
        let image = json!({"schemaVersion": 2, "config": {"mediaType": media::CONFIG, "digest": Digest::of(b"c"), "size": 9},
            "layers": []});
        assert!(parse(image.to_string().as_bytes()).unwrap_err().contains("no .smolmachine"));
    }

    proptest! {
        #[test]
        fn an_artifact_reads_back(cpus: u64, env in "\\PC{0,20}", built_at: u64, config: Vec<u8>) {
            let entry = entry(cpus, &env);
            let remote = machine(&manifest(&entry, built_at, &config, "container").unwrap().to_bytes()).unwrap();
            prop_assert_eq!(remote.receipt, Some(entry));
            prop_assert_eq!(remote.built_at, Some(built_at));
            prop_assert_eq!(remote.config, Descriptor::of(SMOLMACHINE_CONFIG, &config));
        }

        #[test]
        fn a_changed_byte_is_refused_or_leaves_key_and_bytes_as_they_were(at: usize, with: u8) {
            let entry = entry(4, "y");
            let mut bytes = manifest(&entry, 7, b"{}", "container").unwrap().to_bytes();
            let at = at % bytes.len();
            bytes[at] = with;
            if let Ok(Content::Machine(remote)) = parse(&bytes)
                && let Some(found) = remote.receipt
            {
                // All that is not under the key's or the file's digest may differ: who it is for.
                prop_assert_eq!((found.recipe, found.inputs), (entry.recipe, entry.inputs));
                prop_assert_eq!((found.sha256, found.size), (remote.layer.digest, remote.layer.size));
            }
        }

        #[test]
        fn nothing_shown_of_a_manifest_steers_a_terminal(
            foreign in "[\u{0}-\u{1f}\u{7f}-\u{9f}\u{202e}a\"]{1,9}", which in 0..8usize,
        ) {
            let mut entry = entry(4, "y");
            entry.inputs.insert("platform".into(), json!(foreign));
            entry.recipe = MachineReceipt::recipe_of(&entry.inputs);
            let mut machine = manifest(&entry, 7, b"{}", "container").unwrap();
            let mut receipt: Value = serde_json::from_str(&entry.to_text()).unwrap();
            receipt[&foreign] = json!(foreign);
            let mut pointer = pointer(&Digest::of(b"s"), &entry.key());
            let index = json!({
                "schemaVersion": 2, "mediaType": media::INDEX,
                "manifests": [{"mediaType": media::MANIFEST, "digest": Digest::of(b"m"), "size": 1,
                               "platform": {"os": foreign, "architecture": foreign}}],
            });
            let mut annotate = |name: &str, with: String| {
                let manifest = if name == RECEIPT { &mut machine } else { &mut pointer };
                manifest.annotations.as_mut().unwrap().insert(name.into(), with);
                manifest.to_bytes()
            };
            let bytes = match which {
                0 => machine.to_bytes(),
                1 => annotate(RECEIPT, receipt.to_string()),
                2 => annotate(RECEIPT, foreign.clone()),
                3 => annotate(IMAGE, foreign.clone()),
                4 => annotate(SEEN, format!("sha256:{foreign}")),
                5 => index.to_string().into_bytes(),
                6 => json!({ "schemaVersion": 2, "mediaType": foreign, "layers": foreign }).to_string().into_bytes(),
                _ => foreign.clone().into_bytes(),
            };
            let listed = crate::cache_list::describe(&Tag::parse("t").unwrap(), &bytes);
            let shown: Vec<_> = [parse(&bytes).err(), listed.problem, listed.platform].into_iter().flatten().collect();
            prop_assert!(!shown.is_empty());
            for text in shown {
                prop_assert!(!text.chars().any(|c| c.is_control() || c == '\u{202e}'), "{text:?}");
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }
    }
}
