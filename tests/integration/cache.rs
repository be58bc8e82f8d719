//! `cache dir | ls | du | verify`, and damage met in normal use.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use smolcellar_tests::archives::{docker_save, file, tar};
use smolcellar_tests::cellar::{Cellar, statuses};

fn built(cellar: &Cellar) -> (PathBuf, Value) {
    let archive = cellar.path("image.tar");
    let layer = tar(&[file("agent", &[1; 50_000]), file("data", &[2; 90_000])]);
    File::create(&archive).unwrap().write_all(&tar(&docker_save(&[layer]))).unwrap();
    let result = cellar.json(["build-agent", "--archive", archive.to_str().unwrap()]);
    (archive, result)
}

/// Changes one byte in the middle of a read-only file.
fn damage(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    let mut bytes = fs::read(path).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

#[test]
fn dir_ls_du_and_verify_agree_for_people_and_programs() {
    let cellar = Cellar::new();
    assert_eq!(cellar.run(["cache", "dir"]).stdout.trim(), cellar.cache().to_str().unwrap());
    assert!(!cellar.cache().exists(), "asking where it is does not make it");
    assert!(cellar.run(["cache", "ls"]).stdout.contains("no artifacts"));
    let (_, result) = built(&cellar);
    let listed = cellar.json(["cache", "ls"]);
    for key in ["agent", "image_id", "recipe", "artifact", "size", "sha256"] {
        assert_eq!(listed[key], result[key]);
    }
    let human = cellar.run(["cache", "ls"]).stdout;
    assert!(human.starts_with("AGENT") && human.contains("image ") && human.contains("just now"), "{human}");
    let usage = cellar.json(["cache", "du"]);
    let of = |folder: &str| {
        let buckets = usage["buckets"].as_array().unwrap();
        buckets.iter().find(|b| b["folder"] == folder).unwrap()["allocated"].as_u64().unwrap()
    };
    assert!(of("machines-v1") >= result["size"].as_u64().unwrap() && of("blobs-v1") > 140_000, "{usage}");
    let verified = cellar.json(["cache", "verify"]);
    assert!(verified["damaged"].as_array().unwrap().is_empty() && verified["entries"].as_u64().unwrap() >= 5);
    assert_eq!(cellar.json(["cache", "dir"])["dir"], cellar.cache().to_str().unwrap());
}

#[test]
fn a_damaged_artifact_is_found_quarantined_and_built_again_in_one_run() {
    let cellar = Cellar::new();
    let (archive, result) = built(&cellar);
    let artifact = Path::new(result["artifact"].as_str().unwrap());
    damage(artifact);
    let verify = cellar.run(["cache", "verify", "--keep"]);
    assert!(verify.code == 1 && verify.stdout.contains(artifact.to_str().unwrap()), "{verify:?}");
    let mut command =
        cellar.command(["build-agent", "--format", "json", "--archive", archive.to_str().unwrap()]);
    let ran = smolcellar_tests::cellar::ran(command.output().unwrap());
    assert!(ran.code == 0 && ran.stderr.contains("quarantined"), "{ran:?}");
    let again: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(statuses(&again), ["image:hit", "tarball:hit", "registry:hit", "smolmachine:miss"]);
    assert_eq!(again["sha256"], result["sha256"]);
    assert_eq!(fs::read_dir(cellar.cache().join("quarantine")).unwrap().count(), 1);
    cellar.assert_sound();
}

#[test]
fn a_damaged_blob_is_not_packed_but_taken_in_again() {
    let cellar = Cellar::new();
    let (archive, result) = built(&cellar);
    let artifact = Path::new(result["artifact"].as_str().unwrap());
    fs::remove_file(artifact).unwrap();
    let blobs = cellar.stored().into_iter().filter(|path| path.to_string_lossy().contains("blobs-v1"));
    let layer = blobs.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    damage(&layer);
    let again = cellar.json(["build-agent", "--archive", archive.to_str().unwrap()]);
    assert_eq!(statuses(&again)[1], "tarball:miss");
    assert_eq!(again["sha256"], result["sha256"]);
    cellar.assert_sound();
}

#[test]
fn a_damaged_receipt_is_a_miss_and_heals() {
    let cellar = Cellar::new();
    let (archive, result) = built(&cellar);
    for receipt in cellar.stored().into_iter().filter(|path| path.extension().is_some_and(|e| e == "json")) {
        damage(&receipt);
        let again = cellar.json(["build-agent", "--archive", archive.to_str().unwrap()]);
        assert_eq!(again["sha256"], result["sha256"], "{}", receipt.display());
    }
    // The damage of a receipt that nothing needed is still there to be seen.
    let verify = cellar.run(["cache", "verify"]);
    assert!(verify.code == 0 || verify.stdout.contains("seal"), "{verify:?}");
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let cellar = Cellar::new();
    built(&cellar);
    let command = format!("{} cache du | true", smolcellar_tests::cellar::program().display());
    let mut shell = std::process::Command::new("bash");
    let shell = shell
        .args(["-c", &format!("set -o pipefail; {command}")])
        .env("SMOLCELLAR_CACHE_DIR", cellar.cache());
    let output = shell.output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}
