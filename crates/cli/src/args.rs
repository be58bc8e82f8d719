//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

pub(crate) use crate::args_cache::*;
use crate::config_remote::{Mode, Place};
use crate::output::Format;
use crate::progress::Style;
use clap::builder::Resettable;
use clap::{Arg, CommandFactory, FromArgMatches, Parser, Subcommand, ValueHint};

/// Turns container images into cached, bootable microVM artifacts.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) global: Global,
}

/// Parses a command line. An empty variable is none: CI systems set variables
/// to nothing where there is nothing to say.
pub(crate) fn parse(words: impl Iterator<Item = OsString>) -> Result<Args, clap::Error> {
    let matches = without_empty(Args::command()).try_get_matches_from(words)?;
    Args::from_arg_matches(&matches)
}

fn without_empty(command: clap::Command) -> clap::Command {
    let empty = |arg: &Arg| arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
    let command = command.mut_args(|arg| if empty(&arg) { arg.env(Resettable::Reset) } else { arg });
    command.mut_subcommands(without_empty)
}

/// Options of every command.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Keep the cache in this folder.
    #[arg(long, global = true, env = "SMOLCELLAR_CACHE_DIR", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) cache_dir: Option<PathBuf>,
    /// Print data for people, or as one JSON object per line.
    #[arg(long, global = true, value_enum, default_value_t = Format::Human, env = "SMOLCELLAR_FORMAT")]
    pub(crate) format: Format,
    /// Show progress as bars on a terminal and as lines elsewhere (auto), or always in one way.
    #[arg(long, global = true, value_enum, default_value_t = Style::Auto, env = "SMOLCELLAR_PROGRESS")]
    pub(crate) progress: Style,
    /// Fetch nothing from the network; what the container engine fetches for a build is its own business.
    #[arg(long, global = true, env = "SMOLCELLAR_OFFLINE", value_parser = clap::builder::FalseyValueParser::new())]
    pub(crate) offline: bool,
    /// Give up on a lock after this many seconds (exit code 5).
    #[arg(long, global = true, value_name = "SECONDS", value_parser = seconds, env = "SMOLCELLAR_LOCK_TIMEOUT")]
    pub(crate) lock_timeout: Option<Duration>,
    /// Do not collect the cache after a build, whatever the configuration says.
    #[arg(long, global = true, env = "SMOLCELLAR_NO_AUTO_GC", value_parser = clap::builder::FalseyValueParser::new())]
    pub(crate) no_auto_gc: bool,
    /// Use a cache on a network file system: only this machine must use it at a time.
    #[arg(long, global = true, env = "SMOLCELLAR_ALLOW_NETWORK_CACHE", value_parser = clap::builder::FalseyValueParser::new())]
    pub(crate) allow_network_cache: bool,
    /// Show what the programs that are run print.
    #[arg(short, long, global = true)]
    pub(crate) verbose: bool,
    /// Use the smolvm in this folder.
    #[arg(long, global = true, env = "SMOLCELLAR_SMOLVM_DIR", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) smolvm_dir: Option<PathBuf>,
    /// Use this container engine: docker, podman, or a path.
    #[arg(long, global = true, env = "SMOLCELLAR_ENGINE", value_name = "PROGRAM")]
    pub(crate) engine: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Build agents into bootable artifacts, or find them in the cache.
    BuildAgent(BuildAgent),
    /// Build agents, or get them from a cache, so that later builds and launches find them.
    Prewarm(Prewarm),
    /// Boot an agent's artifact in a microVM and run it.
    Launch(Launch),
    /// Run a command in a machine that was launched.
    Exec(Exec),
    /// Open a shell in a machine that was launched.
    Shell(Shell),
    /// Show what a machine's command prints, if it was launched with --detach.
    Logs(Logs),
    /// Copy a file into a machine, or out of it.
    Cp(Cp),
    /// List the machines that were launched.
    Ps,
    /// End all that runs in machines; what is in them stays.
    Stop(Stop),
    /// Take machines down, with all that belongs to them.
    Rm(Rm),
    /// Get the smolvm runtime ready, once.
    Setup(Setup),
    /// Look into the cache.
    #[command(subcommand)]
    Cache(Cache),
    /// The registry that is part of this program.
    #[command(subcommand)]
    Registry(Registry),
    /// Run all tests, installing what they need.
    Test(Test),
    /// Measure, and compare with the programs this replaces.
    Bench(Bench),
    /// Feed the parsers of foreign bytes with bytes made up to break them.
    Fuzz(Fuzz),
}

#[derive(Debug, clap::Args)]
pub(crate) struct BuildAgent {
    /// The agents to build; the only one if the configuration has one. With --archive: whose
    /// settings the image gets; without, it is called after its file and has none.
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,
    /// Build every agent of the configuration.
    #[arg(long, conflicts_with = "names")]
    pub(crate) all: bool,
    /// Take the image from a `docker save` or OCI archive (plain, gzip or zstd), an OCI layout
    /// folder, or `-` for standard input.
    #[arg(long, value_name = "FILE|-", value_hint = ValueHint::AnyPath)]
    pub(crate) archive: Option<PathBuf>,
    /// Build for this platform.
    #[arg(long, value_name = "OS/ARCH")]
    pub(crate) platform: Option<String>,
    /// Say what would be done, why, and what it took the last time; build nothing.
    #[arg(long)]
    pub(crate) plan: bool,
    /// Say of each stage that has to work which of its inputs has changed.
    #[arg(long)]
    pub(crate) explain: bool,
    /// Build nothing: if anything would have to be built, say what and end with exit code 3.
    #[arg(long, conflicts_with_all = ["plan", "force"])]
    pub(crate) require_cache: bool,
    /// Who packs: this program, or smolvm's own packer, which boots a machine to do it.
    #[arg(long, value_enum, default_value_t = PackerArg::Native, env = "SMOLCELLAR_PACKER")]
    pub(crate) packer: PackerArg,
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
    /// Push the image to this registry, with the login that docker or podman has for it: HOST/NAME[:TAG], with
    /// `http://` before it where TLS is not spoken. `{agent}` in it is the agent's name.
    #[arg(long, value_name = "REF", conflicts_with = "plan")]
    pub(crate) registry: Option<String>,
    /// Build again from this stage on, whatever is in the cache; from the first, without the engine's own cache.
    #[arg(long, value_name = "STAGE", value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "image", conflicts_with = "plan")]
    pub(crate) force: Option<Stage>,
}

/// See [`smolcellar_pipeline::Packer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum PackerArg {
    /// In this process.
    Native,
    /// `smolvm pack create`, from a registry on this machine.
    Smolvm,
}

/// The cache that others share.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Remote cache")]
pub(crate) struct RemoteArgs {
    /// Look for what is not here in this repository of a registry, HOST/NAME, instead of the configuration's.
    #[arg(long, value_name = "REF", env = "SMOLCELLAR_REMOTE")]
    pub(crate) remote: Option<Place>,
    /// Use the remote cache not at all, for reading, or also send it what was built here.
    #[arg(long, value_name = "MODE", value_enum, env = "SMOLCELLAR_REMOTE_MODE")]
    pub(crate) remote_mode: Option<Mode>,
}

/// See [`smolcellar_pipeline::StageName`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Stage {
    /// The engine builds the image.
    Image,
    /// The image is taken out of the engine.
    Tarball,
    /// The image gets its manifest.
    Registry,
    /// The artifact is packed.
    Smolmachine,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Prewarm {
    /// The agents; all of the configuration if none is named.
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,
    /// All agents of the configuration, which is the default.
    #[arg(long, conflicts_with = "names")]
    pub(crate) all: bool,
    /// Also send them to this repository of a registry, HOST/NAME, unless it has them.
    #[arg(long, value_name = "REF", conflicts_with = "check")]
    pub(crate) push: Option<Place>,
    /// Look for them in this repository of a registry first, or in this file that `cache export` wrote.
    #[arg(long, value_name = "REF|FILE", conflicts_with = "check")]
    pub(crate) from: Option<String>,
    /// Only say what is in this machine's cache and what is not; exit code 3 if anything is missing.
    #[arg(long)]
    pub(crate) check: bool,
    /// Have smolvm unpack them too, so that a first launch need not.
    #[arg(long, conflicts_with = "check")]
    pub(crate) extract: bool,
    /// Write `key=` and `hit=` to the file that $GITHUB_OUTPUT names, for a step that keeps the cache folder.
    #[arg(long)]
    pub(crate) github_output: bool,
    /// Work on so many agents at once.
    #[arg(short, long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) jobs: u16,
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Launch {
    /// The agent to launch; the only one if the configuration has one. Or an artifact: IMAGE or IMAGE/RECIPE as `cache
    /// ls` shows them, or the first digits of each.
    #[arg(value_name = "NAME|KEY")]
    pub(crate) name: Option<String>,
    /// What runs it: a microVM, or a container, which shares this machine's kernel.
    #[arg(long, value_enum, default_value_t = BackendArg::Smolvm, env = "SMOLCELLAR_BACKEND")]
    pub(crate) backend: BackendArg,
    /// Do not ask before anything is built or started.
    #[arg(short, long)]
    pub(crate) yes: bool,
    /// Leave the machine running when the command has ended; `rm` takes it down.
    #[arg(short, long)]
    pub(crate) keep: bool,
    /// Run it in the background and print the machine's name; `logs` shows its output. Implies --keep.
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Call the machine this.
    #[arg(long = "name", value_name = "MACHINE")]
    pub(crate) name_machine: Option<String>,
    /// The background half of --detach, as this machine.
    #[arg(long, hide = true, value_name = "MACHINE")]
    pub(crate) background: Option<String>,
    /// Give the agent a prompt from this file, or `-` for standard input: the guest has it in the file that
    /// $SMOLCELLAR_PROMPT_FILE names.
    #[arg(long, value_name = "FILE|-", value_hint = ValueHint::FilePath)]
    pub(crate) prompt_file: Option<PathBuf>,
    /// Hash the whole artifact first, instead of trusting that a file with the same inode and times has the same
    /// contents.
    #[arg(long)]
    pub(crate) verify: bool,
    /// Try even where this processor or device seems unable to run machines.
    #[arg(long, env = "SMOLCELLAR_ASSUME_VIRTUALISATION", value_parser = clap::builder::FalseyValueParser::new())]
    pub(crate) assume_virtualisation: bool,
    /// Show what would be done, and do nothing. With `--format json`, every command line too.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Build nothing: if there is no artifact yet, end with exit code 3.
    #[arg(long)]
    pub(crate) require_cache: bool,
    /// Call the image this, if it has to be built, instead of what the configuration says.
    #[arg(long, value_name = "REF", env = "SMOLCELLAR_IMAGE")]
    pub(crate) image: Option<String>,
    /// Set a variable in the guest; may be repeated.
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// Give the guest a secret: its variable GUEST gets the value of our variable HOST, which is on no
    /// command line; may be repeated.
    #[arg(long, value_name = "GUEST=HOST")]
    pub(crate) secret_env: Vec<String>,
    /// Let the guest reach these addresses; may be repeated. Without any of these there is no network.
    #[arg(long, value_name = "CIDR")]
    pub(crate) allow_cidr: Vec<String>,
    /// Let the guest reach this host, by the addresses it has when the guest starts; may be repeated.
    #[arg(long, value_name = "HOST")]
    pub(crate) allow_host: Vec<String>,
    /// Show a folder of this machine in the guest; may be repeated.
    #[arg(short = 'V', long, value_name = "HOST:GUEST[:ro]")]
    pub(crate) volume: Vec<String>,
    /// Make a port of the guest one of this machine; may be repeated.
    #[arg(short, long, value_name = "HOST:GUEST")]
    pub(crate) port: Vec<String>,
    /// Run with this many virtual CPUs instead of the artifact's.
    #[arg(long, value_name = "N")]
    pub(crate) cpus: Option<u8>,
    /// Run with this much memory instead of the artifact's.
    #[arg(long, value_name = "MIB")]
    pub(crate) mem: Option<u32>,
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
    /// What to run instead of the image's entrypoint and arguments.
    #[arg(last = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

/// See [`smolcellar_launcher::Backend`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum BackendArg {
    /// A microVM.
    Smolvm,
    /// A container of Docker or Podman.
    Docker,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Exec {
    /// The machine: its name, or how only its name begins.
    #[arg(value_name = "MACHINE")]
    pub(crate) machine: String,
    #[command(flatten)]
    pub(crate) with: InGuest,
    /// What to run.
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Shell {
    /// The machine: its name, or how only its name begins.
    #[arg(value_name = "MACHINE")]
    pub(crate) machine: String,
    #[command(flatten)]
    pub(crate) with: InGuest,
    /// Which shell.
    #[arg(long, value_name = "PATH", default_value = "/bin/sh")]
    pub(crate) shell: String,
}

/// How a command is run in a guest.
#[derive(Debug, clap::Args)]
pub(crate) struct InGuest {
    /// Set a variable for it; may be repeated.
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// Give it a secret: its variable GUEST gets the value of our variable HOST, which is on no command line; may
    /// be repeated.
    #[arg(long, value_name = "GUEST=HOST")]
    pub(crate) secret_env: Vec<String>,
    /// Run it in this folder instead of the image's.
    #[arg(short, long, value_name = "FOLDER")]
    pub(crate) workdir: Option<String>,
    /// Run it as this user, a name or UID[:GID], instead of the image's.
    #[arg(short, long, value_name = "USER")]
    pub(crate) user: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Logs {
    /// The machine: its name, or how only its name begins.
    #[arg(value_name = "MACHINE")]
    pub(crate) machine: String,
    /// Go on until the command has ended.
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Begin with the last lines only.
    #[arg(long, value_name = "LINES")]
    pub(crate) tail: Option<usize>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Cp {
    /// What to copy: a path, or MACHINE:PATH.
    #[arg(value_name = "FROM")]
    pub(crate) from: String,
    /// Where to: a path, or MACHINE:PATH. One of the two is in a machine.
    #[arg(value_name = "TO")]
    pub(crate) to: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Stop {
    /// The machines: their names, or how only their names begin.
    #[arg(value_name = "MACHINE", required = true)]
    pub(crate) machines: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Rm {
    /// The machines: their names, or how only their names begin.
    #[arg(value_name = "MACHINE", required = true)]
    pub(crate) machines: Vec<String>,
    /// Also those that are running.
    #[arg(short, long)]
    pub(crate) force: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Registry {
    /// Serve the cache's images to this machine, until Ctrl-C: `docker pull 127.0.0.1:5000/AGENT`. What is pushed to
    /// it is kept in the cache. There are no passwords: every user of this machine can pull and push.
    Serve(Serve),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Serve {
    /// Refuse pushes and deletions.
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Where to listen: 127.0.0.1, localhost or [::1], and a port; port 0 is any that is free.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:5000")]
    pub(crate) addr: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Setup {
    /// Install the pinned runtime again, even if there is one.
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Test {
    /// Pass these to the test runner, for example the name of one test.
    #[arg(last = true, value_name = "ARGS")]
    pub(crate) args: Vec<String>,
    /// Leave out the tests that boot machines (minutes).
    #[arg(long)]
    pub(crate) no_vm: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Fuzz {
    /// The targets; all if none is named.
    #[arg(value_name = "TARGET")]
    pub(crate) targets: Vec<String>,
    /// How long each target runs.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) seconds: u32,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Bench {
    /// How often each measurement is repeated; the median counts.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) runs: u32,
    /// Measure pushing to a registry on this machine and pulling from it, beside smolvm's own.
    #[arg(long)]
    pub(crate) remote: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("'{text}' is no number of seconds"))?;
    Duration::try_from_secs_f64(seconds).map_err(|_| format!("'{text}' is out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn what_follows_two_dashes_is_the_guests() {
        let args = Args::try_parse_from(["x", "launch", "sample", "--", "/agent", "--format", "x"]).unwrap();
        let Command::Launch(launch) = args.command else { panic!() };
        assert_eq!(launch.command, ["/agent", "--format", "x"]);
        assert_eq!(launch.name.as_deref(), Some("sample"));
    }
}
