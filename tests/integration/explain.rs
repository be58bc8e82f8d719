//! Why builds miss, what they would do, and hits that need no engine: with the
//! real engine, and with one that must not be asked.

use std::path::Path;

use serde_json::Value;
use smolcellar_store::Digest;
use smolcellar_tests::cellar::{ALL_HIT, Cellar, Ran, statuses};
use smolcellar_tests::engine::{busybox_project, docker, fake_docker};
use smolcellar_tests::needs::{Need, have};

const NEEDS: [Need; 2] = [Need::Docker, Need::Program("busybox")];

/// The agent's settings with other CPUs.
fn with_cpus(cellar: &Cellar, cpus: u8) {
    let file = cellar.project().join("smolcellar.toml");
    let text = std::fs::read_to_string(file).unwrap();
    let kept = text.lines().filter(|line| !line.starts_with("cpus"));
    let text: Vec<_> = kept.flat_map(|line| [line.to_owned(), "\n".to_owned()]).collect();
    cellar.write("smolcellar.toml", &text.concat().replacen("]\n", &format!("]\ncpus = {cpus}\n"), 1));
}

/// An engine that fails whatever it is asked, and notes that it was.
fn no_engine(cellar: &Cellar) -> String {
    fake_docker(&cellar.path("bin"), "echo \"$@\" >> \"$(dirname \"$0\")/calls\"; exit 1");
    cellar.path("bin/docker").display().to_string()
}

fn asked(cellar: &Cellar) -> bool {
    cellar.path("bin/calls").exists()
}

fn why_of(result: &Value, stage: &str) -> String {
    let why = result["why"].as_array().unwrap();
    why.iter().find(|why| why["stage"] == stage).map(Value::to_string).unwrap_or_default()
}

#[test]
fn each_changed_input_is_named_old_and_new_and_files_of_the_context_too() {
    if !have(&NEEDS) {
        return;
    }
    let cellar = Cellar::new();
    let _image = busybox_project(&cellar);
    with_cpus(&cellar, 1);
    let first = cellar.json(["build-agent", "--explain"]);
    assert!(why_of(&first, "image").contains("first build"), "{first}");

    with_cpus(&cellar, 2);
    let second = cellar.json(["build-agent", "--explain"]);
    assert_eq!(statuses(&second)[3], "smolmachine:miss");
    let why = &second["why"][0];
    assert_eq!((second["why"].as_array().unwrap().len(), &why["stage"]), (1, &Value::from("smolmachine")));
    let change = &why["changes"][0];
    assert_eq!((&change["input"], &change["old"], &change["new"]), (&"cpus".into(), &1.into(), &2.into()));

    cellar.write("ctx/data/keep", "kept, but edited\n");
    cellar.write("ctx/data/fresh", "new\n");
    let third = cellar.json(["build-agent", "--explain"]);
    let why = why_of(&third, "image");
    assert!(why.contains("data/keep (contents)") && why.contains("data/fresh (added)"), "{why}");
    let image = &third["why"].as_array().unwrap().last().unwrap()["changes"][0];
    assert_eq!((&image["old"], &image["new"]), (&second["image_id"], &third["image_id"]));

    // Later on, `cache why` says the same, by the agent and by the key.
    let said = cellar.run(["cache", "why", "small"]);
    assert!(said.stdout.contains("data/keep (contents)"), "{said:?}");
    let key = second["recipe"].as_str().unwrap().trim_start_matches("sha256:");
    let image = second["image_id"].as_str().unwrap();
    let said = cellar.run(["cache", "why", &format!("{image}/{key}")]);
    assert!(said.stdout.contains("cpus: 1 → 2"), "{said:?}");
    assert!(first["why"].is_array() && cellar.json(["build-agent"])["why"].is_null());
}

#[test]
fn what_was_built_before_is_a_hit_without_an_engine_and_anything_else_is_not() {
    if !have(&NEEDS) {
        return;
    }
    let cellar = Cellar::new();
    let image = busybox_project(&cellar);
    let first = cellar.json(["build-agent"]);
    let dead = no_engine(&cellar);
    let hit = cellar.json(["--engine", &dead, "build-agent"]);
    assert_eq!((statuses(&hit), &hit["sha256"]), (ALL_HIT.map(str::to_owned).to_vec(), &first["sha256"]));
    let hit = cellar.json(["--engine", &dead, "build-agent", "--require-cache"]);
    assert_eq!(statuses(&hit), ALL_HIT);
    assert!(!asked(&cellar), "a hit asks no engine");

    // Whatever the builder would see must be the same.
    cellar.write("ctx/data/keep", "edited\n");
    let refused = cellar.run(["--engine", &dead, "build-agent", "--require-cache"]);
    assert_eq!(refused.code, 3, "{refused:?}");
    assert!(refused.stderr.contains("keep (contents)"), "{refused:?}");
    let Ran { code, .. } = cellar.run(["--engine", &dead, "build-agent"]);
    assert!(code == 1 && asked(&cellar), "it must be built");
    let second = cellar.json(["build-agent"]);
    assert_ne!(second["image_id"], first["image_id"]);

    // The artifact is gone, and so is the image, here and in the engine: the
    // engine builds it again.
    assert_eq!(cellar.run(["cache", "gc", "--all", "-y"]).code, 0);
    docker(&["rmi", "--force", &image.tag]);
    let again = cellar.json(["build-agent"]);
    assert_eq!(statuses(&again), ["image:miss", "tarball:miss", "registry:miss", "smolmachine:miss"]);
    cellar.assert_sound();
}

#[test]
fn a_plan_builds_nothing_and_foretells_what_happens() {
    if !have(&NEEDS) {
        return;
    }
    let cellar = Cellar::new();
    let _image = busybox_project(&cellar);
    let expects = |plan: &Value| -> Vec<String> {
        let stages = plan["stages"].as_array().unwrap();
        stages.iter().map(|stage| stage["expect"].as_str().unwrap().to_owned()).collect()
    };
    let plan = cellar.json(["build-agent", "--plan"]);
    assert_eq!(expects(&plan), ["run", "run-if-image-changed", "run-if-image-changed", "run"]);
    assert_eq!(cellar.stored(), Vec::<std::path::PathBuf>::new());
    let built = cellar.json(["build-agent"]);
    let plan = cellar.json(["build-agent", "--plan"]);
    assert_eq!(expects(&plan), ["hit", "hit", "hit", "hit"]);
    assert_eq!(plan["artifact"], built["artifact"]);
    with_cpus(&cellar, 3);
    let before = cellar.stored();
    let plan = cellar.json(["build-agent", "--plan"]);
    assert_eq!(expects(&plan), ["hit", "hit", "hit", "run"]);
    let machine = &plan["stages"][3];
    assert!(machine["took"]["bytes"].as_u64().unwrap() > 0 && plan["artifact"].is_null(), "{machine}");
    assert_eq!(cellar.stored(), before);
    let ran = cellar.json(["build-agent"]);
    assert_eq!(statuses(&ran), ["image:hit", "tarball:hit", "registry:hit", "smolmachine:miss"]);
    assert_eq!(plan["recipe"], ran["recipe"]);
}

#[test]
fn force_makes_everything_again_from_its_stage_on_and_the_bytes_are_the_same() {
    if !have(&NEEDS) {
        return;
    }
    let cellar = Cellar::new();
    let _image = busybox_project(&cellar);
    let first = cellar.json(["build-agent"]);
    for (stage, expected) in [
        ("smolmachine", ["image:hit", "tarball:hit", "registry:hit", "smolmachine:miss"]),
        ("registry", ["image:hit", "tarball:hit", "registry:miss", "smolmachine:miss"]),
        ("tarball", ["image:hit", "tarball:miss", "registry:miss", "smolmachine:miss"]),
    ] {
        let forced = cellar.json(["build-agent", &format!("--force={stage}")]);
        assert_eq!(statuses(&forced), expected);
        assert_eq!((&forced["artifact"], &forced["sha256"]), (&first["artifact"], &first["sha256"]));
    }
    // Without the engine's cache: the image is another one, if its builder
    // notes the time, but it is whole.
    let forced = cellar.json(["build-agent", "--force"]);
    assert_eq!(statuses(&forced), ["image:miss", "tarball:miss", "registry:miss", "smolmachine:miss"]);
    assert_eq!(statuses(&cellar.json(["build-agent"])), ALL_HIT);
    cellar.assert_sound();
}

#[test]
fn a_tarball_that_is_forced_heals_a_layer_that_is_damaged() {
    if !have(&NEEDS) {
        return;
    }
    let cellar = Cellar::new();
    let _image = busybox_project(&cellar);
    cellar.json(["build-agent"]);
    let blobs = cellar.stored().into_iter().filter(|path| path.starts_with(cellar.cache().join("blobs-v1")));
    let layer = blobs.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    damage(&layer);
    let healed = cellar.run(["build-agent", "--force=tarball"]);
    assert_eq!(healed.code, 0, "{healed:?}");
    assert!(healed.stderr.contains("quarantined and is replaced"), "{healed:?}");
    cellar.assert_sound();
}

/// Flips a bit in the middle, and leaves the size as it is.
fn damage(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn runs_are_counted_and_artifacts_can_be_looked_at() {
    if !have(&NEEDS) {
        return;
    }
    let cellar = Cellar::new();
    let _image = busybox_project(&cellar);
    let built = cellar.json(["build-agent"]);
    cellar.json(["build-agent"]);
    let stats = cellar.run(["cache", "stats", "--format", "json"]);
    let total: Value = serde_json::from_str(stats.stdout.lines().last().unwrap()).unwrap();
    assert_eq!((&total["by"], &total["hits"], &total["misses"]), (&"total".into(), &4.into(), &4.into()));
    assert!(total["written_bytes"].as_u64() > built["size"].as_u64(), "{total}");
    let seen = cellar.json(["cache", "inspect", "small"]);
    assert_eq!((&seen["artifact"], &seen["receipt"]["sha256"]), (&built["artifact"], &built["sha256"]));
    assert_eq!(seen["stages"].as_array().unwrap().len(), 2);
    assert!(seen["frames"].as_u64().unwrap() > 1 && seen["held_by"] == serde_json::json!([]), "{seen}");
    // A use is noted, and costs no write of the receipt.
    let listed = cellar.json(["cache", "ls"]);
    assert_eq!((&listed["agent"], &listed["pinned"]), (&"small".into(), &false.into()));
}

/// A project that copies all of its context onto a base of the test's own; its
/// image, which is removed when dropped.
#[must_use]
fn on_base(cellar: &Cellar, base: &str) -> Base {
    let tag = format!(
        "smolcellar-test-{}:latest",
        Digest::of(cellar.project().as_os_str().as_encoded_bytes()).short()
    );
    cellar.write("smolcellar.toml", &format!("[agent.based]\ncontext = \"ctx\"\nimage = \"{tag}\"\n"));
    cellar.write("ctx/Dockerfile", &format!("FROM {base}\nCOPY . /\n"));
    cellar.write("ctx/data", &format!("{}", std::process::id()));
    Base(tag)
}

/// An image of one file, under a name that is removed with it.
struct Base(String);

impl Base {
    fn new(cellar: &Cellar, name: &str, text: &str) -> Self {
        let folder = format!("base-{text}");
        cellar.write(&format!("{folder}/Dockerfile"), "FROM scratch\nCOPY base /\n");
        cellar.write(&format!("{folder}/base"), text);
        let context = cellar.project().join(folder);
        docker(&["build", "--quiet", "--tag", name, context.to_str().unwrap()]);
        Self(name.to_owned())
    }
}

impl Drop for Base {
    fn drop(&mut self) {
        docker(&["rmi", "--force", &self.0]);
    }
}

#[test]
fn a_base_image_that_moves_is_another_input_even_while_the_engine_builds() {
    if !have(&NEEDS) {
        return;
    }
    let cellar = Cellar::new();
    let unique = format!("smolcellar-test-base-{}", std::process::id());
    let name = format!("{unique}:latest");
    let (one, two) = (
        Base::new(&cellar, &format!("{unique}:1"), "one"),
        Base::new(&cellar, &format!("{unique}:2"), "two"),
    );
    docker(&["tag", &one.0, &name]);
    let _name = Base(name.clone());
    let _image = on_base(&cellar, &name);
    let real = smolcellar_tests::needs::which("docker").unwrap();
    // Whoever moves the name does it after we looked and before the engine does.
    let script = format!(
        "[ \"$1\" != build ] || {docker} tag {} {name}\nexec {docker} \"$@\"",
        two.0,
        docker = real.display()
    );
    fake_docker(&cellar.path("bin"), &script);
    let moving = cellar.path("bin/docker");
    let of_two = cellar.json(["--engine", moving.to_str().unwrap(), "build-agent"]);
    docker(&["tag", &one.0, &name]);
    let of_one = cellar.json(["build-agent", "--explain"]);
    assert_ne!(of_two["image_id"], of_one["image_id"]);
    assert_eq!(statuses(&cellar.json(["build-agent"])), ALL_HIT);
    docker(&["tag", &two.0, &name]);
    let again = cellar.json(["build-agent", "--explain"]);
    assert_eq!(again["image_id"], of_two["image_id"]);
}

#[test]
fn an_ignore_file_that_only_some_builders_follow_hides_no_change() {
    if !have(&NEEDS) {
        return;
    }
    for buildkit in ["false", "0", ""] {
        let cellar = Cellar::new();
        let _image = on_base(&cellar, "scratch");
        cellar.write("ctx/Dockerfile.dockerignore", "data\n");
        let build = || {
            let mut command = cellar.command(["build-agent", "--format", "json"]);
            let ran =
                smolcellar_tests::cellar::ran(command.env("DOCKER_BUILDKIT", buildkit).output().unwrap());
            assert_eq!(ran.code, 0, "{ran:?}");
            serde_json::from_str::<Value>(&ran.stdout).unwrap()
        };
        let first = build();
        cellar.write("ctx/data", "edited\n");
        let second = build();
        // The builder here is the one that sends it.
        assert_ne!(first["image_id"], second["image_id"], "DOCKER_BUILDKIT={buildkit}");
    }
}
