//! `build-agent --packer smolvm`: smolvm's own packer, from a registry that is
//! there for it alone. A stand-in for faults and for what it is served, where no
//! machine can boot; the real one as far as it comes.

use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use smolcellar_store::Digest;
use smolcellar_tests::archives::{docker_save, file, tar};
use smolcellar_tests::cellar::{Cellar, Ran, ran, runtime, statuses};
use smolcellar_tests::needs::{Need, have};

const CURL: [Need; 1] = [Need::Program("curl")];

/// Pulls the image as a packer does, and notes what it got; then does what
/// `does` says. `packed` is what it makes.
const STAND_IN: &str = r#"#!/bin/sh
lab=$(dirname "$0")/lab; mkdir -p "$lab"
[ "$1" != --version ] || { echo "smolvm 1.32.2"; exit; }
echo "$*" >> "$lab/calls"
[ "$1 $2" = "pack create" ] || exit 0
while [ $# -gt 0 ]; do case $1 in --image) image=$2 ;; --output) output=$2 ;; esac; shift; done
echo "$image" >> "$lab/images"
host=${image%%/*}; path=${image#*/}; repo=${path%:*}; tag=${path##*:}
mine=$(mktemp -d "$lab/pull-XXXXXX")
curl -sSf "http://$host/v2/$repo/manifests/$tag" -o "$mine/manifest" || exit 9
grep -o 'sha256:[0-9a-f]*' "$mine/manifest" | while read -r digest; do
    curl -sSf "http://$host/v2/$repo/blobs/$digest" -o "$mine/blob" || exit 9
    [ "sha256:$(sha256sum < "$mine/blob" | cut -d' ' -f1)" = "$digest" ] || exit 8
    mv "$mine/blob" "$mine/${digest#sha256:}"
done || exit $?
does=$(cat "$lab/does" 2>/dev/null)
case $does in
    hang) echo $$ > "$lab/hangs.new"; mv "$lab/hangs.new" "$lab/hangs"; trap '' TERM; while :; do sleep 0.1; done ;;
    fail) echo "the disk of the machine is full" >&2; exit 3 ;;
    nothing) exit 0 ;;
    *) echo stub > "$output"; cp "$lab/packed" "$output.smolmachine" ;;
esac
"#;

struct Lab {
    cellar: Cellar,
    dir: PathBuf,
    archive: String,
}

impl Lab {
    fn new() -> Self {
        let cellar = Cellar::new();
        let dir = cellar.path("smolvm");
        std::fs::create_dir_all(dir.join("lab")).unwrap();
        for entry in std::fs::read_dir(runtime()).unwrap().flatten() {
            if entry.file_name() != "smolvm" {
                std::os::unix::fs::symlink(entry.path(), dir.join(entry.file_name())).unwrap();
            }
        }
        std::fs::write(dir.join("smolvm"), STAND_IN).unwrap();
        std::fs::set_permissions(dir.join("smolvm"), std::fs::Permissions::from_mode(0o755)).unwrap();
        // Two layers: what the machine is given must be one.
        let layers = [
            tar(&[file("agent", b"old"), file("gone", b"x")]),
            tar(&[file("agent", b"new"), file(".wh.gone", b"")]),
        ];
        std::fs::write(cellar.path("a.tar"), tar(&docker_save(&layers))).unwrap();
        let archive = cellar.path("a.tar").display().to_string();
        let lab = Self { cellar, dir, archive };
        // What it "packs" is what our packer makes of the same image.
        let native: Value = serde_json::from_str(&lab.ok(&[]).stdout).unwrap();
        std::fs::copy(native["artifact"].as_str().unwrap(), lab.dir.join("lab/packed")).unwrap();
        lab
    }

    fn command(&self, more: &[&str]) -> Command {
        let words = ["build-agent", "--format", "json", "--archive", &self.archive];
        let mut command = self.cellar.command(words.iter().chain(more));
        command.env("SMOLCELLAR_SMOLVM_DIR", &self.dir);
        command
    }

    fn ok(&self, more: &[&str]) -> Ran {
        let ran = ran(self.command(more).output().unwrap());
        assert_eq!(ran.code, 0, "{ran:?}");
        ran
    }

    fn does(&self, what: &str) {
        std::fs::write(self.dir.join("lab/does"), what).unwrap();
    }

    /// The names under which images were served.
    fn images(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir.join("lab/images")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn assert_no_registry_is_left(&self) {
        for image in self.images() {
            let (host, _) = image.split_once('/').unwrap();
            assert!(host.starts_with("127.0.0.1:"), "{image}");
            assert!(TcpStream::connect(host).is_err(), "{host} is still served");
        }
    }
}

#[test]
fn smolvms_packer_is_served_one_flat_image_and_what_it_makes_is_cached() {
    if !have(&CURL) {
        return;
    }
    let lab = Lab::new();
    let built: Value = serde_json::from_str(&lab.ok(&["--packer", "smolvm"]).stdout).unwrap();
    assert_eq!(statuses(&built), ["image:hit", "tarball:hit", "registry:hit", "smolmachine:miss"]);
    // One layer, in which the later file won and the removed one is gone.
    let pulls: Vec<_> = std::fs::read_dir(lab.dir.join("lab")).unwrap().flatten().collect();
    let pull =
        pulls.iter().find(|entry| entry.file_name().to_string_lossy().starts_with("pull-")).unwrap().path();
    let manifest: Value = serde_json::from_slice(&std::fs::read(pull.join("manifest")).unwrap()).unwrap();
    let layers = manifest["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 1);
    let blob = |digest: &Value| {
        std::fs::read(pull.join(digest.as_str().unwrap().trim_start_matches("sha256:"))).unwrap()
    };
    let layer = blob(&layers[0]["digest"]);
    let names: Vec<String> = tar::Archive::new(&layer[..])
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect();
    assert!(
        names.contains(&"agent".to_owned()) && !names.iter().any(|name| name.contains("gone")),
        "{names:?}"
    );
    let config: Value = serde_json::from_slice(&blob(&manifest["config"]["digest"])).unwrap();
    assert_eq!(config["rootfs"]["diff_ids"][0], Digest::of(&layer).to_string());
    assert_eq!(config["config"]["Entrypoint"][0], "/agent");
    lab.assert_no_registry_is_left();
    // It is another artifact than ours of the same image, and just as cached.
    let again: Value = serde_json::from_str(&lab.ok(&["--packer", "smolvm"]).stdout).unwrap();
    assert_eq!(statuses(&again)[3], "smolmachine:hit");
    assert_eq!((&again["sha256"], &again["recipe"]), (&built["sha256"], &built["recipe"]));
    let native: Value = serde_json::from_str(&lab.ok(&[]).stdout).unwrap();
    assert_ne!(native["recipe"], built["recipe"]);
    assert_eq!(lab.images().len(), 1, "a hit asked smolvm");
    lab.cellar.assert_sound();
}

#[test]
fn what_its_packer_does_wrong_is_told_and_nothing_of_it_is_kept() {
    if !have(&CURL) {
        return;
    }
    let lab = Lab::new();
    let before = lab.cellar.stored();
    for (does, says) in
        [("fail", "the disk of the machine is full"), ("nothing", "made no artifact"), ("other", "another")]
    {
        lab.does(does);
        let mut command = lab.command(&["--packer", "smolvm"]);
        if does == "other" {
            // A machine of another size than the one that it "packs".
            let text = "[agent.a]\ncontext = \".\"\nmemory = 777\nenv = { EXTRA = \"1\" }\n";
            lab.cellar.write("smolcellar.toml", text);
            command.arg("a");
        }
        let failed = ran(command.output().unwrap());
        assert_eq!(failed.code, 1, "{failed:?}");
        assert!(failed.stderr.contains(says), "{does}: {failed:?}");
        assert!(failed.stderr.contains("pack create"), "{does}: {failed:?}");
        lab.assert_no_registry_is_left();
        let artifacts = |paths: &[PathBuf]| {
            paths.iter().filter(|path| path.to_string_lossy().contains("machines-v1")).count()
        };
        assert_eq!(artifacts(&lab.cellar.stored()), artifacts(&before));
    }
    std::fs::remove_file(lab.cellar.project().join("smolcellar.toml")).unwrap();
    lab.does("");
    lab.ok(&["--packer", "smolvm"]);
    lab.cellar.assert_sound();
}

#[test]
fn a_signal_ends_packer_and_registry_and_two_at_once_do_not_meet() {
    if !have(&CURL) {
        return;
    }
    let lab = Lab::new();
    lab.does("hang");
    let mut child =
        lab.command(&["--packer", "smolvm"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let began = Instant::now();
    while !lab.dir.join("lab/hangs").exists() {
        assert!(began.elapsed() < Duration::from_secs(20), "it never began to pack");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let began = Instant::now();
    child.wait().unwrap();
    assert!(began.elapsed() < Duration::from_secs(10), "it took {:?} to end", began.elapsed());
    // It ignores being asked to end.
    let packer = std::fs::read_to_string(lab.dir.join("lab/hangs")).unwrap();
    let packer = PathBuf::from("/proc").join(packer.trim());
    while packer.exists() {
        assert!(began.elapsed() < Duration::from_secs(12), "the packer still runs");
        std::thread::sleep(Duration::from_millis(20));
    }
    lab.assert_no_registry_is_left();
    lab.does("");
    // Different machines of one image: two registries at once.
    let agents = "[agent.b]\ncontext = \".\"\ncpus = 1\n[agent.c]\ncontext = \".\"\ncpus = 3\n";
    lab.cellar.write("smolcellar.toml", agents);
    let children: Vec<_> = ["b", "c"]
        .map(|name| {
            lab.command(&["--packer", "smolvm", name])
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .into();
    for child in children {
        // Both pulled all of their own image; that the machine is another is what they fail of.
        let failed = ran(child.wait_with_output().unwrap());
        assert!(failed.stderr.contains("another cpus"), "{failed:?}");
    }
    let mut images = lab.images();
    images.sort();
    images.dedup();
    assert_eq!(images.len(), 3);
    lab.assert_no_registry_is_left();
    std::fs::remove_file(lab.cellar.project().join("smolcellar.toml")).unwrap();
    lab.ok(&[]);
    lab.cellar.assert_sound();
}

#[test]
fn the_real_packer_finds_the_image_before_it_boots_its_machine() {
    let cellar = Cellar::new();
    std::fs::write(cellar.path("a.tar"), tar(&docker_save(&[tar(&[file("agent", b"x")])]))).unwrap();
    let archive = cellar.path("a.tar").display().to_string();
    let mut command = cellar.command(["build-agent", "--packer", "smolvm", "--archive", &archive]);
    let done = ran(command.env("SMOLVM_DATA_DIR", cellar.path("smolvm-data")).output().unwrap());
    // Its probe of the image comes first. Where it is not answered, smolvm says so.
    assert!(!done.stderr.contains("probe failed"), "{done:?}");
    if done.code == 0 {
        // Here machines boot: it is a whole artifact, then.
        cellar.assert_sound();
        return;
    }
    assert!(done.stderr.contains("pack create") && done.stderr.contains("microVM"), "{done:?}");
    let listed = cellar.run(["cache", "ls"]);
    assert!(listed.stdout.contains("no artifacts"), "{listed:?}");
}
