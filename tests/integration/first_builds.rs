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
