//! One repository of one registry: requests that are let in and follow
//! redirects, and the small things: manifests, tags.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use smolcellar_oci::{MAX_MANIFEST, Manifest, Registry, Repository, Selector, Tag, media};
use smolcellar_store::Digest;

use crate::auth::{Auth, Right, Scopes};
use crate::error::{RemoteError, Result};
use crate::http::{Answer, Ask, Http, Payload};
use crate::login_file::is_docker;
use crate::options::Options;
use crate::retry::Retry;
use crate::url::{Url, encoded, next_link};

/// How many redirects are followed.
const HOPS: u32 = 5;
/// How often a request is let in anew: tokens end in the middle of things.
const RENEWALS: u32 = 3;
/// How many pages of tags are read.
const PAGES: usize = 1000;
/// The largest page of tags, in bytes.
const MAX_PAGE: usize = 4 << 20;
/// The most tags of a repository that are kept: some 40 MiB.
const MAX_TAGS: usize = 200_000;
/// The most bytes of a repository's pages that are read.
const MAX_PAGES: usize = 32 << 20;

/// One repository of one registry (OCI distribution specification 1.1). Cheap
/// to clone; clones share connections and tokens. Usable from many threads.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    http: Http,
    auth: Auth,
    repository: Repository,
}

/// A manifest as the registry has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What it is, as the registry says, else as it says itself; may be empty.
    pub media_type: String,
    /// The digest of the bytes, computed here.
    pub digest: Digest,
}

/// A repository's tags.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tags {
    /// Each once, in order.
    pub tags: Vec<Tag>,
    /// Whether there are others: too many to be read.
    pub truncated: bool,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({}/{})", self.0.http.name(), self.0.repository)
    }
}

impl Client {
    /// Of a repository; asks nobody yet.
    ///
    /// `docker.io` is spoken to at `registry-1.docker.io`, and its names without
    /// a slash are in `library/`, as docker has it.
    ///
    /// # Errors
    /// [`RemoteError::Nonsense`] if the names make none that can be asked for.
    pub fn new(registry: &Registry, repository: &Repository, options: Options) -> Result<Self> {
        let name = registry.host().to_owned();
        let (at, within) = match is_docker(registry.host()) {
            true => {
                let library = match repository.as_str().contains('/') {
                    true => repository.as_str().to_owned(),
                    false => format!("library/{repository}"),
                };
                (Registry::parse("registry-1.docker.io"), Repository::parse(&library))
            }
            false => (Ok(registry.clone()), Ok(repository.clone())),
        };
        let odd = |error: smolcellar_oci::NameError| RemoteError::Nonsense {
            registry: name.clone(),
            what: "its name".into(),
            problem: error.to_string(),
        };
        let (at, within) = (at.map_err(odd)?, within.map_err(odd)?);
        let http = Http::new(&at, registry.host(), Arc::new(options));
        Ok(Self(Arc::new(Inner { http, auth: Auth::new(registry, &within), repository: within })))
    }

    /// The repository, as the registry calls it.
    pub fn repository(&self) -> &Repository {
        &self.0.repository
    }

    /// What errors call the registry: its host.
    pub fn registry(&self) -> &str {
        self.0.http.name()
    }

    pub(crate) fn http(&self) -> &Http {
        &self.0.http
    }

    pub(crate) fn auth(&self) -> &Auth {
        &self.0.auth
    }

    pub(crate) fn options(&self) -> &Options {
        self.0.http.options()
    }

    pub(crate) fn scopes(&self, right: Right) -> Scopes {
        Scopes::of(&self.0.repository, right)
    }

    /// The address of something in the repository.
    pub(crate) fn at(&self, rest: &str) -> Url {
        self.0.http.root().at(&format!("/v2/{}/{rest}", self.0.repository))
    }

    /// What errors call something in the repository.
    pub(crate) fn named(&self, kind: &str, name: impl fmt::Display) -> String {
        format!("{kind} {name} of {}", self.0.repository)
    }

    /// One request without a stream: let in, and redirected where it only reads.
    /// Any status but 401 and redirects comes back.
    pub(crate) fn call(&self, ask: Ask, scopes: &Scopes, payload: Option<&[u8]>) -> Result<(Answer, Ask)> {
        let mut ask = ask;
        let (mut renewals, mut hops) = (0, 0);
        loop {
            // Nobody but the registry hears who asks.
            let ours = ask.url.same_origin(self.0.http.root());
            ask.authorization = ours.then(|| self.0.auth.header(scopes)).flatten();
            let payload = payload.map_or(Payload::None, Payload::Bytes);
            let mut answer = self.0.http.send(&ask, payload)?;
            match answer.status {
                401 if ours => {
                    self.renew(&mut answer, &ask, scopes, renewals < RENEWALS)?;
                    renewals += 1;
                }
                301 | 302 | 303 | 307 | 308 if matches!(ask.method, "GET" | "HEAD") && hops < HOPS => {
                    let location = answer.header("Location").unwrap_or_default();
                    let to = ask.url.join(location);
                    ask.url =
                        to.map_err(|problem| answer.nonsense(&ask, format!("by pointing to {problem}")))?;
                    hops += 1;
                }
                _ => return Ok((answer, ask)),
            }
        }
    }

    /// After a 401: gets another token, or says why that is no use.
    pub(crate) fn renew(&self, answer: &mut Answer, ask: &Ask, scopes: &Scopes, worth: bool) -> Result<()> {
        let challenges = answer.headers("WWW-Authenticate");
        // Read, so that the connection can be used again.
        let body = answer.small(64 << 10).unwrap_or_default();
        let used = ask.authorization.as_ref();
        let renewed = match worth {
            true => self.0.auth.answer(&self.0.http, &challenges, scopes, used, ask.deadline)?,
            false => None,
        };
        match renewed {
            Some(_) => Ok(()),
            None => Err(self.login(ask, &body)),
        }
    }

    fn login(&self, ask: &Ask, body: &[u8]) -> RemoteError {
        RemoteError::Login {
            registry: self.0.http.name().to_owned(),
            what: ask.what.clone(),
            said: crate::text::said(body),
            remedy: self.0.auth.remedy(),
        }
    }

    /// An answer that is none of those that were hoped for.
    pub(crate) fn refusal(&self, mut answer: Answer, ask: &Ask) -> RemoteError {
        if answer.status == 403 && self.0.auth.is_anonymous() {
            let body = answer.small(64 << 10).unwrap_or_default();
            return self.login(ask, &body);
        }
        answer.refusal(ask)
    }

    /// The manifest or index of this name; `None` if there is none. One that is
    /// asked for by its digest has it.
    ///
    /// # Errors
    /// [`RemoteError`]; within [`Options::lookup`].
    pub fn manifest(&self, selector: &Selector) -> Result<Option<Fetched>> {
        let accept = [media::MANIFEST, media::INDEX, media::DOCKER_MANIFEST, media::DOCKER_INDEX].join(", ");
        let what = self.named("the manifest", selector);
        Retry::lookup(self.options()).run(|retry| {
            let ask = Ask::new("GET", self.at(&format!("manifests/{selector}")), &what)
                .header("Accept", &accept)
                .until(retry.deadline());
            let (mut answer, ask) = self.call(ask, &self.scopes(Right::Pull), None)?;
            match answer.status {
                200 => {}
                404 => return Ok(None),
                _ => return Err(self.refusal(answer, &ask)),
            }
            let bytes = answer.small(MAX_MANIFEST)?;
            let digest = Digest::of(&bytes);
            if let Selector::Digest(expected) = selector
                && digest != *expected
            {
                let registry = self.0.http.name().to_owned();
                return Err(RemoteError::Wrong {
                    registry,
                    what: what.clone(),
                    expected: *expected,
                    actual: digest,
                });
            }
            let said = answer.header("Content-Type").unwrap_or_default();
            let said = said.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
            let media_type = match said.as_str() {
                "" | "application/json" | "application/octet-stream" | "text/plain" => {
                    Manifest::parse(&bytes).ok().and_then(|manifest| manifest.media_type).unwrap_or(said)
                }
                _ => said,
            };
            Ok(Some(Fetched { bytes, media_type, digest }))
        })
    }

    /// The digest that a tag has now, as the registry says; `None` if there is
    /// no such tag or the registry does not say. A hint: what is fetched by it
    /// is verified, this is not.
    ///
    /// # Errors
    /// [`RemoteError`]; within [`Options::lookup`].
    pub fn resolve(&self, selector: &Selector) -> Result<Option<Digest>> {
        let accept = [media::MANIFEST, media::INDEX, media::DOCKER_MANIFEST, media::DOCKER_INDEX].join(", ");
        Retry::lookup(self.options()).run(|retry| {
            let ask = Ask::new(
                "HEAD",
                self.at(&format!("manifests/{selector}")),
                self.named("the manifest", selector),
            )
            .header("Accept", &accept)
            .until(retry.deadline());
            let (answer, ask) = self.call(ask, &self.scopes(Right::Pull), None)?;
            match answer.status {
                200 => {
                    Ok(answer.header("Docker-Content-Digest").and_then(|digest| Digest::parse(digest).ok()))
                }
                404 => Ok(None),
                _ => Err(self.refusal(answer, &ask)),
            }
        })
    }

    /// Makes the registry keep a manifest, its blobs being there already.
    ///
    /// # Errors
    /// [`RemoteError`]; [`RemoteError::Wrong`] if the registry says that it took
    /// other bytes.
    pub fn put_manifest(&self, selector: &Selector, media_type: &str, bytes: &[u8]) -> Result<()> {
        let what = self.named("the manifest", selector);
        Retry::transfer(self.options()).run(|_| {
            let ask = Ask::new("PUT", self.at(&format!("manifests/{selector}")), &what)
                .header("Content-Type", media_type);
            let (answer, ask) = self.call(ask, &self.scopes(Right::Push), Some(bytes))?;
            if !matches!(answer.status, 200..=204) {
                return Err(self.refusal(answer, &ask));
            }
            let (expected, said) = (Digest::of(bytes), answer.header("Docker-Content-Digest"));
            match said.and_then(|digest| Digest::parse(digest).ok()) {
                Some(actual) if actual != expected => {
                    let registry = self.0.http.name().to_owned();
                    Err(RemoteError::Wrong { registry, what: what.clone(), expected, actual })
                }
                _ => Ok(()),
            }
        })
    }

    /// Removes a manifest; whether there was one.
    ///
    /// # Errors
    /// [`RemoteError::Refused`] with status 405 where registries do not offer it.
    pub fn delete_manifest(&self, digest: &Digest) -> Result<bool> {
        let what = self.named("the removal of manifest", digest);
        Retry::lookup(self.options()).run(|retry| {
            let ask =
                Ask::new("DELETE", self.at(&format!("manifests/{digest}")), &what).until(retry.deadline());
            let (answer, ask) = self.call(ask, &self.scopes(Right::Delete), None)?;
            match answer.status {
                200..=204 => Ok(true),
                404 => Ok(false),
                _ => Err(self.refusal(answer, &ask)),
            }
        })
    }

    /// The tags, page by page, as far as there are no more than 200,000 of them
    /// in 1000 pages of 32 MiB in all; none of a repository that is not there.
    /// What is no tag is left out.
    ///
    /// # Errors
    /// [`RemoteError`]; within [`Options::lookup`].
    pub fn tags(&self) -> Result<Tags> {
        #[derive(Deserialize)]
        struct Page {
            tags: Option<Vec<String>>,
        }
        // Pages may overlap.
        let mut tags = BTreeSet::new();
        let (mut pages, mut bytes_left, mut truncated) = (0, MAX_PAGES, false);
        let mut next = Some(self.at("tags/list?n=1000"));
        Retry::lookup(self.options()).run(|retry| {
            while let Some(url) = next.clone() {
                if pages == PAGES || tags.len() == MAX_TAGS || bytes_left == 0 {
                    truncated = true;
                    break;
                }
                let ask = Ask::new("GET", url, format!("the tags of {}", self.0.repository))
                    .until(retry.deadline());
                let (mut answer, ask) = self.call(ask, &self.scopes(Right::Pull), None)?;
                match answer.status {
                    200 => {}
                    404 => break,
                    _ => return Err(self.refusal(answer, &ask)),
                }
                let bytes = answer.small(MAX_PAGE)?;
                (pages, bytes_left) = (pages + 1, bytes_left.saturating_sub(bytes.len()));
                let page: Page = serde_json::from_slice(&bytes)
                    .map_err(|_| answer.nonsense(&ask, "something that is no list of tags"))?;
                for tag in page.tags.into_iter().flatten().filter_map(|tag| Tag::parse(&tag).ok()) {
                    if tags.len() < MAX_TAGS {
                        tags.insert(tag);
                    } else if !tags.contains(&tag) {
                        truncated = true;
                    }
                }
                // No other server's pages are this repository's.
                let link = answer.header("Link").and_then(next_link).map(str::to_owned);
                let following = link.and_then(|link| ask.url.join(&link).ok());
                next =
                    following.filter(|url| url.same_origin(self.0.http.root()) && Some(url) != next.as_ref());
                retry.progressed();
            }
            Ok(())
        })?;
        Ok(Tags { tags: tags.into_iter().collect(), truncated })
    }

    /// The address of a blob.
    pub(crate) fn blob_at(&self, digest: &Digest) -> Url {
        self.at(&format!("blobs/{digest}"))
    }

    /// The address where uploads begin.
    pub(crate) fn uploads_at(&self, mount: Option<(&Digest, &Repository)>) -> Url {
        let uploads = self.at("blobs/uploads/");
        match mount {
            Some((digest, from)) => self.at(&format!(
                "blobs/uploads/?mount={}&from={}",
                encoded(&digest.to_string()),
                encoded(from.as_str())
            )),
            None => uploads,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_own_registry_is_asked_where_and_by_the_names_that_docker_asks_it() {
        let at = |registry: &str, repository: &str| {
            let (registry, repository) =
                (Registry::parse(registry).unwrap(), Repository::parse(repository).unwrap());
            Client::new(&registry, &repository, Options::default()).unwrap().at("tags/list").text()
        };
        assert_eq!(at("docker.io", "alpine"), "https://registry-1.docker.io/v2/library/alpine/tags/list");
        assert_eq!(at("docker.io", "team/a"), "https://registry-1.docker.io/v2/team/a/tags/list");
        assert_eq!(at("ghcr.io", "alpine"), "https://ghcr.io/v2/alpine/tags/list");
        assert_eq!(at("127.0.0.1:5000", "a"), "http://127.0.0.1:5000/v2/a/tags/list");
    }
}
