//! Boots the built artifact in a real smolvm, inside an emulated machine that
//! has the virtualisation this one may lack.
//!
//! Not `--packer smolvm`: `smolvm pack create` boots a machine of four CPUs and 8
//! GiB for itself, whatever it is told of the machine to pack, and four emulated
//! CPUs on two real ones take too long for a test. How far the real
//! packer comes without virtualisation is in `integration/smolvm_packer.rs`.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests run programs, and a panic is how they report"
)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use smolcellar_tests::cellar::{program, ran, runtime};
use smolcellar_tests::needs::{Need, have};
use smolcellar_tests::outer::{Job, OuterMachine};

const NEEDS: [Need; 5] = [
    Need::Docker,
    Need::Program("qemu-system-x86_64"),
    Need::Program("busybox"),
    Need::Program("mke2fs"),
    Need::Program("xz"),
];

/// What happens inside the outer machine. Each launch leaves its output, its
/// complaints and its exit code in /out.
const SCRIPT: &str = r#"
set -eu
cd "$PROJECT"
export SMOLVM_LIB_DIR="$RUNTIME" SMOLVM_AGENT_ROOTFS="$RUNTIME/agent-rootfs"
smolvm="$RUNTIME/smolvm"

# The emulated processor sometimes loses a microVM while it boots: smolvm then
# says this, on any command line. Only that is tried again.
lost() { grep -q "before the agent was ready" "$1"; }

run() {
    name=$1; shift
    for try in 1 2 3 4 5 6; do
        set +e
        xtask launch --yes --progress plain "$@" > /out/$name.out 2> /out/$name.err < /dev/null
        echo $? > /out/$name.code
        set -e
        cat /out/$name.err >> /out/$name.all
        lost /out/$name.err || break
    done
    echo "== $name, try $try: exit $(cat /out/$name.code)"; cat /out/$name.out /out/$name.err
}
# Nobody can be asked, and nobody said yes.
set +e
xtask launch --progress plain > /out/declined.out 2> /out/declined.err < /dev/null
echo $? > /out/declined.code
set -e

run hello
run exit sample -- /agent exit 7
run env -e COLOUR=blue -- /agent env
run id -- /agent id a "b c"

# Egress. The same answer waits at each of these addresses; what the guest does
# not hear, the policy kept from it.
ip link set dummy0 up || { ip link add dummy0 type dummy; ip link set dummy0 up; }
ip addr add 10.9.9.1/24 dev dummy0
ip addr add 10.9.9.2/24 dev dummy0
agent serve 7000 > /out/serve 2>&1 &
until grep -q serving /out/serve; do sleep 0.1; done
places="10.9.9.1:7000 10.9.9.2:7000 127.0.0.1:7000"
agent connect $places > /out/outside
run allowed --allow-cidr 10.9.9.1/32 -- /agent connect $places
run closed sample -- /agent connect $places

# The host's loopback is at the gateway, where a sidecar may be only there: kept
# from the guest unless that address is let through.
agent serve 7002 127.0.0.1 > /out/serve2 2>&1 &
until grep -q serving /out/serve2; do sleep 0.1; done
run loopback --allow-cidr 100.96.0.1/32 -- /agent connect 100.96.0.1:7002 $places
run noloopback --allow-cidr 10.9.9.1/32 -- /agent connect 100.96.0.1:7002

# On the second start of a machine too.
$smolvm machine create --name twice --from "$ARTIFACT" --cpus 1 --mem 512 --allow-cidr 10.9.9.1/32
for start in first second; do
    for try in 1 2 3 4 5 6; do $smolvm machine start --name twice --no-workload && break; done
    $smolvm machine exec --name twice -- /agent connect $places > /out/$start 2> /out/$start.err || true
    $smolvm machine stop --name twice
done
$smolvm machine egress-events --name twice --json > /out/events.json; cat /out/events.json
$smolvm machine delete --name twice -f

# A signal in the middle: the launch ends, and the machine with it.
for try in 1 2 3 4 5 6; do
    xtask launch --yes --progress plain -- /agent sleep 300 > /out/term.out 2> /out/term.err < /dev/null &
    launch=$!
    while kill -0 $launch 2> /dev/null && ! grep -q sleeping /out/term.out; do sleep 0.2; done
    # The image's own entrypoint says hello at once; nobody asked for it here.
    name=$($smolvm machine ls --json | sed -n 's/.*"name": *"\([^"]*\)".*/\1/p' | head -1)
    $smolvm machine logs --name "$name" > /out/beside.log 2>&1 || true
    kill -TERM $launch 2> /dev/null || true
    set +e; wait $launch; echo $? > /out/term.code; set -e
    lost /out/term.err || break
done
echo "== term: exit $(cat /out/term.code)"; cat /out/term.out /out/term.err

# A launcher that is killed leaves its machine; the next launch removes it.
for try in 1 2 3; do
    xtask launch --yes --progress plain -- /agent sleep 300 > /out/kill.out 2> /out/kill.err < /dev/null &
    launch=$!
    while kill -0 $launch 2> /dev/null && ! grep -q sleeping /out/kill.out; do sleep 0.2; done
    kill -9 $launch 2> /dev/null || true
    wait $launch || true
    lost /out/kill.err || break
done
$smolvm machine ls --json > /out/orphan.json
run sweep sample -- /agent exit 0

# In the background, and gone on with by its lease; the prompt is there too.
echo "do this" > /root/prompt
echo "from outside" > /root/note
for try in 1 2 3 4 5 6; do
    set +e
    xtask launch --detach --yes --progress plain --prompt-file /root/prompt -e COLOUR=red -- /agent cat /smolcellar-prompt \
        > /out/detach.out 2> /out/detach.err < /dev/null
    echo $? > /out/detach.code
    set -e
    ! lost /out/detach.err || continue
    kept=$(cat /out/detach.out)
    xtask logs --follow sample > /out/detach.log 2>&1
    set +e
    xtask cp /root/note "$kept:/note" 2> /out/copied.err
    xtask exec sample -- /agent cat /note > /out/copied 2>> /out/copied.err
    set -e
    # Seen once in many runs: the emulated microVM is gone in the middle.
    grep -q "Broken pipe" /out/copied.err || break
    xtask rm --force "$kept"
done
echo "== detach, try $try"; cat /out/detach.out /out/detach.err /out/detach.log
set +e
xtask exec sample --secret-env TOKEN=HOME -w / -- /agent env > /out/exec.env 2>> /out/copied.err
xtask exec sample -- /agent exit 9; echo $? > /out/exec.code
xtask cp "$kept:/note" /out/back 2>> /out/copied.err
xtask cp /root "$kept:/folder" 2> /out/folder.err; echo $? > /out/folder.code
xtask ps --format json > /out/ps.json
# Another launch does not touch it.
run beside sample -- /agent exit 0
set +e
cat /out/copied.err /out/folder.err /out/ps.json
xtask stop "$kept" > /out/stop 2>&1
xtask exec sample -- /agent exit 0 2> /out/stopped.err; echo $? > /out/stopped.code
xtask rm "$kept" > /out/rm 2>&1; echo $? > /out/rm.code
xtask ps > /out/ps.after
set -e
cat /out/copied.err /out/folder.err /out/stop /out/stopped.err /out/rm

$smolvm machine ls --json > /out/left.json 2> /out/ls.err
ls $SMOLCELLAR_CACHE_DIR/leases $SMOLCELLAR_CACHE_DIR/launches > /out/left.ls
ps > /out/left.ps

# With smolvm's own commands: the logs hold what the image's own entrypoint said.
$smolvm machine create --name by-hand --from "$ARTIFACT" --cpus 1 --mem 512
for try in 1 2 3 4 5 6; do $smolvm machine start --name by-hand && break; done
for try in 1 2 3 4 5 6 7 8 9 10; do
    $smolvm machine logs --name by-hand > /out/logs 2> /out/logs.err
    grep -q hello /out/logs && break
    sleep 1
done
$smolvm machine stop --name by-hand
$smolvm machine delete --name by-hand -f
"#;

#[test]
fn the_sample_agent_boots_answers_fails_and_is_always_taken_down() {
    if !have(&NEEDS) || std::env::var_os("SMOLCELLAR_TEST_NO_VM").is_some() {
        return;
    }
    let say = |line: &str| drop(writeln!(std::io::stderr(), "vm: {line}"));
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    // smolvm drops to a user of its own per machine, who must get to all of it.
    let dir = tempfile::Builder::new().prefix("smolcellar-vm-").tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let cache = dir.path().join("cache");
    let runtime = runtime();
    let in_guest = cache.join("runtimes-v1").join(runtime.file_name().unwrap());

    let mut build = Command::new(program());
    build.args(["build-agent", "sample", "--format", "json"]).current_dir(project);
    build.env("SMOLCELLAR_CACHE_DIR", &cache).env("SMOLCELLAR_SMOLVM_DIR", &runtime);
    let built = ran(build.output().unwrap());
    assert_eq!(built.code, 0, "{built:?}");
    let result: serde_json::Value = serde_json::from_str(&built.stdout).unwrap();
    // In the guest the runtime is found in the cache, as it is for users.
    std::fs::remove_dir_all(cache.join("runtimes-v1")).unwrap();

    let outer_cache =
        std::env::var_os("SMOLCELLAR_TEST_OUTER").map_or_else(default_outer_cache, PathBuf::from);
    let machine = OuterMachine::prepare(&outer_cache, &say).unwrap();
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let job = Job::new(SCRIPT)
        .file("/usr/bin/xtask", program())
        .file("/usr/bin/agent", project.join("crates/sample-agent/target/release/smolcellar-sample-agent"))
        .file(path(&cache), &cache)
        .file(path(&in_guest), &runtime)
        .file(path(&project.join("Cargo.toml")), project.join("Cargo.toml"))
        .env("PROJECT", path(project))
        .env("RUNTIME", path(&in_guest))
        .env("ARTIFACT", result["artifact"].as_str().unwrap())
        .env("SMOLCELLAR_CACHE_DIR", path(&cache))
        .env("HOME", "/root");
    let outcome = machine.run(&job, Duration::from_secs(2400), &say).unwrap().ok().unwrap();

    let text = |name: &str| outcome.text(name).unwrap();
    let code = |name: &str| text(&format!("{name}.code")).trim().to_owned();
    assert!(text("hello.out").starts_with("hello from the sample agent: Linux "), "{}", text("hello.out"));
    for (name, expected) in [("hello", "0"), ("exit", "7"), ("env", "0"), ("id", "0"), ("term", "143")] {
        assert_eq!(code(name), expected, "{name}");
    }
    assert_eq!(text("exit.out"), "");
    assert_eq!((code("declined").as_str(), text("declined.out").as_str()), ("4", ""));
    assert!(text("declined.err").contains("--yes"), "{}", text("declined.err"));
    let env = text("env.out");
    assert!(env.lines().any(|l| l == "COLOUR=blue") && env.lines().any(|l| l == "AGENT=sample"), "{env}");
    let id = text("id.out");
    assert!(
        id.contains("cwd=/work") && id.contains(r#"args=["id", "a", "b c"]"#) && id.contains("uid=0"),
        "{id}"
    );
    let heard = |name: &str| -> Vec<String> {
        let text = text(name);
        let answers = text.lines().filter(|line| line.ends_with(": hello from the sample agent"));
        answers.map(|line| line.split(':').next().unwrap().to_owned()).collect()
    };
    assert_eq!(heard("outside"), ["10.9.9.1", "10.9.9.2", "127.0.0.1"]);
    for name in ["allowed.out", "first", "second"] {
        assert_eq!(heard(name), ["10.9.9.1"], "{name}: {}", text(name));
    }
    assert_eq!(heard("closed.out"), [""; 0], "{}", text("closed.out"));
    assert_eq!((code("allowed"), code("closed")), ("1".to_owned(), "1".to_owned()));
    assert!(text("events.json").contains("10.9.9.2"), "{}", text("events.json"));
    // Shown when the command failed, which is why it did.
    assert!(text("allowed.err").contains("egress refused: 10.9.9.2:7000"), "{}", text("allowed.err"));
    assert_eq!(heard("loopback.out"), ["100.96.0.1"], "{}", text("loopback.out"));
    assert_eq!(heard("noloopback.out"), [""; 0], "{}", text("noloopback.out"));
    assert!(text("orphan.json").contains("smolcellar-sample-"), "{}", text("orphan.json"));
    // By the first try, even if the machine of that one was lost.
    assert!(text("sweep.all").contains("whose launcher"), "{}", text("sweep.all"));
    assert_eq!(text("left.json").trim(), "[]");
    assert!(!text("left.ps").contains("_boot-vm"), "{}", text("left.ps"));
    assert_eq!((code("detach"), text("detach.log").as_str()), ("0".to_owned(), "do this\n"));
    assert_eq!((text("copied").as_str(), text("back").as_str()), ("from outside\n", "from outside\n"));
    let env = text("exec.env");
    for line in ["COLOUR=red", "AGENT=sample", "TOKEN=/root"] {
        assert!(env.lines().any(|found| found == line), "{line}: {env}");
    }
    assert_eq!((code("exec"), code("stopped"), code("rm")), ("9".into(), "125".into(), "0".into()));
    assert!(code("folder") == "1" && text("folder.err").contains("single files"), "{}", text("folder.err"));
    let ps: serde_json::Value = serde_json::from_str(&text("ps.json")).unwrap();
    assert!(ps["state"] == "running" && ps["ended"] == 0 && ps["backend"] == "smolvm", "{ps}");
    assert!(text("stopped.err").contains("is not running"), "{}", text("stopped.err"));
    assert_eq!((text("ps.after").as_str(), code("beside").as_str()), ("no machines\n", "0"));
    assert!(!text("left.ls").contains("smolcellar-sample"), "{}", text("left.ls"));
    assert!(!text("beside.log").contains("hello from"), "{}", text("beside.log"));
    assert!(text("logs").contains("hello from the sample agent"), "{}", text("logs"));
}

/// Beside the cache that `cargo xtask test` uses: the kernel is fetched once.
fn default_outer_cache() -> PathBuf {
    runtime().ancestors().nth(2).unwrap().with_file_name("smolcellar-tests")
}
