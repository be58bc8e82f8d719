//! `cache pull`: artifacts from a registry.

use anyhow::{Context, Result};
use serde_json::json;
use smolcellar_oci::Reference;
use smolcellar_pipeline::remember_built;
use smolcellar_remote::{Cache, Client, Pull, Pulled};
use smolcellar_store::{Lookup, Machine, MachineKey, Store};
use smolcellar_transfer::Status;

use super::{import, key::project};
use crate::args::CachePull;
use crate::config;
use crate::exit::{self, Miss, Usage};
use crate::format;
use crate::output::{self, Format};
use crate::remote::{self, Remote};
use crate::remote_options::{self, NamedBy};
use crate::session::Session;

pub(super) fn run(session: &Session, args: &CachePull) -> Result<u8> {
    if let Some(name) = &args.agent {
        config::check_agent_name(name)?;
        if args.keys.len() != 1 {
            return Err(Usage("--agent takes one artifact: name one only".into()).into());
        }
    }
    let store = session.store()?;
    // A reference names its registry itself, and has a slash before its colon.
    let reference = |text: &str| match text.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => text.parse::<Reference>().ok(),
        _ => None,
    };
    let remote = match args.keys.iter().all(|text| reference(text).is_some()) {
        true => None,
        false => Some(Remote::named(session, args.from.clone())?),
    };
    for text in &args.keys {
        let key = match (reference(text), &remote) {
            (Some(reference), _) => by_reference(session, &store, args, &reference)?,
            (None, Some(remote)) => by_key(session, &store, args, remote, text)?,
            (None, None) => continue,
        };
        if let Some(agent) = &args.agent {
            remember_built(&store, &project(session)?, agent, &key);
        }
    }
    Ok(exit::OK)
}

/// An artifact of a remote cache.
fn by_key(
    session: &Session,
    store: &Store,
    args: &CachePull,
    remote: &Remote<'_>,
    text: &str,
) -> Result<MachineKey> {
    let key = remote.cache().find(text)?;
    let lock = store.lock_build(&key.lock_name(), &session.progress)?;
    if let Lookup::Hit(machine) = store.machine(&key, false)? {
        show(session, &machine, "present", None)?;
        return Ok(key);
    }
    let agent = args.agent.as_deref();
    let pulled = remote
        .cache()
        .pull(store, &key, agent, &lock, &session.progress)
        .with_context(|| format!("cannot pull {key} from {}", remote.place()))?;
    match pulled {
        Pull::Missing => Err(Miss(format!("{key} is gone from {}", remote.place())).into()),
        Pull::Done(pulled) => {
            show(session, &pulled.machine, "pulled", Some(&pulled))?;
            Ok(key)
        }
    }
}

/// What is under any reference: one of ours, or what `smolvm pack push` put there.
fn by_reference(
    session: &Session,
    store: &Store,
    args: &CachePull,
    reference: &Reference,
) -> Result<MachineKey> {
    remote::not_offline(session, reference)?;
    let options = remote_options::options(&reference.registry, NamedBy::User)?;
    let cache = Cache::new(Client::new(&reference.registry, &reference.repository, options)?).patient();
    let agent = args.agent.as_deref();
    let imported = cache
        .pull_reference(store, &reference.selector(), args.image_id, agent, &session.progress)
        .with_context(|| format!("cannot pull {reference}"))?;
    let status = match imported.status {
        Status::Present => "present",
        Status::Imported | Status::Replaced => "pulled",
    };
    let key = import::key_of(&imported).context("what was pulled is no artifact")?;
    match store.machine(&key, false)? {
        Lookup::Hit(machine) => show(session, &machine, status, None)?,
        _ => anyhow::bail!("the artifact {key} was removed as soon as it was pulled; run the command again"),
    }
    Ok(key)
}

fn show(session: &Session, machine: &Machine, status: &str, pulled: Option<&Pulled>) -> Result<()> {
    let receipt = &machine.receipt;
    if session.global.format == Format::Json {
        return output::json(&json!({
            "status": status,
            "agent": receipt.agent,
            "image_id": receipt.image,
            "recipe": receipt.recipe,
            "artifact": machine.path,
            "size": receipt.size,
            "sha256": receipt.sha256,
            "fetched": pulled.map(|pulled| pulled.fetched),
            "reused": pulled.map(|pulled| pulled.reused),
        }));
    }
    let mut line =
        format!("{status:<8}  {} {}, {}", receipt.agent, receipt.key(), format::bytes(receipt.size));
    if let Some(pulled) = pulled.filter(|pulled| pulled.reused > 0) {
        line += &format!(": {} fetched, the rest was here", format::bytes(pulled.fetched));
    }
    output::line(&line)
}
