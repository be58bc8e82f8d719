//! Machines that stay when their launcher has gone: on purpose, or because it was
//! killed.

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use smolcellar_tests::cellar::{Cellar, Ran};
use smolcellar_tests::engine::busybox_project;
use smolcellar_tests::launches::{
    Tidy, agent_project, assert_nothing_left, launch, launched, left, sidecar, signal, wait_for,
};
use smolcellar_tests::needs::{Need, have};

#[test]
fn what_a_killed_launcher_left_goes_with_the_next_launch_and_what_is_kept_stays() {
    if !have(&[Need::Docker]) {
        return;
    }
    let cellar = agent_project("killed", &sidecar("killed"));
    let _tidy = Tidy::after(&cellar, "killed");
    let built = launched(&cellar, &["--", "/agent", "exit", "0"]);
    assert_eq!(built.code, 0, "{built:?}");
    let kept = launched(&cellar, &["--detach", "--", "/agent", "exit", "9"]);
    let kept = kept.stdout.trim();
    for pause in [80, 160, 240, 320, 480, 700, 1200] {
        let mut command = launch(&cellar, &["--", "/agent", "sleep", "600"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(pause));
        signal(&child, "-KILL");
        child.wait().unwrap();
        let next = launched(&cellar, &["--", "/agent", "exit", "3"]);
        assert_eq!(next.code, 3, "{next:?}");
        let mut there = left("killed");
        there.sort();
        assert_eq!(there, [kept.to_owned(), kept.to_owned(), format!("{kept}-sidecar")], "after {pause} ms");
    }
    // Its launcher has ended, its command too; it is there until it is removed.
    let row = wait_for("end", || {
        let row = cellar.json(["ps"]);
        (!row["ended"].is_null()).then_some(row)
    });
    assert_eq!((&row["ended"], &row["state"], &row["machine"]), (&9.into(), &"running".into(), &kept.into()));
    assert_eq!(cellar.run(["rm", "--force", "killed"]).code, 0);
    assert_nothing_left(&cellar, "killed");
}

#[test]
fn a_detached_launch_is_listed_followed_used_stopped_and_removed() {
    if !have(&[Need::Docker, Need::Program("busybox")]) {
        return;
    }
    let cellar = Cellar::new();
    let (_image, _tidy) = (busybox_project(&cellar), Tidy::after(&cellar, "small"));
    let script = "echo one; sleep 1; echo two >&2; sleep 0.3; echo $SMOLCELLAR_PROMPT_FILE; cat /smolcellar-prompt; exit 5";
    let prompt = cellar.path("prompt");
    std::fs::write(&prompt, "do this\n").unwrap();
    let json = |args: &[&str]| -> serde_json::Value {
        let ran: Ran = cellar.run([args, &["--format", "json"]].concat());
        assert_eq!(ran.code, 0, "{ran:?}");
        serde_json::from_str(&ran.stdout).unwrap()
    };
    let args = [
        "launch",
        "--backend",
        "docker",
        "--yes",
        "--format",
        "json",
        "-d",
        "--name",
        "mine",
        "--prompt-file",
    ];
    let detached =
        cellar.run([&args[..], &[prompt.to_str().unwrap(), "--", "/bin/sh", "-c", script]].concat());
    assert_eq!(detached.code, 0, "{detached:?}");
    assert_eq!(detached.stdout, "{\"machine\":\"mine\"}\n");
    let row = json(&["ps"]);
    assert_eq!(
        (&row["machine"], &row["agent"], &row["state"]),
        (&"mine".into(), &"small".into(), &"running".into())
    );
    assert!(row["attended"] == true && row["ended"].is_null(), "{row}");
    // Followed to its end, from another process.
    let logs = cellar.run(["logs", "--follow", "mine"]);
    assert!(logs.stdout.contains("one\ntwo\n/smolcellar-prompt\ndo this\n"), "{logs:?}");
    assert_eq!(cellar.run(["logs", "mine", "--tail", "1"]).stdout, "do this\n");
    let row = json(&["ps"]);
    assert!(row["attended"] == false && row["ended"] == 5, "{row}");
    // The same name again: refused, and this one is not touched.
    let again = launched(&cellar, &["--name", "mine", "--", "/bin/true"]);
    assert!(again.code == 125 && again.stderr.contains("there is a machine mine already"), "{again:?}");
    let again = launched(&cellar, &["--detach", "--name", "mine", "--", "/bin/true"]);
    assert!(again.code == 125 && again.stdout.is_empty(), "{again:?}");
    // It is still there: run in it as the image says, and otherwise.
    assert_eq!(
        cellar.run(["exec", "mine", "--", "/bin/sh", "-c", "id -u; pwd; exit 6"]).stdout,
        "1234\n/data\n"
    );
    let exec = cellar.run([
        "exec",
        "mine",
        "-u",
        "0",
        "-w",
        "/",
        "-e",
        "A=b c",
        "--",
        "/bin/sh",
        "-c",
        "id -u; pwd; echo $A; exit 6",
    ]);
    assert_eq!((exec.code, exec.stdout.as_str()), (6, "0\n/\nb c\n"), "{exec:?}");
    let mut shell = cellar.command(["shell", "mine"]);
    let mut child = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"echo from a shell\nexit 4\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(4), &b"from a shell\n"[..]));
    // Copied in and out, a file and a folder.
    let folder = cellar.path("folder");
    std::fs::create_dir_all(folder.join("deep")).unwrap();
    std::fs::write(folder.join("deep/file"), [7; 100_000]).unwrap();
    let copy = |from: &str, to: &str| assert_eq!(cellar.run(["cp", from, to]).code, 0, "{from} {to}");
    copy(folder.to_str().unwrap(), "mine:/copied");
    copy("mine:/copied/deep/file", cellar.path("back").to_str().unwrap());
    assert_eq!(std::fs::read(cellar.path("back")).unwrap(), [7; 100_000]);
    copy("mine:/copied", cellar.path("").to_str().unwrap());
    assert!(cellar.path("copied/deep/file").is_file());
    // A link in the guest is what it leads to there, never what its target is called here.
    let linked = "ln -s /etc/hostname /tmp-link; ln -s /data/keep /data/link";
    assert_eq!(cellar.run(["exec", "mine", "-u", "0", "--", "/bin/sh", "-c", linked]).code, 0);
    copy("mine:/data/link", cellar.path("linked").to_str().unwrap());
    assert!(!cellar.path("linked").is_symlink());
    assert_eq!(std::fs::read_to_string(cellar.path("linked")).unwrap(), "kept\n");
    // Stopped: nothing runs in it, and it says so.
    assert_eq!(cellar.run(["stop", "mine"]).stdout, "mine\n");
    let refused = cellar.run(["exec", "mine", "--", "/bin/true"]);
    assert!(refused.code == 125 && refused.stderr.contains("is not running"), "{refused:?}");
    assert_eq!(cellar.run(["rm", "mine"]).stdout, "mine\n");
    assert_eq!(cellar.run(["ps"]).stdout, "no machines\n");
    assert_nothing_left(&cellar, "mine");
    for (words, said) in [
        (&["exec", "mine", "--", "x"][..], "there is no machine mine"),
        (&["cp", "a", "b"], "one of the two"),
        (&["cp", "mine:/a", "mine:/b"], "one of the two"),
        (&["cp", "/nowhere", "mine:/b"], "there is no /nowhere"),
        (&["cp", "mine:b", "x"], "must be absolute"),
        (&["logs", ""], "there is no machine"),
    ] {
        let ran = cellar.run(words);
        assert!(ran.code == 2 && ran.stderr.contains(said), "{words:?}: {ran:?}");
    }
}

#[test]
fn a_detached_launch_that_does_not_come_up_says_why_and_leaves_nothing() {
    if !have(&[Need::Docker]) {
        return;
    }
    let cellar = agent_project("nodetach", &sidecar("nodetach"));
    let _tidy = Tidy::after(&cellar, "nodetach");
    cellar.write(
        "gate/Dockerfile",
        "FROM scratch\nCOPY own agent /\nENTRYPOINT [\"/agent\", \"exit\", \"2\"]\n",
    );
    let ran = launched(&cellar, &["--detach", "--", "/agent", "echo", "never"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (125, ""), "{ran:?}");
    assert!(ran.stderr.contains("is not ready: it ended with exit code 2"), "{ran:?}");
    assert_nothing_left(&cellar, "nodetach");
    // Told to end while it waits: both halves end.
    cellar.write(
        "gate/Dockerfile",
        "FROM scratch\nCOPY own agent /\nENTRYPOINT [\"/agent\", \"sleep\", \"600\"]\n",
    );
    let mut command = launch(&cellar, &["--detach", "--", "/agent", "echo", "never"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for("sidecar", || (!left("nodetach").is_empty()).then_some(()));
    signal(&child, "-INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_nothing_left(&cellar, "nodetach");
}
