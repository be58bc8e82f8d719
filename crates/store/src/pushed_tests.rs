//! What was pushed: read back, collected, verified.
#![allow(clippy::disallowed_methods, reason = "tests damage files")]

use std::time::Duration;

use super::*;
use crate::gc::{self, Entry, Policy, Reason};
use crate::{OpenOptions, Quiet, VerifyOptions};

fn open(dir: &Path) -> Store {
    Store::open(&dir.join("c"), OpenOptions::default()).unwrap()
}

/// A manifest of one blob, and a tag of its own.
fn push(store: &Store, repository: &str, text: &str, children: &[Digest]) -> PushedManifest {
    let lock = store.lock_repository(repository, &Quiet).unwrap();
    let publishing = store.publishing(&Quiet).unwrap();
    let blob = |role: &str, text: &str| BlobRef {
        role: role.into(),
        digest: store.blobs().put(text.as_bytes(), &publishing).unwrap(),
        size: text.len() as u64,
    };
    let blobs = vec![blob("manifest", &format!("manifest {text}")), blob("layer", &format!("layer {text}"))];
    let receipt = PushedManifest {
        schema: PushedManifest::SCHEMA,
        repository: repository.into(),
        manifest: blobs[0].digest,
        media_type: "m".into(),
        artifact_type: None,
        subject: None,
        annotations: BTreeMap::new(),
        children: children.to_vec(),
        blobs,
        pushed_at: 1,
    };
    store.commit_pushed(&receipt, &lock, &publishing).unwrap();
    let tag = PushedTag {
        schema: PushedTag::SCHEMA,
        repository: repository.into(),
        tag: text.into(),
        manifest: receipt.manifest,
        pushed_at: 1,
    };
    store.commit_tag(&tag, &lock).unwrap();
    receipt
}

fn age(store: &Store, receipt: &PushedManifest, days: u64) {
    let then = SystemTime::now() - Duration::from_secs(days * 86_400);
    for path in store.files_of(&PushedKey::new(&receipt.repository, receipt.manifest)).unwrap() {
        fs::File::open(path).unwrap().set_modified(then).unwrap();
    }
}

fn planned(store: &Store, policy: Policy) -> gc::Plan {
    gc::plan(&store.inventory().unwrap(), &policy, SystemTime::now())
}

#[test]
fn what_was_pushed_is_found_by_digest_and_tag_in_its_repository_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (a, b) = (push(&store, "a", "one", &[]), push(&store, "team/b", "two", &[]));
    assert_eq!(store.pushed("a", &a.manifest).unwrap(), Some(a.clone()));
    assert_eq!(store.pushed("a", &b.manifest).unwrap(), None);
    assert_eq!(store.pushed_tag("a", "one").unwrap().unwrap().manifest, a.manifest);
    assert_eq!(store.pushed_tag("a", "two").unwrap(), None);
    assert_eq!(store.pushed_repositories().unwrap(), ["a", "team/b"]);
    assert_eq!(store.pushed_manifests("team/b").unwrap(), [b]);
    let lock = store.lock_repository("a", &Quiet).unwrap();
    assert!(store.remove_pushed("a", &a.manifest, &lock).unwrap());
    assert!(!store.remove_pushed("a", &a.manifest, &lock).unwrap());
    // Its tags went with it, and the folder with the last of them.
    assert_eq!(store.pushed_tag("a", "one").unwrap(), None);
    assert_eq!(store.pushed_repositories().unwrap(), ["team/b"]);
}

#[test]
fn blobs_of_what_was_pushed_stay_until_it_goes_by_age_or_size() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (old, new) = (push(&store, "a", "old", &[]), push(&store, "a", "new", &[]));
    age(&store, &old, 10);
    assert_eq!(planned(&store, Policy::default()).remove, []);
    let policy = Policy { max_age: Some(Duration::from_secs(5 * 86_400)), ..Policy::default() };
    let plan = planned(&store, policy);
    assert!(matches!(
        &plan.remove[..],
        [gc::Removal { entry: Entry::Pushed { .. }, reason: Reason::Unused(_), .. }]
    ));
    // Pulled since: it stays.
    store.touch_pushed("a", &old.manifest);
    let collector = store.collector(&Quiet).unwrap();
    assert_eq!(collector.carry_out(&plan, None, &Quiet).spared.len(), 1);
    age(&store, &old, 10);
    let plan = planned(&store, policy);
    let done = collector.carry_out(&plan, None, &Quiet);
    assert_eq!((done.freed, done.failed.len()), (plan.frees(), 0));
    let has = |receipt: &PushedManifest| receipt.blobs.iter().all(|b| store.blobs().has(&b.digest, b.size));
    assert!(!has(&old) && has(&new));
    assert_eq!(store.pushed_tag("a", "old").unwrap(), None);
    let small = Policy { max_size: Some(gc::Amount::Bytes(0)), ..Policy::default() };
    let reasons: Vec<_> = planned(&store, small).remove.iter().map(|removal| removal.reason).collect();
    assert!(matches!(reasons[..], [Reason::LeastRecent(_)]), "{reasons:?}");
}

#[test]
fn an_index_goes_before_what_it_is_an_index_of() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let part = push(&store, "a", "part", &[]);
    let index = push(&store, "a", "index", &[part.manifest]);
    age(&store, &part, 10);
    age(&store, &index, 3);
    let policy =
        |days: u64| Policy { max_age: Some(Duration::from_secs(days * 86_400)), ..Policy::default() };
    assert_eq!(planned(&store, policy(5)).remove, [], "the part was used with the index");
    let order = |plan: gc::Plan| -> Vec<Digest> {
        let manifest = |removal: &gc::Removal| match &removal.entry {
            Entry::Pushed { key, .. } => Some(key.manifest),
            _ => None,
        };
        plan.remove.iter().filter_map(manifest).collect()
    };
    assert_eq!(order(planned(&store, policy(2))), [index.manifest, part.manifest]);
    let small = Policy { max_size: Some(gc::Amount::Bytes(0)), ..Policy::default() };
    assert_eq!(order(planned(&store, small)), [index.manifest, part.manifest]);
}

#[test]
fn whoever_changes_a_repository_keeps_the_collector_out_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    push(&store, "a", "one", &[]);
    let all = Policy { all: true, ..Policy::default() };
    let plan = planned(&store, all);
    let lock = store.lock_repository("a", &Quiet).unwrap();
    assert_eq!(planned(&store, all).remove, []);
    let collector = store.collector(&Quiet).unwrap();
    assert_eq!(collector.carry_out(&plan, None, &Quiet).removed, []);
    drop(lock);
    assert_eq!(collector.carry_out(&plan, None, &Quiet).removed.len(), 3, "it and its two blobs");
    assert!(!store.bucket_dir(Bucket::Registry).join(Digest::of(b"a").hex()).exists());
}

#[test]
fn verify_understands_all_of_it_and_moves_what_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (a, b) = (push(&store, "a", "one", &[]), push(&store, "a", "two", &[]));
    let options = VerifyOptions { quarantine: true, ..VerifyOptions::default() };
    assert_eq!(store.verify(&options, &Quiet).unwrap().damaged, []);
    let usage = store.usage().unwrap();
    let bucket = usage.buckets.iter().find(|bucket| bucket.folder == "registry-v1").unwrap();
    assert!(bucket.files == 4 && bucket.reclaimable == bucket.allocated);
    // A receipt under another's name, a damaged tag, a stray file, a lost blob.
    let (receipt, other) = (store.pushed_path("a", &a.manifest), store.pushed_path("a", &Digest::of(b"x")));
    fs::copy(&receipt, &other).unwrap();
    let tag = store.tag_path("a", "one");
    fs::remove_file(&tag).unwrap();
    fs::write(&tag, b"{}").unwrap();
    let stray = store.repository_dir(&Digest::of(b"a")).join("stray");
    fs::write(&stray, b"").unwrap();
    fs::remove_file(store.blobs().path(&b.blobs[1].digest)).unwrap();
    assert_eq!(store.pushed_tag("a", "one").unwrap(), None);
    assert_eq!(store.pushed("a", &Digest::of(b"x")).unwrap(), None);
    let found = store.verify(&options, &Quiet).unwrap();
    let problems: Vec<_> = found.damaged.iter().map(|finding| finding.problem.as_str()).collect();
    assert_eq!(problems.len(), 4, "{problems:?}");
    for says in ["something else", "seal", "none that cache-layout.md knows", "is missing"] {
        assert!(problems.iter().any(|problem| problem.contains(says)), "{says}: {problems:?}");
    }
    assert!(!other.exists() && !tag.exists() && !stray.exists() && receipt.exists());
    // A tag without its manifest is named, and stays.
    let lock = store.lock_repository("a", &Quiet).unwrap();
    fs::remove_file(store.pushed_path("a", &b.manifest)).unwrap();
    drop(lock);
    let found = store.verify(&options, &Quiet).unwrap();
    assert_eq!(found.damaged.len(), 1);
    assert!(found.damaged[0].problem.contains("is not there"));
}

#[test]
fn a_receipt_of_a_newer_version_holds_every_blob() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let a = push(&store, "a", "one", &[]);
    let path = store.pushed_path("a", &a.manifest);
    fsio::write_sealed(&store.scratch().unwrap(), &path, &serde_json::json!({ "schema": 99 })).unwrap();
    let all = Policy { all: true, ..Policy::default() };
    let plan = planned(&store, all);
    store.collector(&Quiet).unwrap().carry_out(&plan, None, &Quiet);
    assert!(a.blobs.iter().all(|blob| store.blobs().has(&blob.digest, blob.size)) && path.exists());
}
