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
