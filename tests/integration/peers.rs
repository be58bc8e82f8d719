//! The flattened root filesystem against `docker export`, and skopeo's
//! archives against `docker save`.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use smolcellar_tests::cellar::Cellar;
use smolcellar_tests::engine::{busybox_project, docker};
use smolcellar_tests::needs::{Need, have};

const DOCKER: [Need; 2] = [Need::Docker, Need::Program("busybox")];
const SKOPEO: [Need; 3] = [Need::Docker, Need::Program("busybox"), Need::Program("skopeo")];

/// What matters of an entry: kind, mode, owner, mtime, target or contents,
/// device. For hard links, the contents of what they link to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Facts {
    kind: u8,
    mode: u32,
    owner: (u64, u64),
    mtime: u64,
    link: String,
    data: Vec<u8>,
    device: (u32, u32),
}

fn facts(tar: impl Read) -> BTreeMap<String, Facts> {
    let mut all: BTreeMap<String, Facts> = BTreeMap::new();
    for entry in tar::Archive::new(tar).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().to_string_lossy().trim_end_matches('/').to_owned();
        let link =
            entry.link_name().unwrap().map(|link| link.to_string_lossy().into_owned()).unwrap_or_default();
        if entry.header().entry_type().is_hard_link() {
            let target = all[&link].clone();
            all.insert(path, target);
            continue;
        }
        let mut data = Vec::new();
        entry.read_to_end(&mut data).unwrap();
        let header = entry.header();
        let number = |n: std::io::Result<Option<u32>>| n.ok().flatten().unwrap_or(0);
        let facts = Facts {
            kind: header.entry_type().as_byte(),
            mode: header.mode().unwrap() & 0o7777,
            owner: (header.uid().unwrap(), header.gid().unwrap()),
            mtime: header.mtime().unwrap(),
            link,
            data,
            device: (number(header.device_major()), number(header.device_minor())),
        };
        all.insert(path, facts);
    }
    all
}

/// The layer inside an artifact.
fn layer_of(artifact: &Path) -> Vec<u8> {
    let bytes = std::fs::read(artifact).unwrap();
    let size = smolcellar_pack::read(artifact).unwrap().footer.assets_size as usize;
    let assets = zstd::decode_all(&bytes[..size]).unwrap();
    let mut archive = tar::Archive::new(&assets[..]);
    let mut entries = archive.entries().unwrap().map(Result::unwrap);
    let mut layer =
        entries.find(|entry| entry.path().unwrap().starts_with("layers") && entry.size() > 0).unwrap();
    let mut tar = Vec::new();
    layer.read_to_end(&mut tar).unwrap();
    tar
}

fn artifact(result: &Value) -> &Path {
    Path::new(result["artifact"].as_str().unwrap())
}

#[test]
fn the_artifact_holds_what_docker_export_shows_but_for_the_engines_own_paths() {
    if !have(&DOCKER) {
        return;
    }
    let cellar = Cellar::new();
    let _image = busybox_project(&cellar);
    let result = cellar.json(["build-agent"]);
    let id = docker(&["create", result["image_id"].as_str().unwrap()]);
    let exported = Command::new("docker").args(["export", id.trim()]).output().unwrap().stdout;
    docker(&["rm", "-v", id.trim()]);
    let mut ours = facts(&layer_of(artifact(&result))[..]);
    let mut theirs = facts(&exported[..]);
    // The paths that `oci::engine_paths` documents.
    for path in [".dockerenv", "dev/console", "etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/mtab"] {
        ours.remove(path);
        theirs.remove(path);
    }
    for path in ["dev", "dev/pts", "dev/shm", "etc", "proc", "sys"] {
        for side in [&mut ours, &mut theirs] {
            side.get_mut(path).unwrap_or_else(|| panic!("no {path}")).mtime = 0;
        }
    }
    let names = |side: &BTreeMap<String, Facts>| side.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&ours), names(&theirs));
    for (path, facts) in &ours {
        assert_eq!(facts, &theirs[path], "{path}");
    }
    // The image did what it was made for.
    assert_eq!((&ours["two"].data[..], &ours["one"].data[..]), (&b"shared\n"[..], &b"other\n"[..]));
    assert!(
        ours.contains_key("opaque/new") && !ours.contains_key("opaque/a") && !ours.contains_key("data/gone")
    );
    assert_eq!((ours["null-here"].kind, ours["null-here"].device), (b'3', (1, 3)));
    assert_eq!(
        (ours["pipe"].kind, ours["bin/busybox"].mode, ours["data/keep"].owner),
        (b'6', 0o4755, (1234, 4321))
    );
    assert!(ours.keys().any(|path| path.len() > 200));
}

#[test]
fn the_artifact_says_what_the_image_runs() {
    if !have(&DOCKER) {
        return;
    }
    let cellar = Cellar::new();
    let _image = busybox_project(&cellar);
    let manifest = smolcellar_pack::read(artifact(&cellar.json(["build-agent"]))).unwrap().manifest;
    assert_eq!(manifest.entrypoint, ["/bin/busybox"]);
    assert_eq!(manifest.cmd, ["id"]);
    assert!(manifest.env.contains(&"GREETING=hello".to_owned()));
    assert_eq!((manifest.workdir.as_deref(), manifest.user.as_deref()), (Some("/data"), Some("1234:4321")));
}

#[test]
fn every_archive_that_skopeo_makes_gives_the_root_filesystem_of_docker_save() {
    if !have(&SKOPEO) {
        return;
    }
    let cellar = Cellar::new();
    let _image = busybox_project(&cellar);
    let built = cellar.json(["build-agent"]);
    let saved = cellar.path("saved.tar");
    let id = built["image_id"].as_str().unwrap();
    docker(&["save", id, "-o", saved.to_str().unwrap()]);
    let reference = layer_of(artifact(&built));
    // The very archive: the same image, so the same artifact, byte for byte.
    let fresh = Cellar::new();
    fresh.write(
        "smolcellar.toml",
        &std::fs::read_to_string(cellar.project().join("smolcellar.toml")).unwrap(),
    );
    let from_archive = fresh.json(["build-agent", "small", "--archive", saved.to_str().unwrap()]);
    assert_eq!(from_archive["sha256"], built["sha256"]);

    let source = format!("docker-archive:{}", saved.display());
    let targets: [(&str, &[&str]); 6] = [
        ("docker-archive", &[]),
        ("oci", &[]),
        ("oci", &["--dest-compress-format", "zstd", "--dest-compress"]),
        ("oci", &["--dest-decompress"]),
        ("oci-archive", &[]),
        ("oci-archive", &["--dest-compress-format", "zstd", "--dest-compress"]),
    ];
    for (number, (transport, options)) in targets.into_iter().enumerate() {
        let path = cellar.path(&format!("image-{number}"));
        let target = format!("{transport}:{}:t:1", path.display());
        let made = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--quiet"])
            .args(options)
            .args([&source, &target])
            .output()
            .unwrap();
        assert!(made.status.success(), "{transport} {options:?}: {}", String::from_utf8_lossy(&made.stderr));
        let result = Cellar::new();
        let built = result.json(["build-agent", "--archive", path.to_str().unwrap()]);
        assert!(layer_of(artifact(&built)) == reference, "{transport} {options:?}");
        result.assert_sound();
    }
}
