//! `cache gc`: the cache kept in bounds, on request and after builds.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use smolcellar_launcher::{Launcher, Signals};
use smolcellar_pipeline::sweep_pointers;
use smolcellar_store::gc::{self, Collected, Entry, Inventory, Policy};
use smolcellar_store::{Digest, Event, MachineKey, Reporter, Store};

use crate::args::CacheGc;
use crate::ask;
use crate::config::Config;
use crate::config_gc::GcTable;
use crate::exit;
use crate::output::{self, Format};
use crate::session::Session;

use super::gc_show::{entries, held_by, plan_json, roots, show, summary, warn_unmet, what};

/// How often the cache is collected after a build.
const INTERVAL: Duration = Duration::from_secs(86_400);
/// How long that may take; what is left goes another day.
const BOUND: Duration = Duration::from_secs(10);
/// How long others have to remove what they keep of what was removed.
pub(super) const TIDY: Duration = Duration::from_secs(60);
/// How often a plan is made again because something of it was in use.
const ROUNDS: u32 = 3;

pub(super) fn run(session: &Session, args: &CacheGc) -> Result<u8> {
    let policy = policy(session, args)?;
    let store = session.store()?;
    // A dry run changes nothing, not even this.
    if !args.dry_run && !args.roots {
        reap(session, &store);
    }
    let inventory = store.inventory()?;
    for path in &inventory.opaque {
        let text =
            format!("{} cannot be read, or is of a newer smolcellar; what it may name stays", path.display());
        session.progress.report(Event::Warn { text: &text });
    }
    let plan = gc::plan(&inventory, &policy, SystemTime::now());
    if args.roots {
        return roots(session, &plan);
    }
    let human = session.global.format == Format::Human;
    if human {
        show(&plan)?;
    }
    if args.dry_run || plan.remove.is_empty() {
        if !human {
            output::json(&plan_json(&plan, None))?;
        }
        warn_unmet(session, &plan);
        return Ok(exit::OK);
    }
    let question = format!("remove {}?", entries(plan.remove.len()));
    if !args.yes && !ask::yes(&question)? {
        return Ok(exit::DECLINED);
    }
    // What was built since the question nobody has seen, and nobody has agreed to.
    let shown: BTreeSet<Entry> = plan.remove.iter().map(|removal| removal.entry.clone()).collect();
    let shown = (!args.yes).then_some(&shown);
    let signals = Signals::catch()?;
    let reporter = Patient(session, &signals);
    let mut done = collect(session, &store, &policy, shown, &reporter)?;
    // Blobs are busy for moments: what was left of them goes now, if it can.
    if done.blobs_busy && !reporter.gives_up() {
        done.blobs_busy = false;
        add(&mut done, collect(session, &store, &policy, shown, &reporter)?);
    }
    match human {
        true => output::line(&summary(&done))?,
        false => output::json(&plan_json(&plan, Some(&done)))?,
    }
    for spared in &done.spared {
        let by: Vec<_> = spared.roots.iter().map(held_by).collect();
        let text = format!("{} stayed: {}", what(&spared.entry), by.join(", "));
        session.progress.report(Event::Warn { text: &text });
    }
    warn_failed(session, &done);
    warn_unmet(session, &gc::plan(&store.inventory()?, &policy, SystemTime::now()));
    Ok(match smolcellar_launcher::Interrupt::signal(&signals) {
        Some(signal) => 128_u8.saturating_add(u8::try_from(signal).unwrap_or(0)),
        None if done.failed.is_empty() => exit::OK,
        None => exit::FAILED,
    })
}

fn warn_failed(session: &Session, done: &Collected) {
    for (entry, error) in &done.failed {
        let what = entry.as_ref().map_or_else(|| "blobs".to_owned(), what);
        session.progress.report(Event::Warn { text: &format!("{what} could not be removed: {error}") });
    }
}

/// What [`after_build`] does. What was just built stays, however small the limits.
pub(crate) fn after_build_of(
    session: &Session,
    store: &Store,
    config: Option<&Config>,
    mut built: Vec<MachineKey>,
) -> Result<()> {
    // In the order of the keys, as everybody takes several.
    built.sort();
    built.dedup();
    let lock = |key: &MachineKey| store.lock_use(&key.lock_name(), &session.progress);
    let _in_use = built.iter().map(lock).collect::<Result<Vec<_>, _>>()?;
    after_build(session, store, config);
    Ok(())
}

/// After a build: keeps the cache in bounds, at most once a day, without
/// waiting for anybody. It never fails a build.
pub(crate) fn after_build(session: &Session, store: &Store, config: Option<&Config>) {
    let auto = config.is_none_or(Config::gc_auto) && !session.global.no_auto_gc;
    if !auto || !store.gc_is_due(INTERVAL) {
        return;
    }
    let collected = (|| -> Result<Option<Collected>> {
        let policy = match config {
            Some(config) => config.gc_policy()?,
            None => GcTable::default().policy("")?,
        };
        // Somebody else does it.
        let Some(collector) = store.try_collector()? else { return Ok(None) };
        let inventory = store.inventory()?;
        let plan = gc::plan(&inventory, &policy, SystemTime::now());
        let done = collector.carry_out(&plan, Some(Instant::now() + BOUND), &session.progress);
        sweep_pointers(store, &collector);
        drop(collector);
        tidy(session, store, &Digests::of(&inventory).among(&done.removed), BOUND);
        Ok(Some(done))
    })();
    if let Ok(Some(done)) = &collected {
        warn_failed(session, done);
    }
    match collected {
        Ok(Some(done)) if !done.removed.is_empty() => {
            let text = format!(
                "cache: {} (`cargo xtask cache gc --dry-run` shows the policy at work)",
                summary(&done)
            );
            session.progress.report(Event::Note { text: &text });
        }
        Ok(_) => {}
        Err(error) => {
            let text = format!("the cache could not be collected: {error:#}");
            session.progress.report(Event::Warn { text: &text });
        }
    }
}

/// Plans under the collector's lock and carries out what of it was shown, if
/// anything was. What turns out to be in use is planned around.
fn collect(
    session: &Session,
    store: &Store,
    policy: &Policy,
    shown: Option<&BTreeSet<Entry>>,
    reporter: &dyn Reporter,
) -> Result<Collected> {
    let collector = store.collector(reporter)?;
    let mut all = Collected::default();
    let mut gone = BTreeSet::new();
    for _ in 0..ROUNDS {
        let inventory = store.inventory()?;
        let mut plan = gc::plan(&inventory, policy, SystemTime::now());
        // Blobs come and go with what names them.
        plan.remove.retain(|removal| {
            shown.is_none_or(|shown| shown.contains(&removal.entry))
                || matches!(removal.entry, Entry::Blob(_) | Entry::Loose(..))
        });
        let done = collector.carry_out(&plan, None, reporter);
        gone.extend(Digests::of(&inventory).among(&done.removed));
        let again = !done.spared.is_empty();
        add(&mut all, done);
        if !again {
            break;
        }
    }
    sweep_pointers(store, &collector);
    drop(collector);
    tidy(session, store, &gone, TIDY);
    Ok(all)
}

fn add(all: &mut Collected, done: Collected) {
    all.removed.extend(done.removed);
    all.freed += done.freed;
    // What was in use is planned around the next time, and is still worth a word.
    for spared in done.spared {
        if !all.spared.iter().any(|known| known.entry == spared.entry) {
            all.spared.push(spared);
        }
    }
    all.failed = done.failed;
    all.cut_short |= done.cut_short;
    all.blobs_busy |= done.blobs_busy;
}

/// Gives up when a signal came.
pub(super) struct Patient<'a>(pub(super) &'a Session, pub(super) &'a Signals);

impl Reporter for Patient<'_> {
    fn report(&self, event: Event<'_>) {
        self.0.progress.report(event);
    }
    fn gives_up(&self) -> bool {
        smolcellar_launcher::Interrupt::signal(self.1).is_some()
    }
}

/// Ends the leases of machines that are proved gone.
pub(super) fn reap(session: &Session, store: &Store) {
    let Ok(signals) = Signals::catch() else { return };
    let launcher = Launcher::new(session.present_tools(store), store, &session.progress, &signals);
    if let Err(error) = launcher.reap() {
        let text = format!("cannot tell which machines are gone: {error}");
        session.progress.report(Event::Warn { text: &text });
    }
}

/// Removes what others keep of artifacts that are gone.
pub(super) fn tidy(session: &Session, store: &Store, gone: &BTreeSet<Digest>, within: Duration) {
    if gone.is_empty() {
        return;
    }
    let Ok(signals) = Signals::catch() else { return };
    Launcher::new(session.present_tools(store), store, &session.progress, &signals).tidy(gone, within);
}

/// What others know artifacts by.
pub(super) struct Digests(BTreeMap<MachineKey, Digest>);

impl Digests {
    pub(super) fn of(inventory: &Inventory) -> Self {
        let digest = |machine: &gc::MachineEntry| Some((machine.key, machine.sha256?));
        Self(inventory.machines.iter().filter_map(digest).collect())
    }

    pub(super) fn among<'a>(&self, removed: impl IntoIterator<Item = &'a Entry>) -> BTreeSet<Digest> {
        let digest = |entry: &Entry| match entry {
            Entry::Machine(key) => self.0.get(key).copied(),
            _ => None,
        };
        removed.into_iter().filter_map(digest).collect()
    }
}

/// The policy of the configuration, or of the command line where that has one.
fn policy(session: &Session, args: &CacheGc) -> Result<Policy> {
    if args.all {
        return Ok(Policy { all: true, keep_last: args.keep_last.unwrap_or(0), ..Policy::default() });
    }
    let policy = match session.config()? {
        Some(config) => config.gc_policy()?,
        None => GcTable::default().policy("")?,
    };
    Ok(Policy {
        max_age: args.max_age.or(policy.max_age),
        max_size: args.max_size.or(policy.max_size),
        min_free: args.min_free.or(policy.min_free),
        keep_last: args.keep_last.unwrap_or(policy.keep_last),
        all: false,
    })
}
