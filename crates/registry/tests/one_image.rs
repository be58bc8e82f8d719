//! One image, as a build serves it.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests write files, and a panic is how they report"
)]

mod client;

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use client::{connect, get, parse, raw, request};
use smolcellar_oci::image_manifest;
use smolcellar_registry::{OneImage, Options, RegistryError, ServedImage};
use smolcellar_store::Digest;
use tempfile::TempDir;

const CONFIG: &[u8] = b"{\"os\":\"linux\"}";

/// An image whose one layer has so many bytes.
fn image(dir: &TempDir, length: usize) -> (OneImage, Digest) {
    let layer: Vec<u8> = (0..length).map(|n| (n ^ (n >> 9)) as u8).collect();
    let (config, digest) = (Digest::of(CONFIG), Digest::of(&layer));
    let (a, b) = (dir.path().join("config"), dir.path().join("layer"));
    std::fs::write(&a, CONFIG).unwrap();
    std::fs::write(&b, &layer).unwrap();
    let manifest = image_manifest((config, CONFIG.len() as u64), &[(digest, length as u64)]);
    (OneImage { manifest, blobs: vec![(config, a), (digest, b)] }, digest)
}

/// The repository and the tag of a reference.
fn parts(server: &ServedImage) -> (String, String) {
    let (_, rest) = server.reference().split_once('/').unwrap();
    let (repository, tag) = rest.rsplit_once(':').unwrap();
    (repository.to_owned(), tag.to_owned())
}

#[test]
fn an_image_is_pulled_by_its_reference_and_what_was_asked_for_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (image, layer) = image(&dir, 5_000_000);
    let manifest = image.manifest.clone();
    let server = image.serve().unwrap();
    let addr = server.addr();
    let (repository, tag) = parts(&server);
    assert!(server.reference().starts_with(&format!("{addr}/")) && addr.ip().is_loopback());
    let path = format!("/v2/{repository}/manifests/{tag}");
    let head = request(addr, "HEAD", &path, &[], b"");
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("content-length"), manifest.len().to_string());
    let found = get(addr, &path);
    assert_eq!((found.status, &found.body), (200, &manifest));
    let digest = Digest::of(&manifest);
    assert_eq!(found.header("docker-content-digest"), digest.to_string());
    assert_eq!(get(addr, &format!("/v2/{repository}/manifests/{digest}")).body, manifest);
    for _ in 0..2 {
        let blob = get(addr, &format!("/v2/{repository}/blobs/{layer}"));
        assert_eq!((blob.status, Digest::of(&blob.body)), (200, layer));
    }
    let seen = server.stop();
    assert_eq!((seen.manifests, seen.blobs, seen.bytes, seen.refused), (3, 2, 10_000_000, 0));
}

#[test]
fn a_part_is_sent_as_a_part_and_nonsense_as_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (image, layer) = image(&dir, 100_000);
    let bytes = std::fs::read(dir.path().join("layer")).unwrap();
    let server = image.serve().unwrap();
    let path = format!("/v2/{}/blobs/{layer}", parts(&server).0);
    let tag = format!("\"{layer}\"");
    let ask = |headers: &[(&str, &str)]| request(server.addr(), "GET", &path, headers, b"");
    for (range, status, expected, said) in [
        ("bytes=0-9", 206, &bytes[..10], "bytes 0-9/100000"),
        ("bytes=99990-", 206, &bytes[99_990..], "bytes 99990-99999/100000"),
        ("bytes=-5", 206, &bytes[99_995..], "bytes 99995-99999/100000"),
        ("bytes=0-", 206, &bytes[..], "bytes 0-99999/100000"),
        ("bytes=0-1,5-6", 200, &bytes[..], ""),
        ("furlongs=0-1", 200, &bytes[..], ""),
    ] {
        let part = ask(&[("Range", range)]);
        assert_eq!((part.status, part.header("content-range")), (status, said), "{range}");
        assert!(part.body == expected, "{range}");
    }
    let outside = ask(&[("Range", "bytes=100000-")]);
    assert_eq!((outside.status, outside.header("content-range")), (416, "bytes */100000"));
    assert_eq!(ask(&[("Range", "bytes=0-1"), ("If-Range", &tag)]).status, 206);
    assert_eq!(ask(&[("Range", "bytes=0-1"), ("If-Range", "\"other\"")]).status, 200);
    let known = ask(&[("If-None-Match", &tag)]);
    assert_eq!((known.status, known.body.len()), (304, 0));
}

#[test]
fn the_last_bytes_of_a_damaged_blob_are_never_sent() {
    for length in [1000, 3_000_000] {
        let dir = tempfile::tempdir().unwrap();
        let (image, layer) = image(&dir, length);
        let mut bytes = std::fs::read(dir.path().join("layer")).unwrap();
        bytes[length / 2] ^= 1;
        std::fs::write(dir.path().join("layer"), &bytes).unwrap();
        let server = image.serve().unwrap();
        let path = format!("/v2/{}/blobs/{layer}", parts(&server).0);
        for _ in 0..2 {
            let whole = get(server.addr(), &path);
            assert!(whole.body.len() < length, "{length}");
            let part = request(server.addr(), "GET", &path, &[("Range", "bytes=0-9")], b"");
            assert_eq!((part.status, part.code()), (404, "BLOB_UNKNOWN".into()), "{length}");
        }
        assert_eq!(server.seen().blobs, 0);
        // Cut short, it is not even opened.
        std::fs::write(dir.path().join("layer"), &bytes[1..]).unwrap();
        assert_eq!(get(server.addr(), &path).status, 404);
    }
}

#[test]
fn two_at_once_never_collide_and_neither_knows_the_others_image() {
    let dir = tempfile::tempdir().unwrap();
    let (image, layer) = image(&dir, 10);
    let (a, b) = (image.clone().serve().unwrap(), image.serve().unwrap());
    assert_ne!(a.addr(), b.addr());
    let ((repository_a, tag_a), (repository_b, tag_b)) = (parts(&a), parts(&b));
    assert!(repository_a != repository_b && tag_a != tag_b);
    assert_eq!(get(a.addr(), &format!("/v2/{repository_a}/blobs/{layer}")).status, 200);
    for path in [
        format!("/v2/{repository_b}/blobs/{layer}"),
        format!("/v2/{repository_b}/manifests/{tag_b}"),
        format!("/v2/{repository_a}/manifests/{tag_b}"),
    ] {
        assert_eq!(get(a.addr(), &path).status, 404, "{path}");
    }
    assert_eq!(get(a.addr(), "/v2/_catalog").json()["repositories"], serde_json::json!([]));
}

#[test]
fn nothing_can_be_pushed_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let (image, layer) = image(&dir, 10);
    let server = image.serve().unwrap();
    let (repository, tag) = parts(&server);
    for (method, path) in [
        ("POST", format!("/v2/{repository}/blobs/uploads/")),
        ("PUT", format!("/v2/{repository}/manifests/{tag}")),
        ("DELETE", format!("/v2/{repository}/blobs/{layer}")),
        ("BREW", "/v2/".into()),
    ] {
        let refused = request(server.addr(), method, &path, &[], b"{}");
        assert_eq!((refused.status, refused.code()), (405, "UNSUPPORTED".into()), "{method} {path}");
    }
}

#[test]
fn what_is_no_image_is_not_served() {
    let dir = tempfile::tempdir().unwrap();
    let (image, _) = image(&dir, 10);
    let lacking = OneImage { blobs: image.blobs[..1].to_vec(), ..image.clone() };
    let index = OneImage { manifest: br#"{"schemaVersion":2,"manifests":[]}"#.to_vec(), ..image };
    for (image, says) in [(lacking, "is not known"), (index, "no config")] {
        match image.serve() {
            Err(error @ RegistryError::Image(_)) => assert!(error.to_string().contains(says), "{error}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn requests_of_other_hosts_and_of_web_pages_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = image(&dir, 10).0.serve().unwrap();
    let addr = server.addr();
    let port = addr.port();
    let ask = |headers: &[(&str, &str)]| request(addr, "GET", "/v2/", headers, b"").status;
    assert_eq!(ask(&[("Host", &format!("localhost:{port}"))]), 200);
    assert_eq!(ask(&[("Host", "example.org")]), 421);
    assert_eq!(ask(&[("Host", "127.0.0.1")]), 421);
    assert_eq!(ask(&[("Origin", &format!("http://{addr}"))]), 403);
    assert_eq!(ask(&[("Host", &addr.to_string()), ("Host", &addr.to_string())]), 400);
    let none = parse(&raw(addr, b"GET /v2/ HTTP/1.0\r\n\r\n")).unwrap();
    assert_eq!(none.status, 400);
    let absolute =
        format!("GET http://example.org/v2/ HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n");
    assert_eq!(parse(&raw(addr, absolute.as_bytes())).unwrap().status, 421);
}

#[test]
fn whoever_is_too_slow_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let (image, layer) = image(&dir, 30_000_000);
    let short = Duration::from_millis(300);
    let options = Options { header_timeout: short, idle_timeout: short, ..Options::default() };
    let server = image.serve_with(options).unwrap();
    let until_closed = |request: &str, take: usize| {
        let mut stream = connect(server.addr());
        stream.write_all(request.as_bytes()).unwrap();
        let mut taken = vec![0; take];
        stream.read_exact(&mut taken).unwrap();
        let began = Instant::now();
        std::thread::sleep(short * 4);
        // What the kernel has is still there; then it ends, before the whole.
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        (rest.len(), began.elapsed())
    };
    let (rest, took) = until_closed("GET /v2/ HTTP/1.1\r\nHost:", 0);
    assert!(rest < 200 && took < Duration::from_secs(5), "{took:?}");
    let (repository, _) = parts(&server);
    let blob = format!("GET /v2/{repository}/blobs/{layer} HTTP/1.1\r\nHost: {}\r\n\r\n", server.addr());
    let (rest, took) = until_closed(&blob, 1000);
    assert!(rest < 20_000_000 && took < Duration::from_secs(5), "{rest} {took:?}");
}

#[test]
fn when_there_is_no_room_the_idlest_makes_some() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { connections: 4, patience: Duration::from_millis(100), ..Options::default() };
    let server = image(&dir, 10).0.serve_with(options).unwrap();
    let mut silent: Vec<_> = (0..4).map(|_| connect(server.addr())).collect();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(get(server.addr(), "/v2/").status, 200);
    let gone = silent.iter_mut().filter_map(|stream| {
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        stream.read(&mut [0]).ok()
    });
    assert!((1..=2).contains(&gone.count()), "one had to go, no more than needed");
}

#[test]
fn those_who_keep_the_memory_of_others_and_stand_still_have_to_go_and_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let length = 40_000_000;
    let (image, layer) = image(&dir, length);
    let options = Options { patience: Duration::from_millis(400), ..Options::default() };
    let server = image.serve_with(options).unwrap();
    let path = format!("/v2/{}/blobs/{layer}", parts(&server).0);
    let head = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", server.addr());
    let began = |count: usize, take: usize| -> Vec<_> {
        let begin = |_| {
            let mut stream = connect(server.addr());
            stream.write_all(head.as_bytes()).unwrap();
            stream.read_exact(&mut vec![0; take]).unwrap();
            stream
        };
        (0..count).map(begin).collect()
    };
    let rest = |stream: &mut std::net::TcpStream| {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        rest.len()
    };
    // There are 64 large pieces, of which each of these keeps one or two.
    let mut few = began(8, 6 << 20);
    std::thread::sleep(Duration::from_secs(1));
    assert!(few.iter_mut().all(|stream| rest(stream) > length - (7 << 20)), "there was enough for all");
    let (mut slow, mut many) = (began(4, 1000), began(80, 6 << 20));
    std::thread::sleep(Duration::from_secs(2));
    let whole = get(server.addr(), &path);
    assert_eq!(whole.body.len(), length);
    let gone = many.iter_mut().map(rest).filter(|rest| *rest < length - (7 << 20)).count();
    assert!((4..=80).contains(&gone), "{gone} had to go");
    assert!(
        slow.iter_mut().all(|stream| rest(stream) > length - (1 << 20)),
        "these keep nothing that is short"
    );
}

#[test]
fn stopping_lets_a_transfer_end_but_not_for_ever_and_dropping_waits_for_nothing() {
    for drop_it in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (image, layer) = image(&dir, 30_000_000);
        let server = image.serve().unwrap();
        let mut stuck = connect(server.addr());
        let path = format!("/v2/{}/blobs/{layer}", parts(&server).0);
        write!(stuck, "GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", server.addr()).unwrap();
        stuck.read_exact(&mut [0; 100]).unwrap();
        let addr = server.addr();
        let began = Instant::now();
        if drop_it {
            drop(server);
        } else {
            server.stop();
        }
        let took = began.elapsed();
        assert!(took < Duration::from_millis(if drop_it { 900 } else { 2500 }), "{took:?}");
        assert!(std::net::TcpStream::connect(addr).is_err(), "nobody listens any more");
    }
}
