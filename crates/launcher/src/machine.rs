//! A microVM of a launch: run in it, take it down.
//!
//! Its death is looked at, not believed: some versions of smolvm report a
//! stop that did not happen, or delete a machine and leave its process.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use smolcellar_run::{ExecIo, Limits};
use smolcellar_smolvm::{Cli, CopyPath, ExecRequest, Feature, MachineState};

use crate::bounds::Bounds;
use crate::error::{LaunchError, Result};
use crate::guest::{Guest, State, Transfer};
use crate::plan::{Plan, Requests};
use crate::process::{Process, wait_gone};
use crate::signals::Interrupt;
use crate::spec::LABEL;

/// How long a killed process has to vanish.
const KILLED: Duration = Duration::from_secs(1);

/// How many refused connections are shown.
const DENIALS: usize = 5;

pub(crate) struct Machine<'a> {
    cli: &'a Cli,
    name: &'a str,
    bounds: &'a Bounds,
    /// Where smolvm keeps it, once that was asked.
    data_dir: RefCell<Option<PathBuf>>,
}

impl<'a> Machine<'a> {
    pub(crate) fn new(cli: &'a Cli, name: &'a str, bounds: &'a Bounds) -> Self {
        Self { cli, name, bounds, data_dir: RefCell::new(None) }
    }
}

impl Guest for Machine<'_> {
    fn create(&self, plan: &Plan, interrupt: &dyn Interrupt) -> Result<()> {
        let Requests::Smolvm(request) = &plan.requests else { return Ok(()) };
        let limits = Limits { timeout: Some(self.bounds.create), cancel: interrupt };
        Ok(self.cli.create(request, limits)?)
    }

    fn start(&self, interrupt: &dyn Interrupt) -> Result<()> {
        let limits = Limits { timeout: Some(self.bounds.start), cancel: interrupt };
        Ok(self.cli.start(self.name, limits)?)
    }

    fn exec(&self, request: &ExecRequest, io: ExecIo, interrupt: &dyn Interrupt) -> Result<i32> {
        let limits = Limits { timeout: None, cancel: interrupt };
        let code = self.cli.exec(self.name, request, io, limits)?;
        // smolvm's own failures end with 1 as well.
        if code == 1 && matches!(self.state(), Ok(None | Some(State::Stopped))) {
            return Err(LaunchError::MachineDied(self.name.to_owned()));
        }
        Ok(code)
    }

    fn put(&self, contents: &Path, path: &str, limits: Limits<'_>) -> Result<()> {
        Ok(self.cli.put(contents, self.name, path, limits)?)
    }

    fn copy(&self, copy: &Transfer, limits: Limits<'_>) -> Result<()> {
        let guest = |path: &String| CopyPath::Guest { machine: self.name.to_owned(), path: path.clone() };
        let (from, to) = match copy {
            Transfer::In { from, to } => {
                if from.is_dir() {
                    return Err(LaunchError::FolderCopy(from.clone()));
                }
                (CopyPath::Host(from.clone()), guest(to))
            }
            Transfer::Out { from, to } => (guest(from), CopyPath::Host(to.clone())),
        };
        Ok(self.cli.copy(&from, &to, limits)?)
    }

    fn state(&self) -> Result<Option<State>> {
        let info = self.cli.status(self.name, self.query())?;
        Ok(info.map(|info| match info.state {
            MachineState::Running => State::Running,
            MachineState::Stopped | MachineState::Created => State::Stopped,
            MachineState::Other(_) => State::Unclear,
        }))
    }

    fn denials(&self) -> Vec<String> {
        if !self.cli.supports(Feature::EgressEvents) {
            return Vec::new();
        }
        let events = self.cli.egress_events(self.name, self.query()).unwrap_or_default();
        let mut refused: Vec<String> = Vec::new();
        for event in events.iter().rev() {
            let text = format!("{} ({})", event.dest, event.operation);
            if refused.len() < DENIALS && !refused.contains(&text) {
                refused.push(text);
            }
        }
        refused
    }

    /// Stops it: asks smolvm, then sees to it that no process is left.
    fn stop(&self) -> Result<(), String> {
        if self.is_anothers() {
            return Ok(());
        }
        let (running, mut processes) = self.processes();
        let mut answer = Ok(());
        if running || !processes.is_empty() {
            answer = self.cli.stop(self.name, self.bounds.grace, Limits::within(self.bounds.stop));
            processes.extend(self.processes().1);
        }
        // That smolvm failed to stop it matters only if it is not dead.
        end(processes, self.bounds.gone).map_err(|left| match answer {
            Ok(()) => left,
            Err(error) => format!("{left}; {error}"),
        })
    }

    /// Deletes it. That there is none, or no more, is no error.
    fn delete(&self) -> Result<(), String> {
        if self.is_anothers() {
            return Ok(());
        }
        let mut problem = String::new();
        for _ in 0..2 {
            let processes = self.processes().1;
            match self.cli.status(self.name, self.query()) {
                Ok(None) => return end(processes, self.bounds.gone),
                Ok(Some(_)) => {}
                Err(error) => problem = error.to_string(),
            }
            if let Err(error) = self.cli.delete(self.name, Limits::within(self.bounds.delete)) {
                problem = error.to_string();
            }
            end(processes, self.bounds.gone)?;
        }
        match self.cli.status(self.name, self.query()) {
            Ok(None) => return end(self.processes().1, self.bounds.gone),
            Ok(Some(_)) if problem.is_empty() => problem = "smolvm still lists it".into(),
            Ok(Some(_)) => {}
            Err(error) => problem = error.to_string(),
        }
        Err(format!("{problem}; delete it by hand: `smolvm machine delete -f --name {}`", self.name))
    }
}

impl Machine<'_> {
    /// Whether there is a machine of this name that no launch made. Versions
    /// without labels cannot tell.
    fn is_anothers(&self) -> bool {
        self.cli.supports(Feature::Labels)
            && matches!(self.cli.status(self.name, self.query()), Ok(Some(info))
                if info.labels.get(LABEL).is_none_or(|label| label != self.name))
    }

    /// Whether smolvm says that it may be running, and the living processes
    /// that it names or that work on its folder.
    fn processes(&self) -> (bool, Vec<Process>) {
        let info = self.cli.status(self.name, self.query());
        let running = match &info {
            Ok(Some(info)) => !matches!(info.state, MachineState::Stopped | MachineState::Created),
            Ok(None) => false,
            // Not knowing, try to stop it.
            Err(_) => true,
        };
        let named = info.ok().flatten().and_then(|info| info.pid).and_then(Process::find);
        if self.data_dir.borrow().is_none() {
            *self.data_dir.borrow_mut() = self.cli.data_dir(self.name, self.query()).ok();
        }
        let mut processes: Vec<_> = named.into_iter().collect();
        if let Some(dir) = self.data_dir.borrow().as_deref() {
            processes.extend(Process::with_argument_below(dir));
        }
        // smolvm itself at work on it, for a launcher that was killed: a
        // `create` that goes on would bring the machine back.
        processes.extend(Process::of_program(self.cli.program(), self.name));
        processes.dedup();
        (running, processes)
    }

    fn query(&self) -> Limits<'static> {
        Limits::within(self.bounds.query)
    }
}

/// Gives the processes some time to end by themselves, then kills them.
fn end(processes: Vec<Process>, within: Duration) -> Result<(), String> {
    let left = wait_gone(processes, within);
    left.iter().for_each(|process| process.kill());
    match wait_gone(left, KILLED).first() {
        None => Ok(()),
        Some(process) => Err(format!("its process {} cannot be killed", process.pid())),
    }
}
