//! Why something could not be had from a registry, or given to it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use smolcellar_store::{Digest, StoreError};

/// This crate's result.
pub type Result<T, E = RemoteError> = std::result::Result<T, E>;

/// Dealing with a registry failed. What registries say in it is clipped, and
/// holds no control characters and no secrets.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// There is no connection.
    #[error("cannot reach {registry}: {problem}")]
    Unreachable {
        /// Who.
        registry: String,
        /// Why not.
        problem: String,
    },
    /// The two do not agree on TLS.
    #[error(
        "cannot speak TLS with {registry}: {problem}; if its certificate is of an authority of your own, name the \
         authority's file in SSL_CERT_FILE; if it speaks plain HTTP, write http://{registry}/…"
    )]
    Tls {
        /// Who.
        registry: String,
        /// Why not.
        problem: String,
    },
    /// It answers, but not fast enough to wait for.
    #[error("{registry} is too slow: {problem} ({what})")]
    TooSlow {
        /// Who.
        registry: String,
        /// What was asked for.
        what: String,
        /// What took too long.
        problem: String,
    },
    /// The connection ended too early.
    #[error("the connection to {registry} broke ({what}): {problem}")]
    Cut {
        /// Who.
        registry: String,
        /// What was under way.
        what: String,
        /// How.
        problem: String,
    },
    /// It said no.
    #[error("{registry} refused {what}: status {status}{}{}", colon(said), remedy(*status))]
    Refused {
        /// Who.
        registry: String,
        /// What was asked for.
        what: String,
        /// The HTTP status.
        status: u16,
        /// What it gave for a reason; may be empty.
        said: String,
        /// When to come again, if it said.
        retry_after: Option<Duration>,
    },
    /// It wants to know who asks, and what it was told is not enough.
    #[error("{registry} does not allow {what}{}; {remedy}", colon(said))]
    Login {
        /// Who.
        registry: String,
        /// What was asked for.
        what: String,
        /// What it gave for a reason; may be empty.
        said: String,
        /// What to do: who was logged in, and where it was looked for.
        remedy: String,
    },
    /// It answered something that cannot be.
    #[error("{registry} answered {problem} ({what})")]
    Nonsense {
        /// Who.
        registry: String,
        /// What was asked for.
        what: String,
        /// What it answered.
        problem: String,
    },
    /// It sent other bytes than it was asked for. None of them is to be used.
    #[error(
        "{registry} sent {what} with digest {actual}, expected {expected}: it, or something between, is damaged"
    )]
    Wrong {
        /// Who.
        registry: String,
        /// What was asked for.
        what: String,
        /// The digest it should have.
        expected: Digest,
        /// The digest it has.
        actual: Digest,
    },
    /// What was to be pushed is not what its name says.
    #[error(
        "the blob {digest} in this cache is damaged ({problem}): it was not pushed; build again, which makes it \
         anew"
    )]
    Damaged {
        /// Its name.
        digest: Digest,
        /// What is wrong with it.
        problem: String,
    },
    /// A file with credentials cannot be used.
    #[error("cannot use the credentials in {}: {problem}; mend the file, or log in again", path.display())]
    CredentialFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A credential helper did not do its work.
    #[error("cannot get the credentials for {registry} from {helper}, which {} names: {problem}", path.display())]
    Helper {
        /// Whose credentials.
        registry: String,
        /// The program.
        helper: String,
        /// The file that names it.
        path: PathBuf,
        /// What went wrong.
        problem: String,
    },
    /// What comes from the registry cannot be kept, or what goes to it not read.
    #[error("{what}: {source}")]
    Local {
        /// What was tried.
        what: String,
        /// Why it did not work.
        source: io::Error,
    },
    /// There is no such image here.
    #[error(
        "image {0} is not whole in this cache: its layers or its manifest were collected; build it again"
    )]
    NoImage(Digest),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl RemoteError {
    /// The HTTP status of a refusal.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            Self::Login { .. } => Some(401),
            _ => None,
        }
    }

    /// Whether the same may work a little later: no answer, a broken
    /// connection, a registry that is busy.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::TooSlow { .. } | Self::Cut { .. } => true,
            Self::Refused { status, .. } => matches!(status, 408 | 425 | 429 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }

    pub(crate) fn local(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Local { what, source }
    }
}

fn colon(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(" ({said})") }
}

/// What to do about the statuses people meet.
fn remedy(status: u16) -> &'static str {
    match status {
        403 => "; ask who runs it for the right to do this",
        404 => "; look whether the name is right and the repository exists",
        413 => "; it, or a proxy before it, limits the size of uploads: raise that limit",
        429 => "; it limits how often it is asked: try again later",
        507 => "; its disk is full",
        500..=599 => "; try again later, or look into its log",
        _ => "",
    }
}
