//! Unpacks the archive of the agent rootfs.
//!
//! Nothing outside the destination can be written: a path must be relative
//! and without `..`, each entry's folder must be one that this archive made,
//! and no path may come twice. So no entry is ever written through a symbolic
//! link, whatever the order.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use smolcellar_store::{StoreError, fsio};
use tar::EntryType;

use crate::error::{Error, Result};
use crate::rootfs::is_marker;

/// The most entries that are unpacked; smolvm's own archive has 909.
const MOST_ENTRIES: usize = 200_000;

/// The most bytes that are unpacked; smolvm's own archive has 36 MB.
const MOST_BYTES: u64 = 4 << 30;

/// Unpacks a tar, plain or zstd, into the existing empty folder `dest`. Modes
/// are kept, owners and times are not.
pub(crate) fn unpack(archive: &Path, dest: &Path) -> Result<()> {
    let mut file = BufReader::new(fsio::open(archive)?);
    let magic = io::BufRead::fill_buf(&mut file).map_err(StoreError::io("read", archive))?;
    let zstd = magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
    let reader: Box<dyn Read> = if zstd {
        Box::new(zstd::Decoder::with_buffer(file).map_err(|e| Error::archive(archive)(&e))?)
    } else {
        Box::new(file)
    };
    Unpacker { archive, dest, folders: BTreeMap::new(), others: BTreeMap::new(), left: MOST_BYTES }
        .run(reader)
}

struct Unpacker<'a> {
    archive: &'a Path,
    dest: &'a Path,
    /// The folders made so far and the mode each is to have in the end.
    folders: BTreeMap<PathBuf, u32>,
    /// Everything else made so far, and whether it is a regular file.
    others: BTreeMap<PathBuf, bool>,
    left: u64,
}

impl Unpacker<'_> {
    fn run(mut self, reader: Box<dyn Read>) -> Result<()> {
        let mut tar = tar::Archive::new(reader.take(MOST_BYTES));
        for (count, entry) in tar.entries().map_err(|e| self.bad(&e))?.enumerate() {
            if count >= MOST_ENTRIES {
                return Err(self.bad(&"it has too many entries"));
            }
            self.entry(entry.map_err(|e| self.bad(&e))?)?;
        }
        if self.others.is_empty() {
            return Err(self.bad(&"it has no files"));
        }
        // Last, and children first: a folder may be read-only.
        for (path, mode) in self.folders.iter().rev() {
            self.set_mode(&self.dest.join(path), *mode)?;
        }
        Ok(())
    }

    fn entry(&mut self, mut entry: tar::Entry<'_, impl Read>) -> Result<()> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        let raw = entry.path_bytes().into_owned();
        let path = self.relative(&raw)?;
        let mode = entry.header().mode().map_err(|e| self.bad(&e))? & 0o7777;
        if path.as_os_str().is_empty() || is_marker(&path) {
            return Ok(());
        }
        let at = self.dest.join(&path);
        match kind {
            EntryType::Directory => {
                if !self.folders.contains_key(&path) {
                    self.vacant(&path)?;
                    fs::create_dir(&at).map_err(StoreError::io("create folder", &at))?;
                }
                self.folders.insert(path, mode);
            }
            EntryType::Regular | EntryType::Continuous => {
                self.vacant(&path)?;
                self.left =
                    self.left.checked_sub(entry.size()).ok_or_else(|| self.bad(&"it is too large"))?;
                let mut file = fsio::create_new(&at)?;
                let written = io::copy(&mut entry, &mut file).map_err(StoreError::io("write", &at))?;
                if written != entry.size() {
                    return Err(self.bad(&"it is cut off"));
                }
                self.set_mode(&at, mode)?;
                self.others.insert(path, true);
            }
            EntryType::Symlink => {
                self.vacant(&path)?;
                let target = self.link(&entry)?;
                std::os::unix::fs::symlink(OsStr::from_bytes(&target), &at)
                    .map_err(StoreError::io("link", &at))?;
                self.others.insert(path, false);
            }
            EntryType::Link => {
                self.vacant(&path)?;
                let target = self.relative(&self.link(&entry)?)?;
                if self.others.get(&target) != Some(&true) {
                    return Err(self.bad(&format_args!("{} links to no file of it", path.display())));
                }
                fs::hard_link(self.dest.join(&target), &at).map_err(StoreError::io("link", &at))?;
                self.others.insert(path, true);
            }
            _ => return Err(self.bad(&format_args!("{} is of a kind that it may not have", path.display()))),
        }
        Ok(())
    }

    /// The entry's path, checked.
    fn relative(&self, raw: &[u8]) -> Result<PathBuf> {
        let path = Path::new(OsStr::from_bytes(raw));
        let mut clean = PathBuf::new();
        for component in path.components() {
            match component {
                Component::CurDir => {}
                Component::Normal(name) => clean.push(name),
                _ => return Err(self.bad(&format_args!("{} leads out of it", path.display()))),
            }
        }
        Ok(clean)
    }

    fn link(&self, entry: &tar::Entry<'_, impl Read>) -> Result<Vec<u8>> {
        let target = entry.link_name_bytes().map(|target| target.into_owned()).unwrap_or_default();
        if target.is_empty() { Err(self.bad(&"a link in it has no target")) } else { Ok(target) }
    }

    /// Nothing has this path yet, and its folder is one of ours.
    fn vacant(&self, path: &Path) -> Result<()> {
        let parent = path.parent().unwrap_or(Path::new(""));
        if !parent.as_os_str().is_empty() && !self.folders.contains_key(parent) {
            return Err(
                self.bad(&format_args!("{} comes before its folder, or in no folder", path.display()))
            );
        }
        if self.folders.contains_key(path) || self.others.contains_key(path) {
            return Err(self.bad(&format_args!("{} comes twice", path.display())));
        }
        Ok(())
    }

    fn set_mode(&self, path: &Path, mode: u32) -> Result<()> {
        Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .map_err(StoreError::io("set the mode of", path))?)
    }

    fn bad(&self, problem: &dyn std::fmt::Display) -> Error {
        Error::archive(self.archive)(problem)
    }
}

/// The paths of all entries, for tests.
#[cfg(test)]
pub(crate) fn names(folder: &Path) -> std::collections::BTreeSet<PathBuf> {
    let mut names = std::collections::BTreeSet::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(dir) = folders.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            names.insert(entry.path().strip_prefix(folder).unwrap().to_owned());
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            }
        }
    }
    names
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
