//! Pins: artifacts that a person wants kept, whatever the policy says.
//!
//! A pin is a sealed file `pins/<image>-<recipe>.json`. It is written under the
//! artifact's use lock, so that nothing collects it in between.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Result, StoreError};
use crate::fsio;
use crate::lock::UseLock;
use crate::machines::{MachineKey, list};
use crate::root::Store;

#[derive(Serialize, Deserialize)]
struct Pin {
    schema: u64,
    image: Digest,
    recipe: Digest,
    /// When it was pinned: seconds since 1970. For people.
    since: u64,
}

const SCHEMA: u64 = 1;

impl Pin {
    fn of(key: &MachineKey) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
        Self { schema: SCHEMA, image: key.image, recipe: key.recipe, since }
    }
}

/// The artifact that a pin's name names.
fn key_of(path: &Path) -> Option<MachineKey> {
    let (image, recipe) = path.file_name()?.to_str()?.strip_suffix(".json")?.split_once('-')?;
    Some(MachineKey { image: Digest::from_hex(image).ok()?, recipe: Digest::from_hex(recipe).ok()? })
}

impl Store {
    /// Pins an artifact; whether it was not pinned before. The lock is the key's.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn pin(&self, key: &MachineKey, _: &UseLock) -> Result<bool> {
        let path = self.pin_path(key);
        // By its name alone: what is in it is for people.
        if path.exists() {
            return Ok(false);
        }
        fsio::write_sealed(&self.scratch()?, &path, &Pin::of(key))?;
        Ok(true)
    }

    /// Takes the pin away; whether there was one.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn unpin(&self, key: &MachineKey) -> Result<bool> {
        let path = self.pin_path(key);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(StoreError::io("remove", &path)(error)),
        }
    }

    /// Whether an artifact is pinned.
    pub fn is_pinned(&self, key: &MachineKey) -> bool {
        // What cannot be looked at may be there.
        fs::symlink_metadata(self.pin_path(key))
            .map_or_else(|error| error.kind() != io::ErrorKind::NotFound, |_| true)
    }

    /// What is pinned, whether it is there or not.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the folder cannot be read.
    pub fn pins(&self) -> Result<BTreeSet<MachineKey>> {
        Ok(list(&self.pins_dir())?.iter().filter_map(|path| key_of(path)).collect())
    }

    /// Whether a pin's contents are whole and its name's.
    pub(crate) fn pin_at(&self, path: &Path) -> Result<()> {
        let damaged = |problem: &str| StoreError::Damaged { path: path.to_owned(), problem: problem.into() };
        let Some(pin) = fsio::read_sealed::<Pin>(path, SCHEMA)? else { return Ok(()) };
        match key_of(path) {
            Some(key) if (key.image, key.recipe) == (pin.image, pin.recipe) => Ok(()),
            Some(_) => Err(damaged("it is another artifact's pin")),
            None => Err(damaged("its name is no artifact's")),
        }
    }

    /// Writes a pin again, as its name says; whether that says anything.
    pub(crate) fn rewrite_pin(&self, path: &Path) -> Result<bool> {
        // Taken away meanwhile: it stays so.
        if !path.exists() {
            return Ok(true);
        }
        let Some(key) = key_of(path) else { return Ok(false) };
        fsio::write_sealed(&self.scratch()?, path, &Pin::of(&key))?;
        Ok(true)
    }

    fn pin_path(&self, key: &MachineKey) -> PathBuf {
        self.pins_dir().join(format!("{}.json", key.lock_name()))
    }

    pub(crate) fn pins_dir(&self) -> PathBuf {
        self.root().join("pins")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{OpenOptions, Quiet};

    #[test]
    fn a_pin_is_there_until_it_is_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("c"), OpenOptions::default()).unwrap();
        let key = MachineKey { image: Digest::of(b"i"), recipe: Digest::of(b"r") };
        assert!(!store.is_pinned(&key) && store.pins().unwrap().is_empty());
        let lock = store.lock_use(&key.lock_name(), &Quiet).unwrap();
        assert!(store.pin(&key, &lock).unwrap());
        assert!(!store.pin(&key, &lock).unwrap());
        assert!(store.is_pinned(&key) && store.pins().unwrap().contains(&key));
        assert!(store.unpin(&key).unwrap());
        assert!(!store.unpin(&key).unwrap() && !store.is_pinned(&key));
    }
}
