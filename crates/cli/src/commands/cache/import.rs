//! `cache import`: what was exported elsewhere.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;
use smolcellar_store::MachineKey;
use smolcellar_transfer::{Expected, Imported, Status, What, import};

use super::key::project;
use crate::args::CacheImport;
use crate::config;
use crate::exit::{self, Usage};
use crate::format;
use crate::output::{self, Format};
use crate::session::Session;

pub(crate) fn run(session: &Session, args: &CacheImport) -> Result<u8> {
    args.agent.as_deref().map_or(Ok(()), config::check_agent_name)?;
    let expected = Expected { image_id: args.image_id, one: args.agent.is_some(), agent: args.agent.clone() };
    let (mut input, what): (Box<dyn Read>, _) = match args.file == Path::new("-") {
        true => (Box::new(io::stdin().lock()), "standard input".to_owned()),
        false => (Box::new(open(&args.file)?), args.file.display().to_string()),
    };
    let store = session.store()?;
    let imported = match import(&store, &mut input, &what, &expected, &session.progress) {
        Ok(imported) => imported,
        Err(stopped) => {
            report(session, &stopped.imported)?;
            return Err((*stopped).into());
        }
    };
    report(session, &imported)?;
    if let Some(name) = &args.agent {
        for key in imported.iter().filter_map(key_of) {
            smolcellar_pipeline::remember_built(&store, &project(session)?, name, &key);
        }
    }
    Ok(exit::OK)
}

/// The artifact, if it is one.
pub(super) fn key_of(imported: &Imported) -> Option<MachineKey> {
    match &imported.what {
        What::Machine { key, .. } => Some(*key),
        What::Image(_) => None,
    }
}

fn open(path: &Path) -> Result<File> {
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(Usage(format!("there is no {}", path.display())).into())
        }
        opened => opened.with_context(|| format!("cannot open {}", path.display())),
    }
}

fn report(session: &Session, imported: &[Imported]) -> Result<()> {
    for Imported { what, status } in imported {
        let status = match status {
            Status::Imported => "imported",
            Status::Present => "present",
            Status::Replaced => "replaced",
        };
        match (what, session.global.format) {
            (What::Image(image), Format::Json) => {
                output::json(&json!({ "kind": "image", "status": status, "image_id": image }))?;
            }
            (What::Image(image), Format::Human) => {
                output::line(&format!("{status:<8}  image {}", image.short()))?;
            }
            (What::Machine { key, agent, path, size, sha256 }, Format::Json) => output::json(&json!({
                "kind": "artifact",
                "status": status,
                "agent": agent,
                "image_id": key.image,
                "recipe": key.recipe,
                "artifact": path,
                "size": size,
                "sha256": sha256,
            }))?,
            (What::Machine { key, agent, size, .. }, Format::Human) => {
                output::line(&format!("{status:<8}  {agent} {key}, {}", format::bytes(*size)))?;
            }
        }
    }
    Ok(())
}
