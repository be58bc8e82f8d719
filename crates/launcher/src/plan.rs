//! What a launch is going to do: pure, nothing is looked at or made.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Serialize;
use smolcellar_engine::{ContainerSpec, container_args};
use smolcellar_run::ExecIo;
use smolcellar_smolvm::{CreateRequest, ExecRequest, Feature, Port, Secret, Volume};

use crate::bounds::Bounds;
use crate::check::check;
use crate::container;
use crate::error::{LaunchError, Result};
use crate::names::slug;
use crate::sidecar::{Network, Sidecar};
use crate::spec::{Artifact, Backend, Egress, ImageRef, LABEL, LaunchSpec, PROMPT, Prompt, Tools};
use crate::subnet::Subnet;

/// Ports of the sidecar, and where they are on the host's loopback.
pub(crate) type Published = BTreeMap<u16, SocketAddr>;

/// What is known of a launch only once its network and its sidecar are up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Which candidate the network's addresses are.
    pub(crate) turn: u32,
    /// The sidecar's published ports.
    pub(crate) published: Option<Published>,
}

/// Everything decided: what a launch is going to do. Made without asking
/// anybody anything; its JSON is what `launch --dry-run --format json` prints.
/// Secrets are in it by reference only.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// The agent's name.
    pub agent: String,
    /// Its name in names of machines.
    pub slug: String,
    /// The machine's name.
    pub machine: String,
    /// What runs it.
    pub backend: Backend,
    /// The image, and who says so.
    pub image: Option<ImageRef>,
    /// What is booted; `null`: it is to be built first.
    pub artifact: Option<Artifact>,
    /// What runs in it; empty: as the image that is to be built says.
    pub command: Vec<String>,
    /// Virtual processors; `null`: as the artifact says.
    pub cpus: Option<u32>,
    /// Memory in MiB; `null`: as the artifact says.
    pub memory_mib: Option<u32>,
    /// The working folder; `null`: as the artifact says.
    pub workdir: Option<String>,
    /// The user; `null`: as the artifact says.
    pub user: Option<String>,
    /// Variables of the guest, beside the image's.
    pub env: BTreeMap<String, String>,
    /// Variables of the guest whose values only the backend sees.
    pub secrets: Vec<Secret>,
    /// Host folders in the guest.
    pub volumes: Vec<Volume>,
    /// Guest ports on this host.
    pub ports: Vec<Port>,
    /// What the guest may reach, the sidecar included.
    pub egress: Egress,
    /// The container beside it.
    pub sidecar: Option<Sidecar>,
    /// The network of the launch, if it has one.
    pub network: Option<Network>,
    /// The launch's prompt file, relative to the cache; empty without a prompt.
    pub prompt_file: PathBuf,
    /// Where the prompt comes from, if there is one; the guest has it at
    /// [`PROMPT`].
    pub prompt: Option<Prompt>,
    /// Whether the machine stays when its command has ended.
    pub keep: bool,
    /// Every command line that makes, runs or removes something, in order, down
    /// to the teardown's. Questions are not among them.
    pub commands: Vec<Vec<String>>,
    #[serde(skip)]
    pub(crate) requests: Requests,
    #[serde(skip)]
    pub(crate) exec: ExecRequest,
    #[serde(skip)]
    pub(crate) io: ExecIo,
}

/// What the backend is asked to make.
#[derive(Debug, Clone)]
pub(crate) enum Requests {
    Smolvm(Box<CreateRequest>),
    Container(Box<ContainerSpec>),
}

/// Stands for the artifact in the command lines of a plan made before it.
const NOT_BUILT: &str = "(the artifact, built first)";
/// Stands for a command that only the image can tell.
const OF_IMAGE: &str = "(the image's entrypoint and cmd)";

impl Plan {
    /// Decides. `tools` are asked for their versions and for command lines;
    /// nothing is run.
    ///
    /// # Errors
    /// [`LaunchError::NoCommand`], [`LaunchError::BadOption`],
    /// [`LaunchError::NoTool`], [`LaunchError::Smolvm`] where this smolvm cannot
    /// be told what is wanted.
    pub fn resolve(spec: &LaunchSpec, tools: &Tools) -> Result<Self> {
        Self::with(spec, tools, &Found::default())
    }

    /// Decides again, with what was found on the way up.
    pub(crate) fn with(spec: &LaunchSpec, tools: &Tools, found: &Found) -> Result<Self> {
        if spec.command.is_empty() && spec.artifact.is_some() {
            return Err(LaunchError::NoCommand);
        }
        check(spec)?;
        let name = &spec.machine_name;
        let subnet = Subnet::candidate(name, found.turn);
        let in_container = spec.backend == Backend::Docker;
        // A container with ports is reached by this host, and so reaches it too;
        // a machine gets to its sidecar by way of this host.
        let needed = spec.sidecar.is_some() || (in_container && !spec.ports.is_empty());
        let network = match needed {
            true => {
                let can_stay_out = in_container && tools.engine()?.can_keep_host_out();
                Some(Network::of(name, subnet, !can_stay_out || !spec.ports.is_empty()))
            }
            false => None,
        };
        let sidecar = spec.sidecar.as_ref().zip(network.as_ref()).map(|(sidecar, network)| {
            let published = found.published.as_ref();
            sidecar.resolve(network.clone(), subnet.sidecar(), published, in_container, name)
        });
        // The user's own variables come last: they win.
        let mut env = sidecar.as_ref().map(Sidecar::guest_env).unwrap_or_default();
        if spec.prompt.is_some() {
            env.push(("SMOLCELLAR_PROMPT_FILE".to_owned(), PROMPT.to_owned()));
        }
        env.retain(|(name, _)| !spec.env.iter().any(|(own, _)| own == name));
        env.extend(spec.env.iter().cloned());
        let mut egress = spec.egress.clone();
        egress.allow_cidr.extend(sidecar.as_ref().map(Sidecar::allowed));
        let command = match spec.command.is_empty() {
            true => vec![OF_IMAGE.to_owned()],
            false => spec.command.clone(),
        };
        let mut exec = ExecRequest {
            command,
            env: env.clone(),
            secrets: spec.secrets.clone(),
            workdir: spec.workdir.clone(),
            user: spec.user.clone(),
        };
        let requests = match spec.backend {
            Backend::Smolvm => {
                let labels = match tools.smolvm()?.supports(Feature::Labels) {
                    true => vec![(LABEL.to_owned(), name.clone())],
                    false => Vec::new(),
                };
                Requests::Smolvm(Box::new(CreateRequest {
                    name: name.clone(),
                    artifact: artifact_of(spec),
                    cpus: spec.cpus,
                    memory_mib: spec.memory_mib,
                    allow_cidrs: egress.allow_cidr.clone(),
                    allow_hosts: egress.allow_host.clone(),
                    volumes: spec.volumes.clone(),
                    ports: spec.ports.clone(),
                    // Here for whatever else runs in the machine, and at exec
                    // again: some versions drop part of what they are told with
                    // `--from`.
                    env: env.clone(),
                    labels,
                }))
            }
            Backend::Docker => {
                let all = [spec.image_env.clone(), std::mem::take(&mut exec.env)].concat();
                let guest = container::spec(spec, network.as_ref(), subnet, sidecar.as_ref(), all);
                Requests::Container(Box::new(guest))
            }
        };
        let mut plan = Self {
            slug: slug(&spec.agent),
            agent: spec.agent.clone(),
            machine: name.clone(),
            backend: spec.backend,
            image: spec.image.clone(),
            artifact: spec.artifact.clone(),
            command: spec.command.clone(),
            cpus: spec.cpus,
            memory_mib: spec.memory_mib,
            workdir: spec.workdir.clone(),
            user: spec.user.clone(),
            env: env.into_iter().collect(),
            secrets: spec.secrets.clone(),
            volumes: spec.volumes.clone(),
            ports: spec.ports.clone(),
            egress,
            sidecar,
            network,
            prompt_file: Path::new("launches").join(name).join("prompt"),
            prompt: spec.prompt.clone(),
            keep: spec.keep,
            commands: Vec::new(),
            requests,
            exec,
            io: spec.io,
        };
        plan.commands = plan.lines(spec, tools)?;
        Ok(plan)
    }

    /// Every command line, in order.
    fn lines(&self, spec: &LaunchSpec, tools: &Tools) -> Result<Vec<Vec<String>>> {
        let mut up: Vec<Vec<OsString>> = Vec::new();
        let mut down: Vec<Vec<OsString>> = Vec::new();
        let engine = |args: Vec<OsString>| -> Result<Vec<OsString>> {
            Ok([vec![tools.engine()?.program().as_os_str().to_owned()], args].concat())
        };
        if let Some(network) = &self.network {
            up.push(engine(container_args::create_network(&network.spec()))?);
            down.push(engine(container_args::remove_network(&network.name))?);
        }
        if let Some((sidecar, own)) = self.sidecar.as_ref().zip(spec.sidecar.as_ref()) {
            if let Some(build) = &own.build {
                let id_file = Path::new("(a temporary file)");
                up.insert(0, engine(container_args::build(build, id_file))?);
            }
            up.push(engine(container_args::create(&own.container(sidecar, &self.agent, &own.image)))?);
            let network = &sidecar.network.name;
            up.push(engine(container_args::connect(network, &sidecar.container, sidecar.ip))?);
            up.push(engine(container_args::start(&sidecar.container))?);
            down.push(engine(container_args::remove(tools.engine()?.kind(), &sidecar.container))?);
        }
        match &self.requests {
            Requests::Smolvm(create) => {
                let cli = tools.smolvm()?;
                let [made, started, run, stopped, deleted] =
                    cli.lines(create, &self.exec, self.io, Bounds::default().grace)?;
                up.extend([made, started]);
                if self.prompt.is_some() {
                    up.push(cli.put_line(&self.prompt_file, &self.machine, PROMPT)?);
                }
                up.push(run);
                down.extend([deleted, stopped]);
            }
            Requests::Container(create) => {
                if let Some(artifact) = &self.artifact {
                    // Unless the engine has it.
                    let loading = container::loading_name(&create.image);
                    up.push(engine(container_args::import(&loading, &container::labels(artifact)))?);
                    up.push(engine(container_args::tag(&loading, &create.image))?);
                    up.push(engine(container_args::remove_image(&loading))?);
                }
                up.push(engine(container_args::create(create))?);
                up.push(engine(container_args::start(&self.machine))?);
                if self.prompt.is_some() {
                    up.push(engine(container_args::copy_tar(&self.machine, "/"))?);
                }
                let exec = container::exec(&self.exec);
                up.push(engine(container_args::exec(&self.machine, &exec, Some(self.io)))?);
                down.push(engine(container_args::remove(tools.engine()?.kind(), &self.machine))?);
            }
        }
        down.reverse();
        let text =
            |words: Vec<OsString>| words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        Ok(up.into_iter().chain(down).map(text).collect())
    }
}

fn artifact_of(spec: &LaunchSpec) -> PathBuf {
    spec.artifact.as_ref().map_or_else(|| NOT_BUILT.into(), |artifact| artifact.path.clone())
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
