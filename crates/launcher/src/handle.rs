//! A machine of this launch: run in it, take it down.
//!
//! Its death is looked at, not believed: some versions of smolvm report a
//! stop that did not happen, or delete a machine and leave its process.

use std::cell::RefCell;
use std::path::PathBuf;
use std::time::Duration;

use smolcellar_smolvm::{Cli, ExecIo, ExecRequest, Limits, MachineState};

use crate::bringup::Bounds;
use crate::error::{LaunchError, Result};
use crate::process::{Process, wait_gone};
use crate::signals::Interrupt;

/// How long a killed process has to vanish.
const KILLED: Duration = Duration::from_secs(1);

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

    /// Runs a command; its exit code.
    pub(crate) fn exec(&self, request: &ExecRequest, io: ExecIo, interrupt: &dyn Interrupt) -> Result<i32> {
        let limits = Limits { timeout: None, cancel: &AsCancel(interrupt) };
        let code = self.cli.exec(self.name, request, io, limits)?;
        // smolvm's own failures end with 1 as well.
        if code == 1 && self.is_down() {
            return Err(LaunchError::MachineDied(self.name.to_owned()));
        }
        Ok(code)
    }

    fn is_down(&self) -> bool {
        let info = self.cli.status(self.name, self.query());
        info.is_ok_and(|info| {
            info.is_none_or(|info| matches!(info.state, MachineState::Stopped | MachineState::Created))
        })
    }

    /// Stops it: asks smolvm, then sees to it that no process is left.
    pub(crate) fn stop(&self) -> Result<(), String> {
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
    pub(crate) fn delete(&self) -> Result<(), String> {
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

/// The one trait object where the other is wanted.
pub(crate) struct AsCancel<'a>(pub(crate) &'a dyn Interrupt);

impl smolcellar_smolvm::Cancel for AsCancel<'_> {
    fn cancelled(&self) -> bool {
        self.0.cancelled()
    }
}
