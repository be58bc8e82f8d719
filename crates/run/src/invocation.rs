//! One run of a program.
//!
//! Every run is bounded: by a time limit, by the caller's wish to stop, or by
//! both. A program runs in a process group of its own unless it needs the
//! terminal, so that Ctrl-C reaches this process only, which then decides
//! what ends and in which order; and so that all a program started can be
//! ended with it.
#![expect(
    clippy::disallowed_methods,
    reason = "this module starts programs for the crates that make their command lines"
)]

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use xshell::Shell;

use crate::children::{self, UnderWay};
use crate::error::{Result, RunError, tail};
use crate::first_line::{DropFirstLine, without_first_line};

/// The most that a captured program may print on each stream, in bytes; it is
/// ended soon after. `ls --json` of a thousand machines is about 1 MiB.
const KEEP: u64 = 64 << 20;

/// How long a program has between being asked to end and being killed.
const GRACE: Duration = Duration::from_secs(1);

/// How long forwarded output may be waited for once the program is gone:
/// something that it left running may hold the pipe open for ever.
const DRAIN: Duration = Duration::from_millis(500);

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
pub struct Invocation {
    /// What errors call it: `smolvm machine start`.
    pub operation: String,
    /// The program: a path, or a name to be looked for on PATH.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Added to its environment.
    pub env: Vec<(OsString, OsString)>,
    /// If the first line on stderr begins like this, it is dropped.
    pub stray: Option<&'static [u8]>,
}

/// What a captured run printed.
#[derive(Debug)]
pub struct Captured {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed on stdout.
    pub stdout: Vec<u8>,
    /// What it printed on stderr.
    pub stderr: Vec<u8>,
}

impl Invocation {
    /// Runs it with no input and keeps what it prints.
    ///
    /// Into files, not pipes: what it leaves running may hold a pipe open for
    /// ever, or die of one that nobody reads any more.
    ///
    /// # Errors
    /// [`RunError`], but never [`RunError::Failed`].
    pub fn capture(&self, limits: Limits<'_>) -> Result<Captured> {
        let (sinks, mut child, _under_way) = self.captured_child(Stdio::null())?;
        let status = self.wait(&mut child, limits, true, &sinks)?;
        self.captured(status, &sinks)
    }

    /// Like [`Invocation::succeed`], with what `write` writes as its input.
    ///
    /// # Errors
    /// [`RunError`]; [`RunError::Input`] if `write` fails for a reason of its
    /// own. The program is then ended before it sees the end of its input, so
    /// that it does not take a part for the whole.
    pub fn feed(
        &self,
        limits: Limits<'_>,
        write: impl FnOnce(&mut ChildStdin) -> io::Result<()> + Send,
    ) -> Result<Captured> {
        self.check(self.converse(limits, write)?)
    }

    /// Like [`Invocation::feed`], for programs that say on stdout why they fail:
    /// however it ended, what it printed is there.
    ///
    /// # Errors
    /// [`RunError`], but never [`RunError::Failed`].
    pub fn converse(
        &self,
        limits: Limits<'_>,
        write: impl FnOnce(&mut ChildStdin) -> io::Result<()> + Send,
    ) -> Result<Captured> {
        let (sinks, mut child, _under_way) = self.captured_child(Stdio::piped())?;
        let pipe = child.stdin.take();
        let broken = AtomicBool::new(false);
        let stop = Either(limits.cancel, &broken);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let Some(mut pipe) = pipe else { return (Ok(()), None) };
                let result = write(&mut pipe);
                // A reader that has enough, or is gone, says itself why.
                let result = result.or_else(|error| match error.kind() {
                    io::ErrorKind::BrokenPipe => Ok(()),
                    _ => Err(error),
                });
                match result {
                    Ok(()) => (Ok(()), None),
                    Err(error) => {
                        broken.store(true, Ordering::SeqCst);
                        (Err(error), Some(pipe))
                    }
                }
            });
            let status =
                self.wait(&mut child, Limits { timeout: limits.timeout, cancel: &stop }, true, &sinks);
            // Ended, the child reads no more, and the writer hears of it.
            if let Ok((Err(source), _)) = writer.join() {
                return Err(RunError::Input { operation: self.operation.clone(), source });
            }
            self.captured(status?, &sinks)
        })
    }

    fn captured_child(&self, stdin: Stdio) -> Result<([Sink; 2], Child, Option<UnderWay>)> {
        let mut command = self.command()?;
        let sinks = [Sink::new()?, Sink::new()?];
        let [stdout, stderr] = &sinks;
        command.stdin(stdin).stdout(stdout.handle()?).stderr(stderr.handle()?);
        let (child, under_way) = self.spawn(command, true)?;
        Ok((sinks, child, under_way))
    }

    fn captured(&self, status: ExitStatus, sinks: &[Sink; 2]) -> Result<Captured> {
        let [stdout, stderr] = sinks;
        let (stdout, mut stderr) = (stdout.contents()?, stderr.contents()?);
        if let Some(stray) = self.stray {
            stderr = without_first_line(stray, &stderr).to_vec();
        }
        Ok(Captured { status, stdout, stderr })
    }

    /// Like [`Invocation::capture`]; anything but success is an error.
    ///
    /// # Errors
    /// [`RunError`].
    pub fn succeed(&self, limits: Limits<'_>) -> Result<Captured> {
        self.check(self.capture(limits)?)
    }

    fn check(&self, captured: Captured) -> Result<Captured> {
        if captured.status.success() {
            return Ok(captured);
        }
        Err(RunError::Failed {
            operation: self.operation.clone(),
            status: captured.status,
            stderr: tail(&captured.stderr),
        })
    }

    /// Runs it with our streams and returns its exit code; 128 + n when signal
    /// n ended it.
    ///
    /// # Errors
    /// [`RunError`], but never [`RunError::Failed`].
    pub fn stream(&self, io: ExecIo, limits: Limits<'_>) -> Result<i32> {
        let mut command = self.command()?;
        // Not for the other two: a program in another process group than the
        // terminal's foreground one is stopped when it reads from it.
        let own_group = io == ExecIo::Stream;
        command.stdin(if own_group { Stdio::null() } else { Stdio::inherit() }).stdout(Stdio::inherit());
        let stray = self.stray.filter(|_| io != ExecIo::Terminal);
        command.stderr(if stray.is_some() { Stdio::piped() } else { Stdio::inherit() });
        let (mut child, _under_way) = self.spawn(command, own_group)?;
        let forwarded =
            child.stderr.take().map(|pipe| forward(pipe, io::stderr(), stray.unwrap_or_default()));
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

    /// Starts it, in a process group of its own unless it needs the terminal.
    fn spawn(&self, mut command: Command, own_group: bool) -> Result<(Child, Option<UnderWay>)> {
        let mut start = || match own_group {
            true => children::spawn(&mut command).map(|(child, under_way)| (child, Some(under_way))),
            false => command.spawn().map(|child| (child, None)),
        };
        // A file that was just written is "busy" while any other thread's
        // child, between fork and exec, still has it open for writing.
        for _ in 0..20 {
            match start() {
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                result => return result.map_err(|source| self.cannot_spawn(source)),
            }
        }
        start().map_err(|source| self.cannot_spawn(source))
    }

    fn cannot_spawn(&self, source: io::Error) -> RunError {
        RunError::Spawn { program: self.program.clone(), source }
    }

    fn wait(
        &self,
        child: &mut Child,
        limits: Limits<'_>,
        own_group: bool,
        sinks: &[Sink],
    ) -> Result<ExitStatus> {
        let began = Instant::now();
        loop {
            if let Some(status) = child.try_wait().map_err(|source| self.cannot_spawn(source))? {
                return Ok(status);
            }
            if limits.cancel.cancelled() {
                end(child, own_group);
                return Err(RunError::Cancelled { operation: self.operation.clone() });
            }
            let elapsed = began.elapsed();
            if let Some(limit) = limits.timeout.filter(|limit| elapsed >= *limit) {
                end(child, own_group);
                let printed = sinks.get(1).and_then(|sink| sink.contents().ok()).unwrap_or_default();
                let stderr = match self.stray {
                    Some(stray) => tail(without_first_line(stray, &printed)),
                    None => tail(&printed),
                };
                return Err(RunError::TimedOut { operation: self.operation.clone(), limit, stderr });
            }
            if sinks.iter().any(Sink::is_full) {
                end(child, own_group);
                let problem = format!("it is longer than {KEEP} bytes");
                return Err(RunError::Output { operation: self.operation.clone(), problem });
            }
            std::thread::sleep(pause(elapsed));
        }
    }
}

/// How long to sleep before looking again: a sixteenth of the time already
/// spent, so that a short command is noticed at once and a long one is cheap.
pub fn pause(elapsed: Duration) -> Duration {
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
        tempfile::tempfile().map(Self).map_err(Self::failed)
    }

    /// What the program writes to.
    fn handle(&self) -> Result<File> {
        self.0.try_clone().map_err(Self::failed)
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

    fn failed(source: io::Error) -> RunError {
        RunError::Scratch { dir: std::env::temp_dir(), source }
    }
}

/// Either reason to stop.
struct Either<'a>(&'a dyn Cancel, &'a AtomicBool);

impl Cancel for Either<'_> {
    fn cancelled(&self) -> bool {
        self.0.cancelled() || self.1.load(Ordering::SeqCst)
    }
}

/// Passes a pipe on but for its stray first line, on a thread of its own; told
/// at its end.
fn forward(mut pipe: impl Read + Send + 'static, mut to: io::Stderr, stray: &'static [u8]) -> Receiver<()> {
    let (sender, done) = mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 8192];
        let mut filter = DropFirstLine::new(stray);
        while let Ok(length @ 1..) = pipe.read(&mut buffer) {
            // Our stderr may be closed; the guest's run goes on.
            let _ = to.write_all(filter.pass(buffer.get(..length).unwrap_or_default()));
        }
        let _ = to.write_all(filter.rest());
        let _ = sender.send(());
    });
    done
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
