//! Containers and networks: one thin function per engine command.
//!
//! That something to be removed is not there is no error: whoever takes things
//! down may come twice.

use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ChildStdin;
use std::time::Duration;

use smolcellar_run::{Captured, ExecIo, Invocation, Limits, RunError, tail};

use crate::cli::{Engine, Kind};
use crate::container_argv::{self as argv, ContainerExec, ContainerSpec, NetworkSpec};
use crate::error::{EngineError, Result};
use crate::parse::{self, ContainerInfo};

impl Engine {
    /// An engine of this name that is not looked for: says what would be run,
    /// and must run nothing.
    pub fn assumed(choice: Option<&str>) -> Self {
        Self::named(PathBuf::from(choice.unwrap_or("docker")))
    }

    /// Makes an image of one layer from a tar that `write` writes.
    ///
    /// # Errors
    /// [`EngineError`]; so for all that follow.
    pub fn import(
        &self,
        image: &str,
        labels: &[(String, String)],
        limits: Limits<'_>,
        write: impl FnOnce(&mut ChildStdin) -> io::Result<()> + Send,
    ) -> Result<()> {
        let run = self.invocation("import", argv::import(image, labels));
        self.said(run.feed(limits, write)).map(drop)
    }

    /// The IDs of the images that have this label.
    ///
    /// # Errors
    /// See [`Engine::import`].
    pub fn images_labelled(&self, label: &str, limits: Limits<'_>) -> Result<Vec<String>> {
        let filter = format!("label={label}");
        let args = ["images", "--filter", &filter, "--format", "{{.ID}}"];
        self.lines("images", &args, limits)
    }

    /// The value of an image's label; `None` if there is no such image, or it
    /// has no such label.
    ///
    /// # Errors
    /// See [`Engine::import`].
    pub fn image_label(&self, image: &str, label: &str, limits: Limits<'_>) -> Result<Option<String>> {
        let format = format!("{{{{index .Config.Labels \"{label}\"}}}}");
        let run = self.invocation("image inspect", words(&["image", "inspect", "--format", &format, image]));
        let captured = self.answer(&run, limits)?;
        let value = captured.map(|captured| text(&captured.stdout).trim().to_owned());
        Ok(value.filter(|value| !value.is_empty() && value != "<no value>"))
    }

    /// Removes an image, if it is there and nothing uses it; whether it is
    /// gone.
    ///
    /// # Errors
    /// See [`Engine::import`], when the engine cannot be asked.
    pub fn remove_image(&self, image: &str, limits: Limits<'_>) -> Result<bool> {
        let run = self.invocation("rmi", argv::remove_image(image));
        let captured = run.capture(limits)?;
        Ok(captured.status.success() || parse::is_absent(&text(&captured.stderr)))
    }

    /// Whether a network can be had that the host has no address in:
    /// [`NetworkSpec::host_joins`].
    pub fn can_keep_host_out(&self) -> bool {
        self.kind() == Kind::Docker
    }

    /// Makes a network. `false`: its addresses are another network's.
    ///
    /// # Errors
    /// See [`Engine::import`].
    pub fn create_network(&self, spec: &NetworkSpec, limits: Limits<'_>) -> Result<bool> {
        let run = self.invocation("network create", argv::create_network(spec));
        match run.succeed(limits) {
            Err(RunError::Failed { stderr, .. }) if parse::is_overlap(&stderr) => Ok(false),
            result => self.said(result).map(|_| true),
        }
    }

    /// The IDs of the networks that have this label.
    ///
    /// # Errors
    /// See [`Engine::import`].
    pub fn networks_labelled(&self, label: &str, limits: Limits<'_>) -> Result<Vec<String>> {
        let filter = format!("label={label}");
        self.lines("network ls", &["network", "ls", "--quiet", "--filter", &filter], limits)
    }

    /// Removes a network, if it is there.
    ///
    /// # Errors
    /// See [`Engine::import`].
    pub fn remove_network(&self, name: &str, limits: Limits<'_>) -> Result<()> {
        self.gone(&self.invocation("network rm", argv::remove_network(name)), limits)
    }

    /// Gets an image from its registry.
    ///
    /// # Errors
    /// See [`Engine::import`].
    pub fn pull(&self, image: &str, limits: Limits<'_>) -> Result<()> {
        let run = self.invocation("pull", words(&["pull", "--quiet", image]));
        self.said(run.succeed(limits)).map(drop)
    }

    /// Gives an image one more name.
    ///
    /// # Errors
    /// See [`Engine::import`].
    pub fn tag(&self, image: &str, name: &str, limits: Limits<'_>) -> Result<()> {
        let run = self.invocation("tag", argv::tag(image, name));
        self.said(run.succeed(limits)).map(drop)
    }

    /// Makes a container, not started.
    ///
    /// # Errors
    /// See [`Engine::import`].
    pub fn create_container(&self, spec: &ContainerSpec, limits: Limits<'_>) -> Result<()> {
        let run = self.invocation("create", argv::create(spec));
        self.said(run.succeed(limits)).map(drop)
    }

    /// Connects a container to one more network.
    ///
    /// # Errors
    /// See [`Engine::import`].
    pub fn connect(
        &self,
        network: &str,
        container: &str,
        ip: std::net::Ipv4Addr,
        limits: Limits<'_>,
    ) -> Result<()> {
        let run = self.invocation("network connect", argv::connect(network, container, ip));
        self.said(run.succeed(limits)).map(drop)
    }

    /// Starts a container.
    ///
    /// # Errors
    /// See [`Engine::import`].
    pub fn start_container(&self, name: &str, limits: Limits<'_>) -> Result<()> {
        self.said(self.invocation("start", argv::start(name)).succeed(limits)).map(drop)
    }

    /// Stops a container, if it is there; it gets `grace` to end by itself.
    ///
    /// # Errors
    /// See [`Engine::import`].
    pub fn stop_container(&self, name: &str, grace: Duration, limits: Limits<'_>) -> Result<()> {
        self.gone(&self.invocation("stop", argv::stop(name, grace)), limits)
    }

    /// Removes a container, if it is there, running or not.
    ///
    /// # Errors
    /// See [`Engine::import`].
    pub fn remove_container(&self, name: &str, limits: Limits<'_>) -> Result<()> {
        self.gone(&self.invocation("rm", argv::remove(self.kind(), name)), limits)
    }

    /// What the engine knows of a container; `None` if there is none.
    ///
    /// # Errors
    /// See [`Engine::import`].
    pub fn container(&self, name: &str, limits: Limits<'_>) -> Result<Option<ContainerInfo>> {
        let args = words(&["container", "inspect", "--format", "{{json .}}", name]);
        let run = self.invocation("container inspect", args);
        let Some(captured) = self.answer(&run, limits)? else { return Ok(None) };
        let unexpected =
            |problem| EngineError::from(RunError::Output { operation: run.operation.clone(), problem });
        parse::container_info(&text(&captured.stdout)).map(Some).map_err(unexpected)
    }

    /// Runs a command in a running container with our streams; its exit code,
    /// or 128 + n when signal n ended the engine's client. `env` is what the
    /// client itself gets: see [`ContainerExec::from_client`].
    ///
    /// # Errors
    /// See [`Engine::import`]; a command that fails is none.
    pub fn exec(
        &self,
        container: &str,
        exec: &ContainerExec,
        env: &[(OsString, OsString)],
        io: ExecIo,
        limits: Limits<'_>,
    ) -> Result<i32> {
        let mut run = self.invocation("exec", argv::exec(container, exec, Some(io)));
        run.env = env.to_vec();
        Ok(run.stream(io, limits)?)
    }

    /// What a container's own program printed, its last `lines` of both
    /// streams.
    ///
    /// # Errors
    /// See [`Engine::import`].
    pub fn container_logs(&self, name: &str, lines: u32, limits: Limits<'_>) -> Result<String> {
        let run = self.invocation("logs", words(&["logs", "--tail", &lines.to_string(), name]));
        let captured = self.said(run.succeed(limits))?;
        Ok(tail(&[captured.stdout, captured.stderr].concat()))
    }

    /// Copies a file or a folder into a container, or out of it: one of both
    /// is `CONTAINER:PATH`. A link that is named is followed, where it is.
    ///
    /// # Errors
    /// See [`Engine::import`].
    pub fn copy(&self, from: &Path, to: &Path, limits: Limits<'_>) -> Result<()> {
        let mut args = words(&["cp"]);
        if self.kind() == Kind::Docker {
            // Podman always does.
            args.push("--follow-link".into());
        }
        args.extend([from.into(), to.into()]);
        let run = self.invocation("cp", args);
        self.said(run.succeed(limits)).map(drop)
    }

    /// Unpacks a tar that `write` writes in a folder of a container.
    ///
    /// # Errors
    /// See [`Engine::import`].
    pub fn copy_tar(
        &self,
        container: &str,
        folder: &str,
        limits: Limits<'_>,
        write: impl FnOnce(&mut ChildStdin) -> io::Result<()> + Send,
    ) -> Result<()> {
        let run = self.invocation("cp", argv::copy_tar(container, folder));
        self.said(run.feed(limits, write)).map(drop)
    }

    pub(crate) fn invocation(&self, command: &str, args: Vec<OsString>) -> Invocation {
        Invocation {
            operation: format!("{} {command}", self.name()),
            program: self.program().to_owned(),
            args,
            env: Vec::new(),
            stray: None,
        }
    }

    /// A question about something; `None`: there is no such thing.
    pub(crate) fn answer(&self, run: &Invocation, limits: Limits<'_>) -> Result<Option<Captured>> {
        match run.succeed(limits) {
            Err(RunError::Failed { stderr, .. }) if parse::is_absent(&stderr) => Ok(None),
            result => self.said(result).map(Some),
        }
    }

    fn gone(&self, run: &Invocation, limits: Limits<'_>) -> Result<()> {
        self.answer(run, limits).map(drop)
    }

    fn lines(&self, command: &str, args: &[&str], limits: Limits<'_>) -> Result<Vec<String>> {
        let captured = self.said(self.invocation(command, words(args)).succeed(limits))?;
        Ok(text(&captured.stdout).lines().map(str::to_owned).collect())
    }

    /// Words the engine's absence as such.
    fn said<T>(&self, result: Result<T, RunError>) -> Result<T> {
        result.map_err(|error| match &error {
            RunError::Failed { stderr, .. } => match parse::unreachable(stderr) {
                Some(said) => EngineError::Unreachable { program: self.name(), said },
                None => error.into(),
            },
            _ => error.into(),
        })
    }
}

impl ContainerInfo {
    /// Where a published port is on this host.
    pub fn published(&self, port: u16) -> Option<SocketAddr> {
        self.published.iter().find(|(inner, _)| *inner == port).map(|(_, address)| *address)
    }

    /// Its address in a network.
    pub fn address(&self, network: &str) -> Option<IpAddr> {
        self.addresses.iter().find(|(name, _)| name == network).map(|(_, address)| *address)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}
