//! A name for what a set of agents needs in the cache: for CI systems that keep
//! a folder from one job to the next under a key.

use serde_json::{Value, json};
use smolcellar_engine::Engine;
use smolcellar_oci::CANONICAL_VERSION;
use smolcellar_pack::{PACKER_VERSION, cut};
use smolcellar_store::Digest;

use crate::agent::{AgentSpec, Source};
use crate::error::Result;
use crate::facts::BuildFacts;
use crate::{image, recipe};

/// The digest of what `agents` are built from and of how, as far as that can be
/// told without building, and on a machine that has nothing yet: it changes when
/// the artifacts would. Where it cannot tell (what a command before a build makes,
/// a base image that moves), it stays as it is; what is in the cache is checked
/// whatever it is called. `smolvm` is the version of the runtime.
///
/// # Errors
/// [`crate::PipelineError::Archive`], if an archive cannot be read;
/// [`crate::PipelineError::Engine`], if a context is not there.
pub fn cache_key(agents: &[AgentSpec], engine: &Engine, smolvm: &str) -> Result<Digest> {
    let mut of_agents: Vec<Value> = Vec::new();
    for agent in agents {
        let sources = match &agent.source {
            Source::Build { build, before } => {
                smolcellar_engine::check_inputs(build)?;
                json!({ "sources": BuildFacts::gather(build, engine, None).sources(), "before": before })
            }
            Source::Archive(path) => json!({ "image": image::peek(agent, path)? }),
            Source::Stdin => Value::Null,
        };
        let configured: serde_json::Map<String, Value> =
            recipe::configured(agent).into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        of_agents.push(json!({
            "name": agent.name, "from": sources, "configured": configured, "level": agent.level,
            "packer": agent.packer.as_str(), "platform": agent.platform.to_string(),
        }));
    }
    let all = json!({
        "agents": of_agents, "smolvm": smolvm,
        "versions": [CANONICAL_VERSION, cut::CUT_VERSION, PACKER_VERSION],
    });
    Ok(Digest::of(all.to_string().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::{Overrides, Packer};
    use smolcellar_engine::BuildSpec;
    use smolcellar_oci::Platform;
    use smolcellar_store::fsio;

    #[test]
    fn the_key_changes_with_files_and_settings_and_not_with_the_folder() {
        let [one, two] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let agent = |dir: &std::path::Path| AgentSpec {
            name: "a".into(),
            project: dir.into(),
            source: Source::Build {
                before: Vec::new(),
                build: BuildSpec { context: dir.into(), tag: "t".into(), ..BuildSpec::default() },
            },
            platform: Platform::guest(),
            cpus: 1,
            memory_mib: 512,
            overrides: Overrides::default(),
            level: 1,
            packer: Packer::Native,
        };
        let key = |agent: &AgentSpec| {
            cache_key(std::slice::from_ref(agent), &Engine::assumed(Some("docker")), "1.0.0").unwrap()
        };
        for dir in [&one, &two] {
            fsio::write_atomic(dir.path(), &dir.path().join("Dockerfile"), b"FROM scratch\nCOPY a /\n")
                .unwrap();
            fsio::write_atomic(dir.path(), &dir.path().join("a"), b"1").unwrap();
        }
        let first = key(&agent(one.path()));
        assert_eq!(key(&agent(two.path())), first);
        assert_ne!(key(&AgentSpec { cpus: 2, ..agent(two.path()) }), first);
        std::fs::remove_file(two.path().join("a")).unwrap();
        fsio::write_atomic(two.path(), &two.path().join("a"), b"2").unwrap();
        assert_ne!(key(&agent(two.path())), first);
        assert!(cache_key(&[agent(&one.path().join("none"))], &Engine::assumed(None), "1.0.0").is_err());
    }
}
