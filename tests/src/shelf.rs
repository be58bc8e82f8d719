//! Caches with artifacts that were packed, but built from no image.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;

use serde_json::{Value, json};
use smolcellar_oci::{CANONICAL_VERSION, ImageId, Platform};
use smolcellar_pack::{AgentRootfs, MachineSpec, PACKER_VERSION, cut, zstd_version};
use smolcellar_store::{
    Digest, Lookup, Machine, MachineKey, MachineReceipt, OpenOptions, Quiet, Store, fsio,
};
use tempfile::TempDir;

use crate::archives::{file, tar};

/// A cache and a folder beside it.
#[derive(Debug)]
pub struct Shelf {
    dir: TempDir,
    /// The cache.
    pub store: Store,
}

impl Shelf {
    /// An empty cache.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("cache"), OpenOptions::default()).unwrap();
        Self { dir, store }
    }

    /// Beside the cache.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Packs an artifact of these files, of an image that there is not, and
    /// publishes it for `agent`. The same files are the same artifact.
    pub fn machine(&self, agent: &str, files: &[(String, Vec<u8>)]) -> Machine {
        let entries: Vec<_> = files.iter().map(|(path, bytes)| file(path, bytes)).collect();
        let layer = tar(&entries);
        let image = Digest::of(&layer);
        let work = self.store.temp_dir().unwrap();
        let put = |name: &str, bytes: &[u8]| {
            let path = work.path().join(name);
            fsio::create_new(&path).unwrap().write_all(bytes).unwrap();
            path
        };
        let layer = fs::File::open(put("layer", &layer)).unwrap();
        let rootfs = smolcellar_oci::flatten(vec![layer]).unwrap();
        let init = AgentRootfs { path: put("init", b"init"), size: 4, digest: Digest::of(b"init") };
        let spec = MachineSpec {
            image: ImageId(image),
            platform: Platform::guest(),
            host_platform: Platform::guest().to_string(),
            entrypoint: vec!["/agent".into()],
            cmd: vec![],
            env: vec!["A=b".into()],
            workdir: None,
            user: None,
            cpus: 1,
            memory_mib: 512,
            created: "2026-01-01T00:00:00Z".into(),
            smolvm_version: "1.32.2".into(),
            level: 1,
        };
        let path = work.path().join("packed");
        let mut out = fsio::create_new(&path).unwrap();
        let packed = smolcellar_pack::pack(&spec, &rootfs, &init, &mut out, &Quiet).unwrap();
        let inputs: BTreeMap<String, Value> = [
            ("canonical-version", json!(CANONICAL_VERSION)),
            ("compression-level", json!(1)),
            ("cpus", json!(1)),
            ("cut-version", json!(cut::CUT_VERSION)),
            ("packer", json!("native")),
            ("packer-version", json!(PACKER_VERSION)),
            ("platform", json!(Platform::guest().to_string())),
            ("zstd-version", json!(zstd_version())),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        let receipt = MachineReceipt {
            schema: MachineReceipt::SCHEMA,
            image,
            recipe: MachineReceipt::recipe_of(&inputs),
            inputs,
            size: packed.size,
            sha256: packed.sha256,
            agent: agent.to_owned(),
            built_at: 1_700_000_000,
            millis: 5,
        };
        self.store.publish_machine(&out, &path, receipt).unwrap()
    }

    /// Whether an artifact is there and all its bytes are its receipt's.
    pub fn has(&self, key: &MachineKey) -> bool {
        matches!(self.store.machine(key, true).unwrap(), Lookup::Hit(_))
    }

    /// Asserts that all that is there is whole, that nothing lies in quarantine,
    /// and that no temporary file is left.
    pub fn assert_sound(&self) {
        for key in self.store.machine_keys().unwrap() {
            assert!(self.has(&key), "{key} is damaged");
        }
        assert_eq!(self.store.quarantined().unwrap(), 0);
        let mut pending = vec![self.store.root().join("tmp")];
        while let Some(dir) = pending.pop() {
            for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
                match entry.file_type().unwrap().is_dir() {
                    true => pending.push(entry.path()),
                    false => assert_eq!(entry.file_name(), "owner", "{}", entry.path().display()),
                }
            }
        }
    }
}

impl Default for Shelf {
    fn default() -> Self {
        Self::new()
    }
}

/// Files of noise, `count` of `length` bytes; `seed` makes them others.
pub fn noise(seed: u64, count: usize, length: usize) -> Vec<(String, Vec<u8>)> {
    let one = |number: usize| {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes()).update(&(number as u64).to_le_bytes());
        let mut bytes = vec![0; length];
        hasher.finalize_xof().fill(&mut bytes);
        (format!("file-{number:03}"), bytes)
    };
    (0..count).map(one).collect()
}
