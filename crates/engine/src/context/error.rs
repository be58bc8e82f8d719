//! Why there is no listing of a context.

use std::io;
use std::path::{Path, PathBuf};

/// The module's result.
pub type Result<T, E = ContextError> = std::result::Result<T, E>;

/// A build context could not be listed.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// A file operation failed.
    #[error("cannot {operation} {} of the build context: {source}", path.display())]
    Io {
        /// What was tried, as a verb: "read", "list".
        operation: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A pattern of the ignore file that cannot be followed.
    #[error("{}, line {line}: the pattern '{pattern}' {problem}; correct it", path.display())]
    Pattern {
        /// The ignore file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The pattern, cut if it is long.
        pattern: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A Dockerfile or ignore file that cannot be one.
    #[error("{} {problem}; correct it", path.display())]
    InputFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A file was written or removed while it was read.
    #[error("{} of the build context changed while it was read; let what writes it finish first", path.display())]
    Unsteady {
        /// The file.
        path: PathBuf,
    },
}

impl ContextError {
    /// Attaches the operation and the path to an I/O error. A file that was
    /// there a moment ago and is no more was removed meanwhile.
    pub(super) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::Unsteady { path },
            _ => Self::Io { operation, path, source },
        }
    }
}
