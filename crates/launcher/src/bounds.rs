//! How long anything may take.

use std::time::Duration;

/// The longest that each step may take.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// `create`. The first of an artifact unpacks it; the first of a sidecar's
    /// image may fetch that.
    pub create: Duration,
    /// `start`, until commands can be run.
    pub start: Duration,
    /// Until every port of a sidecar is served.
    pub sidecar: Duration,
    /// What the guest gets to end by itself. What ran in it has ended.
    pub grace: Duration,
    /// `stop`.
    pub stop: Duration,
    /// A machine's processes, after a stop, before they are killed.
    pub gone: Duration,
    /// `delete`.
    pub delete: Duration,
    /// Any question.
    pub query: Duration,
    /// Anything that a container engine is told to make. Not cut short by a
    /// signal: the engine would go on without its client, and nobody would know
    /// when what it makes is there.
    pub engine: Duration,
}

impl Default for Bounds {
    /// Wide enough for a machine that emulates virtualisation.
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            create: seconds(600),
            start: seconds(180),
            sidecar: seconds(30),
            grace: seconds(2),
            stop: seconds(8),
            gone: seconds(2),
            delete: seconds(15),
            query: seconds(10),
            engine: seconds(60),
        }
    }
}
