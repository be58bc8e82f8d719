//! Faults injected below the program: a kill or an error at every Nth system
//! call (strace), and disks of different sizes that fill up (tmpfs).
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests run programs, and a panic is how they report"
)]

mod collect;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use smolcellar_tests::archives::{docker_save, file, tar};
use smolcellar_tests::cellar::{Cellar, Ran, program, ran, runtime};
use smolcellar_tests::needs::{Need, have};

/// An archive of about 3 MB that does not compress.
fn archive(dir: &Cellar) -> PathBuf {
    let mut state = 88_172_645_463_325_252_u64;
    let mut noise = |length: usize| -> Vec<u8> {
        let next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        };
        std::iter::repeat_with(next).take(length / 8).flatten().collect()
    };
    let layers = [
        tar(&[file("agent", &noise(1_500_000)), file("data", &noise(700_000))]),
        tar(&[file("more", &noise(800_000)), file(".wh.data", b"")]),
    ];
    let path = dir.path("image.tar");
    File::create(&path).unwrap().write_all(&tar(&docker_save(&layers))).unwrap();
    path
}

/// The build under strace with one fault. `inject` is strace's expression.
fn with_fault(cellar: &Cellar, archive: &Path, inject: &str) -> Ran {
    let output = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={}", inject.split(':').next().unwrap())])
        .args(["-e", &format!("inject={inject}")])
        .arg(program())
        .args(["build-agent", "--format", "json", "--archive"])
        .arg(archive)
        .current_dir(cellar.project())
        .env("SMOLCELLAR_CACHE_DIR", cellar.cache())
        .env("SMOLCELLAR_SMOLVM_DIR", runtime())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    ran(output)
}

fn build(cellar: &Cellar, archive: &Path) -> Value {
    cellar.json(["build-agent".as_ref(), "--archive".as_ref(), archive.as_os_str()])
}

/// Empties the cache but for the runtime's part, which is made before.
fn forget(cellar: &Cellar) {
    for bucket in ["blobs-v1", "images-v1", "machines-v1", "pointers-v1"] {
        let _ = std::fs::remove_dir_all(cellar.cache().join(bucket));
    }
}

#[test]
fn a_kill_at_every_file_system_call_leaves_nothing_that_is_trusted() {
    if !have(&[Need::Program("strace")]) {
        return;
    }
    let cellar = Cellar::new();
    let archive = archive(&cellar);
    let reference = build(&cellar, &archive);
    let mut killed = 0;
    for call in [
        "rename,renameat,renameat2",
        "fsync,fdatasync",
        "openat",
        "mkdir,mkdirat",
        "fchmod",
        "unlink,unlinkat,rmdir",
    ] {
        for nth in [1, 2, 3, 4, 5, 6, 8, 10, 13, 17] {
            forget(&cellar);
            let broken = with_fault(&cellar, &archive, &format!("{call}:signal=KILL:when={nth}"));
            killed += usize::from(broken.code == 137);
            let result = build(&cellar, &archive);
            assert_eq!(result["sha256"], reference["sha256"], "{call} {nth}: {broken:?}");
            cellar.assert_sound();
        }
    }
    assert!(killed > 30, "strace killed only {killed} runs");
}

#[test]
fn an_error_of_every_kind_of_write_is_reported_and_leaves_the_store_as_it_was() {
    if !have(&[Need::Program("strace")]) {
        return;
    }
    let cellar = Cellar::new();
    let archive = archive(&cellar);
    let reference = build(&cellar, &archive);
    let mut failed = 0;
    for (call, error, text) in [
        ("fsync", "EIO", "fsync"),
        ("fsync", "ENOSPC", "space"),
        ("rename,renameat,renameat2", "ENOSPC", "space"),
        ("mkdir,mkdirat", "EDQUOT", "folder"),
        ("write", "ENOSPC", "space"),
    ] {
        for nth in [1, 2, 3, 5, 8, 12, 20] {
            forget(&cellar);
            let broken = with_fault(&cellar, &archive, &format!("{call}:error={error}:when={nth}"));
            // Some calls are not the store's: a lock's note, a line of output.
            if broken.code != 0 {
                failed += 1;
                let said = broken.stderr.contains("error: ") && broken.stderr.contains("because: ");
                assert!(said || broken.stderr.contains(text), "{call} {error} {nth}: {broken:?}");
            }
            let result = build(&cellar, &archive);
            assert_eq!(result["sha256"], reference["sha256"], "{call} {error} {nth}");
            cellar.assert_sound();
        }
    }
    assert!(failed > 15, "only {failed} runs failed");
}

/// A file system of its own, unmounted when dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(at: PathBuf, size: &str) -> Option<Self> {
        std::fs::create_dir(&at).unwrap();
        let options = format!("size={size},mode=0700");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&at).status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(at))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_disk_that_fills_up_is_named_with_the_remedy_and_what_was_there_still_hits() {
    if !have(&[Need::Root, Need::Program("mount")]) {
        return;
    }
    let cellar = Cellar::new();
    let archive = archive(&cellar);
    // The runtime's part takes some 38 MB, the image 3, the artifact 17.
    let mut full = 0;
    for (number, size) in ["1m", "8m", "30m", "39m", "41m", "43m", "48m", "54m"].into_iter().enumerate() {
        let Some(disk) = Tmpfs::mount(cellar.path(&format!("disk-{number}")), size) else {
            panic!("root cannot mount a tmpfs here");
        };
        let cache = disk.0.join("cache");
        let mut command = cellar.command(["build-agent".as_ref(), "--archive".as_ref(), archive.as_os_str()]);
        let broken = ran(command.env("SMOLCELLAR_CACHE_DIR", &cache).output().unwrap());
        if broken.code == 0 {
            continue;
        }
        full += 1;
        let complaint = &broken.stderr;
        assert!(
            complaint.contains("No space left") && complaint.contains("--cache-dir"),
            "{size}: {broken:?}"
        );
        assert!(
            complaint.contains(cache.to_str().unwrap()) || complaint.contains("artifact"),
            "{size}: {broken:?}"
        );
        let tmp = std::fs::read_dir(cache.join("tmp")).into_iter().flatten().count();
        assert_eq!(tmp, 0, "{size}: temporary files are left");
        let verify =
            ran(cellar.command(["cache", "verify"]).env("SMOLCELLAR_CACHE_DIR", &cache).output().unwrap());
        // Where not even the store's own folder fits, there is nothing to verify.
        assert!(verify.code == 0 || verify.stderr.contains("No space left"), "{size}: {verify:?}");
    }
    assert!(full >= 4, "only {full} disks were full");
}
