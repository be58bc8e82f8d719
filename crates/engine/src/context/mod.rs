//! What a build context holds: so that a change of an image can be explained,
//! and so that it can be told that nothing changed since the last build.
//!
//! Runs nothing and asks no engine. What it cannot read as the builder would,
//! it says ([`ContextError`], [`Blind`]) instead of guessing: a needless build
//! costs seconds, a missed change gives the wrong image.

mod diff;
mod dockerfile;
mod error;
mod hash;
mod ignore;
mod instructions;
mod listing;
mod path;
mod pattern;
mod record;
#[cfg(test)]
mod tests;
mod walk;

pub use diff::{Change, ContextDiff};
pub use dockerfile::{Blind, Dockerfile};
pub use error::{ContextError, Result};
pub use ignore::Ignore;
pub use listing::{ContextFile, ContextListing, FileKind, FileStat, InputFile};
pub use path::ContextPath;
pub use walk::{ContextSpec, Listed, list};

/// Docker's two builders differ in what a context holds. Podman's is neither:
/// it prefers `.containerignore` and `Containerfile`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Builder {
    /// The one in the engine: `docker build` without BuildKit. It looks into
    /// an excluded folder only if an exception's text starts with its path,
    /// so `!**/keep` brings nothing back from an excluded folder.
    Classic,
    /// BuildKit. It looks wherever an exception may match, and prefers
    /// `<Dockerfile>.dockerignore` to `.dockerignore`.
    BuildKit,
}
