//! `[agent.NAME.egress]` and `[agent.NAME.sidecar]`: what a launch does with an
//! agent. Nothing of it is in the artifact.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use serde::Deserialize;
use smolcellar_launcher::{BuildSpec, Egress, Reach, SidecarSpec};

use crate::exit::Usage;

/// `[agent.NAME.egress]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct EgressTable {
    #[serde(default)]
    allow_cidr: Vec<String>,
    #[serde(default)]
    allow_host: Vec<String>,
}

impl EgressTable {
    pub(crate) fn resolve(&self) -> Egress {
        Egress { allow_cidr: self.allow_cidr.clone(), allow_host: self.allow_host.clone() }
    }
}

/// `[agent.NAME.sidecar]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct SidecarTable {
    image: Option<String>,
    context: Option<PathBuf>,
    dockerfile: Option<PathBuf>,
    #[serde(default)]
    services: Vec<String>,
    #[serde(default)]
    ports: BTreeMap<String, u16>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    reach: Option<ReachKey>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ReachKey {
    Bridge,
    Loopback,
}

impl SidecarTable {
    pub(crate) fn resolve(&self, agent: &str, project: &Path, place: &str) -> Result<SidecarSpec> {
        let build = match (&self.image, &self.context) {
            (None, None) => {
                bail!(Usage(format!("{place}: name the `image`, or the `context` to build it from")))
            }
            (_, None) if self.dockerfile.is_some() => {
                bail!(Usage(format!("{place}: `dockerfile` needs a `context`, the folder to build")))
            }
            (_, None) => None,
            (image, Some(context)) => Some(BuildSpec {
                no_cache: false,
                context: project.join(context),
                dockerfile: self.dockerfile.as_ref().map(|path| project.join(path)),
                tag: image.clone().unwrap_or_else(|| format!("smolcellar/{agent}-sidecar:latest")),
                ..BuildSpec::default()
            }),
        };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        for name in self.ports.keys().chain(&self.services) {
            if name.is_empty() || !name.bytes().all(plain) {
                bail!(Usage(format!(
                    "{place}: '{name}' cannot name a port or a service: use letters, digits, '-' and '_'"
                )));
            }
        }
        if let Some(name) = self.env.keys().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
            bail!(Usage(format!("{place}.env: '{name}' cannot name a variable")));
        }
        Ok(SidecarSpec {
            image: match &build {
                Some(build) => build.tag.clone(),
                None => self.image.clone().unwrap_or_default(),
            },
            build,
            services: self.services.clone(),
            ports: self.ports.clone(),
            env: self.env.clone(),
            reach: match self.reach {
                Some(ReachKey::Bridge) => Reach::Bridge,
                Some(ReachKey::Loopback) => Reach::Loopback,
                None => Reach::of_platform(),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(text: &str) -> Result<SidecarSpec> {
        let table: SidecarTable = toml::from_str(text)?;
        table.resolve("a", Path::new("/p"), "f: agent.a.sidecar")
    }

    #[test]
    fn a_sidecar_is_an_image_or_a_folder_to_build() {
        let given =
            resolve("image = \"team/gate:1\"\nports = { git = 9418 }\nservices = [\"git-gate\"]").unwrap();
        assert_eq!(
            (given.image.as_str(), given.build.is_none(), given.ports["git"]),
            ("team/gate:1", true, 9418)
        );
        let built = resolve("context = \"gate\"\nreach = \"loopback\"").unwrap();
        assert_eq!((built.image.as_str(), built.reach), ("smolcellar/a-sidecar:latest", Reach::Loopback));
        assert_eq!(built.build.unwrap().context, Path::new("/p/gate"));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (text, said) in [
            ("", "`image`"),
            ("dockerfile = \"D\"\nimage = \"i\"", "`context`"),
            ("image = \"i\"\nports = { \"a b\" = 1 }", "'a b'"),
            ("image = \"i\"\nservices = [\"\"]", "''"),
            ("image = \"i\"\nenv = { \"A=B\" = \"\" }", "'A=B'"),
        ] {
            let error = resolve(text).unwrap_err().to_string();
            assert!(error.contains(said) && error.starts_with("f: agent.a.sidecar"), "{text}: {error}");
        }
        assert!(resolve("image = \"i\"\nports = { a = 70000 }").is_err());
        assert!(resolve("image = \"i\"\nport = 1").is_err());
    }
}
