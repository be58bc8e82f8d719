//! Random changes of the store's files: each is found, or changes nothing, and
//! no look-up ever yields wrong bytes.
#![allow(clippy::disallowed_methods, reason = "tests damage files")]

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;

use super::tests::{Lab, overwrite};
use super::*;
use crate::{Bucket, Lookup, fsio};

const MUTATIONS: u64 = 1_200;

/// xorshift64*: the same mutations in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % bound
    }
}

/// Every file whose contents matter.
fn files(store: &Store) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders: Vec<_> =
        [Bucket::Blobs, Bucket::Images, Bucket::Machines, Bucket::Pointers, Bucket::Registry]
            .map(|bucket| store.bucket_dir(bucket))
            .into();
    folders.push(store.pins_dir());
    while let Some(folder) = folders.pop() {
        for path in crate::machines::list(&folder).unwrap() {
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

fn contents(store: &Store) -> BTreeMap<PathBuf, Vec<u8>> {
    files(store).into_iter().map(|path| (path.clone(), fs::read(&path).unwrap())).collect()
}

/// What a file says: its bytes, or the value that is sealed in it.
#[derive(Debug, PartialEq)]
enum Meaning {
    Bytes(Vec<u8>),
    Sealed(Value),
    /// Nothing that anybody would believe.
    Nothing,
}

fn meaning(path: &Path) -> Meaning {
    let Ok(bytes) = fs::read(path) else { return Meaning::Nothing };
    match path.extension() {
        Some(extension) if extension == "json" => match fsio::unseal(&bytes, path, u64::MAX) {
            Ok(value) => Meaning::Sealed(value),
            Err(_) => Meaning::Nothing,
        },
        _ => Meaning::Bytes(bytes),
    }
}

fn mutate(random: &mut Random, all: &[PathBuf]) -> (String, Vec<PathBuf>) {
    let path = all[random.below(all.len())].clone();
    let mut bytes = fs::read(&path).unwrap();
    let at = random.below(bytes.len());
    let how = match random.below(7) {
        0 => {
            bytes[at] ^= 1 << random.below(8);
            "flip"
        }
        1 => {
            bytes.truncate(at);
            "truncate"
        }
        2 => {
            bytes.extend((0..=random.below(20)).map(|n| b" \n{0\xff"[n % 5]));
            "append"
        }
        3 => {
            let end = bytes.len().min(at + 1 + random.below(512));
            bytes[at..end].fill(0);
            "zero"
        }
        4 => {
            let end = bytes.len().min(at + 1 + random.below(8));
            bytes[at..end].iter_mut().for_each(|byte| *byte = random.below(256) as u8);
            "scribble"
        }
        5 => {
            fs::remove_file(&path).unwrap();
            return (format!("delete {}", path.display()), vec![path]);
        }
        _ => {
            // Within one kind: the more alike, the harder to find.
            let alike = |other: &&PathBuf| {
                **other != path
                    && other.extension() == path.extension()
                    && other.ancestors().nth(2) == path.ancestors().nth(2)
            };
            let others: Vec<_> = all.iter().filter(alike).collect();
            if let Some(other) = others.get(random.below(others.len().max(1))) {
                let between = path.with_extension("between");
                fs::rename(&path, &between).unwrap();
                fs::rename(other, &path).unwrap();
                fs::rename(&between, other).unwrap();
                return (
                    format!("swap {} {}", path.display(), other.display()),
                    vec![path, (*other).clone()],
                );
            }
            bytes.clear();
            "empty"
        }
    };
    overwrite(&path, &bytes);
    (format!("{how} at {at} of {}", path.display()), vec![path])
}

/// Nothing that is handed out differs from what was put in.
fn nothing_wrong_is_served(lab: &Lab, pristine: &BTreeMap<PathBuf, Vec<u8>>, what: &str) {
    let store = &lab.store;
    for key in &lab.keys {
        if let Ok(Lookup::Hit(machine)) = store.machine(key, false) {
            assert_eq!(&fs::read(&machine.path).unwrap(), &pristine[&machine.path], "{what}");
            assert_eq!(machine.receipt.key(), *key, "{what}");
        }
        for stage in ["tarball", "registry"] {
            let path = store.bucket_dir(Bucket::Images).join(key.image.hex()).join(format!("{stage}.json"));
            if let Ok(Some(receipt)) = store.stage_receipt(&key.image, stage)
                && receipt.image == key.image
                && receipt.stage == stage
            {
                let good = fsio::unseal(&pristine[&path], &path, 1).unwrap();
                assert_eq!(receipt, good, "{what}");
            }
        }
    }
    for path in pristine.keys().filter(|path| path.starts_with(store.bucket_dir(Bucket::Blobs))) {
        let digest = Digest::from_hex(path.file_name().unwrap().to_str().unwrap()).unwrap();
        if let Ok(bytes) = store.blobs().get(&digest) {
            assert_eq!(&bytes, &pristine[path], "{what}");
        }
    }
}

/// Whether what was found names a file, or the entry that it is part of.
fn names(found: &Verification, path: &Path) -> bool {
    let entry = path.with_extension("");
    let damaged = found.damaged.iter().map(|finding| &finding.path);
    damaged.chain(&found.newer).chain(&found.leftovers).any(|named| named.with_extension("") == entry)
}

#[test]
fn a_thousand_random_changes_are_all_found_before_use_or_change_nothing() {
    let lab = Lab::new(4, 3000);
    let pristine = contents(&lab.store);
    let meanings: BTreeMap<_, _> = pristine.keys().map(|path| (path.clone(), meaning(path))).collect();
    let all: Vec<_> = pristine.keys().cloned().collect();
    let mut random = Random(0x5EED_0F5E);
    let mut harmless = 0;
    for round in 0..MUTATIONS {
        let (how, changed) = mutate(&mut random, &all);
        let what = format!("round {round}: {how}");
        let now: Vec<_> = changed.iter().map(|path| meaning(path)).collect();
        // Deleting is allowed; where other files name what is gone, it is seen.
        let gone = changed.iter().any(|path| !path.exists());
        if round % 2 == 0 {
            nothing_wrong_is_served(&lab, &pristine, &what);
        }
        let found = lab.sweep();
        assert_eq!(found.unfinished, None);
        nothing_wrong_is_served(&lab, &pristine, &what);
        for (path, now) in changed.iter().zip(now) {
            let is_seal = path.extension().is_some_and(|extension| extension == "stat");
            let in_bucket = |bucket| path.starts_with(lab.store.bucket_dir(bucket));
            if is_seal || now == meanings[path] {
                harmless += 1;
                assert!(found.damaged.is_empty(), "{what}: {found:?}");
            } else if gone && in_bucket(Bucket::Blobs) {
                let missing = |finding: &Finding| finding.problem.contains("missing");
                assert!(found.damaged.iter().any(missing), "{what}: {found:?}");
            } else if gone && !in_bucket(Bucket::Machines) {
                assert!(found.damaged.is_empty(), "{what}: {found:?}");
            } else {
                assert!(names(&found, path), "{what}: {found:?}");
            }
        }
        restore(&lab, &pristine);
    }
    assert!(harmless < MUTATIONS / 3, "{harmless}");
}

/// Puts everything back as it was, and lets the store seal it.
fn restore(lab: &Lab, pristine: &BTreeMap<PathBuf, Vec<u8>>) {
    for (path, bytes) in pristine {
        if fs::symlink_metadata(path).is_ok_and(|m| m.is_file()) && fs::read(path).unwrap() == *bytes {
            continue;
        }
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        overwrite(path, bytes);
    }
    let _ = fs::remove_dir_all(lab.store.quarantine_dir());
    for key in &lab.keys {
        assert!(matches!(lab.store.machine(key, false).unwrap(), Lookup::Hit(_)));
    }
}
