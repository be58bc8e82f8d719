//! Finds out who asks: what the caller says, else the login files of docker and
//! podman, else nobody. Looked for only once a registry wants to know.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use smolcellar_oci::{Registry, Repository};
use smolcellar_run::{Invocation, Limits, RunError};

use crate::error::{RemoteError, Result};
use crate::login_file::{Login, LoginFile, MAX_FILE, Place};
use crate::options::{Options, Secret};
use crate::text::clip;

/// How long a credential helper may take: some ask a person to unlock something.
const HELPER: Duration = Duration::from_secs(60);

/// A login, and where it is from: for messages.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) login: Option<Login>,
    /// What to do if it is not enough.
    pub(crate) remedy: String,
}

/// The login for a repository.
///
/// # Errors
/// [`RemoteError::CredentialFile`], [`RemoteError::Helper`].
pub(crate) fn find(registry: &Registry, repository: &Repository, options: &Options) -> Result<Found> {
    let host = registry.host();
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
        let wrong = |problem| RemoteError::CredentialFile { path: path.clone(), problem };
        for place in file.places(host, repository).map_err(wrong)? {
            let login = match place {
                Place::Here(login) => Some(login),
                Place::Helper { name, server } => ask(registry, &name, &server, path)?,
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

fn read(path: &Path) -> Result<Option<LoginFile>> {
    let wrong = |problem: String| RemoteError::CredentialFile { path: path.to_owned(), problem };
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
fn ask(registry: &Registry, name: &str, server: &str, path: &Path) -> Result<Option<Login>> {
    let helper = format!("docker-credential-{name}");
    let wrong = |problem: String| RemoteError::Helper {
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
    let result = invocation.converse(Limits::within(HELPER), |stdin| stdin.write_all(server.as_bytes()));
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
