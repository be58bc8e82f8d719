//! A container as a guest: the same artifact, without a machine of its own. It
//! idles; commands are run in it from outside, as in a microVM. So a secret is
//! the command's alone, and in no record of the engine's.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use smolcellar_engine::{Attachment, ContainerExec, ContainerSpec, Engine};
use smolcellar_run::{ExecIo, Limits};
use smolcellar_smolvm::ExecRequest;

use crate::bounds::Bounds;
use crate::container_image::tar_entry;
use crate::error::{LaunchError, Result};
use crate::guest::{Guest, State, Transfer};
use crate::plan::{Plan, Requests};
use crate::process::{Process, wait_gone};
use crate::sidecar::{Network, Sidecar, container_name};
use crate::signals::Interrupt;
use crate::spec::{Artifact, LABEL, LaunchSpec};
use crate::subnet::Subnet;

/// The idle program in the container.
pub(crate) const IDLE: &str = "/.smolcellar-idle";
/// Labels of the image: the artifact's key and digest, and whose it is.
pub(crate) const KEY: &str = "dev.smolcellar.artifact";
pub(crate) const SHA256: &str = "dev.smolcellar.sha256";
pub(crate) const STORE: &str = "dev.smolcellar.store";

/// The name of an artifact's image.
pub(crate) fn image_name(artifact: &Artifact) -> String {
    let (image, recipe) = artifact.key.split_once('-').unwrap_or((&artifact.key, ""));
    let short = |hex: &str| hex.chars().take(16).collect::<String>();
    format!("smolcellar/artifact:{}-{}", short(image), short(recipe))
}

/// Its name while it is loaded.
pub(crate) fn loading_name(image: &str) -> String {
    format!("{image}-loading")
}

/// What says that an image is an artifact's.
pub(crate) fn labels(artifact: &Artifact) -> Vec<(String, String)> {
    vec![(KEY.to_owned(), artifact.key.clone()), (SHA256.to_owned(), artifact.sha256.to_string())]
}

/// The container that a launch wants.
pub(crate) fn spec(
    spec: &LaunchSpec,
    network: Option<&Network>,
    subnet: Subnet,
    sidecar: Option<&Sidecar>,
    env: Vec<(String, String)>,
) -> ContainerSpec {
    let attachment = match network {
        // Without one there is nothing to reach, so there is no way to anywhere.
        None => Attachment::None,
        Some(network) => Attachment::Network { name: network.name.clone(), ip: subnet.guest() },
    };
    ContainerSpec {
        name: spec.machine_name.clone(),
        image: spec.artifact.as_ref().map_or_else(|| "(the artifact, built first)".to_owned(), image_name),
        labels: vec![(LABEL.to_owned(), spec.machine_name.clone())],
        network: attachment,
        // Else the engine asks the host's resolver for it, which leads out of a
        // network that leads nowhere (CVE-2024-29018).
        dns: network.map(|_| sidecar.map_or(std::net::Ipv4Addr::LOCALHOST, |sidecar| sidecar.ip)),
        cpus: spec.cpus,
        memory_mib: spec.memory_mib,
        env,
        volumes: spec.volumes.iter().map(ToString::to_string).collect(),
        publish: Vec::new(),
        workdir: None,
        // It could send past the sidecar what that would then pass on.
        options: words(&["--cap-drop", "NET_RAW"]),
        command: vec![IDLE.to_owned()],
    }
}

pub(crate) fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

/// What is run in it.
pub(crate) fn exec(request: &ExecRequest) -> ContainerExec {
    ContainerExec {
        command: request.command.clone(),
        env: request.env.clone(),
        from_client: request.secrets.iter().map(|secret| secret.guest.clone()).collect(),
        workdir: request.workdir.clone(),
        user: request.user.clone(),
    }
}

/// One container of a launch.
pub(crate) struct Container<'a> {
    engine: &'a Engine,
    name: &'a str,
    bounds: &'a Bounds,
}

impl<'a> Container<'a> {
    pub(crate) fn new(engine: &'a Engine, name: &'a str, bounds: &'a Bounds) -> Self {
        Self { engine, name, bounds }
    }

    fn query(&self) -> Limits<'static> {
        Limits::within(self.bounds.query)
    }
}

impl Guest for Container<'_> {
    fn create(&self, plan: &Plan, _: &dyn Interrupt) -> Result<()> {
        let Requests::Container(spec) = &plan.requests else { return Ok(()) };
        Ok(self.engine.create_container(spec, Limits::within(self.bounds.engine))?)
    }

    fn start(&self, _: &dyn Interrupt) -> Result<()> {
        Ok(self.engine.start_container(self.name, Limits::within(self.bounds.engine))?)
    }

    fn exec(&self, request: &ExecRequest, io: ExecIo, interrupt: &dyn Interrupt) -> Result<i32> {
        // The client has the values under the guest's names, and hands them on.
        let values = request.secrets.iter().filter_map(|secret| {
            let value = std::env::var_os(&secret.host)?;
            Some((OsString::from(&secret.guest), value))
        });
        let env: Vec<_> = values.collect();
        let limits = Limits { timeout: None, cancel: interrupt };
        let code = self.engine.exec(self.name, &exec(request), &env, io, limits)?;
        if code != 0 && self.is_down(code)? {
            return Err(LaunchError::MachineDied(self.name.to_owned()));
        }
        Ok(code)
    }

    fn put(&self, contents: &Path, path: &str, limits: Limits<'_>) -> Result<()> {
        let failed = smolcellar_store::StoreError::io("read", contents);
        let entry = |bytes: Vec<u8>| tar_entry(path.trim_start_matches('/'), &bytes, 0o444);
        let mut tar = std::fs::read(contents).and_then(entry).map_err(failed)?;
        tar.extend([0; 1024]);
        let write = |to: &mut std::process::ChildStdin| std::io::Write::write_all(to, &tar);
        Ok(self.engine.copy_tar(self.name, "/", limits, write)?)
    }

    fn copy(&self, copy: &Transfer, limits: Limits<'_>) -> Result<()> {
        let guest = |path: &str| PathBuf::from(format!("{}:{path}", self.name));
        // A path with a colon, or that begins with `-`, is neither with a `/` first.
        let host = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let (from, to) = match copy {
            Transfer::In { from, to } => (host(from), guest(to)),
            Transfer::Out { from, to } => (guest(from), host(to)),
        };
        Ok(self.engine.copy(&from, &to, limits)?)
    }

    fn state(&self) -> Result<Option<State>> {
        let info = self.engine.container(self.name, self.query())?;
        Ok(info.map(|info| if info.running { State::Running } else { State::Stopped }))
    }

    fn denials(&self) -> Vec<String> {
        Vec::new()
    }

    fn stop(&self) -> Result<(), String> {
        // All that runs in it was run from outside and is not asked; the idle
        // program hears no signal.
        stop(self.engine, self.name, self.name, std::time::Duration::ZERO, self.bounds)
    }

    fn delete(&self) -> Result<(), String> {
        remove(self.engine, self.name, self.name, self.bounds)
    }
}

impl Container<'_> {
    /// Whether the container ended, and not only the command. What the engine
    /// says of that lags behind the death of what was killed with it.
    fn is_down(&self, code: i32) -> Result<bool> {
        let looks = if code == 137 { 10 } else { 1 };
        for look in 0..looks {
            if look > 0 {
                std::thread::sleep(std::time::Duration::from_millis(30));
            }
            // If it cannot be asked, nobody knows whose code that was.
            if matches!(self.state()?, None | Some(State::Stopped)) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Whether there is a container of this name that is of the launch of `machine`.
fn is_ours(engine: &Engine, name: &str, machine: &str, bounds: &Bounds) -> Result<bool, String> {
    let info = engine.container(name, Limits::within(bounds.query)).map_err(|error| error.to_string())?;
    Ok(info.is_some_and(|info| info.labels.get(LABEL).is_some_and(|label| label == machine)))
}

/// Stops a container of the launch of `machine`. One of that name that is
/// somebody else's goes on.
pub(crate) fn stop(
    engine: &Engine,
    name: &str,
    machine: &str,
    grace: std::time::Duration,
    bounds: &Bounds,
) -> Result<(), String> {
    if !is_ours(engine, name, machine, bounds)? {
        return Ok(());
    }
    let stopped = engine.stop_container(name, grace, Limits::within(bounds.stop + grace));
    stopped.map_err(|error| error.to_string())
}

/// Removes a container of the launch of `machine`, and sees to it that it is
/// gone. One of that name that is somebody else's stays.
pub(crate) fn remove(engine: &Engine, name: &str, machine: &str, bounds: &Bounds) -> Result<(), String> {
    if !is_ours(engine, name, machine, bounds)? {
        return Ok(());
    }
    let removed = engine.remove_container(name, Limits::within(bounds.delete));
    if !is_ours(engine, name, machine, bounds)? {
        return Ok(());
    }
    let said = removed.err().map_or_else(|| "it is still there".to_owned(), |error| error.to_string());
    Err(format!("{said}; remove it by hand: `{} rm -f {name}`", engine.program().display()))
}

/// Removes the network of the launch of `machine`.
pub(crate) fn remove_network(engine: &Engine, machine: &str, bounds: &Bounds) -> Result<(), String> {
    let networks = engine.networks_labelled(&format!("{LABEL}={machine}"), Limits::within(bounds.query));
    for network in networks.map_err(|error| error.to_string())? {
        let removed = engine.remove_network(&network, Limits::within(bounds.delete));
        removed.map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Waits until the clients of the engine that a dead launcher left at work on
/// its things are done. Killed, they would tell nobody when the engine, which
/// goes on without them, is. But for those that only watch.
pub(crate) fn end_clients(engine: &Engine, machine: &str, bounds: &Bounds) -> Result<(), String> {
    let clients = |name: &str| Process::of_program_but(engine.program(), name, &["exec", "logs", "cp"]);
    let all = [clients(machine), clients(&container_name(machine))].concat();
    match wait_gone(all, bounds.query).first() {
        None => Ok(()),
        Some(client) => Err(format!("process {} of the engine's client still works on it", client.pid())),
    }
}
