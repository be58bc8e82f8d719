//! Running a program whose output people may want to follow.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The longest line kept whole, in bytes; what is longer is no line, and is cut.
const LONGEST: u64 = 1 << 20;

/// How long output is waited for once the program is gone: something that it
/// left running may hold the pipe open for ever.
const DRAIN: Duration = Duration::from_millis(500);

/// The last lines of an output: enough to see why, bounded whatever it is.
#[derive(Debug, Default)]
pub struct Tail(VecDeque<String>);

impl Tail {
    const LINES: usize = 60;

    fn push(&mut self, line: String) {
        if self.0.len() == Self::LINES {
            self.0.pop_front();
        }
        self.0.push_back(line);
    }

    /// The lines as one text.
    pub fn text(self) -> String {
        Vec::from(self.0).join("\n").trim_end().to_owned()
    }
}

/// Runs `command` with both its streams as one; every line goes to `line` as
/// it comes, and the last of them are returned.
///
/// # Errors
/// If it cannot be started or waited for.
pub fn follow(command: Command, line: &dyn Fn(&str)) -> io::Result<(ExitStatus, Tail)> {
    follow_unless(command, line, &|| false)
}

/// The same, ended with all it has started as soon as `give_up` says so.
///
/// # Errors
/// As [`follow`], and of kind `Interrupted` when it was ended.
pub(crate) fn follow_unless(
    mut command: Command,
    line: &dyn Fn(&str),
    give_up: &dyn Fn() -> bool,
) -> io::Result<(ExitStatus, Tail)> {
    let (reader, writer) = io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let (mut child, under_way) = smolcellar_run::spawn(&mut command)?;
    // It holds our ends of the pipe, which would never close.
    drop(command);
    let (sender, lines) = mpsc::channel();
    let reading = collect(Some(reader), move |line| drop(sender.send(line.to_owned())));
    let mut ended: Option<(ExitStatus, Instant)> = None;
    let mut tail = Tail::default();
    loop {
        let received = lines.recv_timeout(Duration::from_millis(20));
        if ended.is_none() && !matches!(received, Err(RecvTimeoutError::Disconnected)) {
            ended = child.try_wait()?.map(|status| (status, Instant::now()));
        }
        match received {
            Ok(text) => {
                line(&text);
                tail.push(text);
            }
            Err(RecvTimeoutError::Disconnected) => {
                drop(reading.join());
                break;
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        if ended.is_none() && give_up() {
            under_way.end(&mut child);
            return Err(io::Error::new(io::ErrorKind::Interrupted, "it was interrupted, or took too long"));
        }
        // Whatever still prints by now was left running.
        if ended.is_some_and(|(_, at)| at.elapsed() > DRAIN) {
            break;
        }
    }
    match ended {
        Some((status, _)) => Ok((status, tail)),
        None => child.wait().map(|status| (status, tail)),
    }
}

/// Reads lines on a thread of its own until the other end closes.
pub(crate) fn collect<R: Read + Send + 'static>(
    stream: Option<R>,
    line: impl Fn(&str) + Send + 'static,
) -> JoinHandle<Tail> {
    std::thread::spawn(move || {
        let mut tail = Tail::default();
        let Some(stream) = stream else { return tail };
        let mut reader = BufReader::new(stream);
        let mut bytes = Vec::new();
        while matches!(reader.by_ref().take(LONGEST).read_until(b'\n', &mut bytes), Ok(n) if n > 0) {
            let text = String::from_utf8_lossy(&bytes);
            let text = text.trim_end();
            line(text);
            tail.push(text.to_owned());
            bytes.clear();
        }
        tail
    })
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "runs a shell")]
mod tests {
    use super::*;
    use std::cell::RefCell;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn both_streams_come_as_one_in_order() {
        let seen = RefCell::new(Vec::new());
        let line = |text: &str| seen.borrow_mut().push(text.to_owned());
        let (status, tail) = follow(sh("echo a; echo b >&2; echo c; exit 3"), &line).unwrap();
        assert_eq!((status.code(), tail.text().as_str()), (Some(3), "a\nb\nc"));
        assert_eq!(*seen.borrow(), ["a", "b", "c"]);
    }

    #[test]
    fn what_a_program_leaves_running_is_not_waited_for() {
        let began = Instant::now();
        let (status, tail) = follow(sh("echo a; sleep 30 & exit 0"), &|_| {}).unwrap();
        assert!(status.success() && began.elapsed() < Duration::from_secs(20));
        assert_eq!(tail.text(), "a");
        let (status, _) = follow(sh("(while :; do echo b; sleep 0.01; done) & exit 0"), &|_| {}).unwrap();
        assert!(status.success() && began.elapsed() < Duration::from_secs(25));
    }

    #[test]
    fn who_gives_up_ends_it_with_all_it_started() {
        let began = Instant::now();
        let give_up = || began.elapsed() > Duration::from_millis(200);
        let stubborn = "trap '' TERM; (trap '' TERM; sleep 300) & while :; do sleep 0.1; done";
        let error = follow_unless(sh(stubborn), &|_| {}, &give_up).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
        assert!(began.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn only_the_last_lines_of_a_long_output_are_kept() {
        let (_, tail) = follow(sh("seq 1 1000"), &|_| {}).unwrap();
        let text = tail.text();
        assert!(text.ends_with("\n1000") && text.lines().count() == Tail::LINES);
    }
}
