//! Registries elsewhere: images and artifacts pushed to them and pulled from
//! them, by the OCI distribution specification.
//!
//! [`Client`] is one repository of one registry. It trusts nothing that it
//! gets: sizes are bounded, digests computed here, times limited, addresses
//! checked. Who asks is found as docker and podman find it, and told to nobody
//! but the registry and its token server. It never prints.

mod auth;
mod beside;
mod challenge;
mod client;
mod error;
mod http;
mod image;
mod login;
mod login_file;
mod mounts;
mod options;
mod pull;
mod push;
mod ranges;
mod retry;
mod text;
mod url;

pub use client::{Client, Fetched, Tags};
pub use error::{RemoteError, Result};
pub use image::{Count, PushedImage, is_pushable, push_image};
pub use options::{Options, Secret};
pub use pull::Ranged;
pub use push::{Open, Pushed};

pub mod artifact;
mod cache;
mod cache_error;
mod cache_list;
mod cache_push;
mod delta_fetch;
mod delta_local;
pub mod delta_plan;

pub use cache::{Cache, Found, Pull, Pulled};
pub use cache_error::{Breaker, CacheError, CacheResult};
pub use cache_list::{Listed, Listing};
pub use cache_push::Push;

/// The parsers of what registries answer and of files with logins, for fuzzing.
#[cfg(fuzzing)]
pub mod fuzzing {
    use std::collections::BTreeMap;

    use smolcellar_oci::Repository;

    use crate::login_file::{LoginFile, Place};
    use crate::url::Url;

    /// The challenges of a `WWW-Authenticate`: schemes with their parameters.
    pub fn challenges(header: &str) -> Vec<(String, BTreeMap<String, String>)> {
        let parsed = crate::challenge::parse(header).into_iter();
        parsed.map(|challenge| (challenge.scheme, challenge.parameters)).collect()
    }

    /// The credential helpers that a login file names for a repository; what is
    /// wrong with the file otherwise.
    pub fn helpers(file: &[u8], host: &str, repository: &Repository) -> Result<Vec<String>, String> {
        let places = LoginFile::parse(file)?.places(host, repository)?.into_iter();
        let helper = |place| match place {
            Place::Helper { name, .. } => Some(name),
            Place::Here(_) => None,
        };
        Ok(places.filter_map(helper).collect())
    }

    /// An address as it is requested.
    pub fn url(text: &str) -> Option<String> {
        Url::parse(text).ok().map(|url| url.text())
    }

    /// Where a `Location` in an answer of the address `from` points to.
    pub fn joined(from: &str, location: &str) -> Option<String> {
        Url::parse(from).and_then(|from| from.join(location)).ok().map(|url| url.text())
    }

    /// The address of the next page that a `Link` names.
    pub fn next_link(header: &str) -> Option<&str> {
        crate::url::next_link(header)
    }

    /// First, last and total of a `Content-Range`.
    pub fn content_range(header: &str) -> Option<(u64, u64, Option<u64>)> {
        crate::ranges::content_range(header)
    }

    /// How much a registry has of an upload, by its `Range`.
    pub fn received(header: &str) -> Option<u64> {
        crate::ranges::received(header)
    }

    /// What an error shows of a refusal's body.
    pub fn said(body: &[u8]) -> String {
        crate::text::said(body)
    }
}
