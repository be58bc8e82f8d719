//! `cache verify`, with and without `--repair`, and damage met in normal use.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use smolcellar_tests::archives::{docker_save, file, tar};
use smolcellar_tests::cellar::{Cellar, Ran, ran};
use smolcellar_tests::engine::busybox_project;
use smolcellar_tests::needs::{Need, have};

fn archived(cellar: &Cellar) -> (PathBuf, Value) {
    let archive = cellar.path("image.tar");
    let layer = tar(&[file("agent", &[1; 50_000]), file("data", &[2; 90_000])]);
    fs::write(&archive, tar(&docker_save(&[layer]))).unwrap();
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

/// The program where there is no container engine.
fn without_engine(cellar: &Cellar, args: &[&str]) -> Ran {
    ran(cellar.command(args).env("PATH", cellar.path("nowhere")).output().unwrap())
}

fn artifact(result: &Value) -> PathBuf {
    PathBuf::from(result["artifact"].as_str().unwrap())
}

fn of_bucket(cellar: &Cellar, bucket: &str) -> Vec<PathBuf> {
    cellar.stored().into_iter().filter(|path| path.to_string_lossy().contains(bucket)).collect()
}

fn largest(paths: Vec<PathBuf>) -> PathBuf {
    paths.into_iter().max_by_key(|path| path.metadata().unwrap().len()).unwrap()
}

fn quarantined(cellar: &Cellar) -> usize {
    fs::read_dir(cellar.cache().join("quarantine")).map_or(0, Iterator::count)
}

#[test]
fn damage_met_by_a_build_heals_with_one_line_that_says_so() {
    let cellar = Cellar::new();
    let (archive, result) = archived(&cellar);
    damage(&artifact(&result));
    let again = cellar.run(["build-agent", "--progress", "plain", "--archive", archive.to_str().unwrap()]);
    assert_eq!(again.code, 0, "{again:?}");
    assert_eq!(again.stderr.matches("damaged").count(), 1, "{again:?}");
    assert_eq!(again.stderr.matches("quarantined").count(), 1, "{again:?}");
    assert_eq!(cellar.json(["cache", "ls"])["sha256"], result["sha256"]);
    assert_eq!(cellar.run(["cache", "verify"]).code, 0);
}

#[test]
fn verify_moves_a_damaged_artifact_and_repair_brings_back_the_same_bytes() {
    let cellar = Cellar::new();
    let (_, result) = archived(&cellar);
    let path = artifact(&result);
    let good = fs::read(&path).unwrap();
    damage(&path);
    let kept = cellar.run(["cache", "verify", "--keep"]);
    assert!(kept.code == 1 && kept.stdout.contains("kept: nothing was to be moved"), "{kept:?}");
    assert!(path.exists() && quarantined(&cellar) == 0);
    let moved = cellar.run(["cache", "verify"]);
    assert!(moved.code == 1 && moved.stdout.contains("; quarantined\n"), "{moved:?}");
    assert!(!path.exists() && quarantined(&cellar) == 1);
    assert_eq!(cellar.run(["cache", "verify"]).code, 0, "what was moved is no damage any more");
    // What an earlier run moved is made again too, and without any engine.
    let repaired = without_engine(&cellar, &["cache", "verify", "--repair"]);
    assert!(repaired.code == 0 && repaired.stdout.contains("repaired"), "{repaired:?}");
    assert_eq!(fs::read(&path).unwrap(), good);
    assert_eq!(cellar.json(["cache", "ls"])["agent"], result["agent"]);
    // And at once.
    damage(&path);
    let command = cellar.command(["cache", "verify", "--repair", "--format", "json"]).output().unwrap();
    let found: Value = serde_json::from_slice(&command.stdout).unwrap();
    assert_eq!(found["damaged"][0]["action"], "repaired", "{found}");
    assert_eq!(found["damaged"][0]["path"], path.to_str().unwrap());
    assert_eq!(fs::read(&path).unwrap(), good);
    let frames = cellar.run(["cache", "verify", "--frames"]);
    assert_eq!(frames.code, 0, "{frames:?}");
    cellar.assert_sound();
}

#[test]
fn a_lost_artifact_and_a_damaged_manifest_are_made_again_from_the_layers() {
    let cellar = Cellar::new();
    let (_, result) = archived(&cellar);
    let path = artifact(&result);
    let good = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let registry =
        of_bucket(&cellar, "images-v1").into_iter().find(|path| path.ends_with("registry.json")).unwrap();
    damage(&registry);
    let repaired = without_engine(&cellar, &["cache", "verify", "--repair"]);
    assert_eq!(repaired.code, 0, "{repaired:?}");
    assert_eq!(fs::read(&path).unwrap(), good);
    let manifest = of_bucket(&cellar, "blobs-v1")
        .into_iter()
        .find(|path| fs::read(path).unwrap().windows(22).any(|text| text == b"vnd.oci.image.manifest"));
    damage(&manifest.unwrap());
    let repaired = without_engine(&cellar, &["cache", "verify", "--repair"]);
    assert_eq!(repaired.code, 0, "{repaired:?}");
    cellar.assert_sound();
}

#[test]
fn a_layer_that_nothing_has_any_more_is_said_and_the_next_build_heals_it() {
    let cellar = Cellar::new();
    let (archive, result) = archived(&cellar);
    damage(&largest(of_bucket(&cellar, "blobs-v1")));
    fs::remove_file(artifact(&result)).unwrap();
    let repaired = without_engine(&cellar, &["cache", "verify", "--repair"]);
    assert_eq!(repaired.code, 1, "{repaired:?}");
    assert!(repaired.stdout.contains("no container engine here has its image"), "{repaired:?}");
    let again = cellar.json(["build-agent", "--archive", archive.to_str().unwrap()]);
    assert_eq!(again["sha256"], result["sha256"]);
    cellar.assert_sound();
}

#[test]
fn a_damaged_layer_is_taken_again_from_the_engine_that_has_it() {
    if !have(&[Need::Docker, Need::Program("busybox")]) {
        return;
    }
    let cellar = Cellar::new();
    let _image = busybox_project(&cellar);
    let result = cellar.json(["build-agent"]);
    let path = artifact(&result);
    let good = fs::read(&path).unwrap();
    damage(&largest(of_bucket(&cellar, "blobs-v1")));
    damage(&path);
    let repaired = cellar.run(["cache", "verify", "--repair"]);
    assert_eq!(repaired.code, 0, "{repaired:?}");
    assert_eq!(fs::read(&path).unwrap(), good);
    cellar.assert_sound();
}

#[test]
fn an_artifact_of_other_inputs_is_not_made_and_the_difference_is_named() {
    let cellar = Cellar::new();
    let (_, result) = archived(&cellar);
    let path = artifact(&result);
    let receipt = path.with_extension("json");
    // As another runtime's would be: a whole receipt with another input.
    let mut value: Value = serde_json::from_slice(&fs::read(&receipt).unwrap()).unwrap();
    let object = value.as_object_mut().unwrap();
    object.remove("seal");
    object["inputs"]["smolvm-version"] = "0.0.1".into();
    let recipe = smolcellar_store::Digest::of(object["inputs"].to_string().as_bytes());
    object["recipe"] = recipe.to_string().into();
    let sealed = smolcellar_store::fsio::seal(&value, &receipt).unwrap();
    fs::write(receipt.with_file_name(format!("{}.json", recipe.hex())), sealed).unwrap();
    let repaired = without_engine(&cellar, &["cache", "verify", "--repair"]);
    assert!(repaired.code == 1 && repaired.stdout.contains("another smolvm-version than"), "{repaired:?}");
    assert!(!path.with_file_name(format!("{}.smolmachine", recipe.hex())).exists());
}

#[test]
fn only_what_is_named_is_looked_at_and_a_run_can_begin_later() {
    let cellar = Cellar::new();
    let (_, result) = archived(&cellar);
    damage(&artifact(&result));
    let image = result["image_id"].as_str().unwrap().trim_start_matches("sha256:");
    let named = cellar.run(["cache", "verify", "--keep", &image[..12]]);
    assert!(named.code == 1 && named.stdout.contains("1 is damaged"), "{named:?}");
    let later = cellar.run(["cache", "verify", "--keep", "--from", &"f".repeat(64)]);
    assert_eq!(later.code, 0, "{later:?}");
    assert!(cellar.fails(2, ["cache", "verify", "--from", "xyz"]).contains("digits"));
}
