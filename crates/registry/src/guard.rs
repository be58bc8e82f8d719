//! Who may ask at all. A web page in this user's browser may not: it can send
//! requests to this port (with its origin in a header), and it can have its own
//! name resolve to 127.0.0.1 (with that name as host).

use std::net::{IpAddr, SocketAddr};

use hyper::header::{HOST, ORIGIN};
use hyper::{HeaderMap, StatusCode, Uri};

use crate::problem::Problem;

/// Refuses requests that are not for this very server.
///
/// # Errors
/// 403 for a request with an origin, 400 for one without exactly one host, 421
/// for another host (RFC 9110, section 15.5.20).
pub(crate) fn check(uri: &Uri, headers: &HeaderMap, bound: SocketAddr) -> Result<(), Problem> {
    let denied = |status, text: &str| Err(Problem::new(status, "DENIED", text));
    if headers.contains_key(ORIGIN) {
        return denied(StatusCode::FORBIDDEN, "web pages have no business here");
    }
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return denied(StatusCode::BAD_REQUEST, "a request names its host, once");
    };
    // With an absolute target, that is the host (RFC 9112, section 3.2.2); both have to fit.
    let named = |host: &str| is_host(host, bound);
    let fits = host.to_str().is_ok_and(named) && uri.authority().is_none_or(|target| named(target.as_str()));
    if !fits {
        return denied(StatusCode::MISDIRECTED_REQUEST, "this is another host's request");
    }
    Ok(())
}

/// Whether this is how the server is called: its address and port, or
/// `localhost` and the port.
pub(crate) fn is_host(host: &str, bound: SocketAddr) -> bool {
    let port = bound.port();
    let address = match bound.ip() {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    ["localhost", address.as_str()].into_iter().any(|name| {
        let rest = host.get(..name.len()).filter(|start| start.eq_ignore_ascii_case(name));
        match rest.and_then(|_| host.get(name.len()..)) {
            Some("") => port == 80,
            Some(rest) => rest.strip_prefix(':').is_some_and(|digits| digits == port.to_string()),
            None => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bound(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn only_the_servers_own_names_are_its_names() {
        let four = bound("127.0.0.1:5000");
        for (host, fits) in [
            ("127.0.0.1:5000", true),
            ("localhost:5000", true),
            ("LocalHost:5000", true),
            ("127.0.0.1", false),
            ("127.0.0.1:5001", false),
            ("127.0.0.1:05000", false),
            ("127.0.0.1:5000.", false),
            ("127.0.0.1:50000", false),
            ("127.0.0.2:5000", false),
            ("localhost.:5000", false),
            ("localhost.example.org:5000", false),
            ("example.org:5000", false),
            ("[::1]:5000", false),
            ("user@localhost:5000", false),
            ("", false),
            ("l\u{f6}calhost:5000", false),
        ] {
            assert_eq!(is_host(host, four), fits, "{host}");
        }
        let six = bound("[::1]:5000");
        assert!(is_host("[::1]:5000", six) && is_host("localhost:5000", six) && !is_host("::1:5000", six));
        assert!(is_host("localhost", bound("127.0.0.1:80")));
    }

    #[test]
    fn a_request_is_judged_by_origin_host_and_target() {
        let check = |uri: &str, headers: &[(&'static str, &str)]| {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.append(*name, value.parse().unwrap());
            }
            check(&uri.parse().unwrap(), &map, bound("127.0.0.1:5000"))
                .map_err(|problem| problem.status.as_u16())
        };
        let host = ("host", "127.0.0.1:5000");
        assert_eq!(check("/v2/", &[host]), Ok(()));
        assert_eq!(check("http://localhost:5000/v2/", &[host]), Ok(()));
        assert_eq!(check("http://example.org/v2/", &[host]), Err(421));
        assert_eq!(check("/v2/", &[("host", "example.org")]), Err(421));
        assert_eq!(check("/v2/", &[]), Err(400));
        assert_eq!(check("/v2/", &[host, host]), Err(400));
        assert_eq!(check("/v2/", &[host, ("origin", "http://127.0.0.1:5000")]), Err(403));
        assert_eq!(check("/v2/", &[host, ("origin", "null")]), Err(403));
    }

    proptest! {
        #[test]
        fn no_host_but_the_two_fits(host in "\\PC{0,24}|(localhost|127\\.0\\.0\\.1)[:.0-9]{0,7}") {
            let fits = is_host(&host, bound("127.0.0.1:5000"));
            let lower = host.to_ascii_lowercase();
            prop_assert_eq!(fits, lower == "localhost:5000" || lower == "127.0.0.1:5000");
        }
    }
}
