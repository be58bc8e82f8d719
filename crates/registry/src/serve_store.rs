//! The store, for everybody on this machine.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use smolcellar_store::Store;

use crate::error::Result;
use crate::library::Library;
use crate::seen::Seen;
use crate::server::{Options, Server};

/// A running server of a store. It ends when it is stopped or dropped.
#[derive(Debug)]
pub struct StoreServer(Server);

impl StoreServer {
    /// Serves a store: when this returns, the server has answered.
    ///
    /// Repositories are the agents that there are artifacts of. An agent's images
    /// have the first twelve digits of their IDs as tags, and the one whose
    /// artifact was used last is `latest` too. What is pushed, unless it is
    /// `read_only`, is kept in the store's bucket `registry-v1`.
    ///
    /// # Errors
    /// [`crate::RegistryError::NotLoopback`], [`crate::RegistryError::Bind`],
    /// [`crate::RegistryError::Start`], [`crate::RegistryError::NotReady`] after five
    /// seconds, [`crate::RegistryError::Store`] if there can be no temporary folder.
    pub fn start(store: Arc<Store>, read_only: bool, options: Options) -> Result<Self> {
        let library = Library::new(store, read_only, options.upload_timeout)?;
        Server::start(Arc::new(library), options).map(Self)
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.0.addr()
    }

    /// What was asked for so far.
    pub fn seen(&self) -> Seen {
        self.0.seen()
    }

    /// Ends it: idle connections at once, others when they have answered or
    /// `grace` is over, and a second later at most. What was asked for in all.
    pub fn stop(self, grace: Duration) -> Seen {
        self.0.stop(grace)
    }
}
