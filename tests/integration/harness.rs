//! The tests' own registry and its front do what the other tests count on.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use smolcellar_tests::needs::have;
use smolcellar_tests::proxy::{Fault, Proxy};
use smolcellar_tests::registry::{Access, NEEDS, Registry};
use smolcellar_tests::tokens::Tokens;

/// Sends one request on a connection of its own; the whole answer.
fn ask(host: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(host).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let (first, rest) = request.split_once('\n').unwrap_or((request, ""));
    write!(stream, "{first} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{rest}\r\n").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn the_front_passes_everything_on_and_does_each_fault_as_often_as_told() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::start(Access::Plain);
    let proxy = Proxy::before(registry.address());
    let plain = ask(&proxy.host(), "GET /v2/");
    assert!(plain.starts_with("HTTP/1.1 200") && plain.ends_with("{}"), "{plain}");
    proxy.fault("GET", "/v2/", 1, 2, Fault::with_header(429, "Retry-After", "1"));
    let codes: Vec<_> = (0..4).map(|_| ask(&proxy.host(), "GET /v2/")[9..12].to_owned()).collect();
    assert_eq!(codes, ["200", "429", "429", "200"]);
    assert_eq!((proxy.count("GET", "/v2/"), proxy.count("PUT", "")), (5, 0));
    for (fault, body) in [
        (Fault::CutAnswer(1), Some("{")),
        (Fault::Flip(0), Some("k}")),
        (Fault::Dribble(Duration::from_millis(1)), Some("{}")),
        (Fault::Length(7), Some("{}")),
        (Fault::Drop, None),
    ] {
        proxy.mend();
        proxy.fault("*", "", 0, 1, fault.clone());
        let answer = ask(&proxy.host(), "GET /v2/");
        assert_eq!(answer.split_once("\r\n\r\n").map(|(_, body)| body), body, "{fault:?}");
        assert_eq!(answer.contains("content-length: 9"), matches!(fault, Fault::Length(_)), "{answer}");
    }
}

#[test]
fn the_registry_wants_its_password_and_the_front_its_token() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::start(Access::Password);
    let refused = ask(&registry.host(), "GET /v2/");
    assert!(refused.starts_with("HTTP/1.1 401") && refused.contains("Basic realm="), "{refused}");
    let registry = Registry::start(Access::Plain);
    let proxy = Proxy::with_tokens(registry.address(), Tokens::good_for(1));
    let get = "GET /v2/a/b/tags/list";
    assert!(ask(&proxy.host(), get).contains("scope=\"repository:a/b:pull\""));
    assert!(ask(&proxy.host(), "GET /token?scope=repository%3Aa%2Fb%3Apull").contains("secret-token-0"));
    let with = format!("{get}\nAuthorization: Bearer secret-token-0\r\n");
    assert!(ask(&proxy.host(), &with).contains("NAME_UNKNOWN"), "the registry's own answer");
    assert!(ask(&proxy.host(), &with).contains("401"), "worn out");
}

#[test]
fn the_registry_speaks_tls_with_a_certificate_that_its_authority_vouches_for() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::start(Access::Tls);
    let output = std::process::Command::new("openssl")
        .args(["s_client", "-verify_return_error", "-connect", &registry.host(), "-CAfile"])
        .arg(registry.authority())
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
