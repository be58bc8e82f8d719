//! The registry and the clients that people have: docker, skopeo, podman, curl,
//! smolvm.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use smolcellar_oci::image_manifest;
use smolcellar_registry::OneImage;
use smolcellar_store::Digest;
use smolcellar_tests::archives::{self, file};
use smolcellar_tests::cellar::{Cellar, runtime};
use smolcellar_tests::engine::{Image, docker};
use smolcellar_tests::needs::{Need, have};
use smolcellar_tests::served::Served;

/// Bytes that no compression makes smaller.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = (0..length.div_ceil(8)).flat_map(|_| next()).collect();
    bytes.truncate(length);
    bytes
}

/// A `docker save` archive of three layers.
fn archive(path: &Path, seed: u64) {
    let layers: Vec<_> = (0..3_u64)
        .map(|n| archives::tar(&[file(&format!("file-{n}"), &noise(700_000, seed * 10 + n))]))
        .collect();
    std::fs::write(path, archives::tar(&archives::docker_save(&layers))).unwrap();
}

fn run(program: &str, words: &[&str]) -> Output {
    Command::new(program).args(words).output().unwrap_or_else(|error| panic!("{program}: {error}"))
}

/// Runs a program, which must succeed; its output.
fn does(program: &str, words: &[&str]) -> String {
    let output = run(program, words);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {words:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn skopeo(words: &[&str]) -> String {
    does("skopeo", &[&["--insecure-policy"], words].concat())
}

#[test]
fn docker_pushes_and_pulls_what_it_pushed() {
    if !have(&[Need::Docker]) {
        return;
    }
    let cellar = Cellar::new();
    let served = Served::start(&cellar, &[]);
    archive(&cellar.path("a.tar"), 1);
    let loaded = docker(&["load", "--input", cellar.path("a.tar").to_str().unwrap()]);
    let _loaded = Image { tag: "t:latest".into() };
    assert!(loaded.contains("t:latest"), "{loaded}");
    let tag = format!("{}/team/app:v1", served.addr);
    docker(&["tag", "t:latest", &tag]);
    let image = Image { tag: tag.clone() };
    let id = docker(&["image", "inspect", "--format", "{{.Id}}", &tag]);
    docker(&["push", &tag]);
    let log = served.log().join("\n");
    assert!(log.contains("PATCH ") && log.contains("PUT /v2/team/app/manifests/v1 201"), "{log}");
    // Again: all of it is there.
    let before = served.log().len();
    docker(&["push", &tag]);
    assert!(!served.log()[before..].join("\n").contains("PATCH "));
    docker(&["rmi", "--force", &tag, "t:latest"]);
    docker(&["pull", &tag]);
    assert_eq!(docker(&["image", "inspect", "--format", "{{.Id}}", &tag]), id);
    // By digest, and after the server was started anew.
    let digests = docker(&["image", "inspect", "--format", "{{index .RepoDigests 0}}", &tag]);
    docker(&["rmi", "--force", &tag]);
    docker(&["pull", digests.trim()]);
    docker(&["rmi", "--force", digests.trim()]);
    drop((served, image));
    let served = Served::start(&cellar, &["--read-only"]);
    let tag = format!("{}/team/app:v1", served.addr);
    let _image = Image { tag: tag.clone() };
    docker(&["pull", &tag]);
    assert_eq!(docker(&["image", "inspect", "--format", "{{.Id}}", &tag]), id);
    let refused = run("docker", &["push", &tag]);
    assert!(!refused.status.success());
    drop(served);
    cellar.assert_sound();
}

#[test]
fn skopeo_copies_both_ways_lists_and_deletes() {
    if !have(&[Need::Program("skopeo")]) {
        return;
    }
    let cellar = Cellar::new();
    let served = Served::start(&cellar, &[]);
    archive(&cellar.path("a.tar"), 2);
    let source = format!("docker-archive:{}", cellar.path("a.tar").display());
    let mut digests = Vec::new();
    for (tag, options) in [
        ("docker", &["--format", "v2s2"][..]),
        ("oci", &["--format", "oci"]),
        ("zstd", &["--format", "oci", "--dest-compress", "--dest-compress-format", "zstd"]),
        ("plain", &["--format", "oci", "--dest-decompress"]),
    ] {
        let target = format!("docker://{}/app:{tag}", served.addr);
        skopeo(&[&["copy", "--quiet", "--dest-tls-verify=false"], options, &[&source, &target]].concat());
        let config = skopeo(&["inspect", "--config", "--raw", "--tls-verify=false", &target]);
        let back = format!("dir:{}", cellar.path(tag).display());
        skopeo(&["copy", "--quiet", "--src-tls-verify=false", &target, &back]);
        assert_eq!(skopeo(&["inspect", "--config", "--raw", &back]), config, "{tag}");
        digests.push(Digest::of(config.as_bytes()));
    }
    digests.dedup();
    assert_eq!(digests.len(), 2, "skopeo writes the config anew for an OCI image, and always the same");
    let repository = format!("docker://{}/app", served.addr);
    let tags: Value =
        serde_json::from_str(&skopeo(&["list-tags", "--tls-verify=false", &repository])).unwrap();
    assert_eq!(tags["Tags"], serde_json::json!(["docker", "oci", "plain", "zstd"]));
    // From one repository to another: the blobs are mounted, or found.
    let before = served.log().len();
    let (from, to) = (format!("{repository}:oci"), format!("docker://{}/other/app:1", served.addr));
    skopeo(&["copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false", &from, &to]);
    let log = served.log()[before..].join("\n");
    assert!(!log.contains("PATCH "), "{log}");
    skopeo(&["delete", "--tls-verify=false", &format!("{repository}:docker")]);
    let gone = run(
        "skopeo",
        &["--insecure-policy", "inspect", "--tls-verify=false", &format!("{repository}:docker")],
    );
    assert!(!gone.status.success());
    drop(served);
    cellar.assert_sound();
    // What it takes is shown, and can go.
    let usage = cellar.json(["cache", "du"]);
    let bucket = usage["buckets"].as_array().unwrap().iter().find(|b| b["folder"] == "registry-v1").unwrap();
    assert!(bucket["files"].as_u64().unwrap() >= 6, "{bucket}");
    assert_eq!(cellar.run(["cache", "gc", "--all", "--yes"]).code, 0);
    assert!(!cellar.stored().iter().any(|path| path.to_string_lossy().contains("blobs-v1")));
}

#[test]
fn podman_pushes_and_pulls() {
    if !have(&[Need::Program("podman")]) {
        return;
    }
    let cellar = Cellar::new();
    let served = Served::start(&cellar, &[]);
    archive(&cellar.path("a.tar"), 3);
    let (root, run_root) = (cellar.path("root"), cellar.path("run"));
    let places = ["--root", root.to_str().unwrap(), "--runroot", run_root.to_str().unwrap()];
    let podman =
        |words: &[&str]| does("podman", &[&places[..], &["--storage-driver", "vfs"], words].concat());
    podman(&["load", "--input", cellar.path("a.tar").to_str().unwrap()]);
    let id = podman(&["image", "inspect", "--format", "{{.Id}}", "localhost/t:latest"]);
    let tag = format!("{}/app:v1", served.addr);
    podman(&["push", "--tls-verify=false", "localhost/t:latest", &tag]);
    podman(&["rmi", "--force", "localhost/t:latest"]);
    podman(&["pull", "--tls-verify=false", &tag]);
    assert_eq!(podman(&["image", "inspect", "--format", "{{.Id}}", &tag]), id);
    podman(&["rmi", "--force", &tag]);
    drop(served);
    cellar.assert_sound();
}

#[test]
fn an_agents_image_is_pulled_by_its_name_and_its_layers_in_parts() {
    if !have(&[Need::Program("skopeo"), Need::Program("curl")]) {
        return;
    }
    let cellar = Cellar::new();
    archive(&cellar.path("agent.tar"), 4);
    let built = cellar.json(["build-agent", "--archive", cellar.path("agent.tar").to_str().unwrap()]);
    let id = built["image_id"].as_str().unwrap();
    let served = Served::start(&cellar, &["--read-only"]);
    let hex = id.trim_start_matches("sha256:");
    for tag in ["latest", &hex[..12]] {
        let source = format!("docker://{}/agent:{tag}", served.addr);
        let config = skopeo(&["inspect", "--config", "--raw", "--tls-verify=false", &source]);
        assert_eq!(Digest::of(config.as_bytes()).to_string(), id);
        let target = format!("dir:{}", cellar.path(&format!("to-{tag}")).display());
        skopeo(&["copy", "--quiet", "--src-tls-verify=false", &source, &target]);
    }
    let raw = skopeo(&["inspect", "--raw", "--tls-verify=false", &format!("docker://{}/agent", served.addr)]);
    let manifest: Value = serde_json::from_str(&raw).unwrap();
    let layer = manifest["layers"][0]["digest"].as_str().unwrap();
    let url = format!("http://{}/v2/agent/blobs/{layer}", served.addr);
    let part = |range: &str, more: &[&str]| {
        let output = run("curl", &[&["--silent", "--fail", "--range", range, &url], more].concat());
        assert!(output.status.success(), "{output:?}");
        output.stdout
    };
    let whole = run("curl", &["--silent", "--fail", &url]).stdout;
    assert_eq!(Digest::of(&whole).to_string(), layer);
    assert!(part("1000-1999", &[]) == whole[1000..2000] && part("-77", &[]) == whole[whole.len() - 77..]);
    // Broken off, and gone on with.
    let half = cellar.path("half");
    std::fs::write(&half, &whole[..300_000]).unwrap();
    does("curl", &["--silent", "--fail", "--continue-at", "-", "--output", half.to_str().unwrap(), &url]);
    assert!(std::fs::read(&half).unwrap() == whole);
}

/// smolvm's command line, with the state of a test's own.
fn smolvm(cellar: &Cellar, words: &[&str]) -> Output {
    let runtime = runtime();
    Command::new(runtime.join("smolvm"))
        .args(words)
        .args(["--state-dir", cellar.path("smolvm").to_str().unwrap()])
        .env("SMOLVM_LIB_DIR", &runtime)
        .env("SMOLVM_AGENT_ROOTFS", runtime.join("agent-rootfs"))
        .env("HOME", cellar.path("home"))
        .output()
        .unwrap()
}

#[test]
fn smolvm_pushes_inspects_and_pulls_artifacts() {
    let cellar = Cellar::new();
    archive(&cellar.path("agent.tar"), 5);
    let built = cellar.json(["build-agent", "--archive", cellar.path("agent.tar").to_str().unwrap()]);
    let artifact = built["artifact"].as_str().unwrap();
    let served = Served::start(&cellar, &[]);
    let reference = format!("{}/team/machine:v1", served.addr);
    let pushed = smolvm(&cellar, &["pack", "push", "--file", artifact, &reference]);
    assert!(pushed.status.success(), "{pushed:?} {:?}", served.log());
    let seen = smolvm(&cellar, &["pack", "inspect", "--json", &reference]);
    assert!(seen.status.success(), "{seen:?} {:?}", served.log());
    let pulled = cellar.path("pulled.smolmachine");
    let pull = smolvm(&cellar, &["pack", "pull", "--output", pulled.to_str().unwrap(), &reference]);
    assert!(pull.status.success(), "{pull:?} {:?}", served.log());
    assert!(std::fs::read(&pulled).unwrap() == std::fs::read(artifact).unwrap());
    drop(served);
    cellar.assert_sound();
}

#[test]
fn smolvm_finds_the_image_that_a_build_serves() {
    let cellar = Cellar::new();
    let layer = archives::tar(&[file("agent", b"an agent")]);
    let config = archives::config(std::slice::from_ref(&layer), archives::architecture());
    let (a, b) = (cellar.path("config"), cellar.path("layer"));
    std::fs::write(&a, &config).unwrap();
    std::fs::write(&b, &layer).unwrap();
    let (id, digest) = (Digest::of(&config), Digest::of(&layer));
    let manifest = image_manifest((id, config.len() as u64), &[(digest, layer.len() as u64)]);
    let served = OneImage { manifest, blobs: vec![(id, a), (digest, b)] }.serve().unwrap();
    let output = cellar.path("packed");
    // It asks before it boots anything; whether it can boot here is another matter.
    let packed =
        smolvm(&cellar, &["pack", "create", "--image", served.reference(), "-o", output.to_str().unwrap()]);
    let seen = served.stop();
    assert!(seen.manifests >= 1 && seen.refused == 0, "{seen:?}: {packed:?}");
}
