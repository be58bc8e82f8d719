//! smolvm's versions and what each can be told to do.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// A released version of smolvm: `1.32.2`. Pre-release tags are not ordered by
/// smolvm's releases, so a tagged version counts as its release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Version {
    /// Incremented when everything may change.
    pub major: u32,
    /// Incremented for features. smolvm changes its command line here too.
    pub minor: u32,
    /// Incremented for fixes, and once (1.0.2) for the command line.
    pub patch: u32,
}

impl Version {
    /// The oldest smolvm that can be driven. 0.8 is the first whose
    /// `machine create` takes a `.smolmachine`.
    pub const MINIMUM: Self = Self::new(0, 8, 0);

    /// `major.minor.patch`.
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch }
    }

    /// Whether this version knows `feature`.
    pub fn supports(self, feature: Feature) -> bool {
        self >= feature.since()
    }

    /// Whether `machine start` runs the image's entrypoint in the background
    /// and cannot be told not to. Before 1.9.0 nothing was run.
    pub fn always_runs_entrypoint(self) -> bool {
        self >= Self::new(1, 9, 0) && !self.supports(Feature::NoWorkload)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// The text is no version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no version of the form MAJOR.MINOR.PATCH")]
pub struct VersionError(String);

impl FromStr for Version {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        let bad = || VersionError(text.to_owned());
        let release = text.split(['-', '+']).next().unwrap_or(text);
        let mut parts = release.split('.').map(|part| {
            let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            if digits { part.parse::<u32>().map_err(|_| bad()) } else { Err(bad()) }
        });
        let mut next = || parts.next().unwrap_or_else(|| Err(bad()));
        let version = Self::new(next()?, next()?, next()?);
        if parts.next().is_some() { Err(bad()) } else { Ok(version) }
    }
}

impl TryFrom<String> for Version {
    type Error = VersionError;

    fn try_from(text: String) -> Result<Self, VersionError> {
        text.parse()
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.to_string()
    }
}

/// How machines are named on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// 0.8 to 1.0.1: `create` and `delete` take the name as an argument, the
    /// other commands as `--name`.
    Positional,
    /// From 1.0.2: `--name` everywhere.
    Named,
}

impl Dialect {
    /// The dialect of `version`, which is the one of `program`.
    ///
    /// # Errors
    /// [`Error::TooOld`] below [`Version::MINIMUM`].
    pub fn of(version: Version, program: &std::path::Path) -> Result<Self, Error> {
        if version < Version::MINIMUM {
            Err(Error::TooOld { program: program.to_owned(), version })
        } else if version < Version::new(1, 0, 2) {
            Ok(Self::Positional)
        } else {
            Ok(Self::Named)
        }
    }
}

/// Something that not every accepted version can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// `machine create --label`.
    Labels,
    /// `machine exec --user`.
    ExecUser,
    /// `machine stop --timeout`.
    StopTimeout,
    /// `machine logs`.
    Logs,
    /// `machine exec --secret-env`.
    SecretEnv,
    /// `machine egress-events`.
    EgressEvents,
    /// `machine start --no-workload`, which its help does not list. Without it
    /// a start runs the image's entrypoint in the background.
    NoWorkload,
    /// `machine cp --mode`.
    CopyMode,
    /// One copy of an artifact for all its machines, outlasting them; and a
    /// `pack prune` that removes such copies and spares what a machine uses.
    /// Older versions unpack into the machine's own folder; they have a `pack
    /// prune`, which is about other things.
    SharedExtractions,
}

impl Feature {
    /// The first version known to have it, by asking the programs in the wheels
    /// of 18 versions from 1.4.0 to 1.32.2; for the copies of artifacts, by
    /// making and pruning them with six of these.
    pub const fn since(self) -> Version {
        match self {
            // There is no older wheel to ask; what 0.8 has, nobody said.
            Self::SecretEnv => Version::new(1, 4, 0),
            Self::Labels => Version::new(1, 8, 0),
            // 1.8.3, the one before, makes none and prunes none.
            Self::SharedExtractions => Version::new(1, 9, 0),
            Self::EgressEvents => Version::new(1, 11, 0),
            Self::ExecUser => Version::new(1, 14, 0),
            Self::NoWorkload => Version::new(1, 17, 0),
            // Seen there; older ones were not asked.
            Self::CopyMode => Version::new(1, 32, 2),
            Self::StopTimeout | Self::Logs => Version::new(1, 28, 1),
        }
    }

    /// As it is typed.
    pub const fn option(self) -> &'static str {
        match self {
            Self::Labels => "machine create --label",
            Self::ExecUser => "machine exec --user",
            Self::StopTimeout => "machine stop --timeout",
            Self::Logs => "machine logs",
            Self::SecretEnv => "machine exec --secret-env",
            Self::EgressEvents => "machine egress-events",
            Self::NoWorkload => "machine start --no-workload",
            Self::CopyMode => "machine cp --mode",
            Self::SharedExtractions => "pack prune (of what machines leave)",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn versions_order_by_number_not_by_text() {
        let parse = |text: &str| text.parse::<Version>().unwrap();
        assert!(parse("1.9.3") < parse("1.32.2"));
        assert_eq!(parse("1.32.2-rc.1+abc"), Version::new(1, 32, 2));
        assert_eq!(parse("0.8.0").to_string(), "0.8.0");
    }

    #[test]
    fn only_versions_between_the_workload_and_its_switch_run_the_entrypoint() {
        let runs = |text: &str| text.parse::<Version>().unwrap().always_runs_entrypoint();
        assert_eq!(
            ["0.8.0", "1.8.3", "1.9.0", "1.15.0", "1.17.0", "1.32.2"].map(runs),
            [false, false, true, true, false, false]
        );
    }

    #[test]
    fn what_is_no_version_is_refused() {
        for text in ["", "1", "1.2", "1.2.3.4", "1.2.x", "v1.2.3", "1..3", "1.2.99999999999", "+1.2.3"] {
            assert!(text.parse::<Version>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_dialect_changes_at_1_0_2_and_begins_at_0_8() {
        let of = |text: &str| Dialect::of(text.parse().unwrap(), Path::new("smolvm"));
        assert_eq!(of("0.8.0").unwrap(), Dialect::Positional);
        assert_eq!(of("1.0.1").unwrap(), Dialect::Positional);
        assert_eq!(of("1.0.2").unwrap(), Dialect::Named);
        assert_eq!(of("1.32.2").unwrap(), Dialect::Named);
        let error = of("0.7.2").unwrap_err();
        assert!(error.to_string().contains("0.7.2") && error.to_string().contains("0.8.0"), "{error}");
    }
}
