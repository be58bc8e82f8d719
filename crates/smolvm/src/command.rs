//! The one module of this crate that starts other programs.
//!
//! Every run is bounded: by a time limit, by the caller's wish to stop, or by
//! both. A program runs in a process group of its own unless it needs the
//! terminal, so that Ctrl-C reaches this process only, which then decides
//! what ends and in which order; and so that all a program started can be
//! ended with it.
#![expect(clippy::disallowed_methods, reason = "this module owns the start of programs")]

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use smolcellar_store::StoreError;
use xshell::Shell;

use crate::error::{Error, Result};

/// The most that a captured program may print on each stream, in bytes; it is
/// ended soon after. `ls --json` of a thousand machines is about 1 MiB.
const KEEP: u64 = 64 << 20;

/// How long a program has between being asked to end and being killed.
const GRACE: Duration = Duration::from_secs(1);

/// How long forwarded output may be waited for once the program is gone:
/// something that it left running may hold the pipe open for ever.
const DRAIN: Duration = Duration::from_millis(500);

/// What smolvm prints on stderr at every call when its file is not named
/// `smolvm`: it takes itself for a packed program without its pack.
const STRAY_NOTE: &[u8] = b"note: no packed assets found";

/// Says whether the caller still wants the result. Asked many times a second.
pub trait Cancel: Sync {
    /// Whether to stop.
    fn cancelled(&self) -> bool;
}

/// Never stops.
#[derive(Debug, Clone, Copy, Default)]
pub struct Never;

impl Cancel for Never {
    fn cancelled(&self) -> bool {
        false
    }
}

/// What bounds one run.
#[derive(Clone, Copy)]
pub struct Limits<'a> {
    /// The longest it may take; `None`: as long as it likes.
    pub timeout: Option<Duration>,
    /// Asked whether to stop early.
    pub cancel: &'a dyn Cancel,
}

impl Limits<'_> {
    /// Bounded by time alone.
    pub const fn within(timeout: Duration) -> Limits<'static> {
        Limits { timeout: Some(timeout), cancel: &Never }
    }
}

/// What a program's three streams are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecIo {
    /// No input; output comes out of ours as it is printed.
    Stream,
    /// Our input too, no terminal.
    Interactive,
    /// Our terminal: a pseudo-terminal in the guest, with resize.
    Terminal,
}

/// One program, ready to be run.
#[derive(Debug, Clone)]
pub(crate) struct Invocation {
    /// What errors call it: `smolvm machine start`.
    pub(crate) operation: String,
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<OsString>,
    pub(crate) env: Vec<(OsString, OsString)>,
}

/// What a captured run printed.
#[derive(Debug)]
pub(crate) struct Captured {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

impl Invocation {
    /// Runs it with no input and keeps what it prints.
    ///
    /// Into files, not pipes: what smolvm leaves running may hold a pipe open
    /// for ever, or die of one that nobody reads any more.
    pub(crate) fn capture(&self, limits: Limits<'_>) -> Result<Captured> {
        let mut command = self.command()?;
        let (stdout, stderr) = (Sink::new()?, Sink::new()?);
        command.stdin(Stdio::null()).stdout(stdout.handle()?).stderr(stderr.handle()?).process_group(0);
        let mut child = self.spawn(command)?;
        let status = self.wait(&mut child, limits, true, &[&stdout, &stderr])?;
        let (stdout, stderr) = (stdout.contents()?, stderr.contents()?);
        Ok(Captured { status, stdout, stderr: without_stray_note(&stderr).to_vec() })
    }

    /// Like [`Invocation::capture`]; anything but success is an error.
    pub(crate) fn succeed(&self, limits: Limits<'_>) -> Result<Captured> {
        let captured = self.capture(limits)?;
        if captured.status.success() {
            return Ok(captured);
        }
        Err(Error::Failed {
            operation: self.operation.clone(),
            status: captured.status,
            stderr: tail(&captured.stderr),
        })
    }

    /// Runs it with our streams and returns its exit code; 128 + n when signal
    /// n ended it.
    pub(crate) fn stream(&self, io: ExecIo, limits: Limits<'_>) -> Result<i32> {
        let mut command = self.command()?;
        let own_group = io == ExecIo::Stream;
        if own_group {
            // Not for the other two: a program in another process group than
            // the terminal's foreground one is stopped when it reads from it.
            command.process_group(0);
        }
        command.stdin(if own_group { Stdio::null() } else { Stdio::inherit() }).stdout(Stdio::inherit());
        let filter = io != ExecIo::Terminal && prints_stray_note(&self.program);
        command.stderr(if filter { Stdio::piped() } else { Stdio::inherit() });
        let mut child = self.spawn(command)?;
        let forwarded = child.stderr.take().map(|pipe| forward(pipe, io::stderr()));
        let status = self.wait(&mut child, limits, own_group, &[])?;
        forwarded.map(|done| done.recv_timeout(DRAIN));
        Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
    }

    /// The only place where a command line is made.
    fn command(&self) -> Result<Command> {
        let failed = |error: xshell::Error| self.cannot_spawn(io::Error::other(error.to_string()));
        let shell = Shell::new().map_err(failed)?;
        let command = shell
            .cmd(&self.program)
            .args(&self.args)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            // Messages are parsed and shown: keep them in one language and
            // without colours.
            .env("LC_ALL", "C")
            .env("NO_COLOR", "1");
        Ok(command.into())
    }

    fn spawn(&self, mut command: Command) -> Result<Child> {
        // A file that was just written is "busy" while any other thread's
        // child, between fork and exec, still has it open for writing.
        for _ in 0..20 {
            match command.spawn() {
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                result => return result.map_err(|source| self.cannot_spawn(source)),
            }
        }
        command.spawn().map_err(|source| self.cannot_spawn(source))
    }

    fn cannot_spawn(&self, source: io::Error) -> Error {
        Error::Spawn { program: self.program.clone(), source }
    }

    fn wait(
        &self,
        child: &mut Child,
        limits: Limits<'_>,
        own_group: bool,
        sinks: &[&Sink],
    ) -> Result<ExitStatus> {
        let began = Instant::now();
        loop {
            if let Some(status) = child.try_wait().map_err(|source| self.cannot_spawn(source))? {
                return Ok(status);
            }
            if limits.cancel.cancelled() {
                end(child, own_group);
                return Err(Error::Cancelled { operation: self.operation.clone() });
            }
            let elapsed = began.elapsed();
            if let Some(limit) = limits.timeout.filter(|limit| elapsed >= *limit) {
                end(child, own_group);
                return Err(Error::TimedOut { operation: self.operation.clone(), limit });
            }
            if sinks.iter().any(|sink| sink.is_full()) {
                end(child, own_group);
                let problem = format!("it is longer than {KEEP} bytes");
                return Err(Error::Output { operation: self.operation.clone(), problem });
            }
            std::thread::sleep(pause(elapsed));
        }
    }
}

/// How long to sleep before looking again: a sixteenth of the time already
/// spent, so that a short command is noticed at once and a long one is cheap.
pub(crate) fn pause(elapsed: Duration) -> Duration {
    (elapsed / 16).clamp(Duration::from_micros(300), Duration::from_millis(50))
}

/// Asks the program to end, then makes it.
fn end(child: &mut Child, own_group: bool) {
    signal(child, own_group, Signal::TERM);
    if !gone(child, GRACE) {
        signal(child, own_group, Signal::KILL);
        // Bounded too: a process in an uninterruptible call dies later.
        gone(child, GRACE);
    }
}

fn signal(child: &Child, own_group: bool, signal: Signal) {
    let pid = Pid::from_child(child);
    // Failing means that it is gone already, which is what is wanted.
    let _ = if own_group { kill_process_group(pid, signal) } else { kill_process(pid, signal) };
}

fn gone(child: &mut Child, within: Duration) -> bool {
    let began = Instant::now();
    while began.elapsed() < within {
        if !matches!(child.try_wait(), Ok(None)) {
            return true;
        }
        std::thread::sleep(pause(began.elapsed()));
    }
    false
}

/// A nameless file that takes what a program prints.
struct Sink(File);

impl Sink {
    fn new() -> Result<Self> {
        let dir = std::env::temp_dir();
        Ok(Self(tempfile::tempfile().map_err(StoreError::io("create a temporary file in", dir))?))
    }

    /// What the program writes to.
    fn handle(&self) -> Result<File> {
        Ok(self.0.try_clone().map_err(Self::failed)?)
    }

    fn is_full(&self) -> bool {
        self.0.metadata().is_ok_and(|metadata| metadata.len() > KEEP)
    }

    fn contents(&self) -> Result<Vec<u8>> {
        let mut file = &self.0;
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0)).map_err(Self::failed)?;
        file.take(KEEP).read_to_end(&mut bytes).map_err(Self::failed)?;
        Ok(bytes)
    }

    fn failed(error: io::Error) -> StoreError {
        StoreError::io("use a temporary file in", std::env::temp_dir())(error)
    }
}

/// Passes a pipe on but for the stray note, on a thread of its own; told at
/// its end.
fn forward(mut pipe: impl Read + Send + 'static, mut to: io::Stderr) -> Receiver<()> {
    let (sender, done) = mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 8192];
        let mut filter = NoteFilter::default();
        while let Ok(length @ 1..) = pipe.read(&mut buffer) {
            // Our stderr may be closed; the guest's run goes on.
            let _ = to.write_all(filter.pass(buffer.get(..length).unwrap_or_default()));
        }
        let _ = to.write_all(filter.rest());
        let _ = sender.send(());
    });
    done
}

/// Drops the first line of a stream if it is the stray note. Holds bytes back
/// only while they may still become the note.
#[derive(Default)]
struct NoteFilter {
    decided: bool,
    dropping: bool,
    held: Vec<u8>,
}

impl NoteFilter {
    fn pass<'a>(&'a mut self, bytes: &'a [u8]) -> &'a [u8] {
        if self.decided {
            return bytes;
        }
        self.held.extend_from_slice(bytes);
        if !self.dropping {
            let shared = self.held.len().min(STRAY_NOTE.len());
            if self.held.get(..shared) != STRAY_NOTE.get(..shared) {
                self.decided = true;
                return &self.held;
            }
            self.dropping = shared == STRAY_NOTE.len();
        }
        let end = self.held.iter().position(|byte| *byte == b'\n').filter(|_| self.dropping);
        match end {
            Some(end) => {
                self.decided = true;
                self.held.get(end + 1..).unwrap_or_default()
            }
            None => &[],
        }
    }

    /// What is still held at the end of the stream and is no note.
    fn rest(&self) -> &[u8] {
        if self.decided || self.dropping { &[] } else { &self.held }
    }
}

fn without_stray_note(stderr: &[u8]) -> &[u8] {
    if !stderr.starts_with(STRAY_NOTE) {
        return stderr;
    }
    let end = stderr.iter().position(|byte| *byte == b'\n').map_or(stderr.len(), |end| end + 1);
    stderr.get(end..).unwrap_or_default()
}

/// smolvm goes by the name of its file; these two are a plain install to it.
fn prints_stray_note(program: &Path) -> bool {
    !matches!(program.file_stem().and_then(OsStr::to_str), Some("smolvm" | "smolvm-bin"))
}

/// The end of a message, without the space around it.
pub(crate) fn tail(message: &[u8]) -> String {
    const SHOWN: usize = 4096;
    let start = message.len().saturating_sub(SHOWN);
    String::from_utf8_lossy(message.get(start..).unwrap_or_default()).trim().to_owned()
}

#[cfg(test)]
#[path = "command_tests.rs"]
mod tests;
