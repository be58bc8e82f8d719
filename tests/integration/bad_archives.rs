//! Archives that must not be believed: each a clear error, nothing stored.

use std::fs::File;
use std::io::Write;

use smolcellar_tests::archives::{
    Entry, config, docker_save, docker_save_25, file, oci_layout, special, tar, unpack,
};
use smolcellar_tests::cellar::Cellar;
use tar::EntryType;

/// Builds from these bytes, which must fail; what is complained.
fn refused(bytes: &[u8]) -> String {
    let cellar = Cellar::new();
    let path = cellar.path("image.tar");
    File::create(&path).unwrap().write_all(bytes).unwrap();
    let complaint = cellar.fails(1, ["build-agent", "--archive", path.to_str().unwrap()]);
    assert_eq!(cellar.stored(), Vec::<std::path::PathBuf>::new(), "{complaint}");
    complaint
}

fn expect(bytes: &[u8], words: &[&str]) {
    let complaint = refused(bytes);
    for word in words {
        assert!(complaint.contains(word), "{word:?} is not in: {complaint}");
    }
}

fn good_layer() -> Vec<u8> {
    tar(&[file("agent", &[7; 3000])])
}

/// A one-layer image with these entries in its layer.
fn with_entries(entries: &[Entry]) -> Vec<u8> {
    tar(&docker_save(&[tar(entries)]))
}

#[test]
fn a_truncated_archive_is_called_so_wherever_it_ends() {
    for whole in [tar(&docker_save(&[good_layer()])), tar(&oci_layout(&[good_layer()], <[u8]>::to_vec))] {
        // The two zero blocks at the end may be missing: nothing is lost then.
        let end = whole.len() - 1024;
        for cut in [1, 300, 512, 700, 1024, 2000, end / 2, end - 1500, end - 513, end - 1] {
            let complaint = refused(&whole[..cut]);
            let said = complaint.contains("truncated") || complaint.contains("not an image archive");
            assert!(said, "cut at {cut}: {complaint}");
        }
    }
}

#[test]
fn a_file_of_another_kind_is_called_so() {
    expect(b"", &["not an image archive", "docker save"]);
    expect(&b"just some text, long enough to be a tar block or two. ".repeat(40), &["not an image archive"]);
    expect(&tar(&[file("etc/passwd", b"root")]), &["not an image archive", "docker import"]);
    expect(&[0; 10240], &["not an image archive"]);
    // A ZIP.
    expect(&[b"PK\x03\x04".to_vec(), vec![1; 2000]].concat(), &["not an image archive"]);
    let cellar = Cellar::new();
    let complaint = cellar.fails(1, ["build-agent", "--archive", "/no/such/file.tar"]);
    assert!(complaint.contains("/no/such/file.tar"), "{complaint}");
    unpack(&[file("x", b"x")], &cellar.path("folder"));
    let complaint = cellar.fails(1, ["build-agent", "--archive", cellar.path("folder").to_str().unwrap()]);
    assert!(complaint.contains("OCI image layout"), "{complaint}");
}

#[test]
fn a_wrong_digest_of_any_part_names_the_part_and_both_digests() {
    let flip = |parts: Vec<Entry>, find: &dyn Fn(&Entry) -> bool| {
        let mut parts = parts;
        let part = parts.iter_mut().find(|part| find(part)).unwrap();
        let at = part.data.len() / 2;
        part.data[at] ^= 1;
        tar(&parts)
    };
    let layers = [good_layer()];
    let is_layer = |part: &Entry| part.data.len() > 2000;
    expect(&flip(docker_save(&layers), &is_layer), &["layer 1", "expected sha256:"]);
    expect(&flip(docker_save_25(&layers), &is_layer), &["layer 1", "expected sha256:"]);
    expect(&flip(oci_layout(&layers, <[u8]>::to_vec), &is_layer), &["layer 1", "expected sha256:"]);
    let stored = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
    let zstd_layer = stored(&layers[0]);
    let is_zstd = |part: &Entry| part.data == zstd_layer;
    let complaint = refused(&flip(oci_layout(&layers, stored), &is_zstd));
    assert!(complaint.contains("expected sha256:") || complaint.contains("damaged"), "{complaint}");
    // Configs: swapped for another sound one, under the old name.
    let mut parts = docker_save(&layers);
    let other = config(&[good_layer(), good_layer()], "amd64");
    parts.iter_mut().find(|part| part.path.ends_with(".json") && part.path.len() > 20).unwrap().data = other;
    expect(&tar(&parts), &[".json", "expected sha256:"]);
}

#[test]
fn entries_that_would_leave_the_root_or_stand_twice_are_named() {
    let dir = |path: &str| special(path, EntryType::Directory, "");
    let link = |path: &str, to: &str| special(path, EntryType::Symlink, to);
    let hard = |path: &str, to: &str| special(path, EntryType::Link, to);
    expect(&with_entries(&[file("../evil", b"x")]), &["../evil", "'..'", "layer 1"]);
    expect(&with_entries(&[file("a/../../evil", b"x")]), &["a/../../evil"]);
    expect(&with_entries(&[file("/etc/passwd", b"x")]), &["/etc/passwd", "absolute"]);
    expect(&with_entries(&[file("a", b"1"), file("a", b"2")]), &["'a'", "twice"]);
    expect(&with_entries(&[file("a", b"1"), file("./a", b"2")]), &["twice"]);
    expect(&with_entries(&[link("l", "/etc"), file("l/passwd", b"x")]), &["l/passwd", "symlink"]);
    expect(&with_entries(&[hard("h", "/etc/passwd")]), &["absolute"]);
    expect(&with_entries(&[hard("h", "../../etc/passwd")]), &["'..'"]);
    expect(&with_entries(&[hard("h", "nothing")]), &["hard link", "nothing"]);
    expect(&with_entries(&[dir("d/"), hard("h", "d")]), &["hard link to the folder"]);
    expect(&with_entries(&[file("f", b"x"), file("f/g", b"x")]), &["not a folder"]);
    expect(&with_entries(&[special("s", EntryType::GNUSparse, "")]), &["sparse"]);
    expect(&with_entries(&[special("s", EntryType::new(b'Q'), "")]), &["unknown type"]);
    expect(&with_entries(&[file(".wh.", b"")]), &["whiteout"]);
    expect(&with_entries(&[file(".wh...", b"")]), &["whiteout"]);
    // The archive itself.
    expect(&tar(&[file("../manifest.json", b"[]")]), &["'..'"]);
    expect(&tar(&[file("/manifest.json", b"[]")]), &["absolute"]);
    let mut parts = docker_save(&[good_layer()]);
    parts.push(parts[0].clone());
    expect(&tar(&parts), &["twice"]);
    parts[1] = special("manifest.json", EntryType::Char, "");
    expect(&tar(&parts[..2]), &["not an image archive"]);
    let rootfs = [file("usr/bin/x", b"x"), special("etc/mtab", EntryType::Symlink, "/proc/mounts")];
    expect(&tar(&rootfs), &["not an image archive", "docker import"]);
    expect(&tar(&[file("manifest.json", b"{\"schemaVersion\":2}")]), &["dir:", "docker-archive:"]);
}

#[test]
fn absurd_sizes_and_headers_are_refused_without_taking_memory() {
    let mut huge = tar::Header::new_gnu();
    huge.set_path("layer.tar").unwrap();
    huge.set_size(u64::MAX >> 1);
    huge.set_cksum();
    expect(huge.as_bytes(), &["absurd"]);
    let mut long = tar::Header::new_ustar();
    long.set_path("x").unwrap();
    long.set_entry_type(EntryType::XHeader);
    long.set_size(3 << 30);
    long.set_cksum();
    expect(&[&tar(&[file("a", b"b")])[..1024], long.as_bytes()].concat(), &["extended header"]);
    let deep = format!("[{}", "[".repeat(200_000));
    expect(&tar(&[file("manifest.json", deep.as_bytes())]), &["manifest.json"]);
}

#[test]
fn contradictions_between_manifest_and_config_are_named() {
    let mut parts = docker_save(&[good_layer()]);
    let manifest = parts.last_mut().unwrap();
    let text = String::from_utf8(manifest.data.clone()).unwrap();
    manifest.data = text.replace("\"Layers\":[", "\"Layers\":[\"more/layer.tar\",").into_bytes();
    expect(&tar(&parts), &["2 layers", "config 1"]);
    let parts = docker_save(&[good_layer()]);
    expect(&tar(&parts[1..]), &["layer.tar", "does not hold"]);
    expect(&tar(&[file("manifest.json", b"{}")]), &["manifest.json"]);
    expect(&tar(&[file("manifest.json", b"[]")]), &["name no image"]);
}

#[test]
fn an_image_for_another_platform_is_refused_with_both_named_and_can_be_asked_for() {
    let other = if cfg!(target_arch = "aarch64") { "amd64" } else { "arm64" };
    let layer = good_layer();
    let config = config(std::slice::from_ref(&layer), other);
    let name = format!("{}.json", smolcellar_store::Digest::of(&config).hex());
    let manifest = format!(r#"[{{"Config":"{name}","RepoTags":null,"Layers":["l.tar"]}}]"#);
    let bytes =
        tar(&[file("l.tar", &layer), file(&name, &config), file("manifest.json", manifest.as_bytes())]);
    let here = format!("linux/{}", smolcellar_tests::archives::architecture());
    expect(&bytes, &[&format!("linux/{other}"), &here, "--platform"]);
    let cellar = Cellar::new();
    File::create(cellar.path("i.tar")).unwrap().write_all(&bytes).unwrap();
    let archive = cellar.path("i.tar");
    let platform = format!("linux/{other}");
    cellar.json(["build-agent", "--archive", archive.to_str().unwrap(), "--platform", &platform]);
    assert!(
        cellar.fails(2, ["build-agent", "--archive", "x", "--platform", "amd64"]).contains("linux/amd64")
    );
}
