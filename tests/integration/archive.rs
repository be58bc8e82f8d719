//! `--archive` with sound archives and no container engine.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::Stdio;

use serde_json::Value;
use smolcellar_tests::archives::{docker_save, docker_save_25, file, oci_layout, special, tar, unpack};
use smolcellar_tests::cellar::{ALL_HIT, Cellar, ran, statuses};
use tar::EntryType;

fn layers() -> Vec<Vec<u8>> {
    vec![
        tar(&[
            special("d/", EntryType::Directory, ""),
            file("d/old", b"old"),
            file("agent", b"\x7fELF"),
            special("lib", EntryType::Symlink, "usr/lib"),
            special("usr/lib/", EntryType::Directory, ""),
        ]),
        tar(&[
            file("d/.wh.old", b""),
            file("d/new", b"new"),
            special("hard", EntryType::Link, "agent"),
            file("lib/x", b"x"),
        ]),
    ]
}

fn put(cellar: &Cellar, name: &str, bytes: &[u8]) -> PathBuf {
    let path = cellar.path(name);
    File::create(&path).unwrap().write_all(bytes).unwrap();
    path
}

fn build(cellar: &Cellar, path: &std::path::Path) -> Value {
    cellar.json(["build-agent", "--archive", path.to_str().unwrap()])
}

#[test]
fn both_layouts_of_docker_save_and_oci_layouts_in_any_compression_are_one_image() {
    let gzip = |bytes: &[u8]| {
        let mut process = std::process::Command::new("gzip")
            .args(["-c", "-n"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = process.stdin.take().unwrap();
        let bytes = bytes.to_vec();
        let writer = std::thread::spawn(move || stdin.write_all(&bytes).unwrap());
        let output = process.wait_with_output().unwrap().stdout;
        writer.join().unwrap();
        output
    };
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 3).unwrap();
    let layers = layers();
    let kinds = [
        ("docker 20", tar(&docker_save(&layers))),
        ("docker 25", tar(&docker_save_25(&layers))),
        ("oci", tar(&oci_layout(&layers, <[u8]>::to_vec))),
        ("oci, gzip layers", tar(&oci_layout(&layers, gzip))),
        ("oci, zstd layers", tar(&oci_layout(&layers, zstd))),
        ("docker 20, gzip", gzip(&tar(&docker_save(&layers)))),
        ("oci, zstd", zstd(&tar(&oci_layout(&layers, <[u8]>::to_vec)))),
    ];
    let mut first: Option<Value> = None;
    for (kind, bytes) in kinds {
        let cellar = Cellar::new();
        let result = build(&cellar, &put(&cellar, "image.tar", &bytes));
        let first = first.get_or_insert_with(|| result.clone());
        assert_eq!(result["image_id"], first["image_id"], "{kind}");
        assert_eq!(result["sha256"], first["sha256"], "{kind}");
        let again = build(&cellar, &cellar.path("image.tar"));
        assert_eq!(statuses(&again), ALL_HIT, "{kind}");
        cellar.assert_sound();
    }
    let cellar = Cellar::new();
    unpack(&oci_layout(&layers, <[u8]>::to_vec), &cellar.path("layout"));
    assert_eq!(build(&cellar, &cellar.path("layout"))["sha256"], first.unwrap()["sha256"]);
}

#[test]
fn an_archive_on_standard_input_needs_no_engine_and_no_configuration() {
    let cellar = Cellar::new();
    let path = put(&cellar, "image.tar", &tar(&docker_save(&layers())));
    for expected in ["smolmachine:miss", "smolmachine:hit"] {
        let mut command = cellar.command(["build-agent", "--archive", "-", "--format", "json"]);
        // No engine anywhere.
        let output = command.env("PATH", "/nonexistent").stdin(File::open(&path).unwrap()).output().unwrap();
        let ran = ran(output);
        assert_eq!(ran.code, 0, "{ran:?}");
        let result: Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(statuses(&result)[3], expected);
    }
}

#[test]
fn a_layer_over_a_symlinked_folder_lands_where_the_engine_would_put_it() {
    let cellar = Cellar::new();
    let result = build(&cellar, &put(&cellar, "image.tar", &tar(&docker_save(&layers()))));
    let bytes = std::fs::read(result["artifact"].as_str().unwrap()).unwrap();
    let size =
        smolcellar_pack::read(result["artifact"].as_str().unwrap().as_ref()).unwrap().footer.assets_size;
    let assets = zstd::decode_all(&bytes[..size as usize]).unwrap();
    let has = |name: &str| {
        assets
            .windows(name.len() + 1)
            .any(|window| window[..name.len()] == *name.as_bytes() && window[name.len()] == 0)
    };
    assert!(has("usr/lib/x") && has("d/new") && !has("d/old"), "the tree is wrong");
}
