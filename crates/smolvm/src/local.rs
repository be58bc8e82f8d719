//! A smolvm that is not ours: what is derived from it lies in the store.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use smolcellar_store::{Bucket, Digest, Reporter, Store, StoreError, fsio};

use crate::error::Result;
use crate::layout::{Layout, RootfsSource};
use crate::receipt::{FileFact, Receipt};
use crate::runtime::{Origin, Runtime};
use crate::{cli, fingerprint, rootfs, unpack, verify};

/// What is in the store of the runtime of `layout`, and of its files as they
/// are now. Reads only.
pub(crate) fn known(store: &Store, layout: &Layout, origin: Origin) -> Result<Option<Runtime>> {
    let dest = place(store, layout)?;
    Ok(Receipt::load(&dest)?.map(|receipt| receipt.runtime(&dest, origin)))
}

/// How the names of such folders begin.
pub(crate) const PREFIX: &str = "local-";

/// Discards such a folder if anything of it is not as its receipt says: its
/// next use derives it again. Whether it did.
pub(crate) fn discard_damaged(store: &Store, reporter: &dyn Reporter, folder: &Path) -> Result<bool> {
    let key = folder.file_name().unwrap_or_default().to_string_lossy();
    let _lock = store.lock_build(&format!("runtime-{key}"), reporter)?;
    let damaged = folder.exists() && !verify::problems(folder).is_empty();
    if damaged {
        store.discard(folder)?;
    }
    Ok(damaged)
}

/// The same of the folder of this runtime.
pub(crate) fn discard_if_damaged(store: &Store, reporter: &dyn Reporter, layout: &Layout) -> Result<bool> {
    discard_damaged(store, reporter, &place(store, layout)?)
}

fn place(store: &Store, layout: &Layout) -> Result<PathBuf> {
    let key = format!("{PREFIX}{}", fingerprint::of(layout)?.hex());
    Ok(store.bucket_dir(Bucket::Runtimes).join(key))
}

/// The runtime of `layout`, from the store if it was derived before and the
/// files have not changed since.
pub(crate) fn derive(
    store: &Store,
    reporter: &dyn Reporter,
    layout: &Layout,
    origin: Origin,
) -> Result<Runtime> {
    let dest = place(store, layout)?;
    if let Some(receipt) = Receipt::load(&dest)? {
        return Ok(receipt.runtime(&dest, origin));
    }
    let key = dest.file_name().unwrap_or_default().to_string_lossy();
    let _lock = store.lock_build(&format!("runtime-{key}"), reporter)?;
    if let Some(receipt) = Receipt::load(&dest)? {
        return Ok(receipt.runtime(&dest, origin));
    }
    let version = cli::version(&layout.program)?;
    let temp = store.temp_dir()?;
    set_mode(temp.path(), 0o755)?;
    let agent_rootfs = match &layout.rootfs {
        RootfsSource::Folder(folder) => folder.clone(),
        RootfsSource::Archive(archive) => {
            unpack_rootfs(archive, temp.path())?;
            ROOTFS.into()
        }
    };
    let tar = write_rootfs_tar(&temp.path().join(&agent_rootfs), temp.path())?;
    let receipt = Receipt {
        schema: Receipt::SCHEMA,
        version,
        program: layout.program.clone(),
        lib_dir: layout.lib_dir.clone(),
        agent_rootfs,
        rootfs_tar: tar.path.clone(),
        rootfs_digest: tar.sha256,
        rootfs_size: tar.size,
        files: vec![tar],
    };
    receipt.write(&temp)?;
    store.publish_dir(temp, &dest)?;
    Ok(receipt.runtime(&dest, origin))
}

/// The unpacked agent rootfs in a folder of the bucket.
pub(crate) const ROOTFS: &str = "agent-rootfs";

/// Unpacks the agent rootfs into its folder under `dir`.
pub(crate) fn unpack_rootfs(archive: &Path, dir: &Path) -> Result<()> {
    let folder = dir.join(ROOTFS);
    fsio::create_dirs(&folder)?;
    unpack::unpack(archive, &folder)?;
    // Machines started by root run as users of their own and read it.
    set_mode(&folder, 0o755)
}

/// Writes the canonical tar of `folder` into `dir`.
pub(crate) fn write_rootfs_tar(folder: &Path, dir: &Path) -> Result<FileFact> {
    let path = PathBuf::from("agent-rootfs.tar");
    let dest = dir.join(&path);
    let file = fsio::create_new(&dest)?;
    let (sha256, size): (Digest, u64) = rootfs::write_canonical(folder, &file, &dest)?;
    set_mode(&dir.join(&path), 0o444)?;
    Ok(FileFact { path, size, sha256, sparse: false })
}

pub(crate) fn set_mode(path: &Path, mode: u32) -> Result<()> {
    let set = fs::set_permissions(path, fs::Permissions::from_mode(mode));
    Ok(set.map_err(StoreError::io("set the mode of", path))?)
}
