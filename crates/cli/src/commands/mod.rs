//! One file per command.

mod bench;
mod build_agent;
mod cache;
mod fuzz;
mod launch;
mod setup;
mod summary;
mod test;

use anyhow::Result;

use crate::args::{Args, Command};
use crate::session::Session;

/// Runs a command; the result is its exit code.
pub(crate) fn run(args: Args) -> Result<u8> {
    let session = Session::new(args.global);
    match args.command {
        Command::BuildAgent(args) => build_agent::run(&session, &args),
        Command::Launch(args) => launch::run(&session, &args),
        Command::Setup(args) => setup::run(&session, &args),
        Command::Cache(command) => cache::run(&session, &command),
        Command::Test(args) => test::run(&session, &args),
        Command::Bench(args) => bench::run(&session, &args),
        Command::Fuzz(args) => fuzz::run(&session, &args),
    }
}
