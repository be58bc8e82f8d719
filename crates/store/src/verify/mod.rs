//! Rehashing everything, and moving away what is damaged.
//!
//! Entries are worked through in the order of their digests, so that a run that
//! was cut off can be gone on with. What looks damaged is moved to quarantine
//! only under its own lock, after a second look: whoever builds it may have
//! just replaced it.

mod act;
mod facts;
mod list;
mod look;

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::{Serialize, Serializer};

use crate::blobs::Blobs;
use crate::digest::Digest;
use crate::error::{Result, StoreError};
use crate::machines::{MachineKey, MachineReceipt};
use crate::report::{Event, Reporter};
use crate::root::Store;

use act::Acted;
use list::Item;
use look::{Look, Verdict};

/// The task named in events.
const TASK: &str = "verify";
/// Of so many entries in order, the largest is begun first: no core is left
/// alone with a large one at the end, and little is done twice after a cut.
const WINDOW: usize = 32;

/// What to verify, and what to do about damage.
#[derive(Debug, Clone, Default)]
pub struct VerifyOptions {
    /// Damaged entries are moved to quarantine; else they are only named.
    pub quarantine: bool,
    /// Entries whose digest's hex is below this are left out: where a run that
    /// was cut off goes on.
    pub from: Option<String>,
    /// Only these artifacts, and what their images are made of.
    pub keys: Option<BTreeSet<MachineKey>>,
}

/// What became of something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// It is where it was, because of this.
    Kept(String),
    /// It was moved to this folder.
    Quarantined(PathBuf),
    /// It is whole again.
    Repaired,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kept(why) => write!(f, "kept: {why}"),
            Self::Quarantined(_) => write!(f, "quarantined"),
            Self::Repaired => write!(f, "repaired"),
        }
    }
}

impl Serialize for Action {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What a finding is about: what can be made again, and from what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// An artifact, with its receipt if that is whole.
    Machine(MachineKey, Option<Box<MachineReceipt>>),
    /// A blob.
    Blob(Digest),
    /// The receipt of a stage of this image, or a blob that it names.
    Stage(Digest, String),
    /// A file or folder of the Runtimes bucket.
    Runtime,
    /// Anything else.
    Other,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: String,
    /// What became of it.
    pub action: Action,
    /// What it is.
    #[serde(skip)]
    pub subject: Subject,
}

/// What verifying found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Verification {
    /// Entries looked at.
    pub entries: u64,
    /// Bytes hashed.
    pub bytes: u64,
    /// What is wrong. Empty: all is well.
    pub damaged: Vec<Finding>,
    /// Files that nothing trusts: harmless, from runs that were cut off.
    pub leftovers: Vec<PathBuf>,
    /// Files that say they are of a newer version: neither judged nor touched.
    pub newer: Vec<PathBuf>,
    /// Set if it was given up: what [`VerifyOptions::from`] goes on with.
    pub unfinished: Option<String>,
}

impl Store {
    /// Rehashes every blob and artifact and checks every other file, on all
    /// cores. Ends early, and cleanly, when `reporter` gives up.
    ///
    /// # Errors
    /// [`StoreError::Io`] if a folder cannot be listed. Damage is no error, nor
    /// is a file that cannot be read or moved: it is a finding.
    pub fn verify(&self, options: &VerifyOptions, reporter: &dyn Reporter) -> Result<Verification> {
        // What dead processes left is swept by whoever writes next, and by
        // this. On a store that cannot be written it stays, and so does damage.
        let writable = self.scratch().is_ok();
        let mut listed = list::Listing::of(self, options)?;
        listed.order(options.from.as_deref());
        let run = Run {
            store: self,
            reporter,
            quarantine: options.quarantine,
            writable,
            found: Mutex::new(Verification::default()),
            busy: Mutex::default(),
        };
        let total = listed.items.iter().map(|item| item.size).sum();
        reporter.report(Event::Begin { task: TASK, total: Some(total) });
        let finished = run.all(&listed.items);
        reporter.report(Event::End { task: TASK });
        let mut unfinished = cursor(&listed.items, |index| finished[index].load(Ordering::Acquire));
        if unfinished.is_none() {
            unfinished = run.busy_ones(&listed.items)?;
        }
        if unfinished.is_none() {
            run.rest(&listed, options.keys.as_ref())?;
        }
        let mut found = run.found.into_inner().unwrap_or_else(PoisonError::into_inner);
        found.unfinished = unfinished;
        found.leftovers = listed.leftovers;
        found.damaged.sort_by(|a, b| a.path.cmp(&b.path));
        found.newer.sort();
        Ok(found)
    }
}

impl Blobs<'_> {
    /// Hashes a blob, and moves it to quarantine if its bytes are not its name's;
    /// what was wrong.
    ///
    /// # Errors
    /// [`StoreError::Io`] if it cannot be read or moved.
    pub fn quarantine_if_damaged(&self, digest: &Digest) -> Result<Option<String>> {
        match act::blob(self.store(), digest)? {
            act::Outcome::Acted(_) => Ok(None),
            act::Outcome::Moved(problem, _) => Ok(Some(problem)),
        }
    }
}

/// The first digest, in order, of an item that is not done.
fn cursor(items: &[Item], done: impl Fn(usize) -> bool) -> Option<String> {
    let left = items.iter().enumerate().filter(|(index, _)| !done(*index));
    left.map(|(_, item)| item.hex.clone()).min()
}

struct Run<'a> {
    store: &'a Store,
    reporter: &'a dyn Reporter,
    quarantine: bool,
    writable: bool,
    found: Mutex<Verification>,
    /// The indexes of what looks damaged and is being built.
    busy: Mutex<Vec<usize>>,
}

impl Run<'_> {
    /// Hashes on all cores; which items were finished.
    fn all(&self, items: &[Item]) -> Vec<AtomicBool> {
        let finished: Vec<AtomicBool> = items.iter().map(|_| AtomicBool::new(false)).collect();
        let next = AtomicUsize::new(0);
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(items.len().max(1));
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    let look = Look::new(self.store, Some(self.reporter));
                    while !self.reporter.gives_up() {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(item) = items.get(index) else { break };
                        let verdict = look.at(&item.work);
                        if matches!(verdict, Verdict::Interrupted) {
                            break;
                        }
                        self.count(item);
                        match self.note(item, verdict, false) {
                            Acted::Done => {}
                            Acted::Busy => {
                                self.busy.lock().unwrap_or_else(PoisonError::into_inner).push(index);
                            }
                            Acted::Interrupted => break,
                        }
                        finished[index].store(true, Ordering::Release);
                    }
                });
            }
        });
        finished
    }

    fn count(&self, item: &Item) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.entries += 1;
        found.bytes += item.size;
    }

    /// What was being built when it was looked at: waited for, and looked at
    /// again. Where to go on, if the waiting was given up.
    fn busy_ones(&self, items: &[Item]) -> Result<Option<String>> {
        let mut busy = std::mem::take(&mut *self.busy.lock().unwrap_or_else(PoisonError::into_inner));
        busy.sort_by(|a, b| items[*a].hex.cmp(&items[*b].hex));
        for index in busy {
            let item = &items[index];
            let verdict = Verdict::Damaged("it was being built".into());
            if matches!(self.note(item, verdict, true), Acted::Interrupted) {
                return Ok(Some(item.hex.clone()));
            }
        }
        Ok(None)
    }

    /// Writes a verdict down and acts on it. With `wait`, what is being built is
    /// waited for.
    fn note(&self, item: &Item, verdict: Verdict, wait: bool) -> Acted {
        let problem = match verdict {
            Verdict::Sound => return Acted::Done,
            Verdict::Interrupted => return Acted::Interrupted,
            Verdict::Newer => {
                self.newer(&item.path);
                return Acted::Done;
            }
            Verdict::Unreadable(problem) => {
                let kept = Action::Kept("it cannot be read".into());
                self.finding(item.path.clone(), problem, kept, item.work.subject(self.store));
                return Acted::Done;
            }
            Verdict::Damaged(problem) => problem,
        };
        // Read before it is moved.
        let subject = item.work.subject(self.store);
        if let Some(why) = self.hands_off() {
            self.finding(item.path.clone(), problem, Action::Kept(why), subject);
            return Acted::Done;
        }
        match act::act(self.store, self.reporter, item, wait) {
            Ok(act::Outcome::Acted(acted)) => acted,
            Ok(act::Outcome::Moved(problem, to)) => {
                self.finding(item.path.clone(), problem, Action::Quarantined(to), subject);
                Acted::Done
            }
            Err(StoreError::GaveUp { .. }) => Acted::Interrupted,
            Err(error) => {
                self.finding(item.path.clone(), problem, Action::Kept(error.to_string()), subject);
                Acted::Done
            }
        }
    }

    /// Why nothing is moved, if that is so.
    fn hands_off(&self) -> Option<String> {
        match (self.quarantine, self.writable) {
            (false, _) => Some("nothing was to be moved".into()),
            (true, false) => Some("the cache cannot be written".into()),
            (true, true) => None,
        }
    }

    fn finding(&self, path: PathBuf, problem: String, action: Action, subject: Subject) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.damaged.push(Finding { path, problem, action, subject });
    }

    fn newer(&self, path: &Path) {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).newer.push(path.to_owned());
    }
}

#[cfg(test)]
mod mutation_tests;
#[cfg(test)]
mod tests;
