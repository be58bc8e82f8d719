//! What the tests share. The folders beside this one say what a test needs:
//! `integration` a container engine and skopeo, `fault` strace and root, `vm`
//! QEMU.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "test support: it runs programs, and a panic is how it reports"
)]

pub mod archives;
pub mod cellar;
pub mod engine;
pub mod lab;
pub mod launches;
pub mod needs;
pub mod outer;
pub mod proxy;
pub mod registry;
pub mod served;
pub mod shelf;
pub mod tokens;
