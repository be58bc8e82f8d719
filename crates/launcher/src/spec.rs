//! What is to be launched, and with which programs.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use smolcellar_engine::Engine;
use smolcellar_run::ExecIo;
use smolcellar_smolvm::{Cli, Port, Secret, Volume};
use smolcellar_store::Digest;

use crate::error::{LaunchError, Result};
use crate::sidecar::SidecarSpec;

/// The label of every machine, container and network that this crate makes. Its
/// value is the machine's name.
pub const LABEL: &str = "dev.smolcellar.launch";

/// Where the guest finds the prompt, if there is one.
pub const PROMPT: &str = "/smolcellar-prompt";

/// What runs a guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// A microVM.
    #[default]
    Smolvm,
    /// A container of Docker or Podman: shares this machine's kernel.
    Docker,
}

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Smolvm => "smolvm",
            Self::Docker => "docker",
        })
    }
}

/// The programs that launches use. What a launch does not need may be missing.
#[derive(Debug, Clone, Default)]
pub struct Tools {
    /// For machines.
    pub smolvm: Option<Cli>,
    /// For containers and sidecars.
    pub engine: Option<Engine>,
}

impl Tools {
    pub(crate) fn smolvm(&self) -> Result<&Cli> {
        self.smolvm.as_ref().ok_or(LaunchError::NoTool("smolvm; `cargo xtask setup` gets it"))
    }

    pub(crate) fn engine(&self) -> Result<&Engine> {
        self.engine.as_ref().ok_or(LaunchError::NoTool("docker or podman; install one of them"))
    }
}

/// What is to be launched.
#[derive(Debug, Clone)]
pub struct LaunchSpec {
    /// The agent's name.
    pub agent: String,
    /// What runs it.
    pub backend: Backend,
    /// The image, and who says so.
    pub image: Option<ImageRef>,
    /// What to boot; `None`: it is not built yet, so this can only be planned.
    pub artifact: Option<Artifact>,
    /// The machine's name, unique per launch: see [`crate::machine_name`].
    pub machine_name: String,
    /// Whether somebody chose that name, so that it may be another machine's.
    pub name_chosen: bool,
    /// The command and its arguments: the image's entrypoint and cmd, or what
    /// the user wants instead. Empty where only the image can tell.
    pub command: Vec<String>,
    /// The image's environment, which machines know from the artifact.
    pub image_env: Vec<(String, String)>,
    /// The guest's environment beside that. Seen in the process list: never
    /// secrets.
    pub env: Vec<(String, String)>,
    /// Secrets of the guest's environment, by reference.
    pub secrets: Vec<Secret>,
    /// The working folder; `None`: as the artifact says.
    pub workdir: Option<String>,
    /// The user; `None`: as the artifact says.
    pub user: Option<String>,
    /// Virtual processors; `None`: as the artifact says.
    pub cpus: Option<u32>,
    /// Memory in MiB; `None`: as the artifact says.
    pub memory_mib: Option<u32>,
    /// Host folders in the guest.
    pub volumes: Vec<Volume>,
    /// Guest ports on this host.
    pub ports: Vec<Port>,
    /// What the guest may reach; nothing: no network.
    pub egress: Egress,
    /// The container beside it, if there is to be one.
    pub sidecar: Option<SidecarSpec>,
    /// The prompt for the agent, if there is one.
    pub prompt: Option<Prompt>,
    /// Whether the machine stays when its command has ended.
    pub keep: bool,
    /// What the command's streams are.
    pub io: ExecIo,
}

/// A prompt: what it says is nobody's business, so plans have its origin only.
#[derive(Clone, Serialize)]
pub struct Prompt {
    /// Where it comes from: a path, or "standard input".
    pub from: String,
    /// What it says.
    #[serde(skip)]
    pub text: Vec<u8>,
}

impl std::fmt::Debug for Prompt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Prompt({} bytes from {})", self.text.len(), self.from)
    }
}

/// The name of an image, and what named it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageRef {
    /// `name[:tag]`.
    pub reference: String,
    /// "environment" (or the command line), "config" or "default".
    pub from: &'static str,
}

/// A built artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Artifact {
    /// The key under which the store locks it against collection.
    pub key: String,
    /// The `.smolmachine`.
    pub path: PathBuf,
    /// Its digest, by its receipt.
    pub sha256: Digest,
}

/// What a guest may reach.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Egress {
    /// Addresses: `10.0.0.2/32`.
    pub allow_cidr: Vec<String>,
    /// Hosts, resolved when the guest starts.
    pub allow_host: Vec<String>,
}
