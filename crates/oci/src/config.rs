//! The image config: what the image runs, where, and what it is made of.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};
use smolcellar_store::Digest;

/// A platform as `os/architecture[/variant]`, in Go's names (`linux/amd64`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Platform {
    /// "linux".
    pub os: String,
    /// "amd64", "arm64".
    pub architecture: String,
    /// "v8"; empty where there is none.
    pub variant: String,
}

impl Platform {
    /// The platform of a Linux guest on this machine.
    pub fn guest() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: String::new() }
    }

    /// Whether an image of platform `image` can stand for this one: a variant
    /// that was not asked for does not matter.
    pub fn accepts(&self, image: &Self) -> bool {
        let variant = self.variant.is_empty() || image.variant.is_empty() || self.variant == image.variant;
        self.os == image.os && self.architecture == image.architecture && variant
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

impl FromStr for Platform {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split('/');
        let part = |part: Option<&str>| part.unwrap_or_default().to_owned();
        let (os, architecture, variant) = (part(parts.next()), part(parts.next()), part(parts.next()));
        if os.is_empty() || architecture.is_empty() || parts.next().is_some() {
            return Err(format!("'{text}' is not a platform: write it as linux/amd64"));
        }
        Ok(Self { os, architecture, variant })
    }
}

/// The parts of an image config that matter here (image-spec `config.md`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ImageConfig {
    /// Go's name of the operating system.
    #[serde(default)]
    pub os: String,
    /// Go's name of the CPU architecture.
    #[serde(default)]
    pub architecture: String,
    /// The CPU's variant.
    #[serde(default, deserialize_with = "or_default")]
    pub variant: String,
    /// When the image was made, RFC 3339.
    #[serde(default, deserialize_with = "or_default")]
    pub created: String,
    /// What it runs.
    #[serde(default, deserialize_with = "or_default")]
    pub config: RunConfig,
    /// What it is made of.
    pub rootfs: RootFsRef,
}

/// What the image runs, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RunConfig {
    /// `user[:group]`, by name or number; empty is root.
    #[serde(default, deserialize_with = "or_default")]
    pub user: String,
    /// `NAME=value` each.
    #[serde(default, deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// The program and its first arguments.
    #[serde(default, deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    /// The rest of the arguments, or the program if there is no entrypoint.
    #[serde(default, deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    /// Where it starts; empty is `/`.
    #[serde(default, deserialize_with = "or_default")]
    pub working_dir: String,
}

/// The layers, by the digests of their uncompressed tars.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RootFsRef {
    /// Lowest first.
    #[serde(default, deserialize_with = "or_default")]
    pub diff_ids: Vec<Digest>,
}

impl ImageConfig {
    /// Parses a config JSON.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(json: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(json)
    }

    /// What the image is for.
    pub fn platform(&self) -> Platform {
        Platform {
            os: self.os.clone(),
            architecture: self.architecture.clone(),
            variant: self.variant.clone(),
        }
    }
}

/// Docker writes `null` for what is empty.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_docker_config_with_nulls_parses() {
        let json = br#"{"architecture":"amd64","os":"linux","created":"2026-01-01T00:00:00Z",
            "config":{"User":"","Env":["A=b"],"Cmd":null,"Entrypoint":["/agent"],"WorkingDir":""},
            "rootfs":{"type":"layers","diff_ids":null},"history":[{}]}"#;
        let config = ImageConfig::parse(json).unwrap();
        assert_eq!(config.config.entrypoint, ["/agent"]);
        assert!(config.config.cmd.is_empty() && config.rootfs.diff_ids.is_empty());
        assert_eq!(config.platform().to_string(), "linux/amd64");
    }

    #[test]
    fn an_unasked_variant_does_not_matter_and_an_asked_one_does() {
        let parse = |text: &str| text.parse::<Platform>().unwrap();
        assert!(parse("linux/arm64").accepts(&parse("linux/arm64/v8")));
        assert!(!parse("linux/arm/v7").accepts(&parse("linux/arm/v6")));
        assert!("linux".parse::<Platform>().is_err());
    }
}
