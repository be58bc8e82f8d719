//! Many processes that find the same sources new: one has the engine build them.
//! With a fake engine, for a real one may or may not make two images of it.

use std::fs;
use std::process::{Child, Stdio};

use serde_json::Value;
use smolcellar_tests::archives::{docker_save, file, tar};
use smolcellar_tests::cellar::{Cellar, statuses};
use smolcellar_tests::engine::fake_docker;

/// Every build takes a while and is noted, and its image is another one: `RUN
/// date` would do that.
const SCRIPT: &str = r#"
lab=$(dirname "$0")
case $1 in
    build) echo build >> "$lab/calls"; n=$(grep -c build "$lab/calls"); sleep 0.5
           while [ "$1" != --iidfile ]; do shift; done; cp "$lab/id$n" "$2" ;;
    image) for n in 1 2 3; do case "$*" in *$(cat "$lab/id$n")*) printf '{"Id":"%s","Size":1}' "$(cat "$lab/id$n")" ;; esac; done ;;
    save) for n in 1 2 3; do case "$*" in *$(cat "$lab/id$n")*) cat "$lab/image$n.tar" ;; esac; done ;;
esac"#;

fn engine(cellar: &Cellar) {
    cellar.write("smolcellar.toml", "[agent.a]\ncontext = \"ctx\"\n");
    cellar.write("ctx/Dockerfile", "FROM scratch\nCOPY agent /\n");
    cellar.write("ctx/agent", "x");
    fake_docker(&cellar.path("bin"), SCRIPT);
    for n in 1..=3 {
        let saved = docker_save(&[tar(&[file("agent", format!("image {n}").as_bytes())])]);
        let config = saved
            .iter()
            .find(|entry| entry.path.ends_with(".json") && entry.path != "manifest.json")
            .unwrap();
        let id = smolcellar_store::Digest::of(&config.data).to_string();
        fs::write(cellar.path(&format!("bin/id{n}")), id).unwrap();
        fs::write(cellar.path(&format!("bin/image{n}.tar")), tar(&saved)).unwrap();
    }
}

fn start(cellar: &Cellar) -> Child {
    let docker = cellar.path("bin/docker");
    let mut command =
        cellar.command(["build-agent", "--format", "json", "--engine", docker.to_str().unwrap()]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn finish(child: Child) -> Value {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn of_many_first_builds_of_the_same_sources_one_asks_the_engine() {
    let cellar = Cellar::new();
    engine(&cellar);
    let children: Vec<Child> = (0..8).map(|_| start(&cellar)).collect();
    let results: Vec<Value> = children.into_iter().map(finish).collect();
    assert_eq!(fs::read_to_string(cellar.path("bin/calls")).unwrap(), "build\n");
    let built = results.iter().filter(|result| statuses(result)[3] == "smolmachine:miss").count();
    assert_eq!(built, 1);
    assert!(results.iter().all(|result| result["artifact"] == results[0]["artifact"]));
    cellar.assert_sound();
}

/// Each context has its image in it.
const OWN: &str = r#"
lab=$(dirname "$0")
case $1 in
    build) for context; do :; done
           while [ "$1" != --iidfile ]; do shift; done; sleep 0.3; cp "$context/id" "$2"; sleep 0.1 ;;
    image) for id in "$lab"/../project/*/id; do case "$*" in *$(cat "$id")*) printf '{"Id":"%s","Size":1}' "$(cat "$id")" ;; esac; done ;;
    save) for id in "$lab"/../project/*/id; do case "$*" in *$(cat "$id")*) cat "${id%id}image.tar" ;; esac; done ;;
esac"#;

#[test]
fn agents_that_are_built_at_once_get_each_its_own_image() {
    let cellar = Cellar::new();
    fake_docker(&cellar.path("bin"), OWN);
    let mut config = String::new();
    let names = ["a", "b", "c", "d"];
    for name in names {
        config += &format!("[agent.{name}]\ncontext = \"{name}\"\n");
        let saved = docker_save(&[tar(&[file("agent", name.as_bytes())])]);
        let config =
            saved.iter().find(|entry| entry.path.ends_with(".json") && entry.path != "manifest.json");
        cellar.write(&format!("{name}/Dockerfile"), "FROM scratch\nCOPY agent /\n");
        cellar.write(&format!("{name}/.dockerignore"), "id\nimage.tar\n");
        cellar.write(&format!("{name}/agent"), name);
        cellar.write(&format!("{name}/id"), &smolcellar_store::Digest::of(&config.unwrap().data).to_string());
        fs::write(cellar.project().join(name).join("image.tar"), tar(&saved)).unwrap();
    }
    cellar.write("smolcellar.toml", &config);
    let docker = cellar.path("bin/docker");
    let words = ["prewarm", "--jobs", "4", "--format", "json", "--engine", docker.to_str().unwrap()];
    let output = cellar.command(words).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let results: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(results.len(), names.len());
    for (name, result) in names.iter().zip(&results) {
        let own = fs::read_to_string(cellar.project().join(name).join("id")).unwrap();
        assert_eq!(
            (&result["agent"], &result["image_id"]),
            (&Value::from(*name), &Value::from(own)),
            "{result}"
        );
    }
    cellar.assert_sound();
}
