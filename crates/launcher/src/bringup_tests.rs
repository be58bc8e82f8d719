//! Against a fake smolvm, a script that keeps its machines in a folder and
//! does wrong what the file `faults` says.

use super::*;
use crate::guest::State;
use crate::process::Process;
use crate::spec::{Artifact, Egress, Prompt};
use smolcellar_run::{Cancel, ExecIo};
use smolcellar_smolvm::{Cli, ExecRequest, Origin, Runtime, Version};
use smolcellar_store::{Digest, OpenOptions, fsio};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

const FAKE: &str = r#"#!/bin/sh
# machine COMMAND --name NAME …
lab=$(dirname "$0"); command=$2; name=$4; vm=$lab/vms/$name
echo "$*" >> "$lab/calls"
fault=$(grep "^$command=" "$lab/faults" 2>/dev/null | cut -d= -f2)
echo "$command" >> "$lab/at"
case $fault in
    hang) trap '' TERM; exec sleep 600 ;;
    fail) echo "Error: $command failed on purpose" >&2; exit 1 ;;
    lie) exit 0 ;;
    flood) exec cat /dev/zero ;;
esac
show() { pid=$(cat "$1/pid" 2>/dev/null); grep -qs ') [^ZX]' "/proc/$pid/stat" && state=running || { state=created; pid=null; }
         label=$(basename "$1"); [ -e "$1/foreign" ] && label=
         printf '{"name":"%s","state":"%s","pid":%s,"labels":{"dev.smolcellar.launch":"%s"}}' "$(basename "$1")" "$state" "$pid" "$label"; }
case $command in
    create) mkdir -p "$vm"; [ "$fault" = late ] && for i in $(seq 6000); do sleep 0.1; done; true ;;
    start) setsid sh -c 'trap "" TERM; while :; do sleep 1; done' "$vm/boot-config.json" >/dev/null 2>&1 &
           echo $! > "$vm/pid"; [ "$fault" = late ] && { echo "Error: no agent" >&2; exit 1; }; true ;;
    data-dir) echo "$vm" ;;
    status) [ -d "$vm" ] || { echo "Error: not found" >&2; exit 1; }; show "$vm" ;;
    ls) printf '['; sep=; for one in "$lab"/vms/*/; do [ -d "$one" ] && { printf '%s' "$sep"; show "${one%/}"; sep=,; }; done; printf ']' ;;
    exec) case $(show "$vm") in *running*) ;; *) echo "Error: not running" >&2; exit 1 ;; esac
          while [ "$1" != -- ]; do shift; done; shift
          [ "$fault" = die ] && { kill -9 "$(cat "$vm/pid")"; sleep 0.2; echo "Error: connection lost" >&2; exit 1; }
          exec "$@" ;;
    stop) kill -9 "$(cat "$vm/pid")" ;;
    delete) rm -rf "$vm" ;;
    cp) cat "$3" > "$lab/copied"; stat -c %a "$3" > "$lab/mode" ;;
    egress-events) [ "$fault" = some ] && echo '[{"operation":"connect","dest":"10.9.9.2:7000"}]'; true ;;
esac
"#;

fn new_lease(machine: &str) -> NewLease {
    let record = LaunchRecord::default();
    let (place, launch) = (place(&record), record.json());
    NewLease { machine: machine.into(), artifact: "key".into(), place, launch }
}

struct Lab {
    dir: tempfile::TempDir,
    store: Store,
    warnings: Mutex<Vec<String>>,
    notes: Mutex<Vec<String>>,
    signal: AtomicI32,
}

impl Reporter for Lab {
    fn report(&self, event: Event<'_>) {
        match event {
            Event::Warn { text } => self.warnings.lock().unwrap().push(text.to_owned()),
            Event::Note { text } => self.notes.lock().unwrap().push(text.to_owned()),
            _ => {}
        }
    }
}

impl Cancel for Lab {
    fn cancelled(&self) -> bool {
        self.signal().is_some()
    }
}

impl Interrupt for Lab {
    fn signal(&self) -> Option<i32> {
        Some(self.signal.load(Ordering::SeqCst)).filter(|signal| *signal != 0)
    }
}

impl Lab {
    fn new(faults: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), OpenOptions::default()).unwrap();
        let lab = Self {
            dir,
            store,
            warnings: Mutex::default(),
            notes: Mutex::default(),
            signal: AtomicI32::new(0),
        };
        for (name, text) in
            [("smolvm", FAKE), ("a.smolmachine", "x"), ("cpuinfo", "flags : svm\n"), ("kvm", "")]
        {
            fsio::write_atomic(lab.dir.path(), &lab.at(name), text.as_bytes()).unwrap();
            fs::set_permissions(lab.at(name), fs::Permissions::from_mode(0o777)).unwrap();
        }
        lab.fault(faults);
        lab
    }

    fn fault(&self, faults: &[&str]) {
        fsio::write_atomic(self.dir.path(), &self.at("faults"), faults.join("\n").as_bytes()).unwrap();
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn spec(&self, command: &[&str]) -> LaunchSpec {
        LaunchSpec {
            agent: "lab".into(),
            backend: Backend::Smolvm,
            image: None,
            artifact: Some(Artifact {
                key: "key".into(),
                path: self.at("a.smolmachine"),
                sha256: Digest::of(b"x"),
            }),
            machine_name: crate::machine_name("lab"),
            name_chosen: false,
            image_env: vec![],
            command: command.iter().map(ToString::to_string).collect(),
            env: vec![],
            secrets: vec![],
            workdir: None,
            user: None,
            cpus: Some(1),
            memory_mib: None,
            volumes: vec![],
            ports: vec![],
            egress: Egress { allow_cidr: vec!["10.0.0.2/32".into()], ..Egress::default() },
            sidecar: None,
            prompt: None,
            keep: false,
            io: ExecIo::Stream,
        }
    }

    fn launcher(&self) -> Launcher<'_> {
        let runtime = Runtime {
            version: Version::new(1, 32, 2),
            vmm: self.at("smolvm"),
            lib_dir: self.at(""),
            agent_rootfs: self.at("agent-rootfs"),
            rootfs_tar: self.at("agent-rootfs.tar"),
            rootfs_digest: Digest::of(b""),
            rootfs_size: 0,
            origin: Origin::Configured(self.at("")),
        };
        let short = Duration::from_millis(1500);
        let bounds = Bounds {
            create: short,
            start: short,
            sidecar: short,
            grace: Duration::ZERO,
            stop: short,
            gone: Duration::from_millis(200),
            delete: short,
            query: Duration::from_secs(5),
            engine: Duration::from_secs(5),
        };
        let host = Host {
            cpuinfo: self.at("cpuinfo"),
            kvm: self.at("kvm"),
            groups: self.at("group"),
            drops_user: false,
        };
        let tools = Tools { smolvm: Some(Cli::new(&runtime).unwrap()), engine: None };
        Launcher::new(tools, &self.store, self, self).with_host(Some(host)).with_bounds(bounds)
    }

    fn run(&self, command: &[&str]) -> Result<i32> {
        self.launcher().run(&self.spec(command))
    }

    /// The commands that the fake was given, without the questions.
    fn steps(&self) -> Vec<String> {
        let at = fs::read_to_string(self.at("at")).unwrap_or_default();
        let asked = ["status", "data-dir", "ls", "egress-events"];
        at.lines().filter(|step| !asked.contains(step)).map(str::to_owned).collect()
    }

    /// No machine, no process of one.
    fn assert_clean(&self) {
        let machines = fs::read_dir(self.at("vms")).map_or(0, Iterator::count);
        assert_eq!(machines, 0, "machines are left");
        let left = Process::with_argument_below(self.dir.path());
        assert!(left.is_empty(), "processes are left: {left:?}");
    }

    fn warnings(&self) -> Vec<String> {
        self.warnings.lock().unwrap().clone()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for process in Process::with_argument_below(self.dir.path()) {
            process.kill();
        }
    }
}

#[test]
fn a_launch_goes_up_runs_and_comes_down_and_the_guests_exit_code_is_ours() {
    for code in [0, 1, 7] {
        let lab = Lab::new(&[]);
        assert_eq!(lab.run(&["sh", "-c", &format!("exit {code}")]).unwrap(), code);
        assert_eq!(lab.steps(), ["create", "start", "exec", "stop", "delete"]);
        lab.assert_clean();
        assert_eq!(lab.warnings(), [""; 0]);
    }
}

#[test]
fn every_call_names_the_machine_and_create_carries_the_options() {
    let lab = Lab::new(&[]);
    let spec = LaunchSpec { env: vec![("K".into(), "v".into())], ..lab.spec(&["true"]) };
    let name = spec.machine_name.clone();
    assert_eq!(lab.launcher().run(&spec).unwrap(), 0);
    let calls = fs::read_to_string(lab.at("calls")).unwrap();
    let first = calls.lines().next().unwrap();
    let artifact = lab.at("a.smolmachine");
    let expected = format!(
        "machine create --name {name} --from {} --cpus 1 --allow-cidr 10.0.0.2/32 -e K=v --label {}={name}",
        artifact.display(),
        crate::LABEL
    );
    assert_eq!(first, expected);
    assert!(
        calls.lines().any(|call| call == format!("machine exec --name {name} -e K=v --stream -- true")),
        "{calls}"
    );
}

#[test]
fn without_virtualisation_or_artifact_or_command_nothing_is_made() {
    let lab = Lab::new(&[]);
    assert!(matches!(lab.run(&[]), Err(LaunchError::NoCommand)));
    fs::remove_file(lab.at("a.smolmachine")).unwrap();
    assert!(matches!(lab.run(&["true"]), Err(LaunchError::NoArtifact(_))));
    fsio::write_atomic(lab.dir.path(), &lab.at("cpuinfo"), b"flags : fpu\n").unwrap();
    assert!(matches!(lab.run(&["true"]), Err(LaunchError::NoVirtualisation(_))));
    assert!(!lab.at("calls").exists(), "smolvm was called");
}

#[test]
fn a_step_that_fails_or_hangs_takes_down_what_was_made() {
    for (fault, steps) in [
        ("create=fail", &["create"][..]),
        ("create=hang", &["create"]),
        ("create=late", &["create", "delete"]),
        ("start=fail", &["create", "start", "delete"]),
        ("start=hang", &["create", "start", "delete"]),
        // The failed start left a process: stop is tried, and it is killed.
        ("start=late", &["create", "start", "stop", "delete"]),
    ] {
        let lab = Lab::new(&[fault]);
        let error = lab.run(&["true"]).unwrap_err();
        assert!(matches!(error, LaunchError::Smolvm(_)), "{fault}: {error}");
        assert_eq!(lab.steps(), steps, "{fault}");
        lab.assert_clean();
        assert_eq!(lab.warnings(), [""; 0], "{fault}");
    }
}

#[test]
fn a_stop_that_lies_fails_or_hangs_leaves_no_process() {
    for fault in ["stop=lie", "stop=fail", "stop=hang"] {
        let lab = Lab::new(&[fault]);
        assert_eq!(lab.run(&["sh", "-c", "exit 3"]).unwrap(), 3, "{fault}");
        lab.assert_clean();
        assert_eq!(lab.warnings(), [""; 0], "{fault}");
    }
}

#[test]
fn a_delete_that_lies_fails_or_hangs_is_a_warning_with_a_remedy_and_the_exit_code_stays() {
    for fault in ["delete=lie", "delete=fail", "delete=hang"] {
        let lab = Lab::new(&[fault]);
        assert_eq!(lab.run(&["sh", "-c", "exit 3"]).unwrap(), 3, "{fault}");
        let warnings = lab.warnings();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("smolvm machine delete -f --name smolcellar-lab-"), "{warnings:?}");
        lab.fault(&[]);
    }
}

#[test]
fn a_step_that_says_it_did_and_did_not_is_noticed() {
    for fault in ["create=lie", "start=lie"] {
        let lab = Lab::new(&[fault]);
        let error = lab.run(&["true"]).unwrap_err();
        assert!(matches!(error, LaunchError::MachineDied(_) | LaunchError::Smolvm(_)), "{fault}: {error}");
        lab.assert_clean();
    }
}

#[test]
fn a_machine_that_dies_under_the_command_is_no_exit_code() {
    let lab = Lab::new(&["exec=die"]);
    assert!(matches!(lab.run(&["true"]), Err(LaunchError::MachineDied(_))));
    lab.assert_clean();
}

/// Each step, each signal, again and again: nothing is ever left.
#[test]
fn a_signal_at_any_step_takes_everything_down_in_time_and_gives_128_plus_n() {
    const TRIALS: u64 = 20;
    let trial = |step: &str, fault: &str, signal: i32, trial: u64| {
        let lab = Lab::new(&[fault]);
        let code = std::thread::scope(|scope| {
            let launch = scope.spawn(|| {
                let code = lab.run(&["sleep", "600"]).unwrap();
                (code, Instant::now())
            });
            while !lab.steps().iter().any(|at| at == step) {
                std::thread::sleep(Duration::from_millis(5));
            }
            // Another moment of the step each time.
            std::thread::sleep(Duration::from_millis(trial * 7 % 50));
            lab.signal.store(signal, Ordering::SeqCst);
            let sent = Instant::now();
            let (code, ended) = launch.join().unwrap();
            assert!(ended - sent < Duration::from_secs(10), "{step}");
            code
        });
        assert_eq!(code, 128 + signal, "{step}");
        lab.assert_clean();
        assert_eq!(lab.warnings(), [""; 0], "{step}");
    };
    std::thread::scope(|scope| {
        // What hangs is killed after a second: many wait at the same time.
        for number in 0..TRIALS {
            for (step, fault) in [("create", "create=late"), ("start", "start=hang"), ("exec", "")] {
                let trial = &trial;
                scope.spawn(move || {
                    for signal in [2, 15, 1] {
                        trial(step, fault, signal, number);
                    }
                });
            }
        }
    });
}

#[test]
fn a_panic_in_the_middle_takes_everything_down() {
    let lab = Lab::new(&[]);
    let launcher = lab.launcher();
    let spec = lab.spec(&["true"]);
    let plan = Plan::resolve(&spec, &launcher.tools).unwrap();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let name = plan.machine.clone();
        let guest = launcher.guest(Backend::Smolvm, &name).unwrap();
        let mut lease = lab.store.lease(new_lease(&name)).unwrap().unwrap();
        let mut undo = UndoStack::new(&lab);
        let mut forwards = Forwards::bind(&[]).unwrap();
        launcher.bring_up(&spec, plan, guest.as_ref(), &mut lease, &mut undo, &mut forwards).unwrap();
        panic!("on purpose");
    }));
    assert!(result.is_err());
    assert_eq!(lab.steps(), ["create", "start", "exec", "stop", "delete"]);
    lab.assert_clean();
}

#[test]
fn two_launches_of_one_agent_at_once_do_not_meet() {
    let lab = Lab::new(&[]);
    std::thread::scope(|scope| {
        let both = [3, 4].map(|code| {
            let lab = &lab;
            (code, scope.spawn(move || lab.run(&["sh", "-c", &format!("sleep 0.3; exit {code}")]).unwrap()))
        });
        for (code, launch) in both {
            assert_eq!(launch.join().unwrap(), code);
        }
    });
    lab.assert_clean();
}

#[test]
fn what_a_killed_launcher_left_is_removed_by_the_next_launch_and_only_that() {
    let lab = Lab::new(&[]);
    let launcher = lab.launcher();
    let up = |name: &str| {
        let spec = LaunchSpec { machine_name: name.into(), ..lab.spec(&["true"]) };
        let plan = Plan::resolve(&spec, &launcher.tools).unwrap();
        let guest = launcher.guest(Backend::Smolvm, name).unwrap();
        guest.create(&plan, &lab).unwrap();
        guest.start(&lab).unwrap();
    };
    // A launcher that is killed leaves its lease unlocked; one that lives has it.
    drop(lab.store.lease(new_lease("left")).unwrap().unwrap());
    up("left");
    let alive = lab.store.lease(new_lease("alive")).unwrap().unwrap();
    up("alive");
    up("foreign");
    // Killed while smolvm makes the machine, which goes on with that.
    drop(lab.store.lease(new_lease("slow")).unwrap().unwrap());
    lab.fault(&["create=late"]);
    #[expect(clippy::disallowed_methods, reason = "stands for a launcher that was killed")]
    let mut slow = std::process::Command::new(lab.at("smolvm"));
    slow.args(["machine", "create", "--name", "slow", "--from", "x"]);
    let mut slow =
        slow.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    while !lab.at("vms/slow").exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    lab.fault(&[]);
    // Killed between its lease and the machine.
    drop(lab.store.lease(new_lease("never-made")).unwrap().unwrap());
    assert_eq!(lab.run(&["true"]).unwrap(), 0);
    let machines = |lab: &Lab| {
        let mut names: Vec<_> =
            fs::read_dir(lab.at("vms")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert!(!slow.wait().unwrap().success(), "smolvm still makes a machine for a dead launcher");
    assert_eq!(machines(&lab), ["alive", "foreign"]);
    let leases = |lab: &Lab| fs::read_dir(lab.at("store/leases")).unwrap().count();
    assert_eq!((leases(&lab), lab.warnings().len()), (1, 0));
    // What cannot be removed keeps its lease, and is tried again.
    drop(alive);
    lab.fault(&["delete=lie"]);
    assert_eq!(lab.run(&["true"]).unwrap(), 0);
    assert!(lab.warnings().iter().any(|warning| warning.contains("machine alive")), "{:?}", lab.warnings());
    assert_eq!(leases(&lab), 2, "this one's, and that of the launch itself");
    lab.fault(&[]);
    assert_eq!(lab.run(&["true"]).unwrap(), 0);
    assert_eq!((machines(&lab), leases(&lab)), (vec!["foreign".into()], 0));
}

#[test]
fn the_artifact_is_locked_for_as_long_as_the_machine_is_there() {
    let lab = Lab::new(&[]);
    std::thread::scope(|scope| {
        let launch = scope.spawn(|| lab.run(&["sleep", "0.5"]).unwrap());
        while !lab.steps().iter().any(|at| at == "exec") {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(is_locked(&lab.at("store/locks/use-key")));
        assert_eq!(launch.join().unwrap(), 0);
    });
    assert!(!is_locked(&lab.at("store/locks/use-key")));
}

#[test]
fn refused_connections_are_shown_when_the_command_fails_and_only_then() {
    let lab = Lab::new(&["egress-events=some"]);
    assert_eq!(lab.run(&["true"]).unwrap(), 0);
    assert!(lab.notes.lock().unwrap().is_empty());
    assert_eq!(lab.run(&["false"]).unwrap(), 1);
    let notes = lab.notes.lock().unwrap().clone();
    assert!(notes.len() == 1 && notes[0].contains("10.9.9.2:7000 (connect)"), "{notes:?}");
}

#[test]
fn a_prompt_is_private_here_readable_there_and_gone_afterwards() {
    use std::os::unix::fs::MetadataExt;
    let lab = Lab::new(&[]);
    let prompt = || Some(Prompt { from: "p".into(), text: b"do it".to_vec() });
    let spec = LaunchSpec { prompt: prompt(), ..lab.spec(&["sh", "-c", "exit 0"]) };
    assert_eq!(lab.launcher().run(&spec).unwrap(), 0);
    assert_eq!(fs::read(lab.at("copied")).unwrap(), b"do it");
    assert_eq!(fs::read(lab.at("mode")).unwrap(), b"600\n");
    assert_eq!(lab.steps(), ["create", "start", "cp", "exec", "stop", "delete"]);
    // Without one: the file is there, and empty.
    let name = lab.spec(&[]).machine_name;
    let path = lab.at("store/launches").join(&name).join("prompt");
    let script = format!("stat -c '%a %s' {} > {}", path.display(), lab.at("seen").display());
    let spec = LaunchSpec { machine_name: name, ..lab.spec(&["sh", "-c", &script]) };
    assert_eq!(lab.launcher().run(&spec).unwrap(), 0);
    assert_eq!(fs::read(lab.at("seen")).unwrap(), b"600 0\n");
    assert_eq!(fs::metadata(lab.at("store/launches")).unwrap().mode() & 0o777, 0o700);
    assert_eq!(fs::read_dir(lab.at("store/launches")).unwrap().count(), 0);
}

#[test]
fn a_machine_that_is_kept_stays_until_it_is_removed_and_can_be_found() {
    let lab = Lab::new(&[]);
    let launcher = lab.launcher();
    let spec = LaunchSpec { keep: true, ..lab.spec(&["sh", "-c", "exit 3"]) };
    assert_eq!(launcher.run(&spec).unwrap(), 3);
    let kept = crate::find(&lab.store, "lab-").unwrap();
    assert_eq!(
        (kept.machine.as_str(), kept.ended, kept.attended),
        (spec.machine_name.as_str(), Some(3), false)
    );
    assert_eq!(launcher.state(&kept).unwrap(), Some(State::Running));
    // Another launch comes and goes, and does not touch it.
    assert_eq!(lab.run(&["true"]).unwrap(), 0);
    let request = |words: &[&str]| ExecRequest {
        command: words.iter().map(ToString::to_string).collect(),
        ..ExecRequest::default()
    };
    assert_eq!(launcher.exec(&kept, request(&["sh", "-c", "exit 9"]), ExecIo::Stream).unwrap(), 9);
    assert!(matches!(launcher.remove(&kept, false), Err(LaunchError::Running(_))));
    launcher.stop(&kept).unwrap();
    assert!(matches!(
        launcher.exec(&kept, request(&["true"]), ExecIo::Stream),
        Err(LaunchError::NotRunning(_))
    ));
    launcher.remove(&kept, false).unwrap();
    lab.assert_clean();
    let error = crate::find(&lab.store, "lab-").unwrap_err().to_string();
    assert!(error.contains("there is none at all"), "{error}");
    // One whose bring-up fails is not kept.
    lab.fault(&["start=fail"]);
    assert!(launcher.run(&spec).is_err());
    lab.assert_clean();
}

#[test]
fn a_name_that_means_several_machines_names_them() {
    let lab = Lab::new(&[]);
    let leases = ["smolcellar-a-x", "smolcellar-a-y", "smolcellar-a-xy"]
        .map(|name| lab.store.lease(new_lease(name)).unwrap().unwrap());
    let error = crate::find(&lab.store, "a-x").unwrap_err().to_string();
    assert!(error.contains("smolcellar-a-x, smolcellar-a-xy"), "{error}");
    assert_eq!(crate::find(&lab.store, "smolcellar-a-x").unwrap().machine, "smolcellar-a-x");
    assert_eq!(crate::find(&lab.store, "a-y").unwrap().machine, "smolcellar-a-y");
    assert!(crate::find(&lab.store, "").is_err() && crate::find(&lab.store, "b").is_err());
    drop(leases);
}

#[test]
fn a_chosen_name_that_is_taken_is_refused_and_its_machine_is_not_touched() {
    let lab = Lab::new(&[]);
    fs::create_dir_all(lab.at("vms/mine")).unwrap();
    let spec = LaunchSpec { machine_name: "mine".into(), name_chosen: true, ..lab.spec(&["true"]) };
    assert!(matches!(lab.launcher().run(&spec), Err(LaunchError::NameTaken(_))));
    assert!(lab.at("vms/mine").exists() && lab.steps().is_empty(), "{:?}", lab.steps());
    assert!(lab.store.leases().unwrap().is_empty());
    // By another launch that is under way.
    fs::remove_dir(lab.at("vms/mine")).unwrap();
    let _lease = lab.store.lease(new_lease("mine")).unwrap().unwrap();
    assert!(matches!(lab.launcher().run(&spec), Err(LaunchError::NameTaken(_))));
}

#[test]
fn what_is_anothers_by_its_label_is_never_stopped_or_deleted() {
    let lab = Lab::new(&[]);
    fs::create_dir_all(lab.at("vms/theirs")).unwrap();
    fsio::write_atomic(lab.dir.path(), &lab.at("vms/theirs/foreign"), b"").unwrap();
    // A launcher that was killed as soon as it had its lease.
    drop(lab.store.lease(new_lease("theirs")).unwrap().unwrap());
    assert_eq!(lab.run(&["true"]).unwrap(), 0);
    assert!(lab.at("vms/theirs").exists() && lab.store.leases().unwrap().is_empty());
    fs::remove_dir_all(lab.at("vms/theirs")).unwrap();
}

#[test]
fn output_without_end_of_a_step_ends_the_step() {
    let lab = Lab::new(&["create=flood"]);
    let error = lab.run(&["true"]).unwrap_err().to_string();
    assert!(error.contains("longer than") || error.contains("did not end"), "{error}");
    lab.assert_clean();
}

/// By the kernel's own list (`/proc/locks`), which names the inode.
fn is_locked(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let inode = format!(":{} ", fs::metadata(path).unwrap().ino());
    fs::read_to_string("/proc/locks")
        .unwrap()
        .lines()
        .any(|lock| lock.contains("FLOCK") && lock.contains(&inode))
}
