//! Mistakes in the surroundings: each a clear error with a remedy.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use smolcellar_tests::cellar::{Cellar, ran};
use smolcellar_tests::engine::{busybox_project, fake_docker};
use smolcellar_tests::needs::{Need, have};

#[test]
fn no_engine_and_a_dead_engine_are_told_apart_and_both_name_the_way_around() {
    let cellar = Cellar::new();
    cellar.write("smolcellar.toml", "[agent.a]\ncontext = \"ctx\"\n");
    cellar.write("ctx/Dockerfile", "FROM scratch\nCOPY x /x\n");
    let output = cellar.command(["build-agent"]).env("PATH", "/nonexistent").output().unwrap();
    let none = ran(output);
    assert_eq!(none.code, 1);
    assert!(
        none.stderr.contains("docker and podman not found") && none.stderr.contains("--archive"),
        "{none:?}"
    );
    if !have(&[Need::Docker]) {
        return;
    }
    let mut command = cellar.command(["build-agent"]);
    let dead = ran(command.env("DOCKER_HOST", "unix:///nonexistent/docker.sock").output().unwrap());
    assert_eq!(dead.code, 1);
    assert!(
        // The reason at once, whatever docker says before it.
        dead.stderr.contains("cannot reach its engine: Cannot connect to the Docker daemon")
            && dead.stderr.contains("docker info"),
        "{dead:?}"
    );
    assert_eq!(cellar.stored(), Vec::<PathBuf>::new());
}

#[test]
fn a_missing_and_a_failing_dockerfile_are_shown_for_what_they_are() {
    if !have(&[Need::Docker, Need::Program("busybox")]) {
        return;
    }
    let cellar = Cellar::new();
    cellar.write("smolcellar.toml", "[agent.a]\ncontext = \"nowhere\"\n");
    let complaint = cellar.fails(2, ["build-agent"]);
    assert!(complaint.contains("nowhere") && complaint.contains("`context`"), "{complaint}");
    let _image = busybox_project(&cellar);
    cellar.write(
        "ctx/Dockerfile",
        "FROM scratch\nCOPY busybox /b\nRUN [\"/b\", \"sh\", \"-c\", \"echo the reason >&2; exit 9\"]\n",
    );
    let complaint = cellar.fails(1, ["build-agent"]);
    assert!(complaint.contains("the reason") && complaint.contains("exit code"), "{complaint}");
    std::fs::remove_file(cellar.project().join("ctx/Dockerfile")).unwrap();
    let complaint = cellar.fails(2, ["build-agent"]);
    assert!(complaint.contains("no Dockerfile") && complaint.contains("`dockerfile`"), "{complaint}");
    assert_eq!(cellar.stored(), Vec::<PathBuf>::new());
}

#[test]
fn unknown_agents_keys_and_commands_are_usage_errors_with_the_near_names() {
    let cellar = Cellar::new();
    let complaint = cellar.fails(2, ["build-agent"]);
    assert!(
        complaint.contains("no configuration found") && complaint.contains("smolcellar.toml"),
        "{complaint}"
    );
    cellar.write("smolcellar.toml", "[agent.reviewer]\ncontext = \".\"\n");
    assert!(cellar.fails(2, ["build-agent", "revewer"]).contains("did you mean 'reviewer'?"));
    cellar.write("smolcellar.toml", "[agent.reviewer]\ncontext = \".\"\nmemmory = 5\n");
    let complaint = cellar.fails(2, ["build-agent"]);
    assert!(complaint.contains("memmory") && complaint.contains("memory"), "{complaint}");
    cellar.write("smolcellar.toml", "[agent.reviewer\n");
    assert!(cellar.fails(2, ["build-agent"]).contains("smolcellar.toml"));
    assert_eq!(cellar.run(["biuld-agent"]).code, 2);
}

#[test]
fn a_failing_command_before_the_build_shows_what_it_printed() {
    let cellar = Cellar::new();
    cellar.write(
        "smolcellar.toml",
        "[agent.a]\ncontext = \".\"\nbefore = [\"sh\", \"-c\", \"echo no compiler; exit 4\"]\n",
    );
    let fake = cellar.path("bin");
    fake_docker(&fake, "exit 1");
    let path = format!("{}:{}", fake.display(), std::env::var("PATH").unwrap());
    let ran = ran(cellar.command(["build-agent"]).env("PATH", path).output().unwrap());
    assert!(ran.code == 1 && ran.stderr.contains("no compiler"), "{ran:?}");
}

#[test]
fn a_cache_folder_that_will_not_do_is_refused_before_any_work() {
    let cellar = Cellar::new();
    let at = |path: &PathBuf| cellar.fails(1, ["cache", "ls", "--cache-dir", path.to_str().unwrap()]);
    let link = cellar.path("link");
    std::fs::create_dir(cellar.path("real")).unwrap();
    symlink(cellar.path("real"), &link).unwrap();
    assert!(at(&link).contains("symlink"));
    let open = cellar.path("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
    assert!(at(&open).contains("everybody"));
    let unwritable = PathBuf::from("/proc/smolcellar");
    let complaint = at(&unwritable);
    assert!(complaint.contains("/proc/smolcellar") && complaint.contains("cannot create"), "{complaint}");
    assert_eq!(cellar.run(["cache", "ls"]).code, 0);
    let format = cellar.cache().join("format.json");
    let text = std::fs::read_to_string(&format).unwrap();
    std::fs::remove_file(&format).unwrap();
    std::fs::write(&format, text.replace("\"schema\": 1", "\"schema\": 2")).unwrap();
    let complaint = at(&cellar.cache());
    assert!(complaint.contains("newer") && complaint.contains("update smolcellar"), "{complaint}");
}

#[test]
fn an_engine_that_lies_is_not_believed() {
    let cellar = Cellar::new();
    cellar.write("smolcellar.toml", "[agent.a]\ncontext = \".\"\n");
    cellar.write("Dockerfile", "FROM scratch\n");
    let id = format!("sha256:{}", "ab".repeat(32));
    let build = format!("build) shift; while [ \"$1\" != --iidfile ]; do shift; done; echo {id} > \"$2\";;");
    let inspect = format!("image) echo '{{\"Id\":\"{id}\",\"Size\":1}}';;");
    let saves = [
        ("save) printf 'short';;", "no tar archive"),
        ("save) :;;", "not an image archive"),
        ("save) echo the disk is full >&2; exit 1;;", "the disk is full"),
        ("save) head -c 700 /dev/zero | tr '\\0' x; echo broke off >&2; exit 3;;", "broke off"),
    ];
    for (save, expected) in saves {
        let bin = cellar.path("bin");
        fake_docker(&bin, &format!("case $1 in\n{build}\n{inspect}\n{save}\nesac"));
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        let ran = ran(cellar.command(["build-agent"]).env("PATH", path).output().unwrap());
        assert!(ran.code == 1 && ran.stderr.contains(expected), "{save}: {ran:?}");
        assert_eq!(cellar.stored(), Vec::<PathBuf>::new(), "{save}");
    }
    // No image ID at all.
    fake_docker(&cellar.path("bin"), "exit 0");
    let path = format!("{}:{}", cellar.path("bin").display(), std::env::var("PATH").unwrap());
    let ran = ran(cellar.command(["build-agent"]).env("PATH", path).output().unwrap());
    assert!(ran.stderr.contains("succeeded but wrote no image ID"), "{ran:?}");
}
