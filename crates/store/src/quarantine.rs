//! Quarantine: where damaged entries are moved, for a person to look at.
//!
//! ```text
//! quarantine/entry-<random>/<the files, by their names>
//! quarantine/entry-<random>/why.json     what they were: sealed
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Result, StoreError};
use crate::fsio;
use crate::machines::{MachineKey, MachineReceipt, list};
use crate::root::Store;

/// The note beside what was moved.
#[derive(Debug, Serialize, Deserialize)]
struct Why {
    schema: u64,
    /// Where the files were, below the store's folder.
    paths: Vec<PathBuf>,
    problem: String,
    /// Seconds since 1970. For people.
    moved_at: u64,
}

const SCHEMA: u64 = 1;
const NOTE: &str = "why.json";

impl Store {
    /// Moves an entry's files to quarantine, where nothing uses them, with a
    /// note; the folder there. It is not made if there is none of the files.
    ///
    /// # Errors
    /// [`StoreError::Io`] if one cannot be moved.
    pub(crate) fn quarantine(&self, files: &[PathBuf], problem: &str) -> Result<PathBuf> {
        let dir = fsio::unused_name(&self.quarantine_dir(), "entry");
        let mut paths = Vec::new();
        for file in files {
            let Some(name) = file.file_name() else { continue };
            if fs::symlink_metadata(file).is_err() {
                continue;
            }
            match fsio::rename(file, &dir.join(if name == NOTE { "moved".as_ref() } else { name })) {
                Ok(()) => paths.push(file.strip_prefix(self.root()).unwrap_or(file).to_owned()),
                // Replaced or collected just now.
                Err(StoreError::Io { source, .. })
                    if source.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(file).is_err() => {}
                Err(error) => return Err(error),
            }
        }
        if !paths.is_empty() {
            let moved_at =
                SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
            let why = Why { schema: SCHEMA, paths, problem: problem.to_owned(), moved_at };
            // The note is for people: what had to go is gone, with or without it.
            if let Ok(scratch) = self.scratch() {
                let _ = fsio::write_sealed(&scratch, &dir.join(NOTE), &why);
            }
        }
        Ok(dir)
    }

    /// The receipts of artifacts in quarantine that are whole themselves: what
    /// they name can be made again. One for each key.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the folder cannot be listed.
    pub fn quarantined_machines(&self) -> Result<Vec<MachineReceipt>> {
        let mut found: BTreeMap<MachineKey, MachineReceipt> = BTreeMap::new();
        for dir in list(&self.quarantine_dir())? {
            for path in list(&dir)? {
                if let Some(receipt) = receipt_at(&path) {
                    found.insert(receipt.key(), receipt);
                }
            }
        }
        Ok(found.into_values().collect())
    }
}

/// The receipt of an artifact that a file is, if it is one and whole.
pub(crate) fn receipt_at(path: &Path) -> Option<MachineReceipt> {
    let name = path.file_name()?.to_str()?.strip_suffix(".json")?;
    let recipe = Digest::from_hex(name).ok()?;
    let receipt = fsio::read_sealed::<MachineReceipt>(path, MachineReceipt::SCHEMA).ok()??;
    let fits = receipt.recipe == recipe && MachineReceipt::recipe_of(&receipt.inputs) == recipe;
    fits.then_some(receipt)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OpenOptions;

    #[test]
    fn a_note_says_what_was_moved_from_where_and_why() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("c"), OpenOptions::default()).unwrap();
        let (file, note) = (store.root().join("machines-v1/x"), store.root().join("machines-v1/why.json"));
        for path in [&file, &note] {
            fsio::write_atomic(&store.scratch().unwrap(), path, b"bytes").unwrap();
        }
        let to = store.quarantine(&[file.clone(), note.clone(), store.root().join("none")], "rot").unwrap();
        let why: Why = fsio::read_sealed(&to.join(NOTE), SCHEMA).unwrap().unwrap();
        assert_eq!(why.paths, [Path::new("machines-v1/x"), Path::new("machines-v1/why.json")]);
        assert_eq!(why.problem, "rot");
        assert_eq!(
            (fs::read(to.join("x")).unwrap(), fs::read(to.join("moved")).unwrap()),
            (b"bytes".to_vec(), b"bytes".to_vec())
        );
        assert!(!file.exists() && !note.exists());
        let none = store.quarantine(&[file], "again").unwrap();
        assert!(!none.exists());
    }
}
