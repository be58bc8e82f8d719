//! What a build that is told to end leaves running: nothing.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use smolcellar_tests::cellar::Cellar;
use smolcellar_tests::engine::fake_docker;

/// The process in the file, once it is there.
fn pid(file: &PathBuf) -> String {
    let began = Instant::now();
    loop {
        match std::fs::read_to_string(file) {
            Ok(text) if text.ends_with('\n') => return text.trim().to_owned(),
            _ => assert!(began.elapsed() < Duration::from_secs(20), "it did not start"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_signal_ends_what_the_build_started_and_then_the_build() {
    // A grandchild each: the command before the build, the build, the save.
    let sleep = "sleep 300 & echo $! > \"$SLEEPER\"; wait";
    for step in ["before", "build", "save"] {
        for (signal, number) in [("TERM", 15), ("INT", 2), ("HUP", 1)] {
            let cellar = Cellar::new();
            let sleeper = cellar.path("sleeper");
            let before =
                if step == "before" { format!("before = ['sh', '-c', '{sleep}']\n") } else { String::new() };
            cellar.write("smolcellar.toml", &format!("[agent.a]\ncontext = \"ctx\"\n{before}"));
            cellar.write("ctx/Dockerfile", "FROM scratch\n");
            let id = format!("sha256:{}", "ab".repeat(32));
            let fast = format!("while [ \"$1\" != --iidfile ]; do shift; done; echo {id} > \"$2\"");
            let build = if step == "build" { sleep } else { &fast };
            let script = format!(
                "case $1 in build) {build} ;; image) echo '{{\"Id\":\"{id}\"}}' ;; save) {sleep} ;; esac"
            );
            let docker = fake_docker(&cellar.path("bin"), &script);
            let mut command = cellar.command(["--engine", docker.to_str().unwrap(), "build-agent"]);
            let mut child = command.env("SLEEPER", &sleeper).spawn().unwrap();
            let pid = pid(&sleeper);
            let kill = |name: &str, pid: &str| {
                let status =
                    Command::new("kill").args([name, pid]).stderr(std::process::Stdio::null()).status();
                status.unwrap().success()
            };
            assert!(kill(&format!("-{signal}"), &child.id().to_string()));
            assert_eq!(child.wait().unwrap().signal(), Some(number), "{step}");
            let began = Instant::now();
            while kill("-0", &pid) {
                assert!(began.elapsed() < Duration::from_secs(10), "{step}, {signal}: {pid} lives on");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

/// A pip that takes long, in place of the real one.
#[test]
fn a_signal_ends_the_download_of_smolvm_too() {
    for command in [&["setup"][..], &["build-agent"]] {
        let cellar = Cellar::new();
        let (sleeper, bin) = (cellar.path("sleeper"), cellar.path("bin"));
        cellar.write("smolcellar.toml", "[agent.a]\ncontext = \"ctx\"\n");
        cellar.write("ctx/Dockerfile", "FROM scratch\n");
        let pip =
            "#!/bin/sh\ncase \"$*\" in *--version*) exit ;; esac\nsleep 300 & echo $! > \"$SLEEPER\"; wait\n";
        std::fs::create_dir(&bin).unwrap();
        std::fs::write(bin.join("python3"), pip).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(bin.join("python3"), mode).unwrap();
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        let mut run = cellar.command(command);
        run.env_remove("SMOLCELLAR_SMOLVM_DIR").env("SLEEPER", &sleeper).env("PATH", path);
        let mut child = run.spawn().unwrap();
        let pid = pid(&sleeper);
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
        assert_eq!(child.wait().unwrap().signal(), Some(2), "{command:?}");
        let lives =
            || std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
        let began = Instant::now();
        while lives() {
            assert!(began.elapsed() < Duration::from_secs(10), "{command:?}: pip goes on");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
