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

/// The parsers of what clients send, for fuzzing.
#[cfg(fuzzing)]
pub mod fuzzing {
    use std::net::SocketAddr;

    use hyper::header::{HOST, HeaderMap, HeaderValue};

    use crate::range::Wanted;
    use crate::route::{NoRoute, Route};

    /// How the path would be written that asks for the same as this one; why it
    /// asks for nothing otherwise.
    pub fn route(path: &str) -> Result<String, String> {
        let route = Route::parse(path).map_err(|no_route| match no_route {
            NoRoute::Unknown => String::new(),
            NoRoute::Name(problem) | NoRoute::Tag(problem) | NoRoute::Digest(problem) => problem,
        })?;
        Ok(match route {
            Route::Base => "/v2/".into(),
            Route::Catalog => "/v2/_catalog".into(),
            Route::Tags(name) => format!("/v2/{name}/tags/list"),
            Route::Manifest(name, which) => format!("/v2/{name}/manifests/{which}"),
            Route::Blob(name, digest) => format!("/v2/{name}/blobs/{digest}"),
            Route::Uploads(name) => format!("/v2/{name}/blobs/uploads/"),
            Route::Upload(name, id) => {
                let id: String = id.bytes().map(|byte| format!("%{byte:02X}")).collect();
                format!("/v2/{name}/blobs/uploads/{id}")
            }
            Route::Referrers(name, digest) => format!("/v2/{name}/referrers/{digest}"),
        })
    }

    /// What a query says of a name; `None` if it is no query.
    pub fn query(text: &str, name: &str) -> Option<Option<String>> {
        crate::query::Query::parse(Some(text)).map(|query| query.get(name).map(str::to_owned))
    }

    /// First and last of what a `Range` wants of so many bytes, if that is a part.
    pub fn wanted(header: &str, size: u64) -> Option<(u64, u64)> {
        match crate::range::wanted(Some(header), size) {
            Wanted::Part { first, last } => Some((first, last)),
            Wanted::Whole | Wanted::Outside => None,
        }
    }

    /// First and last of a piece of an upload.
    pub fn piece(header: &str) -> Option<(u64, u64)> {
        crate::range::piece(header)
    }

    /// Whether a request for this target with this host may come in; `None` if
    /// hyper would not let it through.
    pub fn may_ask(target: &str, host: &[u8], bound: SocketAddr) -> Option<bool> {
        let headers = HeaderMap::from_iter([(HOST, HeaderValue::from_bytes(host).ok()?)]);
        Some(crate::guard::check(&target.parse().ok()?, &headers, bound).is_ok())
    }

    /// The type that a manifest is served with, by its bytes and its sender's word.
    pub fn media_type(manifest: &[u8], said: Option<&str>) -> Option<String> {
        let manifest = smolcellar_oci::Manifest::parse(manifest).ok()?;
        crate::put::media_type(&manifest, said).ok()
    }
}
