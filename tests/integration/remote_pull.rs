//! Pulling with the client, from a real registry behind everything that can go
//! wrong between the two.

use std::cell::Cell;
use std::io::Write;
use std::time::{Duration, Instant};

use smolcellar_oci::{Descriptor, Registry as Address, Repository, Selector, Tag, media};
use smolcellar_remote::{Client, Options, Ranged, RemoteError, Tags};
use smolcellar_store::Digest;
use smolcellar_tests::lab::Random;
use smolcellar_tests::needs::have;
use smolcellar_tests::proxy::{Fault, Proxy};
use smolcellar_tests::registry::{Access, NEEDS, PASSWORD, Registry, USER, unused_address};

const MIB: usize = 1 << 20;

/// Who waits for a second at most.
pub(crate) fn options() -> Options {
    Options {
        connect: Duration::from_secs(2),
        lookup: Duration::from_secs(3),
        ..Options::patient(Duration::from_secs(1))
    }
}

pub(crate) fn client(host: &str, repository: &str) -> Client {
    client_with(host, repository, options())
}

pub(crate) fn client_with(host: &str, repository: &str, options: Options) -> Client {
    Client::new(&Address::parse(host).unwrap(), &Repository::parse(repository).unwrap(), options).unwrap()
}

/// Bytes that no two seeds share.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..length.div_ceil(8)).flat_map(|_| random.next().to_le_bytes()).take(length).collect()
}

/// Makes the registry have these bytes.
pub(crate) fn put(client: &Client, bytes: &[u8]) -> Descriptor {
    let descriptor = Descriptor::of("application/x-noise", bytes);
    let open = |offset: u64| Ok(Box::new(std::io::Cursor::new(bytes[offset as usize..].to_vec())) as Box<_>);
    client.push_blob(&descriptor.digest, descriptor.size, &open, &[], &|_| {}).unwrap();
    descriptor
}

/// A registry with one blob, and a front.
fn scene(length: usize) -> (Registry, Proxy, Vec<u8>, Descriptor) {
    let registry = Registry::start(Access::Plain);
    let bytes = noise(length as u64, length);
    let blob = put(&client(&registry.host(), "a/b"), &bytes);
    let proxy = Proxy::before(registry.address());
    (registry, proxy, bytes, blob)
}

#[test]
fn what_is_pushed_is_found_listed_pulled_and_removed() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::start(Access::Plain);
    let client = client(&registry.host(), "team/agent");
    assert_eq!(client.tags().unwrap(), Tags::default());
    let bytes = noise(1, 3 * MIB + 5);
    let blob = Descriptor::of("x/y", &bytes);
    assert_eq!(client.has_blob(&blob.digest).unwrap(), None);
    assert_eq!(put(&client, &bytes).digest, blob.digest);
    assert_eq!(client.has_blob(&blob.digest).unwrap(), Some(blob.size));
    let (mut got, told) = (Vec::new(), Cell::new(0));
    client.blob(&blob, &mut got, &|bytes| told.set(told.get() + bytes)).unwrap();
    assert!(got == bytes && told.get() == blob.size);
    let mut part = Vec::new();
    let mut sink = |piece: &[u8]| part.write_all(piece);
    assert_eq!(client.blob_range(&blob.digest, 1_000_001, 77, &mut sink).unwrap(), Ranged::Done);
    assert_eq!(part, bytes[1_000_001..1_000_078]);

    let empty = put(&client, b"{}");
    assert_eq!(client.blob_small(&empty, 2).unwrap(), b"{}");
    assert!(client.blob_small(&blob, 1000).unwrap_err().to_string().contains("more than 1000"));
    let mut manifest = smolcellar_oci::Manifest::new(media::MANIFEST);
    (manifest.config, manifest.layers) = (Some(empty), Some(vec![blob]));
    let manifest = manifest.to_bytes();
    let digest = Digest::of(&manifest);
    let tag = |name: &str| Selector::Tag(Tag::parse(name).unwrap());
    assert_eq!(client.manifest(&tag("v1")).unwrap(), None);
    for name in ["v1", "v2"] {
        client.put_manifest(&tag(name), media::MANIFEST, &manifest).unwrap();
    }
    for selector in [tag("v1"), Selector::Digest(digest)] {
        let fetched = client.manifest(&selector).unwrap().unwrap();
        assert_eq!((fetched.bytes, fetched.digest), (manifest.clone(), digest));
        assert_eq!(fetched.media_type, media::MANIFEST);
        assert_eq!(client.resolve(&selector).unwrap(), Some(digest));
    }
    assert_eq!(client.tags().unwrap().tags.iter().map(Tag::as_str).collect::<Vec<_>>(), ["v1", "v2"]);
    assert!(client.delete_manifest(&digest).unwrap());
    assert!(!client.delete_manifest(&digest).unwrap());
    assert_eq!(client.manifest(&tag("v1")).unwrap(), None);
}

#[test]
fn tags_are_read_page_by_page() {
    if !have(&NEEDS) {
        return;
    }
    let (registry, proxy, _, blob) = scene(10);
    let direct = client(&registry.host(), "a/b");
    let mut manifest = smolcellar_oci::Manifest::new(media::MANIFEST);
    (manifest.config, manifest.layers) = (Some(blob), Some(Vec::new()));
    for n in 0..7 {
        let tag = Selector::Tag(Tag::parse(&format!("t{n}")).unwrap());
        direct.put_manifest(&tag, media::MANIFEST, &manifest.to_bytes()).unwrap();
    }
    // This registry knows no pages, and answers the third question with all.
    for (tags, next) in [(r#""t0","no tag""#, "?last=t0"), (r#""t1",null"#, "list?last=t1")] {
        let link = vec![("Link".into(), format!("<{next}>; rel=\"next\""))];
        let page = Fault::Answer(200, link, format!("{{\"tags\":[{tags}]}}").replace("null", "\"t0\""));
        proxy.fault("GET", "/tags/", 0, 1, page);
    }
    assert_eq!(client(&proxy.host(), "a/b").tags().unwrap().tags.len(), 7);
    assert_eq!(proxy.count("GET", "/tags/"), 3, "{:?}", proxy.seen());
    // Pages of another server are none.
    let elsewhere = Proxy::before(registry.address());
    let page = Fault::Answer(
        200,
        vec![("Link".into(), format!("<http://{}/v2/a/b/tags/list>; rel=\"next\"", elsewhere.host()))],
        r#"{"tags":["only"]}"#.into(),
    );
    proxy.fault("GET", "/tags/", 0, 1, page);
    assert_eq!(client(&proxy.host(), "a/b").tags().unwrap().tags.len(), 1);
    assert_eq!(elsewhere.seen().len(), 0);
}

#[test]
fn more_tags_than_can_be_kept_are_said_to_be_more() {
    if !have(&NEEDS) {
        return;
    }
    let (_registry, proxy, _, _) = scene(10);
    let tags: Vec<_> = (0..200_001).map(|n| format!("\"t{n}\"")).collect();
    let page = |tags: &[String]| Fault::Answer(200, Vec::new(), format!("{{\"tags\":[{}]}}", tags.join(",")));
    proxy.fault("GET", "/tags/", 0, 1, page(&tags[1..]));
    let all = client(&proxy.host(), "a/b").tags().unwrap();
    assert_eq!((all.tags.len(), all.truncated), (200_000, false));
    for _ in 0..2 {
        proxy.fault("GET", "/tags/", 0, 1, page(&tags));
    }
    let most = client(&proxy.host(), "a/b").tags().unwrap();
    assert_eq!((most.tags.len(), most.truncated), (200_000, true));
    // Nobody is told that there is none, when it was not looked at all.
    let cache = smolcellar_remote::Cache::new(client(&proxy.host(), "a/b"));
    let error = cache.find("abcd").unwrap_err().to_string();
    assert!(error.contains("there are more tags"), "{error}");
    let error = cache.find("abcd").unwrap_err().to_string();
    assert!(error.contains("no artifact has such a key"), "{error}");
}

#[test]
fn where_no_login_may_go_a_registry_that_wants_one_is_not_told_any() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::start(Access::Password);
    let proxy = Proxy::before(registry.address());
    let login = Some((USER.to_owned(), smolcellar_remote::Secret::new(PASSWORD)));
    let asked = |no_login| {
        let options = Options { login: login.clone(), no_login, ..options() };
        client_with(&proxy.host(), "a/b", options).tags().map(|_| ())
    };
    let error = asked(true).unwrap_err();
    assert!(
        matches!(error, RemoteError::Login { .. }) && error.to_string().contains("no login was sent"),
        "{error}"
    );
    assert!(proxy.seen().iter().all(|seen| seen.header("authorization").is_none()));
    asked(false).unwrap();
}

#[test]
fn a_pull_that_is_cut_goes_on_where_it_stopped() {
    if !have(&NEEDS) {
        return;
    }
    let (_registry, proxy, bytes, blob) = scene(8 * MIB);
    let pull = || {
        let mut got = Vec::new();
        client(&proxy.host(), "a/b").blob(&blob, &mut got, &|_| {}).map(|()| got)
    };
    for cut in [1, 3 * MIB, 8 * MIB - 1] {
        proxy.forget();
        proxy.fault("GET", "/blobs/", 0, 1, Fault::CutAnswer(cut as u64));
        assert!(pull().unwrap() == bytes, "cut at {cut}");
        assert_eq!(proxy.count("GET", "/blobs/"), 2);
        assert!(proxy.seen()[1].header("range").is_some(), "{:?}", proxy.seen());
        assert!(proxy.down() <= blob.size + 1024, "{}", proxy.down());
    }
    // Where there are no ranges, what is there is passed over.
    proxy.mend();
    proxy.fault("GET", "/blobs/", 0, 1, Fault::CutAnswer(5 * MIB as u64));
    proxy.fault("GET", "/blobs/", 0, 1, Fault::WholeForRange);
    assert!(pull().unwrap() == bytes);
    // Many cuts, each after some progress, are more than the tries that are made without.
    proxy.mend();
    proxy.fault("GET", "/blobs/", 0, 6, Fault::CutAnswer(MIB as u64 + 9));
    assert!(pull().unwrap() == bytes);
    // A registry that cuts at once is not asked for ever.
    proxy.mend();
    proxy.forget();
    proxy.fault("GET", "/blobs/", 0, 1000, Fault::CutAnswer(10));
    assert!(matches!(pull(), Err(RemoteError::Cut { .. })));
    assert!(proxy.count("GET", "/blobs/") < 10);
}

#[test]
fn a_registry_that_is_busy_is_asked_again_and_one_that_stays_so_fails_in_time() {
    if !have(&NEEDS) {
        return;
    }
    let (_registry, proxy, bytes, blob) = scene(1000);
    let client = client(&proxy.host(), "a/b");
    for fault in [
        Fault::status(500),
        Fault::status(503),
        Fault::with_header(429, "Retry-After", "0"),
        Fault::Drop,
        Fault::CutAnswer(10),
        Fault::Stall,
    ] {
        proxy.mend();
        proxy.fault("GET", "/blobs/", 0, 1, fault.clone());
        let mut got = Vec::new();
        let pulled = client.blob(&blob, &mut got, &|_| {});
        assert!(pulled.is_ok() && got == bytes, "{fault:?}: {pulled:?}");
    }
    for fault in [
        Fault::status(500),
        Fault::with_header(429, "Retry-After", "3600"),
        Fault::Drop,
        Fault::Stall,
        Fault::StallAnswer(10),
        Fault::Dribble(Duration::from_millis(100)),
    ] {
        proxy.mend();
        proxy.fault("*", "", 0, 1000, fault.clone());
        let began = Instant::now();
        let pulled = client.blob(&blob, &mut Vec::new(), &|_| {}).unwrap_err();
        assert!(began.elapsed() < Duration::from_secs(15), "{fault:?}: {:?}", began.elapsed());
        assert!(pulled.is_transient(), "{fault:?}: {pulled}");
        let began = Instant::now();
        let looked = client.blob_small(&blob, 1000);
        assert!(looked.is_err(), "{fault:?}");
        assert!(began.elapsed() < Duration::from_secs(5), "{fault:?}: {:?}", began.elapsed());
    }
}

#[test]
fn nobody_there_is_noticed_at_once() {
    let client = client(&unused_address().to_string(), "a/b");
    let began = Instant::now();
    let error = client.has_blob(&Digest::of(b"")).unwrap_err();
    assert!(matches!(error, RemoteError::Unreachable { .. }), "{error}");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[test]
fn wrong_bytes_are_never_taken_for_right_ones() {
    if !have(&NEEDS) {
        return;
    }
    let (_registry, proxy, bytes, blob) = scene(100_000);
    let client = client(&proxy.host(), "a/b");
    for n in 0..200 {
        proxy.mend();
        proxy.fault("GET", "/blobs/", 0, 1, Fault::Flip(n * 499));
        let mut got = Vec::new();
        let error = match n % 2 {
            0 => client.blob(&blob, &mut got, &|_| {}).unwrap_err(),
            _ => client.blob_small(&blob, 200_000).unwrap_err(),
        };
        assert!(matches!(error, RemoteError::Wrong { .. }), "{n}: {error}");
    }
    proxy.mend();
    for (more, says) in [(9, "100009 bytes"), (-9, "99991 bytes")] {
        proxy.fault("GET", "/blobs/", 0, 1, Fault::Length(more));
        let error = client.blob(&blob, &mut Vec::new(), &|_| {}).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
    // A manifest that is asked for by its digest.
    let mut manifest = smolcellar_oci::Manifest::new(media::MANIFEST);
    (manifest.config, manifest.layers) = (Some(blob.clone()), Some(Vec::new()));
    let manifest = manifest.to_bytes();
    let by_digest = Selector::Digest(Digest::of(&manifest));
    client.put_manifest(&by_digest, media::MANIFEST, &manifest).unwrap();
    proxy.fault("GET", "/manifests/", 0, 1, Fault::Flip(20));
    assert!(matches!(client.manifest(&by_digest), Err(RemoteError::Wrong { .. })));
    assert_eq!(client.manifest(&by_digest).unwrap().unwrap().bytes, manifest);
    let _ = bytes;
}

#[test]
fn parts_are_exact_or_the_registry_has_none() {
    if !have(&NEEDS) {
        return;
    }
    let (_registry, proxy, bytes, blob) = scene(20 * MIB);
    let client = client(&proxy.host(), "a/b");
    let part = |start: usize, length: usize| {
        let mut got = Vec::new();
        let mut sink = |piece: &[u8]| got.write_all(piece);
        client.blob_range(&blob.digest, start as u64, length as u64, &mut sink).map(|ranged| (ranged, got))
    };
    for (start, length) in [(0, 1), (5, 0), (MIB, 3 * MIB), (20 * MIB - 1, 1)] {
        let (ranged, got) = part(start, length).unwrap();
        assert!(ranged == Ranged::Done && got == bytes[start..start + length]);
    }
    proxy.fault("GET", "/blobs/", 0, 1, Fault::CutAnswer(2 * MIB as u64));
    let (ranged, got) = part(MIB, 5 * MIB).unwrap();
    assert!(ranged == Ranged::Done && got == bytes[MIB..6 * MIB], "after a cut");
    // Beyond the end, as no registry can give it.
    assert_eq!(part(20 * MIB - 1, 2).unwrap().0, Ranged::NoRanges);
    assert_eq!(part(30 * MIB, 2).unwrap().0, Ranged::NoRanges);
    for odd in ["bytes 0-9/20971520", "bytes */20971520", "nonsense"] {
        proxy.mend();
        proxy.fault("GET", "/blobs/", 0, 1, Fault::Header("Content-Range".into(), odd.into()));
        assert_eq!(part(MIB, 10).unwrap(), (Ranged::NoRanges, Vec::new()), "{odd}");
    }
    // One that answers with everything is not listened to.
    proxy.mend();
    proxy.forget();
    proxy.fault("GET", "/blobs/", 0, 1, Fault::WholeForRange);
    assert_eq!(part(MIB, 10).unwrap(), (Ranged::NoRanges, Vec::new()));
    std::thread::sleep(Duration::from_millis(200));
    assert!(proxy.down() < 16 * MIB as u64, "{}", proxy.down());
}

#[test]
fn another_server_does_not_hear_who_asks() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::start(Access::Password);
    let login = Some((USER.to_owned(), smolcellar_remote::Secret::new(PASSWORD)));
    let bytes = noise(3, 1000);
    let blob =
        put(&client_with(&registry.host(), "a/b", Options { login: login.clone(), ..options() }), &bytes);
    let (front, storage) = (Proxy::before(registry.address()), Proxy::before(registry.address()));
    // As registries do that keep their blobs at a storage service's.
    let signed = format!("http://{}/signed?for=needle", storage.host());
    front.fault("GET", "/blobs/", 1, 9, Fault::with_header(307, "Location", &signed));
    storage.fault("GET", "/signed", 0, 1, Fault::status(403));
    let client = client_with(&front.host(), "a/b", Options { login, ..options() });
    let refused = client.blob(&blob, &mut Vec::new(), &|_| {}).unwrap_err().to_string();
    assert!(refused.contains("403") && refused.contains(&storage.host()), "{refused}");
    assert!(!refused.contains("needle"), "{refused}");
    let [asked] = &storage.seen()[..] else { panic!("{:?}", storage.seen()) };
    assert_eq!(asked.header("authorization"), None);
    assert!(front.seen().iter().any(|seen| seen.header("authorization").is_some()));
    // For ever round.
    front.mend();
    front.fault("GET", "/blobs/", 0, 99, Fault::with_header(307, "Location", "/v2/a/b/blobs/again"));
    assert!(client.blob(&blob, &mut Vec::new(), &|_| {}).is_err());
    assert!(front.count("GET", "/again") < 10);
}
