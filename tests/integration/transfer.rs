//! `cache export` and `cache import`: between two caches, and to Docker and
//! skopeo.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use smolcellar_tests::archives::{docker_save, file, tar};
use smolcellar_tests::cellar::{ALL_HIT, Cellar, Ran, ran, statuses};
use smolcellar_tests::engine::{busybox_project, docker};
use smolcellar_tests::needs::{Need, have};

const DOCKER: [Need; 2] = [Need::Docker, Need::Program("busybox")];
const SKOPEO: [Need; 3] = [Need::Docker, Need::Program("busybox"), Need::Program("skopeo")];

/// A cache with an artifact `image`, built from an archive.
fn built(cellar: &Cellar) -> Value {
    let archive = cellar.path("image.tar");
    let layer = tar(&[file("agent", &[1; 50_000]), file("data", &[2; 90_000])]);
    File::create(&archive).unwrap().write_all(&tar(&docker_save(&[layer]))).unwrap();
    cellar.json(["build-agent", "--archive", archive.to_str().unwrap()])
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn import_bytes(cellar: &Cellar, bytes: &[u8], more: &[&str]) -> Ran {
    let mut command = cellar.command(["cache", "import", "-"].iter().chain(more));
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It may refuse before it has read everything.
    let _ = child.stdin.take().unwrap().write_all(bytes);
    ran(child.wait_with_output().unwrap())
}

#[test]
fn a_built_agent_goes_to_another_cache_and_comes_out_of_it_byte_for_byte() {
    if !have(&DOCKER) {
        return;
    }
    let (one, two) = (Cellar::new(), Cellar::new());
    let _image = busybox_project(&one);
    let first = one.json(["build-agent"]);
    let (out, again) = (one.path("agent.export"), two.path("again.export"));
    let said = one.json(["cache", "export", "small", "--with-image", "-o", path(&out)]);
    for same in ["image_id", "recipe", "size", "sha256", "agent"] {
        assert_eq!(said[same], first[same], "{same}");
    }
    let imported = two.run(["cache", "import", path(&out), "--format", "json"]);
    assert_eq!(imported.code, 0, "{imported:?}");
    let entries: Vec<Value> =
        imported.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&entries[0]["kind"], &entries[1]["kind"]), (&"image".into(), &"artifact".into()));
    assert!(entries.iter().all(|entry| entry["status"] == "imported"), "{entries:?}");
    assert_eq!(entries[1]["sha256"], first["sha256"]);
    two.assert_sound();
    let key = first["image_id"].as_str().unwrap();
    let piped = two.command(["cache", "export", key, "--with-image"]).output().unwrap();
    assert!(piped.stdout == fs::read(&out).unwrap(), "{}", String::from_utf8_lossy(&piped.stderr));
    two.json(["cache", "export", key, "--with-image", "-o", path(&again)]);
    assert!(fs::read(&again).unwrap() == fs::read(&out).unwrap());
    // A build of the same context packs nothing there.
    let toml = fs::read_to_string(one.project().join("smolcellar.toml")).unwrap();
    two.write("smolcellar.toml", &toml.replace("\"ctx\"", &format!("{:?}", one.project().join("ctx"))));
    assert_eq!(statuses(&two.json(["build-agent"])), ALL_HIT);
}

/// The image archive of a small agent, and its image ID.
fn image_archive(cellar: &Cellar, tag: &str) -> (PathBuf, String) {
    let first = cellar.json(["build-agent"]);
    let id = first["image_id"].as_str().unwrap().to_owned();
    let out = cellar.path("image.tar");
    let said = cellar.json(["cache", "export", "--image", &id, "-o", path(&out), "--tag", tag]);
    assert_eq!((&said["image_id"], &said["tag"]), (&first["image_id"], &format!("{tag}:latest").into()));
    assert_eq!(said["size"], out.metadata().unwrap().len());
    (out, id)
}

#[test]
fn docker_loads_an_exported_image_and_gives_it_the_same_id() {
    if !have(&DOCKER) {
        return;
    }
    let cellar = Cellar::new();
    let image = busybox_project(&cellar);
    let (out, id) = image_archive(&cellar, &image.tag);
    docker(&["rmi", "--force", &image.tag]);
    let loaded = docker(&["load", "--input", path(&out)]);
    assert!(loaded.contains(&image.tag), "{loaded}");
    let inspected = docker(&["image", "inspect", "--format", "{{.Id}}", &image.tag]);
    assert_eq!(inspected.trim(), id);
    let ran = docker(&["run", "--rm", "--network", "none", &image.tag, "cat", "/data/keep"]);
    assert_eq!(ran, "kept\n");
}

#[test]
fn skopeo_reads_an_exported_image_both_ways_and_we_read_it_back() {
    if !have(&SKOPEO) {
        return;
    }
    let cellar = Cellar::new();
    let image = busybox_project(&cellar);
    let (out, id) = image_archive(&cellar, &image.tag);
    for kind in ["docker-archive", "oci-archive"] {
        let layout = cellar.path(kind);
        let from = format!("{kind}:{}", out.display());
        let copied = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--quiet", &from, &format!("dir:{}", layout.display())])
            .output()
            .unwrap();
        assert!(copied.status.success(), "{kind}: {}", String::from_utf8_lossy(&copied.stderr));
        // `dir:` takes blobs as they are; `oci:` writes Docker's config anew, which changes the ID.
        let config = layout.join(id.trim_start_matches("sha256:"));
        assert_eq!(smolcellar_store::Digest::of_file(&config).unwrap().to_string(), id, "{kind}");
    }
    let other = Cellar::new();
    assert_eq!(other.json(["build-agent", "--archive", path(&out)])["image_id"], id);
}

#[test]
fn an_import_cut_or_tampered_with_leaves_entries_whole_or_absent() {
    let cellar = Cellar::new();
    let first = built(&cellar);
    let out = cellar.path("x");
    cellar.json(["cache", "export", "image", "--with-image", "-o", path(&out)]);
    let good = fs::read(&out).unwrap();
    let other = Cellar::new();
    // The same at every thirteenth byte, in one process, is a test of the crate.
    for n in 1..12 {
        let at = good.len() * n / 12;
        let mut bad = good.clone();
        bad[at] ^= 4;
        for bytes in [&bad[..], &good[..at]] {
            let refused = import_bytes(&other, bytes, &[]);
            assert_eq!(refused.code, 1, "{at}: {refused:?}");
            assert!(
                refused.stderr.contains("standard input") && refused.stderr.contains("imported"),
                "{refused:?}"
            );
        }
    }
    assert_eq!(
        other.run(["cache", "ls"]).stdout.lines().next(),
        Some("no artifacts; `cargo xtask build-agent` makes one")
    );
    other.assert_sound();
    let done = import_bytes(&other, &good, &["--agent", "mine"]);
    assert_eq!(done.code, 0, "{done:?}");
    let there = import_bytes(&other, &good, &[]);
    assert!(there.stdout.lines().all(|line| line.starts_with("present")), "{there:?}");
    let plan = other.json(["launch", "mine", "--dry-run"]);
    assert!(
        plan.to_string().contains(first["recipe"].as_str().unwrap().trim_start_matches("sha256:")),
        "{plan}"
    );
    other.assert_sound();
}

#[test]
fn a_failed_export_leaves_the_file_that_was_there_and_no_other() {
    let cellar = Cellar::new();
    let first = built(&cellar);
    let dir = cellar.path("out");
    fs::create_dir(&dir).unwrap();
    let out = dir.join("x");
    fs::write(&out, "mine").unwrap();
    let artifact = PathBuf::from(first["artifact"].as_str().unwrap());
    let good = fs::read(&artifact).unwrap();
    let mut bad = good.clone();
    bad[99] ^= 1;
    fs::remove_file(&artifact).unwrap();
    fs::write(&artifact, bad).unwrap();
    let complaint = cellar.fails(1, ["cache", "export", "image", "-o", path(&out)]);
    assert!(complaint.contains(path(&artifact)) && complaint.contains("--repair"), "{complaint}");
    assert_eq!((fs::read(&out).unwrap(), fs::read_dir(&dir).unwrap().count()), (b"mine".to_vec(), 1));
    // It was set aside; the next build makes it again.
    assert!(!artifact.exists());
    built(&cellar);
    assert_eq!(fs::read(&artifact).unwrap(), good);
    cellar.json(["cache", "export", "image", "-o", path(&out)]);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
    // Collected layers are no obstacle to an artifact, and are said to be gone.
    fs::remove_dir_all(cellar.cache().join("blobs-v1")).unwrap();
    let piped = cellar.command(["cache", "export", "image"]).output().unwrap();
    assert!(piped.stdout == fs::read(&out).unwrap());
    let complaint = cellar.fails(3, ["cache", "export", "--image", "image", "-o", path(&out)]);
    assert!(complaint.contains("--force=tarball"), "{complaint}");
}

#[test]
fn a_bare_artifact_is_imported_under_the_image_that_is_named_and_launched_by_name() {
    let cellar = Cellar::new();
    let first = built(&cellar);
    let (artifact, id) = (first["artifact"].as_str().unwrap(), first["image_id"].as_str().unwrap());
    let other = Cellar::new();
    let complaint = other.fails(2, ["cache", "import", artifact]);
    assert!(complaint.contains("--image-id"), "{complaint}");
    let said = other.json(["cache", "import", artifact, "--image-id", id, "--agent", "bare"]);
    assert_eq!(
        (&said["image_id"], &said["sha256"], &said["agent"]),
        (&first["image_id"], &first["sha256"], &"bare".into())
    );
    assert_ne!(said["recipe"], first["recipe"]);
    other.assert_sound();
    let plan = other.json(["launch", "bare", "--dry-run"]);
    assert!(
        plan.to_string().contains(said["recipe"].as_str().unwrap().trim_start_matches("sha256:")),
        "{plan}"
    );
    assert!(other.fails(2, ["cache", "import", "no-such-file"]).contains("there is no no-such-file"));
    assert!(other.fails(1, ["cache", "import", "/dev/null"]).contains("no export"));
    let nobody = other.run(["cache", "export", "nobody", "-o", "x"]);
    assert!(nobody.code != 0 && nobody.stderr.contains("first digits"), "{nobody:?}");
    assert!(!other.project().join("x").exists());
}
