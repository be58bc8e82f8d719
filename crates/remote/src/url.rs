//! Addresses: where requests go, and what an answer may send them to.

use std::fmt;

use smolcellar_oci::{Registry, Scheme};
use ureq::http::Uri;

/// The longest address that is followed, in bytes; signed ones are long.
const LONGEST: usize = 16 << 10;

/// An absolute `http` or `https` address.
///
/// Shown, it is its origin only: paths and queries of other hosts hold
/// signatures that are as good as passwords.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Url {
    scheme: Scheme,
    /// `HOST` or `HOST:PORT`, lower-case, without a port that goes without saying.
    authority: String,
    /// Path and query.
    path: String,
}

impl Url {
    /// The root of a registry.
    pub(crate) fn of(registry: &Registry) -> Self {
        let scheme = registry.scheme();
        Self { scheme, authority: without_default_port(scheme, registry.host()), path: "/".into() }
    }

    /// Parses an absolute address. What is wrong with it otherwise.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        if text.len() > LONGEST || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("an address that is none");
        }
        let text = text.split('#').next().unwrap_or_default();
        let uri: Uri = text.parse().map_err(|_| "an address that is none")?;
        let scheme = match uri.scheme_str() {
            Some("http") => Scheme::Http,
            Some("https") => Scheme::Https,
            _ => return Err("an address that is neither http nor https"),
        };
        let authority = uri.authority().map(|authority| authority.as_str().to_ascii_lowercase());
        let authority =
            authority.filter(|authority| !authority.is_empty()).ok_or("an address without a host")?;
        if authority.contains('@') {
            return Err("an address with a user name in it");
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let slash = if path.starts_with('/') { "" } else { "/" };
        Ok(Self {
            scheme,
            authority: without_default_port(scheme, &authority),
            path: format!("{slash}{path}"),
        })
    }

    /// Where a `Location` (or a link) in an answer of this address points to
    /// (RFC 3986, section 5.2, without dot segments, which no registry sends).
    ///
    /// Never from TLS to the clear: a registry behind a proxy that ends TLS for
    /// it may think that it is spoken to in the clear, and means itself.
    pub(crate) fn join(&self, location: &str) -> Result<Self, &'static str> {
        let scheme = self.scheme_text();
        let joined = if location.contains("://") && !location.starts_with(['/', '?', '.']) {
            Self::parse(location)?
        } else if let Some(rest) = location.strip_prefix("//") {
            Self::parse(&format!("{scheme}://{rest}"))?
        } else if location.starts_with('/') {
            Self::parse(&format!("{scheme}://{}{location}", self.authority))?
        } else {
            let path = self.path.split('?').next().unwrap_or_default();
            let folder = match location.starts_with('?') {
                true => path,
                false => &path[..path.rfind('/').map_or(0, |slash| slash + 1)],
            };
            Self::parse(&format!("{scheme}://{}{folder}{location}", self.authority))?
        };
        match (self.scheme, joined.scheme) {
            (Scheme::Https, Scheme::Http) if bare_host(&joined.authority) == bare_host(&self.authority) => {
                Ok(Self { path: joined.path, ..self.clone() })
            }
            (Scheme::Https, Scheme::Http) => Err("an address that is not encrypted"),
            _ => Ok(joined),
        }
    }

    /// The same host with this path, which is ours and begins with a slash.
    pub(crate) fn at(&self, path: &str) -> Self {
        Self { path: path.to_owned(), ..self.clone() }
    }

    /// With one more field in its query.
    pub(crate) fn with(&self, name: &str, value: &str) -> Self {
        let joint = if self.path.contains('?') { '&' } else { '?' };
        self.at(&format!("{}{joint}{name}={}", self.path, encoded(value)))
    }

    /// Whether the two are one server: what may be told to one may be told to
    /// the other.
    pub(crate) fn same_origin(&self, other: &Self) -> bool {
        self.scheme == other.scheme && self.authority == other.authority
    }

    pub(crate) fn is_encrypted(&self) -> bool {
        self.scheme == Scheme::Https
    }

    /// Path and query.
    #[cfg(test)]
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// All of it, for the request itself.
    pub(crate) fn text(&self) -> String {
        format!("{}://{}{}", self.scheme_text(), self.authority, self.path)
    }

    fn scheme_text(&self) -> &'static str {
        match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme_text(), self.authority)
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn without_default_port(scheme: Scheme, authority: &str) -> String {
    let port = match scheme {
        Scheme::Http => ":80",
        Scheme::Https => ":443",
    };
    authority.strip_suffix(port).unwrap_or(authority).to_owned()
}

/// The host without its port.
fn bare_host(authority: &str) -> &str {
    let end = authority.rfind(']').map_or(0, |end| end + 1);
    authority[end..].find(':').map_or(authority, |colon| &authority[..end + colon])
}

/// Everything but unreserved characters (RFC 3986, section 2.3) as `%XX`.
pub(crate) fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(byte as char),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// The target of `Link: <TARGET>; rel="next"` (RFC 8288), if there is one.
pub(crate) fn next_link(header: &str) -> Option<&str> {
    let mut rest = header;
    loop {
        let (_, after) = rest.split_once('<')?;
        let (target, after) = after.split_once('>')?;
        let end = after.find('<').unwrap_or(after.len());
        let relation = after[..end].split([';', ',']).map(str::trim);
        if relation.clone().any(|part| matches!(part, "rel=\"next\"" | "rel=next")) {
            return Some(target);
        }
        rest = &after[end..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn locations_are_followed_as_a_browser_would_but_never_out_of_tls() {
        let from = Url::parse("https://h.x:443/v2/a/uploads/1?x=y").unwrap();
        for (location, to) in [
            ("/v2/b?q=1", "https://h.x/v2/b?q=1"),
            ("2", "https://h.x/v2/a/uploads/2"),
            ("?z", "https://h.x/v2/a/uploads/1?z"),
            ("//s.y/p", "https://s.y/p"),
            ("https://s.y:444/p#f", "https://s.y:444/p"),
            ("/r?u=http://q.z/", "https://h.x/r?u=http://q.z/"),
            // Of itself, as seen behind a proxy.
            ("http://h.x/p", "https://h.x/p"),
        ] {
            assert_eq!(from.join(location).unwrap().text(), to, "{location}");
        }
        for bad in ["http://s.y/p", "ftp://h.x/", "https://u:p@h.x/", "https:///x", "/a b", "/é"] {
            assert!(from.join(bad).is_err(), "{bad}");
        }
        let clear = Url::parse("http://127.0.0.1:5000/v2/").unwrap();
        assert!(clear.join("https://s.y/").is_ok() && clear.join("http://s.y/").is_ok());
        assert!(!clear.same_origin(&clear.join("http://127.0.0.1:5001/").unwrap()));
        assert!(from.same_origin(&Url::parse("https://H.X/other").unwrap()));
    }

    #[test]
    fn an_address_shows_no_more_than_its_origin() {
        let url = Url::parse("https://s.y/p?signature=secret").unwrap();
        assert_eq!((url.to_string(), format!("{url:?}")), ("https://s.y".into(), "https://s.y".into()));
        assert_eq!(url.with("digest", "sha256:a").path(), "/p?signature=secret&digest=sha256%3Aa");
    }

    #[test]
    fn the_next_page_is_found_among_links() {
        assert_eq!(next_link("</v2/a?n=1>; rel=\"next\""), Some("/v2/a?n=1"));
        assert_eq!(next_link("</p>; rel=\"prev\", </n>; rel=next"), Some("/n"));
        assert_eq!(next_link("</p>; rel=\"prev\""), None);
    }

    proptest! {
        #[test]
        fn no_text_leads_out_of_http_or_makes_a_parser_panic(text in "(https?://)?[ -~é]{0,60}") {
            let from = Url::parse("https://h.x/a/b").unwrap();
            if let Ok(url) = from.join(&text) {
                prop_assert!(url.is_encrypted());
                prop_assert_eq!(Url::parse(&url.text()), Ok(url));
            }
            let _ = next_link(&text);
        }
    }
}
