//! What an agent's last build was made from, and what it took: kept to explain
//! the next one and to say what that will take. Like every pointer, it saves
//! work and proves nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use smolcellar_oci::ImageId;
use smolcellar_store::{Digest, Store};

use crate::explain::{Made, StageWhy};
use crate::facts::BuildFacts;
use crate::outcome::StageName;
use crate::pointer;

/// An agent's last build.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BuildRecord {
    pub(crate) schema: u64,
    /// The agent's name.
    pub agent: String,
    /// The folder whose configuration names it.
    pub project: PathBuf,
    /// The image.
    pub image: Digest,
    /// The recipe's inputs.
    pub inputs: BTreeMap<String, Value>,
    /// What the image's build saw; an archive has no build.
    pub facts: Option<BuildFacts>,
    /// What stages took when they last had to work.
    pub took: BTreeMap<StageName, Took>,
    /// Why the stages of the last build that missed any had to work.
    pub why: Vec<StageWhy>,
    /// When that was: seconds since 1970. For people.
    pub missed_at: u64,
}

/// What a stage took.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Took {
    /// Milliseconds.
    pub millis: u64,
    /// The size of what it made, in bytes.
    pub bytes: u64,
}

impl BuildRecord {
    pub(crate) const SCHEMA: u64 = 1;

    pub(crate) fn made(&self) -> Made<'_> {
        Made { image: ImageId(self.image), inputs: &self.inputs, facts: self.facts.as_ref() }
    }
}

/// The last build of the agent `name` of `project`, if there was one.
pub fn last_build(store: &Store, project: &Path, name: &str) -> Option<BuildRecord> {
    let record: BuildRecord = pointer::read(&path(store, project, name), BuildRecord::SCHEMA)?;
    // One that was moved here is of somebody else.
    (record.project == project && record.agent == name).then_some(record)
}

pub(crate) fn remember(store: &Store, record: &BuildRecord) {
    pointer::write(store, &path(store, &record.project, &record.agent), record, BuildRecord::SCHEMA);
}

fn path(store: &Store, project: &Path, name: &str) -> PathBuf {
    pointer::path(store, "build", &pointer::agent_key(project, name))
}
