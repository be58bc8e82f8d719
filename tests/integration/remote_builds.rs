//! Builds, launches and prewarming with a cache that others share, at a real
//! registry: two machines are two cache folders.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use smolcellar_tests::archives::{docker_save, file, tar};
use smolcellar_tests::cellar::{Cellar, Ran, ran, runtime, statuses};
use smolcellar_tests::engine::fake_docker;
use smolcellar_tests::needs::{Need, have};
use smolcellar_tests::proxy::{Fault, Proxy};
use smolcellar_tests::registry::{Access, Registry, unused_address};

const NEEDS: [Need; 1] = [Need::Program("docker-registry")];

/// An engine that notes what it is asked for, and whose image differs from
/// machine to machine, as real ones' do.
const ENGINE: &str = r#"
lab=$(dirname "$0")
echo "$1" >> "$lab/calls"
case $1 in
    build) while [ "$1" != --iidfile ]; do shift; done; cp "$lab/id" "$2" ;;
    image) printf '{"Id":"%s","Size":1}' "$(cat "$lab/id")" ;;
    save) cat "$lab/image.tar" ;;
esac"#;

/// A machine: a checkout of the same sources, a cache and an engine of its own.
struct Laptop {
    cellar: Cellar,
}

impl Laptop {
    fn new(name: &str) -> Self {
        let cellar = Cellar::new();
        let agents = "[agent.a]\ncontext = \"ctx\"\n[agent.b]\ncontext = \"ctx\"\ncpus = 1\n";
        cellar.write("smolcellar.toml", agents);
        cellar.write("ctx/Dockerfile", "FROM scratch\nCOPY agent /\n");
        cellar.write("ctx/agent", "the same everywhere");
        fake_docker(&cellar.path("bin"), ENGINE);
        let noise: Vec<u8> =
            (0..400_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let saved = docker_save(&[tar(&[file("agent", name.as_bytes()), file("large", &noise)])]);
        let config =
            saved.iter().find(|entry| entry.path.ends_with(".json") && entry.path != "manifest.json");
        let id = smolcellar_store::Digest::of(&config.unwrap().data).to_string();
        fs::write(cellar.path("bin/id"), id).unwrap();
        fs::write(cellar.path("bin/image.tar"), tar(&saved)).unwrap();
        Self { cellar }
    }

    fn command<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = self.cellar.command(words);
        command.env("SMOLCELLAR_ENGINE", self.cellar.path("bin/docker"));
        command.env("DOCKER_CONFIG", self.cellar.path("no-docker-config"));
        command
    }

    fn run<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Ran {
        ran(self.command(words).output().unwrap())
    }

    fn json<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Vec<Value> {
        let ran = self.run(words.into_iter().chain(["--format", "json"]));
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn build(&self, agent: &str, remote: &str, mode: &str) -> Value {
        self.json(["build-agent", agent, "--remote", remote, "--remote-mode", mode]).remove(0)
    }

    /// How often the engine had to build.
    fn builds(&self) -> usize {
        let calls = fs::read_to_string(self.cellar.path("bin/calls")).unwrap_or_default();
        calls.lines().filter(|call| *call == "build").count()
    }
}

#[test]
fn what_one_machine_built_another_pulls_without_building_and_a_third_that_only_reads_sends_nothing() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::start(Access::Plain);
    let remote = format!("{}/team/cellar", registry.prefix());
    let [one, two, three] = ["one", "two", "three"].map(Laptop::new);

    // Reading sends nothing.
    let read = three.build("a", &remote, "r");
    assert_eq!(statuses(&read)[3], "smolmachine:miss");
    assert!(!registry.log().contains("PUT"), "{}", registry.log());

    let built = one.build("a", &remote, "rw");
    assert_eq!((statuses(&built)[3].as_str(), one.builds()), ("smolmachine:miss", 1));
    let pulled = two.build("a", &remote, "r");
    assert_eq!(statuses(&pulled), ["image:hit", "tarball:skipped", "registry:skipped", "smolmachine:hit"]);
    for field in ["image_id", "recipe", "sha256", "size"] {
        assert_eq!(pulled[field], built[field], "{field}");
    }
    assert_eq!(two.builds(), 0);
    assert!(pulled["pulled"]["fetched"].as_u64().unwrap() > 0, "{pulled}");
    assert_eq!(
        fs::read(pulled["artifact"].as_str().unwrap()).unwrap(),
        fs::read(built["artifact"].as_str().unwrap()).unwrap()
    );

    // From then on nobody is asked: neither the registry nor the engine.
    let asked = registry.log().len();
    let again = two.build("a", &remote, "rw");
    assert_eq!((statuses(&again)[3].as_str(), two.builds()), ("smolmachine:hit", 0));
    assert!(again.get("pulled").is_none());
    assert_eq!(registry.log().len(), asked);

    // Another recipe of the same sources is another look-up.
    assert_eq!(statuses(&one.build("b", &remote, "rw"))[3], "smolmachine:miss");
    let b = two.build("b", &remote, "r");
    assert_eq!((statuses(&b)[3].as_str(), two.builds()), ("smolmachine:hit", 0));

    // Sources that differ are built.
    two.cellar.write("ctx/agent", "something else");
    assert_eq!(statuses(&two.build("a", &remote, "r"))[0], "image:miss");
    [one, two, three].iter().for_each(|laptop| laptop.cellar.assert_sound());
}

#[test]
fn require_cache_may_pull_and_never_builds_and_offline_asks_nobody() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::start(Access::Plain);
    let remote = format!("{}/cellar", registry.prefix());
    let [one, two] = ["one", "two"].map(Laptop::new);
    let words = ["build-agent", "a", "--require-cache", "--remote", &remote];
    let missing = two.run(words);
    assert_eq!((missing.code, two.builds()), (3, 0), "{missing:?}");
    one.build("a", &remote, "rw");
    let asked = registry.log().len();
    let offline = two.run(words.into_iter().chain(["--offline"]));
    assert_eq!((offline.code, two.builds(), registry.log().len()), (3, 0, asked), "{offline:?}");
    let there = two.run(words);
    assert_eq!((there.code, two.builds()), (0, 0), "{there:?}");
    assert!(there.stdout.contains("pulled       127.0.0.1:"), "{there:?}");
    // A launch may pull too.
    let third = Laptop::new("three");
    let launch = |more: &[&'static str]| {
        let words =
            ["launch", "a", "--yes", "--require-cache", "--assume-virtualisation", "--remote", &remote];
        let mut command = third.command(words);
        command.args(more).args(["--", "/agent"]);
        ran(command.output().unwrap())
    };
    let off = launch(&["--remote-mode", "off"]);
    assert_eq!(off.code, 3, "{off:?}");
    let on = launch(&[]);
    // Whether it can boot is this machine's affair; that it is there is not.
    assert_ne!(on.code, 3, "{on:?}");
    assert_eq!(third.builds(), 0);
    assert_eq!(statuses(&third.build("a", "127.0.0.1:1/none", "off"))[3], "smolmachine:hit");
}

#[test]
fn a_remote_in_any_trouble_costs_one_warning_and_never_the_build() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::start(Access::Plain);
    let proxy = Proxy::before(registry.address());
    let one = Laptop::new("one");
    one.build("a", &format!("{}/c", registry.prefix()), "rw");
    let faults: [(&str, Fault); 5] = [
        ("refuses", Fault::status(403)),
        ("fails", Fault::status(500)),
        ("is slow down", Fault::with_header(429, "Retry-After", "3600")),
        ("stalls", Fault::Stall),
        ("is full", Fault::status(507)),
    ];
    let remote = format!("{}/c", proxy.host());
    for (what, fault) in faults {
        let laptop = Laptop::new(what);
        proxy.mend();
        proxy.fault("*", "/v2/", 0, usize::MAX, fault);
        let began = Instant::now();
        let words = ["build-agent", "a", "--remote", &remote, "--remote-mode", "rw"];
        let built = laptop.run(words);
        assert_eq!((built.code, laptop.builds()), (0, 1), "{what}: {built:?}");
        assert!(began.elapsed() < Duration::from_secs(45), "{what}: {:?}", began.elapsed());
        let warnings: Vec<&str> = built.stderr.lines().filter(|line| line.contains("warning")).collect();
        assert_eq!(warnings.len(), 1, "{what}: {built:?}");
        assert!(warnings[0].contains("remote cache") && warnings[0].contains(&remote), "{what}: {built:?}");
        laptop.cellar.assert_sound();
    }
    // Several agents at once meet the same trouble, and it is said once.
    let laptop = Laptop::new("both");
    proxy.mend();
    proxy.fault("*", "/v2/", 0, usize::MAX, Fault::status(503));
    let words = ["prewarm", "--jobs", "2", "--remote", &remote, "--remote-mode", "rw"];
    let warmed = laptop.run(words);
    assert_eq!((warmed.code, warmed.stderr.matches("warning").count()), (0, 1), "{warmed:?}");
    // One that takes nothing is still read from.
    let laptop = Laptop::new("read only");
    proxy.mend();
    proxy.fault("POST", "/v2/", 0, usize::MAX, Fault::status(403));
    laptop.cellar.write("smolcellar.toml", "[agent.z]\ncontext = \"z\"\n[agent.a]\ncontext = \"ctx\"\n");
    laptop.cellar.write("z/Dockerfile", "FROM scratch\n");
    let words = ["build-agent", "z", "a", "--remote", &remote, "--remote-mode", "rw"];
    let built = laptop.run(words);
    assert_eq!((built.code, built.stderr.matches("warning").count()), (0, 1), "{built:?}");
    assert_eq!(laptop.builds(), 1, "the second was not pulled: {built:?}");
    let nobody = format!("{}/c", unused_address());
    let laptop = Laptop::new("nobody");
    let built = laptop.run(["build-agent", "a", "--remote", &nobody, "--remote-mode", "rw"]);
    assert_eq!((built.code, built.stderr.matches("warning").count()), (0, 1), "{built:?}");
}

#[test]
fn prewarm_builds_pulls_pushes_and_tells_what_is_missing() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::start(Access::Plain);
    let remote = format!("{}/cellar", registry.prefix());
    let [one, two, three] = ["one", "two", "three"].map(Laptop::new);

    let check = one.run(["prewarm", "--check"]);
    assert_eq!((check.code, one.builds()), (3, 0), "{check:?}");
    let output = one.cellar.path("github-output");
    let mut command = one.command(["prewarm", "--push", &remote, "--github-output", "--jobs", "2"]);
    let warmed = ran(command.env("GITHUB_OUTPUT", &output).output().unwrap());
    assert_eq!(warmed.code, 0, "{warmed:?}");
    let told = fs::read_to_string(&output).unwrap();
    assert!(told.starts_with("key=smolcellar-") && told.ends_with("\nhit=false\n"), "{told}");
    // Of two agents with the same sources one is built, and the other packed.
    assert_eq!(one.builds(), 1);
    assert!(warmed.stdout.contains("sent to"), "{warmed:?}");
    assert_eq!(one.run(["prewarm", "--check"]).code, 0);
    // Once more, there is nothing to do, and nothing to send.
    let again = one.json(["prewarm", "--push", &remote]);
    assert!(again.iter().all(|one| one["how"] == "hit" && one["pushed"]["status"] == "present"), "{again:?}");

    let pulled = two.json(["prewarm", "--from", &remote]);
    assert!(pulled.iter().all(|one| one["how"] == "pulled" && one["error"].is_null()), "{pulled:?}");
    assert_eq!((pulled.len(), two.builds()), (2, 0));
    // The key of the same sources is the same on every machine.
    let mut command = two.command(["prewarm", "--check", "--github-output"]);
    let key = ran(command.env("GITHUB_OUTPUT", &output).output().unwrap());
    assert_eq!(key.code, 0, "{key:?}");
    let told_again = fs::read_to_string(&output).unwrap();
    let keys: Vec<&str> = told_again.lines().filter(|line| line.starts_with("key=")).collect();
    assert_eq!((keys.len(), keys[0]), (2, keys[1]));
    assert!(told_again.ends_with("hit=true\n"), "{told_again}");

    // From a file: what is in it is what is launched.
    let file = one.cellar.path("both.cellar");
    let exported = one.run(["cache", "export", "a", "b", "-o", file.to_str().unwrap()]);
    assert_eq!(exported.code, 0, "{exported:?}");
    let imported = three.json(["prewarm", "--from", file.to_str().unwrap()]);
    assert!(imported.iter().all(|one| one["how"] == "imported"), "{imported:?}");
    assert_eq!(three.builds(), 0);
    let plan = three.run(["launch", "a", "--dry-run", "--require-cache"]);
    assert_eq!(plan.code, 0, "{plan:?}");
    // What the configuration says otherwise is no match.
    let four = Laptop::new("four");
    four.cellar.write("smolcellar.toml", "[agent.a]\ncontext = \"ctx\"\ncpus = 3\n");
    let other = four.json(["prewarm", "--from", file.to_str().unwrap()]);
    assert_eq!((&other[0]["how"], four.builds()), (&Value::from("built"), 1), "{other:?}");
    let wrong = three.run(["prewarm", "--from", "nothing-like-it"]);
    assert_eq!(wrong.code, 2, "{wrong:?}");
    [one, two, three].iter().for_each(|laptop| laptop.cellar.assert_sound());
}

#[test]
fn prewarm_has_smolvm_unpack_what_a_first_launch_would() {
    if !have(&NEEDS) {
        return;
    }
    let laptop = Laptop::new("one");
    let data = laptop.cellar.path("smolvm-data");
    let run = |words: &[&str]| {
        let mut command = laptop.command(words.iter().copied());
        ran(command.env("SMOLVM_DATA_DIR", &data).env("SMOLCELLAR_SMOLVM_DIR", runtime()).output().unwrap())
    };
    let warmed = run(&["prewarm", "a", "--extract"]);
    assert_eq!(warmed.code, 0, "{warmed:?}");
    assert!(warmed.stdout.contains("unpacked"), "{warmed:?}");
    let du = run(&["cache", "du", "--format", "json"]);
    let du: Value = serde_json::from_str(&du.stdout).unwrap();
    let copies = du["smolvm_extractions"]["copies"].as_array().unwrap();
    assert_eq!(copies.len(), 1, "{du}");
    assert_eq!(
        (&copies[0]["complete"], copies[0]["machines"].as_array().map(Vec::len)),
        (&Value::Bool(true), Some(0))
    );
    // No machine is left of it, and no lease.
    let ps = run(&["ps", "--format", "json"]);
    assert_eq!((ps.code, ps.stdout.trim()), (0, ""), "{ps:?}");
    assert_eq!(fs::read_dir(laptop.cellar.cache().join("leases")).unwrap().count(), 0);
    laptop.cellar.assert_sound();
}

#[test]
fn artifacts_are_pushed_listed_and_pulled_by_hand() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::start(Access::Plain);
    let remote = format!("{}/cellar", registry.prefix());
    let [one, two] = ["one", "two"].map(Laptop::new);
    let nowhere = one.run(["cache", "push", "a"]);
    assert_eq!(nowhere.code, 3, "{nowhere:?}");
    let built = one.build("a", &remote, "off");
    let unnamed = one.run(["cache", "push", "a"]);
    assert_eq!(unnamed.code, 2, "{unnamed:?}");
    assert!(unnamed.stderr.contains("--remote") || unnamed.stderr.contains("remote cache"), "{unnamed:?}");
    let sent = one.json(["cache", "push", "a", "--to", &remote]).remove(0);
    assert_eq!(sent["status"], "sent", "{sent}");
    let there = one.json(["cache", "push", "a", "--to", &remote]).remove(0);
    assert_eq!((&there["status"], &there["bytes"]), (&Value::from("present"), &Value::from(0)));

    let of = format!("--remote={remote}");
    let listed = two.json(["cache", "ls", &of]);
    assert_eq!(listed.len(), 1, "{listed:?}");
    for field in ["image_id", "recipe", "size", "sha256", "agent"] {
        assert_eq!(listed[0][field], built[field], "{field}");
    }
    let human = two.run(["cache", "ls", &of]);
    assert!(human.stdout.contains("AGENT") && human.stdout.contains("a "), "{human:?}");
    let du = two.json(["cache", "du", &of]).remove(0);
    assert_eq!(du["artifacts"], 1, "{du}");
    assert!(du["bytes"].as_u64().unwrap() >= built["size"].as_u64().unwrap(), "{du}");

    let key = built["image_id"].as_str().unwrap().trim_start_matches("sha256:")[..12].to_owned();
    let pulled = two.json(["cache", "pull", &key, "--from", &remote, "--agent", "a"]).remove(0);
    assert_eq!((&pulled["sha256"], &pulled["status"]), (&built["sha256"], &Value::from("pulled")));
    let again = two.json(["cache", "pull", &key, "--from", &remote]).remove(0);
    assert_eq!(again["status"], "present");
    assert_eq!(two.run(["launch", "a", "--dry-run", "--require-cache"]).code, 0);
    // A push by hand leads others' builds to it as well.
    let three = Laptop::new("three");
    assert_eq!(
        (statuses(&three.build("a", &remote, "r"))[3].as_str(), three.builds()),
        ("smolmachine:hit", 0)
    );
    let none = two.run(["cache", "pull", "0123456789ab", "--from", &remote]);
    assert_eq!(none.code, 3, "{none:?}");
    let offline = two.run(["cache", "pull", &key, "--from", &remote, "--offline"]);
    assert_eq!(offline.code, 2, "{offline:?}");
    // By the environment, and by the configuration.
    let mut command = two.command(["cache", "ls", "--remote", "--format", "json"]);
    let listed = ran(command.env("SMOLCELLAR_REMOTE", &remote).output().unwrap());
    assert_eq!((listed.code, listed.stdout.lines().count()), (0, 1), "{listed:?}");
    // A mode in the configuration is for its own repository.
    let config = "[agent.a]\ncontext = \"ctx\"\n[remote]\nref = \"127.0.0.1:1/x\"\nmode = \"rw\"\n";
    two.cellar.write("smolcellar.toml", config);
    two.cellar.write("ctx/agent", "new");
    let asked = registry.log().matches("PUT").count();
    assert_eq!(two.run(["build-agent", "a", "--remote", &remote]).code, 0);
    assert_eq!(registry.log().matches("PUT").count(), asked);
    two.cellar
        .write("smolcellar.toml", &format!("[agent.a]\ncontext = \"ctx\"\n[remote]\nref = \"{remote}\"\n"));
    assert_eq!(two.json(["cache", "ls", "--remote"]).len(), 1);
    assert!(Path::new(pulled["artifact"].as_str().unwrap()).is_file());
    [one, two, three].iter().for_each(|laptop| laptop.cellar.assert_sound());
}
