//! The sample agent: says where it runs, and does small things on request, so
//! that a person and the tests can see what a guest is.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

const HELP: &str = "\
sample agent
  (nothing)        say where it runs
  env              print the environment, sorted
  id               print user, group, working folder and arguments
  cat FILE         print a file
  exit CODE        exit with a code
  echo WORD...     print words
  sleep SECONDS    say so, and sleep
  connect A:P...   say which addresses answer; fail if one does not
  serve PORT [IP]  answer on a port, of every address or of one, for ever";

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
        ["connect", addresses @ ..] => return connect(addresses),
        ["serve", port] => return serve(port, "0.0.0.0"),
        ["serve", port, address] => return serve(port, address),
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
    std::thread::sleep(Duration::from_secs(seconds.parse().unwrap_or(0)));
}

/// How long an address has to answer. A packet that is dropped never does.
const ANSWER: Duration = Duration::from_secs(10);

fn connect(addresses: &[&str]) -> ExitCode {
    let mut all = true;
    for address in addresses {
        match answer(address) {
            Ok(text) => say(&format!("{address}: {}", text.trim_end())),
            Err(error) => {
                say(&format!("{address}: no answer: {error}"));
                all = false;
            }
        }
    }
    if all { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What is said there. A connection alone proves nothing: something on the way
/// may accept it and then hang up.
fn answer(address: &str) -> std::io::Result<String> {
    let address = address.parse::<SocketAddr>().map_err(std::io::Error::other)?;
    let mut stream = TcpStream::connect_timeout(&address, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    if text.is_empty() { Err(std::io::Error::other("it hung up")) } else { Ok(text) }
}

fn serve(port: &str, address: &str) -> ExitCode {
    let port_number = port.parse::<u16>().map_err(std::io::Error::other);
    let listener = port_number.and_then(|port| TcpListener::bind((address, port)));
    match listener {
        Ok(listener) => {
            say(&format!("serving on port {port}"));
            for mut stream in listener.incoming().flatten() {
                let _ = stream.write_all(b"hello from the sample agent\n");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            complain(&format!("port {port}: {error}"));
            ExitCode::FAILURE
        }
    }
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
