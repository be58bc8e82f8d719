//! How a library says what it is doing: events, never prints.

/// Something a person or a log may want to hear of.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// Waiting for a lock. Sent after two seconds and then twice a minute.
    Waiting {
        /// What is waited for.
        key: &'a str,
        /// Who has it: "pid 4711 (xtask build-agent, 3m12s)".
        holder: &'a str,
    },
    /// A task of some length begins. `total` is in bytes where it is known.
    Begin {
        /// Names the task; also names it in `Advance` and `End`.
        task: &'a str,
        /// How many bytes there will be, if known.
        total: Option<u64>,
    },
    /// `bytes` more of the task are done.
    Advance {
        /// The task.
        task: &'a str,
        /// Bytes since the last event.
        bytes: u64,
    },
    /// The task ended, well or not.
    End {
        /// The task.
        task: &'a str,
    },
    /// Something worth a line.
    Note {
        /// The line.
        text: &'a str,
    },
    /// Something worth a line that a person may want to act on.
    Warn {
        /// The line.
        text: &'a str,
    },
}

/// Receives events; called from any thread.
pub trait Reporter: Sync {
    /// Takes one event. Must not block for long: the work waits for it.
    fn report(&self, event: Event<'_>);

    /// Whether whoever waits does not want to any more. Asked many times a
    /// second while a lock is waited for.
    fn gives_up(&self) -> bool {
        false
    }
}

/// Hears nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quiet;

impl Reporter for Quiet {
    fn report(&self, _: Event<'_>) {}
}
