//! One agent through all stages.

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use smolcellar_engine::Engine;
use smolcellar_oci::ImageId;
use smolcellar_smolvm::Runtime;
use smolcellar_store::{BuildLock, Machine, MachineKey, StageReceipt, Store, UseLock};

use crate::agent::AgentSpec;
use crate::error::Result;
use crate::machine::InUse;
use crate::outcome::{Observer, Outcome, StageName, StageReport, StageStatus};
use crate::tarball::Taken;
use crate::{image, machine, pointer, recipe, registry, tarball};

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
}

/// Takes `agent` through all stages, doing only what is missing. Nothing
/// collects the artifact until the lock is dropped.
///
/// # Errors
/// [`crate::PipelineError`]; whatever was published before stays and is whole.
pub fn run(context: Context<'_>, agent: &AgentSpec) -> Result<(Outcome, UseLock)> {
    let mut run = Run { context, agent, inputs: recipe::inputs(agent, context.runtime), stages: Vec::new() };
    let recipe = machine::recipe(&run.inputs);

    let began = Instant::now();
    let found = image::resolve(context.store, context.engine, agent, context.observer)?;
    let image_seconds = began.elapsed().as_secs_f64();

    if let Some(id) = found.id {
        let key = MachineKey { image: id.0, recipe };
        let began = Instant::now();
        if let Some(machine) = machine::look(context.store, &key, None, context.observer)? {
            return run.all_hit(id, machine, image_seconds, began);
        }
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
            (taken.id, Some((taken, began.elapsed().as_secs_f64())))
        }
    };
    let known = context.store.stage_receipt(&id.0, tarball::STAGE).ok().flatten();
    let bytes = known.as_ref().map(StageReceipt::bytes).or(early.as_ref().map(|(taken, _)| taken.bytes()));
    let status = if known.is_some() { StageStatus::Hit } else { StageStatus::Miss };
    run.done(StageName::Image, status, image_seconds, bytes.unwrap_or(0));
    let machine = run.build(id, MachineKey { image: id.0, recipe }, found.engine_id, early)?;
    run.finish(id, machine)
}

struct Run<'a> {
    context: Context<'a>,
    agent: &'a AgentSpec,
    inputs: BTreeMap<String, Value>,
    stages: Vec<StageReport>,
}

impl Run<'_> {
    /// The warm path: the artifact is there, nothing else is looked into.
    fn all_hit(
        mut self,
        id: ImageId,
        machine: InUse,
        image_seconds: f64,
        began: Instant,
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
        self.finish(id, machine)
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
        if let Some(machine) = machine::look(store, &key, None, observer)? {
            drop(image_lock);
            self.other_built(id, &machine.machine, began);
            return Ok(machine);
        }
        let began = Instant::now();
        let receipt = store.stage_receipt(&id.0, tarball::STAGE).ok().flatten();
        let kept = match &receipt {
            Some(receipt) => tarball::from_store(store, id, receipt, &self.agent.platform, observer)?,
            None => None,
        };
        let hit = kept.is_some();
        let (mut taken, seconds) = match (kept, early) {
            (Some(taken), _) => (taken, began.elapsed().as_secs_f64()),
            (None, Some((taken, seconds))) => (taken, seconds),
            (None, None) => {
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
        let publish = move || -> Result<(StageStatus, f64, u64)> {
            if let Some(staged) = staged {
                let millis = (tarball_seconds * 1e3) as u64;
                tarball::publish(store, id, tarball::route(&agent.source), staged, millis, observer)?;
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
            let ready = match machine::look(store, &key, Some(&key_lock), observer)? {
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

    fn finish(self, id: ImageId, in_use: InUse) -> Result<(Outcome, UseLock)> {
        let InUse { machine, lock } = in_use;
        let key = machine.receipt.key();
        pointer::remember_built(self.context.store, &self.agent.project, &self.agent.name, &key);
        let outcome = Outcome {
            agent: self.agent.name.clone(),
            image_id: id,
            recipe: key.recipe,
            artifact: machine.path,
            size: machine.receipt.size,
            sha256: machine.receipt.sha256,
            stages: self.stages,
        };
        Ok((outcome, lock))
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
