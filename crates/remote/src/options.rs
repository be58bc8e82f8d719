//! How long a registry is waited for, and who asks.

use std::fmt;
use std::time::Duration;

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps it.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for a request's head and nothing else.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Bounds and credentials of a [`crate::Client`].
#[derive(Debug, Clone)]
pub struct Options {
    /// The longest a connection may take to be made, TLS included.
    pub connect: Duration,
    /// The longest the head of an answer may take. After an upload it may take
    /// longer by a second per 8 MiB: registries hash and move what they got.
    pub answer: Duration,
    /// The longest that a transfer may pause.
    pub idle: Duration,
    /// The least bytes per second that a transfer must make, measured over
    /// [`Options::idle`]: who sends a byte now and then is not waited for.
    pub slowest: u64,
    /// How often something is tried again without any progress.
    pub retries: u32,
    /// The longest that goes by without any progress, waiting between tries
    /// included.
    pub stuck: Duration,
    /// The longest that a look-up (a manifest, a small blob, tags, whether there
    /// is a blob) may take, with everything.
    pub lookup: Duration,
    /// The longest that the transfer of one blob may take, with everything;
    /// `None`: as long as it makes [`Options::slowest`].
    pub transfer: Option<Duration>,
    /// Who asks, where that is not to be looked up: exactly this registry gets it.
    pub login: Option<(String, Secret)>,
    /// No login is sent, of any kind and from anywhere, and none is looked for:
    /// for a registry that is spoken to in the clear because something that is
    /// not the user's own says so. What it refuses then says why.
    pub no_login: bool,
}

impl Options {
    /// Bounds made from one: how long an answer may take.
    pub fn patient(patience: Duration) -> Self {
        Self {
            connect: patience.min(Duration::from_secs(10)),
            answer: patience,
            idle: patience,
            slowest: 8 << 10,
            retries: 4,
            stuck: patience * 6,
            lookup: patience,
            transfer: None,
            login: None,
            no_login: false,
        }
    }
}

impl Default for Options {
    /// Half a minute's patience.
    fn default() -> Self {
        Self::patient(Duration::from_secs(30))
    }
}
