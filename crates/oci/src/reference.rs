//! How images are called: repositories, tags, references.
//!
//! The grammar is that of the OCI distribution specification (`spec.md`,
//! "Pulling manifests") and, for whole references, of the `distribution`
//! project's `reference` package, which docker, podman and skopeo follow.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use smolcellar_store::Digest;

/// The longest repository name, in bytes: what registries accept.
const MAX_REPOSITORY: usize = 255;
/// The longest tag, in bytes.
const MAX_TAG: usize = 128;

/// A name that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{}' is no {what}: {problem}", clip(text))]
pub struct NameError {
    /// What was given.
    pub text: String,
    /// What it should be.
    pub what: &'static str,
    /// What is wrong with it.
    pub problem: &'static str,
}

/// Keeps a hostile text from filling a terminal, or steering it.
fn clip(text: &str) -> String {
    let mut clipped: String = text.chars().take(100).flat_map(char::escape_debug).collect();
    if text.chars().nth(100).is_some() {
        clipped.push('…');
    }
    clipped
}

/// A repository's name at a registry: `team/agent`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Repository(String);

impl Repository {
    /// Parses a name: components of lower-case letters and digits, with `.`,
    /// `_`, `__` or dashes between them, joined by slashes; 255 bytes at most.
    ///
    /// # Errors
    /// [`NameError`].
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let refuse = |problem| Err(NameError { text: text.to_owned(), what: "repository name", problem });
        if text.len() > MAX_REPOSITORY {
            return refuse("it is longer than 255 bytes");
        }
        if !text.split('/').all(is_component) {
            return refuse(
                "its parts between slashes are lower-case letters and digits, with single '.', '_', '__' or dashes between them",
            );
        }
        Ok(Self(text.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(text: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends = bytes.first().zip(bytes.last()).is_some_and(|(a, b)| alphanumeric(*a) && alphanumeric(*b));
    let separator = |run: &[u8]| matches!(run, b"." | b"_" | b"__") || run.iter().all(|byte| *byte == b'-');
    ends && bytes
        .chunk_by(|a, b| alphanumeric(*a) == alphanumeric(*b))
        .all(|run| alphanumeric(run[0]) || separator(run))
}

/// The name of a version in a repository: `latest`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tag(String);

impl Tag {
    /// Parses a tag: a letter, a digit or `_`, then up to 127 of these, `.` and `-`.
    ///
    /// # Errors
    /// [`NameError`].
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let refuse = |problem| Err(NameError { text: text.to_owned(), what: "tag", problem });
        match text.as_bytes() {
            [] => refuse("it is empty"),
            bytes if bytes.len() > MAX_TAG => refuse("it is longer than 128 bytes"),
            [first, rest @ ..]
                if word(*first) && rest.iter().all(|b| word(*b) || matches!(b, b'.' | b'-')) =>
            {
                Ok(Self(text.to_owned()))
            }
            _ => refuse("a tag has letters, digits, '_', '.' and '-', and does not begin with the last two"),
        }
    }

    /// The tag.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a manifest is asked for by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Selector {
    /// Whatever has this name now.
    Tag(Tag),
    /// The one with these bytes.
    Digest(Digest),
}

impl FromStr for Selector {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if !text.contains(':') {
            return Tag::parse(text).map(Self::Tag);
        }
        let refuse = |_| NameError {
            text: text.to_owned(),
            what: "digest",
            problem: "it is not sha256: and 64 hex digits",
        };
        Digest::parse(text).map(Self::Digest).map_err(refuse)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

/// How a registry is spoken to, where a reference says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// In the clear.
    Http,
    /// Over TLS.
    Https,
}

/// A registry: `HOST[:PORT]`, with `http://` or `https://` before it where how
/// to speak to it is not to be guessed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Registry {
    /// `HOST` or `HOST:PORT`, lower-case; an IPv6 address is in brackets.
    host: String,
    scheme: Option<Scheme>,
}

impl Registry {
    /// Parses `[SCHEME://]HOST[:PORT]`.
    ///
    /// # Errors
    /// [`NameError`].
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let refuse = |problem| NameError { text: text.to_owned(), what: "registry", problem };
        let (scheme, host) = match text.split_once("://") {
            Some(("http", host)) => (Some(Scheme::Http), host),
            Some(("https", host)) => (Some(Scheme::Https), host),
            Some(_) => return Err(refuse("it is spoken to by http:// or https:// only")),
            None => (None, text),
        };
        let host = host.to_ascii_lowercase();
        match is_host(&host) {
            true => Ok(Self { host, scheme }),
            false => Err(refuse("give HOST or HOST:PORT")),
        }
    }

    /// `HOST` or `HOST:PORT`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// How it is spoken to: as the reference says, else in the clear on this
    /// machine's loopback and over TLS everywhere else.
    pub fn scheme(&self) -> Scheme {
        match self.scheme {
            Some(scheme) => scheme,
            None if self.is_loopback() => Scheme::Http,
            None => Scheme::Https,
        }
    }

    /// Whether it is on this machine, by its name.
    pub fn is_loopback(&self) -> bool {
        let (name, _) = split_port(&self.host);
        let address = name.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
        name == "localhost" || address.is_ok_and(|address| address.is_loopback())
    }
}

impl fmt::Display for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.scheme {
            Some(Scheme::Http) => "http://",
            Some(Scheme::Https) => "https://",
            None => "",
        })?;
        f.write_str(&self.host)
    }
}

/// The name or address, and what follows its colon.
fn split_port(host: &str) -> (&str, Option<&str>) {
    let name = host.rfind(']').map_or(0, |end| end + 1);
    match host[name..].find(':') {
        Some(colon) => (&host[..name + colon], Some(&host[name + colon + 1..])),
        None => (host, None),
    }
}

fn is_host(host: &str) -> bool {
    let (name, port) = split_port(host);
    let label = |label: &str| {
        let fine = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        !label.is_empty() && fine && !label.starts_with('-') && !label.ends_with('-')
    };
    let named = match name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => name.len() <= 253 && name.split('.').all(label),
    };
    named && port.is_none_or(|port| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok())
}

/// `[SCHEME://]REGISTRY/REPOSITORY[:TAG][@DIGEST]`.
///
/// The registry is never guessed: a push without one would go to whatever
/// registry a program has for its default.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    /// Where.
    pub registry: Registry,
    /// What.
    pub repository: Repository,
    /// Which, by name.
    pub tag: Option<Tag>,
    /// Which, by its bytes; counts before the tag.
    pub digest: Option<Digest>,
}

impl Reference {
    /// What its manifest is asked for by; `latest` if it says nothing.
    pub fn selector(&self) -> Selector {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => Selector::Digest(*digest),
            (None, Some(tag)) => Selector::Tag(tag.clone()),
            (None, None) => Selector::Tag(Tag("latest".into())),
        }
    }
}

impl FromStr for Reference {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let refuse = |problem| NameError { text: text.to_owned(), what: "image reference", problem };
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (Some(scheme), rest),
            None => (None, text),
        };
        let no_registry = "name the registry too: HOST/NAME[:TAG], or docker.io/NAME";
        let (host, rest) = rest.split_once('/').ok_or_else(|| refuse(no_registry))?;
        // As docker tells a registry from the first part of a name.
        if scheme.is_none() && !host.contains(['.', ':']) && host != "localhost" {
            return Err(refuse(no_registry));
        }
        let registry = match scheme {
            Some(scheme) => Registry::parse(&format!("{scheme}://{host}"))?,
            None => Registry::parse(host)?,
        };
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => {
                let parsed = Digest::parse(digest);
                (rest, Some(parsed.map_err(|_| refuse("its digest is not sha256: and 64 hex digits"))?))
            }
            None => (rest, None),
        };
        let (name, tag) = match rest.split_once(':') {
            Some((name, tag)) => (name, Some(Tag::parse(tag)?)),
            None => (rest, None),
        };
        Ok(Self { registry, repository: Repository::parse(name)?, tag, digest })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        self.tag.iter().try_for_each(|tag| write!(f, ":{tag}"))?;
        self.digest.iter().try_for_each(|digest| write!(f, "@{digest}"))
    }
}

/// Display, and the two conversions that serde goes through.
macro_rules! text {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                Self::parse(&text)
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }
    };
}
text!(Repository);
text!(Tag);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn repositories_follow_the_specifications_grammar() {
        for good in ["a", "a/b", "a.b_c__d-e--f/g0", "0", &"a".repeat(255)] {
            assert!(Repository::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "/",
            "a/",
            "/a",
            "A",
            "a//b",
            "a..b",
            "a___b",
            "-a",
            "a-",
            "a/../b",
            "a b",
            "é",
            &"a".repeat(256),
        ] {
            assert!(Repository::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn tags_follow_the_specifications_grammar() {
        for good in ["a", "_", "A.b-c_1", &"t".repeat(128)] {
            assert!(Tag::parse(good).is_ok(), "{good}");
        }
        for bad in ["", ".a", "-a", "a:b", "a/b", "a b", &"t".repeat(129)] {
            assert!(Tag::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_reference_is_taken_apart() {
        let digest = Digest::of(b"x");
        let full: Reference = format!("Example.org:5000/team/agent:v1@{digest}").parse().unwrap();
        assert_eq!((full.registry.host(), full.registry.scheme()), ("example.org:5000", Scheme::Https));
        assert_eq!((full.repository.as_str(), full.tag.as_ref().unwrap().as_str()), ("team/agent", "v1"));
        assert_eq!(full.selector(), Selector::Digest(digest));
        let plain: Reference = "http://example.org/a".parse().unwrap();
        assert_eq!(
            (plain.registry.scheme(), plain.to_string()),
            (Scheme::Http, "http://example.org/a".into())
        );
        assert_eq!(plain.selector().to_string(), "latest");
        for (text, scheme) in [
            ("localhost/a", Scheme::Http),
            ("127.0.0.1:5000/a", Scheme::Http),
            ("[::1]:5000/a", Scheme::Http),
            ("https://127.0.0.1:5000/a", Scheme::Https),
            ("127.0.0.1.example.org/a", Scheme::Https),
            ("10.0.0.1:5000/a", Scheme::Https),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().registry.scheme(), scheme, "{text}");
        }
    }

    #[test]
    fn what_is_no_reference_is_refused_with_a_reason() {
        for (text, says) in [
            ("agent", "name the registry"),
            ("team/agent", "name the registry"),
            ("ftp://h/a", "http://"),
            ("h.x/A", "lower-case"),
            ("h.x/a:", "empty"),
            ("h.x/a@sha256:1", "64 hex"),
            ("h.x:99999/a", "HOST"),
            ("u:p@h.x/a", "HOST"),
            ("h.x/", "lower-case"),
        ] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
        assert!(!"h.x/\u{1b}[2J".parse::<Reference>().unwrap_err().to_string().contains('\u{1b}'));
    }

    proptest! {
        #[test]
        fn a_reference_prints_as_what_it_is_parsed_from(
            text in "(https?://)?[a-z0-9.\\[\\]:-]{1,20}/[a-z0-9._/-]{1,20}(:[A-Za-z0-9._-]{1,9})?"
        ) {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string(), text);
            }
        }

        #[test]
        fn no_text_makes_a_parser_panic(text in "\\PC{0,60}") {
            let _ = (text.parse::<Reference>(), text.parse::<Selector>(), Registry::parse(&text));
        }
    }
}
