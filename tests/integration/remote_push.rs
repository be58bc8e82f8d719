//! Pushing with the client, to a real registry behind everything that can go
//! wrong between the two.

use std::cell::Cell;
use std::io::{self, Cursor, Read};
use std::time::{Duration, Instant};

use base64::Engine as _;
use smolcellar_oci::{Descriptor, Repository};
use smolcellar_remote::{Client, Options, Pushed, RemoteError, Secret};
use smolcellar_store::Digest;
use smolcellar_tests::needs::have;
use smolcellar_tests::proxy::{Fault, Proxy};
use smolcellar_tests::registry::{Access, NEEDS, PASSWORD, Registry, USER};
use smolcellar_tests::tokens::Tokens;

use crate::remote_pull::{client, client_with, noise, options};

const MIB: usize = 1 << 20;

fn push(client: &Client, bytes: &[u8], mounts: &[&str]) -> Result<Pushed, RemoteError> {
    push_as(client, &Digest::of(bytes), bytes.len(), bytes, mounts)
}

fn push_as(
    client: &Client,
    digest: &Digest,
    size: usize,
    bytes: &[u8],
    mounts: &[&str],
) -> Result<Pushed, RemoteError> {
    let open = |offset: u64| -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(Cursor::new(bytes.get(offset as usize..).unwrap_or_default().to_vec())))
    };
    let mounts: Vec<_> = mounts.iter().map(|name| Repository::parse(name).unwrap()).collect();
    let told = Cell::new(0);
    let pushed = client.push_blob(digest, size as u64, &open, &mounts, &|bytes| told.set(told.get() + bytes));
    if pushed.is_ok() {
        assert_eq!(told.get(), size as u64, "progress adds up");
    }
    pushed
}

/// Asserts that the registry has these bytes.
fn assert_there(registry: &Registry, bytes: &[u8]) {
    let mut got = Vec::new();
    client(&registry.host(), "a/b").blob(&Descriptor::of("x/y", bytes), &mut got, &|_| {}).unwrap();
    assert!(got == bytes);
}

#[test]
fn a_blob_is_uploaded_once_and_mounted_where_the_registry_has_it() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::start(Access::Plain);
    let proxy = Proxy::before(registry.address());
    for length in [0, 1, 5 * MIB] {
        let bytes = noise(7, length);
        let (one, two) = (client(&proxy.host(), "a/b"), client(&proxy.host(), "c"));
        assert_eq!(push(&one, &bytes, &[]).unwrap(), Pushed::Uploaded);
        assert_there(&registry, &bytes);
        proxy.forget();
        assert_eq!(push(&one, &bytes, &[]).unwrap(), Pushed::Present);
        assert_eq!(push(&two, &bytes, &["not/there", "a/b"]).unwrap(), Pushed::Mounted);
        assert_eq!(push(&two, &bytes, &[]).unwrap(), Pushed::Present);
        assert_eq!(proxy.up(), 0, "{:?}", proxy.seen());
    }
    // A mount that cannot be is an upload.
    let bytes = noise(8, 1000);
    assert_eq!(push(&client(&proxy.host(), "d"), &bytes, &["a/b"]).unwrap(), Pushed::Uploaded);
}

#[test]
fn a_push_survives_each_fault_once() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::start(Access::Plain);
    let proxy = Proxy::before(registry.address());
    let client = client(&proxy.host(), "a/b");
    let later = || Fault::with_header(429, "Retry-After", "1");
    let faults = [
        ("HEAD", "/blobs/sha256", Fault::Drop),
        ("HEAD", "/blobs/sha256", Fault::status(503)),
        ("POST", "/uploads/", Fault::Drop),
        ("POST", "/uploads/", later()),
        ("POST", "/uploads/", Fault::status(500)),
        ("PUT", "/uploads/", Fault::Drop),
        ("PUT", "/uploads/", Fault::CutRequest(3 * MIB as u64)),
        ("PUT", "/uploads/", Fault::Refuse(503)),
        ("PUT", "/uploads/", Fault::status(503)),
        ("PUT", "/uploads/", Fault::Refuse(413)),
        ("PUT", "/uploads/", Fault::status(413)),
        ("PUT", "/uploads/", Fault::Stall),
    ];
    for (n, (method, path, fault)) in faults.into_iter().enumerate() {
        proxy.mend();
        proxy.fault(method, path, 0, 1, fault.clone());
        proxy.forget();
        let bytes = noise(100 + n as u64, 40 * MIB);
        let began = Instant::now();
        let pushed = push(&client, &bytes, &[]);
        let seen =
            proxy.seen().into_iter().map(|seen| (seen.method, seen.status, seen.up)).collect::<Vec<_>>();
        let told = format!("{method} {fault:?} after {:?}: {seen:?}", began.elapsed());
        assert!(matches!(pushed, Ok(Pushed::Uploaded)), "{told}: {pushed:?}");
        assert_there(&registry, &bytes);
    }
}

#[test]
fn an_upload_that_breaks_goes_on_where_the_registry_has_it() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::start(Access::Plain);
    let proxy = Proxy::before(registry.address());
    let client = client(&proxy.host(), "a/b");
    let bytes = noise(11, 60 * MIB);
    // Not in one piece, then: pieces, of which the third and its answer get lost.
    proxy.fault("PUT", "/uploads/", 0, 1, Fault::status(413));
    proxy.fault("PATCH", "/uploads/", 2, 1, Fault::Drop);
    assert_eq!(push(&client, &bytes, &[]).unwrap(), Pushed::Uploaded);
    assert_there(&registry, &bytes);
    assert_eq!(proxy.count("POST", "/uploads/"), 1, "one upload: {:?}", proxy.seen());
    let asked =
        proxy.seen().iter().filter(|seen| seen.method == "GET" && seen.path.contains("/uploads/")).count();
    assert_eq!(asked, 2, "once after each fault");
    let again =
        proxy.seen().iter().skip_while(|seen| seen.status != 0).skip(1).map(|seen| seen.up).sum::<u64>();
    assert!(again < bytes.len() as u64, "{again} bytes after the cut");
    assert!(proxy.up() < bytes.len() as u64 * 11 / 10, "{} bytes in all", proxy.up());
}

#[test]
fn a_registry_that_stays_unable_fails_in_time_and_says_why() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::start(Access::Plain);
    let proxy = Proxy::before(registry.address());
    let client = client(&proxy.host(), "a/b");
    let bytes = noise(12, 3 * MIB);
    for (method, fault, says) in [
        ("PUT", Fault::Refuse(507), "its disk is full"),
        (
            "*",
            Fault::Answer(403, vec![], r#"{"errors":[{"code":"DENIED","message":"no"}]}"#.into()),
            "DENIED: no",
        ),
        ("POST", Fault::status(404), "the repository exists"),
        ("*", Fault::status(413), "limits the size"),
        ("*", Fault::Stall, "too slow"),
        ("*", Fault::Drop, "broke"),
        ("POST", Fault::Answer(202, vec![], String::new()), "without a Location"),
        ("POST", Fault::with_header(202, "Location", "ftp://x/"), "neither http nor https"),
    ] {
        proxy.mend();
        match method {
            "*" => proxy.fault("*", "/uploads/", 0, 1000, fault.clone()),
            method => proxy.fault(method, "/uploads/", 0, 1000, fault.clone()),
        }
        let began = Instant::now();
        let error = push(&client, &bytes, &[]).unwrap_err().to_string();
        assert!(error.contains(says), "{fault:?}: {error}");
        assert!(began.elapsed() < Duration::from_secs(20), "{fault:?}: {:?}", began.elapsed());
    }
}

#[test]
fn damaged_bytes_are_not_pushed() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::start(Access::Plain);
    let proxy = Proxy::before(registry.address());
    let client = client(&proxy.host(), "a/b");
    let right = noise(13, 3 * MIB);
    let mut wrong = right.clone();
    wrong[MIB] ^= 1;
    let digest = Digest::of(&right);
    for bytes in [&wrong[..], &right[..MIB], b""] {
        let error = push_as(&client, &digest, right.len(), bytes, &[]).unwrap_err();
        assert!(matches!(error, RemoteError::Damaged { .. }), "{error}");
        assert_eq!(client.has_blob(&digest).unwrap(), None);
    }
    assert!(matches!(push_as(&client, &digest, 0, b"", &[]), Err(RemoteError::Damaged { .. })));
    assert!(
        !proxy.seen().iter().any(|seen| seen.up == right.len() as u64),
        "not even to a registry that takes all"
    );
    assert!(proxy.count("DELETE", "/uploads/") > 0, "it is told that nothing more comes");
    assert_eq!(push(&client, &right, &[]).unwrap(), Pushed::Uploaded);
}

#[test]
fn tokens_are_got_for_what_is_done_and_renewed_when_they_end() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::start(Access::Plain);
    let secret = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{PASSWORD}"));
    for uses in [1, 2, 3, usize::MAX] {
        let tokens = Tokens::good_for(uses).for_login(&secret);
        let proxy = Proxy::with_tokens(registry.address(), tokens);
        let login = Some((USER.to_owned(), Secret::new(PASSWORD)));
        let of = |repository: &str| {
            client_with(&proxy.host(), repository, Options { login: login.clone(), ..options() })
        };
        // In one piece and in several: tokens end in the middle.
        let bytes = noise(20 + (uses % 100) as u64, 40 * MIB);
        proxy.fault("PUT", "/uploads/", 0, 1, Fault::Refuse(413));
        assert_eq!(push(&of("a/b"), &bytes, &[]).unwrap(), Pushed::Uploaded, "{uses}");
        assert_eq!(push(&of("c"), &bytes, &["a/b"]).unwrap(), Pushed::Mounted, "{uses}");
        let mut got = Vec::new();
        of("a/b").blob(&Descriptor::of("x/y", &bytes), &mut got, &|_| {}).unwrap();
        assert!(got == bytes);
        // Nobody but the token server gets the password, and the registry gets tokens.
        for seen in proxy.seen() {
            let basic = seen.header("authorization").is_some_and(|header| header.starts_with("Basic "));
            assert_eq!(basic, seen.path.starts_with("/token"), "{seen:?}");
        }
    }
    let tokens = Tokens::good_for(9).for_login(&secret);
    let proxy = Proxy::with_tokens(registry.address(), tokens);
    let login = Some((USER.to_owned(), Secret::new("needle")));
    let refused =
        push(&client_with(&proxy.host(), "a/b", Options { login, ..options() }), b"x", &[]).unwrap_err();
    let text = format!("{refused} {refused:?}");
    assert!(matches!(refused, RemoteError::Login { .. }) && text.contains("said the token server"), "{text}");
    assert!(!text.contains("needle"), "{text}");
}

#[test]
fn a_registry_that_never_lets_anybody_in_is_not_asked_for_ever() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::start(Access::Plain);
    // Good for nothing: every token has ended already.
    let proxy = Proxy::with_tokens(registry.address(), Tokens::good_for(0));
    let error = push(&client(&proxy.host(), "a/b"), b"x", &[]).unwrap_err();
    assert!(matches!(error, RemoteError::Login { .. }), "{error}");
    assert!(proxy.seen().len() < 12, "{}", proxy.seen().len());
    // Where to log in makes no sense.
    for challenge in ["Bearer realm=\"ftp://x/\"", "Negotiate", "Bearer realm=\"http://u:p@h/\""] {
        let proxy = Proxy::before(registry.address());
        proxy.fault("*", "", 0, 99, Fault::with_header(401, "WWW-Authenticate", challenge));
        let error = push(&client(&proxy.host(), "a/b"), b"x", &[]).unwrap_err();
        assert!(matches!(error, RemoteError::Nonsense { .. }), "{challenge}: {error}");
    }
}

#[test]
fn an_answer_that_is_neither_yes_nor_no_is_nonsense_and_no_refusal() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::start(Access::Plain);
    let proxy = Proxy::before(registry.address());
    for (method, status) in [("POST", 200), ("PUT", 206), ("PUT", 302)] {
        proxy.fault(method, "/blobs/", 0, 1, Fault::status(status));
        let error =
            push(&client(&proxy.host(), "a/b"), &noise(9, 1000 + usize::from(status)), &[]).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, RemoteError::Nonsense { .. }), "{text}");
        assert!(text.contains(&status.to_string()) && !text.contains("refused"), "{text}");
        proxy.mend();
    }
}
