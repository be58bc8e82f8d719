//! The programs under way, so that whoever is told to end can end them first.
//!
//! Each has a process group of its own: a signal from the terminal reaches
//! this process alone, which then ends all that a program has started.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::{Mutex, PoisonError};

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};

static UNDER_WAY: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// Counts a program among those under way until it is dropped, which must be
/// after the program was waited for: its number is nobody else's until then.
#[derive(Debug)]
pub struct UnderWay(Pid);

impl UnderWay {
    /// Ends it with all it has started: asks, and after a second makes it.
    pub fn end(&self, child: &mut Child) {
        // Failing means that it is gone already.
        let _ = kill_process_group(self.0, Signal::TERM);
        let began = std::time::Instant::now();
        while began.elapsed() < std::time::Duration::from_secs(1) {
            if !matches!(child.try_wait(), Ok(None)) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let _ = kill_process_group(self.0, Signal::KILL);
        let _ = child.wait();
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner).retain(|pid| *pid != self.0);
    }
}

/// Starts a program in a process group of its own.
///
/// # Errors
/// If it cannot be started.
pub fn spawn(command: &mut Command) -> std::io::Result<(Child, UnderWay)> {
    let mut under_way = UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner);
    let child = command.process_group(0).spawn()?;
    let pid = Pid::from_child(&child);
    under_way.push(pid);
    Ok((child, UnderWay(pid)))
}

/// Ends every program that is under way, with all that those have started: asks,
/// and after a second makes them. Not those that have this process's terminal,
/// which hear of its signals themselves. Somebody else must go on waiting for them.
pub fn end_all() {
    signal_all(Signal::TERM);
    let began = std::time::Instant::now();
    while any() && began.elapsed() < std::time::Duration::from_secs(1) {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    signal_all(Signal::KILL);
}

fn signal_all(signal: Signal) {
    for pid in UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        // Failing means that it is gone already.
        let _ = kill_process_group(*pid, signal);
    }
}

/// Whether there is anything of them, be it a program that ended and was not
/// waited for yet.
fn any() -> bool {
    let under_way = UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner);
    under_way.iter().any(|pid| test_kill_process_group(*pid).is_ok())
}
