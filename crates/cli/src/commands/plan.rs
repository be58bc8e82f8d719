//! `build-agent --plan` and `--require-cache`: what a build would do.

use anyhow::{Context, Result};
use smolcellar_engine::Engine;
use smolcellar_pipeline::{AgentSpec, BuildPlan, Expect, plan};
use smolcellar_smolvm::RuntimeConfig;
use smolcellar_store::Store;

use super::why;
use crate::exit::{self, Miss};
use crate::format;
use crate::output::{self, Format};
use crate::session::Session;

/// Shows the plans.
pub(super) fn show(session: &Session, store: &Store, agents: &[AgentSpec]) -> Result<u8> {
    for agent in agents {
        let plan = of(session, store, agent)?;
        match session.global.format {
            Format::Json => output::json(&plan)?,
            Format::Human => lines(&plan).iter().try_for_each(|line| output::line(line))?,
        }
    }
    Ok(exit::OK)
}

/// Whether all of it is in the cache; if not, an error that says what is not.
/// What a remote cache has is not looked for here.
pub(super) fn require(session: &Session, store: &Store, agents: &[AgentSpec]) -> Result<()> {
    let mut missing = Vec::new();
    for agent in agents {
        let plan = of(session, store, agent)?;
        if !plan.is_cached() {
            missing.push(lines(&plan).join("\n"));
        }
    }
    match missing.len() {
        0 => Ok(()),
        n => {
            let agents = format::count(n, "agent is", "agents are");
            Err(Miss(format!("{agents} not in the cache, and not to be built:\n{}", missing.join("\n")))
                .into())
        }
    }
}

pub(super) fn of(session: &Session, store: &Store, agent: &AgentSpec) -> Result<BuildPlan> {
    let config = RuntimeConfig { dir: session.global.smolvm_dir.clone() };
    let runtime = smolcellar_smolvm::known(store, &config)?;
    let engine = Engine::find(session.global.engine.as_deref()).ok();
    plan(store, runtime.as_ref(), engine.as_ref(), agent)
        .with_context(|| format!("cannot plan agent '{}'", agent.name))
}

pub(super) fn lines(plan: &BuildPlan) -> Vec<String> {
    let mut lines = vec![plan.agent.clone()];
    for stage in &plan.stages {
        let expect = match stage.expect {
            Expect::Hit => "hit",
            Expect::Skipped => "skipped",
            Expect::Run => "runs",
            Expect::RunIfImageChanged => "runs if the image is another one",
        };
        let took = match (stage.expect, stage.took) {
            (Expect::Run | Expect::RunIfImageChanged, Some(took)) => {
                let seconds = format::seconds(took.millis as f64 / 1e3);
                let bytes =
                    if took.bytes > 0 { format!(", {}", format::bytes(took.bytes)) } else { String::new() };
                format!(" (last time: {seconds}{bytes})")
            }
            _ => String::new(),
        };
        lines.push(format!("  {:<11}  {expect}{took}", stage.name.as_str()));
        lines.extend(why::changes(&stage.why).into_iter().map(|line| format!("    {line}")));
    }
    if let Some(artifact) = &plan.artifact {
        lines.push(format!("  {}", artifact.display()));
    }
    lines
}
