//! The root filesystem of an artifact, as a stream.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use crate::error::{PackError, Result};
use crate::read::read;

/// Gives the tar of an artifact's only layer to `take`, decompressed as it is
/// read: nothing of it is held or written down.
///
/// The artifact must have been verified: what the archive in it says of sizes
/// is believed.
///
/// # Errors
/// [`PackError::Artifact`] if there is no layer or more than one, or the
/// artifact cannot be read as far as there.
pub fn with_layer<T>(path: &Path, take: impl FnOnce(&mut dyn Read) -> T) -> Result<T> {
    let bad = |problem: String| PackError::Artifact { path: path.to_owned(), problem };
    let artifact = read(path)?;
    let [layer] = artifact.manifest.assets.layers.as_slice() else {
        let count = artifact.manifest.assets.layers.len();
        return Err(bad(format!("it has {count} layers, not one")));
    };
    let failed = |error: io::Error| bad(error.to_string());
    let file = File::open(path).map_err(failed)?;
    let assets = BufReader::with_capacity(1 << 20, file.take(artifact.footer.assets_size));
    let decoder = zstd::Decoder::with_buffer(assets).map_err(failed)?;
    let mut archive = tar::Archive::new(decoder);
    for entry in archive.entries().map_err(failed)? {
        let mut entry = entry.map_err(failed)?;
        if entry.path_bytes().as_ref() == layer.path.as_bytes() {
            return Ok(take(&mut entry));
        }
    }
    Err(bad(format!("it has no {}", layer.path)))
}
