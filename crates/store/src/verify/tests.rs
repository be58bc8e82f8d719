#![allow(clippy::disallowed_methods, reason = "tests damage files")]

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::atomic::AtomicU64;

use serde_json::{Value, json};

use super::*;
use crate::machines::Files;
use crate::report::Quiet;
use crate::{BlobRef, Bucket, Lookup, OpenOptions, StageReceipt, fsio};

/// A store with `images` images of two layers and one artifact each, pinned and
/// pointed at.
pub(super) struct Lab {
    pub(super) dir: tempfile::TempDir,
    pub(super) store: Store,
    pub(super) keys: Vec<MachineKey>,
}

impl Lab {
    pub(super) fn new(images: u8, size: usize) -> Self {
        // In memory, where there is such a folder: fsync is not what is tested.
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let options = OpenOptions {
            lock_timeout: Some(std::time::Duration::from_millis(50)),
            ..OpenOptions::default()
        };
        let store = Store::open(&dir.path().join("c"), options).unwrap();
        let keys = (0..images).map(|n| image(&store, n, size)).collect();
        Self { dir, store, keys }
    }

    fn verify(&self, options: &VerifyOptions) -> Verification {
        self.store.verify(options, &Quiet).unwrap()
    }

    /// What is found when everything damaged is moved, and what is found then.
    pub(super) fn sweep(&self) -> Verification {
        self.verify(&VerifyOptions { quarantine: true, ..VerifyOptions::default() })
    }
}

fn bytes(n: u8, kind: u8, size: usize) -> Vec<u8> {
    (0..size).map(|at| (at as u8).wrapping_mul(31) ^ n.wrapping_mul(7) ^ kind).collect()
}

fn image(store: &Store, n: u8, size: usize) -> MachineKey {
    let publishing = store.publishing(&Quiet).unwrap();
    let put = |role: &str, bytes: &[u8]| BlobRef {
        role: role.into(),
        digest: store.blobs().put(bytes, &publishing).unwrap(),
        size: bytes.len() as u64,
    };
    let config = put("config", format!("{{\"config\":{n}}}").as_bytes());
    let id = config.digest;
    let layers = [put("layer", &bytes(n, 1, size)), put("layer", &bytes(n, 2, size / 2))];
    let manifest = put("manifest", format!("{{\"manifest\":{n}}}").as_bytes());
    let tarball = [vec![config], layers.to_vec()].concat();
    for (stage, blobs) in [("tarball", tarball), ("registry", vec![manifest])] {
        let inputs = BTreeMap::from([("image".into(), json!(id))]);
        let (stage, schema) = (stage.into(), 1);
        let receipt = StageReceipt { schema, stage, image: id, inputs, blobs, built_at: 1, millis: 1 };
        store.commit_stage(&receipt, &publishing).unwrap();
    }
    let inputs = BTreeMap::from([("cpus".to_owned(), json!(n))]);
    let artifact = bytes(n, 3, size + usize::from(n));
    let receipt = MachineReceipt {
        schema: 1,
        image: id,
        recipe: MachineReceipt::recipe_of(&inputs),
        inputs,
        size: artifact.len() as u64,
        sha256: Digest::of(&artifact),
        agent: format!("agent{n}"),
        built_at: 1,
        millis: 1,
    };
    let key = receipt.key();
    let temp = store.temp_dir().unwrap();
    let path = temp.path().join("machine");
    let mut file = fsio::create_new(&path).unwrap();
    file.write_all(&artifact).unwrap();
    store.publish_machine(&file, &path, receipt).unwrap();
    store.pin(&key, &store.lock_use(&key.lock_name(), &Quiet).unwrap()).unwrap();
    let (project, agent) = (format!("/project{n}"), format!("agent{n}"));
    let name = Digest::of(&[project.as_bytes(), &[0], agent.as_bytes()].concat());
    let pointer =
        json!({ "schema": 1, "project": project, "agent": agent, "image": id, "recipe": key.recipe });
    pointed(store, "agent", name, &pointer);
    let engine = Digest::of(&[n]);
    pointed(store, "engine-image", engine, &json!({ "schema": 2, "engine": engine, "image": id }));
    key
}

fn pointed(store: &Store, kind: &str, name: Digest, pointer: &Value) {
    let path = store.bucket_dir(Bucket::Pointers).join(kind).join(format!("{}.json", name.hex()));
    fsio::write_sealed(&store.scratch().unwrap(), &path, pointer).unwrap();
}

pub(super) fn overwrite(path: &Path, bytes: &[u8]) {
    let _ = std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644));
    std::fs::write(path, bytes).unwrap();
}

fn spoil(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 0x10;
    overwrite(path, &bytes);
}

fn problems(found: &Verification) -> Vec<(PathBuf, String)> {
    found.damaged.iter().map(|finding| (finding.path.clone(), finding.action.to_string())).collect()
}

#[test]
fn a_clean_store_verifies_and_counts_all_of_it() {
    let lab = Lab::new(3, 1000);
    let found = lab.sweep();
    assert_eq!(
        (found.damaged, found.leftovers, found.newer, found.unfinished),
        (vec![], vec![], vec![], None)
    );
    assert_eq!(found.entries, 3 * (4 + 2 + 1));
    assert!(found.bytes > 3 * 2500);
}

#[test]
fn each_kind_of_damage_is_named_moved_once_and_leaves_the_rest() {
    let lab = Lab::new(3, 1000);
    let store = &lab.store;
    let files = Files::of(store, &lab.keys[0]);
    let receipt = Files::of(store, &lab.keys[1]);
    let image = lab.keys[2].image;
    let blob = store.stage_receipt(&image, "tarball").unwrap().unwrap().blobs[1].digest;
    let blob = store.blobs().path(&blob);
    let stage = store.bucket_dir(Bucket::Images).join(image.hex()).join("registry.json");
    let pointer = list_of(&store.bucket_dir(Bucket::Pointers).join("agent")).remove(0);
    let pin = list_of(&store.pins_dir()).remove(0);
    let strange = store.bucket_dir(Bucket::Machines).join(image.hex()).join("notes.txt");
    overwrite(&strange, b"notes");
    let lease = store.leases_dir().join("machine.json");
    fsio::create_dirs(&store.leases_dir()).unwrap();
    overwrite(&lease, b"{}");
    for path in [&files.artifact, &receipt.receipt, &blob, &stage, &pointer, &pin] {
        spoil(path);
    }
    let named: Vec<_> = problems(&lab.verify(&VerifyOptions::default())).into_iter().map(|p| p.0).collect();
    let mut expected = vec![
        (blob.clone(), "quarantined"),
        (stage.clone(), "quarantined"),
        (files.artifact.clone(), "quarantined"),
        (receipt.artifact.clone(), "quarantined"),
        (strange.clone(), "quarantined"),
        (pointer.clone(), "quarantined"),
        (pin, "repaired"),
    ];
    assert_eq!(named.len(), expected.len() + 1, "with the lease, and nothing moved: {named:?}");
    let lost = stage.with_file_name("tarball.json");
    expected.push((lost.clone(), "kept: a build that needs the image takes it in again"));
    expected.push((lease.clone(), "kept: its machine may still be there; see `By hand` in cache-layout.md"));
    expected.sort();
    let found = lab.sweep();
    let shown = problems(&found);
    assert_eq!(shown.iter().map(|(p, a)| (p.clone(), a.as_str())).collect::<Vec<_>>(), expected);
    for finding in &found.damaged {
        if let Action::Quarantined(to) = &finding.action {
            assert!(to.join("why.json").is_file() && to.join(finding.path.file_name().unwrap()).exists());
        }
    }
    // With the artifact go its receipt and its seal; the receipt is to be had.
    assert!(!files.receipt.exists() && !files.stat.exists() && lease.exists());
    let kept: Vec<_> = store.quarantined_machines().unwrap().iter().map(MachineReceipt::key).collect();
    assert_eq!(kept, [lab.keys[0]]);
    let again: Vec<_> = problems(&lab.sweep()).into_iter().map(|p| p.0).collect();
    let mut left = vec![lost, lease];
    left.sort();
    assert_eq!(again, left);
}

fn list_of(dir: &Path) -> Vec<PathBuf> {
    crate::machines::list(dir).unwrap()
}

#[test]
fn a_quarantined_blob_can_be_published_again() {
    let lab = Lab::new(1, 1000);
    let blobs = lab.store.blobs();
    let digest = blobs.put(b"small", &lab.store.publishing(&Quiet).unwrap()).unwrap();
    overwrite(&blobs.path(&digest), b"smell");
    lab.sweep();
    assert!(!blobs.has(&digest, 5));
    blobs.put(b"small", &lab.store.publishing(&Quiet).unwrap()).unwrap();
    blobs.check(&digest).unwrap();
    assert_eq!(lab.sweep().damaged, []);
}

#[test]
fn a_link_in_place_of_a_file_is_damage_and_its_target_stays() {
    let lab = Lab::new(1, 1000);
    let outside = lab.dir.path().join("outside");
    for path in [Files::of(&lab.store, &lab.keys[0]).artifact, lab.store.blobs().path(&lab.keys[0].image)] {
        std::fs::rename(&path, &outside).unwrap();
        symlink(&outside, &path).unwrap();
        let found = lab.sweep();
        assert!(found.damaged.iter().any(|f| f.path == path && f.problem == "it is no file"), "{found:?}");
        assert!(outside.is_file() && std::fs::symlink_metadata(&path).is_err());
    }
}

#[test]
fn a_damaged_seal_is_written_again_and_is_no_finding() {
    let lab = Lab::new(1, 1000);
    let files = Files::of(&lab.store, &lab.keys[0]);
    overwrite(&files.stat, b"{");
    assert_eq!(lab.sweep().damaged, []);
    assert!(std::fs::read(&files.stat).unwrap().len() > 10);
}

#[test]
fn a_newer_receipt_is_neither_damage_nor_moved() {
    let lab = Lab::new(1, 1000);
    let files = Files::of(&lab.store, &lab.keys[0]);
    let text = fsio::seal(&json!({ "schema": 9, "what": "new" }), &files.receipt).unwrap();
    let strange = files.receipt.with_file_name("new-kind.json");
    overwrite(&files.receipt, &text);
    overwrite(&strange, &text);
    let found = lab.sweep();
    assert_eq!(found.newer, std::slice::from_ref(&files.artifact));
    assert_eq!(problems(&found), [(strange.clone(), "kept: it may be of a newer smolcellar".to_owned())]);
    assert!(files.receipt.exists() && files.artifact.exists() && strange.exists());
}

#[test]
fn what_is_being_built_is_waited_for_and_left_if_it_stays_busy() {
    let lab = Lab::new(2, 1000);
    let [busy, free] = [0, 1].map(|n: usize| Files::of(&lab.store, &lab.keys[n]).artifact);
    spoil(&busy);
    spoil(&free);
    let lock = lab.store.lock_build(&lab.keys[0].lock_name(), &Quiet).unwrap();
    let found = lab.sweep();
    drop(lock);
    assert!(busy.exists() && !free.exists());
    let of = |path: &Path| found.damaged.iter().find(|f| f.path == path).unwrap().action.to_string();
    assert!(of(&busy).starts_with("kept: gave up after") && of(&free) == "quarantined", "{found:?}");
    assert!(problems(&lab.sweep()).iter().any(|(path, action)| *path == busy && action == "quarantined"));
}

#[test]
fn what_a_builder_replaced_meanwhile_is_not_moved() {
    let lab = Lab::new(1, 1000);
    let artifact = Files::of(&lab.store, &lab.keys[0]).artifact;
    // As it looks when the first look saw the damage and the second does not.
    let listed = list::Listing::of(&lab.store, &VerifyOptions::default()).unwrap();
    for item in &listed.items {
        let acted = act::act(&lab.store, &Quiet, item, false).unwrap();
        assert!(matches!(acted, act::Outcome::Acted(Acted::Done)), "{}", item.path.display());
    }
    assert!(artifact.exists());
    assert!(!lab.store.quarantine_dir().exists());
}

#[test]
fn only_the_named_artifacts_and_their_images_are_looked_at() {
    let lab = Lab::new(3, 1000);
    let [other, mine] = [0, 1].map(|n: usize| lab.keys[n]);
    spoil(&Files::of(&lab.store, &other).artifact);
    let only = |key| VerifyOptions { keys: Some(BTreeSet::from([key])), ..VerifyOptions::default() };
    let found = lab.verify(&only(mine));
    assert_eq!((found.damaged.len(), found.entries), (0, 4 + 2 + 1));
    assert_eq!(lab.verify(&only(other)).damaged.len(), 1);
}

/// Gives up after so many bytes.
struct Impatient(AtomicU64);

impl Reporter for Impatient {
    fn report(&self, event: Event<'_>) {
        if let Event::Advance { bytes, .. } = event {
            let left = self.0.load(Ordering::Relaxed);
            self.0.store(left.saturating_sub(bytes), Ordering::Relaxed);
        }
    }
    fn gives_up(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}

#[test]
fn a_run_that_was_given_up_is_gone_on_with_and_nothing_is_left_out() {
    let lab = Lab::new(40, 2000);
    let damaged: Vec<_> = lab.keys.iter().step_by(3).map(|key| Files::of(&lab.store, key).artifact).collect();
    damaged.iter().for_each(|path| spoil(path));
    let mut options = VerifyOptions { quarantine: true, ..VerifyOptions::default() };
    let (mut rounds, mut found) = (0, Vec::new());
    loop {
        rounds += 1;
        let some = lab.store.verify(&options, &Impatient(AtomicU64::new(60_000))).unwrap();
        found.extend(some.damaged.into_iter().map(|finding| finding.path));
        match some.unfinished {
            Some(from) => {
                assert!(options.from.as_ref().is_none_or(|before| *before < from), "it got on");
                options.from = Some(from);
            }
            None => break,
        }
        assert!(rounds < 100);
    }
    assert!(rounds > 2, "{rounds}");
    found.sort();
    let mut expected = damaged;
    expected.sort();
    assert_eq!(found, expected);
}

#[test]
fn on_a_store_that_is_used_meanwhile_a_change_while_hashing_fits_no_seal() {
    let lab = Lab::new(1, 1000);
    let key = lab.keys[0];
    let path = Files::of(&lab.store, &key).artifact;
    let good = std::fs::read(&path).unwrap();
    overwrite(&path, &good); // Its seal does not fit any more.
    let hash = |path: &Path| {
        let digest = Digest::of_file(path);
        spoil(path);
        digest
    };
    assert!(matches!(lab.store.machine_hashed_by(&key, false, &hash).unwrap(), Lookup::Hit(_)));
    assert!(matches!(lab.store.machine(&key, false).unwrap(), Lookup::Damaged { .. }));
}
