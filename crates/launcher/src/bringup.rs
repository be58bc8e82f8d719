//! Bring-up and teardown: network → sidecar → create → start → exec, and back.

use std::fs::File;
use std::io::{self, Write};

use smolcellar_run::Limits;
use smolcellar_store::{Event, Lease, NewLease, Reporter, Store};

use crate::bounds::Bounds;
use crate::container::{self, Container};
use crate::container_image;
use crate::error::{LaunchError, Result};
use crate::forward::Forwards;
use crate::guest::Guest;
use crate::machine::Machine;
use crate::plan::Plan;
use crate::preflight::Host;
use crate::record::{LaunchRecord, is_here, place};
use crate::sidecar_up::Surroundings;
use crate::signals::Interrupt;
use crate::spec::{Backend, LaunchSpec, PROMPT, Tools};
use crate::subnet::Subnet;
use crate::undo::UndoStack;

/// Takes the file that a guest's output is to go to from now on.
pub type TakeLog<'a> = dyn Fn(File) -> io::Result<()> + 'a;

/// What a launch works with.
pub struct Launcher<'a> {
    pub(crate) tools: Tools,
    pub(crate) store: &'a Store,
    pub(crate) reporter: &'a dyn Reporter,
    pub(crate) interrupt: &'a dyn Interrupt,
    host: Option<Host>,
    pub(crate) bounds: Bounds,
    log: Option<&'a TakeLog<'a>>,
}

impl<'a> Launcher<'a> {
    /// On this host, with the default bounds.
    pub fn new(
        tools: Tools,
        store: &'a Store,
        reporter: &'a dyn Reporter,
        interrupt: &'a dyn Interrupt,
    ) -> Self {
        let host = Some(Host::default());
        Self { tools, store, reporter, interrupt, host, bounds: Bounds::default(), log: None }
    }

    /// Looks for virtualisation elsewhere; `None`: does not look, and tries.
    #[must_use]
    pub fn with_host(self, host: Option<Host>) -> Self {
        Self { host, ..self }
    }

    /// With other bounds.
    #[must_use]
    pub fn with_bounds(self, bounds: Bounds) -> Self {
        Self { bounds, ..self }
    }

    /// In the background: as soon as the guest is up, `take` gets a new file
    /// for its output, beside its lease.
    #[must_use]
    pub fn with_log(self, take: &'a TakeLog<'a>) -> Self {
        Self { log: Some(take), ..self }
    }

    /// Boots `spec.artifact`, runs the command and returns the guest's exit code,
    /// or 128 + n when signal n ended it. Whatever the result, everything that
    /// was made is gone afterwards, but a guest that is to be kept and whose
    /// command came to its end; if something cannot be proved gone, a warning
    /// says what is left and how to remove it.
    ///
    /// # Errors
    /// [`LaunchError::NoVirtualisation`], [`LaunchError::NoCommand`],
    /// [`LaunchError::BadOption`], [`LaunchError::NoArtifact`],
    /// [`LaunchError::Port`] and [`LaunchError::NameTaken`] before anything is
    /// made; [`LaunchError::Smolvm`] or [`LaunchError::Engine`] when a step
    /// failed; [`LaunchError::Sidecar`]; [`LaunchError::MachineDied`];
    /// [`LaunchError::Store`].
    pub fn run(&self, spec: &LaunchSpec) -> Result<i32> {
        match (self.go(spec), self.interrupt.signal()) {
            (Err(_), Some(signal)) => Ok(128 + signal),
            (result, _) => result,
        }
    }

    fn go(&self, spec: &LaunchSpec) -> Result<i32> {
        let plan = Plan::resolve(spec, &self.tools)?;
        check_host(&plan)?;
        if let (Backend::Smolvm, Some(host)) = (plan.backend, &self.host) {
            host.virtualisation()?;
        }
        let Some(artifact) = &spec.artifact else {
            return Err(LaunchError::NoArtifact("(not built)".into()));
        };
        let there = || match artifact.path.is_file() {
            true => Ok(()),
            false => Err(LaunchError::NoArtifact(artifact.path.clone())),
        };
        there()?;
        if plan.backend == Backend::Docker {
            // Before the use lock: build locks come first.
            let patient = Patient(self.reporter, self.interrupt);
            container_image::load(self.tools.engine()?, self.store, artifact, &patient, self.interrupt)?;
        }
        // Held until the machine is gone: the artifact must outlive it.
        let _in_use = self.store.lock_use(&artifact.key, &Patient(self.reporter, self.interrupt))?;
        there()?;
        self.notes(&plan)?;
        self.sweep()?;
        if let Some(signal) = self.interrupt.signal() {
            return Ok(128 + signal);
        }
        let mut forwards = match plan.backend {
            Backend::Docker => Forwards::bind(&plan.ports)?,
            Backend::Smolvm => Forwards::bind(&[])?,
        };
        let name = plan.machine.clone();
        let guest = self.guest(plan.backend, &name)?;
        let record = LaunchRecord::of(&plan, &self.tools);
        // Durable before anything is made, and there until all of it is gone.
        let new = NewLease {
            machine: name.clone(),
            artifact: artifact.key.clone(),
            place: place(&record),
            launch: record.json(),
        };
        let taken = || LaunchError::NameTaken(name.clone());
        let mut lease = self.store.lease(new)?.ok_or_else(taken)?;
        // A name of the user's choice may be that of somebody's machine.
        if spec.name_chosen {
            let state = guest.state();
            if !matches!(state, Ok(None)) {
                self.end(lease);
                return Err(state.err().unwrap_or_else(taken));
            }
        }
        let mut undo = UndoStack::new(self.reporter);
        let result = self.bring_up(spec, plan, guest.as_ref(), &mut lease, &mut undo, &mut forwards);
        // Once it is up, only a signal to us takes it down: what somebody stops
        // from outside is to stay, stopped.
        let ended = match &result {
            Ok(code) => Some(*code),
            Err(LaunchError::MachineDied(_)) => Some(KILLED),
            Err(_) => None,
        };
        if let (Some(code), None, true) = (ended, self.interrupt.signal(), lease.record().kept) {
            undo.forget();
            self.warn(lease.update(self.store, |record| record.ended = Some(code)));
            return result;
        }
        if lease.record().kept {
            // What cannot be taken down now is the next launch's to remove.
            self.warn(lease.update(self.store, |record| record.kept = false));
        }
        let late = result.as_ref().is_err_and(may_still_come);
        if undo.unwind() == 0 && !late {
            self.end(lease);
        } else if late {
            let text = format!(
                "the engine was too slow, and may still make what {name} was to have; the next launch removes that"
            );
            self.reporter.report(Event::Warn { text: &text });
        }
        result
    }

    fn bring_up<'m>(
        &'m self,
        spec: &LaunchSpec,
        mut plan: Plan,
        guest: &'m dyn Guest,
        lease: &mut Lease,
        undo: &mut UndoStack<'m>,
        forwards: &mut Forwards,
    ) -> Result<i32> {
        let name = plan.machine.clone();
        // Always there, whatever is in it.
        let mut prompt = lease.create_private("prompt")?;
        if let Some(given) = &spec.prompt {
            let path = lease.folder().join("prompt");
            prompt.write_all(&given.text).map_err(smolcellar_store::StoreError::io("write", path))?;
        }
        let surroundings =
            Surroundings { spec, tools: &self.tools, bounds: &self.bounds, interrupt: self.interrupt };
        if plan.network.is_some() {
            let engine = self.tools.engine()?;
            let machine = name.clone();
            let bounds = &self.bounds;
            undo.push(format!("remove network {name}"), move || {
                container::remove_network(engine, &machine, bounds)
            });
            let found;
            (plan, found) = self.step("make the network", || surroundings.network(plan))?;
            self.go_on()?;
            if let Some(sidecar) = &plan.sidecar {
                let (container, machine) = (sidecar.container.clone(), name.clone());
                undo.push(format!("remove sidecar {container}"), move || {
                    container::remove(engine, &container, &machine, bounds)
                });
                let scratch = self.store.scratch()?;
                plan = self.step("start the sidecar", || surroundings.sidecar(plan, found, &scratch))?;
            }
        }
        self.go_on()?;
        undo.push(format!("delete machine {name}"), || guest.delete());
        self.step("create machine", || guest.create(&plan, self.interrupt))?;
        if plan.backend == Backend::Smolvm {
            // Deleting a container ends what runs in it.
            undo.push(format!("stop machine {name}"), || guest.stop());
        }
        self.step("start machine", || guest.start(self.interrupt))?;
        self.go_on()?;
        if plan.prompt.is_some() {
            guest.put(&lease.folder().join("prompt"), PROMPT, Limits::within(self.bounds.query))?;
        }
        if plan.backend == Backend::Docker
            && let Some(network) = &plan.network
        {
            forwards.begin(Subnet::guest_of(network.gateway));
        }
        if let Some(take) = self.log {
            let log = lease.create_private("log")?;
            take(log).map_err(smolcellar_store::StoreError::io("write to", lease.folder()))?;
        }
        if plan.keep {
            lease.update(self.store, |record| record.kept = true)?;
        }
        let code = guest.exec(&plan.exec, plan.io, self.interrupt);
        if !matches!(code, Ok(0)) && self.interrupt.signal().is_none() {
            self.report_denials(guest);
        }
        code
    }

    /// Between two steps: whether a signal came.
    fn go_on(&self) -> Result<()> {
        match self.interrupt.cancelled() {
            true => Err(LaunchError::Interrupted),
            false => Ok(()),
        }
    }

    /// What of the guest's connections was refused, which may be why it failed.
    pub(crate) fn report_denials(&self, guest: &dyn Guest) {
        for refused in guest.denials() {
            let text =
                format!("egress refused: {refused}; --allow-cidr or --allow-host would let it through");
            self.reporter.report(Event::Note { text: &text });
        }
    }

    fn notes(&self, plan: &Plan) -> Result<()> {
        match plan.backend {
            Backend::Smolvm => {
                let version = self.tools.smolvm()?.version();
                if version.always_runs_entrypoint() {
                    let text = format!(
                        "smolvm {version} also runs the image's entrypoint in the background; 1.17.0 and newer do not"
                    );
                    self.reporter.report(Event::Note { text: &text });
                }
            }
            Backend::Docker => {
                let text = "this is a container, not a virtual machine: it shares this machine's kernel";
                self.reporter.report(Event::Note { text });
                if let Some(network) = plan.network.as_ref().filter(|network| network.host_joins) {
                    let text = format!(
                        "this host is in the container's network, as {}: the container reaches what it serves there",
                        network.gateway
                    );
                    self.reporter.report(Event::Note { text: &text });
                }
            }
        }
        Ok(())
    }

    /// The guest of this name, whether there is one or not.
    pub(crate) fn guest<'g>(&'g self, backend: Backend, name: &'g str) -> Result<Box<dyn Guest + 'g>> {
        Ok(match backend {
            Backend::Smolvm => Box::new(Machine::new(self.tools.smolvm()?, name, &self.bounds)),
            Backend::Docker => Box::new(Container::new(self.tools.engine()?, name, &self.bounds)),
        })
    }

    /// Takes down what launchers left that were killed; only that: a lease says
    /// which machine, and that its launcher is gone.
    fn sweep(&self) -> Result<()> {
        for seen in self.store.leases()? {
            if self.interrupt.cancelled() {
                break;
            }
            let record = LaunchRecord::read(&seen.record);
            // Kept on purpose, or not ours to judge.
            if seen.attended || seen.record.kept || !is_here(&seen.record) || !record.is_of(&self.tools) {
                continue;
            }
            // One at a time: who else wants another of them must not wait for this one.
            let Some(lease) = self.store.orphaned_lease(&seen.record.machine)? else { continue };
            if *lease.record() != seen.record {
                continue;
            }
            let name = lease.record().machine.clone();
            let text =
                format!("removing machine {name}, whose launcher (pid {}) is gone", lease.record().pid);
            self.reporter.report(Event::Note { text: &text });
            match self.take_down(&name, &record) {
                Ok(()) => self.end(lease),
                // Its lease stays: the next launch tries again.
                Err(problem) => {
                    let text = format!("could not remove machine {name}: {problem}");
                    self.reporter.report(Event::Warn { text: &text });
                }
            }
        }
        Ok(())
    }

    /// Takes down all that a launch has whose launcher is gone, whether it is
    /// there or not.
    pub(crate) fn take_down(&self, name: &str, record: &LaunchRecord) -> Result<(), String> {
        let text = |error: LaunchError| error.to_string();
        if record.needs_engine() {
            container::end_clients(self.tools.engine().map_err(text)?, name, &self.bounds)?;
        }
        let guest = self.guest(record.backend, name).map_err(text)?;
        guest.stop()?;
        guest.delete()?;
        if record.sidecar {
            let engine = self.tools.engine().map_err(text)?;
            container::remove(engine, &crate::sidecar::container_name(name), name, &self.bounds)?;
        }
        if record.network {
            container::remove_network(self.tools.engine().map_err(text)?, name, &self.bounds)?;
        }
        Ok(())
    }

    /// A lease that cannot be removed is an orphan for the next launch.
    pub(crate) fn end(&self, lease: Lease) {
        self.warn(lease.end());
    }

    fn warn<T>(&self, result: smolcellar_store::Result<T>) {
        if let Err(error) = result {
            self.reporter.report(Event::Warn { text: &error.to_string() });
        }
    }

    fn step<T>(&self, task: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
        self.reporter.report(Event::Begin { task, total: None });
        let result = run();
        self.reporter.report(Event::End { task });
        result
    }
}

/// The exit code of a command whose machine was taken from under it: as if it
/// had been killed (128 + 9).
const KILLED: i32 = 137;

/// Whether something may be made after all, now that nobody waits for it.
fn may_still_come(error: &LaunchError) -> bool {
    use smolcellar_engine::EngineError;
    use smolcellar_run::RunError;
    matches!(error, LaunchError::Engine(EngineError::Program(RunError::TimedOut { .. })))
}

/// Reports, and waits for locks until a signal comes.
struct Patient<'a>(&'a dyn Reporter, &'a dyn Interrupt);

impl Reporter for Patient<'_> {
    fn report(&self, event: Event<'_>) {
        self.0.report(event);
    }

    fn gives_up(&self) -> bool {
        self.1.cancelled()
    }
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
    check_secrets(&plan.secrets)
}

/// That every secret has a value.
pub(crate) fn check_secrets(secrets: &[smolcellar_smolvm::Secret]) -> Result<()> {
    for secret in secrets {
        if std::env::var_os(&secret.host).is_none() {
            return Err(LaunchError::BadOption {
                what: "secret",
                value: secret.to_string(),
                problem: "refers to a variable that is not set here",
            });
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "bringup_tests.rs"]
mod tests;
