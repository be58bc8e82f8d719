//! Signals that end a launch.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use signal_hook::SigId;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use smolcellar_run::Cancel;

use crate::error::{LaunchError, Result};

/// Says whether a launch is to end, and why.
pub trait Interrupt: Cancel {
    /// The number of the signal that came.
    fn signal(&self) -> Option<i32>;
}

/// Remembers INT, TERM and HUP instead of dying of them.
///
/// As long as this lives, and after it, such a signal only sets a mark: a
/// second one does not cut the teardown short. The program is expected to end
/// soon after a launch.
#[derive(Debug)]
pub struct Signals {
    /// The number of the last signal; 0: none.
    last: Arc<AtomicUsize>,
    registered: Vec<SigId>,
}

impl Signals {
    /// Begins to catch.
    ///
    /// # Errors
    /// [`LaunchError::Signals`].
    pub fn catch() -> Result<Self> {
        let mut signals = Self { last: Arc::default(), registered: Vec::new() };
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            let number = usize::try_from(signal).unwrap_or(0);
            let id = signal_hook::flag::register_usize(signal, Arc::clone(&signals.last), number)
                .map_err(LaunchError::Signals)?;
            signals.registered.push(id);
        }
        Ok(signals)
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for id in self.registered.drain(..) {
            signal_hook::low_level::unregister(id);
        }
    }
}

impl Cancel for Signals {
    fn cancelled(&self) -> bool {
        self.signal().is_some()
    }
}

impl Interrupt for Signals {
    fn signal(&self) -> Option<i32> {
        i32::try_from(self.last.load(Ordering::SeqCst)).ok().filter(|signal| *signal != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caught_signal_is_remembered_and_kills_nobody() {
        let signals = Signals::catch().unwrap();
        assert_eq!((signals.signal(), signals.cancelled()), (None, false));
        for signal in [SIGHUP, SIGTERM, SIGTERM] {
            signal_hook::low_level::raise(signal).unwrap();
            assert_eq!((signals.signal(), signals.cancelled()), (Some(signal), true));
        }
    }
}
