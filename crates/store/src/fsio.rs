//! Every write that another process may see.
//!
//! The one way in: write a temporary file on the store's own file system,
//! fsync it, rename it to its name, fsync the folder. A name in the store
//! therefore always has whole contents, after a crash and after a power loss.
//! A failed fsync is never retried: the file is dropped and written again.
#![expect(clippy::disallowed_methods, reason = "this module owns raw writes and renames")]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::digest::Digest;
use crate::error::{Result, StoreError};

/// The largest JSON file of the store that is read, in bytes. Receipts are a
/// few KiB; anything near this is not ours.
pub const MAX_JSON: u64 = 16 << 20;

/// Creates a file that must not exist yet, for reading and writing.
///
/// # Errors
/// [`StoreError::Io`] naming the path.
pub fn create_new(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(StoreError::io("create", path))
}

/// Opens a file for appending, making it if need be.
pub(crate) fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// Opens a file for reading.
///
/// # Errors
/// [`StoreError::Io`] naming the path.
pub fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(StoreError::io("open", path))
}

/// Creates a folder and its parents.
///
/// # Errors
/// [`StoreError::Io`] naming the path.
pub fn create_dirs(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(StoreError::io("create folder", path))
}

/// Makes the names in a folder durable.
///
/// # Errors
/// [`StoreError::Io`] naming the path.
pub fn sync_dir(path: &Path) -> Result<()> {
    let folder = File::open(path).map_err(StoreError::io("open folder", path))?;
    folder.sync_all().map_err(StoreError::io("fsync folder", path))
}

/// Publishes the written file `temp` as `dest`, replacing what was there:
/// fsync, read-only, rename, fsync of the folder.
///
/// # Errors
/// [`StoreError::Io`]; `temp` is then removed, `dest` is as it was.
pub fn publish_file(file: &File, temp: &Path, dest: &Path) -> Result<()> {
    let parent = parent_of(dest)?;
    let published = (|| {
        file.sync_all().map_err(StoreError::io("fsync", temp))?;
        set_mode(file, temp, 0o444)?;
        rename_into(temp, dest, parent)
    })();
    if published.is_err() {
        // The error at hand says more than one of this removal would.
        let _ = fs::remove_file(temp);
    }
    published?;
    sync_dir(parent)?;
    // The entry's own folder may be new too; its name must survive as well.
    parent.parent().map_or(Ok(()), sync_dir)
}

/// Renames within the store and makes it durable.
///
/// # Errors
/// [`StoreError::Io`] naming the destination.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    let parent = parent_of(to)?;
    rename_into(from, to, parent)?;
    sync_dir(parent)
}

/// Renames out of sight. Not made durable: after a crash, what is there again
/// is as good as it was. Whether it was there.
///
/// # Errors
/// [`StoreError::Io`] naming the source.
pub(crate) fn take_away(from: &Path, trash: &Path) -> Result<bool> {
    match fs::rename(from, unused_name(trash, "removed")) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound && trash.is_dir() => Ok(false),
        Err(error) => Err(StoreError::io("move to the trash", from)(error)),
    }
}

/// Renames to a folder that is made if need be. The collector removes folders
/// as soon as they are empty, so it may be gone again in between.
fn rename_into(from: &Path, to: &Path, parent: &Path) -> Result<()> {
    let mut tries = 0;
    loop {
        create_dirs(parent)?;
        match fs::rename(from, to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && tries < 20 && from.exists() => {
                tries += 1
            }
            result => return result.map_err(StoreError::io("rename into place", to)),
        }
    }
}

/// Makes every file and folder under `path` durable.
///
/// # Errors
/// [`StoreError::Io`] naming the file.
pub(crate) fn sync_tree(path: &Path) -> Result<()> {
    for entry in fs::read_dir(path).map_err(StoreError::io("list", path))? {
        let entry = entry.map_err(StoreError::io("list", path))?;
        let kind = entry.file_type().map_err(StoreError::io("examine", entry.path()))?;
        if kind.is_dir() {
            sync_tree(&entry.path())?;
        } else if kind.is_file() {
            let at = entry.path();
            open(&at)?.sync_all().map_err(StoreError::io("fsync", at))?;
        }
    }
    sync_dir(path)
}

/// Writes `bytes` to `dest` by way of a temporary file in `temp_dir`.
///
/// # Errors
/// [`StoreError::Io`]; `dest` is then as it was.
pub fn write_atomic(temp_dir: &Path, dest: &Path, bytes: &[u8]) -> Result<()> {
    let temp = unused_name(temp_dir, "file");
    let mut file = create_new(&temp)?;
    if let Err(error) = file.write_all(bytes) {
        let _ = fs::remove_file(&temp);
        return Err(StoreError::io("write", dest)(error));
    }
    publish_file(&file, &temp, dest)
}

/// A name in `dir` that nothing has.
pub fn unused_name(dir: &Path, stem: &str) -> PathBuf {
    use std::hash::{BuildHasher, Hasher};
    // RandomState is seeded by the system and differs for each call.
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    dir.join(format!("{stem}-{random:016x}"))
}

/// Writes `value` as sealed JSON. What a newer version wrote is never
/// replaced, whatever the writer thought it saw.
///
/// # Errors
/// [`StoreError::Io`]; [`StoreError::Newer`] when there is a file whose `schema`
/// is above the value's. `dest` is then as it was.
pub fn write_sealed<T: Serialize>(temp_dir: &Path, dest: &Path, value: &T) -> Result<()> {
    let text = seal(value, dest)?;
    let schema = serde_json::from_slice::<Schema>(&text).map_err(|e| damaged(dest, e.to_string()))?.schema;
    if let Err(newer @ StoreError::Newer { .. }) = read_sealed::<Value>(dest, schema) {
        return Err(newer);
    }
    if text.len() as u64 > MAX_JSON {
        return Err(damaged(dest, format!("it would be larger than the {MAX_JSON} bytes that are read")));
    }
    write_atomic(temp_dir, dest, &text)
}

/// Reads what [`write_sealed`] wrote. `None`: there is no such file.
///
/// # Errors
/// [`StoreError::Damaged`] when the seal or the shape is wrong,
/// [`StoreError::Newer`] when its `schema` is above `schema`.
pub fn read_sealed<T: DeserializeOwned>(path: &Path, schema: u64) -> Result<Option<T>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::io("open", path)(error)),
    };
    // Room for a receipt at once: two system calls, not seven.
    let mut text = Vec::with_capacity(4096);
    file.take(MAX_JSON + 1).read_to_end(&mut text).map_err(StoreError::io("read", path))?;
    unseal(&text, path, schema).map(Some)
}

/// Sealed JSON: an object whose field `seal` is the SHA-256 of the rest in
/// canonical form (keys sorted, no white space). `path` is for messages.
///
/// # Errors
/// [`StoreError::Damaged`] if the value is no JSON object.
pub fn seal<T: Serialize>(value: &T, path: &Path) -> Result<Vec<u8>> {
    let mut value = serde_json::to_value(value).map_err(|e| damaged(path, e.to_string()))?;
    let seal = Digest::of(value.to_string().as_bytes());
    let object = value.as_object_mut().ok_or_else(|| damaged(path, "not a JSON object".into()))?;
    object.insert("seal".into(), Value::String(seal.to_string()));
    let mut text = serde_json::to_vec_pretty(&value).map_err(|e| damaged(path, e.to_string()))?;
    text.push(b'\n');
    Ok(text)
}

/// Undoes [`seal`]; at most [`MAX_JSON`] bytes. `path` is for messages.
///
/// # Errors
/// [`StoreError::Damaged`] when the seal or the shape is wrong,
/// [`StoreError::Newer`] when its `schema` is above `schema`.
pub fn unseal<T: DeserializeOwned>(text: &[u8], path: &Path, schema: u64) -> Result<T> {
    let damaged = |problem: String| damaged(path, problem);
    if text.len() as u64 > MAX_JSON {
        return Err(damaged(format!("larger than {MAX_JSON} bytes")));
    }
    let mut value: Value = serde_json::from_slice(text).map_err(|e| damaged(e.to_string()))?;
    let object = value.as_object_mut().ok_or_else(|| damaged("not a JSON object".into()))?;
    let found = object.get("schema").and_then(Value::as_u64).unwrap_or(0);
    if found > schema {
        return Err(StoreError::Newer { path: path.to_owned(), found, known: schema });
    }
    let seal = object.remove("seal");
    let expected = Digest::of(value.to_string().as_bytes()).to_string();
    if seal.as_ref().and_then(Value::as_str) != Some(&expected) {
        return Err(damaged("its seal does not fit its contents".into()));
    }
    serde_json::from_value(value).map_err(|e| damaged(e.to_string()))
}

#[derive(Deserialize)]
struct Schema {
    #[serde(default)]
    schema: u64,
}

fn damaged(path: &Path, problem: String) -> StoreError {
    StoreError::Damaged { path: path.to_owned(), problem }
}

/// A file without a name (open(2), `O_TMPFILE`), of which nothing is left if
/// this process is killed. `None` where there is no such thing.
#[cfg(target_os = "linux")]
fn create_nameless(dir: &Path) -> Option<File> {
    use std::os::unix::fs::OpenOptionsExt;
    // It gets its name by way of this folder.
    fs::metadata("/proc/self/fd").ok()?;
    let flags = i32::try_from(rustix::fs::OFlags::TMPFILE.bits()).ok()?;
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(dir).ok()
}

#[cfg(target_os = "linux")]
fn name_it(file: &File, path: &Path) -> io::Result<()> {
    use rustix::fs::{AtFlags, CWD};
    use std::os::fd::AsRawFd;
    let from = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::linkat(CWD, from, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
}

#[cfg(not(target_os = "linux"))]
fn create_nameless(_: &Path) -> Option<File> {
    None
}

#[cfg(not(target_os = "linux"))]
fn name_it(_: &File, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Writes a file for a person, outside the store: `write` fills a new file
/// beside `dest`, which then gets its name, mode 0644. A link stays a link. A
/// device or a pipe is written to as it is.
///
/// # Errors
/// [`StoreError::Io`], and whatever `write` yields; `dest` is then as it was,
/// and nothing is left beside it.
pub fn write_outside<T, E: From<StoreError>>(
    dest: &Path,
    write: impl FnOnce(&File) -> Result<T, E>,
) -> Result<T, E> {
    let dest = fs::canonicalize(dest)
        .or_else(|_| std::path::absolute(dest))
        .map_err(StoreError::io("find", dest))?;
    if fs::metadata(&dest).is_ok_and(|metadata| !metadata.is_file()) {
        let opened = OpenOptions::new().write(true).open(&dest);
        return write(&opened.map_err(StoreError::io("open", &dest))?);
    }
    let parent = parent_of(&dest)?;
    let temp = unused_name(parent, ".smolcellar");
    let (file, nameless) = match create_nameless(parent) {
        Some(file) => (file, true),
        None => (create_new(&temp)?, false),
    };
    let written = write(&file).and_then(|value| {
        file.sync_all().map_err(StoreError::io("fsync", &dest))?;
        set_mode(&file, &temp, 0o644)?;
        if nameless {
            name_it(&file, &temp).map_err(StoreError::io("name", &temp))?;
        }
        fs::rename(&temp, &dest).map_err(StoreError::io("rename into place", &dest))?;
        Ok(value)
    });
    if written.is_err() {
        // The error at hand says more than one of this removal would.
        let _ = fs::remove_file(&temp);
    }
    let value = written?;
    sync_dir(parent)?;
    Ok(value)
}

/// Sets permission bits.
pub(crate) fn set_mode(file: &File, path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(fs::Permissions::from_mode(mode)).map_err(StoreError::io("set the mode of", path))
}

fn parent_of(path: &Path) -> Result<&Path> {
    path.parent().ok_or_else(|| {
        StoreError::io("write", path)(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the path has no parent folder",
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Sample {
        schema: u64,
        text: String,
        numbers: Vec<u64>,
    }

    fn sample() -> Sample {
        Sample { schema: 1, text: "päckchen".into(), numbers: vec![1, 2, 3] }
    }

    #[test]
    fn a_sealed_file_reads_back_and_leaves_no_temporary_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b.json");
        write_sealed(dir.path(), &path, &sample()).unwrap();
        assert_eq!(read_sealed::<Sample>(&path, 1).unwrap(), Some(sample()));
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["a"]);
    }

    #[test]
    fn every_flipped_byte_of_a_sealed_file_is_found_or_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b.json");
        write_sealed(dir.path(), &path, &sample()).unwrap();
        let good = fs::read(&path).unwrap();
        let other = dir.path().join("c.json");
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                let _ = fs::remove_file(&other);
                fs::write(&other, &bad).unwrap();
                if let Ok(read) = read_sealed::<Sample>(&other, 1) {
                    // White space outside strings carries no meaning.
                    assert_eq!(read, Some(sample()), "byte {at} bit {bit}");
                }
            }
        }
    }

    #[test]
    fn what_a_newer_version_wrote_is_never_replaced_and_damage_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b.json");
        let newer = Sample { schema: 2, ..sample() };
        write_sealed(dir.path(), &path, &newer).unwrap();
        let refused = write_sealed(dir.path(), &path, &sample()).unwrap_err();
        assert!(matches!(refused, StoreError::Newer { found: 2, known: 1, .. }), "{refused}");
        assert_eq!(read_sealed::<Sample>(&path, 2).unwrap(), Some(newer));
        write_atomic(dir.path(), &path, b"{").unwrap();
        write_sealed(dir.path(), &path, &sample()).unwrap();
        assert_eq!(read_sealed::<Sample>(&path, 1).unwrap(), Some(sample()));
    }

    #[test]
    fn a_newer_schema_is_refused_by_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b.json");
        write_sealed(dir.path(), &path, &Sample { schema: 7, ..sample() }).unwrap();
        let error = read_sealed::<Sample>(&path, 1).unwrap_err();
        assert!(matches!(error, StoreError::Newer { found: 7, known: 1, .. }), "{error}");
    }

    #[test]
    fn a_missing_file_is_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read_sealed::<Sample>(&dir.path().join("none"), 1).unwrap(), None);
    }

    #[test]
    fn a_file_for_a_person_is_whole_or_as_it_was_and_nothing_is_left_beside_it() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (dest, link) = (dir.path().join("out"), dir.path().join("link"));
        let fill = |text: &'static [u8], fail: bool| {
            move |mut file: &File| {
                file.write_all(text).map_err(StoreError::io("write", "x"))?;
                if fail { Err(damaged(Path::new("x"), "on purpose".into())) } else { Ok(()) }
            }
        };
        write_outside(&dest, fill(b"one", true)).unwrap_err();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        // What a kill in the middle would leave.
        let left = |_: &File| Ok::<_, StoreError>(fs::read_dir(dir.path()).unwrap().count());
        let nameless = create_nameless(dir.path()).is_some();
        assert_eq!(write_outside(&dest, left).unwrap(), usize::from(!nameless));
        write_outside(&dest, fill(b"one", false)).unwrap();
        assert_eq!(fs::metadata(&dest).unwrap().permissions().mode() & 0o777, 0o644);
        std::os::unix::fs::symlink("out", &link).unwrap();
        write_outside(&link, fill(b"two", true)).unwrap_err();
        assert_eq!(fs::read(&dest).unwrap(), b"one");
        write_outside(&link, fill(b"two", false)).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(
            (fs::read(&dest).unwrap(), fs::read_dir(dir.path()).unwrap().count()),
            (b"two".to_vec(), 2)
        );
        write_outside(Path::new("/dev/null"), fill(b"two", false)).unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }
}
