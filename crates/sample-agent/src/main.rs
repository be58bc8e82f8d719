//! The sample agent: says where it runs, and does small things on request, so
//! that a person and the tests can see what a guest is.

use std::io::Read;
use std::process::ExitCode;

const HELP: &str = "\
sample agent
  (nothing)        say where it runs
  env              print the environment, sorted
  id               print user, group, working folder and arguments
  cat FILE         print a file
  exit CODE        exit with a code
  echo WORD...     print words
  sleep SECONDS    say so, and sleep";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        [] => hello(),
        ["env"] => env(),
        ["id", ..] => id(&args),
        ["cat", path] => return cat(path),
        ["exit", code] => return exit(code),
        ["echo", rest @ ..] => say(&rest.join(" ")),
        ["sleep", seconds] => sleep(seconds),
        _ => {
            complain(HELP);
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

fn hello() {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    say(&format!("hello from the sample agent: Linux {}, pid {}", kernel.trim(), std::process::id()));
}

fn env() {
    let mut all: Vec<String> = std::env::vars_os()
        .map(|(k, v)| format!("{}={}", k.to_string_lossy(), v.to_string_lossy()))
        .collect();
    all.sort();
    all.iter().for_each(|pair| say(pair));
}

fn id(args: &[String]) {
    use std::os::unix::fs::MetadataExt;
    // Our own process's folder belongs to our effective user and group.
    let (uid, gid) = std::fs::metadata("/proc/self").map_or((u32::MAX, u32::MAX), |m| (m.uid(), m.gid()));
    let here = std::env::current_dir().map_or_else(|e| e.to_string(), |dir| dir.display().to_string());
    say(&format!("uid={uid} gid={gid} cwd={here} args={args:?}"));
}

fn cat(path: &str) -> ExitCode {
    let mut bytes = Vec::new();
    match std::fs::File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)) {
        Ok(_) => {
            use std::io::Write;
            let _ = std::io::stdout().write_all(&bytes);
            ExitCode::SUCCESS
        }
        Err(error) => {
            complain(&format!("{path}: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn sleep(seconds: &str) {
    say(&format!("sleeping for {seconds} s"));
    std::thread::sleep(std::time::Duration::from_secs(seconds.parse().unwrap_or(0)));
}

fn exit(code: &str) -> ExitCode {
    match code.parse::<u8>() {
        Ok(code) => ExitCode::from(code),
        Err(_) => {
            complain(&format!("'{code}' is no exit code"));
            ExitCode::from(2)
        }
    }
}

#[expect(clippy::print_stdout, reason = "an agent's output")]
fn say(text: &str) {
    println!("{text}");
}

#[expect(clippy::print_stderr, reason = "an agent's complaints")]
fn complain(text: &str) {
    eprintln!("{text}");
}
