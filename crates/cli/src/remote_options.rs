//! How registries are asked, as far as the environment says.

use std::time::Duration;

use anyhow::Result;
use smolcellar_remote::{Options, Secret};

use crate::exit::Usage;

/// Who asks. Variables, not options: command lines are seen by others.
const USERNAME: &str = "SMOLCELLAR_REMOTE_USERNAME";
const PASSWORD: &str = "SMOLCELLAR_REMOTE_PASSWORD";
/// How long an answer is waited for, in seconds.
const TIMEOUT: &str = "SMOLCELLAR_REMOTE_TIMEOUT";

/// The bounds and the login for the registry that a command is about.
pub(crate) fn options() -> Result<Options> {
    from(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
}

fn from(variable: impl Fn(&str) -> Option<String>) -> Result<Options> {
    let mut options = match variable(TIMEOUT) {
        None => Options::default(),
        Some(text) => match text.parse() {
            Ok(seconds @ 1..=3600) => Options::patient(Duration::from_secs(seconds)),
            _ => return Err(Usage(format!("{TIMEOUT} is '{text}', not seconds from 1 to 3600")).into()),
        },
    };
    options.login = match (variable(USERNAME), variable(PASSWORD)) {
        (Some(user), Some(password)) => Some((user, Secret::new(password))),
        (None, None) => None,
        _ => return Err(Usage(format!("set both of {USERNAME} and {PASSWORD}, or none")).into()),
    };
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_login_and_times_that_are_none_are_refused() {
        let of = |pairs: &[(&str, &str)]| {
            let found = |name: &str| pairs.iter().find(|pair| pair.0 == name).map(|pair| pair.1.to_owned());
            from(found).map(|options| (options.answer.as_secs(), options.login.map(|login| login.0)))
        };
        assert_eq!(of(&[(TIMEOUT, "7")]).unwrap(), (7, None));
        assert_eq!(of(&[(USERNAME, "u"), (PASSWORD, "p")]).unwrap().1, Some("u".into()));
        for bad in [[(TIMEOUT, "0")], [(TIMEOUT, "soon")], [(USERNAME, "u")], [(PASSWORD, "needle")]] {
            let error = of(&bad).unwrap_err();
            assert!(error.is::<Usage>() && !error.to_string().contains("needle"), "{error}");
        }
    }
}
