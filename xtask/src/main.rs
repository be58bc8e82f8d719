//! Hands its arguments to `smolcellar-cli`; another repository's xtask can do the same.

use std::process::ExitCode;

fn main() -> ExitCode {
    smolcellar_cli::main(std::env::args_os())
}
