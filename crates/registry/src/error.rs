//! What can go wrong with a server: the thing, the place and the remedy.

use std::io;
use std::net::SocketAddr;

use smolcellar_store::StoreError;

/// The crate's result.
pub type Result<T, E = RegistryError> = std::result::Result<T, E>;

/// A registry cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The address is none.
    #[error("'{text}' is no address to serve at: {problem}")]
    Address {
        /// What was given, fit to be shown.
        text: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The address is one that other machines reach.
    #[error(
        "the registry is for this machine alone and is not served at {0}; give 127.0.0.1:PORT, localhost:PORT or [::1]:PORT"
    )]
    NotLoopback(SocketAddr),
    /// The port cannot be had.
    #[error("cannot serve a registry at {addr}: {source}{}", bind_remedy(source))]
    Bind {
        /// Where.
        addr: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// A thread, or what it needs, cannot be had.
    #[error("cannot start the registry: {0}")]
    Start(io::Error),
    /// It was started, and does not answer.
    #[error(
        "the registry at {addr} was started but does not answer: {problem}; is a firewall between this machine and itself?"
    )]
    NotReady {
        /// Where it should.
        addr: SocketAddr,
        /// What was seen instead.
        problem: String,
    },
    /// What is to be served is no image.
    #[error("this cannot be served as an image: {0}")]
    Image(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn bind_remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; something else uses that port: name another, or port 0 for any that is free"
        }
        io::ErrorKind::PermissionDenied => "; ports below 1024 are for root: name a higher one",
        _ => "",
    }
}
