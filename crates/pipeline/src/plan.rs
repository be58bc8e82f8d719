//! What a run would do, without doing any of it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Value, json};
use smolcellar_engine::Engine;
use smolcellar_oci::ImageId;
use smolcellar_smolvm::Runtime;
use smolcellar_store::{Digest, Lookup, MachineKey, StageReceipt, Store};

use crate::agent::{AgentSpec, Source};
use crate::error::Result;
use crate::explain::{InputChange, of_facts, of_inputs};
use crate::facts::BuildFacts;
use crate::outcome::StageName;
use crate::record::{BuildRecord, Took, last_build};
use crate::{image, machine, pointer, recipe, registry, tarball};

/// What a run would do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BuildPlan {
    /// The agent's name.
    pub agent: String,
    /// The image, where it can be told without building.
    pub image_id: Option<ImageId>,
    /// The recipe, where the runtime is known.
    pub recipe: Option<Digest>,
    /// The artifact, if it is there.
    pub artifact: Option<PathBuf>,
    /// Every stage, in order.
    pub stages: Vec<PlannedStage>,
}

/// What a stage would do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlannedStage {
    /// Which.
    pub name: StageName,
    /// Whether it would work.
    pub expect: Expect,
    /// Why.
    pub why: Vec<InputChange>,
    /// What it took when it last had to work for this agent.
    pub took: Option<Took>,
}

/// Whether a stage would work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expect {
    /// What it makes is there.
    Hit,
    /// What it makes is not there, and not needed.
    Skipped,
    /// It would.
    Run,
    /// It would if the image turns out to be another one.
    RunIfImageChanged,
}

impl BuildPlan {
    /// Whether nothing would have to be made.
    pub fn is_cached(&self) -> bool {
        self.artifact.is_some()
    }
}

/// Plans. Nothing is built, installed or written, and the command that an agent
/// has run before its build is not run: what that would change is not seen. The
/// engine, if any, is asked only for images that the Dockerfile names.
///
/// # Errors
/// [`crate::PipelineError::Store`]; an archive that cannot be read, a context that
/// is not there.
pub fn plan(
    store: &Store,
    runtime: Option<&Runtime>,
    engine: Option<&Engine>,
    agent: &AgentSpec,
) -> Result<BuildPlan> {
    let last = last_build(store, &agent.project, &agent.name);
    let inputs = runtime.map(|runtime| recipe::inputs(agent, runtime));
    let recipe = inputs.as_ref().map(machine::recipe);
    let (id, why) = image(store, engine, agent, last.as_ref())?;
    let mut planner = Planner { store, last: last.as_ref(), stages: Vec::new() };
    let artifact = match (id, recipe) {
        (Some(id), Some(recipe)) => match store.machine(&MachineKey { image: id.0, recipe }, false)? {
            Lookup::Hit(machine) => Some(machine.path),
            Lookup::Miss | Lookup::Damaged { .. } => None,
        },
        _ => None,
    };
    // What was built before may be neither in the store nor in the engine any more.
    let lost = |id| matches!(agent.source, Source::Build { .. }) && !tarball::is_whole(store, id);
    match id {
        Some(id) if artifact.is_none() && lost(id) => {
            let why = vec![InputChange::said("cache", "the image is not in the cache any more")];
            planner.add(StageName::Image, Expect::Run, why);
        }
        Some(_) => planner.add(StageName::Image, Expect::Hit, why),
        None => planner.add(StageName::Image, Expect::Run, why),
    }
    match (id, &artifact) {
        (Some(id), Some(_)) => planner.there(id),
        (id, _) => planner.missing(id, inputs.as_ref()),
    }
    Ok(BuildPlan { agent: agent.name.clone(), image_id: id, recipe, artifact, stages: planner.stages })
}

/// The image, where it can be told without building; else why not.
fn image(
    store: &Store,
    engine: Option<&Engine>,
    agent: &AgentSpec,
    last: Option<&BuildRecord>,
) -> Result<(Option<ImageId>, Vec<InputChange>)> {
    let said = |input: &str, line: &str| vec![InputChange::said(input, line)];
    let (build, engine) = match (&agent.source, engine) {
        (Source::Build { build, .. }, Some(engine)) => (build, engine),
        (Source::Build { .. }, None) => return Ok((None, said("engine", "there is no container engine"))),
        (Source::Archive(path), _) => {
            return Ok(match image::peek(agent, path)? {
                Some(id) => (Some(id), Vec::new()),
                None => (None, said("archive", "it tells its image only by being read")),
            });
        }
        (Source::Stdin, _) => return Ok((None, said("archive", "standard input can be read only once"))),
    };
    smolcellar_engine::check_inputs(build)?;
    let facts = BuildFacts::gather(build, engine, last.and_then(|last| last.facts.as_ref()));
    let seen = facts.fingerprint().and_then(|seen| pointer::built_from(store, &seen));
    if seen.is_some() {
        return Ok((seen, Vec::new()));
    }
    let mut why = match last.and_then(|last| last.facts.as_ref()) {
        Some(last) => of_facts(last, &facts),
        None => said("agent", "its first build in this cache, from this folder"),
    };
    why.extend(facts.unseen.iter().map(|unseen| InputChange::said("not seen", unseen)));
    if why.is_empty() {
        why = said("build", "it was not seen before that this makes an image; the engine is asked");
    }
    Ok((None, why))
}

struct Planner<'a> {
    store: &'a Store,
    last: Option<&'a BuildRecord>,
    stages: Vec<PlannedStage>,
}

impl Planner<'_> {
    fn add(&mut self, name: StageName, expect: Expect, why: Vec<InputChange>) {
        let took = self.last.and_then(|last| last.took.get(&name).copied());
        self.stages.push(PlannedStage { name, expect, why, took });
    }

    fn receipt(&self, id: ImageId, stage: &str) -> Option<StageReceipt> {
        self.store.stage_receipt(&id.0, stage).ok().flatten()
    }

    fn there(&mut self, id: ImageId) {
        for (name, stage) in [(StageName::Tarball, tarball::STAGE), (StageName::Registry, registry::STAGE)] {
            let there = self.receipt(id, stage).is_some();
            self.add(name, if there { Expect::Hit } else { Expect::Skipped }, Vec::new());
        }
        self.add(StageName::Smolmachine, Expect::Hit, Vec::new());
    }

    fn missing(&mut self, id: Option<ImageId>, inputs: Option<&BTreeMap<String, Value>>) {
        let gone = || vec![InputChange::said("cache", "it is not in the cache")];
        for (name, stage) in [(StageName::Tarball, tarball::STAGE), (StageName::Registry, registry::STAGE)] {
            match id {
                None => self.add(name, Expect::RunIfImageChanged, Vec::new()),
                Some(id) => {
                    let blobs = self.store.blobs();
                    let whole = self.receipt(id, stage).is_some_and(|receipt| {
                        receipt.blobs.iter().all(|blob| blobs.has(&blob.digest, blob.size))
                    });
                    match whole {
                        true => self.add(name, Expect::Hit, Vec::new()),
                        false => self.add(name, Expect::Run, gone()),
                    }
                }
            }
        }
        let name = StageName::Smolmachine;
        let (Some(inputs), Some(last)) = (inputs, self.last) else {
            let why = match inputs {
                None => vec![InputChange::said("smolvm", "it is installed first")],
                Some(_) => {
                    vec![InputChange::said("agent", "its first build in this cache, from this folder")]
                }
            };
            return self.add(name, Expect::Run, why);
        };
        let mut why = of_inputs(&last.inputs, inputs);
        match id {
            None if why.is_empty() => self.add(name, Expect::RunIfImageChanged, why),
            None => self.add(name, Expect::Run, why),
            Some(id) => {
                if id.0 != last.image {
                    why.push(InputChange::new("image", Some(json!(last.image)), Some(json!(id))));
                }
                let why = if why.is_empty() { gone() } else { why };
                self.add(name, Expect::Run, why);
            }
        }
    }
}
