//! `cache export`: artifacts as one file, or an image as an archive.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::json;
use smolcellar_store::fsio;
use smolcellar_transfer::{Exported, TransferError, export, export_image};

use super::key;
use crate::args::CacheExport;
use crate::exit::{self, Usage};
use crate::format;
use crate::output::{self, Format};
use crate::session::Session;

pub(crate) fn run(session: &Session, args: &CacheExport) -> Result<u8> {
    let output = Output::of(args.output.as_deref())?;
    let store = session.store()?;
    let progress = &session.progress;
    if let Some(image) = &args.image {
        let image = key::find_image(session, &store, image)?;
        let tag = args.tag.as_deref();
        let done = output.write(|out| export_image(&store, &image, tag, out, progress))?;
        if let Some(file) = output.file() {
            if session.global.format == Format::Json {
                output::json(&json!({
                    "image_id": done.image,
                    "manifest": done.manifest,
                    "tag": done.tag,
                    "file": file,
                    "size": done.size,
                }))?;
            } else {
                let name = done.tag.unwrap_or_else(|| done.image.short());
                output::line(&format!("image {name}, {}: {}", format::bytes(done.size), file.display()))?;
            }
        }
        return Ok(exit::OK);
    }
    let keys = args.keys.iter().map(|text| key::find(session, &store, text)).collect::<Result<Vec<_>>>()?;
    let done = output.write(|out| export(&store, &keys, args.with_image, out, progress))?;
    if let Some(file) = output.file() {
        report(session, &done, file)?;
    }
    Ok(exit::OK)
}

fn report(session: &Session, done: &[Exported], file: &Path) -> Result<()> {
    for one in done {
        if session.global.format == Format::Json {
            output::json(&json!({
                "agent": one.agent,
                "image_id": one.key.image,
                "recipe": one.key.recipe,
                "size": one.size,
                "sha256": one.sha256,
                "with_image": one.with_image,
                "file": file,
            }))?;
        } else {
            let size = format::bytes(one.size);
            output::line(&format!("{} {}, {size}: {}", one.agent, one.key, file.display()))?;
        }
    }
    Ok(())
}

/// Where an export goes.
enum Output {
    File(PathBuf),
    Stdout,
}

impl Output {
    fn of(path: Option<&Path>) -> Result<Self> {
        match path {
            Some(path) if path == Path::new("-") => Ok(Self::Stdout),
            Some(path) => Ok(Self::File(path.to_owned())),
            None if io::stdout().is_terminal() => {
                Err(Usage("an export is no text for a terminal: name a file with -o, or pipe it".into())
                    .into())
            }
            None => Ok(Self::Stdout),
        }
    }

    /// A file is there when it is whole, or as it was.
    fn write<T>(&self, write: impl FnOnce(&mut dyn Write) -> Result<T, TransferError>) -> Result<T> {
        Ok(match self {
            Self::File(path) => fsio::write_outside(path, |mut file: &File| write(&mut file))?,
            Self::Stdout => write(&mut io::stdout().lock())?,
        })
    }

    /// The file: standard output belongs to the export, and says no more.
    fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Stdout => None,
        }
    }
}
