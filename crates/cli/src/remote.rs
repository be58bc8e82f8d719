//! The cache that others share, as commands use it: asked by builds after this
//! machine's, and told of what was built.
//!
//! Builds never fail of it: the first trouble switches it off for the rest of
//! the command, with one warning. What is asked for by name (`cache push`,
//! `prewarm --push`) does fail, and says why.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use serde::Serialize;
use smolcellar_oci::ImageId;
use smolcellar_pipeline::{Elsewhere, Outcome, Pulled, StageName, StageStatus};
use smolcellar_remote::{Breaker, Cache, CacheResult, Client, Options, Push};
use smolcellar_store::{Digest, Event, Lookup, Machine, MachineKey, Reporter, Store, UseLock};

use crate::args::RemoteArgs;
use crate::config_remote::{Mode, Place};
use crate::exit::{Miss, Usage};
use crate::format;
use crate::remote_options::{self, NamedBy};
use crate::session::Session;

/// What a build says of an artifact that could not be sent.
const NOT_SENT: &str = "the artifact was not sent there";

/// A remote cache that may be used.
pub(crate) struct Remote<'a> {
    session: &'a Session,
    place: Place,
    mode: Mode,
    cache: Cache,
    /// Whether it failed before: it is left alone then.
    breaker: Breaker,
    /// Whether that was said.
    warned: AtomicBool,
}

/// What became of an artifact that was to be sent.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sent {
    /// Where.
    pub(crate) to: String,
    /// "present", "sent", or "other" where another artifact of this key is.
    pub(crate) status: &'static str,
    /// Bytes that went over the network.
    pub(crate) bytes: u64,
}

impl Sent {
    /// For people.
    pub(crate) fn text(&self) -> String {
        match self.status {
            "present" => format!("{} has it", self.to),
            "other" => format!("{} has another", self.to),
            _ => format!("{} sent to {}", format::bytes(self.bytes), self.to),
        }
    }
}

impl<'a> Remote<'a> {
    /// The one that options, environment and configuration say is to be used by
    /// builds: nobody waits long for it.
    pub(crate) fn of(session: &'a Session, args: &RemoteArgs) -> Result<Option<Self>> {
        let configured = configured(session)?;
        let (place, mode, by) = match (&args.remote, configured) {
            // The configuration's mode is for the configuration's repository: who may
            // change it must not make others write elsewhere.
            (Some(place), _) => (place.clone(), Mode::R, NamedBy::User),
            (None, Some((place, mode))) => (place, mode, NamedBy::Project),
            (None, None) => match args.remote_mode {
                Some(Mode::R | Mode::Rw) => return Err(no_remote()),
                Some(Mode::Off) | None => return Ok(None),
            },
        };
        let mode = args.remote_mode.unwrap_or(mode);
        if mode == Mode::Off || session.global.offline {
            return Ok(None);
        }
        let options = remote_options::for_builds(&place.registry, by)?;
        Self::new(session, place, mode, options).map(Some)
    }

    /// The one that is named, or else the configuration's; for what is asked for
    /// by name, and may be waited for.
    pub(crate) fn named(session: &'a Session, named: Option<Place>) -> Result<Self> {
        let (place, by) = match named {
            Some(place) => (place, NamedBy::User),
            None => (configured(session)?.ok_or_else(no_remote)?.0, NamedBy::Project),
        };
        not_offline(session, &place)?;
        let options = remote_options::options(&place.registry, by)?;
        let remote = Self::new(session, place, Mode::Rw, options)?;
        Ok(Self { cache: remote.cache.patient(), ..remote })
    }

    fn new(session: &'a Session, place: Place, mode: Mode, options: Options) -> Result<Self> {
        let client = Client::new(&place.registry, &place.repository, options)?;
        Ok(Self {
            session,
            place,
            mode,
            cache: Cache::new(client),
            breaker: Breaker::new(),
            warned: AtomicBool::new(false),
        })
    }

    /// The same, to which builds send nothing.
    pub(crate) fn only_read(self) -> Self {
        Self { mode: Mode::R, ..self }
    }

    /// The library's part.
    pub(crate) fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Where it is.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// Sends an artifact, and what leads to its image.
    pub(crate) fn send(&self, store: &Store, key: &MachineKey, seen: &[Digest]) -> Result<Sent> {
        let (machine, _in_use) = self.machine(store, key)?;
        Ok(self.put(&machine, seen)?)
    }

    /// After a build that had to pack: sends what it made, if that is wanted.
    pub(crate) fn offer(&self, store: &Store, outcome: &Outcome) {
        let packed = outcome
            .stages
            .iter()
            .any(|stage| (stage.name, stage.status) == (StageName::Smolmachine, StageStatus::Miss));
        if self.mode != Mode::Rw || !packed {
            return;
        }
        let progress = &self.session.progress;
        let machine = match self.machine(store, &outcome.key()) {
            Ok(machine) => machine,
            Err(error) => return self.warn(&format!("{error:#}"), NOT_SENT),
        };
        let (machine, _in_use) = machine;
        match self.breaker.write(|| self.put(&machine, outcome.seen.as_slice())) {
            Some(Ok(sent)) => progress.report(Event::Note { text: &format!("  {}", sent.text()) }),
            Some(Err(error)) => self.warn(&error.to_string(), NOT_SENT),
            None => {}
        }
    }

    /// The artifact, which stays until the lock is dropped.
    fn machine(&self, store: &Store, key: &MachineKey) -> Result<(Machine, UseLock)> {
        let in_use = store.lock_use(&key.lock_name(), &self.session.progress)?;
        match store.machine(key, false)? {
            Lookup::Hit(machine) => Ok((*machine, in_use)),
            Lookup::Miss => Err(Miss(format!("there is no artifact {key} in the cache")).into()),
            Lookup::Damaged { problem } => {
                anyhow::bail!("the artifact {key} is damaged ({problem}); build it again")
            }
        }
    }

    /// The artifact there, and what leads to its image.
    fn put(&self, machine: &Machine, seen: &[Digest]) -> CacheResult<Sent> {
        let progress = &self.session.progress;
        let key = machine.receipt.key();
        let sent = |status, bytes| Sent { to: self.place.to_string(), status, bytes };
        let sent = match self.cache.push(machine, progress)? {
            Push::Present => sent("present", 0),
            Push::Other(sha256) => {
                let text = format!(
                    "{} has another artifact {key}, {sha256}: it stays, and this machine's was not sent",
                    self.place
                );
                progress.report(Event::Warn { text: &text });
                sent("other", 0)
            }
            Push::Done { bytes } => sent("sent", bytes),
        };
        // Last: what leads to an artifact must not be there before it is.
        for seen in seen {
            self.cache.note_image(seen, &key)?;
        }
        Ok(sent)
    }

    /// What was asked for, unless it is not there or there is trouble.
    fn ask<T>(&self, question: impl FnOnce() -> CacheResult<T>) -> Option<T> {
        match self.breaker.read(question)? {
            Ok(answer) => Some(answer),
            Err(error) => {
                self.warn(&error.to_string(), "going on without it");
                None
            }
        }
    }

    /// Once: of several agents at work, all may meet the same trouble.
    fn warn(&self, problem: &str, so: &str) {
        if self.warned.swap(true, Ordering::Relaxed) {
            return;
        }
        let text = format!("the remote cache {}: {problem}; {so}", self.place);
        self.session.progress.report(Event::Warn { text: &text });
    }
}

impl Elsewhere for Remote<'_> {
    fn image_of(&self, seen: &Digest, recipe: &Digest) -> Option<ImageId> {
        self.ask(|| self.cache.image_of(seen, recipe)).flatten()
    }

    fn fetch(&self, store: &Store, key: &MachineKey, agent: &str) -> Option<Pulled> {
        // Before the lock: nobody waits for an answer that somebody else may not get.
        let found = self.ask(|| self.cache.look(key)).flatten()?;
        let progress = &self.session.progress;
        // Of many that want it, one gets it. Who cannot have the lock finds out again when it builds.
        let lock = store.lock_build(&key.lock_name(), progress).ok()?;
        if matches!(store.machine(key, false), Ok(Lookup::Hit(_))) {
            return None;
        }
        let pulled = self.ask(|| self.cache.pull_found(store, found, Some(agent), &lock, progress))?;
        Some(Pulled { from: self.place.to_string(), fetched: pulled.fetched, reused: pulled.reused })
    }
}

/// The configuration's, if it has one.
fn configured(session: &Session) -> Result<Option<(Place, Mode)>> {
    session.config()?.map_or(Ok(None), |config| config.remote())
}

/// That the network may be used for what was asked for.
pub(crate) fn not_offline(session: &Session, place: &impl std::fmt::Display) -> Result<()> {
    match session.global.offline {
        true => {
            Err(Usage(format!("{place} is on the network, and --offline says to leave that alone")).into())
        }
        false => Ok(()),
    }
}

fn no_remote() -> anyhow::Error {
    let text = "no remote cache is named: give HOST/NAME (`--remote=HOST/NAME`; `--to` with push, `--from` with pull), \
                set SMOLCELLAR_REMOTE, or add `ref` to [remote] in the configuration";
    Usage(text.into()).into()
}
