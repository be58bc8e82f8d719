//! Everything that costs no hashing: what receipts name, strange names, pins,
//! leases, pointers.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::list::{Listing, Work};
use super::look::{Verdict, of_error};
use super::{Action, Run, Subject};
use crate::bucket::Bucket;
use crate::digest::Digest;
use crate::error::Result;
use crate::find::hex_name;
use crate::fsio;
use crate::machines::{MachineKey, list};
use crate::pushed::{PushedKey, PushedManifest, PushedTag, lock_name};

/// The highest version of a pointer.
const POINTER: u64 = 2;

impl Run<'_> {
    /// After all bytes were looked at.
    pub(super) fn rest(&self, listed: &Listing, keys: Option<&BTreeSet<MachineKey>>) -> Result<()> {
        for item in &listed.items {
            if let Work::Stage(image, stage) = &item.work {
                self.named_blobs(&item.path, image, stage);
            }
            match &item.work {
                Work::Pushed(key) => self.pushed_blobs(&item.path, key),
                Work::Tag(..) => self.tagged(&item.path),
                _ => {}
            }
        }
        for (path, ours) in &listed.strange {
            self.strange(path, *ours);
        }
        if keys.is_none() {
            self.pins()?;
            self.leases()?;
            self.pointers()?;
        }
        Ok(())
    }

    /// The receipt is whole, and stays: it says what is to be taken in again.
    fn named_blobs(&self, path: &Path, image: &Digest, stage: &str) {
        // Half of what is being collected would look damaged.
        let Ok(_in_use) = self.store.lock_use(&image.hex(), self.reporter) else { return };
        let Ok(Some(receipt)) = self.store.stage_receipt(image, stage) else { return };
        let lost = receipt.blobs.iter().find(|blob| !self.store.blobs().has(&blob.digest, blob.size));
        if let Some(blob) = lost {
            let problem = format!("its {} {} is missing or has another size", blob.role, blob.digest);
            let kept = Action::Kept("a build that needs the image takes it in again".into());
            self.finding(path.to_owned(), problem, kept, Subject::Stage(*image, stage.to_owned()));
        }
    }

    /// As [`Run::named_blobs`], of what was pushed.
    fn pushed_blobs(&self, path: &Path, key: &PushedKey) {
        // Half of what is being pushed or collected would look damaged.
        let Ok(_locked) = self.store.lock_build(&lock_name(&key.repository), self.reporter) else { return };
        let Ok(Some(receipt)) = fsio::read_sealed::<PushedManifest>(path, PushedManifest::SCHEMA) else {
            return;
        };
        let lost = receipt.blobs.iter().find(|blob| !self.store.blobs().has(&blob.digest, blob.size));
        if let Some(blob) = lost {
            let problem = format!("its {} {} is missing or has another size", blob.role, blob.digest);
            let kept = Action::Kept(format!("push {} again", receipt.repository));
            self.finding(path.to_owned(), problem, kept, Subject::Other);
        }
    }

    fn tagged(&self, path: &Path) {
        let Ok(Some(tag)) = fsio::read_sealed::<PushedTag>(path, PushedTag::SCHEMA) else { return };
        let key = PushedKey::new(&tag.repository, tag.manifest);
        let Ok(_locked) = self.store.lock_build(&lock_name(&key.repository), self.reporter) else { return };
        let receipt = path.with_file_name(format!("{}.json", key.manifest.hex()));
        if path.exists() && !receipt.exists() {
            let problem = format!("its manifest {} is not there", tag.manifest);
            let kept = Action::Kept(format!("push {}:{} again", tag.repository, tag.tag));
            self.finding(path.to_owned(), problem, kept, Subject::Other);
        }
    }

    fn strange(&self, path: &Path, ours: bool) {
        // Collected, or finished, since it was listed.
        if std::fs::symlink_metadata(path).is_err() {
            return;
        }
        let problem = "its name is none that cache-layout.md knows".to_owned();
        // Version 1 of everything: what says more is a newer one's.
        let newer = matches!(fsio::read_sealed::<Value>(path, 1).map_err(of_error), Err(Verdict::Newer));
        if newer || !ours {
            let kept = Action::Kept("it may be of a newer smolcellar".into());
            return self.finding(path.to_owned(), problem, kept, Subject::Other);
        }
        self.move_away(path, problem);
    }

    fn move_away(&self, path: &Path, problem: String) {
        let action = match self.hands_off() {
            Some(why) => Action::Kept(why),
            None => match self.store.quarantine(&[path.to_owned()], &problem) {
                Ok(to) => Action::Quarantined(to),
                Err(error) => Action::Kept(error.to_string()),
            },
        };
        self.finding(path.to_owned(), problem, action, Subject::Other);
    }

    /// A pin holds by its name: what is in it can be written again.
    fn pins(&self) -> Result<()> {
        for path in list(&self.store.pins_dir())? {
            let verdict = self.store.pin_at(&path);
            let problem = match verdict {
                Ok(()) => continue,
                Err(error) => match of_error(error) {
                    Verdict::Damaged(problem) => problem,
                    Verdict::Newer => {
                        self.newer(&path);
                        continue;
                    }
                    Verdict::Unreadable(problem) => problem,
                    Verdict::Sound | Verdict::Interrupted => continue,
                },
            };
            let action = match self.hands_off() {
                Some(why) => Action::Kept(why),
                None => match self.store.rewrite_pin(&path) {
                    Ok(true) => Action::Repaired,
                    Ok(false) => Action::Kept("its name is no artifact's".into()),
                    Err(error) => Action::Kept(error.to_string()),
                },
            };
            self.finding(path, problem, action, Subject::Other);
        }
        Ok(())
    }

    /// Never moved: a lease holds a machine.
    fn leases(&self) -> Result<()> {
        for path in list(&self.store.leases_dir())? {
            let problem = match self.store.lease_at(&path) {
                Ok(Some(lease)) => {
                    let fits = path.file_stem().is_some_and(|stem| stem == lease.machine.as_str());
                    if fits {
                        continue;
                    }
                    "it is another machine's".to_owned()
                }
                Ok(None) => continue,
                Err(error) => match of_error(error) {
                    Verdict::Damaged(problem) | Verdict::Unreadable(problem) => problem,
                    Verdict::Newer => {
                        self.newer(&path);
                        continue;
                    }
                    Verdict::Sound | Verdict::Interrupted => continue,
                },
            };
            let why = "its machine may still be there; see `By hand` in cache-layout.md".to_owned();
            self.finding(path, problem, Action::Kept(why), Subject::Other);
        }
        Ok(())
    }

    fn pointers(&self) -> Result<()> {
        for kind in list(&self.store.bucket_dir(Bucket::Pointers))? {
            for path in list(&kind)? {
                match pointer_at(&kind, &path) {
                    Ok(None) => {}
                    Ok(Some(problem)) => self.move_away(&path, problem),
                    Err(Verdict::Damaged(problem)) => self.move_away(&path, problem),
                    Err(Verdict::Newer) => self.newer(&path),
                    Err(Verdict::Unreadable(problem)) => {
                        let kept = Action::Kept("it cannot be read".into());
                        self.finding(path, problem, kept, Subject::Other);
                    }
                    Err(Verdict::Sound | Verdict::Interrupted) => {}
                }
            }
        }
        Ok(())
    }
}

/// A pointer, as far as its name can be told from it.
#[derive(Deserialize)]
struct Pointer {
    project: Option<std::path::PathBuf>,
    agent: Option<String>,
    engine: Option<Digest>,
    seen: Option<Digest>,
    blob: Option<Digest>,
}

/// What is wrong with a pointer.
fn pointer_at(kind: &Path, path: &Path) -> Result<Option<String>, Verdict> {
    let pointer = fsio::read_sealed::<Pointer>(path, POINTER).map_err(of_error)?;
    let Some(pointer) = pointer else { return Ok(None) };
    let named = path.extension().is_some_and(|e| e == "json").then(|| path.with_extension(""));
    let named = named.and_then(|path| hex_name(&path));
    let expected = match (kind.file_name().and_then(|name| name.to_str()), &pointer) {
        (Some("agent" | "build"), Pointer { project: Some(project), agent: Some(agent), .. }) => {
            Digest::of(&[project.as_os_str().as_bytes(), &[0], agent.as_bytes()].concat())
        }
        (Some("engine-image"), Pointer { engine: Some(engine), .. }) => *engine,
        (Some("seen"), Pointer { seen: Some(seen), .. }) => *seen,
        (Some("blob"), Pointer { blob: Some(blob), .. }) => *blob,
        // Of version 1, which did not say; nobody believes it.
        (Some("engine-image"), Pointer { agent: None, .. }) => return Ok(None),
        (Some("agent" | "build" | "engine-image" | "seen" | "blob"), _) => {
            return Ok(Some("it is another's".to_owned()));
        }
        // Of a kind that is not known.
        _ => return Ok(None),
    };
    Ok((named != Some(expected)).then(|| "it is another's".to_owned()))
}
