//! Reading an artifact back: footer, manifest, frame index.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use smolvm_pack::format::{FOOTER_SIZE, PackFooter, PackManifest};

use crate::error::{PackError, Result};
use crate::index::FrameIndex;

/// What an artifact says of itself.
#[derive(Debug, Clone)]
pub struct Artifact {
    /// Where its parts are.
    pub footer: PackFooter,
    /// What it runs.
    pub manifest: PackManifest,
    /// Its frames; `None` if another packer wrote it.
    pub index: Option<FrameIndex>,
}

/// Reads the parts of an artifact that are not its contents, and checks that
/// they fit one another. Contents are what its receipt's digest vouches for.
///
/// # Errors
/// [`PackError::Artifact`] saying what is wrong.
pub fn read(path: &Path) -> Result<Artifact> {
    let bad = |problem: String| PackError::Artifact { path: path.to_owned(), problem };
    let footer = smolvm_pack::read_footer_from_sidecar(path).map_err(|error| bad(error.to_string()))?;
    let manifest = smolvm_pack::read_manifest_from_sidecar(path).map_err(|error| bad(error.to_string()))?;
    let file = File::open(path).map_err(|error| bad(error.to_string()))?;
    let index = read_index(&file, footer.assets_size).map_err(bad)?;
    Ok(Artifact { footer, manifest, index })
}

/// What [`read`] does, and for files of strangers: that the parts are all there
/// is of the file, in smolvm's order for a file of its own, and that the CRC-32
/// of assets and manifest is the footer's (crate `smolvm-pack`, module `format`).
/// Reads the whole file, unless `sum` is what a [`Sum`] told that saw all of it.
///
/// # Errors
/// [`PackError::Artifact`] saying what is wrong.
pub fn read_foreign(path: &Path, sum: Option<u32>) -> Result<Artifact> {
    let bad = |problem: String| PackError::Artifact { path: path.to_owned(), problem };
    let artifact = read(path)?;
    let footer = &artifact.footer;
    let mut file = File::open(path).map_err(|error| bad(error.to_string()))?;
    let size = file.metadata().map_err(|error| bad(error.to_string()))?.len();
    adds_up(footer, size).map_err(|problem| bad(problem.into()))?;
    let sound = match sum {
        Some(sum) => sum == footer.checksum,
        None => {
            let sums = smolvm_pack::packer::verify_sidecar_checksum_file(&mut file, footer);
            sums.map_err(|error| bad(error.to_string()))?
        }
    };
    match sound {
        true => Ok(artifact),
        false => Err(bad("its CRC-32 is not that of its contents".into())),
    }
}

/// Whether the parts are all there is of a file of `size` bytes.
pub(crate) fn adds_up(footer: &PackFooter, size: u64) -> Result<(), &'static str> {
    let parts = footer.assets_size.checked_add(footer.manifest_size);
    match parts.and_then(|n| n.checked_add(FOOTER_SIZE as u64)) == Some(size)
        && footer.assets_offset == 0
        && footer.manifest_offset == footer.assets_size
    {
        true => Ok(()),
        false => Err("its parts do not add up to the file"),
    }
}

/// The CRC-32 that the footer of a file of known size must have, of bytes that
/// come in order: of all but the footer.
#[derive(Debug, Clone)]
pub struct Sum {
    hasher: crc32fast::Hasher,
    left: u64,
}

impl Sum {
    /// Of a file of `size` bytes, of which none was seen yet.
    pub fn new(size: u64) -> Self {
        Self { hasher: crc32fast::Hasher::new(), left: size.saturating_sub(FOOTER_SIZE as u64) }
    }

    /// Sees the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        let length = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.hasher.update(&bytes[..length]);
        self.left -= length as u64;
    }

    /// The CRC-32; `None` if not all bytes were seen.
    pub fn finish(self) -> Option<u32> {
        (self.left == 0).then(|| self.hasher.finalize())
    }
}

/// The largest index that is read, in bytes: an image of several TiB.
pub(crate) const MAX_INDEX: u64 = 256 << 20;

fn read_index(file: &File, assets_size: u64) -> Result<Option<FrameIndex>, String> {
    let mut trailer = [0; FrameIndex::TRAILER];
    let Some(at) = assets_size.checked_sub(trailer.len() as u64) else { return Ok(None) };
    file.read_exact_at(&mut trailer, at).map_err(|error| error.to_string())?;
    let Some(size) = FrameIndex::size_from_trailer(&trailer) else { return Ok(None) };
    let start = assets_size.checked_sub(size).filter(|_| size <= MAX_INDEX);
    let start = start.ok_or_else(|| "its frame index claims an absurd size".to_owned())?;
    let mut bytes = vec![0; size as usize];
    file.read_exact_at(&mut bytes, start).map_err(|error| error.to_string())?;
    let index = FrameIndex::parse(&bytes)?;
    if index.frames_size() != start {
        return Err("its frame index does not cover its frames".into());
    }
    Ok(Some(index))
}
