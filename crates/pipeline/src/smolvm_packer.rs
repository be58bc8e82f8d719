//! The smolmachine stage by smolvm's own packer: `pack create` boots a machine
//! that pulls the image from a registry and packs it there.
//!
//! The registry is ours, lives for as long as the packer does, and serves one
//! image under a name nobody else knows. That image is flat, one layer with the
//! canonical root filesystem, so that nothing is merged inside the machine, and
//! its config has the agent's overrides applied, so that no option of the packer
//! is needed for them.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use smolcellar_oci::{RootFs, image_manifest};
use smolcellar_pack::{MachineSpec, Packed, read_foreign};
use smolcellar_registry::OneImage;
use smolcellar_run::{Cancel, Limits};
use smolcellar_smolvm::{Cli, PackRequest, Runtime};
use smolcellar_store::{BlobWriter, Digest, Event, Reporter, Store, StoreError, TempDir, fsio};

use crate::error::{PipelineError, Result};
use crate::outcome::Observer;

/// The version of how the packer is used, part of the recipe.
///
/// 1. The first.
pub(crate) const VERSION: u32 = 1;

/// The longest that packing may take. The machine unpacks, and compresses on
/// four processors: 700 MB take it a minute or two where there is virtualisation.
const BOUND: Duration = Duration::from_secs(30 * 60);

/// The task in events.
const TASK: &str = "flatten";

/// Packs into a temporary folder: the folder, the artifact in it, and its path.
pub(crate) fn pack(
    store: &Store,
    runtime: &Runtime,
    spec: &MachineSpec,
    rootfs: &RootFs,
    observer: &dyn Observer,
) -> Result<(TempDir, File, PathBuf, Packed)> {
    let size = rootfs.tar_size();
    // The flat layer here, and about as much again for what smolvm makes of it.
    store.need(size.saturating_mul(2), "packing with smolvm")?;
    let dir = store.temp_dir()?;
    let image = flat_image(&dir, spec, rootfs, observer)?;
    let served = image.serve()?;
    let request = PackRequest {
        image: served.reference().to_owned(),
        output: dir.path().join("packed"),
        cpus: spec.cpus.into(),
        memory_mib: spec.memory_mib,
        platform: (spec.platform != smolcellar_oci::Platform::guest()).then(|| spec.platform.to_string()),
    };
    let limits = Limits { timeout: Some(BOUND), cancel: &GaveUp(observer) };
    let packed = Cli::new(runtime)?.pack(&request, limits);
    // Gone before anything else is said or done.
    let seen = served.stop();
    packed?;
    let path = request.artifact();
    // Some versions end well without having done anything.
    if !path.is_file() {
        return Err(PipelineError::Packer("it ended well, and made no artifact".into()));
    }
    // Nobody else has an image of this name.
    if seen.manifests == 0 || seen.blobs == 0 {
        return Err(PipelineError::Packer("it made an artifact without having asked for the image".into()));
    }
    check(&path, spec)?;
    let file = fsio::open(&path)?;
    let io = |error| StoreError::io("read", &path)(error);
    let size = file.metadata().map_err(io)?.len();
    let sha256 = Digest::of_file(&path).map_err(io)?;
    let packed = Packed { size, sha256, frames: 0, raw_size: 0 };
    Ok((dir, file, path, packed))
}

struct GaveUp<'a>(&'a dyn Observer);

impl Cancel for GaveUp<'_> {
    fn cancelled(&self) -> bool {
        self.0.gives_up()
    }
}

/// The image as it is served: the layer in `dir`, config and manifest.
fn flat_image(
    dir: &TempDir,
    spec: &MachineSpec,
    rootfs: &RootFs,
    reporter: &dyn Reporter,
) -> Result<OneImage> {
    let mut writer = BlobWriter::create(dir)?;
    let layer = writer.path().to_owned();
    reporter.report(Event::Begin { task: TASK, total: Some(rootfs.tar_size()) });
    let mut out = BufWriter::with_capacity(1 << 20, Told { inner: &mut writer, reporter });
    let written = rootfs.write_tar(&mut out).and_then(|()| out.flush());
    drop(out);
    reporter.report(Event::End { task: TASK });
    written.map_err(StoreError::io("write", &layer))?;
    let layer_blob = writer.finish();
    let digest = layer_blob.digest()?;
    let config = config(spec, &digest);
    let manifest = image_manifest((Digest::of(&config), config.len() as u64), &[(digest, layer_blob.size)]);
    let mut writer = BlobWriter::create(dir)?;
    let config_path = writer.path().to_owned();
    writer.write_all(&config).map_err(StoreError::io("write", &config_path))?;
    let config_digest = writer.finish().digest()?;
    Ok(OneImage { manifest, blobs: vec![(config_digest, config_path), (digest, layer)] })
}

/// The config of the flat image (image-spec `config.md`).
fn config(spec: &MachineSpec, layer: &Digest) -> Vec<u8> {
    let mut config = json!({
        "architecture": spec.platform.architecture,
        "os": spec.platform.os,
        "created": spec.created,
        "config": {
            "Entrypoint": spec.entrypoint,
            "Cmd": spec.cmd,
            "Env": spec.env,
            "WorkingDir": spec.workdir.clone().unwrap_or_default(),
            "User": spec.user.clone().unwrap_or_default(),
        },
        "rootfs": { "type": "layers", "diff_ids": [layer] },
    });
    if !spec.platform.variant.is_empty() {
        config["variant"] = json!(spec.platform.variant);
    }
    config.to_string().into_bytes()
}

/// What was packed must be what was asked for: the packer pulls by a tag, from
/// inside a machine, and reads the config by rules of its own.
fn check(path: &Path, spec: &MachineSpec) -> Result<()> {
    let manifest = read_foreign(path, None)?.manifest;
    let lost: Vec<&str> = spec
        .env
        .iter()
        .filter(|pair| !manifest.env.contains(pair))
        .map(|pair| pair.split_once('=').map_or(pair.as_str(), |(name, _)| name))
        .collect();
    let rooted = |folder: &Option<String>| folder.clone().filter(|folder| folder != "/");
    let mut differs = Vec::new();
    let facts = [
        ("platform", manifest.platform == spec.platform.to_string()),
        ("entrypoint", manifest.entrypoint == spec.entrypoint),
        ("cmd", manifest.cmd == spec.cmd),
        ("workdir", rooted(&manifest.workdir) == rooted(&spec.workdir)),
        ("user", manifest.user == spec.user),
        ("cpus", manifest.cpus == spec.cpus),
        ("memory", manifest.mem == spec.memory_mib),
    ];
    differs.extend(facts.into_iter().filter(|(_, same)| !same).map(|(name, _)| name.to_owned()));
    differs.extend((!lost.is_empty()).then(|| format!("env ({})", lost.join(", "))));
    match differs.is_empty() {
        true => Ok(()),
        false => Err(PipelineError::Packer(format!("its machine has another {}", differs.join(", ")))),
    }
}

/// Counts what passes.
struct Told<'a> {
    inner: &'a mut BlobWriter,
    reporter: &'a dyn Reporter,
}

impl Write for Told<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.reporter.report(Event::Advance { task: TASK, bytes: n as u64 });
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
