//! A cheap identity of a runtime that is not ours: metadata, no contents.

use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use smolcellar_store::{Digest, Hasher, StoreError};

use crate::error::Result;
use crate::layout::{Layout, RootfsSource};
use crate::rootfs;

/// Changes when what is derived from a runtime would be made differently, so
/// that nothing made by an older smolcellar is found.
const FORMAT: &[u8] = b"smolcellar runtime fingerprint 1\n";

/// The fingerprint of a runtime: of each file its path, size, mode, inode,
/// mtime and ctime in nanoseconds. Of a folder only path and mode: running
/// machines put markers into the root of the agent rootfs, and what appears or
/// vanishes in a folder is seen by itself.
pub(crate) fn of(layout: &Layout) -> Result<Digest> {
    let mut hasher = Hasher::new();
    hasher.update(FORMAT);
    for path in std::iter::once(&layout.program).chain(&layout.parts) {
        file(&mut hasher, path)?;
    }
    match &layout.rootfs {
        RootfsSource::Archive(path) => file(&mut hasher, path)?,
        RootfsSource::Folder(folder) => {
            field(&mut hasher, folder.as_os_str().as_bytes());
            for entry in rootfs::entries(folder)? {
                add(&mut hasher, &entry.path, &entry.metadata);
            }
        }
    }
    Ok(hasher.finish())
}

fn file(hasher: &mut Hasher, path: &Path) -> Result<()> {
    let metadata = path.metadata().map_err(StoreError::io("examine", path))?;
    add(hasher, path, &metadata);
    Ok(())
}

fn add(hasher: &mut Hasher, path: &Path, metadata: &Metadata) {
    field(hasher, path.as_os_str().as_bytes());
    hasher.update(&metadata.mode().to_le_bytes());
    if !metadata.is_dir() {
        for number in [metadata.size(), metadata.ino(), metadata.dev()] {
            hasher.update(&number.to_le_bytes());
        }
        for number in [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()] {
            hasher.update(&number.to_le_bytes());
        }
    }
}

/// With its length first, so that no two lists of fields are one text.
fn field(hasher: &mut Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}
