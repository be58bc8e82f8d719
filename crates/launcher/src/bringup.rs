//! Bring-up and teardown: machine create → start → exec, and back.

use std::time::Duration;

use smolcellar_smolvm::{Cli, Limits, Runtime};
use smolcellar_store::{Event, Lease, Reporter, Store};

use crate::error::{LaunchError, Result};
use crate::handle::{AsCancel, Machine};
use crate::plan::{LaunchSpec, Plan};
use crate::preflight::Host;
use crate::signals::Interrupt;
use crate::undo::UndoStack;

/// The longest that each step may take.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// `machine create`. The first of an artifact unpacks it.
    pub create: Duration,
    /// `machine start`, until the guest's agent answers.
    pub start: Duration,
    /// What the guest gets to end by itself. What ran in it has ended.
    pub grace: Duration,
    /// `machine stop`.
    pub stop: Duration,
    /// A machine's processes, after a stop, before they are killed.
    pub gone: Duration,
    /// `machine delete`.
    pub delete: Duration,
    /// Any question.
    pub query: Duration,
}

impl Default for Bounds {
    /// Wide enough for a machine that emulates virtualisation.
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            create: seconds(600),
            start: seconds(180),
            grace: seconds(2),
            stop: seconds(8),
            gone: seconds(2),
            delete: seconds(15),
            query: seconds(10),
        }
    }
}

/// Boots `spec.artifact`, runs the command, takes everything down, and returns
/// the guest's exit code, or 128 + n when signal n ended it.
///
/// # Errors
/// See [`Launcher::run`].
pub fn launch(
    runtime: &Runtime,
    store: &Store,
    spec: LaunchSpec,
    reporter: &dyn Reporter,
    interrupt: &dyn Interrupt,
) -> Result<i32> {
    Launcher::new(Cli::new(runtime)?, store, reporter, interrupt).run(spec)
}

/// What a launch works with.
pub struct Launcher<'a> {
    cli: Cli,
    store: &'a Store,
    reporter: &'a dyn Reporter,
    interrupt: &'a dyn Interrupt,
    host: Host,
    bounds: Bounds,
}

impl<'a> Launcher<'a> {
    /// On this host, with the default bounds.
    pub fn new(cli: Cli, store: &'a Store, reporter: &'a dyn Reporter, interrupt: &'a dyn Interrupt) -> Self {
        Self { cli, store, reporter, interrupt, host: Host::default(), bounds: Bounds::default() }
    }

    /// Looks for virtualisation elsewhere.
    #[must_use]
    pub fn with_host(self, host: Host) -> Self {
        Self { host, ..self }
    }

    /// With other bounds.
    #[must_use]
    pub fn with_bounds(self, bounds: Bounds) -> Self {
        Self { bounds, ..self }
    }

    /// Launches. Whatever the result, the machine is gone afterwards; if it
    /// cannot be proved gone, a warning says what is left and how to remove it.
    ///
    /// # Errors
    /// [`LaunchError::NoVirtualisation`], [`LaunchError::NoCommand`],
    /// [`LaunchError::BadOption`] and [`LaunchError::NoArtifact`] before
    /// anything is made; [`LaunchError::Smolvm`] when a step failed;
    /// [`LaunchError::MachineDied`]; [`LaunchError::Store`].
    pub fn run(&self, spec: LaunchSpec) -> Result<i32> {
        let plan = Plan::resolve(spec, &self.cli)?;
        check_host(&plan)?;
        self.host.virtualisation()?;
        let Some(artifact) = &plan.artifact else {
            return Err(LaunchError::NoArtifact(plan.create.artifact));
        };
        // Held until the machine is gone: the artifact must outlive it.
        let _in_use = self.store.lock_use(&artifact.key, self.reporter)?;
        if !artifact.path.is_file() {
            return Err(LaunchError::NoArtifact(artifact.path.clone()));
        }
        if self.cli.version().always_runs_entrypoint() {
            let text = format!(
                "smolvm {} also runs the image's entrypoint in the background; 1.17.0 and newer do not",
                self.cli.version()
            );
            self.reporter.report(Event::Note { text: &text });
        }
        self.sweep()?;
        if let Some(signal) = self.interrupt.signal() {
            return Ok(128 + signal);
        }
        let name = plan.create.name.clone();
        // Durable before the machine is made, and there until it is gone.
        let lease = self.store.lease(&name, &artifact.key, &place())?;
        let machine = Machine::new(&self.cli, &name, &self.bounds);
        let mut undo = UndoStack::new(self.reporter);
        let result = self.bring_up(&plan, &machine, &mut undo);
        if undo.unwind() == 0 {
            self.end(lease);
        }
        match (result, self.interrupt.signal()) {
            (Err(_), Some(signal)) => Ok(128 + signal),
            (result, _) => result,
        }
    }

    /// Takes down what launchers left that were killed; only that: a lease says
    /// which machine, and that its launcher is gone.
    fn sweep(&self) -> Result<()> {
        for lease in self.store.orphaned_leases()? {
            if self.interrupt.cancelled() {
                break;
            }
            // Another user's, or of another smolvm's folder: not ours to judge.
            if lease.record().place != place() {
                continue;
            }
            let name = &lease.record().machine;
            let text =
                format!("removing machine {name}, whose launcher (pid {}) is gone", lease.record().pid);
            self.reporter.report(Event::Note { text: &text });
            let machine = Machine::new(&self.cli, name, &self.bounds);
            match machine.stop().and_then(|()| machine.delete()) {
                Ok(()) => self.end(lease),
                // Kept: the next launch tries again.
                Err(problem) => {
                    let text = format!("could not remove machine {name}: {problem}");
                    self.reporter.report(Event::Warn { text: &text });
                }
            }
        }
        Ok(())
    }

    /// A lease that cannot be removed is an orphan for the next launch.
    fn end(&self, lease: Lease) {
        if let Err(error) = lease.end() {
            self.reporter.report(Event::Warn { text: &error.to_string() });
        }
    }

    fn bring_up<'m>(&self, plan: &Plan, machine: &'m Machine<'_>, undo: &mut UndoStack<'m>) -> Result<i32> {
        let name = &plan.create.name;
        undo.push(format!("delete machine {name}"), || machine.delete());
        self.step("create machine", self.bounds.create, |limits| self.cli.create(&plan.create, limits))?;
        undo.push(format!("stop machine {name}"), || machine.stop());
        self.step("start machine", self.bounds.start, |limits| self.cli.start(name, limits))?;
        machine.exec(&plan.exec, plan.io, self.interrupt)
    }

    fn step(
        &self,
        task: &str,
        timeout: Duration,
        run: impl FnOnce(Limits<'_>) -> smolcellar_smolvm::Result<()>,
    ) -> Result<()> {
        self.reporter.report(Event::Begin { task, total: None });
        let result = run(Limits { timeout: Some(timeout), cancel: &AsCancel(self.interrupt) });
        self.reporter.report(Event::End { task });
        Ok(result?)
    }
}

/// Where smolvm's machines of this process are: what decides that, and whose
/// process numbers count there.
fn place() -> String {
    let var = |name: &str| std::env::var_os(name).unwrap_or_default().to_string_lossy().into_owned();
    let processes = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    let user = rustix::process::geteuid().as_raw();
    let folders = ["SMOLVM_DATA_DIR", "XDG_DATA_HOME", "XDG_CACHE_HOME", "HOME"].map(var).join(":");
    format!("{user}:{}:{folders}", processes.display())
}

/// What a plan needs of this host, which its making did not look at.
fn check_host(plan: &Plan) -> Result<()> {
    for volume in &plan.volumes {
        if !volume.host.exists() {
            return Err(LaunchError::BadOption {
                what: "volume",
                value: volume.to_string(),
                problem: "names a folder that this host does not have",
            });
        }
    }
    for secret in &plan.secrets {
        if std::env::var_os(&secret.host).is_none() {
            return Err(LaunchError::BadOption {
                what: "secret",
                value: secret.guest.clone(),
                problem: "refers to a variable that is not set",
            });
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "bringup_tests.rs"]
mod tests;
