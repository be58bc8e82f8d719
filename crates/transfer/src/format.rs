//! The format of an export.
//!
//! A plain tar. Every header is ustar, of a file with mode 0444, owner and
//! group 0 without names, time 0; files over 8 GiB have a pax header with their
//! size before it. The same entries are the same bytes, so a reader knows
//! each header before it reads it and accepts no other:
//!
//! ```text
//! smolcellar-export.json                           Header, sealed JSON
//! blobs/sha256/<64 hex>                            per image, in the order of its receipts;
//!                                                  a blob of several images once, with the first
//! machines/<image-id>/<recipe>.smolmachine         per artifact, in the header's order
//! two zero blocks
//! ```
//!
//! The receipts are without `built_at` and `millis`: the importer's store has
//! the time of the import.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use smolcellar_store::{BlobRef, Digest, MachineKey, MachineReceipt, StageReceipt, fsio};

/// The newest format known.
///
/// 1. The first.
pub const SCHEMA: u64 = 1;

/// The name of the first file.
pub(crate) const HEADER: &str = "smolcellar-export.json";

/// Bytes of a tar block.
pub(crate) const BLOCK: usize = 512;

/// What ends a tar.
pub(crate) const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// The largest file, in bytes: what Linux can hold (loff_t), rounded down so
/// that sizes can be added up without overflow.
const MAX_SIZE: u64 = 1 << 48;

/// The largest JSON part of an image, in bytes, as for archives.
const MAX_IMAGE_JSON: u64 = 8 << 20;

/// The largest value of ustar's size field, in bytes.
const MAX_OCTAL: u64 = 0o777_7777_7777;

/// What an export holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Header {
    pub(crate) schema: u64,
    /// Sorted by ID.
    pub(crate) images: Vec<ImageEntry>,
    /// Sorted by key.
    pub(crate) machines: Vec<MachineEntry>,
}

/// An image: its stage receipts, without what differs from run to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ImageEntry {
    pub(crate) image: Digest,
    /// "tarball", and "registry" if there is a manifest.
    pub(crate) stages: Vec<StageEntry>,
}

/// A stage receipt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StageEntry {
    pub(crate) stage: String,
    pub(crate) inputs: BTreeMap<String, Value>,
    pub(crate) blobs: Vec<BlobRef>,
}

/// A machine receipt on its way: without what differs from store to store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineEntry {
    /// The image ID.
    pub image: Digest,
    /// The recipe: [`MachineReceipt::recipe_of`] the inputs.
    pub recipe: Digest,
    /// Every input but the image, by name and value.
    pub inputs: BTreeMap<String, Value>,
    /// The artifact's size in bytes.
    pub size: u64,
    /// The artifact's SHA-256.
    pub sha256: Digest,
    /// The agent that it was first built for. For people.
    pub agent: String,
}

impl Header {
    /// As the first file has it.
    pub(crate) fn to_bytes(&self) -> smolcellar_store::Result<Vec<u8>> {
        fsio::seal(self, Path::new(HEADER))
    }

    /// What an importer must read: [`Header::to_bytes`], checked for everything
    /// that can be told without the files.
    pub(crate) fn parse(bytes: &[u8], what: &str) -> Result<Self, HeaderError> {
        use smolcellar_store::StoreError;
        let header: Self = fsio::unseal(bytes, Path::new(what), SCHEMA).map_err(|error| match error {
            StoreError::Damaged { problem, .. } => HeaderError::Bad(shown(&problem)),
            other => HeaderError::Store(other),
        })?;
        header.check().map_err(HeaderError::Bad)?;
        // One way to write it: whoever imports and exports again has the same file.
        match header.to_bytes() {
            Ok(canonical) if canonical == bytes => Ok(header),
            Ok(_) => Err(HeaderError::Bad("it is not written as an export is".into())),
            Err(error) => Err(HeaderError::Store(error)),
        }
    }

    fn check(&self) -> Result<(), String> {
        if !self.images.windows(2).all(|pair| pair[0].image < pair[1].image)
            || !self.machines.windows(2).all(|pair| pair[0].key() < pair[1].key())
        {
            return Err("its entries are not in order, or one is there twice".into());
        }
        let mut sizes = HashMap::new();
        for image in &self.images {
            image.check().map_err(|problem| format!("the image {}: {problem}", image.image.short()))?;
            for blob in image.blobs() {
                if *sizes.entry(blob.digest).or_insert(blob.size) != blob.size {
                    return Err(format!("the blob {} has two sizes", blob.digest));
                }
            }
        }
        for machine in &self.machines {
            machine.check().map_err(|problem| format!("the artifact {}: {problem}", machine.key()))?;
        }
        Ok(())
    }

    /// The images' blobs in the order of their files, each once, with the
    /// number of its image.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = (usize, &BlobRef)> {
        let mut seen = HashSet::new();
        self.images
            .iter()
            .enumerate()
            .flat_map(|(number, image)| image.blobs().map(move |blob| (number, blob)))
            .filter(move |(_, blob)| seen.insert(blob.digest))
    }

    /// Bytes of all files after the header.
    pub(crate) fn bytes(&self) -> u64 {
        let blobs = self.blobs().map(|(_, blob)| blob.size);
        blobs.chain(self.machines.iter().map(|machine| machine.size)).fold(0, u64::saturating_add)
    }
}

impl ImageEntry {
    /// The blobs of all stages in their order.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &BlobRef> {
        self.stages.iter().flat_map(|stage| &stage.blobs)
    }

    /// The stage that has the config and the layers.
    pub(crate) fn tarball(&self) -> Option<(&BlobRef, &[BlobRef])> {
        self.stages.first().filter(|stage| stage.stage == TARBALL)?.blobs.split_first()
    }

    fn check(&self) -> Result<(), String> {
        let (config, layers) = self.tarball().ok_or("it has no tarball stage")?;
        if config.role != "config" || layers.iter().any(|blob| blob.role != "layer") {
            return Err("its blobs are not a config and layers".into());
        }
        if config.digest != self.image {
            return Err("its config is another image's".into());
        }
        let manifest = || {
            let pairs: Vec<_> = layers.iter().map(|layer| (layer.digest, layer.size)).collect();
            smolcellar_oci::image_manifest((config.digest, config.size), &pairs)
        };
        match &self.stages[1..] {
            [] => {}
            [registry] if registry.stage == REGISTRY => {
                // It depends on nothing but the image.
                let manifest = manifest();
                let [BlobRef { role, digest, size }] = registry.blobs.as_slice() else {
                    return Err("its registry stage has not one blob".into());
                };
                if role != "manifest" || (*digest, *size) != (Digest::of(&manifest), manifest.len() as u64) {
                    return Err("its manifest is not that of its blobs".into());
                }
            }
            _ => return Err("it has stages that are not known".into()),
        }
        let too_large =
            |blob: &BlobRef| blob.size > if blob.role == "layer" { MAX_SIZE } else { MAX_IMAGE_JSON };
        match self.blobs().find(|blob| too_large(blob)) {
            Some(blob) => Err(format!("its {} of {} bytes is absurd", blob.role, blob.size)),
            None => Ok(()),
        }
    }
}

/// The stages that an export knows, in order.
pub(crate) const TARBALL: &str = "tarball";
pub(crate) const REGISTRY: &str = "registry";

impl StageEntry {
    pub(crate) fn of(receipt: StageReceipt) -> Self {
        Self { stage: receipt.stage, inputs: receipt.inputs, blobs: receipt.blobs }
    }
}

impl MachineEntry {
    /// Of a receipt.
    pub fn of(receipt: &MachineReceipt) -> Self {
        Self {
            image: receipt.image,
            recipe: receipt.recipe,
            inputs: receipt.inputs.clone(),
            size: receipt.size,
            sha256: receipt.sha256,
            agent: receipt.agent.clone(),
        }
    }

    /// The artifact's key.
    pub fn key(&self) -> MachineKey {
        MachineKey { image: self.image, recipe: self.recipe }
    }

    /// As one line of JSON: the same for the same receipt.
    pub fn to_text(&self) -> String {
        // Strings for keys and no numbers but JSON's own: it cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads [`MachineEntry::to_text`] back, and checks all that can be told
    /// without the artifact.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let entry: Self = serde_json::from_str(text).map_err(|error| shown(&error.to_string()))?;
        entry.check()?;
        match entry.to_text() == text {
            true => Ok(entry),
            false => Err("it is not written as a receipt is".into()),
        }
    }

    /// Whether our packer made it.
    pub fn is_native(&self) -> bool {
        self.inputs.get("packer").is_some_and(|packer| packer == NATIVE)
    }

    /// Whether it was imported as a bare file.
    pub fn is_foreign(&self) -> bool {
        self.inputs.get("packer").is_some_and(|packer| packer == FOREIGN)
    }

    fn check(&self) -> Result<(), String> {
        if MachineReceipt::recipe_of(&self.inputs) != self.recipe {
            return Err("its recipe is not that of its inputs".into());
        }
        if self.is_foreign()
            && self.inputs.get("sha256").and_then(Value::as_str) != Some(&self.sha256.to_string())
        {
            return Err("its inputs are another file's".into());
        }
        if self.size > MAX_SIZE {
            return Err(format!("its size of {} bytes is absurd", self.size));
        }
        // It is shown on terminals; agents are named so in a configuration.
        let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
        if self.agent.is_empty() || self.agent.len() > 64 || !self.agent.chars().all(fine) {
            return Err("its agent's name is none".into());
        }
        Ok(())
    }
}

/// The value of the input `packer` for what smolcellar packed itself.
const NATIVE: &str = "native";

/// The same for what was imported without a receipt.
pub(crate) const FOREIGN: &str = "foreign";

/// What a parser says of foreign text, fit to be shown: it quotes that text.
fn shown(problem: &str) -> String {
    // Direction marks and their like hide what they are in.
    let plain = |c: char| !c.is_control() && (c.is_ascii() || c.is_alphanumeric());
    let visible = |c: char| if plain(c) { c.to_string() } else { c.escape_unicode().to_string() };
    problem.chars().take(300).map(visible).collect()
}

/// Why a header is refused.
#[derive(Debug)]
pub(crate) enum HeaderError {
    Bad(String),
    Store(smolcellar_store::StoreError),
}

pub(crate) fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

pub(crate) fn machine_path(key: &MachineKey) -> String {
    format!("machines/{}/{}.smolmachine", key.image.hex(), key.recipe.hex())
}

/// The header blocks of a file: one for one path and size.
///
/// # Errors
/// If the path is longer than ustar can hold; none of this crate's is.
pub(crate) fn tar_header(path: &str, size: u64) -> std::io::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(BLOCK);
    if size > MAX_OCTAL {
        let record = pax_size(size);
        let block = ustar("PaxHeaders/size", tar::EntryType::XHeader, record.len() as u64)?;
        out.extend_from_slice(block.as_bytes());
        out.extend_from_slice(record.as_bytes());
        out.resize(2 * BLOCK, 0);
    }
    let octal = if size > MAX_OCTAL { 0 } else { size };
    out.extend_from_slice(ustar(path, tar::EntryType::Regular, octal)?.as_bytes());
    Ok(out)
}

/// A pax record (POSIX.1-2001): its length counts its own digits. 11 to 15
/// digits of size make records of 21 to 25 bytes.
fn pax_size(size: u64) -> String {
    let body = format!(" size={size}\n");
    format!("{}{body}", body.len() + 2)
}

fn ustar(path: &str, kind: tar::EntryType, size: u64) -> std::io::Result<tar::Header> {
    let mut header = tar::Header::new_ustar();
    header.set_path(path)?;
    header.set_entry_type(kind);
    header.set_mode(0o444);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    Ok(header)
}

/// Zeros after a file of this size, up to the next block.
pub(crate) fn padding(size: u64) -> usize {
    (size.next_multiple_of(BLOCK as u64) - size) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_header_of_any_size_reads_back_with_our_reader_of_foreign_tars() {
        let digest = Digest::of(b"x");
        let path = machine_path(&MachineKey { image: digest, recipe: digest });
        for size in [0, 1, MAX_OCTAL, MAX_OCTAL + 1, MAX_SIZE] {
            let bytes = tar_header(&path, size).unwrap();
            assert_eq!(bytes.len() % BLOCK, 0);
            let read = smolcellar_oci::first_entry(&mut &bytes[..]).unwrap();
            assert_eq!(read, Some((path.clone(), size)));
        }
    }

    pub(crate) fn sample() -> Header {
        let image = Digest::of(b"config");
        let inputs = BTreeMap::from([("cpus".to_owned(), Value::from(2))]);
        let blob = |role: &str, digest| BlobRef { role: role.into(), digest, size: 6 };
        let blobs = vec![blob("config", image), blob("layer", Digest::of(b"layer1"))];
        Header {
            schema: SCHEMA,
            images: vec![ImageEntry {
                image,
                stages: vec![StageEntry { stage: TARBALL.into(), inputs: BTreeMap::new(), blobs }],
            }],
            machines: vec![MachineEntry {
                image,
                recipe: MachineReceipt::recipe_of(&inputs),
                inputs,
                size: 5,
                sha256: Digest::of(b"bytes"),
                agent: "a".into(),
            }],
        }
    }

    fn refused(change: impl FnOnce(&mut Header)) -> String {
        let mut header = sample();
        change(&mut header);
        match Header::parse(&header.to_bytes().unwrap(), "x") {
            Err(HeaderError::Bad(problem)) => problem,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_header_that_contradicts_itself_is_refused_before_any_file_is_read() {
        Header::parse(&sample().to_bytes().unwrap(), "x").unwrap();
        let twice = |header: &mut Header| header.machines.push(header.machines[0].clone());
        assert!(refused(twice).contains("twice"));
        assert!(refused(|header| header.images[0].image = Digest::of(b"other")).contains("another image"));
        assert!(refused(|header| header.machines[0].recipe = Digest::of(b"")).contains("recipe"));
        assert!(refused(|header| header.machines[0].agent = "\u{1b}[2J".into()).contains("name"));
        assert!(refused(|header| header.machines[0].size = u64::MAX).contains("absurd"));
        assert!(refused(|header| header.images[0].stages[0].blobs[0].size = 1 << 40).contains("absurd"));
        assert!(refused(|header| header.images[0].stages.clear()).contains("no tarball"));
        let stage = |header: &mut Header| {
            let stage = StageEntry { stage: REGISTRY.into(), ..header.images[0].stages[0].clone() };
            header.images[0].stages.push(stage);
        };
        assert!(refused(stage).contains("not one blob"));
        let foreign = |header: &mut Header| {
            let machine = &mut header.machines[0];
            machine.inputs.insert("packer".into(), FOREIGN.into());
            machine.recipe = MachineReceipt::recipe_of(&machine.inputs);
        };
        assert!(refused(foreign).contains("another file"));
    }

    #[test]
    fn a_newer_header_is_refused_by_number() {
        let newer = Header { schema: SCHEMA + 1, ..sample() };
        let error = Header::parse(&newer.to_bytes().unwrap(), "x").unwrap_err();
        assert!(matches!(error, HeaderError::Store(smolcellar_store::StoreError::Newer { .. })), "{error:?}");
    }

    proptest! {
        #[test]
        fn what_is_quoted_of_a_receipt_or_a_header_steers_no_terminal(name in "[\u{0}-\u{1f}\u{80}-\u{9f}\u{202e}a]{1,9}") {
            let plain = |text: &str| !text.chars().any(|c| c.is_control() || c == '\u{202e}');
            let mut receipt = serde_json::to_value(&sample().machines[0]).unwrap();
            receipt[&name] = Value::from(1);
            let problem = MachineEntry::parse(&receipt.to_string()).unwrap_err();
            prop_assert!(problem.contains("unknown field") && plain(&problem), "{problem:?}");
            let mut header = serde_json::to_value(sample()).unwrap();
            header[&name] = Value::from(1);
            let bytes = fsio::seal(&header, Path::new("x")).unwrap();
            match Header::parse(&bytes, "x") {
                Err(HeaderError::Bad(problem)) => prop_assert!(plain(&problem), "{problem:?}"),
                other => prop_assert!(false, "{other:?}"),
            }
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes: Vec<u8>) {
            let _ = Header::parse(&bytes, "x");
        }

        #[test]
        fn no_change_of_a_header_is_accepted(at: prop::sample::Index, to: u8, cut: bool) {
            let good = sample().to_bytes().unwrap();
            let mut bytes = good.clone();
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] = to }
            prop_assert!(bytes == good || Header::parse(&bytes, "x").is_err());
        }

        #[test]
        fn json_of_the_right_shape_does_not_make_the_parser_panic(
            stage in "tarball|registry|x", role in "config|layer|manifest", size: u64, roles in 0..4usize, stages in 0..4usize
        ) {
            let mut header = sample();
            let blob = BlobRef { role, digest: header.images[0].image, size };
            let entry = StageEntry { stage, inputs: BTreeMap::new(), blobs: vec![blob; roles] };
            header.images[0].stages = vec![entry; stages];
            header.machines[0].size = size;
            let _ = Header::parse(&header.to_bytes().unwrap(), "x");
        }
    }
}
