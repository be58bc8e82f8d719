//! Runs other programs, always within bounds: of time, of output, and of the
//! caller's patience.
//!
//! Crates that speak to a program (`smolvm`, `engine`) make its command lines
//! in pure functions and hand them to an [`Invocation`]; nothing here knows
//! any program.

mod children;
mod error;
mod first_line;
mod invocation;

pub use children::{UnderWay, end_all, spawn};
pub use error::{Result, RunError, status_text, tail};
pub use invocation::{Cancel, Captured, ExecIo, Invocation, Limits, Never, pause};
