//! `[remote]`: the cache that others share.

use std::fmt;
use std::str::FromStr;

use anyhow::Result;
use serde::Deserialize;
use smolcellar_oci::{Reference, Registry, Repository};

use crate::exit::Usage;

/// `[remote]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct RemoteTable {
    r#ref: Option<String>,
    mode: Option<Mode>,
}

/// What is done with a remote cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// Nothing.
    Off,
    /// What is not here is looked for there.
    R,
    /// And what was built here is sent there.
    Rw,
}

/// A repository at a registry: `HOST[:PORT]/NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) registry: Registry,
    pub(crate) repository: Repository,
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let reference: Reference =
            text.parse().map_err(|error: smolcellar_oci::NameError| error.to_string())?;
        if reference.tag.is_some() || reference.digest.is_some() {
            return Err(format!("'{reference}' names one image: name the repository only, HOST/NAME"));
        }
        Ok(Self { registry: reference.registry, repository: reference.repository })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)
    }
}

impl RemoteTable {
    /// Where it is, and what is done with it: by default it is read. `place` is
    /// where the table is.
    pub(crate) fn resolve(&self, place: &str) -> Result<Option<(Place, Mode)>> {
        let wrong = |key: &str, problem: &str| Usage(format!("{place}: remote.{key}: {problem}"));
        match (&self.r#ref, self.mode) {
            (Some(text), mode) => {
                let remote = text.parse().map_err(|problem: String| wrong("ref", &problem))?;
                Ok(Some((remote, mode.unwrap_or(Mode::R))))
            }
            (None, Some(Mode::R | Mode::Rw)) => {
                Err(wrong("mode", "there is no `ref` beside it, which names the repository").into())
            }
            (None, _) => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(text: &str) -> Result<Option<(Place, Mode)>> {
        toml::from_str::<RemoteTable>(text)?.resolve("x.toml")
    }

    #[test]
    fn a_remote_is_read_unless_the_table_says_otherwise() {
        assert!(resolve("").unwrap().is_none());
        let (place, mode) = resolve("ref = \"example.org/team/cellar\"").unwrap().unwrap();
        assert_eq!((place.to_string().as_str(), mode), ("example.org/team/cellar", Mode::R));
        let (_, mode) = resolve("ref = \"example.org/a\"\nmode = \"rw\"").unwrap().unwrap();
        assert_eq!(mode, Mode::Rw);
    }

    #[test]
    fn what_cannot_be_a_remote_is_refused_with_its_place() {
        for (text, says) in [
            ("ref = \"team/cellar\"", "x.toml: remote.ref"),
            ("ref = \"example.org/a:tag\"", "repository only"),
            ("mode = \"rw\"", "remote.mode"),
            ("mode = \"w\"\nref = \"example.org/a\"", "unknown variant"),
            ("url = \"x\"", "unknown field"),
        ] {
            let error = resolve(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
