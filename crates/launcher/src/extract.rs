//! smolvm's own copy of an artifact, made before its first launch needs it.

use smolcellar_run::Limits;
use smolcellar_smolvm::{CreateRequest, Feature};
use smolcellar_store::NewLease;

use crate::bringup::Launcher;
use crate::error::{LaunchError, Result};
use crate::names::machine_name;
use crate::record::{LaunchRecord, place};
use crate::spec::{Artifact, Backend, LABEL};

impl Launcher<'_> {
    /// Has smolvm unpack an artifact as its first launch would, with a machine
    /// of `agent`'s that is deleted before it ever ran. `false`: this smolvm keeps
    /// no copies that a launch could use. Needs no virtualisation.
    ///
    /// # Errors
    /// [`LaunchError::Smolvm`], [`LaunchError::Store`], [`LaunchError::Artifact`],
    /// [`LaunchError::NoTool`]. What is left then, the next launch removes.
    pub fn extract(&self, agent: &str, artifact: &Artifact) -> Result<bool> {
        let smolvm = self.tools.smolvm()?;
        let _in_use = self.store.lock_use(&artifact.key, self.reporter)?;
        let checksum = smolcellar_pack::read(&artifact.path)?.footer.checksum;
        let machine = machine_name(agent);
        let record =
            LaunchRecord { agent: agent.to_owned(), backend: Backend::Smolvm, ..LaunchRecord::default() };
        // Durable before the machine is made, as for any other.
        let lease = self.store.lease(NewLease {
            machine: machine.clone(),
            artifact: artifact.key.clone(),
            place: place(&record),
            launch: record.json(),
        })?;
        let lease = lease.ok_or_else(|| LaunchError::NameTaken(machine.clone()))?;
        let request = CreateRequest {
            name: machine.clone(),
            artifact: artifact.path.clone(),
            // So that it is known for ours if somebody else has to remove it.
            labels: match smolvm.supports(Feature::Labels) {
                true => vec![(LABEL.into(), machine.clone())],
                false => Vec::new(),
            },
            ..CreateRequest::default()
        };
        let limits = Limits { timeout: Some(self.bounds.create), cancel: self.interrupt };
        let made = smolvm.extract(&request, checksum, limits);
        // The machine is gone, or its lease tells the next launch of it.
        if self.take_down(&machine, &record).is_ok() {
            self.end(lease);
        }
        Ok(made?.is_some())
    }
}
