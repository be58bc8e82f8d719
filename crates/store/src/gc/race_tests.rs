//! The collector beside those who build, use and lease: nothing that anybody
//! holds is ever gone.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use crate::VerifyOptions;
use crate::gc::{Entry, Policy, Root, plan};
use crate::*;

fn open(dir: &Path) -> Store {
    Store::open(&dir.join("c"), OpenOptions::default()).unwrap()
}

/// Publishes an artifact of its own bytes.
fn build(store: &Store, number: u64) -> Machine {
    let bytes = number.to_string().repeat(1000);
    let inputs = BTreeMap::from([("cpus".to_owned(), Value::from(number))]);
    let receipt = MachineReceipt {
        schema: MachineReceipt::SCHEMA,
        image: Digest::of(format!("image {}", number % 3).as_bytes()),
        recipe: MachineReceipt::recipe_of(&inputs),
        inputs,
        size: bytes.len() as u64,
        sha256: Digest::of(bytes.as_bytes()),
        agent: "a".into(),
        built_at: 0,
        millis: 1,
    };
    let temp = store.temp_dir().unwrap();
    let path = temp.path().join("x");
    let mut file = fsio::create_new(&path).unwrap();
    file.write_all(bytes.as_bytes()).unwrap();
    store.publish_machine(&file, &path, receipt).unwrap()
}

fn key_of(number: u64) -> MachineKey {
    let inputs = BTreeMap::from([("cpus".to_owned(), Value::from(number))]);
    MachineKey {
        image: Digest::of(format!("image {}", number % 3).as_bytes()),
        recipe: MachineReceipt::recipe_of(&inputs),
    }
}

/// As the pipeline does: look, build under the lock if it is missing, and have
/// the use lock before the build lock is gone.
fn build_or_find(store: &Store, number: u64) -> (Machine, UseLock) {
    let key = key_of(number);
    let in_use = store.lock_use(&key.lock_name(), &Quiet).unwrap();
    if let Lookup::Hit(machine) = store.machine(&key, false).unwrap() {
        return (*machine, in_use);
    }
    drop(in_use);
    let _lock = store.lock_build(&key.lock_name(), &Quiet).unwrap();
    let machine = match store.machine(&key, false).unwrap() {
        Lookup::Hit(machine) => *machine,
        _ => build(store, number),
    };
    (machine, store.lock_use(&key.lock_name(), &Quiet).unwrap())
}

fn is_there(machine: &Machine) -> bool {
    std::fs::read(&machine.path).is_ok_and(|bytes| Digest::of(&bytes) == machine.receipt.sha256)
}

/// One who builds, uses and leases; how often.
fn work(store: &Store, worker: u64, stop: &AtomicBool) -> u64 {
    let mut rounds = 0;
    while !stop.load(Ordering::Relaxed) {
        let number = (worker + rounds) % 5;
        let (machine, in_use) = build_or_find(store, number);
        assert!(is_there(&machine), "in use");
        let lease = NewLease {
            machine: format!("m-{worker}"),
            artifact: machine.receipt.key().lock_name(),
            place: "here".into(),
            launch: Value::Null,
        };
        let lease = store.lease(lease).unwrap().unwrap();
        drop(in_use);
        std::thread::yield_now();
        assert!(is_there(&machine), "leased");
        lease.end().unwrap();
        rounds += 1;
    }
    rounds
}

/// One who takes images in that share a blob; how often.
fn take_in(store: &Store, worker: u64, stop: &AtomicBool) -> u64 {
    let mut rounds = 0;
    while !stop.load(Ordering::Relaxed) {
        let image = Digest::of(&[u8::try_from((worker + rounds) % 4).unwrap()]);
        let lock = store.lock_build(&image.hex(), &Quiet).unwrap();
        let publishing = store.publishing(&Quiet).unwrap();
        let blobs = [b"shared by all".to_vec(), image.hex().into_bytes()];
        let blobs: Vec<_> = blobs
            .iter()
            .map(|bytes| BlobRef {
                role: "layer".into(),
                digest: store.blobs().put(bytes, &publishing).unwrap(),
                size: bytes.len() as u64,
            })
            .collect();
        std::thread::yield_now();
        let receipt = StageReceipt {
            schema: StageReceipt::SCHEMA,
            stage: "tarball".into(),
            image,
            inputs: BTreeMap::new(),
            blobs,
            built_at: 0,
            millis: 0,
        };
        store.commit_stage(&receipt, &publishing).unwrap();
        drop(publishing);
        let _in_use = store.lock_use(&image.hex(), &Quiet).unwrap();
        drop(lock);
        for blob in &receipt.blobs {
            store.blobs().check(&blob.digest).unwrap();
        }
        rounds += 1;
    }
    rounds
}

#[test]
fn beside_builds_uses_and_leases_nothing_held_is_collected() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let stop = AtomicBool::new(false);
    let removed = AtomicU64::new(0);
    let rounds = std::thread::scope(|scope| {
        let (store, stop, removed) = (&store, &stop, &removed);
        let mut workers: Vec<_> = (0..3).map(|n| scope.spawn(move || work(store, n, stop))).collect();
        workers.extend((0..2).map(|n| scope.spawn(move || take_in(store, n, stop))));
        let collector = scope.spawn(move || {
            let policy = Policy { all: true, ..Policy::default() };
            while !stop.load(Ordering::Relaxed) {
                let plan = plan(&store.inventory().unwrap(), &policy, SystemTime::now());
                let done = store.collector(&Quiet).unwrap().carry_out(&plan, None, &Quiet);
                removed.fetch_add(done.removed.len() as u64, Ordering::Relaxed);
            }
        });
        // Until enough has happened, however slow the machine is; a panic ends it too.
        let began = Instant::now();
        let enough = || removed.load(Ordering::Relaxed) > 200 && began.elapsed() > Duration::from_secs(1);
        while !enough() && began.elapsed() < Duration::from_secs(120) {
            if workers.iter().any(|worker| worker.is_finished()) || collector.is_finished() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        stop.store(true, Ordering::Relaxed);
        collector.join().unwrap();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(removed.into_inner() > 200 && rounds.iter().all(|rounds| *rounds > 5), "{rounds:?}");
    assert_eq!(store.verify(&VerifyOptions::default(), &Quiet).unwrap().damaged, []);
}

#[test]
fn what_is_held_is_spared_and_says_by_whom() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let machines: Vec<_> = (0..5).map(|number| build(&store, number)).collect();
    let keys: Vec<_> = machines.iter().map(|machine| machine.receipt.key()).collect();
    // Planned before anything is held: the locks must tell.
    let policy = Policy { all: true, ..Policy::default() };
    let planned = plan(&store.inventory().unwrap(), &policy, SystemTime::now());
    assert_eq!(planned.remove.len(), 5);
    let in_use = store.lock_use(&keys[0].lock_name(), &Quiet).unwrap();
    let building = store.lock_build(&keys[1].lock_name(), &Quiet).unwrap();
    let new = NewLease {
        machine: "m".into(),
        artifact: keys[2].lock_name(),
        place: "here".into(),
        launch: Value::Null,
    };
    // Its launcher is gone: the machine may still be there.
    drop(store.lease(new).unwrap().unwrap());
    assert!(store.pin(&keys[3], &store.lock_use(&keys[3].lock_name(), &Quiet).unwrap()).unwrap());
    let collector = store.collector(&Quiet).unwrap();
    assert!(store.try_collector().unwrap().is_none(), "one at a time");
    let done = collector.carry_out(&planned, None, &Quiet);
    assert_eq!(done.removed, [Entry::Machine(keys[4])]);
    let spared: BTreeMap<_, _> = done.spared.into_iter().map(|spared| (spared.entry, spared.roots)).collect();
    let leased = Root::Leased { machine: "m".into() };
    for (key, root) in [(0, Root::InUse), (1, Root::InUse), (2, leased), (3, Root::Pinned)] {
        assert_eq!(spared[&Entry::Machine(keys[key])], [root]);
    }
    assert!(machines[..4].iter().all(is_there) && !machines[4].path.exists());
    // The next plan knows.
    let next = plan(&store.inventory().unwrap(), &policy, SystemTime::now());
    assert_eq!((next.remove.len(), next.kept.len()), (0, 4));
    drop((in_use, building));
    assert_eq!(plan(&store.inventory().unwrap(), &policy, SystemTime::now()).remove.len(), 2);
}

#[test]
fn a_lease_that_cannot_be_read_holds_everything() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let machine = build(&store, 1);
    let policy = Policy { all: true, ..Policy::default() };
    let planned = plan(&store.inventory().unwrap(), &policy, SystemTime::now());
    let lease = store.leases_dir().join("m.json");
    fsio::write_atomic(&store.scratch().unwrap(), &lease, b"{").unwrap();
    let done = store.collector(&Quiet).unwrap().carry_out(&planned, None, &Quiet);
    assert_eq!(done.spared[0].roots, [Root::Unknown { lease: lease.clone() }]);
    assert!(is_there(&machine));
    assert!(plan(&store.inventory().unwrap(), &policy, SystemTime::now()).remove.is_empty());
}

#[test]
fn what_a_newer_version_wrote_is_neither_removed_nor_its_blobs() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let machine = build(&store, 1);
    let publishing = store.publishing(&Quiet).unwrap();
    let blob = store.blobs().put(b"perhaps named", &publishing).unwrap();
    drop(publishing);
    let scratch = store.scratch().unwrap();
    let newer = serde_json::json!({ "schema": 99 });
    let image = Digest::of(b"newer");
    let receipt = store.bucket_dir(Bucket::Images).join(image.hex()).join("tarball.json");
    fsio::write_sealed(&scratch, &receipt, &newer).unwrap();
    fsio::write_sealed(&scratch, &machine.path.with_extension("json"), &newer).unwrap();
    let inventory = store.inventory().unwrap();
    assert_eq!(inventory.opaque.len(), 2);
    let policy = Policy { all: true, ..Policy::default() };
    let planned = plan(&inventory, &policy, SystemTime::now());
    assert_eq!(planned.remove, []);
    // Nor if it was planned before it was there.
    let before = gc::Plan {
        remove: vec![gc::Removal { entry: Entry::Blob(blob), reason: gc::Reason::Orphan, frees: 1 }],
        ..planned
    };
    let done = store.collector(&Quiet).unwrap().carry_out(&before, None, &Quiet);
    assert_eq!(done.removed, []);
    assert!(machine.path.exists() && receipt.exists() && store.blobs().has(&blob, 13));
}

#[test]
fn what_a_run_left_and_what_nobody_names_goes_and_the_rest_stays() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (cut_off, whole) = (build(&store, 1), build(&store, 2));
    std::fs::remove_file(cut_off.path.with_extension("json")).unwrap();
    let publishing = store.publishing(&Quiet).unwrap();
    let orphan = store.blobs().put(b"orphan", &publishing).unwrap();
    let planned = plan(&store.inventory().unwrap(), &Policy::default(), SystemTime::now());
    let collector = store.collector(&Quiet).unwrap();
    // While somebody publishes, blobs are left alone.
    let done = collector.carry_out(&planned, None, &Quiet);
    assert!(done.blobs_busy && store.blobs().has(&orphan, 6));
    drop(publishing);
    let planned = plan(&store.inventory().unwrap(), &Policy::default(), SystemTime::now());
    let done = collector.carry_out(&planned, None, &Quiet);
    assert_eq!(done.removed, [Entry::Blob(orphan)]);
    assert!(!cut_off.path.exists() && is_there(&whole));
    assert_eq!(std::fs::read_dir(store.trash_dir()).unwrap().count(), 0);
    assert_eq!(done.freed, planned.frees());
}

#[test]
fn a_receipt_that_cannot_be_read_may_name_anything() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let publishing = store.publishing(&Quiet).unwrap();
    let blob = store.blobs().put(b"perhaps named", &publishing).unwrap();
    drop(publishing);
    // To root no permission is missing: a folder in its place cannot be read either.
    let image = store.bucket_dir(Bucket::Images).join(Digest::of(b"i").hex());
    std::fs::create_dir_all(image.join("tarball.json")).unwrap();
    let machine = build(&store, 1);
    let receipt = machine.path.with_extension("json");
    std::fs::remove_file(&receipt).unwrap();
    std::fs::create_dir(&receipt).unwrap();
    let policy = Policy { all: true, ..Policy::default() };
    let planned = plan(&store.inventory().unwrap(), &policy, SystemTime::now());
    assert_eq!(planned.remove, []);
    store.collector(&Quiet).unwrap().carry_out(&planned, None, &Quiet);
    assert!(store.blobs().has(&blob, 13) && machine.path.exists());
}

#[test]
fn what_cannot_be_removed_keeps_nothing_else_from_going() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (first, second) = (build(&store, 1), build(&store, 2));
    let policy = Policy { all: true, ..Policy::default() };
    let planned = plan(&store.inventory().unwrap(), &policy, SystemTime::now());
    assert_eq!(planned.remove.len(), 2);
    // A folder where the lock file of one of them should be: no lock, no removal.
    let key = first.receipt.key();
    let lock = store.lock_path("build", &key.lock_name());
    let _ = std::fs::remove_file(&lock);
    std::fs::create_dir(&lock).unwrap();
    let done = store.collector(&Quiet).unwrap().carry_out(&planned, None, &Quiet);
    assert_eq!(done.removed, [Entry::Machine(second.receipt.key())]);
    assert_eq!(done.failed.len(), 1);
    assert_eq!(done.failed[0].0, Some(Entry::Machine(key)));
    assert!(is_there(&first) && !store.gc_is_due(Duration::from_secs(60)));
}
