//! Tests that need a container engine, or skopeo, or nothing but the program.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests run programs, and a panic is how they report"
)]

mod archive;
mod bad_archives;
mod bad_input;
mod build;
mod cache;
mod collect;
mod container;
mod containerd_store;
mod contention;
mod context;
mod detached;
mod explain;
mod extraction;
mod harness;
mod human;
mod interrupt;
mod launch;
mod peers;
mod registry_push;
mod remote_cache;
mod remote_faults;
mod remote_pull;
mod remote_push;
mod repair;
mod sidecar;
mod stand_in;
mod transfer;
