//! `build-agent --registry`: the image itself to a registry of the user's.

use anyhow::Result;
use serde::Serialize;
use smolcellar_oci::Reference;
use smolcellar_pipeline::{AgentSpec, Outcome, Source};
use smolcellar_remote::PushedImage;
use smolcellar_store::Store;

use crate::commands::build_agent::How;
use crate::exit::{Miss, Usage};
use crate::format;
use crate::output::{self, Format};
use crate::remote_options::{self, NamedBy};
use crate::session::Session;

/// What stands for the agent's name.
const AGENT: &str = "{agent}";

/// Where each agent's image goes, in their order; settled before anything is built.
pub(crate) fn targets(
    session: &Session,
    wanted: Option<&str>,
    agents: &[AgentSpec],
) -> Result<Vec<Option<Reference>>> {
    let Some(wanted) = wanted else { return Ok(vec![None; agents.len()]) };
    if session.global.offline {
        return Err(Usage("--registry needs the network, and --offline forbids it".into()).into());
    }
    let names = agents.iter().map(|agent| agent.name.as_str());
    let references = references(wanted, names)?;
    for reference in &references {
        remote_options::options(&reference.registry, NamedBy::User)?;
    }
    Ok(references.into_iter().map(Some).collect())
}

fn references<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Result<Vec<Reference>, Usage> {
    let mut references: Vec<Reference> = Vec::new();
    for name in names {
        let reference: Reference =
            wanted.replace(AGENT, name).parse().map_err(|error| Usage(format!("--registry: {error}")))?;
        if reference.digest.is_some() {
            return Err(Usage("--registry: a digest is computed, not chosen; give HOST/NAME[:TAG]".into()));
        }
        if references.contains(&reference) {
            let text = format!(
                "--registry: several agents would be '{reference}'; write {AGENT} where their names go"
            );
            return Err(Usage(text));
        }
        references.push(reference);
    }
    Ok(references)
}

/// Whether the image of an agent that was built is in the cache, and whole; if
/// it is not, whether it can be had again.
pub(crate) fn is_here(
    session: &Session,
    store: &Store,
    agent: &AgentSpec,
    outcome: &Outcome,
    how: How<'_>,
) -> Result<bool> {
    if smolcellar_remote::is_pushable(store, &outcome.image_id.0, &session.progress)? {
        return Ok(true);
    }
    if how.only_cached {
        let text =
            "its layers are not in the cache any more; leave out --require-cache to have them made again";
        return Err(Miss(text.into()).into());
    }
    if matches!(agent.source, Source::Stdin) {
        let text = "its layers are not in the cache any more, and an archive on standard input cannot be read \
                    twice; run it again with --force=tarball";
        return Err(anyhow::anyhow!(text));
    }
    Ok(false)
}

/// Pushes the image of an agent that was built.
pub(crate) fn push(
    session: &Session,
    store: &Store,
    outcome: &Outcome,
    reference: &Reference,
) -> Result<PushedImage> {
    let options = remote_options::options(&reference.registry, NamedBy::User)?;
    Ok(smolcellar_remote::push_image(store, &outcome.image_id.0, reference, options, &session.progress)?)
}

/// A result with what was pushed, where something was.
#[derive(Serialize)]
pub(crate) struct WithPush<'a> {
    #[serde(flatten)]
    outcome: &'a Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    pushed: Option<&'a PushedImage>,
}

impl<'a> WithPush<'a> {
    pub(crate) fn new(outcome: &'a Outcome, pushed: Option<&'a Result<PushedImage>>) -> Self {
        Self { outcome, pushed: pushed.and_then(|pushed| pushed.as_ref().ok()) }
    }
}

/// Says what was pushed, to people; or fails.
pub(crate) fn say(session: &Session, pushed: Option<Result<PushedImage>>) -> Result<()> {
    let Some(pushed) = pushed.transpose()? else { return Ok(()) };
    if session.global.format == Format::Human {
        output::line(&format!("  {}@{}", pushed.reference, pushed.digest))?;
        let parts =
            [("uploaded", pushed.uploaded), ("mounted", pushed.mounted), ("there before", pushed.present)];
        let parts = parts.iter().filter(|(_, count)| count.blobs > 0);
        let parts: Vec<_> =
            parts.map(|(what, count)| format!("{} {what}", format::bytes(count.bytes))).collect();
        output::line(&format!("  pushed in {}: {}", format::seconds(pushed.seconds), parts.join(", ")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_agents_need_several_places() {
        let of = |wanted: &str, names: &[&str]| {
            let references = references(wanted, names.iter().copied()).map_err(|error| error.to_string())?;
            Ok::<_, String>(references.iter().map(Reference::to_string).collect::<Vec<_>>())
        };
        assert_eq!(of("h.x/a", &["one"]).unwrap(), ["h.x/a"]);
        assert_eq!(of("h.x/{agent}:v", &["one", "two"]).unwrap(), ["h.x/one:v", "h.x/two:v"]);
        assert_eq!(of("h.x/a:{agent}", &["one", "two"]).unwrap(), ["h.x/a:one", "h.x/a:two"]);
        assert!(of("h.x/a", &["one", "two"]).unwrap_err().contains("{agent}"));
        assert!(of("h.x/{agent}", &["One"]).unwrap_err().contains("lower-case"));
        let digest = smolcellar_store::Digest::of(b"");
        assert!(of(&format!("h.x/a@{digest}"), &["one"]).unwrap_err().contains("computed"));
        assert!(of("agent", &["one"]).unwrap_err().contains("registry"));
    }
}
