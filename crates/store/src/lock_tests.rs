//! Who waits for whom, and for how long.

use std::any::Any;
use std::io::BufRead;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::*;
use crate::report::Quiet;
use crate::root::Store;

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

#[test]
#[cfg(target_os = "linux")]
fn a_child_that_inherited_the_lock_is_named_with_whom_it_is_from() {
    use std::os::fd::AsFd;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("build-x");
    let mut held = build(&path, "x", None, &Quiet).unwrap();
    // The child gets the open file as its standard input, and with it the lock.
    let file = held._held.0.as_fd().try_clone_to_owned().unwrap();
    let mut child = Command::new("sleep").arg("60").stdin(file).spawn().unwrap();
    // As when its owner is killed: a close, but no unlock.
    drop(std::mem::replace(&mut held._held.0, File::open("/dev/null").unwrap()));
    let error = build(&path, "x", SHORT, &Quiet).unwrap_err().to_string();
    child.kill().unwrap();
    child.wait().unwrap();
    let expected = format!("pid {} (sleep 60), left by pid {} (", child.id(), std::process::id());
    assert!(error.contains(&expected), "{error}");
    assert!(!is_held_at(&path));
}

/// What can be had, each with its letter in [`TABLE`].
#[derive(Debug, Clone, Copy, PartialEq)]
enum Had {
    Build,
    Use,
    Load,
    Publish,
    Gc,
    /// What the collector has of an entry while it removes it.
    Entry,
    /// What it has while blobs go that no receipt names.
    Orphans,
}

const ALL: [Had; 7] = [Had::Build, Had::Use, Had::Load, Had::Publish, Had::Gc, Had::Entry, Had::Orphans];

/// Row: what another has. Column: who comes; in the order of [`ALL`], on the
/// same key. `w`: waits; `l`: leaves it; `.`: goes on.
const TABLE: [&str; 7] = [
    "w....l.", //
    ".....l.", //
    "..w....", //
    "......l", //
    "....w..", //
    "ww...l.", //
    "...w..l",
];

/// Those that are about the whole store, whatever the key.
const KEYLESS: [Had; 3] = [Had::Publish, Had::Gc, Had::Orphans];

fn store(dir: &Path) -> Store {
    Store::open(&dir.join("c"), crate::OpenOptions { lock_timeout: SHORT, ..Default::default() }).unwrap()
}

/// Takes it, or says as [`TABLE`] does why not.
fn take(store: &Store, what: Had, key: &str) -> Result<Box<dyn Any>, char> {
    fn waited<T: Any>(result: Result<T>) -> Result<Box<dyn Any>, char> {
        match result {
            Ok(held) => Ok(Box::new(held)),
            Err(StoreError::LockTimeout { .. }) => Err('w'),
            Err(error) => panic!("{error}"),
        }
    }
    let try_to = |kind: &str, key: &str| try_exclude(&store.lock_path(kind, key)).unwrap().ok_or('l');
    match what {
        Had::Build => waited(store.lock_build(key, &Quiet)),
        Had::Use => waited(store.lock_use(key, &Quiet)),
        Had::Load => waited(store.lock_load(key, &Quiet)),
        Had::Publish => waited(store.publishing(&Quiet)),
        Had::Gc => waited(exclude(&store.lock_path("gc", ""), "gc", SHORT, &Quiet)),
        Had::Entry => Ok(Box::new((try_to("build", key)?, try_to("use", key)?))),
        Had::Orphans => Ok(Box::new(try_to("blobs", "")?)),
    }
}

fn assert_row(store: &Store, held: Had, who: &str) {
    for (index, comes) in ALL.into_iter().enumerate() {
        let row = ALL.iter().position(|had| *had == held).unwrap();
        let expected = char::from(TABLE[row].as_bytes()[index]);
        let keyless = KEYLESS.contains(&held) && KEYLESS.contains(&comes);
        for (key, expected) in [("k", expected), ("other", if keyless { expected } else { '.' })] {
            let found = take(store, comes, key).err().unwrap_or('.');
            assert_eq!(found, expected, "{who} has {held:?} of k, and {comes:?} of {key} comes");
        }
    }
}

#[test]
fn every_pair_of_locks_goes_together_as_the_table_says() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    for held in ALL {
        let had = take(&store, held, "k").unwrap();
        assert_row(&store, held, "a thread");
        drop(had);
        // Nothing of it is left.
        ALL.into_iter().for_each(|comes| drop(take(&store, comes, "k").unwrap()));
    }
}

/// Another process that has a lock until it is told to end.
struct Other(Child);

impl Other {
    fn having(what: Had, dir: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "lock::tests::has_a_lock_for_another_test"]);
        command.env("SMOLCELLAR_TEST_HAS", format!("{what:?}")).env("SMOLCELLAR_TEST_DIR", dir);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let said = io::BufReader::new(child.stderr.take().unwrap()).lines().next();
        assert!(matches!(&said, Some(Ok(line)) if line == "held"), "{said:?}");
        Self(child)
    }

    /// Kills it, which nobody can prepare for.
    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// The other process of the tests that need one: it is this very test, told
/// by variables what to have. Without them it has nothing to do.
#[test]
fn has_a_lock_for_another_test() {
    let (Ok(what), Ok(dir)) = (std::env::var("SMOLCELLAR_TEST_HAS"), std::env::var("SMOLCELLAR_TEST_DIR"))
    else {
        return;
    };
    let what = ALL.into_iter().find(|had| format!("{had:?}") == what).unwrap();
    let _held = take(&store(Path::new(&dir)), what, "k").unwrap();
    io::stderr().write_all(b"held\n").unwrap();
    let _ = io::stdin().read_to_end(&mut Vec::new());
}

#[test]
fn between_processes_too_and_a_kill_lets_go_of_each() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    for held in ALL {
        let other = Other::having(held, dir.path());
        assert_row(&store, held, "another process");
        other.kill();
        ALL.into_iter().for_each(|comes| drop(take(&store, comes, "k").unwrap()));
    }
}

#[test]
#[cfg(target_os = "linux")]
fn who_gives_up_names_the_process_it_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    // One that signs the lock, and one that does not.
    for held in [Had::Build, Had::Publish] {
        let other = Other::having(held, dir.path());
        let path = store.lock_path(if held == Had::Build { "build-k" } else { "blobs" }, "");
        let error = build(&path, "the key", SHORT, &Quiet).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, StoreError::LockTimeout { .. }), "{text}");
        for part in ["the key", "--lock-timeout", &format!("pid {} (", other.0.id())] {
            assert!(text.contains(part), "{text}");
        }
        other.kill();
    }
}

/// Counts the questions since a moment.
#[derive(Default)]
struct Asked {
    gives_up: AtomicBool,
    moment: AtomicBool,
    before: AtomicU32,
    after: AtomicU32,
}

impl Reporter for Asked {
    fn report(&self, _: Event<'_>) {}
    fn gives_up(&self) -> bool {
        let count = if self.moment.load(Ordering::SeqCst) { &self.after } else { &self.before };
        count.fetch_add(1, Ordering::SeqCst);
        self.gives_up.load(Ordering::SeqCst)
    }
}

/// Waits until the waiter is in its long pauses.
fn until_it_waits(asked: &Asked) {
    while asked.before.load(Ordering::SeqCst) <= QUICK_TRIES {
        std::thread::yield_now();
    }
}

#[test]
fn an_interrupted_waiter_asks_no_second_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("build-x");
    let held = build(&path, "x", None, &Quiet).unwrap();
    for mode in [Mode::Exclusive, Mode::Shared] {
        let asked = Asked::default();
        let error = std::thread::scope(|scope| {
            let waiter = scope.spawn(|| acquire(&path, "x", mode, None, &asked));
            until_it_waits(&asked);
            asked.gives_up.store(true, Ordering::SeqCst);
            asked.moment.store(true, Ordering::SeqCst);
            waiter.join().unwrap().unwrap_err()
        });
        assert!(matches!(&error, StoreError::GaveUp { key } if key == "x"), "{error}");
        assert!(asked.after.into_inner() <= 1, "{mode:?}");
    }
    drop(held);
}

#[test]
fn a_waiter_has_the_lock_at_its_next_try_after_it_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("build-x");
    for mode in [Mode::Exclusive, Mode::Shared] {
        let held = build(&path, "x", None, &Quiet).unwrap();
        let asked = Asked::default();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| acquire(&path, "x", mode, None, &asked));
            until_it_waits(&asked);
            drop(held);
            asked.moment.store(true, Ordering::SeqCst);
            release(&waiter.join().unwrap().unwrap());
        });
        // The one that it was about to ask when the lock was let go.
        assert!(asked.after.into_inner() <= 1, "{mode:?}");
    }
}
