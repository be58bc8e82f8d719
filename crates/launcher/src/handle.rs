//! Launches that are there, by their leases: what is in them, and what can be
//! done with them from another process.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use smolcellar_run::{ExecIo, Limits};
use smolcellar_smolvm::ExecRequest;
use smolcellar_store::{SeenLease, Store};

use crate::bringup::{Launcher, check_secrets};
use crate::container;
use crate::error::{LaunchError, Result};
use crate::guest::{State, Transfer};
use crate::record::{LaunchRecord, is_here};
use crate::sidecar::container_name;
use crate::spec::Backend;

/// How long a copy may take.
const COPY: Duration = Duration::from_secs(3600);
/// How long the launcher of a machine that was stopped has to take it down.
const LAUNCHER: Duration = Duration::from_secs(30);

/// What all machines' names begin with, and nobody wants to type.
const PREFIX: &str = "smolcellar-";

/// A launch that is there.
#[derive(Debug, Clone)]
pub struct Launched {
    /// The machine's name.
    pub machine: String,
    /// The agent.
    pub agent: String,
    /// What runs it.
    pub backend: Backend,
    /// The key of the artifact that it was made from.
    pub artifact: String,
    /// What it was launched for.
    pub command: Vec<String>,
    /// The process that launched it, as it was then.
    pub pid: u32,
    /// When, by the clock of then.
    pub since: SystemTime,
    /// Whether its launcher lives: its command is at work, or about to be.
    pub attended: bool,
    /// The exit code of its command, if that has ended.
    pub ended: Option<i32>,
    /// What it prints, if it was launched in the background.
    pub log: PathBuf,
    /// Whether it is among the machines that this process can see.
    pub here: bool,
    kept: bool,
    record: LaunchRecord,
}

impl Launched {
    fn of(store: &Store, seen: SeenLease) -> Self {
        let record = LaunchRecord::read(&seen.record);
        Self {
            here: is_here(&seen.record),
            log: store.launch_dir(&seen.record.machine).join("log"),
            machine: seen.record.machine,
            agent: record.agent.clone(),
            backend: record.backend,
            artifact: seen.record.artifact,
            command: record.command.clone(),
            since: SystemTime::UNIX_EPOCH + Duration::from_secs(seen.record.since),
            pid: seen.record.pid,
            attended: seen.attended,
            ended: seen.record.ended,
            kept: seen.record.kept,
            record,
        }
    }

    /// Whether its machine is up and to stay when its launcher ends.
    pub fn is_kept(&self) -> bool {
        self.kept
    }

    /// Whether the container engine has a part in it.
    pub fn needs_engine(&self) -> bool {
        self.record.needs_engine()
    }

    /// The container engine's client that it was launched with.
    pub fn engine(&self) -> Option<&str> {
        self.record.engine.as_deref()
    }
}

/// All launches, by their machines' names.
///
/// # Errors
/// [`LaunchError::Store`].
pub fn launches(store: &Store) -> Result<Vec<Launched>> {
    Ok(store.leases()?.into_iter().map(|seen| Launched::of(store, seen)).collect())
}

/// The launch whose machine has this name, or the only one whose name begins
/// like that, with or without "smolcellar-".
///
/// # Errors
/// [`LaunchError::NoMachine`], [`LaunchError::Ambiguous`], [`LaunchError::Store`].
pub fn find(store: &Store, wanted: &str) -> Result<Launched> {
    let all = launches(store)?;
    if let Some(exact) = all.iter().find(|launched| launched.machine == wanted) {
        return Ok(exact.clone());
    }
    let begins = |launched: &&Launched| {
        let name = &launched.machine;
        let short = name.strip_prefix(PREFIX).unwrap_or(name);
        !wanted.is_empty() && (name.starts_with(wanted) || short.starts_with(wanted))
    };
    let found: Vec<&Launched> = all.iter().filter(begins).collect();
    let names = |of: &[&Launched]| of.iter().map(|launched| launched.machine.clone()).collect();
    match found.as_slice() {
        [one] => Ok((*one).clone()),
        [] => {
            let known = names(&all.iter().collect::<Vec<_>>());
            Err(LaunchError::NoMachine { wanted: wanted.to_owned(), known })
        }
        several => Err(LaunchError::Ambiguous { wanted: wanted.to_owned(), candidates: names(several) }),
    }
}

impl Launcher<'_> {
    /// What the guest of a launch is doing; `None`: there is none.
    ///
    /// # Errors
    /// [`LaunchError::NoTool`], [`LaunchError::Smolvm`], [`LaunchError::Engine`].
    pub fn state(&self, launched: &Launched) -> Result<Option<State>> {
        self.guest(launched.backend, &launched.machine)?.state()
    }

    /// Runs a command in a launch's guest; its exit code, or 128 + n when
    /// signal n ended it. Where and as whom, unless the request says: as the
    /// artifact says.
    ///
    /// # Errors
    /// [`LaunchError::NotRunning`], [`LaunchError::BadOption`] for a secret that
    /// is not set, [`LaunchError::MachineDied`], and as [`Launcher::state`].
    pub fn exec(&self, launched: &Launched, request: ExecRequest, io: ExecIo) -> Result<i32> {
        check_secrets(&request.secrets)?;
        let guest = self.guest(launched.backend, &launched.machine)?;
        if guest.state()? != Some(State::Running) {
            return Err(LaunchError::NotRunning(launched.machine.clone()));
        }
        let request = ExecRequest {
            workdir: request.workdir.or_else(|| launched.record.workdir.clone()),
            user: request.user.or_else(|| launched.record.user.clone()),
            ..request
        };
        let result = guest.exec(&request, io, self.interrupt);
        match (result, self.interrupt.signal()) {
            (Err(_), Some(signal)) => Ok(128 + signal),
            (result, _) => {
                if !matches!(result, Ok(0)) {
                    self.report_denials(guest.as_ref());
                }
                result
            }
        }
    }

    /// Copies a file, or with containers a folder too.
    ///
    /// # Errors
    /// [`LaunchError::FolderCopy`], and as [`Launcher::state`].
    pub fn copy(&self, launched: &Launched, copy: &Transfer) -> Result<()> {
        let limits = Limits { timeout: Some(COPY), cancel: self.interrupt };
        self.guest(launched.backend, &launched.machine)?.copy(copy, limits)
    }

    /// Ends all that runs in a launch's guest, and its sidecar. If a launcher
    /// waits for it, that one takes everything down.
    ///
    /// # Errors
    /// [`LaunchError::Left`].
    pub fn stop(&self, launched: &Launched) -> Result<()> {
        let left = |problem| LaunchError::Left { machine: launched.machine.clone(), problem };
        let guest = self.guest(launched.backend, &launched.machine)?;
        let stopped = guest.stop();
        // A launcher that takes it down at the same time may be quicker.
        if guest.state()? == Some(State::Running) {
            stopped.map_err(left)?;
        }
        if launched.record.sidecar {
            let name = container_name(&launched.machine);
            container::stop(self.tools.engine()?, &name, &launched.machine, self.bounds.grace, &self.bounds)
                .map_err(left)?;
        }
        Ok(())
    }

    /// Takes a launch down, with all it has.
    ///
    /// # Errors
    /// [`LaunchError::Running`] unless `force`; [`LaunchError::Left`].
    pub fn remove(&self, launched: &Launched, force: bool) -> Result<()> {
        let name = &launched.machine;
        if !force && (launched.attended || self.state(launched)? == Some(State::Running)) {
            return Err(LaunchError::Running(name.clone()));
        }
        let left = |problem: String| LaunchError::Left { machine: name.clone(), problem };
        if launched.attended {
            self.stop(launched)?;
        }
        let began = Instant::now();
        loop {
            if let Some(lease) = self.store.orphaned_lease(name)? {
                self.take_down(name, &launched.record).map_err(left)?;
                self.end(lease);
                return Ok(());
            }
            if !self.store.leases()?.iter().any(|seen| seen.record.machine == *name) {
                // Its launcher did it.
                return Ok(());
            }
            if began.elapsed() > LAUNCHER {
                let pid = launched.pid;
                return Err(left(format!(
                    "its launcher has not done it within {} s; end that first (`kill {pid}`)",
                    LAUNCHER.as_secs()
                )));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
