//! Finds out who asks: what the caller says, else the login files of docker and
//! podman, else nobody. Looked for only once a registry wants to know.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Deserialize;
use smolcellar_oci::{Registry, Repository};
use smolcellar_run::{Invocation, Limits, RunError};

use crate::error::RemoteError;
use crate::login_file::{Login, LoginFile, MAX_FILE, Place};
use crate::options::{Options, Secret};
use crate::text::clip;

/// How long a credential helper may take: some ask a person to unlock something.
const HELPER: Duration = Duration::from_secs(60);

/// How long a helper may take here.
fn helper_time(options: &Options, deadline: Option<Instant>) -> Duration {
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    HELPER.min(options.lookup).min(left.unwrap_or(HELPER))
}

/// Why a login could not be looked for. Kept: all who ask hear of the one try.
#[derive(Debug, Clone)]
pub(crate) enum Failure {
    /// [`RemoteError::CredentialFile`].
    File { path: PathBuf, problem: String },
    /// [`RemoteError::Helper`].
    Helper { registry: String, helper: String, path: PathBuf, problem: String },
}

impl From<Failure> for RemoteError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::File { path, problem } => Self::CredentialFile { path, problem },
            Failure::Helper { registry, helper, path, problem } => {
                Self::Helper { registry, helper, path, problem }
            }
        }
    }
}

/// A login, and where it is from: for messages.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) login: Option<Login>,
    /// What to do if it is not enough.
    pub(crate) remedy: String,
}

/// The login for a repository.
///
/// Helpers have until `deadline`, and no longer than one look-up.
///
/// # Errors
/// [`Failure`].
pub(crate) fn find(
    registry: &Registry,
    repository: &Repository,
    options: &Options,
    deadline: Option<Instant>,
) -> Result<Found, Failure> {
    let host = registry.host();
    if options.no_login {
        return Ok(Found {
            login: None,
            remedy: format!(
                "no login was sent: only the project's configuration says that {host} is spoken to in the clear; write \
                 https:// there, or name the registry yourself, with --remote or in SMOLCELLAR_REMOTE"
            ),
        });
    }
    if let Some((user, password)) = &options.login {
        let login = Some(Login::Password(user.clone(), password.clone()));
        let user = clip(user, 60);
        return Ok(Found {
            login,
            remedy: format!("it was asked as '{user}', with the password it was given"),
        });
    }
    let paths = files();
    for path in &paths {
        let Some(file) = read(path)? else { continue };
        let wrong = |problem| Failure::File { path: path.clone(), problem };
        for place in file.places(host, repository).map_err(wrong)? {
            let login = match place {
                Place::Here(login) => Some(login),
                Place::Helper { name, server } => {
                    ask(registry, &name, &server, path, helper_time(options, deadline))?
                }
            };
            if let Some(login) = login {
                let who = match &login {
                    Login::Password(user, _) => format!("as '{}'", clip(user, 60)),
                    Login::Identity(_) | Login::Bearer(_) => "with the token".into(),
                };
                let remedy =
                    format!("it was asked {who} of {}; log in again: docker login {host}", path.display());
                return Ok(Found { login: Some(login), remedy });
            }
        }
    }
    let looked: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    let looked = if looked.is_empty() { "no file: there is no HOME".to_owned() } else { looked.join(", ") };
    let remedy = format!(
        "log in first: docker login {host}, or set SMOLCELLAR_REMOTE_USERNAME and SMOLCELLAR_REMOTE_PASSWORD (looked \
         for a login in {looked})"
    );
    Ok(Found { login: None, remedy })
}

/// The files that may hold logins, those that were named before those that are
/// everywhere.
fn files() -> Vec<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = variable("HOME");
    let docker = variable("DOCKER_CONFIG");
    let mut files: Vec<_> = variable("REGISTRY_AUTH_FILE").into_iter().collect();
    match docker {
        Some(dir) => files.push(dir.join("config.json")),
        None => files.extend(home.as_ref().map(|home| home.join(".docker/config.json"))),
    }
    files.extend(variable("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")));
    let config = variable("XDG_CONFIG_HOME").or(home.map(|home| home.join(".config")));
    files.extend(config.map(|dir| dir.join("containers/auth.json")));
    files
}

fn read(path: &Path) -> Result<Option<LoginFile>, Failure> {
    let wrong = |problem: String| Failure::File { path: path.to_owned(), problem };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error)
            if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(wrong(error.to_string())),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|error| wrong(error.to_string()))?;
    match bytes.len() as u64 {
        // As a file that is being made.
        0 => Ok(None),
        length if length > MAX_FILE => Err(wrong(format!("it is longer than {MAX_FILE} bytes"))),
        _ => LoginFile::parse(&bytes).map(Some).map_err(wrong),
    }
}

/// What a helper prints (docker-credential-helpers, "Development").
#[derive(Deserialize)]
struct Answer {
    #[serde(default, rename = "Username")]
    username: String,
    #[serde(default, rename = "Secret")]
    secret: String,
}

/// Asks a helper; `None` if it knows nobody.
fn ask(
    registry: &Registry,
    name: &str,
    server: &str,
    path: &Path,
    within: Duration,
) -> Result<Option<Login>, Failure> {
    let helper = format!("docker-credential-{name}");
    let wrong = |problem: String| Failure::Helper {
        registry: registry.host().to_owned(),
        helper: helper.clone(),
        path: path.to_owned(),
        problem,
    };
    let invocation = Invocation {
        operation: format!("{helper} get"),
        program: PathBuf::from(&helper),
        args: vec!["get".into()],
        env: Vec::new(),
        stray: None,
    };
    let result = invocation.converse(Limits::within(within), |stdin| stdin.write_all(server.as_bytes()));
    let captured = result.map_err(|error| match error {
        RunError::Spawn { .. } => {
            wrong("it cannot be run; install it, or take its name out of the file".into())
        }
        error => wrong(error.to_string()),
    })?;
    if !captured.status.success() {
        // Helpers say so on stdout, each in about these words.
        let said = String::from_utf8_lossy(&captured.stdout).into_owned();
        return match said.contains("not found") {
            true => Ok(None),
            false => Err(wrong(format!("it failed ({})", smolcellar_run::status_text(captured.status)))),
        };
    }
    let parsed: Answer =
        serde_json::from_slice(&captured.stdout).map_err(|_| wrong("it printed no credentials".into()))?;
    Ok(match parsed.username.as_str() {
        _ if parsed.secret.is_empty() => None,
        "<token>" => Some(Login::Identity(Secret::new(parsed.secret))),
        _ => Some(Login::Password(parsed.username, Secret::new(parsed.secret))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_helper_has_no_more_time_than_who_asked_has() {
        let patient = Options::patient(Duration::from_secs(600));
        assert_eq!(helper_time(&patient, None), HELPER);
        let hasty = Options::patient(Duration::from_secs(10));
        assert_eq!(helper_time(&hasty, None), Duration::from_secs(10));
        let soon = Instant::now() + Duration::from_secs(2);
        assert!(helper_time(&hasty, Some(soon)) <= Duration::from_secs(2));
        assert_eq!(helper_time(&hasty, Some(Instant::now())), Duration::ZERO);
    }

    #[test]
    fn where_no_login_may_go_none_is_looked_for_and_the_remedy_says_why() {
        let (registry, repository) =
            (Registry::parse("http://h.x").unwrap(), Repository::parse("a/b").unwrap());
        let login = Some(("u".to_owned(), Secret::new("needle")));
        let options = Options { no_login: true, login, ..Options::default() };
        let found = find(&registry, &repository, &options, None).unwrap();
        assert!(found.login.is_none());
        assert!(found.remedy.contains("no login was sent") && !found.remedy.contains("needle"));
        assert!(!found.remedy.contains("looked"), "{}", found.remedy);
    }
}
