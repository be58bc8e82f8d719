//! File locks: the only module that takes any.
//!
//! Lock files live in `locks/` and are never unlinked: a lock on an unlinked
//! file excludes nobody. The order is
//!
//! 1. `build-<image>`: one process takes an image in
//! 2. `build-<image>-<recipe>`: one process packs it
//! 3. `use-<image>-<recipe>`: shared by everyone who reads the artifact
//!
//! and a process waits only for locks later in this order than those it has,
//! so there is no cycle to deadlock in. There are no upgrades from shared to
//! exclusive: with `flock` a failed upgrade drops the shared lock.
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
        let mut words =
            std::env::args_os().map(|word| word.to_string_lossy().chars().take(60).collect::<String>());
        let program = words.next().unwrap_or_default();
        let program =
            Path::new(&program).file_name().map_or(program.clone(), |n| n.to_string_lossy().into_owned());
        // Words after `--` belong to a guest and may be long; the command is enough.
        let rest: Vec<_> = words.take_while(|word| word != "--").take(4).collect();
        let command = std::iter::once(program).chain(rest).collect::<Vec<_>>().join(" ");
        Self { pid: std::process::id(), command, since: now() }
    }

    fn describe(&self) -> String {
        let age = now().saturating_sub(self.since);
        let age = if age < 60 { format!("{age}s") } else { format!("{}m{:02}s", age / 60, age % 60) };
        format!("pid {} ({}, {age})", self.pid, self.command)
    }
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

/// Waits for a shared lock on `path`.
pub(crate) fn share(
    path: &Path,
    key: &str,
    limit: Option<Duration>,
    reporter: &dyn Reporter,
) -> Result<UseLock> {
    acquire(path, key, Mode::Shared, limit, reporter).map(|file| UseLock { _held: Held(file) })
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
    let open = StoreError::io("open the lock", path);
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(open)?;
    let began = Instant::now();
    let mut say_at = SAY_AFTER;
    let mut tries = 0;
    while !try_once(&file, mode).map_err(StoreError::io("lock", path))? {
        tries += 1;
        let waited = began.elapsed();
        if limit.is_some_and(|limit| waited >= limit) {
            let holder = holder_of(&mut file);
            return Err(StoreError::LockTimeout { key: key.to_owned(), holder, waited });
        }
        if reporter.gives_up() {
            return Err(StoreError::GaveUp { key: key.to_owned() });
        }
        if waited >= say_at {
            reporter.report(Event::Waiting { key, holder: &holder_of(&mut file) });
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

fn holder_of(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.seek(SeekFrom::Start(0)).and_then(|_| file.take(4096).read_to_string(&mut text));
    match read.ok().and_then(|_| serde_json::from_str::<Holder>(&text).ok()) {
        Some(holder) => holder.describe(),
        None => "another process".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Quiet;
    use std::sync::Mutex;

    struct Heard(Mutex<Vec<String>>);
    impl Reporter for Heard {
        fn report(&self, event: Event<'_>) {
            if let Event::Waiting { key, holder } = event {
                self.0.lock().unwrap().push(format!("{key} held by {holder}"));
            }
        }
    }

    const SHORT: Option<Duration> = Some(Duration::from_millis(80));

    #[test]
    fn exclusive_excludes_exclusive_and_shared_and_is_free_after_drop() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("build-x");
        let held = build(&path, "x", None, &Quiet).unwrap();
        assert!(matches!(build(&path, "x", SHORT, &Quiet), Err(StoreError::LockTimeout { .. })));
        assert!(matches!(share(&path, "x", SHORT, &Quiet), Err(StoreError::LockTimeout { .. })));
        drop(held);
        drop(build(&path, "x", SHORT, &Quiet).unwrap());
        assert!(path.exists(), "lock files are never unlinked");
    }

    #[test]
    fn shared_admits_shared_and_excludes_exclusive() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("use-x");
        let one = share(&path, "x", None, &Quiet).unwrap();
        let two = share(&path, "x", SHORT, &Quiet).unwrap();
        assert!(build(&path, "x", SHORT, &Quiet).is_err());
        drop((one, two));
        assert!(build(&path, "x", SHORT, &Quiet).is_ok());
    }

    #[test]
    fn a_waiter_is_told_for_whom_it_waits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("build-x");
        let _held = build(&path, "x", None, &Quiet).unwrap();
        let heard = Heard(Mutex::new(Vec::new()));
        let error = build(&path, "x", Some(Duration::from_millis(2300)), &heard).unwrap_err();
        let mine = format!("pid {} (", std::process::id());
        assert!(error.to_string().contains(&mine), "{error}");
        let heard = heard.0.into_inner().unwrap();
        assert_eq!(heard.len(), 1);
        assert!(heard[0].starts_with(&format!("x held by {mine}")), "{heard:?}");
    }
}
