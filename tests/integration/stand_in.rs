//! The whole program with a stand-in for smolvm: what only faults show, and
//! what smolvm is told, where no machine can boot.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use smolcellar_tests::archives::{docker_save, file, tar};
use smolcellar_tests::cellar::{Cellar, Ran, ran, runtime};
use smolcellar_tests::engine::docker;
use smolcellar_tests::launches::{Tidy, agent_project, left, wait_for};
use smolcellar_tests::needs::{Need, have};

/// Keeps machines as folders and processes; does wrong what `faults` says.
const STAND_IN: &str = r#"#!/bin/sh
lab=$(dirname "$0")/lab; mkdir -p "$lab/vms"
[ "$1" != --version ] || { echo "smolvm $(cat "$(dirname "$0")/version")"; exit; }
echo "$*" >> "$lab/calls"
command=$2; shift 2; case $1 in --name) name=$2 ;; *) name=$1 ;; esac; vm=$lab/vms/$name
grep -qs "^$command=hang" "$lab/faults" && { trap '' TERM; while :; do sleep 1; done; }
show() { p=$(cat "$1/pid" 2>/dev/null); grep -qs ') [^ZX]' "/proc/$p/stat" && s=running || { s=stopped; p=null; }
         n=$(basename "$1")
         printf '{"name":"%s","state":"%s","pid":%s,"labels":{"dev.smolcellar.launch":"%s"}}' "$n" $s "$p" "$n"; }
case $command in
    create) mkdir "$vm" ;;
    start) setsid sleep 600 > /dev/null 2>&1 & echo $! > "$vm/pid" ;;
    exec) while [ "$1" != -- ]; do
              [ "$1" = --secret-env ] && eval "export ${2%%=*}=\"\$${2##*=}\""
              shift
          done; shift; echo $$ >> "$vm/execs"; exec "$@" ;;
    cp) cp "$1" "$lab/copied" ;;
    data-dir) echo "$vm" ;;
    status) [ -d "$vm" ] || exit 1; show "$vm" ;;
    ls) printf '['; sep=; for one in "$lab"/vms/*/; do [ -d "$one" ] && { printf '%s' "$sep"; show "${one%/}"; sep=,; }; done; echo ']' ;;
    stop) kill $(cat "$vm/pid" "$vm/execs") 2>/dev/null || true ;;
    delete) rm -r "$vm" ;;
esac
"#;

struct Lab {
    cellar: Cellar,
    dir: PathBuf,
}

impl Lab {
    fn new(version: &str) -> Self {
        let cellar = Cellar::new();
        let dir = cellar.path("smolvm");
        std::fs::create_dir(&dir).unwrap();
        for entry in std::fs::read_dir(runtime()).unwrap().flatten() {
            if entry.file_name() != "smolvm" {
                std::os::unix::fs::symlink(entry.path(), dir.join(entry.file_name())).unwrap();
            }
        }
        std::fs::write(dir.join("smolvm"), STAND_IN).unwrap();
        std::fs::set_permissions(dir.join("smolvm"), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(dir.join("version"), version).unwrap();
        std::fs::write(cellar.path("a.tar"), tar(&docker_save(&[tar(&[file("agent", b"x")])]))).unwrap();
        let lab = Self { cellar, dir };
        let built = lab.run(&["build-agent", "--archive", "../a.tar"]);
        assert_eq!(built.code, 0, "{built:?}");
        lab
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.cellar.command(words);
        command.env("SMOLCELLAR_SMOLVM_DIR", &self.dir).env("SMOLCELLAR_ASSUME_VIRTUALISATION", "1");
        command
    }

    fn run(&self, words: &[&str]) -> Ran {
        ran(self.command(words).output().unwrap())
    }

    fn launch(&self, words: &[&str]) -> Command {
        self.command(&[&["launch", "a", "--yes"][..], words].concat())
    }

    fn calls(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir.join("lab/calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn fault(&self, text: &str) {
        std::fs::write(self.dir.join("lab/faults"), text).unwrap();
    }

    fn assert_clean(&self) {
        let count = |path: PathBuf| std::fs::read_dir(path).map_or(0, Iterator::count);
        assert_eq!(count(self.dir.join("lab/vms")), 0, "machines are left");
        for folder in ["leases", "launches"] {
            assert_eq!(count(self.cellar.cache().join(folder)), 0, "{folder}");
        }
    }
}

#[test]
fn both_dialects_are_spoken_and_what_is_too_old_is_refused() {
    for (version, create, start) in [
        ("0.8.0", "machine create NAME --from ", "machine start --name NAME"),
        ("1.0.1", "machine create NAME --from ", "machine start --name NAME"),
        ("1.0.2", "machine create --name NAME --from ", "machine start --name NAME"),
        ("1.32.2", "machine create --name NAME --from ", "machine start --name NAME --no-workload"),
    ] {
        let lab = Lab::new(version);
        let ran =
            ran(lab.launch(&["--name", "mine", "-e", "A=b", "--", "sh", "-c", "exit 5"]).output().unwrap());
        assert_eq!(ran.code, 5, "{version}: {ran:?}");
        let calls = lab.calls();
        let named = |text: &str| text.replace("NAME", "mine");
        assert!(calls.iter().any(|call| call.starts_with(&named(create))), "{version}: {calls:?}");
        assert!(calls.contains(&named(start)), "{version}: {calls:?}");
        assert!(calls.iter().any(|call| call.ends_with("-- sh -c exit 5")), "{version}: {calls:?}");
        lab.assert_clean();
    }
    let lab = Lab::new("1.32.2");
    std::fs::write(lab.dir.join("version"), "0.7.2").unwrap();
    // Another time: it is asked again which version it is.
    std::fs::write(lab.dir.join("smolvm"), format!("{STAND_IN}# older\n")).unwrap();
    let old = ran(lab.launch(&["--", "true"]).output().unwrap());
    assert!(old.code == 125 && old.stderr.contains("0.7.2") && old.stderr.contains("0.8.0"), "{old:?}");
    lab.assert_clean();
}

#[test]
fn a_secret_goes_to_smolvm_by_name_only() {
    let lab = Lab::new("1.32.2");
    let needle = format!("needle{}", "5ecret".repeat(4));
    let words =
        ["--secret-env", "TOKEN=HOST_TOKEN", "--", "sh", "-c", "sleep 1; test ${#TOKEN} = 30 && exit 6"];
    let mut child = lab.launch(&words).env("HOST_TOKEN", &needle).stderr(Stdio::piped()).spawn().unwrap();
    let mut looks = 0;
    while child.try_wait().unwrap().is_none() {
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            assert!(!String::from_utf8_lossy(&line).contains(&needle));
            looks += 1;
        }
    }
    let ended = ran(child.wait_with_output().unwrap());
    assert!(ended.code == 6 && looks > 100 && !ended.stderr.contains(&needle), "{ended:?}");
    assert!(!lab.calls().join("\n").contains(&needle));
    assert!(lab.calls().iter().any(|call| call.contains("--secret-env TOKEN=HOST_TOKEN")));
    lab.assert_clean();
}

#[test]
fn in_the_background_signals_and_commands_from_outside_find_the_machine() {
    let lab = Lab::new("1.32.2");
    let prompt = lab.cellar.path("prompt");
    std::fs::write(&prompt, "do it").unwrap();
    let words = [
        "-d",
        "--name",
        "bg",
        "--prompt-file",
        prompt.to_str().unwrap(),
        "--",
        "sh",
        "-c",
        "echo up; exec sleep 600",
    ];
    let detached = ran(lab.launch(&words).output().unwrap());
    assert_eq!((detached.code, detached.stdout.as_str()), (0, "bg\n"), "{detached:?}");
    assert_eq!(std::fs::read(lab.dir.join("lab/copied")).unwrap(), b"do it");
    wait_for("output", || (lab.run(&["logs", "bg"]).stdout == "up\n").then_some(()));
    assert!(lab.run(&["ps"]).stdout.contains("running"));
    assert_eq!(lab.run(&["exec", "bg", "--", "sh", "-c", "exit 8"]).code, 8);
    let refused = lab.run(&["rm", "bg"]);
    assert!(refused.code == 1 && refused.stderr.contains("is running"), "{refused:?}");
    // Its command ends when it is stopped, and the machine stays.
    let lease = std::fs::read_to_string(lab.cellar.cache().join("leases/bg.json")).unwrap();
    let lease: serde_json::Value = serde_json::from_str(&lease).unwrap();
    let sleeper = Command::new("pkill").args(["-P", &lease["pid"].to_string()]).status().unwrap();
    assert!(sleeper.success());
    wait_for("end", || lab.run(&["ps"]).stdout.contains("exit 143").then_some(()));
    assert_eq!(lab.run(&["stop", "bg"]).code, 0);
    assert!(lab.run(&["ps"]).stdout.contains("stopped"));
    assert_eq!(lab.run(&["rm", "bg"]).code, 0);
    lab.assert_clean();
    // A signal to the background half takes everything down.
    let detached = ran(lab.launch(&["-d", "--name", "bg2", "--", "sleep", "600"]).output().unwrap());
    assert_eq!(detached.code, 0, "{detached:?}");
    let lease = std::fs::read_to_string(lab.cellar.cache().join("leases/bg2.json")).unwrap();
    let lease: serde_json::Value = serde_json::from_str(&lease).unwrap();
    assert!(Command::new("kill").arg(lease["pid"].to_string()).status().unwrap().success());
    wait_for("teardown", || (!lab.cellar.cache().join("leases/bg2.json").exists()).then_some(()));
    lab.assert_clean();
}

#[test]
fn a_step_that_hangs_ends_with_the_signal_and_leaves_nothing() {
    for step in ["create", "start"] {
        for (name, number) in [("-INT", 2), ("-TERM", 15), ("-HUP", 1)] {
            let lab = Lab::new("1.32.2");
            lab.fault(&format!("{step}=hang"));
            let mut child = lab.launch(&["--", "true"]).stderr(Stdio::null()).spawn().unwrap();
            let call = format!("machine {step}");
            wait_for("call", || lab.calls().iter().any(|line| line.starts_with(&call)).then_some(()));
            lab.fault("");
            let sent = Instant::now();
            for _ in 0..2 {
                Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
                std::thread::sleep(Duration::from_millis(50));
            }
            assert_eq!(child.wait().unwrap().code(), Some(128 + number), "{step} {name}");
            assert!(sent.elapsed() < Duration::from_secs(10), "{:?}", sent.elapsed());
            lab.assert_clean();
        }
    }
}

#[test]
fn the_prompt_file_and_the_whole_artifact_can_be_checked_first() {
    let lab = Lab::new("1.32.2");
    let missing = ran(lab.launch(&["--prompt-file", "nowhere", "--", "true"]).output().unwrap());
    assert!(missing.code == 2 && missing.stderr.contains("--prompt-file nowhere"), "{missing:?}");
    let mut piped = lab.launch(&["--prompt-file", "-", "--", "true"]);
    let mut child = piped.stdin(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"from a pipe").unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(std::fs::read(lab.dir.join("lab/copied")).unwrap(), b"from a pipe");
    // A bit is flipped, and the stat seal fits again: only the whole hash finds it.
    let artifact = lab.cellar.json(["cache", "ls"])["artifact"].as_str().unwrap().to_owned();
    let stat = std::fs::metadata(&artifact).unwrap();
    assert_eq!(ran(lab.launch(&["--verify", "--", "true"]).output().unwrap()).code, 0);
    std::fs::set_permissions(&artifact, std::fs::Permissions::from_mode(0o644)).unwrap();
    let mut bytes = std::fs::read(&artifact).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&artifact, &bytes).unwrap();
    let file = std::fs::File::open(&artifact).unwrap();
    file.set_modified(stat.modified().unwrap()).unwrap();
    let found = ran(lab.launch(&["--verify", "--", "true"]).output().unwrap());
    assert!(found.code != 0 && found.stderr.contains("is damaged"), "{found:?}");
    lab.assert_clean();
}

/// The sidecar is real, the machine is not: what runs "in" it runs here.
#[test]
fn a_machine_gets_its_sidecar_by_address_and_is_let_through_to_that_only() {
    if !have(&[Need::Docker]) {
        return;
    }
    for (reach, address) in [("bridge", "10."), ("loopback", "100.96.0.1:")] {
        let lab = Lab::new("1.32.2");
        let agent = format!("machine{reach}");
        let project = agent_project(&agent, "");
        let _tidy = Tidy::after(&lab.cellar, &agent);
        let gate = project.project().join("gate");
        let text = format!(
            "[agent.{agent}]\ncontext = \"ctx\"\n[agent.{agent}.sidecar]\ncontext = \"{}\"\nreach = \"{reach}\"\nports = {{ \
             http-proxy = 7000 }}\n",
            gate.display()
        );
        lab.cellar.write("smolcellar.toml", &text);
        assert_eq!(lab.run(&["build-agent", &agent, "--archive", "../a.tar"]).code, 0);
        let words = ["launch", &agent, "--yes", "--", "sh", "-c", "echo $HTTP_PROXY"];
        let mut command = lab.command(&words);
        let said = ran(command.env_remove("HTTP_PROXY").output().unwrap());
        assert_eq!(said.code, 0, "{said:?}");
        let create = lab.calls().into_iter().find(|call| call.starts_with("machine create")).unwrap();
        let proxy = create.split("HTTP_PROXY=http://").nth(1).unwrap().split(' ').next().unwrap().to_owned();
        assert!(proxy.starts_with(address), "{create}");
        let ip = proxy.split(':').next().unwrap();
        assert!(create.contains(&format!("--allow-cidr {ip}/32 ")), "{create}");
        assert_eq!(create.matches("--allow-cidr").count(), 1, "{create}");
        lab.assert_clean();
        assert_eq!(left(&agent), Vec::<String>::new());
        // While it runs, this host, and so the machine, gets an answer there.
        let words = ["launch", &agent, "--yes", "-d", "--name", &agent, "--", "sleep", "600"];
        assert_eq!(lab.run(&words).code, 0);
        let outside = match reach {
            "bridge" => {
                let label = format!("label=dev.smolcellar.launch={agent}");
                let network = docker(&["network", "ls", "--quiet", "--filter", &label]);
                let gateway = docker(&[
                    "network",
                    "inspect",
                    network.trim(),
                    "--format",
                    "{{(index .IPAM.Config 0).Gateway}}",
                ]);
                format!("{}.2:7000", gateway.trim().strip_suffix(".1").unwrap())
            }
            _ => docker(&["port", &format!("{agent}-sidecar"), "7000"]).trim().to_owned(),
        };
        let mut answer = String::new();
        let mut stream = std::net::TcpStream::connect(&outside).unwrap();
        std::io::Read::read_to_string(&mut stream, &mut answer).unwrap();
        assert_eq!(answer, "hello from the sample agent\n", "{outside}");
        let removed = lab.run(&["rm", "--force", &agent]);
        assert_eq!(removed.code, 0, "{removed:?}");
        lab.assert_clean();
        assert_eq!(left(&agent), Vec::<String>::new());
    }
}

/// The real smolvm makes and deletes machines without virtualisation; what it
/// cannot do here is start them.
#[test]
fn the_real_smolvm_makes_a_machine_and_a_signal_removes_it() {
    let cellar = Cellar::new();
    std::fs::write(cellar.path("a.tar"), tar(&docker_save(&[tar(&[file("agent", b"x")])]))).unwrap();
    let built = cellar.run(["build-agent", "--archive", "../a.tar"]);
    assert_eq!(built.code, 0, "{built:?}");
    let home = cellar.path("home");
    std::fs::create_dir(&home).unwrap();
    let smolvm = |words: &[&str]| {
        let mut command = Command::new(runtime().join("smolvm"));
        command.args(words).env("HOME", &home).env_remove("XDG_DATA_HOME").env_remove("XDG_CACHE_HOME");
        command.env("SMOLVM_LIB_DIR", runtime()).env("SMOLVM_AGENT_ROOTFS", runtime().join("agent-rootfs"));
        let output = ran(command.output().unwrap());
        assert_eq!(output.code, 0, "{output:?}");
        serde_json::from_str::<serde_json::Value>(&output.stdout).unwrap()
    };
    let list = || smolvm(&["machine", "ls", "--json"]).as_array().unwrap().clone();
    let words =
        ["launch", "a", "--yes", "--assume-virtualisation", "--mem", "512", "-e", "A=b", "--", "/agent"];
    let mut command = cellar.command(words);
    command.env("HOME", &home).env_remove("XDG_DATA_HOME").env_remove("XDG_CACHE_HOME");
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut seen = None;
    while child.try_wait().unwrap().is_none() {
        if let Some(machine) = list().first() {
            seen = Some(machine.clone());
            break;
        }
    }
    let Some(machine) = seen else { panic!("{:?}", ran(child.wait_with_output().unwrap())) };
    assert!(machine["name"].as_str().unwrap().starts_with("smolcellar-a-"), "{machine}");
    assert!(machine["labels"]["dev.smolcellar.launch"] == machine["name"], "{machine}");
    // It may end by itself meanwhile, where starting fails at once.
    Command::new("kill").args(["-INT", &child.id().to_string()]).stderr(Stdio::null()).status().unwrap();
    let sent = Instant::now();
    let code = child.wait().unwrap().code();
    assert!(matches!(code, Some(130 | 125)) && sent.elapsed() < Duration::from_secs(15), "{code:?}");
    assert!(list().is_empty());
    for folder in ["leases", "launches"] {
        assert_eq!(std::fs::read_dir(cellar.cache().join(folder)).map_or(0, Iterator::count), 0);
    }
}
