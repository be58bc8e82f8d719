//! `build-agent` with the real engine.

use std::path::Path;

use smolcellar_tests::cellar::{ALL_HIT, Cellar, statuses};
use smolcellar_tests::engine::{busybox_project, docker};
use smolcellar_tests::needs::{Need, have};

const NEEDS: [Need; 2] = [Need::Docker, Need::Program("busybox")];

#[test]
fn a_miss_runs_every_stage_once_in_order_and_the_second_run_hits_them_all() {
    if !have(&NEEDS) {
        return;
    }
    let cellar = Cellar::new();
    let image = busybox_project(&cellar);
    let first = cellar.json(["build-agent"]);
    assert_eq!(statuses(&first), ["image:miss", "tarball:miss", "registry:miss", "smolmachine:miss"]);
    assert_eq!(first["agent"], "small");
    let id = docker(&["image", "inspect", "--format", "{{.Id}}", &image.tag]);
    assert_eq!(first["image_id"], id.trim());
    let artifact = Path::new(first["artifact"].as_str().unwrap());
    let image_hex = id.trim().trim_start_matches("sha256:");
    let recipe_hex = first["recipe"].as_str().unwrap().trim_start_matches("sha256:");
    assert!(artifact.is_absolute() && artifact.ends_with(format!("{image_hex}/{recipe_hex}.smolmachine")));
    assert_eq!(artifact.metadata().unwrap().len(), first["size"].as_u64().unwrap());
    let digest = smolcellar_store::Digest::of_file(artifact).unwrap();
    assert_eq!(first["sha256"], digest.to_string());
    for stage in first["stages"].as_array().unwrap() {
        assert!(stage["seconds"].is_f64() && stage["bytes"].is_u64(), "{stage}");
    }
    let before = cellar.stored();
    let second = cellar.json(["build-agent", "small"]);
    assert_eq!(statuses(&second), ALL_HIT);
    for same in ["image_id", "recipe", "artifact", "size", "sha256"] {
        assert_eq!(first[same], second[same]);
    }
    assert_eq!(cellar.stored(), before, "a hit writes nothing new");
    cellar.assert_sound();
}

#[test]
fn an_edited_dockerfile_or_context_file_is_a_miss_without_anyone_removing_anything() {
    if !have(&NEEDS) {
        return;
    }
    let cellar = Cellar::new();
    let _image = busybox_project(&cellar);
    let first = cellar.json(["build-agent"]);
    cellar.write("ctx/data/keep", "kept, but edited\n");
    let second = cellar.json(["build-agent"]);
    assert_ne!(first["image_id"], second["image_id"]);
    assert_eq!(statuses(&second)[3], "smolmachine:miss");
    let dockerfile = std::fs::read_to_string(cellar.project().join("ctx/Dockerfile")).unwrap();
    cellar.write("ctx/Dockerfile", &dockerfile.replace("GREETING=hello", "GREETING=salut"));
    let third = cellar.json(["build-agent"]);
    assert_ne!(second["image_id"], third["image_id"]);
    assert_eq!(statuses(&third)[3], "smolmachine:miss");
    // Undone, it is found again.
    cellar.write("ctx/Dockerfile", &dockerfile);
    assert_eq!(statuses(&cellar.json(["build-agent"])), ALL_HIT);
    cellar.assert_sound();
}

#[test]
fn the_same_image_gives_the_same_bytes_in_two_caches() {
    if !have(&NEEDS) {
        return;
    }
    let (one, two) = (Cellar::new(), Cellar::new());
    let _image = busybox_project(&one);
    let first = one.json(["build-agent"]);
    let toml = std::fs::read_to_string(one.project().join("smolcellar.toml")).unwrap();
    two.write("smolcellar.toml", &toml.replace("\"ctx\"", &format!("{:?}", one.project().join("ctx"))));
    let second = two.json(["build-agent"]);
    assert_eq!(first["sha256"], second["sha256"]);
    assert_ne!(first["artifact"], second["artifact"]);
}

#[test]
fn what_shapes_the_artifact_is_in_the_key_and_what_does_not_is_not() {
    if !have(&NEEDS) {
        return;
    }
    let cellar = Cellar::new();
    let _image = busybox_project(&cellar);
    let first = cellar.json(["build-agent"]);
    let toml = std::fs::read_to_string(cellar.project().join("smolcellar.toml")).unwrap();
    for line in ["cpus = 3", "memory = 777", "cmd = [\"true\"]", "env = { A = \"b\" }", "user = \"7\""] {
        cellar.write("smolcellar.toml", &format!("{toml}{line}\n"));
        let other = cellar.json(["build-agent"]);
        assert_eq!(other["image_id"], first["image_id"], "{line}");
        assert_ne!(other["recipe"], first["recipe"], "{line}");
        assert_eq!(
            statuses(&other),
            ["image:hit", "tarball:hit", "registry:hit", "smolmachine:miss"],
            "{line}"
        );
    }
    // Another agent with the same image and recipe shares the artifact.
    cellar.write("smolcellar.toml", &toml.replace("agent.small", "agent.twin"));
    let twin = cellar.json(["build-agent"]);
    assert_eq!(
        (&twin["agent"], statuses(&twin)),
        (&serde_json::json!("twin"), ALL_HIT.map(String::from).to_vec())
    );
}

#[test]
fn all_agents_are_built_with_one_object_each_and_a_human_sees_a_line_per_stage() {
    if !have(&NEEDS) {
        return;
    }
    let cellar = Cellar::new();
    let _image = busybox_project(&cellar);
    let toml = "[agent.a]\ncontext = \"ctx\"\n[agent.b]\ncontext = \"ctx\"\ncpus = 1\n";
    cellar.write("smolcellar.toml", toml);
    assert!(cellar.fails(2, ["build-agent"]).contains("name one of the agents: a, b"));
    let all = cellar.run(["build-agent", "--all", "--format", "json"]);
    assert_eq!((all.code, all.stdout.lines().count()), (0, 2), "{all:?}");
    let human = cellar.run(["build-agent", "a"]);
    let lines: Vec<&str> = human.stdout.lines().collect();
    assert_eq!(lines[0], "a");
    for (line, stage) in lines[1..5].iter().zip(["image", "tarball", "registry", "smolmachine"]) {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!((words[0], words[1], words[words.len() - 1]), (stage, "HIT", "s"), "{line}");
    }
    assert!(lines[5].trim().ends_with(".smolmachine") && lines[6].starts_with("1 agent, "), "{human:?}");
}
