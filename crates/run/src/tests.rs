use super::*;
use std::sync::atomic::{AtomicBool, Ordering};

fn sh(script: &str) -> Invocation {
    Invocation {
        operation: "sh".into(),
        program: "sh".into(),
        args: vec!["-c".into(), script.into()],
        env: vec![("GIVEN".into(), "yes".into())],
        stray: None,
    }
}

const SOON: Limits<'static> = Limits::within(Duration::from_secs(20));

#[test]
fn output_is_captured_and_the_environment_given() {
    let captured = sh("echo $GIVEN $LC_ALL; echo bad >&2; exit 3").capture(SOON).unwrap();
    assert_eq!(captured.stdout, b"yes C\n");
    assert_eq!(captured.stderr, b"bad\n");
    assert_eq!(captured.status.code(), Some(3));
}

#[test]
fn a_failure_carries_the_exit_code_and_stderr() {
    let error = sh("echo no such thing >&2; exit 7").succeed(SOON).unwrap_err().to_string();
    assert!(error.contains("exit code 7") && error.contains("no such thing"), "{error}");
}

#[test]
fn a_program_that_hangs_is_killed_with_all_it_started() {
    let dir = tempfile::tempdir().unwrap();
    let pid_file = dir.path().join("pid");
    // Neither reacts to a polite request.
    let script = format!(
        "trap '' TERM; (trap '' TERM; echo $BASHPID; exec sleep 600) & echo $! > {}; wait",
        pid_file.display()
    );
    let began = Instant::now();
    let error = sh(&script).capture(Limits::within(Duration::from_millis(300))).unwrap_err();
    assert!(matches!(error, RunError::TimedOut { .. }), "{error}");
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    let pid: i32 = std::fs::read_to_string(pid_file).unwrap().trim().parse().unwrap();
    let left =
        || std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
    let deadline = Instant::now() + Duration::from_secs(2);
    while left() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(!left(), "process {pid} outlived its group");
}

#[test]
fn a_cancelled_run_ends_early() {
    struct Flag(AtomicBool);
    impl Cancel for Flag {
        fn cancelled(&self) -> bool {
            self.0.swap(true, Ordering::Relaxed)
        }
    }
    let flag = Flag(AtomicBool::new(false));
    let began = Instant::now();
    let error = sh("sleep 600").capture(Limits { timeout: None, cancel: &flag }).unwrap_err();
    assert!(matches!(error, RunError::Cancelled { .. }), "{error}");
    assert!(began.elapsed() < Duration::from_secs(3));
}

#[test]
fn a_stream_held_open_by_a_daemon_does_not_hold_up_the_result() {
    let began = Instant::now();
    let captured = sh("sleep 5 & echo started").capture(SOON).unwrap();
    assert_eq!(captured.stdout, b"started\n");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[test]
fn endless_output_ends_the_program_not_the_disk() {
    let began = Instant::now();
    let error = sh("exec cat /dev/zero").capture(SOON).unwrap_err();
    assert!(matches!(error, RunError::Output { .. }), "{error}");
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn what_is_fed_arrives_and_a_reader_that_goes_away_is_judged_by_its_exit_code() {
    let captured = sh("cat").feed(SOON, |to| to.write_all(&[7; 300_000])).unwrap();
    assert_eq!(captured.stdout, [7; 300_000]);
    let endless = |to: &mut ChildStdin| -> io::Result<()> {
        loop {
            to.write_all(&[7; 4096])?;
        }
    };
    assert!(sh("head -c 3 > /dev/null").feed(SOON, endless).is_ok());
    let error = sh("head -c 3 > /dev/null; echo why >&2; exit 2").feed(SOON, endless).unwrap_err();
    assert!(matches!(error, RunError::Failed { .. }) && error.to_string().contains("why"), "{error}");
    let error = sh("sleep 600").feed(Limits::within(Duration::from_millis(100)), endless).unwrap_err();
    assert!(matches!(error, RunError::TimedOut { .. }), "{error}");
}

#[test]
fn an_input_that_breaks_off_is_never_taken_for_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    let script = format!("cat > /dev/null && touch {}", whole.display());
    let error = sh(&script).feed(SOON, |_| Err(io::Error::other("broken off"))).unwrap_err();
    assert!(matches!(error, RunError::Input { .. }) && error.to_string().contains("broken off"), "{error}");
    assert!(!whole.exists());
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let absent = Invocation { program: "/nonexistent/smolvm".into(), ..sh("") };
    let error = absent.capture(SOON).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/smolvm"), "{error}");
}

#[test]
fn exit_codes_and_signals_of_a_streamed_run_come_through() {
    assert_eq!(sh("exit 42").stream(ExecIo::Stream, SOON).unwrap(), 42);
    assert_eq!(sh("kill -TERM $$").stream(ExecIo::Stream, SOON).unwrap(), 143);
}
