//! The remote cache: artifacts in a repository of a registry, by key.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use smolcellar_oci::{Descriptor, ImageId, Platform, Selector};
use smolcellar_pack::{TailRead, read_tail};
use smolcellar_store::{BuildLock, Event, Machine, MachineKey, Reporter, Store};
use smolcellar_transfer::{Imported, MachineEntry, Status, What};

use crate::artifact::{self, Content, Remote};
use crate::cache_error::{CacheError, CacheResult};
use crate::client::{Client, Fetched};
use crate::delta_fetch::{Assembled, Assembly, Outcome, Patience};
use crate::delta_local;
use crate::delta_plan::{self, Plan};
use crate::error::RemoteError;
use crate::options::Options;
use crate::pull::Ranged;

/// The task named in events.
const PULL: &str = "pull";

/// How long a look-up may take in all.
const LOOKUP: Duration = Duration::from_secs(10);

/// The least bytes per second of a transfer that a build waits for: below it,
/// building is faster.
const LEAST: u64 = 1 << 20;

/// A repository of a registry, as a cache of artifacts.
///
/// Every look-up ends within [`Cache::options`]' bounds, and so does every
/// transfer that does not make progress; [`crate::Breaker`] keeps a run from
/// finding that out more than once.
#[derive(Clone)]
pub struct Cache {
    pub(crate) client: Client,
    /// `REGISTRY/REPOSITORY`, for messages.
    pub(crate) at: String,
    /// The least bytes per second that a transfer must make in all.
    pub(crate) least: Option<u64>,
}

/// What a pull came to.
#[derive(Debug)]
pub enum Pull {
    /// It is not there.
    Missing,
    /// It is in the store.
    Done(Box<Pulled>),
}

/// An artifact that is there to be pulled: [`Cache::look`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The reference.
    at: String,
    layer: Descriptor,
    receipt: MachineEntry,
}

impl Found {
    /// The key.
    pub fn key(&self) -> MachineKey {
        self.receipt.key()
    }

    /// The file's size in bytes, as its manifest and its receipt say.
    pub fn size(&self) -> u64 {
        self.layer.size
    }
}

/// An artifact that was pulled.
#[derive(Debug)]
pub struct Pulled {
    /// The artifact, as it is in the store now.
    pub machine: Machine,
    /// How it got there. [`Status::Present`]: another of this key was there, and stays.
    pub status: Status,
    /// Bytes that came from the registry.
    pub fetched: u64,
    /// Bytes that were copied from artifacts at hand.
    pub reused: u64,
    /// Whether all of it was fetched, for lack of anything to copy or because
    /// the registry cannot send parts.
    pub whole: bool,
}

impl Cache {
    /// The repository that `client` is of, as builds use it: a transfer that
    /// makes less than 1 MiB per second in all, after 20 s, is given up, and any
    /// after ten minutes.
    pub fn new(client: Client) -> Self {
        let at = format!("{}/{}", client.registry(), client.repository());
        Self { client, at, least: Some(LEAST) }
    }

    /// The same for somebody who asked for a transfer and nothing else: it may
    /// take as long as it makes any progress.
    #[must_use]
    pub fn patient(self) -> Self {
        Self { least: None, ..self }
    }

    /// `REGISTRY/REPOSITORY`, as messages have it.
    pub fn name(&self) -> &str {
        &self.at
    }

    /// The bounds of a cache that nothing must wait for: ten seconds for a
    /// look-up with everything, and for a pause of a transfer; 16 KiB per second
    /// at least.
    pub fn options() -> Options {
        Options { connect: LOOKUP / 2, retries: 2, slowest: 16 << 10, ..Options::patient(LOOKUP) }
    }

    /// Whether the artifact `key` is there: its manifest, checked for all that
    /// can be told by that. Nobody else waits for this: it needs no lock.
    ///
    /// # Errors
    /// [`CacheError`]; within [`Options::lookup`].
    pub fn look(&self, key: &MachineKey) -> CacheResult<Option<Found>> {
        let tag = artifact::machine_tag(key);
        let Some(fetched) = self.client.manifest(&Selector::Tag(tag.clone()))? else { return Ok(None) };
        let at = format!("{}:{tag}", self.at);
        let unsound = |problem: String| CacheError::unsound(&at, problem);
        let (layer, receipt) = match artifact::parse(&fetched.bytes).map_err(unsound)? {
            Content::Machine(remote) => match *remote {
                Remote { layer, receipt: Some(receipt), .. } => (layer, receipt),
                Remote { .. } => return Err(unsound("it has no receipt".into())),
            },
            _ => return Err(unsound("it is no artifact".into())),
        };
        if receipt.key() != *key {
            return Err(unsound(format!("it is the artifact {}", receipt.key())));
        }
        Ok(Some(Found { at, layer, receipt }))
    }

    /// Gets what was found into the store: by parts, if artifacts at hand have
    /// others. Nothing is published that is not what the key and the receipt say.
    /// `agent` is whom it is for, if not whom its receipt says; the lock is the
    /// key's.
    ///
    /// # Errors
    /// [`CacheError`]; the store is then as it was.
    pub fn pull_found(
        &self,
        store: &Store,
        found: Found,
        agent: Option<&str>,
        lock: &BuildLock,
        reporter: &dyn Reporter,
    ) -> CacheResult<Pulled> {
        let Found { at, layer, receipt } = found;
        let agent = agent.map_or_else(|| receipt.agent.clone(), str::to_owned);
        let entry = MachineEntry { agent, ..receipt };
        self.get(store, &at, &layer, &entry, lock, reporter)
    }

    /// [`Cache::look`] and [`Cache::pull_found`], for those who have the lock
    /// already and can wait with it.
    ///
    /// # Errors
    /// [`CacheError`]; the store is then as it was.
    pub fn pull(
        &self,
        store: &Store,
        key: &MachineKey,
        agent: Option<&str>,
        lock: &BuildLock,
        reporter: &dyn Reporter,
    ) -> CacheResult<Pull> {
        let Some(found) = self.look(key)? else { return Ok(Pull::Missing) };
        let pulled = self.pull_found(store, found, agent, lock, reporter)?;
        Ok(Pull::Done(Box::new(pulled)))
    }

    /// Gets what is under a tag or a digest into the store: an artifact of ours,
    /// or what `smolvm pack push` put there, whose image the caller then names.
    ///
    /// # Errors
    /// [`CacheError`]; the store is then as it was.
    pub fn pull_reference(
        &self,
        store: &Store,
        selector: &Selector,
        image: Option<ImageId>,
        agent: Option<&str>,
        reporter: &dyn Reporter,
    ) -> CacheResult<Imported> {
        let separator = if matches!(selector, Selector::Digest(_)) { '@' } else { ':' };
        let at = format!("{}{separator}{selector}", self.at);
        let none = || CacheError::NoEntry {
            wanted: selector.to_string(),
            at: self.at.clone(),
            problem: "there is nothing of this name".into(),
        };
        let remote = self.resolve(&at, self.client.manifest(selector)?.ok_or_else(none)?)?;
        if let Some(receipt) = remote.receipt {
            if image.is_some_and(|image| image.0 != receipt.image) {
                return Err(CacheError::OtherImage(at));
            }
            let agent = agent.map_or_else(|| receipt.agent.clone(), str::to_owned);
            let entry = MachineEntry { agent, ..receipt };
            let lock = store.lock_build(&entry.key().lock_name(), reporter)?;
            let pulled = self.get(store, &at, &remote.layer, &entry, &lock, reporter)?;
            let receipt = pulled.machine.receipt;
            let what = What::Machine {
                key: entry.key(),
                agent: receipt.agent,
                path: pulled.machine.path,
                size: receipt.size,
                sha256: receipt.sha256,
            };
            return Ok(Imported { what, status: pulled.status });
        }
        let image = image.ok_or_else(|| CacheError::NeedsImage(at.clone()))?;
        store.need(remote.layer.size, &format!("pulling {at}"))?;
        let dir = store.temp_dir()?;
        let task = Task::begin(reporter, PULL, remote.layer.size);
        let assembly = Assembly {
            client: &self.client,
            layer: &remote.layer,
            locals: &[],
            tail: &[],
            dir: &dir,
            advance: &|bytes| task.advance(bytes),
            patience: &Patience::new(reporter, remote.layer.size, self.least),
        };
        let Assembled { blob, sum } = self.whole(&at, &assembly)?;
        Ok(smolcellar_transfer::publish_foreign(store, &at, image, agent, blob, sum, reporter)?)
    }

    /// The artifact that a manifest is of; of an index, this machine's.
    fn resolve(&self, at: &str, fetched: Fetched) -> CacheResult<Remote> {
        let unsound = |problem: String| CacheError::unsound(at, problem);
        let manifests = match artifact::parse(&fetched.bytes).map_err(unsound)? {
            Content::Machine(remote) => return Ok(*remote),
            Content::Pointer { .. } => return Err(unsound("it is no artifact".into())),
            Content::Index(manifests) => manifests,
        };
        let guest = Platform::guest();
        let fits = |descriptor: &&Descriptor| {
            let platform = descriptor.platform.as_ref();
            platform.is_some_and(|has| has.os == guest.os && has.architecture == guest.architecture)
        };
        let fitting =
            manifests.iter().find(fits).ok_or_else(|| unsound(format!("it has none for {guest}")))?;
        let fetched = self.client.manifest(&Selector::Digest(fitting.digest))?;
        let fetched = fetched.ok_or_else(|| unsound("its manifest is not there".into()))?;
        match artifact::parse(&fetched.bytes).map_err(unsound)? {
            Content::Machine(remote) => Ok(*remote),
            _ => Err(unsound("it is no artifact".into())),
        }
    }

    /// Gets a file and publishes it as what its receipt says.
    fn get(
        &self,
        store: &Store,
        at: &str,
        layer: &Descriptor,
        entry: &MachineEntry,
        lock: &BuildLock,
        reporter: &dyn Reporter,
    ) -> CacheResult<Pulled> {
        store.need(layer.size, &format!("pulling {at}"))?;
        let locals = delta_local::candidates(store, entry, &entry.agent, reporter)?;
        let dir = store.temp_dir()?;
        let task = Task::begin(reporter, PULL, layer.size);
        let assembly = Assembly {
            client: &self.client,
            layer,
            locals: &locals,
            tail: &[],
            dir: &dir,
            advance: &|bytes| task.advance(bytes),
            patience: &Patience::new(reporter, layer.size, self.least),
        };
        let by_parts = match locals.is_empty() {
            true => None,
            false => self.by_parts(at, &assembly, entry)?,
        };
        let (assembled, fetched, reused) = match by_parts {
            Some(done) => done,
            None => (self.whole(at, &assembly)?, layer.size, 0),
        };
        let Assembled { blob, sum } = assembled;
        let (machine, status) =
            smolcellar_transfer::publish_received(store, at, entry, blob, sum, lock, reporter)?;
        Ok(Pulled { machine, status, fetched, reused, whole: reused == 0 })
    }

    /// With what artifacts at hand have of it; the bytes fetched, and copied.
    /// `None`: it has to be fetched whole.
    fn by_parts(
        &self,
        at: &str,
        assembly: &Assembly<'_>,
        entry: &MachineEntry,
    ) -> CacheResult<Option<(Assembled, u64, u64)>> {
        let Some((tail, plan)) = self.plan(at, assembly, entry)? else { return Ok(None) };
        let assembly = Assembly { tail: &tail, ..*assembly };
        match assembly.by_plan(&plan, true) {
            Ok(Outcome::Done(done)) => Ok(Some((done, plan.fetched() + tail.len() as u64, plan.copied()))),
            // Frames that were called equal are not, or an artifact at hand is
            // damaged: once more, believing none.
            Ok(Outcome::Different(_) | Outcome::NoRanges) | Err(CacheError::Unsound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The last bytes, and the plan of the rest. `None`: there are no ranges, or
    /// no frames.
    fn plan(
        &self,
        at: &str,
        assembly: &Assembly<'_>,
        entry: &MachineEntry,
    ) -> CacheResult<Option<(Vec<u8>, Plan)>> {
        let layer = assembly.layer;
        let unsound = |problem: String| CacheError::unsound(at, problem);
        // The index has 48 bytes per frame, frames are some 500 KB.
        let mut known = (64 << 10) + layer.size / 4096;
        let mut tail = Vec::new();
        // Footer, then trailer, then index: what each asks for is the last of it.
        for _ in 0..4 {
            known = known.min(layer.size);
            let more = known - tail.len() as u64;
            let mut before = Vec::with_capacity(usize::try_from(more).unwrap_or(0));
            let mut sink = |bytes: &[u8]| {
                before.extend_from_slice(bytes);
                Ok(())
            };
            let ranged = self.client.blob_range(&layer.digest, layer.size - known, more, &mut sink)?;
            if ranged == Ranged::NoRanges {
                return Ok(None);
            }
            before.append(&mut tail);
            tail = before;
            match read_tail(layer.size, &tail).map_err(unsound)? {
                TailRead::Needs(more) => known = more,
                TailRead::Whole(read) => {
                    // Only ours say which image they are of.
                    if entry.is_native() && read.manifest.digest != entry.image.to_string() {
                        return Err(unsound("its manifest names another image".into()));
                    }
                    let Some(index) = read.index else { return Ok(None) };
                    let at_hand: Vec<_> = assembly.locals.iter().map(|local| &local.index).collect();
                    let plan = delta_plan::plan(layer.size - tail.len() as u64, &index, &at_hand);
                    return Ok(Some((tail, plan)));
                }
            }
        }
        Err(unsound("its last bytes contradict themselves".into()))
    }

    /// All of it from the registry.
    fn whole(&self, at: &str, assembly: &Assembly<'_>) -> CacheResult<Assembled> {
        let plan = delta_plan::whole(assembly.layer.size);
        let outcome = match assembly.by_plan(&plan, false)? {
            Outcome::NoRanges => assembly.in_one()?,
            outcome => outcome,
        };
        match outcome {
            Outcome::Done(assembled) => Ok(assembled),
            Outcome::Different(actual) => {
                let problem = format!("its bytes have {actual}, its manifest says {}", assembly.layer.digest);
                Err(CacheError::unsound(at, problem))
            }
            Outcome::NoRanges => Err(CacheError::Remote(RemoteError::Nonsense {
                registry: self.at.clone(),
                what: at.to_owned(),
                problem: "neither parts nor the whole".into(),
            })),
        }
    }
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("at", &self.at).finish_non_exhaustive()
    }
}

/// A task in a reporter's hands; it ends however the work does.
pub(crate) struct Task<'a> {
    reporter: &'a dyn Reporter,
    name: &'static str,
    /// What was not reported yet: a second try does not go beyond the total.
    left: AtomicU64,
}

impl<'a> Task<'a> {
    pub(crate) fn begin(reporter: &'a dyn Reporter, name: &'static str, total: u64) -> Self {
        reporter.report(Event::Begin { task: name, total: Some(total) });
        Self { reporter, name, left: AtomicU64::new(total) }
    }

    pub(crate) fn advance(&self, bytes: u64) {
        let take = |left: u64| Some(left.saturating_sub(bytes));
        let before = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).unwrap_or(0);
        self.reporter.report(Event::Advance { task: self.name, bytes: bytes.min(before) });
    }
}

impl Drop for Task<'_> {
    fn drop(&mut self) {
        self.reporter.report(Event::End { task: self.name });
    }
}
