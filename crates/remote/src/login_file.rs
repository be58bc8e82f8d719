//! Files with logins: Docker's `config.json` and Podman's `auth.json`, which are
//! one format (docker's `cli/config/configfile`, containers'
//! `containers-auth.json(5)`). Parsing and choosing only.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::Deserialize;
use smolcellar_oci::Repository;

use crate::options::Secret;

/// The largest such file that is read, in bytes.
pub(crate) const MAX_FILE: u64 = 1 << 20;

/// Where Docker keeps the login of its own registry.
pub(crate) const DOCKER_KEY: &str = "https://index.docker.io/v1/";

/// What such a file says, as far as it is about logins.
#[derive(Deserialize, Default)]
pub(crate) struct LoginFile {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default, rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(default, rename = "credsStore")]
    store: String,
}

#[derive(Deserialize, Default)]
struct Entry {
    /// Base64 of `USER:PASSWORD`.
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default, rename = "identitytoken")]
    identity: String,
    #[serde(default, rename = "registrytoken")]
    registry: String,
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Login {
    /// A user and their password.
    Password(String, Secret),
    /// What a token server gives tokens for.
    Identity(Secret),
    /// A token for the registry itself.
    Bearer(Secret),
}

/// Where a file says that a login is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the file.
    Here(Login),
    /// With `docker-credential-NAME`, under this address.
    Helper {
        /// The `NAME`.
        name: String,
        /// What it is asked for.
        server: String,
    },
}

impl LoginFile {
    /// Parses a file. What is wrong with it otherwise, without any of its
    /// contents: a message must not show half a password.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes).map_err(|error| {
            format!(
                "it is no login file of docker or podman (line {}, column {})",
                error.line(),
                error.column()
            )
        })
    }

    /// Where the login for a repository of the registry `host` is: the places
    /// to ask, in order. What is wrong with its entry otherwise.
    pub(crate) fn places(&self, host: &str, repository: &Repository) -> Result<Vec<Place>, String> {
        let mut places = Vec::new();
        let own = self.helpers.iter().find(|(key, _)| is_of(key, host)).map(|(_, name)| name.as_str());
        for name in own.into_iter().chain([self.store.as_str()]).filter(|name| !name.is_empty()) {
            let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            if !name.chars().all(word) {
                return Err("it names a credential helper by something that is no program's name".into());
            }
            let server = if is_docker(host) { DOCKER_KEY } else { host };
            places.push(Place::Helper { name: name.to_owned(), server: server.to_owned() });
        }
        let problem = |key: &str, problem| format!("the entry '{}' {problem}", crate::text::clip(key, 100));
        if let Some((key, entry)) = self.entry(host, repository)
            && let Some(login) = entry.login().map_err(|text| problem(key, text))?
        {
            places.push(Place::Here(login));
        }
        Ok(places)
    }

    /// The entry of the repository, of what it is in, or of the registry.
    fn entry(&self, host: &str, repository: &Repository) -> Option<(&str, &Entry)> {
        let mut name = repository.as_str();
        loop {
            // Podman's, which can be about parts of a registry.
            if let Some((key, entry)) = self.auths.get_key_value(&format!("{host}/{name}")) {
                return Some((key, entry));
            }
            match name.rsplit_once('/') {
                Some((folder, _)) => name = folder,
                None => break,
            }
        }
        let exact = self.auths.get_key_value(host);
        let found = exact.or_else(|| self.auths.iter().find(|(key, _)| is_of(key, host)));
        found.map(|(key, entry)| (key.as_str(), entry))
    }
}

impl Entry {
    /// The login in it, if there is any: beside a helper, entries are empty.
    fn login(&self) -> Result<Option<Login>, &'static str> {
        if !self.identity.is_empty() {
            return Ok(Some(Login::Identity(Secret::new(&self.identity))));
        }
        if !self.registry.is_empty() {
            return Ok(Some(Login::Bearer(Secret::new(&self.registry))));
        }
        if self.auth.is_empty() {
            let named = !self.username.is_empty();
            return Ok(named.then(|| Login::Password(self.username.clone(), Secret::new(&self.password))));
        }
        let decoded = STANDARD.decode(self.auth.trim()).or_else(|_| STANDARD_NO_PAD.decode(self.auth.trim()));
        let decoded = decoded.map_err(|_| "has an 'auth' that is not base64")?;
        let text = String::from_utf8(decoded).map_err(|_| "has an 'auth' that is no text")?;
        // Older docker ends it with a zero byte.
        let (user, password) =
            text.trim_end_matches('\0').split_once(':').ok_or("has an 'auth' that is not USER:PASSWORD")?;
        Ok(Some(Login::Password(user.to_owned(), Secret::new(password))))
    }
}

/// Whether this is docker.io, by any of its names.
pub(crate) fn is_docker(host: &str) -> bool {
    matches!(host, "docker.io" | "index.docker.io" | "registry-1.docker.io")
}

/// Whether a key is about a whole registry: `HOST`, with what `docker login`
/// once put around it.
fn is_of(key: &str, host: &str) -> bool {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let (name, rest) = bare.split_once('/').unwrap_or((bare, ""));
    // Anything else after the host is a repository, and not this one.
    let whole = matches!(rest, "" | "v1" | "v1/" | "v2" | "v2/");
    whole && (name.eq_ignore_ascii_case(host) || is_docker(name) && is_docker(host))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn places(file: &str, host: &str, repository: &str) -> Result<Vec<Place>, String> {
        LoginFile::parse(file.as_bytes())?.places(host, &Repository::parse(repository).unwrap())
    }

    fn password(user: &str, password: &str) -> Place {
        Place::Here(Login::Password(user.into(), Secret::new(password)))
    }

    #[test]
    fn logins_are_found_under_every_name_that_docker_and_podman_give_them() {
        // u:p:w, v:w
        let file = r#"{"auths": {"h.x:5000": {"auth": "dTpwOnc="}, "h.x:5000/team": {"auth": "djp3"},
            "https://index.docker.io/v1/": {"username": "d", "password": "e"}, "https://q.z/v2/": {"identitytoken": "i"},
            "empty.x": {}}, "credHelpers": {"gcr.io": "gcloud"}, "HttpHeaders": {"a": "b"}}"#;
        assert_eq!(places(file, "h.x:5000", "a/b"), Ok(vec![password("u", "p:w")]));
        assert_eq!(places(file, "h.x:5000", "team/b"), Ok(vec![password("v", "w")]));
        assert_eq!(places(file, "docker.io", "a"), Ok(vec![password("d", "e")]));
        assert_eq!(places(file, "q.z", "a"), Ok(vec![Place::Here(Login::Identity(Secret::new("i")))]));
        let helper = |name: &str, server: &str| Place::Helper { name: name.into(), server: server.into() };
        assert_eq!(places(file, "gcr.io", "a"), Ok(vec![helper("gcloud", "gcr.io")]));
        for none in ["empty.x", "h.x", "x:5000", "teamh.x:5000"] {
            assert_eq!(places(file, none, "a"), Ok(vec![]), "{none}");
        }
        let store = r#"{"credsStore": "pass", "auths": {"h.x": {"auth": "dTpw"}}}"#;
        assert_eq!(places(store, "h.x", "a"), Ok(vec![helper("pass", "h.x"), password("u", "p")]));
        assert_eq!(places(store, "docker.io", "a"), Ok(vec![helper("pass", DOCKER_KEY)]));
    }

    #[test]
    fn what_is_wrong_is_said_without_saying_what_is_secret() {
        for (file, says) in [
            (r#"{"auths": {"h.x": {"auth": "needle!"}}}"#, "not base64"),
            (r#"{"auths": {"h.x": {"auth": "bmVlZGxl"}}}"#, "USER:PASSWORD"),
            (r#"{"auths": {"h.x": {"auth": ["needle"]}}}"#, "line 1"),
            (r#"{"auths": "needle"#, "line 1"),
            (r#"{"credsStore": "../needle"}"#, "no program's name"),
        ] {
            let problem = places(file, "h.x", "a").unwrap_err();
            assert!(problem.contains(says) && !problem.contains("needle"), "{problem}");
        }
        assert!(!format!("{:?}", password("u", "needle")).contains("needle"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, key in "\\PC{0,20}", auth in "[A-Za-z0-9+/=]{0,24}") {
            let _ = LoginFile::parse(&bytes);
            let file = serde_json::json!({ "auths": { key: { "auth": auth } } }).to_string();
            let _ = places(&file, "h.x", "a/b");
        }

        #[test]
        fn what_docker_login_writes_is_read_back(user in "[^:\\x00]{1,20}", secret in "[^\\x00]{1,40}") {
            let auth = STANDARD.encode(format!("{user}:{secret}"));
            let file = serde_json::json!({ "auths": { "h.x": { "auth": auth } } }).to_string();
            prop_assert_eq!(places(&file, "h.x", "a"), Ok(vec![password(&user, &secret)]));
        }
    }
}
