//! Being let in: Basic, and Bearer tokens from a token server (distribution's
//! `spec/auth/token.md`, `oauth.md`). Tokens are kept per scope until they end,
//! and go to the registry alone.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use smolcellar_oci::{Registry, Repository};

use crate::challenge::{self, Challenge};
use crate::error::{RemoteError, Result};
use crate::http::{Ask, Http, Payload};
use crate::login::{self, Failure, Found};
use crate::login_file::Login;
use crate::options::Secret;
use crate::text::{clip, said};
use crate::url::{Url, encoded};

/// The largest answer of a token server, in bytes.
const MAX_TOKEN: usize = 1 << 20;
/// How long a token is good for if its server does not say (`token.md`).
const UNSAID: u64 = 60;
/// A token is not used in its last seconds.
const MARGIN: Duration = Duration::from_secs(5);

/// What a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Right {
    Pull,
    Push,
    Delete,
}

/// What tokens are asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Scopes(Vec<String>);

impl Scopes {
    pub(crate) fn of(repository: &Repository, right: Right) -> Self {
        let actions = match right {
            Right::Pull => "pull",
            Right::Push => "pull,push",
            Right::Delete => "delete,pull,push",
        };
        Self(vec![format!("repository:{repository}:{actions}")])
    }

    /// And what of another repository is mounted.
    pub(crate) fn with_pull(mut self, from: &Repository) -> Self {
        self.0.push(format!("repository:{from}:pull"));
        self
    }
}

/// How one registry lets one repository's user in.
#[derive(Debug)]
pub(crate) struct Auth {
    registry: Registry,
    repository: Repository,
    /// What looking for a login came to, which is done once.
    found: OnceLock<Result<Found, Failure>>,
    /// Whoever logs in: the others wait, and go in with what it got.
    entering: Mutex<()>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What the registry asked for last.
    way: Way,
    tokens: HashMap<Scopes, Token>,
}

#[derive(Debug, Clone, Default)]
enum Way {
    /// Nobody knows yet, or in by itself.
    #[default]
    Open,
    Header(Secret),
    Tokens,
}

#[derive(Debug, Clone)]
struct Token {
    header: Secret,
    until: Instant,
}

impl Auth {
    pub(crate) fn new(registry: &Registry, repository: &Repository) -> Self {
        Self {
            registry: registry.clone(),
            repository: repository.clone(),
            found: OnceLock::new(),
            entering: Mutex::default(),
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to say without being asked, as far as it is known.
    pub(crate) fn header(&self, scopes: &Scopes) -> Option<Secret> {
        let state = self.state();
        match &state.way {
            Way::Open => None,
            Way::Header(header) => Some(header.clone()),
            Way::Tokens => {
                let token = state.tokens.get(scopes).filter(|token| token.until > Instant::now());
                token.map(|token| token.header.clone())
            }
        }
    }

    /// What to do about a login that is not enough.
    pub(crate) fn remedy(&self) -> String {
        self.found().map_or_else(|| "log in first".to_owned(), |found| found.remedy.clone())
    }

    /// Whether it was looked for a login and none was found.
    pub(crate) fn is_anonymous(&self) -> bool {
        self.found().is_some_and(|found| found.login.is_none())
    }

    fn found(&self) -> Option<&Found> {
        self.found.get().and_then(|found| found.as_ref().ok())
    }

    /// Looks for a login, unless that was done before: of those who ask side by
    /// side, only the first waits for a helper that does not answer.
    fn login(&self, find: impl FnOnce() -> Result<Found, Failure>) -> Result<&Found> {
        self.found.get_or_init(find).as_ref().map_err(|failure| failure.clone().into())
    }

    /// After a 401: gets what its challenges ask for. `used` is what was said
    /// when it came, and is not believed in any more. What to say now, or
    /// `None` if there is nothing else to say.
    ///
    /// # Errors
    /// Whatever is wrong with the login, the challenge or the token server.
    pub(crate) fn answer(
        &self,
        http: &Http,
        headers: &[String],
        scopes: &Scopes,
        used: Option<&Secret>,
        deadline: Option<Instant>,
    ) -> Result<Option<Secret>> {
        let _entering = self.entering.lock().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have been faster.
        if let Some(header) = self.header(scopes).filter(|header| Some(header) != used) {
            return Ok(Some(header));
        }
        let challenges: Vec<Challenge> = headers.iter().flat_map(|header| challenge::parse(header)).collect();
        let way = |scheme: &str| challenges.iter().find(|challenge| challenge.scheme == scheme);
        let found = self.login(|| login::find(&self.registry, &self.repository, http.options(), deadline))?;
        let bearer = way("bearer").filter(|challenge| challenge.get("realm").is_some());
        let header = match (bearer, way("basic"), &found.login) {
            (_, _, Some(Login::Bearer(token))) => Secret::new(format!("Bearer {}", token.expose())),
            (Some(challenge), _, login) => {
                let token = self.token(http, challenge, scopes, login.as_ref(), deadline)?;
                let header = token.header.clone();
                let mut state = self.state();
                state.way = Way::Tokens;
                state.tokens.insert(scopes.clone(), token);
                return Ok(Some(header));
            }
            (None, Some(_), Some(Login::Password(user, password))) => basic(user, password),
            (None, Some(_), _) => return Ok(None),
            (None, None, _) => {
                return Err(RemoteError::Nonsense {
                    registry: self.registry.host().to_owned(),
                    what: "logging in".into(),
                    problem: "status 401 without a way to log in that is known here (Basic or Bearer)".into(),
                });
            }
        };
        if used == Some(&header) {
            return Ok(None);
        }
        self.state().way = Way::Header(header.clone());
        Ok(Some(header))
    }

    fn token(
        &self,
        http: &Http,
        challenge: &Challenge,
        scopes: &Scopes,
        login: Option<&Login>,
        deadline: Option<Instant>,
    ) -> Result<Token> {
        let nonsense = |problem: String| RemoteError::Nonsense {
            registry: self.registry.host().to_owned(),
            what: "logging in".into(),
            problem,
        };
        let realm = challenge.get("realm").unwrap_or_default();
        let realm =
            Url::parse(realm).map_err(|problem| nonsense(format!("as its token server {problem}")))?;
        if http.root().is_encrypted() && !realm.is_encrypted() {
            return Err(nonsense("as its token server an address that is not encrypted".into()));
        }
        // What the registry says it needs beside what we know of: some have
        // scopes of their own.
        let asked = challenge.get("scope").unwrap_or_default().split(' ');
        let mut all = scopes.0.clone();
        for scope in asked.filter(|scope| !scope.is_empty()).take(8) {
            let known =
                |own: &String| own.rsplit_once(':').map(|own| own.0) == scope.rsplit_once(':').map(|s| s.0);
            if !all.iter().any(known) {
                all.push(scope.to_owned());
            }
        }
        let service = challenge.get("service");
        let (ask, form) = match login {
            Some(Login::Identity(token)) => {
                let mut form = format!(
                    "grant_type=refresh_token&client_id=smolcellar&scope={}&refresh_token={}",
                    encoded(&all.join(" ")),
                    encoded(token.expose())
                );
                service.iter().for_each(|service| form.push_str(&format!("&service={}", encoded(service))));
                let ask = Ask::new("POST", realm.clone(), "a token");
                (ask.header("Content-Type", "application/x-www-form-urlencoded"), Some(form))
            }
            login => {
                let mut url = realm.clone();
                if let Some(service) = service {
                    url = url.with("service", service);
                }
                for scope in &all {
                    url = url.with("scope", scope);
                }
                let mut ask = Ask::new("GET", url, "a token");
                if let Some(Login::Password(user, password)) = login {
                    ask.url = ask.url.with("account", user);
                    ask.authorization = Some(basic(user, password));
                }
                (ask, None)
            }
        };
        let ask = ask.until(deadline);
        let payload = form.as_ref().map_or(Payload::None, |form| Payload::Bytes(form.as_bytes()));
        let mut answer = http.send(&ask, payload)?;
        let body = answer.small(MAX_TOKEN);
        match answer.status {
            200 => {}
            // The realm's own words: it may be another than the registry.
            401 | 403 => {
                return Err(RemoteError::Login {
                    registry: realm.to_string(),
                    what: format!("a token for {}", self.repository),
                    said: said(&body.unwrap_or_default()),
                    remedy: self.remedy(),
                });
            }
            _ => return Err(answer.refused(&ask, &body.unwrap_or_default())),
        }
        let body = body?;
        let parsed: TokenAnswer = serde_json::from_slice(&body)
            .map_err(|_| nonsense(format!("by its token server {realm} something that is no token")))?;
        let text = if parsed.token.is_empty() { parsed.access_token } else { parsed.token };
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(nonsense(format!(
                "by its token server {} an empty token, or none",
                clip(&realm.to_string(), 80)
            )));
        }
        // Counted from now: its clock and ours may differ.
        let life =
            Duration::from_secs(parsed.expires_in.unwrap_or(UNSAID).clamp(10, 86_400)).saturating_sub(MARGIN);
        Ok(Token { header: Secret::new(format!("Bearer {text}")), until: Instant::now() + life })
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    #[serde(default)]
    expires_in: Option<u64>,
}

/// RFC 7617.
fn basic(user: &str, password: &Secret) -> Secret {
    Secret::new(format!("Basic {}", STANDARD.encode(format!("{user}:{}", password.expose()))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Options;
    use std::sync::Arc;

    #[test]
    fn no_password_goes_out_of_tls_and_none_to_a_place_that_makes_no_sense() {
        let login = Some(("u".to_owned(), Secret::new("needle")));
        let registry = Registry::parse("https://127.0.0.1:1").unwrap();
        let repository = Repository::parse("a/b").unwrap();
        let options = Options { login, ..Options::patient(Duration::from_secs(1)) };
        let http = Http::new(&registry, "127.0.0.1:1", Arc::new(options));
        let auth = Auth::new(&registry, &repository);
        let scopes = Scopes::of(&repository, Right::Pull);
        let answer = |header: &str| auth.answer(&http, &[header.to_owned()], &scopes, None, None);
        for (realm, says) in [
            ("http://127.0.0.1:1/t", "not encrypted"),
            ("ftp://x/", "neither"),
            ("/token", "neither"),
            ("https://u:p@h/", "user"),
        ] {
            let error = answer(&format!("Bearer realm=\"{realm}\"")).unwrap_err();
            assert!(matches!(error, RemoteError::Nonsense { .. }), "{error}");
            assert!(error.to_string().contains(says) && !format!("{error:?}").contains("needle"), "{error}");
        }
        assert!(matches!(answer("Digest realm=x"), Err(RemoteError::Nonsense { .. })));
        // Basic is said once; the same again is no answer.
        let header = answer("Basic realm=x").unwrap().unwrap();
        assert_eq!(header.expose(), "Basic dTpuZWVkbGU=");
        let again = auth.answer(&http, &["Basic realm=x".to_owned()], &scopes, Some(&header), None);
        assert_eq!(again.unwrap(), None);
        assert!(!format!("{auth:?}").contains("needle") && !format!("{auth:?}").contains("dTpuZWVkbGU"));
    }

    #[test]
    fn a_login_that_could_not_be_looked_for_is_not_looked_for_again() {
        let auth = Auth::new(&Registry::parse("h.x").unwrap(), &Repository::parse("a/b").unwrap());
        let mut asked = 0;
        for _ in 0..3 {
            let error = auth.login(|| {
                asked += 1;
                Err(Failure::File { path: "f".into(), problem: "p".into() })
            });
            assert!(matches!(error, Err(RemoteError::CredentialFile { .. })));
        }
        assert_eq!(asked, 1);
        assert!(!auth.is_anonymous());
    }

    #[test]
    fn where_no_login_may_go_a_401_stays_one() {
        let login = Some(("u".to_owned(), Secret::new("needle")));
        let registry = Registry::parse("http://h.x").unwrap();
        let repository = Repository::parse("a/b").unwrap();
        let options = Options { login, no_login: true, ..Options::patient(Duration::from_secs(1)) };
        let http = Http::new(&registry, "h.x", Arc::new(options));
        let auth = Auth::new(&registry, &repository);
        let scopes = Scopes::of(&repository, Right::Pull);
        let answer = auth.answer(&http, &["Basic realm=x".to_owned()], &scopes, None, None);
        assert_eq!(answer.unwrap(), None);
        assert!(auth.is_anonymous() && auth.remedy().contains("no login was sent"));
    }
}
