//! What a test needs of the machine. Missing on a laptop: the test skips with
//! a visible line. Missing with `CI=true`: the test fails.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Something that a machine may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// A container engine that answers.
    Docker,
    /// A program on PATH, or where Debian keeps system programs.
    Program(&'static str),
    /// To be root, for mounts.
    Root,
}

/// Whether all of it is there; if not, says so.
///
/// # Panics
/// With `CI=true`, if something is missing.
pub fn have(needs: &[Need]) -> bool {
    let missing: Vec<String> =
        needs.iter().filter(|need| !is_met(**need)).map(|need| format!("{need:?}")).collect();
    if missing.is_empty() {
        return true;
    }
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let line = format!("SKIPPED {test}: this machine lacks {}", missing.join(", "));
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{line}; with CI=true nothing may be skipped");
    // Not by a print macro: the test runner would swallow the line.
    let _ = writeln!(std::io::stderr(), "{line}");
    false
}

fn is_met(need: Need) -> bool {
    match need {
        Need::Docker => succeeds(Command::new("docker").arg("info")),
        Need::Program(name) => which(name).is_some(),
        Need::Root => succeeds(Command::new("sh").args(["-c", "test $(id -u) = 0"])),
    }
}

fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

/// Where a program is.
pub fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|dir| dir.join(program)).find(|path| path.is_file())
}
