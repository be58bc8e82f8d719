//! One agent through all stages.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use smolcellar_engine::Engine;
use smolcellar_oci::ImageId;
use smolcellar_smolvm::Runtime;
use smolcellar_store::{BuildLock, Machine, MachineKey, RunStat, StageReceipt, StageStat, Store, UseLock};

use crate::agent::{AgentSpec, Source};
use crate::elsewhere::{Elsewhere, Pulled};
use crate::error::{PipelineError, Result};
use crate::explain::{Made, StageWhy};
use crate::facts::BuildFacts;
use crate::machine::InUse;
use crate::outcome::{Observer, Outcome, StageName, StageReport, StageStatus};
use crate::record::{BuildRecord, Took, last_build};
use crate::tarball::Taken;
use crate::{explain, image, machine, pointer, recipe, record, registry, tarball};

/// What a run works with.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Where everything is kept.
    pub store: &'a Store,
    /// The runtime whose agent root filesystem goes into the artifact.
    pub runtime: &'a Runtime,
    /// The container engine; archives need none.
    pub engine: Option<&'a Engine>,
    /// Who hears of it.
    pub observer: &'a dyn Observer,
    /// From which stage on everything is made again, whatever there is.
    pub force: Option<StageName>,
    /// Whether nothing is to be made: what is not there is an error.
    pub only_cached: bool,
    /// Where else artifacts may be had.
    pub elsewhere: Option<&'a dyn Elsewhere>,
}

impl Context<'_> {
    fn forces(&self, stage: StageName) -> bool {
        self.force.is_some_and(|from| from <= stage)
    }

    /// Brings the artifact here, if it is elsewhere and nothing is to be made anew.
    fn fetch(&self, key: &MachineKey, agent: &str) -> Option<Pulled> {
        self.elsewhere.filter(|_| self.force.is_none())?.fetch(self.store, key, agent)
    }
}

/// Takes `agent` through all stages, doing only what is missing. Nothing
/// collects the artifact until the lock is dropped.
///
/// # Errors
/// [`PipelineError`]; whatever was published before stays and is whole.
pub fn run(context: Context<'_>, agent: &AgentSpec) -> Result<(Outcome, UseLock)> {
    let last = last_build(context.store, &agent.project, &agent.name);
    let inputs = recipe::inputs(agent, context.runtime);
    let recipe = machine::recipe(&inputs);
    let began = Instant::now();
    let mut found = image::resolve(context, agent, &recipe, last.as_ref())?;
    let image_seconds = began.elapsed().as_secs_f64();
    let facts = found.facts.take();
    let mut run = Run {
        context,
        agent,
        inputs,
        last,
        facts,
        stages: Vec::new(),
        pulled: None,
        _lock: found.lock.take(),
    };

    if let Some(id) = found.id.filter(|_| context.force.is_none()) {
        let key = MachineKey { image: id.0, recipe };
        let began = Instant::now();
        if let Some(machine) = machine::look(context.store, &key, None, context.observer)? {
            return run.all_hit(id, machine, image_seconds, began, found.engine_id.is_some());
        }
        run.pulled = context.fetch(&key, &agent.name);
        // Or another process got it while we waited for it.
        if context.elsewhere.is_some()
            && let Some(machine) = machine::look(context.store, &key, None, context.observer)?
        {
            return run.all_hit(id, machine, image_seconds, began, true);
        }
    }
    if context.only_cached {
        return Err(PipelineError::NotCached);
    }
    // An image that was built before may be neither in the store nor in the
    // engine any more.
    if let (Source::Build { build, .. }, None, Some(id)) = (&agent.source, found.engine_id, found.id)
        && (context.forces(StageName::Tarball) || !tarball::is_whole(context.store, id))
        && let Some(facts) = run.facts.take()
    {
        found = image::ask(context, build, facts)?;
        run.facts = found.facts.take();
    }
    let image_seconds = began.elapsed().as_secs_f64();
    if let Some(size) = found.size.filter(|_| found.id.is_none_or(|id| !tarball::is_whole(context.store, id)))
    {
        context.store.need(size, &format!("taking the image of agent '{}' in", agent.name))?;
    }
    // An archive on a pipe, and an engine whose IDs are not the image's, tell
    // the image only by being read.
    let (id, early) = match found.id {
        Some(id) => (id, None),
        None => {
            let began = Instant::now();
            let taken = take(context, agent, None, found.engine_id)?;
            if let Some(engine_id) = found.engine_id.filter(|engine_id| *engine_id != taken.id.0) {
                pointer::remember_image(context.store, &engine_id, taken.id);
            }
            run.pulled = context.fetch(&MachineKey { image: taken.id.0, recipe }, &agent.name);
            (taken.id, Some((taken, began.elapsed().as_secs_f64())))
        }
    };
    let known = context.store.stage_receipt(&id.0, tarball::STAGE).ok().flatten();
    let bytes = known.as_ref().map(StageReceipt::bytes).or(early.as_ref().map(|(taken, _)| taken.bytes()));
    let hit = known.is_some() && !context.forces(StageName::Image);
    let status = if hit { StageStatus::Hit } else { StageStatus::Miss };
    run.done(StageName::Image, status, image_seconds, bytes.unwrap_or(0));
    let machine = run.build(id, MachineKey { image: id.0, recipe }, found.engine_id, early)?;
    run.finish(id, machine, found.engine_id.is_some())
}

struct Run<'a> {
    context: Context<'a>,
    agent: &'a AgentSpec,
    inputs: BTreeMap<String, Value>,
    /// The build before this one.
    last: Option<BuildRecord>,
    /// What the image's build saw.
    facts: Option<BuildFacts>,
    stages: Vec<StageReport>,
    /// What came from elsewhere.
    pulled: Option<Pulled>,
    /// Held until it is remembered which image the sources make.
    _lock: Option<BuildLock>,
}

impl Run<'_> {
    /// The warm path: the artifact is there, nothing else is looked into.
    fn all_hit(
        mut self,
        id: ImageId,
        machine: InUse,
        image_seconds: f64,
        began: Instant,
        asked: bool,
    ) -> Result<(Outcome, UseLock)> {
        let store = self.context.store;
        let receipts = [tarball::STAGE, registry::STAGE]
            .map(|stage| store.stage_receipt(&id.0, stage).ok().flatten().map(|receipt| receipt.bytes()));
        self.done(StageName::Image, StageStatus::Hit, image_seconds, receipts[0].unwrap_or(0));
        for (name, bytes) in [StageName::Tarball, StageName::Registry].into_iter().zip(receipts) {
            let status = if bytes.is_some() { StageStatus::Hit } else { StageStatus::Skipped };
            self.done(name, status, 0.0, bytes.unwrap_or(0));
        }
        self.done(
            StageName::Smolmachine,
            StageStatus::Hit,
            began.elapsed().as_secs_f64(),
            machine.machine.receipt.size,
        );
        self.finish(id, machine, asked)
    }

    /// The cold path, under locks.
    fn build(
        &mut self,
        id: ImageId,
        key: MachineKey,
        engine_id: Option<smolcellar_store::Digest>,
        early: Option<(Taken, f64)>,
    ) -> Result<InUse> {
        let Context { store, observer, .. } = self.context;
        let image_lock = store.lock_build(&id.0.hex(), observer)?;
        // Whoever had the lock may have built all of it.
        let began = Instant::now();
        if self.context.force.is_none()
            && let Some(machine) = machine::look(store, &key, None, observer)?
        {
            drop(image_lock);
            self.other_built(id, &machine.machine, began);
            return Ok(machine);
        }
        let began = Instant::now();
        let receipt = store.stage_receipt(&id.0, tarball::STAGE).ok().flatten();
        let receipt = receipt.filter(|_| !self.context.forces(StageName::Tarball));
        let kept = match &receipt {
            Some(receipt) => tarball::from_store(store, id, receipt, &self.agent.platform, observer)?,
            None => None,
        };
        let hit = kept.is_some();
        let (mut taken, seconds) = match (kept, early) {
            (Some(taken), _) => (taken, began.elapsed().as_secs_f64()),
            (None, Some((taken, seconds))) => (taken, seconds),
            (None, None) => {
                let engine_id = match (&self.agent.source, engine_id, self.facts.take()) {
                    // It was not asked yet, as the store seemed to have it all.
                    (Source::Build { build, .. }, None, Some(facts)) => {
                        let built = image::ask(self.context, build, facts)?;
                        self.facts = built.facts;
                        if built.id.is_some_and(|built| built != id) {
                            return Err(PipelineError::Moved);
                        }
                        built.engine_id
                    }
                    (_, engine_id, facts) => {
                        self.facts = facts;
                        engine_id
                    }
                };
                let taken = take(self.context, self.agent, Some(id), engine_id)?;
                (taken, began.elapsed().as_secs_f64())
            }
        };
        let status = if hit { StageStatus::Hit } else { StageStatus::Miss };
        self.done(StageName::Tarball, status, seconds, taken.bytes());
        self.registry_and_machine(key, &mut taken, image_lock, seconds)
    }

    /// Blobs and manifest are made durable on a thread of their own while the
    /// artifact is packed from the same bytes: neither waits for the other
    /// until the artifact is to be published.
    fn registry_and_machine(
        &mut self,
        key: MachineKey,
        taken: &mut Taken,
        image_lock: BuildLock,
        tarball_seconds: f64,
    ) -> Result<InUse> {
        let Context { store, observer, runtime, .. } = self.context;
        let (id, agent) = (taken.id, self.agent);
        let staged = taken.staged.take();
        let taken = &*taken;
        let known = store.stage_receipt(&id.0, registry::STAGE).ok().flatten();
        let known = known.filter(|_| !self.context.forces(StageName::Registry));
        let heal = self.context.forces(StageName::Tarball);
        let publish = move || -> Result<(StageStatus, f64, u64)> {
            if let Some(staged) = staged {
                let millis = (tarball_seconds * 1e3) as u64;
                tarball::publish(store, id, tarball::route(&agent.source), staged, millis, heal, observer)?;
            }
            let began = Instant::now();
            let manifest_there = |receipt: &StageReceipt| {
                receipt.blobs.iter().all(|blob| store.blobs().has(&blob.digest, blob.size))
            };
            let (status, receipt) = match known.filter(manifest_there) {
                Some(receipt) => (StageStatus::Hit, receipt),
                None => (
                    StageStatus::Miss,
                    registry::commit(store, id, taken.config_size, &taken.layers, observer)?,
                ),
            };
            // The image is in the store: others may read it from there.
            drop(image_lock);
            Ok((status, began.elapsed().as_secs_f64(), receipt.bytes()))
        };
        std::thread::scope(|scope| {
            let publisher = scope.spawn(publish);
            let join = |publisher: std::thread::ScopedJoinHandle<'_, Result<(StageStatus, f64, u64)>>| {
                publisher.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            let key_lock = store.lock_build(&key.lock_name(), observer)?;
            let began = Instant::now();
            let there = match self.context.force {
                None => machine::look(store, &key, Some(&key_lock), observer)?,
                Some(_) => None,
            };
            let ready = match there {
                Some(machine) => Ready::Found(machine),
                None => Ready::Written(machine::write(store, runtime, agent, taken, observer)?),
            };
            let (status, seconds, bytes) = join(publisher)?;
            self.done(StageName::Registry, status, seconds, bytes);
            let (status, machine) = match ready {
                Ready::Found(machine) => (StageStatus::Hit, machine),
                Ready::Written(written) => {
                    let inputs = self.inputs.clone();
                    (StageStatus::Miss, machine::publish(store, written, &key, inputs, agent, observer)?)
                }
            };
            drop(key_lock);
            let size = machine.machine.receipt.size;
            self.done(StageName::Smolmachine, status, began.elapsed().as_secs_f64(), size);
            Ok(machine)
        })
    }

    fn other_built(&mut self, id: ImageId, machine: &Machine, began: Instant) {
        for (name, stage) in [(StageName::Tarball, tarball::STAGE), (StageName::Registry, registry::STAGE)] {
            let receipt = self.context.store.stage_receipt(&id.0, stage).ok().flatten();
            let status = if receipt.is_some() { StageStatus::Hit } else { StageStatus::Skipped };
            self.done(name, status, 0.0, receipt.map_or(0, |receipt| receipt.bytes()));
        }
        self.done(
            StageName::Smolmachine,
            StageStatus::Hit,
            began.elapsed().as_secs_f64(),
            machine.receipt.size,
        );
    }

    fn done(&mut self, name: StageName, status: StageStatus, seconds: f64, bytes: u64) {
        let report = StageReport { name, status, seconds, bytes };
        self.context.observer.stage(&self.agent.name, &report);
        self.stages.push(report);
    }

    /// Remembers what came of it. `asked`: whether the engine built the image, or
    /// somebody elsewhere said which one it is.
    fn finish(self, id: ImageId, in_use: InUse, asked: bool) -> Result<(Outcome, UseLock)> {
        let InUse { machine, lock } = in_use;
        let (store, agent) = (self.context.store, self.agent);
        let key = machine.receipt.key();
        pointer::remember_built(store, &agent.project, &agent.name, &key);
        let mut seen = self.facts.as_ref().and_then(BuildFacts::fingerprint);
        if let (true, Source::Build { build, .. }, Some(facts)) = (asked, &agent.source, &self.facts) {
            seen = seen.filter(|_| self.context.engine.is_some_and(|engine| facts.still_hold(build, engine)));
            seen.iter().for_each(|seen| pointer::remember_seen(store, seen, id));
        }
        self.note();
        let why = self.remember(id);
        let packed_nothing = self
            .stages
            .iter()
            .all(|stage| (stage.name, stage.status) != (StageName::Smolmachine, StageStatus::Miss));
        let outcome = Outcome {
            agent: agent.name.clone(),
            image_id: id,
            recipe: key.recipe,
            artifact: machine.path,
            size: machine.receipt.size,
            sha256: machine.receipt.sha256,
            stages: self.stages,
            pulled: self.pulled.filter(|_| packed_nothing),
            seen,
            why,
        };
        Ok((outcome, lock))
    }

    /// Notes the run for `cache stats`.
    fn note(&self) {
        let took = |name| self.last.as_ref().and_then(|last| last.took.get(&name));
        let stage = |report: &StageReport| {
            let millis = (report.seconds * 1e3) as u64;
            let saved = match report.status {
                StageStatus::Miss => 0,
                _ => took(report.name).map_or(0, |took| took.millis.saturating_sub(millis)),
            };
            StageStat {
                stage: report.name.as_str().into(),
                status: report.status.as_str().into(),
                millis,
                saved_millis: saved,
                bytes: report.bytes,
            }
        };
        let stages = self.stages.iter().map(stage).collect();
        self.context.store.note_run(&RunStat { at: now(), agent: self.agent.name.clone(), stages });
    }

    /// Why the stages that had to work had to, noted for whoever asks later.
    fn remember(&self, id: ImageId) -> Vec<StageWhy> {
        let missed = || self.stages.iter().filter(|stage| stage.status == StageStatus::Miss);
        let names: BTreeSet<StageName> = missed().map(|stage| stage.name).collect();
        let new = Made { image: id, inputs: &self.inputs, facts: self.facts.as_ref() };
        let why = match self.context.force {
            Some(from) => explain::forced(&names, from),
            None => explain::explain(self.last.as_ref().map(BuildRecord::made), new, &names),
        };
        let (mut took, kept, missed_at) = match &self.last {
            Some(last) => (last.took.clone(), last.why.clone(), last.missed_at),
            None => Default::default(),
        };
        took.extend(
            missed()
                .map(|stage| (stage.name, Took { millis: (stage.seconds * 1e3) as u64, bytes: stage.bytes })),
        );
        let (why_then, missed_at) = if why.is_empty() { (kept, missed_at) } else { (why.clone(), now()) };
        let record = BuildRecord {
            schema: BuildRecord::SCHEMA,
            agent: self.agent.name.clone(),
            project: self.agent.project.clone(),
            image: id.0,
            inputs: self.inputs.clone(),
            facts: self.facts.clone(),
            took,
            why: why_then,
            missed_at,
        };
        if self.last.as_ref() != Some(&record) {
            record::remember(self.context.store, &record);
        }
        why
    }
}

/// An artifact under the key's lock: somebody else's, or ours to publish.
enum Ready {
    Found(InUse),
    Written(machine::Written),
}

fn take(
    context: Context<'_>,
    agent: &AgentSpec,
    id: Option<ImageId>,
    engine_id: Option<smolcellar_store::Digest>,
) -> Result<Taken> {
    tarball::take(context.store, context.engine, agent, id, engine_id, context.observer)
}

/// Seconds since 1970, for people and for ranking.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}
