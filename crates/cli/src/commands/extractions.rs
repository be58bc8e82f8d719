//! What smolvm keeps of launched artifacts, outside of the store.

use serde_json::{Value, json};
use smolcellar_launcher::Cli;
use smolcellar_smolvm::{Extraction, RuntimeConfig};
use smolcellar_store::{Event, Reporter, Store};

use crate::format;
use crate::session::Session;

/// smolvm's copies of artifacts, and where they are.
pub(crate) struct Held {
    folder: String,
    copies: Vec<Extraction>,
}

impl Held {
    /// Of the runtime that is known already. `None`: there is none, or it
    /// keeps no copies. No reason to fail: they are not ours.
    pub(crate) fn find(session: &Session, store: &Store) -> Option<Self> {
        let config = RuntimeConfig { dir: session.global.smolvm_dir.clone() };
        let runtime = smolcellar_smolvm::known(store, &config).ok().flatten()?;
        let extractions = Cli::new(&runtime).ok()?.extractions()?;
        match extractions.list() {
            Ok(copies) => Some(Self { folder: extractions.folder().display().to_string(), copies }),
            Err(error) => {
                let text = format!("what smolvm keeps is not counted: {error}");
                session.progress.report(Event::Warn { text: &text });
                None
            }
        }
    }

    fn allocated(&self) -> u64 {
        self.copies.iter().map(|copy| copy.allocated).sum()
    }

    /// The row of `cache du`, below the total because it is no part of it.
    pub(crate) fn row(&self) -> Option<Vec<String>> {
        (!self.copies.is_empty()).then(|| {
            let copies = format::count(self.copies.len(), "copy", "copies");
            let text = format!("{}: smolvm's own, {copies} of launched artifacts", self.folder);
            let unused = self.copies.iter().filter(|copy| copy.machines.is_empty());
            let unused = format::bytes(unused.map(|copy| copy.allocated).sum());
            vec![format::bytes(self.allocated()), unused, String::new(), "smolvm extractions".into(), text]
        })
    }

    pub(crate) fn json(&self) -> Value {
        json!({ "folder": self.folder, "allocated": self.allocated(), "copies": self.copies })
    }
}
