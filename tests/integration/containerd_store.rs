//! Docker's containerd image store (the default since engine 29) calls an
//! image by the digest of its manifest or index, which changes when nothing in
//! the image does. No such engine is here: a fake says what one says.

use std::fs;

use serde_json::Value;
use smolcellar_store::Digest;
use smolcellar_tests::archives::{architecture, config, docker_save_25, file, tar};
use smolcellar_tests::cellar::{ALL_HIT, Cellar, statuses};
use smolcellar_tests::engine::fake_docker;

const SCRIPT: &str = r#"
lab=$(dirname "$0")
echo "$1" >> "$lab/calls"
case $1 in
    build) while [ "$1" != --iidfile ]; do shift; done; cp "$lab/id" "$2" ;;
    image) printf '{"Id":"%s","Size":1,"Descriptor":{"mediaType":"application/vnd.oci.image.index.v1+json"}}' "$(cat "$lab/id")" ;;
    save) cat "$lab/image.tar" ;;
esac"#;

struct Engine {
    cellar: Cellar,
}

impl Engine {
    fn new(layers: &[Vec<u8>]) -> Self {
        let cellar = Cellar::new();
        cellar.write("smolcellar.toml", "[agent.a]\ncontext = \"ctx\"\n");
        cellar.write("ctx/Dockerfile", "FROM scratch\n");
        fake_docker(&cellar.path("bin"), SCRIPT);
        fs::write(cellar.path("bin/image.tar"), tar(&docker_save_25(layers))).unwrap();
        Self { cellar }
    }

    /// One run after a change that the image does not have, so that the engine
    /// has to be asked.
    fn build(&self, id: &str) -> (Value, Vec<String>) {
        let note = self.cellar.project().join("ctx/not-copied");
        let more = fs::read_to_string(&note).unwrap_or_default() + "again\n";
        fs::write(note, more).unwrap();
        self.run(id)
    }

    /// One run, with the engine calling the image `id`; the result, and what
    /// the engine was asked for.
    fn run(&self, id: &str) -> (Value, Vec<String>) {
        let id = Digest::of(id.as_bytes()).to_string();
        fs::write(self.cellar.path("bin/id"), id).unwrap();
        let _ = fs::remove_file(self.cellar.path("bin/calls"));
        let docker = self.cellar.path("bin/docker");
        let result = self.cellar.json(["--engine", docker.to_str().unwrap(), "build-agent"]);
        let calls = fs::read_to_string(self.cellar.path("bin/calls")).unwrap_or_default();
        (result, calls.lines().map(str::to_owned).collect())
    }
}

#[test]
fn an_image_is_known_by_its_config_whatever_the_engine_calls_it() {
    let layers = [tar(&[file("agent", b"x")])];
    let engine = Engine::new(&layers);
    let image = Digest::of(&config(&layers, architecture())).to_string();

    let (first, calls) = engine.build("manifest 1");
    assert_eq!(first["image_id"], image);
    assert_eq!(statuses(&first), ["image:miss", "tarball:miss", "registry:miss", "smolmachine:miss"]);
    assert_eq!(calls, ["build", "image", "save"]);

    // Called the same again: the alias is remembered, nobody asks.
    let (second, calls) = engine.build("manifest 1");
    assert_eq!(
        (statuses(&second), &second["image_id"]),
        (ALL_HIT.map(str::to_owned).to_vec(), &first["image_id"])
    );
    assert_eq!(calls, ["build"]);

    // A cached rebuild gives it a new name: it takes a look to know that it is
    // the same image, but no packing; and the new name is remembered too.
    let (third, calls) = engine.build("manifest 2");
    assert_eq!((&third["artifact"], &third["image_id"]), (&first["artifact"], &first["image_id"]));
    assert_eq!(statuses(&third), ALL_HIT);
    assert_eq!(calls, ["build", "image", "save"]);
    let (_, calls) = engine.build("manifest 2");
    assert_eq!(calls, ["build"]);

    // What was built before needs no engine, whatever that would say.
    let (same, calls) = engine.run("manifest 3");
    assert_eq!(
        (&same["artifact"], statuses(&same)),
        (&first["artifact"], ALL_HIT.map(str::to_owned).to_vec())
    );
    assert_eq!(calls, [""; 0]);
    engine.cellar.assert_sound();
}
