use super::*;
use smolcellar_store::{Bucket, OpenOptions, Quiet, fsio};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

fn write(path: &Path, bytes: &[u8], mode: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut file = fsio::create_new(path).unwrap();
    std::io::Write::write_all(&mut file, bytes).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A runtime whose program counts how often it was started.
fn fake(dir: &Path, version: &str) {
    let script = format!("#!/bin/sh\necho x >> '{}/calls'\necho smolvm {version}\n", dir.display());
    write(&dir.join("smolvm"), script.as_bytes(), 0o755);
    for name in ["libkrun.so", "libkrunfw.so.5", "libkrun.dylib", "libkrunfw.5.dylib"] {
        write(&dir.join("lib").join(name), b"library", 0o755);
    }
    write(&dir.join("agent-rootfs/sbin/init"), b"init", 0o755);
}

fn calls(dir: &Path) -> usize {
    fs::read_to_string(dir.join("calls")).map_or(0, |calls| calls.lines().count())
}

struct Lab {
    dir: tempfile::TempDir,
    store: Store,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), OpenOptions::default()).unwrap();
        Self { dir, store }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn configured(&self, dir: &Path) -> Result<Option<Runtime>> {
        find_in(&self.store, &Quiet, &RuntimeConfig { dir: Some(dir.to_owned()) }, &Surroundings::default())
    }
}

#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Reporter for Heard {
    fn report(&self, event: Event<'_>) {
        if let Event::Warn { text } = event {
            self.0.lock().unwrap().push(text.to_owned());
        }
    }
}

#[test]
fn a_configured_folder_is_asked_for_its_version_once() {
    let lab = Lab::new();
    let dir = lab.at("mine");
    fake(&dir, "1.9.3");
    let first = lab.configured(&dir).unwrap().unwrap();
    assert_eq!(first.origin, Origin::Configured(dir.clone()));
    assert_eq!((first.version, first.lib_dir.clone()), ("1.9.3".parse().unwrap(), dir.join("lib")));
    assert_eq!(first.agent_rootfs, dir.join("agent-rootfs"));
    assert_eq!(Digest::of_file(&first.rootfs_tar).unwrap(), first.rootfs_digest);
    assert_eq!(fs::metadata(&first.rootfs_tar).unwrap().len(), first.rootfs_size);
    assert_eq!(lab.configured(&dir).unwrap().unwrap(), first);
    assert_eq!(calls(&dir), 1);
}

#[test]
fn a_changed_agent_rootfs_or_program_is_derived_anew_and_a_marker_is_not() {
    let lab = Lab::new();
    let dir = lab.at("mine");
    fake(&dir, "1.9.3");
    let first = lab.configured(&dir).unwrap().unwrap();
    write(&dir.join("agent-rootfs/.smolvm-ready.0a"), b"", 0o644);
    assert_eq!(lab.configured(&dir).unwrap().unwrap(), first);
    fs::remove_file(dir.join("agent-rootfs/sbin/init")).unwrap();
    write(&dir.join("agent-rootfs/sbin/init"), b"tini", 0o755);
    let second = lab.configured(&dir).unwrap().unwrap();
    assert_ne!(second.rootfs_digest, first.rootfs_digest);
    fs::remove_file(dir.join("smolvm")).unwrap();
    write(&dir.join("smolvm"), b"#!/bin/sh\necho smolvm 1.32.2\n", 0o755);
    assert_eq!(lab.configured(&dir).unwrap().unwrap().version, crate::Version::new(1, 32, 2));
}

#[test]
fn an_archive_of_the_agent_rootfs_is_unpacked_into_the_store() {
    let lab = Lab::new();
    let dir = lab.at("mine");
    fake(&dir, "1.9.3");
    let folder = lab.configured(&dir).unwrap().unwrap();
    // The same agent rootfs as an archive only.
    let tar = fs::read(&folder.rootfs_tar).unwrap();
    fs::remove_dir_all(dir.join("agent-rootfs")).unwrap();
    write(&dir.join("agent-rootfs.tar.zst"), &zstd::encode_all(&tar[..], 1).unwrap(), 0o644);
    let archive = lab.configured(&dir).unwrap().unwrap();
    assert_eq!(archive.rootfs_digest, folder.rootfs_digest);
    assert!(archive.agent_rootfs.starts_with(lab.store.bucket_dir(Bucket::Runtimes)));
    assert_eq!(fs::read(archive.agent_rootfs.join("sbin/init")).unwrap(), b"init");
    assert_eq!(crate::verify(&lab.store).unwrap().problems, []);
}

#[test]
fn a_damaged_receipt_or_archive_in_the_store_is_made_again() {
    let lab = Lab::new();
    let dir = lab.at("mine");
    fake(&dir, "1.9.3");
    let runtime = lab.configured(&dir).unwrap().unwrap();
    let receipt = runtime.rootfs_tar.with_file_name("runtime.json");
    for victim in [receipt, runtime.rootfs_tar.clone()] {
        fs::set_permissions(&victim, fs::Permissions::from_mode(0o644)).unwrap();
        fs::OpenOptions::new().write(true).open(&victim).unwrap().set_len(100).unwrap();
        assert!(!crate::verify(&lab.store).unwrap().problems.is_empty());
        assert_eq!(lab.configured(&dir).unwrap().unwrap(), runtime);
        assert_eq!(crate::verify(&lab.store).unwrap().problems, []);
    }
}

#[test]
fn a_derived_archive_of_the_right_size_and_wrong_bytes_is_discarded_and_derived_again() {
    let lab = Lab::new();
    let dir = lab.at("mine");
    fake(&dir, "1.9.3");
    let runtime = lab.configured(&dir).unwrap().unwrap();
    let config = RuntimeConfig { dir: Some(dir.clone()) };
    assert!(!discard_damaged(&lab.store, &Quiet, &config).unwrap(), "a whole one stays");
    let victim = &runtime.rootfs_tar;
    for by_path in [false, true] {
        let mut bytes = fs::read(victim).unwrap();
        bytes[600] ^= 1;
        fsio::write_atomic(&lab.store.scratch().unwrap(), victim, &bytes).unwrap();
        assert_eq!(lab.configured(&dir).unwrap().unwrap(), runtime, "sizes alone do not show it");
        let problem = crate::verify(&lab.store).unwrap().problems.remove(0);
        match by_path {
            false => assert!(discard_damaged(&lab.store, &Quiet, &config).unwrap()),
            true => {
                let options = crate::InstallOptions { offline: true, ..crate::InstallOptions::default() };
                let done = crate::repair(&lab.store, &Quiet, &problem.path, &options).unwrap();
                assert_eq!(done, crate::Repaired::Discarded);
            }
        }
        assert_eq!(lab.configured(&dir).unwrap().unwrap(), runtime);
        assert_eq!(crate::verify(&lab.store).unwrap().problems, []);
    }
}

#[test]
fn a_configured_folder_that_cannot_be_used_is_an_error_with_a_remedy() {
    let lab = Lab::new();
    let error = lab.configured(&lab.at("absent")).unwrap_err().to_string();
    assert!(error.contains("absent") && error.contains("SMOLCELLAR_SMOLVM_DIR"), "{error}");
    fake(&lab.at("old"), "0.7.2");
    assert!(matches!(lab.configured(&lab.at("old")), Err(Error::TooOld { .. })));
    fake(&lab.at("odd"), "unknown");
    assert!(matches!(lab.configured(&lab.at("odd")), Err(Error::NoVersion { .. })));
}

#[test]
fn an_installed_smolvm_is_used_and_a_useless_one_passed_over_aloud() {
    let lab = Lab::new();
    let heard = Heard::default();
    let find = |name: &str| {
        let surroundings = Surroundings { path: lab.at(name).into(), ..Default::default() };
        find_in(&lab.store, &heard, &RuntimeConfig::default(), &surroundings).unwrap()
    };
    fake(&lab.at("new"), "1.32.2");
    let runtime = find("new").unwrap();
    assert_eq!(runtime.origin, Origin::Installed(lab.at("new/smolvm")));
    assert_eq!(heard.0.lock().unwrap().len(), 0);
    fake(&lab.at("old"), "0.7.2");
    assert_eq!(find("old"), None);
    write(&lab.at("bare/smolvm"), b"#!/bin/sh\n", 0o755);
    assert_eq!(find("bare"), None);
    assert_eq!(find("nothing"), None);
    let heard = heard.0.lock().unwrap();
    assert_eq!(heard.len(), 2);
    assert!(heard[0].contains("0.7.2") && heard[1].contains("libkrun"), "{heard:?}");
}

#[test]
fn finding_what_was_found_before_takes_no_time() {
    let lab = Lab::new();
    let dir = lab.at("mine");
    fake(&dir, "1.32.2");
    for folder in 0..100 {
        for file in 0..9 {
            write(&dir.join(format!("agent-rootfs/d{folder}/f{file}")), b"x", 0o644);
        }
    }
    lab.configured(&dir).unwrap();
    let best = (0..5).map(|_| {
        let began = Instant::now();
        lab.configured(&dir).unwrap();
        began.elapsed()
    });
    // 5 ms is the aim; the rest is room for a busy machine and a debug build.
    assert!(best.min().unwrap().as_millis() < 50);
}
