//! What a lease says of its launch: enough to go on with it, or to take it
//! down, in another process.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use smolcellar_store::LeaseRecord;

use crate::plan::Plan;
use crate::spec::{Backend, Tools};

/// The launcher's part of a lease.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct LaunchRecord {
    /// The agent.
    pub(crate) agent: String,
    /// What runs it. Leases of the first version are all of smolvm's.
    pub(crate) backend: Backend,
    /// The container engine's client, if that has a part in it.
    pub(crate) engine: Option<String>,
    /// Whether it has a sidecar.
    pub(crate) sidecar: bool,
    /// Whether it has a network.
    pub(crate) network: bool,
    /// What it runs.
    pub(crate) command: Vec<String>,
    /// Where commands run in it.
    pub(crate) workdir: Option<String>,
    /// As whom.
    pub(crate) user: Option<String>,
}

impl LaunchRecord {
    pub(crate) fn of(plan: &Plan, tools: &Tools) -> Self {
        let mut record = Self::without_engine(plan);
        if record.needs_engine() {
            record.engine = tools.engine.as_ref().map(|engine| engine.program().display().to_string());
        }
        record
    }

    fn without_engine(plan: &Plan) -> Self {
        Self {
            engine: None,
            agent: plan.agent.clone(),
            backend: plan.backend,
            sidecar: plan.sidecar.is_some(),
            network: plan.network.is_some(),
            command: plan.command.clone(),
            workdir: plan.workdir.clone(),
            user: plan.user.clone(),
        }
    }

    pub(crate) fn read(record: &LeaseRecord) -> Self {
        serde_json::from_value(record.launch.clone()).unwrap_or_default()
    }

    /// Whether the container engine has a part in it.
    pub(crate) fn needs_engine(&self) -> bool {
        self.backend == Backend::Docker || self.sidecar || self.network
    }

    /// Whether these are the programs that it was made with.
    pub(crate) fn is_of(&self, tools: &Tools) -> bool {
        let engine = tools.engine.as_ref().map(|engine| engine.program().display().to_string());
        (self.backend != Backend::Smolvm || tools.smolvm.is_some())
            && (!self.needs_engine() || self.engine == engine)
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::to_value(self).unwrap_or_default()
    }
}

/// Where the things of a launch are, as far as this process's surroundings
/// decide it: another user's, or of another smolvm's folder or another engine,
/// are not ours to judge.
pub(crate) fn place(record: &LaunchRecord) -> String {
    let var = |name: &str| std::env::var_os(name).unwrap_or_default().to_string_lossy().into_owned();
    let processes = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    let user = rustix::process::geteuid().as_raw();
    let folders = ["SMOLVM_DATA_DIR", "XDG_DATA_HOME", "XDG_CACHE_HOME", "HOME"].map(var).join(":");
    let mut place = format!("{user}:{}:{folders}", processes.display());
    if record.needs_engine() {
        place += "|";
        place += &["DOCKER_HOST", "DOCKER_CONTEXT", "CONTAINER_HOST"].map(var).join("|");
        place += &current_context().map(|context| format!("|{context}")).unwrap_or_default();
    }
    place
}

/// The context that `docker context use` chose, by Docker's own file.
fn current_context() -> Option<String> {
    let dir = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let dir = dir.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".docker")))?;
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.join("config.json")).ok()?).ok()?;
    Some(config["currentContext"].as_str()?.to_owned())
}

/// Whether a lease is of this process's surroundings.
pub(crate) fn is_here(record: &LeaseRecord) -> bool {
    record.place == place(&LaunchRecord::read(record))
}
