//! The embedded OCI registry: serves the store, or one image, on this machine.
//!
//! The protocol is the OCI distribution specification, version 1.1. hyper
//! carries it; the asynchronous runtime under that is inside this crate, on
//! threads that a server's handle owns. What is public here is synchronous.
//!
//! A server listens at the loopback interface only, and answers only requests
//! that name it as their host and come from no web page. Every user of this
//! machine can connect to it: there are no accounts and no passwords.
//!
//! A blob is sent out of its file, as fast as the client takes it and in memory
//! of fixed size. No byte is sent of which it is not known that it was hashed
//! since it was last written: what was pushed was hashed as it came, and the
//! store remembers by a stat seal that its file is the same; what has no seal is
//! hashed when it is sent the first time. A whole blob is hashed on its way out,
//! and the last bytes are held back if it turns out to be damaged; a part of
//! one, or a small one, before. That costs the first part of a large blob about
//! a second per gigabyte, and all that come later nothing.

mod body;
mod crowd;
mod discover;
mod error;
mod guard;
mod handle;
mod library;
mod one_image;
mod pace;
mod pieces;
mod problem;
mod pull;
mod push;
mod put;
mod query;
mod range;
mod route;
mod seen;
mod serve_store;
mod server;
mod shelf;
mod sound;
mod staging;

pub use error::{RegistryError, Result};
pub use one_image::{OneImage, ServedImage};
pub use seen::{Access, Seen};
pub use serve_store::StoreServer;
pub use server::{OnAccess, Options, parse_addr};
