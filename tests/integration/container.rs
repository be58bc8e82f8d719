//! `launch --backend docker` in real containers: the plan, the handle, the
//! sidecar and the teardown that both backends share.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use smolcellar_tests::cellar::{Cellar, ran};
use smolcellar_tests::engine::{busybox_project, docker, fake_docker};
use smolcellar_tests::launches::{
    Tidy, agent_project, assert_nothing_left, launch, launched, sidecar, signal, wait_for,
};
use smolcellar_tests::needs::{Need, have};

#[test]
fn the_command_runs_as_the_image_says_and_its_code_and_streams_come_through() {
    if !have(&[Need::Docker, Need::Program("busybox")]) {
        return;
    }
    let cellar = Cellar::new();
    let (_image, _tidy) = (busybox_project(&cellar), Tidy::after(&cellar, "small"));
    let ran = launched(&cellar, &["--", "/bin/sh", "-c", "id -u; id -g; pwd; echo $GREETING; cat keep"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "1234\n4321\n/data\nhello\nkept\n"), "{ran:?}");
    assert!(ran.stderr.contains("not a virtual machine"), "{ran:?}");
    // The image's own entrypoint and command.
    assert!(launched(&cellar, &[]).stdout.starts_with("uid=1234"));
    for code in [0, 1, 7, 137] {
        let script = format!("echo out; echo err >&2; exit {code}");
        let ran = launched(&cellar, &["--", "/bin/sh", "-c", &script]);
        assert_eq!((ran.code, ran.stdout.as_str()), (code, "out\n"), "{ran:?}");
        assert!(ran.stderr.ends_with("err\n"), "{ran:?}");
    }
    // Standard input goes to the guest, byte for byte.
    let mut command = launch(&cellar, &["--", "/bin/sha256sum"]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&[7; 3_000_000]).unwrap();
    let output = child.wait_with_output().unwrap();
    let expected = smolcellar_store::Digest::of(&[7; 3_000_000]).hex();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{expected}  -\n"));
    // A folder of the host, once to be written and once not.
    let shared = cellar.path("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::set_permissions(&shared, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let volume = format!("{}:/mnt", shared.display());
    let write = ["--", "/bin/sh", "-c", "echo from the guest > /mnt/file"];
    assert_eq!(launched(&cellar, &[&["--volume", &volume][..], &write].concat()).code, 0);
    assert_eq!(std::fs::read_to_string(shared.join("file")).unwrap(), "from the guest\n");
    let read_only = format!("{volume}:ro");
    assert_ne!(launched(&cellar, &[&["--volume", &read_only][..], &write].concat()).code, 0);
    // What nobody listens for: there is no network at all.
    let ran = launched(&cellar, &["--", "/bin/sh", "-c", "cat /proc/net/route | wc -l; ls /sys/class/net"]);
    assert_eq!(ran.stdout, "1\nlo\n", "{ran:?}");
    let limits = launched(
        &cellar,
        &[
            "--mem",
            "77",
            "--cpus",
            "1",
            "--",
            "/bin/sh",
            "-c",
            "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null",
        ],
    );
    assert_eq!(limits.stdout.trim(), (77u64 << 20).to_string(), "{limits:?}");
    assert_nothing_left(&cellar, "small");
}

#[test]
fn an_artifact_is_loaded_once_and_goes_when_the_store_has_it_no_more() {
    if !have(&[Need::Docker]) {
        return;
    }
    let cellar = agent_project("once", "");
    let tidy = Tidy::after(&cellar, "once");
    assert_eq!(launched(&cellar, &["--", "/agent", "exit", "3"]).code, 3);
    let first = tidy.images();
    assert_eq!(first.len(), 1);
    assert_eq!(launched(&cellar, &["--", "/agent", "exit", "4"]).code, 4);
    assert_eq!(tidy.images(), first, "it was loaded again");
    // Another artifact, and the first is no more: its image goes.
    std::fs::remove_dir_all(cellar.cache().join("machines-v1")).unwrap();
    cellar.write("ctx/Dockerfile", "FROM scratch\nCOPY own /\nCOPY agent /other\nENTRYPOINT [\"/other\"]\n");
    assert_eq!(launched(&cellar, &["--", "/other", "exit", "5"]).code, 5);
    let second = tidy.images();
    assert!(second.len() == 1 && second != first, "{first:?} {second:?}");
}

#[test]
fn a_port_of_a_container_is_this_hosts_for_as_long_as_the_launch() {
    if !have(&[Need::Docker]) {
        return;
    }
    let cellar = agent_project("ports", "");
    let _tidy = Tidy::after(&cellar, "ports");
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = free.local_addr().unwrap().port();
    let port = format!("{host}:7000");
    // Taken: said before anything is made.
    let ran = launched(&cellar, &["--port", &port, "--", "/agent", "serve", "7000"]);
    assert!(ran.code == 125 && ran.stderr.contains(&host.to_string()), "{ran:?}");
    assert_nothing_left(&cellar, "ports");
    drop(free);
    let mut command = launch(&cellar, &["--port", &port, "--", "/agent", "serve", "7000"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let answer = wait_for("answer", || {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", host)).ok()?;
        let mut answer = String::new();
        std::io::Read::read_to_string(&mut stream, &mut answer).ok()?;
        Some(answer).filter(|answer| !answer.is_empty())
    });
    assert_eq!(answer, "hello from the sample agent\n");
    signal(&child, "-TERM");
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert_nothing_left(&cellar, "ports");
}

/// At moments spread over the whole launch, from before the network is made to
/// the middle of the command.
#[test]
fn signals_at_any_moment_leave_nothing() {
    const TRIALS: u64 = 20;
    if !have(&[Need::Docker]) {
        return;
    }
    let cellar = agent_project("signalled", &sidecar("signalled"));
    let _tidy = Tidy::after(&cellar, "signalled");
    let built = launched(&cellar, &["--", "/agent", "exit", "0"]);
    assert_eq!(built.code, 0, "{built:?}");
    std::thread::scope(|scope| {
        for (name, number) in [("-INT", 2), ("-TERM", 15), ("-HUP", 1)] {
            let cellar = &cellar;
            scope.spawn(move || {
                for trial in 0..TRIALS {
                    let mut command = launch(cellar, &["--", "/agent", "sleep", "600"]);
                    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
                    // From when signals are caught: before that, it simply dies of one, and has made nothing.
                    std::thread::sleep(Duration::from_millis(60 + trial * 75));
                    signal(&child, name);
                    if trial % 2 == 0 {
                        // Once more, in the middle of the teardown.
                        std::thread::sleep(Duration::from_millis(30));
                        let _ = Command::new("kill")
                            .args([name, &child.id().to_string()])
                            .stderr(Stdio::null())
                            .status();
                    }
                    let sent = Instant::now();
                    let status = child.wait().unwrap();
                    let caught = status.code() == Some(128 + number);
                    let died = std::os::unix::process::ExitStatusExt::signal(&status) == Some(number);
                    assert!(caught || (died && trial < 4), "{name}, trial {trial}: {status:?}");
                    assert!(sent.elapsed() < Duration::from_secs(10), "{:?}", sent.elapsed());
                }
            });
        }
    });
    assert_nothing_left(&cellar, "signalled");
}

#[test]
fn a_secret_is_on_no_command_line_and_in_no_record() {
    if !have(&[Need::Docker]) {
        return;
    }
    let cellar = agent_project("secret", "");
    let _tidy = Tidy::after(&cellar, "secret");
    let needle = format!("needle{}", "5ecret".repeat(4));
    let options = ["--secret-env", "TOKEN=HOST_TOKEN", "-v", "--detach"];
    let mut command = launch(&cellar, &[&options[..], &["--", "/agent", "sleep", "2"]].concat());
    let mut child =
        command.env("HOST_TOKEN", &needle).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Every process that there is, all the time.
    let mut lines = 0;
    let mut look = || {
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            lines += 1;
            let line = String::from_utf8_lossy(&line);
            assert!(!line.contains(&needle), "{line}");
        }
    };
    while child.try_wait().unwrap().is_none() {
        look();
    }
    let output = ran(child.wait_with_output().unwrap());
    assert_eq!(output.code, 0, "{output:?}");
    let name = output.stdout.trim();
    look();
    assert!(lines > 100);
    let mut seen = vec![output.stderr.clone(), docker(&["inspect", name]), docker(&["logs", name])];
    let image = docker(&["inspect", "--format", "{{.Image}}", name]);
    seen.push(docker(&["image", "inspect", image.trim()]));
    for path in
        [format!("leases/{name}.json"), format!("launches/{name}/log"), format!("launches/{name}/prompt")]
    {
        seen.push(std::fs::read_to_string(cellar.cache().join(path)).unwrap());
    }
    let plan = cellar
        .command([
            "launch",
            "--backend",
            "docker",
            "--dry-run",
            "--format",
            "json",
            "--secret-env",
            "TOKEN=HOST_TOKEN",
        ])
        .env("HOST_TOKEN", &needle)
        .output()
        .unwrap();
    seen.push(ran(plan).stdout);
    for text in &seen {
        assert!(!text.contains(&needle), "{text}");
    }
    // And yet the guest has it, whoever asks for it, and only that command.
    let mut exec = cellar.command(["exec", name, "--secret-env", "TOKEN=HOST_TOKEN", "--", "/agent", "env"]);
    let with = ran(exec.env("HOST_TOKEN", &needle).output().unwrap());
    assert!(with.stdout.contains(&format!("TOKEN={needle}\n")), "{with:?}");
    assert!(!cellar.run(["exec", name, "--", "/agent", "env"]).stdout.contains(&needle));
    // One that is not set is refused before anything is made.
    let unset = launched(&cellar, &["--secret-env", "TOKEN=NOT_SET_ANYWHERE", "--", "/agent"]);
    assert!(unset.code == 2 && unset.stderr.contains("NOT_SET_ANYWHERE"), "{unset:?}");
    assert_eq!(cellar.run(["rm", "--force", name]).code, 0);
    assert_nothing_left(&cellar, "secret");
}

#[test]
fn what_the_configuration_says_now_is_what_is_launched() {
    if !have(&[Need::Docker]) {
        return;
    }
    let cellar = agent_project("changed", "");
    let _tidy = Tidy::after(&cellar, "changed");
    assert_eq!(launched(&cellar, &["--", "/agent", "exit", "3"]).code, 3);
    let config = std::fs::read_to_string(cellar.project().join("smolcellar.toml")).unwrap();
    cellar.write("smolcellar.toml", &format!("{config}env = {{ MODE = \"new\" }}\ncmd = [\"env\"]\n"));
    let ran = launched(&cellar, &[]);
    assert!(ran.code == 0 && ran.stdout.contains("MODE=new\n"), "{ran:?}");
    assert!(ran.stderr.contains("(cmd, env): it is built again"), "{ran:?}");
    let again = launched(&cellar, &[]);
    assert!(!again.stderr.contains("built again"), "{again:?}");
}

#[test]
fn launches_at_once_do_not_meet() {
    if !have(&[Need::Docker]) {
        return;
    }
    let cellar = agent_project("atonce", &sidecar("atonce"));
    let _tidy = Tidy::after(&cellar, "atonce");
    let built = launched(&cellar, &["--", "/agent", "exit", "0"]);
    assert_eq!(built.code, 0, "{built:?}");
    std::thread::scope(|scope| {
        let all = [3, 4, 5, 6].map(|code: i32| {
            let cellar = &cellar;
            (code, scope.spawn(move || launched(cellar, &["--", "/agent", "exit", &code.to_string()])))
        });
        for (code, launch) in all {
            let ran = launch.join().unwrap();
            assert_eq!(ran.code, code, "{ran:?}");
        }
    });
    assert_nothing_left(&cellar, "atonce");
}

#[test]
fn an_engine_that_fails_hangs_or_is_not_there_leaves_nothing_and_says_so() {
    if !have(&[Need::Docker]) {
        return;
    }
    let cellar = agent_project("engine", "");
    let _tidy = Tidy::after(&cellar, "engine");
    let built = launched(&cellar, &["--", "/agent", "exit", "0"]);
    assert_eq!(built.code, 0, "{built:?}");
    for (step, fault, said) in [
        ("create", "echo Error: no space left >&2; exit 1", "no space left"),
        ("start", "echo Error: no runtime >&2; exit 1", "no runtime"),
        ("start", "exit 0", "stopped while the command ran"),
        ("exec", "for word; do docker kill \"$word\"; done > /dev/null 2>&1; exit 137", "stopped while"),
    ] {
        let script = format!("case $1 in {step}) {fault} ;; *) exec docker \"$@\" ;; esac");
        let engine = fake_docker(&cellar.path("bin"), &script);
        let args = [
            "--engine",
            engine.to_str().unwrap(),
            "launch",
            "--backend",
            "docker",
            "--yes",
            "--",
            "/agent",
            "id",
        ];
        let ran = cellar.run(args);
        assert!(ran.code == 125 && ran.stderr.contains(said), "{step}, {fault}: {ran:?}");
        assert_nothing_left(&cellar, "engine");
    }
    let ran =
        cellar.run(["--engine", "no-such-engine", "launch", "--backend", "docker", "--yes", "--", "/agent"]);
    assert!(ran.code == 125 && ran.stderr.contains("no-such-engine"), "{ran:?}");
}

#[test]
fn a_session_has_the_terminal_and_hears_of_its_size() {
    if !have(&[Need::Docker, Need::Program("busybox"), Need::Program("script")]) {
        return;
    }
    let cellar = Cellar::new();
    let (_image, _tidy) = (busybox_project(&cellar), Tidy::after(&cellar, "small"));
    assert_eq!(launched(&cellar, &["--", "/bin/true"]).code, 0);
    let command = launch(&cellar, &["--", "/bin/sh", "-c", "sleep 0.5; stty size; sleep 2; stty size; tty"]);
    let words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    // The terminal is made smaller while the guest sleeps for the second time.
    let script =
        format!("stty rows 33 cols 77; (sleep 2; stty -F /dev/tty rows 44 cols 55) & {}", words.join(" "));
    let envs: Vec<_> = command.get_envs().filter_map(|(k, v)| Some((k.to_owned(), v?.to_owned()))).collect();
    let output = Command::new("script")
        .args(["--quiet", "--return", "--command", &script, "/dev/null"])
        .envs(envs)
        .current_dir(cellar.project())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    assert!(text.contains("33 77\n44 55\n/dev/pts/"), "{text:?}");
    assert_nothing_left(&cellar, "small");
}

/// Podman, the other engine: the same launches.
#[test]
fn with_podman_it_is_the_same() {
    if !have(&[Need::Docker, Need::Program("podman")]) {
        return;
    }
    let cellar = agent_project("podded", &sidecar("podded"));
    let _tidy = Tidy::after(&cellar, "podded");
    // Podman wants to raise limits, which not every root may.
    let conf = cellar.path("containers.conf");
    std::fs::write(&conf, "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1000:1000\"]\n")
        .unwrap();
    // The agent's image is Docker's; its sidecar is built by Podman.
    assert_eq!(cellar.run(["build-agent"]).code, 0);
    let run = |words: &[&str]| {
        let mut command = cellar.command([&["--engine", "podman"][..], words].concat());
        ran(command.env("CONTAINERS_CONF", &conf).env("HOST_TOKEN", "found").output().unwrap())
    };
    let launch = ["launch", "--backend", "docker", "--yes"];
    let code = run(&[&launch[..], &["--", "/agent", "exit", "7"]].concat());
    assert_eq!(code.code, 7, "{code:?}");
    assert!(code.stderr.contains("this host is in the container's network"), "{code:?}");
    let detached = run(&[&launch[..], &["--detach", "--", "/agent", "id"]].concat());
    assert_eq!(detached.code, 0, "{detached:?}");
    let name = detached.stdout.trim();
    let env = run(&["exec", name, "--secret-env", "TOKEN=HOST_TOKEN", "--", "/agent", "env"]).stdout;
    let proxy = env.lines().find_map(|line| line.strip_prefix("HTTP_PROXY=http://")).unwrap();
    assert!(env.contains("TOKEN=found\n") && env.contains("AGENT=sample\n"), "{env}");
    // It is served, as the launch waited for. Not asked from the guest: where Docker runs too, its firewall
    // drops what other engines' bridges pass on.
    assert!(std::net::TcpStream::connect(proxy).is_ok(), "{proxy}");
    assert_eq!(run(&["exec", name, "--", "/agent", "connect", "169.254.169.254:80"]).code, 1);
    assert_eq!(run(&["logs", "--follow", name]).stdout, "uid=0 gid=0 cwd=/work args=[\"id\"]\n");
    // Whoever goes on with it need not say again which engine it was; another engine's launch does not judge it.
    assert_eq!(launched(&cellar, &["--engine", "docker", "--", "/agent", "exit", "3"]).code, 3);
    let mut again = cellar.command(["exec", name, "--", "/agent", "exit", "4"]);
    assert_eq!(ran(again.env("CONTAINERS_CONF", &conf).output().unwrap()).code, 4);
    assert_eq!(run(&["stop", name]).code, 0);
    assert_eq!(run(&["rm", name]).code, 0);
    let podman = |words: &[&str]| {
        let output = Command::new("podman").args(words).env("CONTAINERS_CONF", &conf).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let label = "label=dev.smolcellar.launch";
    assert_eq!(podman(&["ps", "--all", "--filter", label, "--format", "{{.Names}}"]), "");
    assert_eq!(podman(&["network", "ls", "--filter", label, "--format", "{{.Name}}"]), "");
    for image in podman(&["images", "--quiet", "--filter", "label=dev.smolcellar.artifact"]).lines() {
        podman(&["rmi", "--force", image]);
    }
    podman(&["rmi", "--force", "smolcellar/podded-sidecar"]);
    assert_nothing_left(&cellar, "podded");
}
