//! Ctrl-C, TERM and HUP outside of a launch: what was started is ended first.
//! What was written stays in its temporary folder, which the next run removes.

use std::thread::JoinHandle;

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

/// Ends the programs under way, and then this one, when a signal comes. Until
/// it is dropped.
pub(crate) struct EndChildren {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

impl EndChildren {
    pub(crate) fn on_signals() -> Result<Self> {
        let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM]).context("cannot catch signals")?;
        let handle = signals.handle();
        let thread = std::thread::spawn(move || {
            for signal in signals.forever() {
                smolcellar_run::end_all();
                // As if nobody had caught it: whoever waits sees why we ended.
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
        });
        Ok(Self { handle, thread: Some(thread) })
    }
}

impl Drop for EndChildren {
    fn drop(&mut self) {
        self.handle.close();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
