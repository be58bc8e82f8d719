//! Export and import against each other, and against damage.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};
use smolcellar_oci::{ImageId, image_manifest};
use smolcellar_pack::{AgentRootfs, MachineSpec};
use smolcellar_store::{
    BlobRef, Bucket, Digest, Lookup, MachineKey, MachineReceipt, OpenOptions, Quiet, StageReceipt, Store,
    fsio,
};

use crate::{format, *};

/// A store with an image, and an artifact per number of CPUs.
struct Sample {
    dir: tempfile::TempDir,
    store: Store,
    image: Digest,
}

fn empty() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("c"), OpenOptions::default()).unwrap();
    (dir, store)
}

fn layer(path: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(4);
    header.set_mode(0o644);
    builder.append_data(&mut header, path, &b"data"[..]).unwrap();
    builder.into_inner().unwrap()
}

impl Sample {
    fn new(layers: &[&str]) -> Self {
        let (dir, store) = empty();
        let layers: Vec<Vec<u8>> = layers.iter().map(|path| layer(path)).collect();
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
        let config = json!({ "os": "linux", "architecture": "amd64",
            "rootfs": { "type": "layers", "diff_ids": diff_ids } });
        let config = config.to_string().into_bytes();
        let publishing = store.publishing(&Quiet).unwrap();
        let image = store.blobs().put(&config, &publishing).unwrap();
        let blob = |role: &str, bytes: &[u8]| BlobRef {
            role: role.into(),
            digest: store.blobs().put(bytes, &publishing).unwrap(),
            size: bytes.len() as u64,
        };
        let mut blobs = vec![blob("config", &config)];
        blobs.extend(layers.iter().map(|layer| blob("layer", layer)));
        let pairs: Vec<_> = blobs[1..].iter().map(|blob| (blob.digest, blob.size)).collect();
        let manifest = blob("manifest", &image_manifest((image, config.len() as u64), &pairs));
        for (stage, blobs) in [("tarball", blobs), ("registry", vec![manifest])] {
            store
                .commit_stage(
                    &StageReceipt {
                        schema: StageReceipt::SCHEMA,
                        stage: stage.into(),
                        image,
                        inputs: BTreeMap::from([("image".into(), json!(image))]),
                        blobs,
                        built_at: 7,
                        millis: 8,
                    },
                    &publishing,
                )
                .unwrap();
        }
        drop(publishing);
        Self { dir, store, image }
    }

    /// Packs an artifact; its bytes and its receipt's are of this machine.
    fn machine(&self, cpus: u8) -> MachineKey {
        let rootfs = {
            let path = self.dir.path().join(format!("layer-{cpus}"));
            let mut file = fsio::create_new(&path).unwrap();
            file.write_all(&layer("agent")).unwrap();
            smolcellar_oci::flatten(vec![file]).unwrap()
        };
        let spec = MachineSpec {
            image: ImageId(self.image),
            platform: "linux/amd64".parse().unwrap(),
            host_platform: "linux/amd64".into(),
            entrypoint: vec!["/agent".into()],
            cmd: vec![],
            env: vec![],
            workdir: None,
            user: None,
            cpus,
            memory_mib: 512,
            created: "2026-01-01T00:00:00Z".into(),
            smolvm_version: "1.0.0".into(),
            level: 1,
        };
        let agent = self.dir.path().join(format!("agent-{cpus}"));
        fsio::create_new(&agent).unwrap();
        let agent = AgentRootfs { path: agent, size: 0, digest: Digest::of(b"") };
        let temp = self.store.temp_dir().unwrap();
        let path = temp.path().join("m");
        let mut file = fsio::create_new(&path).unwrap();
        let packed = smolcellar_pack::pack(&spec, &rootfs, &agent, &mut file, &Quiet).unwrap();
        let inputs: BTreeMap<String, Value> =
            [("packer".to_owned(), json!("native")), ("cpus".to_owned(), json!(cpus))].into();
        let receipt = MachineReceipt {
            schema: MachineReceipt::SCHEMA,
            image: self.image,
            recipe: MachineReceipt::recipe_of(&inputs),
            inputs,
            size: packed.size,
            sha256: packed.sha256,
            agent: "sample".into(),
            built_at: u64::from(cpus),
            millis: 3,
        };
        let key = receipt.key();
        self.store.publish_machine(&file, &path, receipt).unwrap();
        key
    }
}

fn out(store: &Store, keys: &[MachineKey], with_image: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    export(store, keys, with_image, &mut bytes, &Quiet).unwrap();
    bytes
}

fn into(store: &Store, bytes: &[u8]) -> Result<Vec<Imported>, Box<Stopped>> {
    import(store, &mut &bytes[..], "x", &Expected::default(), &Quiet)
}

fn statuses(imported: &[Imported]) -> Vec<Status> {
    imported.iter().map(|imported| imported.status).collect()
}

/// Files of a store's buckets, with their bytes but for receipts and seals.
fn files(store: &Store) -> BTreeMap<String, Vec<u8>> {
    fn walk(dir: &Path, root: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
        for entry in std::fs::read_dir(dir).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, root, found);
            } else {
                let name = path.strip_prefix(root).unwrap().display().to_string();
                let bytes = if path.extension().is_some_and(|e| e == "json" || e == "stat") {
                    Vec::new()
                } else {
                    std::fs::read(&path).unwrap()
                };
                found.insert(name, bytes);
            }
        }
    }
    let mut found = BTreeMap::new();
    for bucket in Bucket::ALL {
        walk(&store.bucket_dir(bucket), store.root(), &mut found);
    }
    found
}

/// Whatever became of an import: each entry is whole or absent, and no
/// temporary file is left.
fn assert_sound(store: &Store, context: &str) {
    let found = store.verify(&smolcellar_store::VerifyOptions::default(), &Quiet).unwrap();
    assert_eq!((found.damaged, found.leftovers), (vec![], vec![]), "{context}");
    for run in std::fs::read_dir(store.root().join("tmp")).unwrap() {
        let left: Vec<_> =
            std::fs::read_dir(run.unwrap().path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["owner"], "{context}");
    }
}

#[test]
fn what_is_exported_and_imported_and_exported_again_is_the_same_byte_for_byte() {
    let sample = Sample::new(&["a", "b", "a"]);
    let keys = [sample.machine(2), sample.machine(1)];
    for with_image in [false, true] {
        let bytes = out(&sample.store, &keys, with_image);
        let (_dir, other) = empty();
        let imported = into(&other, &bytes).unwrap();
        assert_eq!(imported.len(), 2 + usize::from(with_image));
        assert!(statuses(&imported).iter().all(|status| *status == Status::Imported), "{imported:?}");
        assert_sound(&other, "after an import");
        assert_eq!(out(&other, &keys, with_image), bytes);
        if with_image {
            let same = files(&other);
            assert_eq!(same.keys().collect::<Vec<_>>(), files(&sample.store).keys().collect::<Vec<_>>());
            let image = |store: &Store| {
                let mut bytes = Vec::new();
                export_image(store, &sample.image, Some("a/b"), &mut bytes, &Quiet).unwrap();
                bytes
            };
            assert_eq!(image(&other), image(&sample.store));
        }
        let Lookup::Hit(machine) = other.machine(&keys[0], true).unwrap() else { panic!() };
        assert_eq!((machine.receipt.millis, machine.receipt.agent.as_str()), (0, "sample"));
        let again = into(&other, &bytes).unwrap();
        assert!(statuses(&again).iter().all(|status| *status == Status::Present), "{again:?}");
    }
}

#[test]
fn equal_artifacts_of_two_stores_are_equal_exports_in_any_order_of_asking() {
    let (one, two) = (Sample::new(&["a"]), Sample::new(&["a"]));
    let keys = [one.machine(1), one.machine(2)];
    two.machine(2);
    two.machine(1);
    let bytes = out(&one.store, &keys, true);
    assert_eq!(out(&two.store, &[keys[1], keys[0], keys[1]], true), bytes);
    assert!(bytes.len().is_multiple_of(512) && bytes.ends_with(&[0; 1024]));
}

#[test]
fn an_export_is_an_ordinary_tar() {
    let sample = Sample::new(&["a"]);
    let key = sample.machine(1);
    let bytes = out(&sample.store, &[key], true);
    let mut archive = tar::Archive::new(&bytes[..]);
    let mut names = Vec::new();
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        let header = entry.header();
        assert_eq!((header.mode().unwrap(), header.mtime().unwrap(), header.uid().unwrap()), (0o444, 0, 0));
        names.push(entry.path().unwrap().display().to_string());
    }
    assert_eq!(names[0], "smolcellar-export.json");
    assert!(names[1..4].iter().all(|name| name.starts_with("blobs/sha256/")), "{names:?}");
    assert_eq!(names[4], format!("machines/{}/{}.smolmachine", key.image.hex(), key.recipe.hex()));
}

#[test]
fn a_flipped_byte_anywhere_is_refused_and_every_entry_is_whole_or_absent() {
    let sample = Sample::new(&["a"]);
    let keys = [sample.machine(1), sample.machine(2)];
    let good = out(&sample.store, &keys, true);
    let whole = files(&sample.store);
    let (_dir, other) = empty();
    // Every thirteenth, thousands of them: every header, every file and every padding is met.
    for at in (0..good.len()).step_by(13) {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        let stopped = into(&other, &bad).expect_err(&format!("byte {at}"));
        assert!(stopped.imported.len() <= 3, "byte {at}");
        let there = files(&other);
        for (name, bytes) in &there {
            assert_eq!(Some(bytes), whole.get(name), "byte {at}: {name}");
        }
    }
    assert_sound(&other, "after all flips");
}

#[test]
fn a_cut_anywhere_is_refused_and_names_where_and_how_much_was_imported() {
    let sample = Sample::new(&["a"]);
    let keys = [sample.machine(1), sample.machine(2)];
    let good = out(&sample.store, &keys, true);
    for at in (0..good.len()).step_by(97).chain([good.len() - 512, good.len() - 1024]) {
        let (_dir, other) = empty();
        let stopped = into(&other, &good[..at]).expect_err(&format!("cut {at}"));
        assert!(matches!(stopped.error, TransferError::Cut { .. }) || at < 22, "cut {at}: {stopped}");
        let machines = other.machines().unwrap().machines.len();
        let images = usize::from(other.stage_receipt(&sample.image, "tarball").unwrap().is_some());
        assert_eq!(stopped.imported.len(), machines + images, "cut {at}");
        assert_sound(&other, &format!("cut {at}"));
    }
    let (_dir, other) = empty();
    let stopped = into(&other, &good[..good.len() - 1024]).unwrap_err();
    assert!(stopped.to_string().contains("3 of 3 entries were imported before"), "{stopped}");
    let more = [&good[..], b"x"].concat();
    assert!(into(&other, &more).unwrap_err().to_string().contains("bytes after it"));
}

/// The files of an export, headers included, to be put together otherwise.
fn parts(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut archive = tar::Archive::new(bytes);
    let starts: Vec<u64> = archive.entries().unwrap().map(|e| e.unwrap().raw_header_position()).collect();
    let mut ends = starts[1..].to_vec();
    ends.push(bytes.len() as u64 - 1024);
    starts.iter().zip(ends).map(|(from, to)| bytes[*from as usize..to as usize].to_vec()).collect()
}

#[test]
fn missing_doubled_swapped_and_surplus_files_are_refused_by_name() {
    let sample = Sample::new(&["a"]);
    let keys = [sample.machine(1), sample.machine(2)];
    let parts = parts(&out(&sample.store, &keys, false));
    let end = vec![0; 1024];
    let join = |order: &[usize]| {
        order.iter().flat_map(|n| parts[*n].clone()).chain(end.clone()).collect::<Vec<u8>>()
    };
    for (order, says) in [
        (&[0, 1][..], "the end of the archive"),
        (&[0, 2, 1], "in its place is 'machines/"),
        (&[0, 1, 1, 2], "in its place is 'machines/"),
        (&[0, 1, 2, 2], "its end: in its place is 'machines/"),
        (&[0, 0, 1, 2], "in its place is 'smolcellar-export.json'"),
        (&[1, 0, 2], "is no export"),
    ] {
        let (_dir, other) = empty();
        let error = into(&other, &join(order)).unwrap_err().to_string();
        assert!(error.contains(says), "{order:?}: {error}");
        assert_sound(&other, &error);
    }
    let (_dir, other) = empty();
    into(&other, &join(&[0, 1, 2])).unwrap();
}

#[test]
fn a_damaged_entry_is_replaced_and_a_newer_one_is_left_alone() {
    let sample = Sample::new(&["a"]);
    let key = sample.machine(1);
    let bytes = out(&sample.store, &[key], true);
    let (_dir, other) = empty();
    into(&other, &bytes).unwrap();
    let Lookup::Hit(machine) = other.machine(&key, false).unwrap() else { panic!() };
    let scratch = other.scratch().unwrap();
    let mut bad = std::fs::read(&machine.path).unwrap();
    bad[100] ^= 1;
    fsio::write_atomic(&scratch, &machine.path, &bad).unwrap();
    let config = other.blobs().path(&sample.image);
    let same_size = vec![b'x'; std::fs::metadata(&config).unwrap().len() as usize];
    fsio::write_atomic(&scratch, &config, &same_size).unwrap();
    let imported = into(&other, &bytes).unwrap();
    assert_eq!(statuses(&imported), [Status::Replaced; 2]);
    assert_sound(&other, "after replacing");
    let receipt = machine.path.with_extension("json");
    let mut newer: Value = serde_json::from_slice(&std::fs::read(&receipt).unwrap()).unwrap();
    newer.as_object_mut().unwrap().remove("seal");
    newer["schema"] = json!(99);
    fsio::write_sealed(&scratch, &receipt, &newer).unwrap();
    let before = files(&other);
    let error = into(&other, &bytes).unwrap_err().to_string();
    assert!(error.contains("format 99, newer"), "{error}");
    assert_eq!(files(&other), before);
}

#[test]
fn an_export_of_damaged_missing_or_collected_things_fails_and_says_which() {
    let sample = Sample::new(&["a"]);
    let key = sample.machine(1);
    let lost = MachineKey { recipe: Digest::of(b"none"), ..key };
    let fails = |keys: &[MachineKey], with_image| {
        export(&sample.store, keys, with_image, &mut Vec::new(), &Quiet).unwrap_err().to_string()
    };
    assert!(fails(&[lost], false).contains("no artifact"));
    let path = sample.store.blobs().path(&Digest::of(&layer("a")));
    let mut bad = std::fs::read(&path).unwrap();
    bad[0] ^= 1;
    fsio::write_atomic(&sample.store.scratch().unwrap(), &path, &bad).unwrap();
    let error = fails(&[key], true);
    assert!(error.contains(path.to_str().unwrap()) && error.contains("--repair"), "{error}");
    assert!(!path.exists(), "it was quarantined");
    let error = fails(&[key], true);
    assert!(error.contains("--force=tarball"), "{error}");
    let gone = export_image(&sample.store, &sample.image, None, &mut Vec::new(), &Quiet).unwrap_err();
    assert!(matches!(gone, TransferError::NoImage(_)), "{gone}");
    out(&sample.store, &[key], false);
}

#[test]
fn an_export_finds_what_no_seal_shows_and_sets_it_aside() {
    let sample = Sample::new(&["a"]);
    let key = sample.machine(1);
    let Lookup::Hit(machine) = sample.store.machine(&key, false).unwrap() else { panic!("it is there") };
    let mut bad = std::fs::read(&machine.path).unwrap();
    let at = bad.len() / 2;
    bad[at] ^= 1;
    fsio::write_atomic(&sample.store.scratch().unwrap(), &machine.path, &bad).unwrap();
    let error = export(&sample.store, &[key], false, &mut Vec::new(), &Quiet).unwrap_err();
    assert!(matches!(error, TransferError::Damaged { .. }), "{error}");
    assert!(matches!(sample.store.machine(&key, false).unwrap(), Lookup::Miss));
    assert!(sample.store.quarantined_machines().unwrap().iter().any(|receipt| receipt.key() == key));
}

#[test]
fn a_bare_artifact_needs_its_image_and_is_checked_and_comes_out_as_it_went_in() {
    let sample = Sample::new(&["a"]);
    let key = sample.machine(1);
    let Lookup::Hit(machine) = sample.store.machine(&key, false).unwrap() else { panic!() };
    let good = std::fs::read(&machine.path).unwrap();
    let (_dir, other) = empty();
    let error = into(&other, &good).unwrap_err();
    assert!(matches!(error.error, TransferError::NeedsImage(_)), "{error}");
    let named = Expected { image_id: Some(ImageId(sample.image)), one: true, agent: Some("mine".into()) };
    let bare = |bytes: &[u8]| import(&other, &mut &bytes[..], "x", &named, &Quiet);
    for at in (0..good.len()).step_by(29) {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        // Eight bytes of the footer mean nothing in smolvm's format, and eight do so outside of a program.
        let meaningless = at >= good.len() - 8 || (good.len() - 52..good.len() - 44).contains(&at);
        assert!(bare(&bad).is_err() || meaningless, "byte {at} of {}", good.len());
        assert!(bare(&good[..at]).is_err(), "cut {at}");
    }
    let imported = bare(&good).unwrap();
    let What::Machine { key, agent, sha256, .. } = &imported[0].what else { panic!() };
    assert_eq!((agent.as_str(), *sha256, key.image), ("mine", Digest::of(&good), sample.image));
    assert_sound(&other, "after a bare one");
    let bytes = out(&other, &[*key], false);
    let (_dir, third) = empty();
    into(&third, &bytes).unwrap();
    assert_eq!(out(&third, &[*key], false), bytes);
    assert!(matches!(
        import(&third, &mut &bytes[..], "x", &named, &Quiet).unwrap_err().error,
        TransferError::NeedsNoImage(_)
    ));
}

#[test]
fn of_two_artifacts_none_is_imported_for_one_agent() {
    let sample = Sample::new(&["a"]);
    let bytes = out(&sample.store, &[sample.machine(1), sample.machine(2)], false);
    let (_dir, other) = empty();
    let one = Expected { one: true, ..Expected::default() };
    let stopped = import(&other, &mut &bytes[..], "x", &one, &Quiet).unwrap_err();
    assert!(matches!(stopped.error, TransferError::NotOne { count: 2, .. }), "{stopped}");
    assert!(stopped.to_string().contains("nothing was imported"));
    assert!(files(&other).is_empty());
}

#[test]
fn a_newer_export_is_refused_and_nothing_is_imported() {
    let sample = Sample::new(&["a"]);
    let good = out(&sample.store, &[sample.machine(1)], false);
    let text = String::from_utf8_lossy(&good[512..]).into_owned();
    let mut json: Value = serde_json::Deserializer::from_str(&text).into_iter().next().unwrap().unwrap();
    json["schema"] = json!(2);
    json.as_object_mut().unwrap().remove("seal");
    let header = fsio::seal(&json, Path::new("x")).unwrap();
    let mut newer = format::tar_header(format::HEADER, header.len() as u64).unwrap();
    newer.extend(header);
    let (_dir, other) = empty();
    let mut padded = newer.clone();
    padded.resize(newer.len().next_multiple_of(512), 0);
    let error = into(&other, &padded).unwrap_err().to_string();
    assert!(error.contains("format 2, newer than the 1"), "{error}");
    assert!(files(&other).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_input_makes_an_import_panic_or_leaves_anything(head in any::<bool>(), bytes: Vec<u8>, size in 0..4096u64) {
        let mut input = if head { format::tar_header(format::HEADER, size).unwrap() } else { Vec::new() };
        input.extend(bytes);
        let (_dir, store) = empty();
        prop_assert!(into(&store, &input).is_err());
        prop_assert!(files(&store).is_empty());
    }
}

/// The file of an artifact in a temporary folder of another store.
fn received(store: &Store, bytes: &[u8]) -> (smolcellar_store::TempDir, smolcellar_store::StagedBlob) {
    let dir = store.temp_dir().unwrap();
    let parts = smolcellar_store::BlobParts::create(&dir, bytes.len() as u64, Box::new(|_| {})).unwrap();
    parts.write_at(bytes, 0).unwrap();
    let staged = parts.finish().unwrap();
    (dir, staged)
}

#[test]
fn what_was_received_is_published_only_if_it_is_what_its_receipt_says() {
    let sample = Sample::new(&["a"]);
    let key = sample.machine(1);
    let Lookup::Hit(machine) = sample.store.machine(&key, true).unwrap() else { panic!() };
    let bytes = std::fs::read(&machine.path).unwrap();
    let entry = MachineEntry::of(&machine.receipt);
    assert_eq!(MachineEntry::parse(&entry.to_text()).unwrap(), entry);
    let mut sum = smolcellar_pack::Sum::new(bytes.len() as u64);
    sum.update(&bytes);
    let sum = sum.finish();
    let (_dir, other) = empty();
    let publish = |entry: &MachineEntry, bytes: &[u8], sum| {
        let lock = other.lock_build(&entry.key().lock_name(), &Quiet).unwrap();
        let (_temp, staged) = received(&other, bytes);
        publish_received(&other, "x", entry, staged, sum, &lock, &Quiet)
    };
    let mut flipped = bytes.clone();
    flipped[9] ^= 1;
    assert!(matches!(publish(&entry, &flipped, sum), Err(TransferError::Mismatch { .. })));
    // Somebody's receipt for damaged bytes: its own parts tell.
    let fitted = MachineEntry { sha256: Digest::of(&flipped), ..entry.clone() };
    assert!(matches!(publish(&fitted, &flipped, None), Err(TransferError::Invalid { .. })));
    assert!(matches!(publish(&entry, &bytes, sum.map(|sum| sum ^ 1)), Err(TransferError::Invalid { .. })));
    let larger = MachineEntry { size: entry.size + 1, ..entry.clone() };
    assert!(matches!(publish(&larger, &bytes, sum), Err(TransferError::Invalid { .. })));
    let of_another = MachineEntry { image: Digest::of(b"another"), ..entry.clone() };
    assert!(matches!(publish(&of_another, &bytes, sum), Err(TransferError::Invalid { .. })));
    assert_eq!(other.machine_keys().unwrap(), []);
    assert_eq!(publish(&entry, &bytes, sum).unwrap().1, Status::Imported);
    assert_eq!(publish(&entry, &bytes, None).unwrap().1, Status::Present);
    assert!(matches!(other.machine(&key, true).unwrap(), Lookup::Hit(_)));
}
