//! Races: what must hold however long it is tried. Each runs for some seconds
//! with all other tests, and for as long as it is told to:
//!
//! ```text
//! SMOLCELLAR_CANARY_ROUNDS=20 SMOLCELLAR_CANARY_SECONDS=600 cargo xtask test -- --test canaries
//! ```
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests run programs, and a panic is how they report"
)]

mod beside;
mod contention;
mod pushes;

/// A number from the environment.
fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().unwrap())
}

/// For people: the runner shows it only on failure, this shows it always.
fn say(text: &str) {
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{text}\n").as_bytes());
}
