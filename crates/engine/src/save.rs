//! `save` as a stream: nothing of it is held or written down here.

use std::io::{self, Read};
use std::process::{Child, ChildStdout};
use std::thread::JoinHandle;

use smolcellar_run::{UnderWay, status_text};

use crate::error::{EngineError, Result};
use crate::follow::Tail;
use crate::parse;

/// The output of a running `save`. Dropping it early ends the command.
#[derive(Debug)]
pub struct SaveStream {
    child: Child,
    stdout: Option<ChildStdout>,
    stderr: Option<JoinHandle<Tail>>,
    command: String,
    /// Dropped after the child was waited for: see `Drop` and `finish`.
    _under_way: UnderWay,
}

impl SaveStream {
    pub(crate) fn new(
        mut child: Child,
        under_way: UnderWay,
        stderr: JoinHandle<Tail>,
        command: String,
    ) -> Self {
        let stdout = child.stdout.take();
        if let Some(stdout) = &stdout {
            // Fewer turns between the engine and us; the usual size works too.
            let _ = rustix::pipe::fcntl_setpipe_size(stdout, 1 << 20);
        }
        Self { child, stdout, stderr: Some(stderr), command, _under_way: under_way }
    }

    /// Waits for the command after its output was read; the output counts only
    /// if this succeeds.
    ///
    /// # Errors
    /// [`EngineError`] if the command failed.
    pub fn finish(mut self) -> Result<()> {
        // Closed first: a command that still writes must not wait for us.
        drop(self.stdout.take());
        let status =
            self.child.wait().map_err(|source| EngineError::Run { command: self.command.clone(), source })?;
        let output = self.stderr.take().and_then(|thread| thread.join().ok()).unwrap_or_default().text();
        if status.success() {
            return Ok(());
        }
        if let Some(said) = parse::unreachable(&output) {
            let program = self.command.split(' ').next().unwrap_or_default().to_owned();
            return Err(EngineError::Unreachable { program, said });
        }
        Err(EngineError::Failed { command: self.command.clone(), status: status_text(status), output })
    }
}

impl Read for SaveStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.stdout.as_mut().map_or(Ok(0), |stdout| stdout.read(buf))
    }
}

impl Drop for SaveStream {
    fn drop(&mut self) {
        if self.stderr.is_some() {
            // Not finished: an error elsewhere. The engine's own temporary
            // files go when its client does.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
