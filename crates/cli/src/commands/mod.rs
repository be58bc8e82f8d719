//! One file per command.

mod bench;
mod bench_cache;
mod bench_launch;
mod bench_link;
mod bench_remote;
mod build_agent;
mod cache;
mod cp;
mod detach;
mod exec;
mod extractions;
mod fuzz;
mod launch;
mod logs;
mod plan;
mod prewarm;
mod ps;
mod push_image;
mod registry;
mod rm;
mod setup;
mod shell;
mod stop;
mod summary;
mod target;
mod test;
mod why;

use anyhow::Result;

pub(crate) use launch::as_usage;

use crate::args::{Args, Command};
use crate::session::Session;

/// Runs a command; the result is its exit code.
pub(crate) fn run(args: Args) -> Result<u8> {
    let session = Session::new(args.global);
    match args.command {
        Command::BuildAgent(args) => build_agent::run(&session, &args),
        Command::Prewarm(args) => prewarm::run(&session, &args),
        Command::Launch(args) => launch::run(&session, &args),
        Command::Exec(args) => exec::run(&session, &args),
        Command::Shell(args) => shell::run(&session, &args),
        Command::Logs(args) => logs::run(&session, &args),
        Command::Cp(args) => cp::run(&session, &args),
        Command::Ps => ps::run(&session),
        Command::Stop(args) => stop::run(&session, &args),
        Command::Rm(args) => rm::run(&session, &args),
        Command::Setup(args) => setup::run(&session, &args),
        Command::Cache(command) => cache::run(&session, &command),
        Command::Registry(command) => registry::run(&session, &command),
        Command::Test(args) => test::run(&session, &args),
        Command::Bench(args) => bench::run(&session, &args),
        Command::Fuzz(args) => fuzz::run(&session, &args),
    }
}
