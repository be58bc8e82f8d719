//! smolvm's own copies of launched artifacts.
//!
//! From 1.9.0, on Linux, the first `machine create --from` of an artifact
//! unpacks it once for all its machines, and `machine delete` leaves that copy:
//!
//! ```text
//! <cache>/smolvm/vms/_shared/<crc>/                      the copy; .smolvm-extracted in it: whole
//! <cache>/smolvm/vms/_shared/<crc>.artifact-sha256       whose copy; touched by every create
//! <cache>/smolvm/vms/_shared/<crc>.{lock,artifact-sha256.lock,artifact-source.json}
//! <cache>/smolvm/vms/_cow-bases/<sha256>/                disk images made of it, for some artifacts
//! <cache>/smolvm/vms/<machine>/.pack-shared              the path of the copy that a machine uses
//! <cache>/smolvm/vms/<machine>/name                      that machine's name
//! ```
//!
//! `<crc>` is the checksum in the artifact's footer, as eight hex digits. Older
//! versions unpack into the machine's own folder, which goes with the machine.
//!
//! Source: what 1.8.3, 1.9.0, 1.14.0, 1.28.1 and 1.32.2 leave on disk, and
//! `artifact_cache.rs` of 1.9.2. Everything here reads only: removing is
//! smolvm's own business ([`crate::Cli::prune_extractions`]), for it alone
//! holds the lock under which copies are made.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;
use smolcellar_store::{Digest, StoreError};

use crate::argv::check_name;
use crate::error::Result;

/// The most that is read of a pointer, in bytes: Linux's longest path.
const MAX_PATH: u64 = 4096;

/// One copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Extraction {
    /// Its folder.
    pub path: PathBuf,
    /// What names it: the CRC-32 in its artifact's footer.
    #[serde(skip)]
    pub checksum: u32,
    /// The SHA-256 of the artifact's file. `None` if smolvm was cut off before
    /// it wrote that down.
    pub artifact: Option<Digest>,
    /// Bytes that the file system has allocated for it. A file with two names
    /// counts twice, as in what smolvm says.
    pub allocated: u64,
    /// Whether it was finished; the next create finishes one that was not.
    pub complete: bool,
    /// The machines that use it, running or not, by name; by the name of its
    /// folder if a machine has none. smolvm never prunes what one of them uses.
    pub machines: Vec<String>,
    /// When a machine was last made of it.
    #[serde(skip)]
    pub used: SystemTime,
}

/// Where smolvm keeps copies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extractions {
    vms: PathBuf,
}

impl Extractions {
    /// Of a smolvm run with these variables. `None`: it cannot be told.
    ///
    /// `SMOLVM_DATA_DIR` stands for the home folder and makes smolvm forget
    /// `XDG_CACHE_HOME`. Empty, it sends 1.32.2 to the home folder of the
    /// user database, which is not looked up here.
    pub(crate) fn locate(variable: impl Fn(&str) -> Option<OsString>) -> Option<Self> {
        let set = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let cache = match variable("SMOLVM_DATA_DIR") {
            Some(_) => set("SMOLVM_DATA_DIR")?.join(".cache"),
            // Like anything that follows the XDG specification, it passes over
            // a relative path.
            None => match set("XDG_CACHE_HOME").filter(|path| path.is_absolute()) {
                Some(cache) => cache,
                None => set("HOME")?.join(".cache"),
            },
        };
        Some(Self { vms: cache.join("smolvm/vms") })
    }

    /// The folder of the copies. It need not be there.
    pub fn folder(&self) -> PathBuf {
        self.vms.join("_shared")
    }

    /// All copies, whoever launched their artifacts, the largest first. Reads
    /// the metadata of every file in them. Without smolvm's lock: what comes
    /// or goes meanwhile may be missing.
    ///
    /// # Errors
    /// [`crate::Error::Store`] if a folder cannot be listed.
    pub fn list(&self) -> Result<Vec<Extraction>> {
        let folder = self.folder();
        let users = self.users()?;
        let mut found = Vec::new();
        for path in entries(&folder)? {
            if let Some(checksum) = checksum(&path)
                && is_folder(&path)
            {
                found.push(self.look(path, checksum, &users));
            }
        }
        found.sort_by(|a, b| b.allocated.cmp(&a.allocated).then_with(|| a.path.cmp(&b.path)));
        Ok(found)
    }

    /// The copy of the artifact whose footer has this CRC-32, if there is one.
    /// Another artifact may have the same: ask for [`Extraction::artifact`].
    ///
    /// # Errors
    /// As [`Extractions::list`].
    pub fn of(&self, checksum: u32) -> Result<Option<Extraction>> {
        let path = self.folder().join(format!("{checksum:08x}"));
        if !is_folder(&path) {
            return Ok(None);
        }
        Ok(Some(self.look(path, checksum, &self.users()?)))
    }

    fn look(&self, path: PathBuf, checksum: u32, users: &[(u32, String)]) -> Extraction {
        let beside = |extension| path.with_extension(extension);
        let artifact = first_bytes(&beside("artifact-sha256"), 80).and_then(|text| digest(&text));
        let bases = artifact.map(|digest| self.vms.join("_cow-bases").join(digest.hex()));
        // The same that smolvm goes by when it orders them.
        let touched = ["lock", "artifact-sha256", "artifact-sha256.lock", "artifact-source.json"].map(beside);
        let touched = touched.iter().chain([&path]).chain(&bases);
        let used = touched.filter_map(|path| fs::symlink_metadata(path).ok()?.modified().ok()).max();
        Extraction {
            checksum,
            artifact,
            allocated: allocated(&path) + bases.as_deref().map_or(0, allocated),
            complete: path.join(".smolvm-extracted").exists(),
            machines: users.iter().filter(|(of, _)| *of == checksum).map(|(_, name)| name.clone()).collect(),
            used: used.unwrap_or(SystemTime::UNIX_EPOCH),
            path,
        }
    }

    /// The copies that machines use, and the machines.
    fn users(&self) -> Result<Vec<(u32, String)>> {
        let mut users = Vec::new();
        for dir in entries(&self.vms)? {
            let Some(id) = dir.file_name().and_then(OsStr::to_str).filter(|name| is_hex(name, 16)) else {
                continue;
            };
            if let Some(checksum) =
                first_bytes(&dir.join(".pack-shared"), MAX_PATH + 1).and_then(|text| pointed(&text))
            {
                let name = first_bytes(&dir.join("name"), 256).and_then(|text| machine_name(&text));
                users.push((checksum, name.unwrap_or_else(|| id.to_owned())));
            }
        }
        users.sort();
        Ok(users)
    }
}

/// How many of the unused copies smolvm must be told to keep, the last used
/// ones, so that all `wanted` ones go and as few others as can be. `None`:
/// there is nothing that it may remove.
pub(crate) fn keep(all: &[Extraction], wanted: impl Fn(&Extraction) -> bool) -> Option<usize> {
    let unused = || all.iter().filter(|one| one.machines.is_empty());
    let newest = unused().filter(|one| wanted(one)).map(|one| one.used).max()?;
    Some(unused().filter(|one| one.used > newest).count())
}

/// The checksum that a copy's folder is named by.
fn checksum(path: &Path) -> Option<u32> {
    let name = path.file_name()?.to_str().filter(|name| is_hex(name, 8))?;
    u32::from_str_radix(name, 16).ok()
}

/// The checksum of the copy that a `.pack-shared` file names. One in another
/// folder counts too: rather one in use too many than one too few.
pub(crate) fn pointed(text: &[u8]) -> Option<u32> {
    let path = Path::new(OsStr::from_bytes(text.trim_ascii()));
    checksum(path).filter(|_| path.is_absolute() && text.len() as u64 <= MAX_PATH)
}

/// What an `.artifact-sha256` file says.
pub(crate) fn digest(text: &[u8]) -> Option<Digest> {
    Digest::from_hex(std::str::from_utf8(text.trim_ascii()).ok()?).ok()
}

/// What a machine's `name` file says.
pub(crate) fn machine_name(text: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(text.trim_ascii()).ok()?;
    check_name(name).is_ok().then(|| name.to_owned())
}

fn is_hex(name: &str, length: usize) -> bool {
    name.len() == length && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Never through a link: smolvm makes none here.
fn is_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

/// What is in a folder; nothing if there is none.
fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let failed = StoreError::io("list", dir);
    let listing = match fs::read_dir(dir) {
        Ok(listing) => listing,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error).into()),
    };
    let paths: io::Result<Vec<_>> = listing.map(|entry| Ok(entry?.path())).collect();
    Ok(paths.map_err(failed)?)
}

/// The first bytes of a regular file; `None` if it cannot be read.
fn first_bytes(path: &Path, most: u64) -> Option<Vec<u8>> {
    if !fs::symlink_metadata(path).ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(most).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// In bytes, folders included. What vanishes meanwhile takes no space.
fn allocated(path: &Path) -> u64 {
    let blocks = |metadata: &fs::Metadata| metadata.blocks() * 512;
    let Ok(metadata) = fs::symlink_metadata(path) else { return 0 };
    let mut bytes = blocks(&metadata);
    let mut pending = vec![path.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            bytes += blocks(&metadata);
            if metadata.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    bytes
}

#[cfg(test)]
#[path = "extraction_tests.rs"]
mod tests;
