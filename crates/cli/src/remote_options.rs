//! How registries are asked, as far as the environment says.

use std::time::Duration;

use anyhow::Result;
use smolcellar_oci::{Registry, Scheme};
use smolcellar_remote::{Cache, Options, Secret};

use crate::config_remote::Place;
use crate::exit::Usage;

/// Who asks. Variables, not options: command lines are seen by others.
const USERNAME: &str = "SMOLCELLAR_REMOTE_USERNAME";
const PASSWORD: &str = "SMOLCELLAR_REMOTE_PASSWORD";
/// How long an answer is waited for, in seconds.
const TIMEOUT: &str = "SMOLCELLAR_REMOTE_TIMEOUT";

/// The registry that the login in the environment is for, with a repository.
const REMOTE: &str = "SMOLCELLAR_REMOTE";

/// Who named a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NamedBy {
    /// The user, on the command line or in the environment.
    User,
    /// The project's configuration. Whoever can change that must not have the
    /// environment's login sent to a registry of theirs.
    Project,
}

/// The bounds and the login for a registry that a command is about, which may be
/// waited for.
pub(crate) fn options(registry: &Registry, by: NamedBy) -> Result<Options> {
    from(Options::default(), registry, by, variable)
}

/// The same for a cache beside a build, for which nobody waits long.
pub(crate) fn for_builds(registry: &Registry, by: NamedBy) -> Result<Options> {
    from(Cache::options(), registry, by, variable)
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The login in the environment is for the registry that [`REMOTE`] names; if
/// that is not set, for the one on the command line.
fn from(
    bounds: Options,
    registry: &Registry,
    by: NamedBy,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Options> {
    let mut options = match variable(TIMEOUT) {
        None => bounds,
        Some(text) => match text.parse() {
            Ok(seconds @ 1..=3600) => Options::patient(Duration::from_secs(seconds)),
            _ => return Err(Usage(format!("{TIMEOUT} is '{text}', not seconds from 1 to 3600")).into()),
        },
    };
    let login = match (variable(USERNAME), variable(PASSWORD)) {
        (Some(user), Some(password)) => Some((user, Secret::new(password))),
        (None, None) => None,
        _ => return Err(Usage(format!("set both of {USERNAME} and {PASSWORD}, or none")).into()),
    };
    let meant = variable(REMOTE).and_then(|text| text.parse::<Place>().ok());
    options.login = login.filter(|_| match meant {
        Some(Place { registry: named, .. }) => {
            (named.host(), named.scheme()) == (registry.host(), registry.scheme())
        }
        None => by == NamedBy::User,
    });
    // One line of the project's must not have anybody's login go over the network in the clear.
    options.no_login = by == NamedBy::Project && registry.scheme() == Scheme::Http && !registry.is_loopback();
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_login_and_times_that_are_none_are_refused() {
        let registry = Registry::parse("h.x").unwrap();
        let of = |by: NamedBy, pairs: &[(&str, &str)]| {
            let found = |name: &str| pairs.iter().find(|pair| pair.0 == name).map(|pair| pair.1.to_owned());
            from(Options::default(), &registry, by, found)
                .map(|options| (options.answer.as_secs(), options.login.map(|login| login.0)))
        };
        let (user, project) = (NamedBy::User, NamedBy::Project);
        assert_eq!(of(user, &[(TIMEOUT, "7")]).unwrap(), (7, None));
        let login = [(USERNAME, "u"), (PASSWORD, "p")];
        let with = |remote: &'static str| [login[0], login[1], (REMOTE, remote)];
        assert_eq!(of(user, &login).unwrap().1, Some("u".into()));
        // Nobody but the user says where it is sent.
        assert_eq!(of(project, &login).unwrap().1, None);
        assert_eq!(of(user, &with("other.x/a")).unwrap().1, None);
        assert_eq!(of(project, &with("h.x/a")).unwrap().1, Some("u".into()));
        assert_eq!(of(project, &with("http://h.x/a")).unwrap().1, None);
        let none = |registry: &str, by| {
            from(Options::default(), &Registry::parse(registry).unwrap(), by, |_| None).unwrap().no_login
        };
        assert!(none("http://h.x", project) && !none("http://h.x", user) && !none("h.x", project));
        assert!(!none("127.0.0.1:5000", project));
        for bad in [[(TIMEOUT, "0")], [(TIMEOUT, "soon")], [(USERNAME, "u")], [(PASSWORD, "needle")]] {
            let error = of(user, &bad).unwrap_err();
            assert!(error.is::<Usage>() && !error.to_string().contains("needle"), "{error}");
        }
    }
}
