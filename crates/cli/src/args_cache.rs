//! The command line of `cache`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Subcommand, ValueHint};
use smolcellar_store::gc::{Amount, parse_age};

use crate::config_remote::Place;

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Cache {
    /// Print where the cache is.
    Dir,
    /// List the artifacts, the last used first.
    Ls(OfRemote),
    /// Show what the cache takes on disk, and what of it could go.
    Du(OfRemote),
    /// Show all that is known of an artifact.
    Inspect(Keys),
    /// Show hits and misses, and what the hits have saved.
    Stats(CacheStats),
    /// Remove what is too old or too much by the policy in the configuration, and what nothing can use.
    Gc(CacheGc),
    /// Say which inputs had changed when an agent was last built, or an artifact was.
    Why(CacheWhy),
    /// Keep artifacts, whatever the policy says.
    Pin(Keys),
    /// Let artifacts go again when the policy says so.
    Unpin(Keys),
    /// Remove artifacts.
    Rm(Keys),
    /// Hash everything in the cache again, and move to quarantine what is damaged (exit code 1 if anything is).
    Verify(CacheVerify),
    /// Write artifacts to one file, to be imported elsewhere; or an image, for `docker load`.
    Export(CacheExport),
    /// Take in what was exported, checking every byte of it first.
    Import(CacheImport),
    /// Send artifacts to a repository of a registry, unless it has them.
    Push(CachePush),
    /// Get artifacts from a repository of a registry, checking every byte of them first.
    Pull(CachePull),
}

/// This machine's cache, or the one that others share.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct OfRemote {
    /// Of a repository of a registry instead, HOST/NAME; without a value, the configuration's.
    #[arg(long, value_name = "REF", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    pub(crate) remote: Option<String>,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct CachePush {
    /// The artifacts: agents of this project, or the first digits of keys, IMAGE or IMAGE/RECIPE.
    #[arg(value_name = "KEY|AGENT", required = true)]
    pub(crate) keys: Vec<String>,
    /// To this repository, HOST/NAME, instead of the configuration's.
    #[arg(long, value_name = "REF", env = "SMOLCELLAR_REMOTE")]
    pub(crate) to: Option<Place>,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct CachePull {
    /// The artifacts: the first digits of keys, IMAGE or IMAGE/RECIPE, as `cache ls --remote` shows them.
    /// Or one that another packer pushed, HOST/NAME:TAG, with --image-id.
    #[arg(value_name = "KEY|REF", required = true)]
    pub(crate) keys: Vec<String>,
    /// From this repository, HOST/NAME, instead of the configuration's.
    #[arg(long, value_name = "REF", env = "SMOLCELLAR_REMOTE")]
    pub(crate) from: Option<Place>,
    /// The image that another packer's artifact was made of: it does not say.
    #[arg(long, value_name = "sha256:HEX")]
    pub(crate) image_id: Option<smolcellar_oci::ImageId>,
    /// Make the artifact what `launch NAME` starts in this project.
    #[arg(long, value_name = "NAME")]
    pub(crate) agent: Option<String>,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct CacheVerify {
    /// Only these artifacts, and what their images are made of: agents of this project, or the first digits of keys.
    #[arg(value_name = "KEY|AGENT")]
    pub(crate) keys: Vec<String>,
    /// Go on with a run that was cut off, as it said.
    #[arg(long, value_name = "HEX", value_parser = hex)]
    pub(crate) from: Option<String>,
    /// Decompress every artifact too, and compare each frame with the index.
    #[arg(long)]
    pub(crate) frames: bool,
    /// Make damaged entries again where the cache, the engine or PyPI has what they are made of.
    #[arg(long)]
    pub(crate) repair: bool,
    /// Only say what is wrong; move nothing.
    #[arg(long, conflicts_with = "repair")]
    pub(crate) keep: bool,
}

/// The first digits of a digest.
fn hex(text: &str) -> Result<String, String> {
    match !text.is_empty() && text.len() <= 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        true => Ok(text.to_ascii_lowercase()),
        false => Err("give the digits that the run that was cut off named".into()),
    }
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct CacheExport {
    /// The artifacts: agents of this project, or the first digits of keys, IMAGE or IMAGE/RECIPE.
    #[arg(value_name = "KEY|AGENT", required_unless_present = "image")]
    pub(crate) keys: Vec<String>,
    /// Write to this file, or `-` for standard output, which is the default where that is no terminal.
    #[arg(short, long, value_name = "FILE|-", value_hint = ValueHint::FilePath)]
    pub(crate) output: Option<PathBuf>,
    /// Also write what the images are made of, so that nothing need be built from a Dockerfile there.
    #[arg(long)]
    pub(crate) with_image: bool,
    /// Write this image instead, as `docker load` and skopeo read it: an agent, or the first digits of a key.
    #[arg(long, value_name = "KEY|IMAGE", conflicts_with_all = ["keys", "with_image"])]
    pub(crate) image: Option<String>,
    /// Call the image this where it is loaded.
    #[arg(long, value_name = "REF", requires = "image")]
    pub(crate) tag: Option<String>,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct CacheImport {
    /// An export, or a .smolmachine of any packer, or `-` for standard input.
    #[arg(value_name = "FILE|-", value_hint = ValueHint::FilePath)]
    pub(crate) file: PathBuf,
    /// The image that a .smolmachine was made of: it does not say.
    #[arg(long, value_name = "sha256:HEX")]
    pub(crate) image_id: Option<smolcellar_oci::ImageId>,
    /// Make the artifact what `launch NAME` starts in this project.
    #[arg(long, value_name = "NAME")]
    pub(crate) agent: Option<String>,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct CacheGc {
    /// Remove what was not used for longer, as 30d or 12h.
    #[arg(long, value_name = "AGE", value_parser = parse_age, env = "SMOLCELLAR_GC_MAX_AGE")]
    pub(crate) max_age: Option<Duration>,
    /// Remove until the cache takes this much of the disk at most, as 20% or 50GB.
    #[arg(long, value_name = "SIZE|%", env = "SMOLCELLAR_GC_MAX_SIZE")]
    pub(crate) max_size: Option<Amount>,
    /// Remove until this much of the disk is free, as 10% or 20GB.
    #[arg(long, value_name = "SIZE|%", env = "SMOLCELLAR_GC_MIN_FREE")]
    pub(crate) min_free: Option<Amount>,
    /// Keep so many artifacts of each agent, those used last.
    #[arg(long, value_name = "N", env = "SMOLCELLAR_GC_KEEP_LAST")]
    pub(crate) keep_last: Option<u32>,
    /// Remove all that is neither pinned nor in use. Of each agent's last artifacts, only --keep-last keeps any.
    #[arg(long, conflicts_with_all = ["max_age", "max_size", "min_free"])]
    pub(crate) all: bool,
    /// Show what would be removed and why, and remove nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Show what must stay and why, and remove nothing.
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) roots: bool,
    /// Do not ask.
    #[arg(short, long)]
    pub(crate) yes: bool,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct CacheStats {
    /// Count only what was not longer ago, as 30d or 12h.
    #[arg(long, value_name = "AGE", value_parser = parse_age)]
    pub(crate) since: Option<Duration>,
    /// Add up by this.
    #[arg(long, value_enum, default_value_t = StatsBy::Stage)]
    pub(crate) by: StatsBy,
}

/// What `cache stats` adds up by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum StatsBy {
    /// Stages.
    Stage,
    /// Agents.
    Agent,
    /// Days, in UTC.
    Day,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct CacheWhy {
    /// An agent of the configuration, or an artifact: IMAGE or IMAGE/RECIPE, or the first digits of each.
    #[arg(value_name = "KEY|AGENT")]
    pub(crate) what: String,
}

/// Artifacts.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Keys {
    /// The artifacts: IMAGE or IMAGE/RECIPE, as `cache ls` shows them, or the first digits of each; or an agent
    /// of the configuration, for the one that it was last built to.
    #[arg(value_name = "KEY|AGENT", required = true)]
    pub(crate) keys: Vec<String>,
}
