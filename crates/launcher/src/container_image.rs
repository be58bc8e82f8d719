//! The image that a container is made of: an artifact's root filesystem, as
//! one layer, and the program that idles in it. Loaded once per artifact.

use std::io::{self, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use smolcellar_engine::{Engine, EngineError};
use smolcellar_run::{Cancel, Limits};
use smolcellar_store::{Event, Reporter, Store};

use crate::container::{IDLE, KEY, SHA256, STORE, image_name, labels, loading_name};
use crate::error::{LaunchError, Result};
use crate::idle;
use crate::spec::Artifact;

/// How long loading may take: 1 GB at 2 MB/s.
const LOAD: Duration = Duration::from_secs(600);
/// How long the engine has to answer a question.
const QUERY: Limits<'static> = Limits::within(Duration::from_secs(60));

/// Makes sure that the engine has the image of `artifact`. One process loads
/// it; the others wait for that.
pub(crate) fn load(
    engine: &Engine,
    store: &Store,
    artifact: &Artifact,
    reporter: &dyn Reporter,
    cancel: &dyn Cancel,
) -> Result<()> {
    let name = image_name(artifact);
    let there = || -> Result<bool, EngineError> {
        let label = engine.image_label(&name, SHA256, QUERY)?;
        Ok(label.is_some_and(|sha256| sha256 == artifact.sha256.to_string()))
    };
    if there()? {
        return Ok(());
    }
    let _loading = store.lock_load(&artifact.key, reporter)?;
    if there()? {
        return Ok(());
    }
    let task = "load the artifact into the engine";
    reporter.report(Event::Begin { task, total: None });
    let result = import(engine, store, artifact, &name, cancel);
    reporter.report(Event::End { task });
    result
}

fn import(
    engine: &Engine,
    store: &Store,
    artifact: &Artifact,
    name: &str,
    cancel: &dyn Cancel,
) -> Result<()> {
    remove_unused(engine, store, Duration::from_secs(60));
    let manifest = smolcellar_pack::read(&artifact.path)?.manifest;
    let architecture = manifest.platform.split('/').nth(1).unwrap_or_default();
    let program = idle::program(architecture).ok_or(LaunchError::NoTool(
        "an idle program for this guest's architecture; use the backend smolvm",
    ))?;
    let mut labels = labels(artifact);
    labels.push((STORE.to_owned(), store_label(store)));
    let limits = Limits { timeout: Some(LOAD), cancel };
    // Not under its name yet: when we are killed, the engine takes what it has
    // got by then for the whole.
    let loading = loading_name(name);
    engine.remove_image(&loading, QUERY)?;
    let imported = engine.import(&loading, &labels, limits, |to| {
        // First, since the layer's tar ends the archive.
        to.write_all(&tar_entry(IDLE.trim_start_matches('/'), &program, 0o755)?)?;
        let copied = smolcellar_pack::with_layer(&artifact.path, |from: &mut dyn Read| io::copy(from, to));
        copied.map_err(io::Error::other)?.map(drop)
    });
    let tagged = imported.and_then(|()| engine.tag(&loading, name, QUERY));
    let _ = engine.remove_image(&loading, QUERY);
    Ok(tagged?)
}

/// A regular file of root's as an entry of a tar, without the end of one.
pub(crate) fn tar_entry(path: &str, contents: &[u8], mode: u32) -> io::Result<Vec<u8>> {
    let mut header = tar::Header::new_ustar();
    header.set_size(contents.len() as u64);
    header.set_mode(mode);
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_data(&mut header, path, contents)?;
    // The end, two blocks of zeros, is written only when the builder is done.
    Ok(builder.get_ref().clone())
}

/// Removes the images of this store's artifacts that it no longer has. Tidying:
/// what cannot be removed now may be the next time.
pub(crate) fn remove_unused(engine: &Engine, store: &Store, within: Duration) {
    let until = Instant::now() + within;
    let limits = || Limits::within(until.saturating_duration_since(Instant::now()));
    let ours = format!("{STORE}={}", store_label(store));
    for image in engine.images_labelled(&ours, limits()).unwrap_or_default() {
        let key = engine.image_label(&image, KEY, limits()).ok().flatten();
        if key.is_some_and(|key| !has(store, &key)) {
            let _ = engine.remove_image(&image, limits());
        }
    }
}

/// Whether the store has the artifact of a key, whole or not.
fn has(store: &Store, key: &str) -> bool {
    let Some((image, recipe)) = key.split_once('-') else { return true };
    let dir = store.bucket_dir(smolcellar_store::Bucket::Machines);
    dir.join(image).join(Path::new(recipe).with_extension("json")).exists()
}

/// Two stores must not remove each other's images.
fn store_label(store: &Store) -> String {
    smolcellar_store::Digest::of(store.root().as_os_str().as_encoded_bytes()).hex()[..16].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_one_that_tar_reads() {
        let mut bytes = tar_entry("a/b", &[7; 600], 0o444).unwrap();
        assert_eq!(bytes.len(), 512 + 1024);
        bytes.extend([0; 1024]);
        let mut archive = tar::Archive::new(&bytes[..]);
        let mut entries = archive.entries().unwrap();
        let mut entry = entries.next().unwrap().unwrap();
        assert_eq!((entry.path().unwrap().to_str(), entry.header().mode().unwrap()), (Some("a/b"), 0o444));
        let mut contents = Vec::new();
        entry.read_to_end(&mut contents).unwrap();
        assert_eq!(contents, [7; 600]);
        assert!(entries.next().is_none());
    }
}
