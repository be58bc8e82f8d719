//! The remote cache on bad days: nothing wrong is believed, nothing takes
//! longer than its bounds, and the next try works.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use smolcellar_remote::{Breaker, Cache, CacheError, Options, Pull, Push};
use smolcellar_store::{Digest, Event, Lookup, Machine, MachineKey, Quiet, Reporter};
use smolcellar_tests::needs::have;
use smolcellar_tests::proxy::{Fault, Proxy};
use smolcellar_tests::registry::{Access, NEEDS, Registry, unused_address};
use smolcellar_tests::shelf::{Shelf, noise};

use crate::remote_cache::{assert_same, cache, cache_with, pull};

/// Points of one transfer that are tried.
const POINTS: u64 = 200;

fn hasty() -> Options {
    Options { retries: 1, ..Options::patient(Duration::from_millis(600)) }
}

/// A registry behind a proxy, with an artifact that shares frames with one at
/// hand.
struct Day {
    registry: Registry,
    _shelf: Shelf,
    proxy: Proxy,
    machine: Machine,
    before: Vec<(String, Vec<u8>)>,
}

impl Day {
    fn new() -> Self {
        let registry = Registry::start(Access::Plain);
        let proxy = Proxy::before(registry.address());
        let shelf = Shelf::new();
        let before = noise(11, 12, 200_000);
        let mut files = before.clone();
        files[2].1[9] ^= 1;
        files[9].1[99_999] ^= 1;
        let machine = shelf.machine("a", &files);
        cache(&registry.host()).push(&machine, &Quiet).unwrap();
        Self { registry, _shelf: shelf, proxy, machine, before }
    }

    fn key(&self) -> MachineKey {
        self.machine.receipt.key()
    }
}

/// Numbers that are the same in every run.
fn nth(seed: u64, below: u64) -> u64 {
    let digest = Digest::of(&seed.to_le_bytes());
    u64::from_le_bytes(digest.as_bytes()[..8].try_into().unwrap()) % below.max(1)
}

#[test]
fn wrong_bytes_and_cuts_at_200_points_are_never_believed_and_the_next_pull_works() {
    if !have(&NEEDS) {
        return;
    }
    let day = Day::new();
    let (mut refused, mut mended) = (0, 0);
    for point in 0..POINTS {
        let shelf = Shelf::new();
        // Every other pull has something at hand to copy from.
        if point % 2 == 0 {
            shelf.machine("puller", &day.before);
        }
        let at = nth(point, day.machine.receipt.size);
        let cache = cache_with(&day.proxy.host(), hasty());
        let (path, skip) = match point % 10 {
            0 | 1 => ("/manifests/", 0),
            _ => ("/blobs/", nth(point + 1000, 3) as usize),
        };
        let at = if path == "/manifests/" { at % 1500 } else { at % (1 << 18) };
        let fault = match point % 3 {
            0 => Fault::CutAnswer(at),
            1 => Fault::Flip(at),
            _ => Fault::Length(-(1 + at as i64 % 1000)),
        };
        day.proxy.fault("GET", path, skip, 1, fault.clone());
        match pull(&cache, &shelf, &day.key()) {
            Ok(Pull::Done(done)) => {
                assert_same(&done.machine, &day.machine);
                mended += 1;
            }
            Ok(Pull::Missing) => panic!("point {point}, {fault:?}: it is there"),
            Err(_) => {
                assert!(!shelf.has(&day.key()), "point {point}, {fault:?}");
                refused += 1;
            }
        }
        shelf.assert_sound();
        day.proxy.mend();
        match pull(&cache, &shelf, &day.key()) {
            Ok(Pull::Done(done)) => assert_same(&done.machine, &day.machine),
            other => panic!("point {point}, after {fault:?}: {other:?}"),
        }
        shelf.assert_sound();
    }
    // Faults that did nothing would prove nothing.
    assert!(refused > 20 && mended > 20, "{refused} refused, {mended} mended");
}

#[test]
fn a_registry_that_is_down_slow_or_refuses_costs_a_bounded_time_and_is_left_alone_then() {
    if !have(&NEEDS) {
        return;
    }
    let day = Day::new();
    let busy = Fault::with_header(429, "Retry-After", "3600");
    let faults = [
        ("stalled", Some(Fault::Stall)),
        ("failing", Some(Fault::status(500))),
        ("busy", Some(busy)),
        ("dribbling", Some(Fault::Dribble(Duration::from_millis(400)))),
        ("down", None),
    ];
    for (name, fault) in faults {
        let host = match fault {
            Some(fault) => {
                day.proxy.fault("*", "/v2/", 0, usize::MAX, fault);
                day.proxy.host()
            }
            None => unused_address().to_string(),
        };
        let cache = cache_with(&host, hasty());
        let (shelf, breaker) = (Shelf::new(), Breaker::new());
        let began = Instant::now();
        assert!(matches!(breaker.read(|| pull(&cache, &shelf, &day.key())), Some(Err(_))), "{name}");
        assert!(
            breaker.read(|| cache.image_of(&Digest::of(b"seen"), &Digest::of(b"recipe"))).is_none(),
            "{name}"
        );
        assert!(breaker.write(|| cache.push(&day.machine, &Quiet)).is_none(), "{name}");
        assert!(began.elapsed() < Duration::from_secs(3), "{name} took {:?}", began.elapsed());
        shelf.assert_sound();
        day.proxy.mend();
    }
}

#[test]
fn a_transfer_that_stops_in_the_middle_ends_within_its_bounds() {
    if !have(&NEEDS) {
        return;
    }
    let day = Day::new();
    let shelf = Shelf::new();
    let cache = cache_with(&day.proxy.host(), hasty());
    day.proxy.fault("GET", "/blobs/", 0, usize::MAX, Fault::StallAnswer(70_000));
    let began = Instant::now();
    assert!(matches!(pull(&cache, &shelf, &day.key()), Err(CacheError::Remote(_))));
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert!(!shelf.has(&day.key()));
    shelf.assert_sound();
    day.proxy.mend();
    assert!(matches!(pull(&cache, &shelf, &day.key()).unwrap(), Pull::Done(_)));
}

#[test]
fn a_full_registry_is_still_read_from() {
    if !have(&NEEDS) {
        return;
    }
    let day = Day::new();
    let shelf = Shelf::new();
    let other = shelf.machine("a", &noise(12, 3, 100_000));
    let cache = cache_with(&day.proxy.host(), hasty());
    let breaker = Breaker::new();
    for method in ["PUT", "PATCH"] {
        day.proxy.fault(method, "/blobs/", 0, usize::MAX, Fault::Refuse(507));
    }
    let began = Instant::now();
    let error = breaker.write(|| cache.push(&other, &Quiet)).unwrap().unwrap_err();
    assert!(error.to_string().contains("disk is full"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(breaker.reads() && !breaker.writes());
    assert!(matches!(breaker.read(|| pull(&cache, &shelf, &day.key())), Some(Ok(Pull::Done(_)))));
    assert!(matches!(pull(&cache, &shelf, &other.receipt.key()), Ok(Pull::Missing)));
    day.proxy.mend();
    assert!(cache_with(&day.proxy.host(), Cache::options()).push(&other, &Quiet).is_ok());
    shelf.assert_sound();
}

/// Somebody who loses patience after so many bytes.
struct Impatient {
    left: AtomicU64,
}

impl Reporter for Impatient {
    fn report(&self, event: Event<'_>) {
        if let Event::Advance { bytes, .. } = event {
            let _ = self.left.fetch_update(SeqCst, SeqCst, |left| Some(left.saturating_sub(bytes)));
        }
    }

    fn gives_up(&self) -> bool {
        self.left.load(SeqCst) == 0
    }
}

#[test]
fn who_gives_up_in_the_middle_leaves_nothing_behind() {
    if !have(&NEEDS) {
        return;
    }
    let day = Day::new();
    let shelf = Shelf::new();
    shelf.machine("puller", &day.before);
    let other = shelf.machine("a", &noise(13, 8, 1_000_000));
    let cache = cache(&day.proxy.host());
    for left in [1, 300_000, 1_500_000] {
        let impatient = Impatient { left: AtomicU64::new(left) };
        let key = day.key();
        let lock = shelf.store.lock_build(&key.lock_name(), &Quiet).unwrap();
        let result = cache.pull(&shelf.store, &key, Some("puller"), &lock, &impatient);
        assert!(matches!(result, Err(CacheError::GivenUp)), "{left}: {result:?}");
        drop(lock);
        assert!(!shelf.has(&key));
        let impatient = Impatient { left: AtomicU64::new(left) };
        let result = cache.push(&other, &impatient);
        assert!(matches!(result, Err(CacheError::GivenUp)), "{left}: {result:?}");
        assert!(matches!(pull(&cache, &shelf, &other.receipt.key()), Ok(Pull::Missing)));
        shelf.assert_sound();
    }
    assert!(matches!(pull(&cache, &shelf, &day.key()), Ok(Pull::Done(_))));
}

#[test]
fn a_blob_that_the_registry_lost_is_one_bad_entry_and_the_next_push_brings_it_back() {
    if !have(&NEEDS) {
        return;
    }
    let day = Day::new();
    let shelf = Shelf::new();
    std::fs::remove_file(day.registry.blob(&day.machine.receipt.sha256.hex())).unwrap();
    let cache = cache_with(&day.proxy.host(), hasty());
    let error = pull(&cache, &shelf, &day.key()).unwrap_err();
    assert!(error.is_of_one_entry(), "{error}");
    assert!(matches!(cache.push(&day.machine, &Quiet).unwrap(), Push::Done { .. }));
    assert!(matches!(pull(&cache, &shelf, &day.key()), Ok(Pull::Done(_))));
    shelf.assert_sound();
}

#[test]
fn several_who_want_the_same_artifact_pull_it_once() {
    if !have(&NEEDS) {
        return;
    }
    let day = Day::new();
    let shelf = Shelf::new();
    shelf.machine("puller", &day.before);
    let cache = cache(&day.proxy.host());
    let lookup_then_pull = || {
        let key = day.key();
        let lock = shelf.store.lock_build(&key.lock_name(), &Quiet).unwrap();
        if matches!(shelf.store.machine(&key, false).unwrap(), Lookup::Miss) {
            assert!(matches!(
                cache.pull(&shelf.store, &key, Some("puller"), &lock, &Quiet).unwrap(),
                Pull::Done(_)
            ));
        }
    };
    std::thread::scope(|scope| (0..8).for_each(|_| drop(scope.spawn(lookup_then_pull))));
    assert_eq!(day.proxy.count("GET", "/manifests/"), 1);
    assert!(shelf.has(&day.key()));
    shelf.assert_sound();
}
