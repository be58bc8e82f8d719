//! What registries are told and answer: headers, paths, names, manifests, and
//! files with logins.
#![no_main]

use std::net::SocketAddr;

use libfuzzer_sys::fuzz_target;
use smolcellar_oci::{Manifest, Reference, Registry, Repository, Selector};
use smolcellar_registry::fuzzing as server;
use smolcellar_remote::fuzzing as client;

fuzz_target!(|bytes: &[u8]| {
    bodies(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        // Two texts, where two are needed.
        let (one, other) = text.split_once('\n').unwrap_or((text, ""));
        names(one);
        answers(one, other);
        requests(one, other);
    }
});

/// Whether it can be shown on a terminal.
fn harmless(text: &str) -> bool {
    !text.chars().any(char::is_control)
}

fn bodies(bytes: &[u8]) {
    match Manifest::parse(bytes) {
        Ok(manifest) => {
            let written = manifest.to_bytes();
            assert_eq!(Manifest::parse(&written).as_ref(), Ok(&manifest));
            if let Some(kind) = server::media_type(bytes, None) {
                assert!(harmless(&kind), "a header cannot say {kind:?}");
            }
        }
        Err(problem) => assert!(harmless(&problem), "{problem:?}"),
    }
    assert!(harmless(&client::said(bytes)));
    let repository = Repository::parse("team/a").unwrap();
    for host in ["docker.io", "h.x:5000"] {
        match client::helpers(bytes, host, &repository) {
            // They are run as docker-credential-NAME.
            Ok(names) => assert!(names.iter().all(|name| harmless(name) && !name.contains(['/', ' ']))),
            Err(problem) => assert!(harmless(&problem), "{problem:?}"),
        }
    }
}

fn names(text: &str) {
    match text.parse::<Reference>() {
        Ok(reference) => {
            assert_eq!(reference.to_string().parse::<Reference>().as_ref(), Ok(&reference));
            let authority = format!("{}://{}/", "https", reference.registry.host());
            assert!(client::url(&authority).is_some(), "nobody can be asked at {authority:?}");
        }
        Err(error) => assert!(harmless(&error.to_string()), "{error}"),
    }
    if let Ok(registry) = Registry::parse(text) {
        assert_eq!(Registry::parse(&registry.to_string()), Ok(registry));
    }
    match text.parse::<Selector>() {
        Ok(selector) => assert_eq!(selector.to_string(), text),
        Err(error) => assert!(harmless(&error.to_string()), "{error}"),
    }
}

/// What a client reads of an answer's head.
fn answers(one: &str, other: &str) {
    let challenges = client::challenges(one);
    let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
    let written = challenges.iter().map(|(scheme, parameters)| {
        let pairs = parameters.iter().map(|(name, value)| format!("{name}=\"{}\"", quoted(value)));
        format!("{scheme} {}", pairs.collect::<Vec<_>>().join(", "))
    });
    let written = written.collect::<Vec<_>>().join(", ");
    if written.len() <= 16 << 10 {
        assert_eq!(client::challenges(&written), challenges, "{written}");
    }

    for from in ["https://h.x/v2/a?b", other] {
        if let Some(to) = client::joined(from, one) {
            assert!(to.starts_with("https://") || !from.to_ascii_lowercase().starts_with("https://"), "{to}");
            assert!(to.starts_with("http") && to.bytes().all(|byte| byte.is_ascii_graphic()), "{to:?}");
            assert_eq!(client::url(&to).as_ref(), Some(&to), "an address has one form");
        }
    }
    if let Some(link) = client::next_link(one) {
        assert!(one.contains(&format!("<{link}>")));
    }
    if let Some((first, last, total)) = client::content_range(one) {
        assert!(first <= last && total.is_none_or(|total| last < total));
        let total = total.map_or("*".into(), |total| total.to_string());
        assert!(client::content_range(&format!("bytes {first}-{last}/{total}")).is_some());
    }
    if let Some(count) = client::received(one).filter(|count| *count > 1) {
        assert_eq!(client::received(&format!("0-{}", count - 1)), Some(count));
    }
}

/// What our server reads of a request's head.
fn requests(one: &str, other: &str) {
    match server::route(one) {
        Ok(path) => assert_eq!(server::route(&path).as_ref(), Ok(&path), "{one:?}"),
        Err(problem) => assert!(harmless(&problem), "{problem:?}"),
    }
    if let Some(value) = server::query(one, "digest").flatten() {
        let written: String = value.bytes().map(|byte| format!("%{byte:02x}")).collect();
        assert_eq!(server::query(&format!("digest={written}"), "digest"), Some(Some(value)));
    }

    let size = other.parse().unwrap_or(one.len() as u64);
    if let Some((first, last)) = server::wanted(one, size) {
        assert!(first <= last && last < size);
        assert_eq!(server::wanted(&format!("bytes={first}-{last}"), size), Some((first, last)));
    }
    if let Some((first, last)) = server::piece(one) {
        assert!(first <= last);
        assert_eq!(server::piece(&format!("{first}-{last}")), Some((first, last)));
    }

    let bound = SocketAddr::from(([127, 0, 0, 1], 5000));
    if server::may_ask(other, one.as_bytes(), bound) == Some(true) {
        assert!(["localhost:5000", "127.0.0.1:5000"].iter().any(|name| one.eq_ignore_ascii_case(name)));
    }
    if let Ok(addr) = smolcellar_registry::parse_addr(one) {
        assert!(addr.ip().is_loopback());
        assert_eq!(smolcellar_registry::parse_addr(&addr.to_string()).ok(), Some(addr));
    }
    if let Err(error) = smolcellar_registry::parse_addr(one) {
        assert!(harmless(&error.to_string()), "{error:?}");
    }
}
