//! Artifacts to a real registry and back, by key, by parts, and between us and
//! smolvm.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use smolcellar_oci::{Descriptor, ImageId, Registry as RegistryName, Repository, Selector, Tag, media};
use smolcellar_remote::artifact::{self, SMOLMACHINE};
use smolcellar_remote::{Cache, CacheError, Client, Options, Pull, Pulled, Push};
use smolcellar_store::{Digest, Machine, MachineKey, Quiet};
use smolcellar_tests::cellar::runtime;
use smolcellar_tests::needs::have;
use smolcellar_tests::proxy::{Fault, Proxy};
use smolcellar_tests::registry::{Access, NEEDS, Registry};
use smolcellar_tests::shelf::{Shelf, noise};
use smolcellar_transfer::{Status, What};

pub(crate) const REPOSITORY: &str = "team/cache";

pub(crate) fn client(host: &str, options: Options) -> Client {
    let repository = Repository::parse(REPOSITORY).unwrap();
    Client::new(&RegistryName::parse(host).unwrap(), &repository, options).unwrap()
}

pub(crate) fn cache(host: &str) -> Cache {
    cache_with(host, Cache::options())
}

pub(crate) fn cache_with(host: &str, options: Options) -> Cache {
    Cache::new(client(host, options))
}

/// Pulls as a build does: under the key's lock.
pub(crate) fn pull(cache: &Cache, shelf: &Shelf, key: &MachineKey) -> Result<Pull, CacheError> {
    let lock = shelf.store.lock_build(&key.lock_name(), &Quiet).unwrap();
    cache.pull(&shelf.store, key, Some("puller"), &lock, &Quiet)
}

fn pulled(cache: &Cache, shelf: &Shelf, key: &MachineKey) -> Pulled {
    match pull(cache, shelf, key).unwrap() {
        Pull::Done(pulled) => *pulled,
        Pull::Missing => panic!("{key} is not there"),
    }
}

pub(crate) fn assert_same(machine: &Machine, other: &Machine) {
    assert!(fs::read(&machine.path).unwrap() == fs::read(&other.path).unwrap());
    let (one, two) = (&machine.receipt, &other.receipt);
    assert_eq!(
        (one.key(), &one.inputs, one.size, one.sha256),
        (two.key(), &two.inputs, two.size, two.sha256)
    );
}

#[test]
fn an_artifact_goes_to_another_cache_by_its_key_byte_for_byte() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::start(Access::Plain);
    let cache = cache(&registry.host());
    let (one, two) = (Shelf::new(), Shelf::new());
    let machine = one.machine("a", &noise(1, 9, 1_500_000));
    let key = machine.receipt.key();
    assert!(matches!(pull(&cache, &two, &key).unwrap(), Pull::Missing));
    assert_eq!(cache.push(&machine, &Quiet).unwrap(), Push::Done { bytes: machine.receipt.size });
    assert_eq!(cache.push(&machine, &Quiet).unwrap(), Push::Present);
    let got = pulled(&cache, &two, &key);
    assert_same(&got.machine, &machine);
    assert_eq!(
        (got.status, got.fetched, got.reused, got.whole),
        (Status::Imported, machine.receipt.size, 0, true)
    );
    assert_eq!(got.machine.receipt.agent, "puller");
    assert_eq!(pulled(&cache, &two, &key).status, Status::Present);
    two.assert_sound();
}

#[test]
fn a_small_change_of_a_large_artifact_moves_few_bytes() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::start(Access::Plain);
    let proxy = Proxy::before(registry.address());
    let (one, two) = (Shelf::new(), Shelf::new());
    let mut files = noise(2, 24, 1_500_000);
    let before = one.machine("a", &files);
    files[11].1[700_000..700_400].fill(7);
    let after = one.machine("a", &files);
    let cache = cache(&registry.host());
    cache.push(&before, &Quiet).unwrap();
    cache.push(&after, &Quiet).unwrap();
    pulled(&cache, &two, &before.receipt.key());
    let got = pulled(&cache_with(&proxy.host(), Cache::options()), &two, &after.receipt.key());
    assert_same(&got.machine, &after);
    assert!(!got.whole && got.fetched + got.reused == after.receipt.size, "{got:?}");
    assert!(got.fetched < 2_500_000, "{got:?}");
    // What the network saw, and not what we say of it.
    assert!(proxy.down() < got.fetched + 20_000, "{} bytes came", proxy.down());
    two.assert_sound();
}

#[test]
fn a_registry_that_cannot_send_parts_sends_the_whole() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::start(Access::Plain);
    let proxy = Proxy::before(registry.address());
    proxy.fault("GET", "/blobs/", 0, usize::MAX, Fault::WholeForRange);
    let (one, two) = (Shelf::new(), Shelf::new());
    let mut files = noise(3, 6, 1_500_000);
    let before = one.machine("a", &files);
    files[3].1[5] ^= 1;
    let after = one.machine("a", &files);
    let cache = cache(&proxy.host());
    for machine in [&before, &after] {
        cache.push(machine, &Quiet).unwrap();
        let got = pulled(&cache, &two, &machine.receipt.key());
        assert_same(&got.machine, machine);
        assert!(got.whole);
    }
    two.assert_sound();
}

#[test]
fn a_registry_that_stops_sending_parts_in_the_middle_sends_the_whole() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::start(Access::Plain);
    let proxy = Proxy::before(registry.address());
    let (one, two) = (Shelf::new(), Shelf::new());
    // Ranges of 8 MiB, after a first one of 1.
    let machine = one.machine("a", &noise(6, 20, 1_500_000));
    cache(&registry.host()).push(&machine, &Quiet).unwrap();
    proxy.fault("GET", "/blobs/", 1, usize::MAX, Fault::WholeForRange);
    let got = pulled(&cache(&proxy.host()), &two, &machine.receipt.key());
    assert_same(&got.machine, &machine);
    assert!(got.whole && proxy.count("GET", "/blobs/") > 2, "{:?}", proxy.seen());
    two.assert_sound();
}

#[test]
fn what_is_there_is_found_before_anybody_is_kept_waiting_and_pulled_then() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::start(Access::Plain);
    let cache = cache(&registry.host());
    let (one, two) = (Shelf::new(), Shelf::new());
    let machine = one.machine("a", &noise(7, 3, 100_000));
    let key = machine.receipt.key();
    assert_eq!(cache.look(&key).unwrap(), None);
    cache.push(&machine, &Quiet).unwrap();
    // Somebody else builds it meanwhile.
    let lock = two.store.lock_build(&key.lock_name(), &Quiet).unwrap();
    let found = cache.look(&key).unwrap().unwrap();
    assert_eq!((found.key(), found.size()), (key, machine.receipt.size));
    assert!(!two.has(&key));
    let got = cache.pull_found(&two.store, found, Some("puller"), &lock, &Quiet).unwrap();
    assert_same(&got.machine, &machine);
    assert_eq!(cache.find(&key.to_string()).unwrap(), key);
    two.assert_sound();
}

#[test]
fn an_artifact_at_hand_that_was_damaged_or_lies_costs_a_whole_pull_and_nothing_else() {
    use std::os::unix::fs::{FileExt, PermissionsExt};
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::start(Access::Plain);
    let cache = cache(&registry.host());
    let (one, two) = (Shelf::new(), Shelf::new());
    let mut files = noise(4, 8, 1_500_000);
    let before = two.machine("puller", &files);
    files[7].1[5] ^= 1;
    let after = one.machine("a", &files);
    cache.push(&after, &Quiet).unwrap();
    // Changed behind the seal's back: its size, times and inode are as they were.
    let metadata = fs::metadata(&before.path).unwrap();
    fs::set_permissions(&before.path, fs::Permissions::from_mode(0o644)).unwrap();
    let file = fs::File::options().write(true).open(&before.path).unwrap();
    file.write_all_at(b"#", before.receipt.size / 3).unwrap();
    file.set_times(fs::FileTimes::new().set_modified(metadata.modified().unwrap())).unwrap();
    fs::set_permissions(&before.path, metadata.permissions()).unwrap();
    let got = pulled(&cache, &two, &after.receipt.key());
    assert_same(&got.machine, &after);
    assert!(two.has(&after.receipt.key()) && !two.has(&before.receipt.key()));
}

fn smolvm(shelf: &Shelf, words: &[&str]) -> String {
    let output = Command::new(runtime().join("smolvm"))
        .args(words)
        .env("SMOLVM_LIB_DIR", runtime())
        .env("SMOLVM_DATA_DIR", shelf.path("smolvm"))
        .env("HOME", shelf.path("home"))
        .env_remove("XDG_CACHE_HOME")
        .env_remove("XDG_DATA_HOME")
        .output()
        .unwrap();
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "{words:?}: {said}");
    said
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn smolvm_pulls_what_we_pushed_and_we_pull_what_smolvm_pushed() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::start(Access::Plain);
    let cache = cache(&registry.host());
    let (one, two) = (Shelf::new(), Shelf::new());
    let machine = one.machine("a", &noise(5, 3, 1_500_000));
    let key = machine.receipt.key();
    cache.push(&machine, &Quiet).unwrap();
    let reference = format!("{}/{REPOSITORY}:{}", registry.host(), artifact::machine_tag(&key));
    let out = one.path("pulled.smolmachine");
    smolvm(&one, &["pack", "pull", &reference, "-o", text(&out)]);
    assert!(fs::read(&out).unwrap() == fs::read(&machine.path).unwrap());
    let inspected = smolvm(&one, &["pack", "inspect", &reference]);
    assert!(inspected.contains(&machine.receipt.image.to_string()), "{inspected}");

    let theirs = format!("{}/{REPOSITORY}:theirs", registry.host());
    smolvm(&one, &["pack", "push", "--file", text(&machine.path), &theirs]);
    let tag = Selector::Tag(Tag::parse("theirs").unwrap());
    let get = |image: Option<ImageId>| cache.pull_reference(&two.store, &tag, image, Some("x"), &Quiet);
    assert!(matches!(get(None), Err(CacheError::NeedsImage(_))));
    let imported = get(Some(ImageId(machine.receipt.image))).unwrap();
    let What::Machine { path, sha256, .. } = imported.what else { panic!("{imported:?}") };
    assert_eq!((imported.status, sha256), (Status::Imported, machine.receipt.sha256));
    assert!(fs::read(path).unwrap() == fs::read(&machine.path).unwrap());
    // By its tag, ours says all itself.
    let ours = Selector::Tag(artifact::machine_tag(&key));
    assert!(matches!(
        cache.pull_reference(&two.store, &ours, Some(ImageId(Digest::of(b"x"))), None, &Quiet),
        Err(CacheError::OtherImage(_))
    ));
    let imported = cache.pull_reference(&two.store, &ours, None, None, &Quiet).unwrap();
    assert!(
        matches!(imported.what, What::Machine { key: found, ref agent, .. } if found == key && agent == "a")
    );
    two.assert_sound();
}

#[test]
fn a_poisoned_tag_is_caught_and_a_push_mends_it() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::start(Access::Plain);
    let cache = cache(&registry.host());
    let raw = client(&registry.host(), Cache::options());
    let (one, two) = (Shelf::new(), Shelf::new());
    let machine = one.machine("a", &noise(6, 2, 300_000));
    let other = one.machine("a", &noise(7, 2, 300_000));
    let (key, other_key) = (machine.receipt.key(), other.receipt.key());
    cache.push(&machine, &Quiet).unwrap();
    cache.push(&other, &Quiet).unwrap();
    let tag = Selector::Tag(artifact::machine_tag(&key));
    let good = raw.manifest(&tag).unwrap().unwrap().bytes;
    let others = raw.manifest(&Selector::Tag(artifact::machine_tag(&other_key))).unwrap().unwrap().bytes;
    let good_text = String::from_utf8(good.clone()).unwrap();
    // The other's file under this one's receipt, which was made to fit it.
    let fitted = good_text
        .replace(&machine.receipt.sha256.to_string(), &other.receipt.sha256.to_string())
        .replace(&machine.receipt.size.to_string(), &other.receipt.size.to_string());
    let swapped = {
        let mut manifest = smolcellar_oci::Manifest::parse(&good).unwrap();
        manifest.layers =
            Some(vec![Descriptor::named(SMOLMACHINE, other.receipt.sha256, other.receipt.size)]);
        manifest.to_bytes()
    };
    let poisons: [(&str, Vec<u8>); 5] = [
        ("another artifact", others),
        ("another layer", swapped),
        ("another file with a receipt that fits it", fitted.into_bytes()),
        ("a changed input", good_text.replace(r#"\"cpus\":1"#, r#"\"cpus\":2"#).into_bytes()),
        ("no receipt", good_text.replace("smolcellar.receipt.v1", "somebody.receipt.v1").into_bytes()),
    ];
    for (what, bytes) in poisons {
        assert!(bytes != good, "{what}");
        raw.put_manifest(&tag, media::MANIFEST, &bytes).unwrap();
        let error = pull(&cache, &two, &key).unwrap_err();
        assert!(error.is_of_one_entry(), "{what}: {error}");
        assert!(!two.has(&key), "{what}");
        two.assert_sound();
    }
    raw.put_manifest(&tag, media::MANIFEST, good_text.replace(r#"\"cpus\":1"#, r#"\"cpus\":2"#).as_bytes())
        .unwrap();
    assert!(matches!(cache.push(&machine, &Quiet).unwrap(), Push::Done { .. }), "an unsound tag is replaced");
    assert_same(&pulled(&cache, &two, &key).machine, &machine);
    two.assert_sound();
}

#[test]
fn pointers_tell_which_image_was_made_of_what() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::start(Access::Plain);
    let cache = cache(&registry.host());
    let (seen, other, recipe) = (Digest::of(b"seen"), Digest::of(b"other"), Digest::of(b"recipe"));
    let keys = ["one", "two"].map(|image| MachineKey { image: Digest::of(image.as_bytes()), recipe });
    let image = |seen: &Digest, recipe: &Digest| cache.image_of(seen, recipe);
    assert_eq!(image(&seen, &recipe).unwrap(), None);
    for key in [keys[0], keys[0], keys[1]] {
        cache.note_image(&seen, &key).unwrap();
        assert_eq!(image(&seen, &recipe).unwrap(), Some(ImageId(key.image)));
    }
    // Another recipe may be of another image.
    assert_eq!(image(&seen, &other).unwrap(), None);
    cache.note_image(&seen, &MachineKey { recipe: other, ..keys[0] }).unwrap();
    assert_eq!(image(&seen, &other).unwrap(), Some(ImageId(keys[0].image)));
    assert_eq!(image(&seen, &recipe).unwrap(), Some(ImageId(keys[1].image)));
    // One under another's name.
    let raw = client(&registry.host(), Cache::options());
    let bytes = artifact::pointer(&seen, &keys[0]).to_bytes();
    let tag = artifact::pointer_tag(&other, &recipe);
    raw.put_manifest(&Selector::Tag(tag), media::MANIFEST, &bytes).unwrap();
    assert!(matches!(image(&other, &recipe), Err(CacheError::Unsound { .. })));
    cache.note_image(&other, &keys[1]).unwrap();
    assert_eq!(image(&other, &recipe).unwrap(), Some(ImageId(keys[1].image)));
}

#[test]
fn a_list_has_a_line_for_what_cannot_be_read_and_finds_artifacts_by_their_first_digits() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::start(Access::Plain);
    let proxy = Proxy::before(registry.address());
    let quick = Options { retries: 0, ..Options::patient(Duration::from_secs(2)) };
    let cache = cache_with(&proxy.host(), quick);
    let shelf = Shelf::new();
    let machines: Vec<_> = (0..5).map(|seed| shelf.machine("a", &noise(100 + seed, 1, 5000))).collect();
    for machine in &machines {
        cache.push(machine, &Quiet).unwrap();
    }
    cache.note_image(&Digest::of(b"seen"), &machines[0].receipt.key()).unwrap();
    let raw = client(&registry.host(), Cache::options());
    let keys: Vec<_> = machines.iter().map(|machine| machine.receipt.key()).collect();
    let first = raw.manifest(&Selector::Tag(artifact::machine_tag(&keys[0]))).unwrap().unwrap().bytes;
    let poisoned = artifact::machine_tag(&keys[1]);
    raw.put_manifest(&Selector::Tag(poisoned.clone()), media::MANIFEST, &first).unwrap();
    let broken = artifact::machine_tag(&keys[2]);
    proxy.fault("GET", &format!("manifests/{broken}"), 0, 1, Fault::status(500));
    let listing = cache.list().unwrap();
    assert_eq!((listing.entries.len(), listing.pointers, listing.left_out), (5, 1, 0));
    for entry in &listing.entries {
        let bad = entry.tag == poisoned || entry.tag == broken;
        assert_eq!(entry.problem.is_some(), bad, "{entry:?}");
        assert_eq!(entry.key.is_some(), !bad, "{entry:?}");
    }
    let entry = listing.entries.iter().find(|entry| entry.key == Some(keys[0])).unwrap();
    assert_eq!((entry.agent.as_deref(), entry.size), (Some("a"), Some(machines[0].receipt.size)));
    assert_eq!((entry.built_at, entry.sha256), (Some(1_700_000_000), Some(machines[0].receipt.sha256)));
    let (image, recipe) = (keys[0].image.hex(), keys[0].recipe.hex());
    for text in
        [&image[..8], &image, &format!("{}/{}", &image[..4], &recipe[..6]), &format!("sha256:{image}")]
    {
        assert_eq!(cache.find(text).unwrap(), keys[0], "{text}");
    }
    for (text, says) in [("ffffffffff", "no artifact"), ("12", "4 or more"), ("zzzz", "first digits")] {
        let error = cache.find(text).unwrap_err().to_string();
        assert!(error.contains(says), "{text}: {error}");
    }
}
