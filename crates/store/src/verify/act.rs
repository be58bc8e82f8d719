//! What is done about a damaged entry: a second look under its lock, and then
//! quarantine.

use std::fs::{self, File};
use std::path::PathBuf;

use super::list::{Item, Work};
use super::look::{Look, Verdict};
use crate::digest::Digest;
use crate::error::{Result, StoreError};
use crate::fsio;
use crate::pushed::{PushedKey, lock_name};
use crate::report::Reporter;
use crate::root::Store;
use crate::session::same_file;

/// How far an item got.
pub(super) enum Acted {
    Done,
    /// Somebody builds it: later.
    Busy,
    Interrupted,
}

pub(super) enum Outcome {
    /// Nothing is wrong with it any more, or it is not its turn.
    Acted(Acted),
    /// What was wrong, and where it is now.
    Moved(String, PathBuf),
}

/// Moves an item to quarantine if a second look says so.
pub(super) fn act(store: &Store, reporter: &dyn Reporter, item: &Item, wait: bool) -> Result<Outcome> {
    let name = match &item.work {
        Work::Blob(digest) => return blob(store, digest),
        Work::Stage(image, _) => image.hex(),
        Work::Machine(key) => key.lock_name(),
        Work::Pushed(PushedKey { repository, .. }) | Work::Tag(repository, _) => lock_name(repository),
    };
    let lock = match wait {
        true => Some(store.lock_build(&name, reporter)?),
        false => store.try_lock_build(&name)?,
    };
    let Some(lock) = lock else { return Ok(Outcome::Acted(Acted::Busy)) };
    let problem = match Look::new(store, None).at(&item.work) {
        Verdict::Damaged(problem) => problem,
        _ => return Ok(Outcome::Acted(Acted::Done)),
    };
    let to = match &item.work {
        Work::Machine(key) => store.quarantine_machine(key, &problem, &lock)?,
        _ => store.quarantine(std::slice::from_ref(&item.path), &problem)?,
    };
    Ok(Outcome::Moved(problem, to))
}

/// Blobs have no lock of their own: the file that was hashed is the one that is
/// moved, or it is put back.
pub(super) fn blob(store: &Store, digest: &Digest) -> Result<Outcome> {
    let path = store.blobs().path(digest);
    let sound = Ok(Outcome::Acted(Acted::Done));
    let Ok(metadata) = fs::symlink_metadata(&path) else { return sound };
    if !metadata.is_file() {
        let problem = "it is no file".to_owned();
        let to = store.quarantine(&[path], &problem)?;
        return Ok(Outcome::Moved(problem, to));
    }
    let mut file = File::open(&path).map_err(StoreError::io("open", &path))?;
    let actual = Look::new(store, None).hash_open(&mut file).map_err(StoreError::io("read", &path))?;
    if actual == *digest || !same_file(&file, &path) {
        return sound;
    }
    let problem = format!("its bytes have {actual}");
    let to = store.blobs().quarantine(digest, &problem)?;
    let moved = to.join(digest.hex());
    if !same_file(&file, &moved) && fs::symlink_metadata(&moved).is_ok() {
        // Replaced between the two calls, by one that was hashed.
        fsio::rename(&moved, &path)?;
        return sound;
    }
    Ok(Outcome::Moved(problem, to))
}
