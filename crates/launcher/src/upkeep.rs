//! What launches leave behind, and what is left when their artifacts go.

use std::collections::BTreeSet;
use std::time::Duration;

use smolcellar_run::Limits;
use smolcellar_store::{Digest, Event};

use crate::bringup::Launcher;
use crate::container_image;
use crate::error::Result;
use crate::record::{LaunchRecord, is_here};

impl Launcher<'_> {
    /// Ends the leases whose launcher and whose guest are both proved gone, and
    /// takes down what else those launches had; how many. A guest that is
    /// there, running or not, keeps its lease.
    ///
    /// # Errors
    /// [`crate::LaunchError::Store`].
    pub fn reap(&self) -> Result<usize> {
        let mut ended = 0;
        for seen in self.store.leases()? {
            let record = LaunchRecord::read(&seen.record);
            if seen.attended || !is_here(&seen.record) || !record.is_of(&self.tools) {
                continue;
            }
            let name = &seen.record.machine;
            let gone = || self.guest(record.backend, name).and_then(|guest| guest.state());
            // What cannot be told is not proved.
            if !matches!(gone(), Ok(None)) {
                continue;
            }
            let Some(lease) = self.store.orphaned_lease(name)? else { continue };
            // Ours now: nobody makes that guest any more, if it is still the same launch.
            if *lease.record() == seen.record
                && matches!(gone(), Ok(None))
                && self.take_down(name, &record).is_ok()
            {
                self.end(lease);
                ended += 1;
            }
        }
        Ok(ended)
    }

    /// Removes what smolvm and the container engine keep of artifacts that are
    /// gone, known by their SHA-256: extractions that no machine uses, by
    /// smolvm's own command, and images. Each of the two has `within`. What cannot
    /// be removed now is no harm: a warning says so.
    pub fn tidy(&self, gone: &BTreeSet<Digest>, within: Duration) {
        let limits = Limits { timeout: Some(within), cancel: self.interrupt };
        if let Some(smolvm) = &self.tools.smolvm {
            let wanted = |copy: &smolcellar_smolvm::Extraction| {
                copy.artifact.is_some_and(|artifact| gone.contains(&artifact))
            };
            if let Err(error) = smolvm.prune_extractions(wanted, limits) {
                let text = format!("smolvm's copies of removed artifacts are still there: {error}");
                self.reporter.report(Event::Warn { text: &text });
            }
        }
        if let Some(engine) = &self.tools.engine {
            container_image::remove_unused(engine, self.store, within);
        }
    }
}
