//! File locks: the only module that takes any.
//!
//! Lock files live in `locks/` and are never unlinked: a lock on an unlinked
//! file excludes nobody. The order is
//!
//! 1. `gc`: one process collects
//! 2. `build-seen-<digest>`: one process builds what is new; then `build-<image>`: one
//!    process takes an image in
//! 3. `build-<image>-<recipe>`: one process packs it;
//!    `build-registry-<repository>`: one changes what was pushed there
//! 4. `use-<image>-<recipe>`, `use-<image>`: shared by everyone who reads the
//!    artifact, or the image's blobs; exclusive while they are collected
//! 5. `load-<image>-<recipe>`: one process loads it into an engine
//! 6. `blobs`: shared from the first blob that is published until there is the
//!    receipt that names it; exclusive while blobs without a receipt are collected
//!
//! and a process waits only for locks later in this order than those it has,
//! so there is no cycle to deadlock in. There are no upgrades from shared to
//! exclusive: with `flock` a failed upgrade drops the shared lock.
//!
//! |                | another builds | another reads | another publishes blobs | another collects |
//! |----------------|----------------|---------------|-------------------------|------------------|
//! | build (key)    | waits          | goes on       | goes on                 | waits (one entry at a time) |
//! | use (key)      | goes on        | goes on       | goes on                 | waits (one entry at a time) |
//! | publish blobs  | goes on        | goes on       | goes on                 | waits (while orphans go) |
//! | collect (key)  | leaves it      | leaves it     | leaves blobs            | waits, or gives up at once |
//!
//! A collector never waits for a key: it leaves what is busy. Each lock has a
//! type, and what needs one asks for it: only [`crate::Collector`], which has
//! `gc`, deletes entries; only [`Publishing`] publishes blobs and receipts that
//! name them; only [`BuildLock`] moves an artifact to quarantine.
//!
//! Waiting is by polling, so that a time limit works and a signal ends it. A
//! lock counts as busy only after 20 tries in 40 ms: between `fork` and `exec`
//! a child of another thread holds every lock of this process for a moment.
//! Each exclusive holder writes who it is into the file it locked; that text
//! is for people and decides nothing.
#![expect(clippy::disallowed_methods, reason = "this module owns file locks")]

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::error::{Result, StoreError};
use crate::report::{Event, Reporter};

const QUICK_TRIES: u32 = 20;
const QUICK_PAUSE: Duration = Duration::from_millis(2);
const SLOW_PAUSE: Duration = Duration::from_millis(25);
const SAY_AFTER: Duration = Duration::from_secs(2);
const SAY_AGAIN: Duration = Duration::from_secs(30);

/// Who holds a lock, as written into it by its holder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Process ID.
    pub pid: u32,
    /// The holder's command line, shortened.
    pub command: String,
    /// When it took the lock: seconds since 1970. For people only.
    pub since: u64,
}

impl Holder {
    pub(crate) fn me() -> Self {
        let words: Vec<_> = std::env::args_os().collect();
        let command = short_command(words.iter().map(|word| word.to_string_lossy()));
        Self { pid: std::process::id(), command, since: now() }
    }

    fn describe(&self) -> String {
        let age = now().saturating_sub(self.since);
        let age = if age < 60 { format!("{age}s") } else { format!("{}m{:02}s", age / 60, age % 60) };
        format!("pid {} ({}, {age})", self.pid, self.command)
    }
}

/// A command line as a person would say it.
fn short_command<'a>(words: impl Iterator<Item = std::borrow::Cow<'a, str>>) -> String {
    let mut words =
        words.filter(|word| !word.is_empty()).map(|word| word.chars().take(60).collect::<String>());
    let program = words.next().unwrap_or_default();
    let program =
        Path::new(&program).file_name().map_or(program.clone(), |n| n.to_string_lossy().into_owned());
    // Words after `--` belong to a guest and may be long; the command is enough.
    let rest: Vec<_> = words.take_while(|word| word != "--").take(4).collect();
    std::iter::once(program).chain(rest).collect::<Vec<_>>().join(" ")
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Shared,
    Exclusive,
}

/// The right to build one key: exclusive among all processes.
#[derive(Debug)]
#[must_use = "the lock is released when this is dropped"]
pub struct BuildLock {
    _held: Held,
}

/// The right to read one key: shared, and what gc respects.
#[derive(Debug)]
#[must_use = "the lock is released when this is dropped"]
pub struct UseLock {
    /// `None` in a store that cannot be written, where nothing can be collected.
    _held: Option<Held>,
}

/// The right to publish blobs: until it is dropped, blobs that no receipt names
/// yet are not collected.
#[derive(Debug)]
#[must_use = "the lock is released when this is dropped"]
pub struct Publishing {
    _held: Held,
}

/// An exclusive lock of the collector's.
#[derive(Debug)]
#[must_use = "the lock is released when this is dropped"]
pub(crate) struct Exclusive {
    _held: Held,
}

#[derive(Debug)]
struct Held(File);

impl Drop for Held {
    fn drop(&mut self) {
        // Explicitly: a child between fork and exec may still share the
        // descriptor, and closing ours would then not release the lock.
        release(&self.0);
    }
}

/// Waits for an exclusive lock on `path`.
pub(crate) fn build(
    path: &Path,
    key: &str,
    limit: Option<Duration>,
    reporter: &dyn Reporter,
) -> Result<BuildLock> {
    acquire(path, key, Mode::Exclusive, limit, reporter).map(|file| BuildLock { _held: Held(file) })
}

/// Takes an exclusive lock on `path` if nobody has it.
pub(crate) fn try_build(path: &Path) -> Result<Option<BuildLock>> {
    let mut file = open(path, Mode::Exclusive)?;
    let taken = try_exclusive(&file).map_err(StoreError::io("lock", path))?;
    if taken {
        // As in `acquire`.
        let _ = sign(&mut file);
    }
    Ok(taken.then(|| BuildLock { _held: Held(file) }))
}

/// Waits for a shared lock on `path`.
pub(crate) fn share(
    path: &Path,
    key: &str,
    limit: Option<Duration>,
    reporter: &dyn Reporter,
) -> Result<UseLock> {
    match acquire(path, key, Mode::Shared, limit, reporter) {
        Ok(file) => Ok(UseLock { _held: Some(Held(file)) }),
        Err(StoreError::Io { source, .. }) if is_unwritable(&source) => Ok(UseLock { _held: None }),
        Err(error) => Err(error),
    }
}

/// Waits for the right to publish blobs.
pub(crate) fn publish(path: &Path, limit: Option<Duration>, reporter: &dyn Reporter) -> Result<Publishing> {
    acquire(path, "blobs", Mode::Shared, limit, reporter).map(|file| Publishing { _held: Held(file) })
}

/// Waits for an exclusive lock on `path`, for the collector.
pub(crate) fn exclude(
    path: &Path,
    key: &str,
    limit: Option<Duration>,
    reporter: &dyn Reporter,
) -> Result<Exclusive> {
    acquire(path, key, Mode::Exclusive, limit, reporter).map(|file| Exclusive { _held: Held(file) })
}

/// Takes an exclusive lock on `path` if nobody has it. Not signed: it is held
/// for a moment, and a name that stays there would be taken for a later holder's.
pub(crate) fn try_exclude(path: &Path) -> Result<Option<Exclusive>> {
    let file = open(path, Mode::Exclusive)?;
    let taken = try_exclusive(&file).map_err(StoreError::io("lock", path))?;
    Ok(taken.then(|| Exclusive { _held: Held(file) }))
}

/// Whether anybody has any lock on the file at `path`. It may look so for a
/// moment: see above. Waits for nothing and has nothing when it returns.
pub(crate) fn is_held_at(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| is_held(&file))
}

fn is_held(file: &File) -> bool {
    match try_once(file, Mode::Exclusive) {
        Ok(true) => {
            release(file);
            false
        }
        _ => true,
    }
}

fn is_unwritable(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied)
}

/// Exclusive locks want a file that is open for writing on some file systems.
fn open(path: &Path, mode: Mode) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let opened = match options.open(path) {
        // Deleted by hand, with nothing running.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            path.parent().map_or(Ok(()), crate::fsio::create_dirs)?;
            options.open(path)
        }
        // Somebody else may still be able to write.
        Err(error) if mode == Mode::Shared && is_unwritable(&error) => File::open(path).map_err(|_| error),
        opened => opened,
    };
    opened.map_err(StoreError::io("open the lock", path))
}

/// Lets go of a lock taken with [`try_exclusive`].
pub(crate) fn release(file: &File) {
    // Fails only on a descriptor that has no lock to lose.
    let _ = fs2::FileExt::unlock(file);
}

/// Takes an exclusive lock on an open file if nobody has it.
pub(crate) fn try_exclusive(file: &File) -> io::Result<bool> {
    for attempt in 0..QUICK_TRIES {
        if try_once(file, Mode::Exclusive)? {
            return Ok(true);
        }
        if attempt + 1 < QUICK_TRIES {
            std::thread::sleep(QUICK_PAUSE);
        }
    }
    Ok(false)
}

/// Whether somebody has a lock on the file at `path` right now. Takes part in no
/// order: it waits for nothing and has nothing when it returns.
pub(crate) fn is_locked(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    // Shared: two who look at the same time do not see each other.
    match try_once(&file, Mode::Shared) {
        Ok(true) => {
            release(&file);
            // Replaced meanwhile, by the one who has it.
            !crate::session::same_file(&file, path)
        }
        _ => true,
    }
}

fn acquire(
    path: &Path,
    key: &str,
    mode: Mode,
    limit: Option<Duration>,
    reporter: &dyn Reporter,
) -> Result<File> {
    let mut file = open(path, mode)?;
    let began = Instant::now();
    let mut say_at = SAY_AFTER;
    let mut tries = 0;
    while !try_once(&file, mode).map_err(StoreError::io("lock", path))? {
        tries += 1;
        let waited = began.elapsed();
        if limit.is_some_and(|limit| waited >= limit) {
            let holder = holder_of(&mut file, path);
            return Err(StoreError::LockTimeout { key: key.to_owned(), holder, waited });
        }
        if reporter.gives_up() {
            return Err(StoreError::GaveUp { key: key.to_owned() });
        }
        if waited >= say_at {
            reporter.report(Event::Waiting { key, holder: &holder_of(&mut file, path) });
            say_at = waited + SAY_AGAIN;
        }
        std::thread::sleep(if tries < QUICK_TRIES { QUICK_PAUSE } else { SLOW_PAUSE });
    }
    if mode == Mode::Exclusive {
        // Who we are helps those who wait; a full disk must not stop us here.
        let _ = sign(&mut file);
    }
    Ok(file)
}

/// One try. `fs2`'s methods are called by their full path: since Rust 1.89
/// `File` has inherent methods of the same names with another error type.
fn try_once(file: &File, mode: Mode) -> io::Result<bool> {
    loop {
        let result = match mode {
            Mode::Shared => fs2::FileExt::try_lock_shared(file),
            Mode::Exclusive => fs2::FileExt::try_lock_exclusive(file),
        };
        match result {
            Ok(()) => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.raw_os_error() == fs2::lock_contended_error().raw_os_error() => {
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
    }
}

fn sign(file: &mut File) -> io::Result<()> {
    let text = serde_json::to_vec(&Holder::me())?;
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&text)
}

/// Who has the lock, for people. Those who share a lock do not sign it, and
/// one who signed may be gone while a child of his still has the lock: then
/// the processes that have it are named, where that can be seen.
fn holder_of(file: &mut File, path: &Path) -> String {
    let mut text = String::new();
    let read = file.seek(SeekFrom::Start(0)).and_then(|_| file.take(4096).read_to_string(&mut text));
    let signed = read.ok().and_then(|_| serde_json::from_str::<Holder>(&text).ok());
    let seen = holders(path);
    match (signed, seen.as_slice()) {
        (Some(holder), seen) if seen.is_empty() || seen.iter().any(|(pid, _)| *pid == holder.pid) => {
            holder.describe()
        }
        (None, []) => "another process".to_owned(),
        (signed, seen) => {
            let names: Vec<_> =
                seen.iter().take(3).map(|(pid, command)| format!("pid {pid} ({command})")).collect();
            let more = if seen.len() > 3 { format!(" and {} more", seen.len() - 3) } else { String::new() };
            let from = signed.map(|holder| format!(", left by {}", holder.describe())).unwrap_or_default();
            format!("{}{more}{from}", names.join(", "))
        }
    }
}

/// The other processes of this machine that have a lock on a file, as far as
/// they can be seen: on Linux, by `/proc/PID/fdinfo` (proc(5)). Those that only
/// wait have the file open too, but no lock.
fn holders(path: &Path) -> Vec<(u32, String)> {
    let me = std::process::id();
    let Ok(path) = std::fs::canonicalize(path) else { return Vec::new() };
    let has_lock = |process: &Path, fd: &std::fs::DirEntry| {
        let info = process.join("fdinfo").join(fd.file_name());
        std::fs::read_link(fd.path()).is_ok_and(|target| target == path)
            && std::fs::read_to_string(info).is_ok_and(|info| info.contains("\nlock:"))
    };
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let process = process.path();
        let mut files = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        if pid != me && files.any(|fd| has_lock(&process, &fd)) {
            let words = std::fs::read(process.join("cmdline")).unwrap_or_default();
            found.push((pid, short_command(words.split(|byte| *byte == 0).map(String::from_utf8_lossy))));
        }
    }
    found.sort();
    found
}

#[cfg(test)]
#[path = "lock_tests.rs"]
mod tests;
