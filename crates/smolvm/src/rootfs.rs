//! The agent rootfs: what every machine boots before its own image, and part
//! of every artifact.
//!
//! Its canonical archive is a GNU tar with the entries in component-wise path
//! order (`a`, `a/b`, `a.b`), no entry for the root itself, owner 0:0 without
//! names, time 0, the low 12 mode bits (0777 for symbolic links) and ended by
//! two zero blocks. Hard links are written as files of their own: installs
//! made by `cp -r` or git have lost them. smolvm's readiness markers, which
//! running machines leave in the folder, and sockets and pipes are left out.
//! So the release archive, a folder unpacked from it and a copy of that folder
//! have one digest.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufReader, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use smolcellar_store::{Digest, Hasher, StoreError, fsio};
use tar::{EntryType, Header};

use crate::error::{Error, Result};

/// How smolvm's readiness markers begin (`AGENT_READY_MARKER` in
/// smolvm-protocol), in the root of the rootfs.
const MARKER: &[u8] = b".smolvm-ready";

const TAR_BLOCK: usize = 512;

/// Whether `path`, relative to the rootfs, is a readiness marker.
pub(crate) fn is_marker(path: &Path) -> bool {
    path.as_os_str().as_bytes().starts_with(MARKER)
}

/// An entry of a rootfs folder.
pub(crate) struct Entry {
    /// Relative to the folder.
    pub(crate) path: PathBuf,
    pub(crate) metadata: fs::Metadata,
}

/// Every entry that belongs to the canonical archive, in its order.
pub(crate) fn entries(folder: &Path) -> Result<Vec<Entry>> {
    let mut all = Vec::with_capacity(1024);
    collect(folder, Path::new(""), &mut all)?;
    Ok(all)
}

fn collect(folder: &Path, under: &Path, all: &mut Vec<Entry>) -> Result<()> {
    let dir = folder.join(under);
    let mut names = Vec::new();
    for entry in fs::read_dir(&dir).map_err(StoreError::io("list", &dir))? {
        names.push(entry.map_err(StoreError::io("list", &dir))?.file_name());
    }
    names.sort_unstable();
    for name in names {
        let path = under.join(name);
        let at = folder.join(&path);
        if is_marker(&path) {
            continue;
        }
        let metadata = fs::symlink_metadata(&at).map_err(StoreError::io("examine", &at))?;
        let kind = metadata.file_type();
        if kind.is_socket() || kind.is_fifo() {
            continue;
        }
        let is_dir = kind.is_dir();
        if !is_dir && !kind.is_file() && !kind.is_symlink() {
            let problem = format!("its agent rootfs has a device, {}", path.display());
            return Err(Error::NotARuntime { dir: folder.to_owned(), problem });
        }
        all.push(Entry { path: path.clone(), metadata });
        if is_dir {
            collect(folder, &path, all)?;
        }
    }
    Ok(())
}

/// Writes the canonical archive of `folder` to `out`, which errors call `dest`;
/// its digest and its size in bytes.
pub(crate) fn write_canonical(folder: &Path, out: impl Write, dest: &Path) -> Result<(Digest, u64)> {
    let mut tar = Tar { out: BufWriter::with_capacity(1 << 20, out), hasher: Hasher::new(), size: 0 };
    let write = |e| Error::Store(StoreError::io("write", dest)(e));
    for entry in entries(folder)? {
        let at = folder.join(&entry.path);
        let kind = entry.metadata.file_type();
        let mode = entry.metadata.mode() & 0o7777;
        let mut name = entry.path.as_os_str().as_bytes().to_owned();
        if kind.is_dir() {
            name.push(b'/');
            tar.header(EntryType::Directory, &name, b"", mode, 0).map_err(write)?;
        } else if kind.is_symlink() {
            let target = fs::read_link(&at).map_err(StoreError::io("read the link", &at))?;
            tar.header(EntryType::Symlink, &name, target.as_os_str().as_bytes(), 0o777, 0).map_err(write)?;
        } else {
            tar.header(EntryType::Regular, &name, b"", mode, entry.metadata.len()).map_err(write)?;
            let mut file = BufReader::with_capacity(1 << 16, fsio::open(&at)?);
            let copied = io::copy(&mut file, &mut tar).map_err(|e| match e.kind() {
                // A full disk is the other side's.
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => write(e),
                _ => StoreError::io("read", &at)(e).into(),
            })?;
            if copied != entry.metadata.len() {
                let changed = io::Error::other("it changed while it was read; try again");
                return Err(StoreError::io("read", &at)(changed).into());
            }
            tar.pad(copied).map_err(write)?;
        }
    }
    tar.write_all(&[0; 2 * TAR_BLOCK]).map_err(write)?;
    tar.out.flush().map_err(write)?;
    Ok((tar.hasher.finish(), tar.size))
}

/// Writes the bytes of a tar, and counts and hashes them.
struct Tar<W: Write> {
    out: BufWriter<W>,
    hasher: Hasher,
    size: u64,
}

impl<W: Write> Tar<W> {
    /// By hand, not by `tar::Builder`: that normalises names and link targets.
    fn header(&mut self, kind: EntryType, name: &[u8], link: &[u8], mode: u32, size: u64) -> io::Result<()> {
        let mut header = Header::new_gnu();
        // A name or target that fills its field goes before, in an entry of
        // its own: GNU's @LongLink.
        for (kind, long) in [(EntryType::GNULongLink, link), (EntryType::GNULongName, name)] {
            if long.len() >= header.as_old().name.len() {
                self.header(kind, b"././@LongLink", b"", 0, long.len() as u64 + 1)?;
                self.write_all(long)?;
                self.write_all(&[0])?;
                self.pad(long.len() as u64 + 1)?;
            }
        }
        put(&mut header.as_old_mut().name, name);
        put(&mut header.as_old_mut().linkname, link);
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        header.set_cksum();
        self.write_all(header.as_bytes())
    }

    fn pad(&mut self, written: u64) -> io::Result<()> {
        let over = (written % TAR_BLOCK as u64) as usize;
        let zeros = [0; TAR_BLOCK];
        self.write_all(if over == 0 { &[] } else { zeros.get(over..).unwrap_or_default() })
    }
}

impl<W: Write> Write for Tar<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.update(bytes.get(..written).unwrap_or_default());
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// As much as fits, ended by a NUL.
fn put(field: &mut [u8], value: &[u8]) {
    let room = field.len() - 1;
    for (to, from) in field.iter_mut().zip(value.iter().take(room)) {
        *to = *from;
    }
}

/// Whether `folder` looks like an agent rootfs: smolvm's kernel starts its
/// `/sbin/init`.
pub(crate) fn is_rootfs(folder: &Path) -> bool {
    fs::symlink_metadata(folder.join(OsStr::new("sbin/init"))).is_ok()
}

#[cfg(test)]
#[path = "rootfs_tests.rs"]
mod tests;
