//! The configuration: `[workspace.metadata.smolcellar]` of a Cargo.toml, or the
//! same tables in a `smolcellar.toml`, found upward from the working folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;
use smolcellar_engine::BuildSpec;
use smolcellar_launcher::{Egress, SidecarSpec};
use smolcellar_oci::Platform;
use smolcellar_pipeline::{AgentSpec, DEFAULT_LEVEL, Overrides, Packer, Source};
use smolcellar_store::gc::Policy;

use crate::config_gc::GcTable;
use crate::config_launch::{EgressTable, SidecarTable};
use crate::config_remote::{Mode, Place, RemoteTable};
use crate::exit::Usage;
use crate::near::near;

const CARGO: &str = "Cargo.toml";
const OWN: &str = "smolcellar.toml";

/// Defaults of an agent that says nothing.
const CPUS: u8 = 2;
const MEMORY_MIB: u32 = 1024;

/// A configuration, and where it was found.
#[derive(Debug)]
pub(crate) struct Config {
    /// The folder that paths in it are relative to.
    pub(crate) project: PathBuf,
    file: PathBuf,
    tables: Tables,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Tables {
    #[serde(default)]
    agent: BTreeMap<String, Agent>,
    #[serde(default)]
    gc: GcTable,
    #[serde(default)]
    remote: RemoteTable,
}

/// `[agent.NAME]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Agent {
    context: Option<PathBuf>,
    dockerfile: Option<PathBuf>,
    image: Option<String>,
    target: Option<String>,
    platform: Option<String>,
    #[serde(default)]
    build_args: BTreeMap<String, String>,
    #[serde(default)]
    before: Vec<String>,
    cpus: Option<u8>,
    memory: Option<u32>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    workdir: Option<String>,
    user: Option<String>,
    compression_level: Option<i32>,
    #[serde(default)]
    egress: EgressTable,
    sidecar: Option<SidecarTable>,
}

/// The part of a Cargo.toml that is ours.
#[derive(Deserialize)]
struct CargoToml {
    workspace: Option<Workspace>,
}
#[derive(Deserialize)]
struct Workspace {
    metadata: Option<Metadata>,
}
#[derive(Deserialize)]
struct Metadata {
    smolcellar: Option<Tables>,
}

impl Config {
    /// Finds and reads the configuration that governs `from`.
    pub(crate) fn find(from: &Path) -> Result<Option<Self>> {
        for dir in from.ancestors() {
            let own = dir.join(OWN);
            if let Some(text) = read(&own)? {
                let tables = toml::from_str(&text).map_err(|error| malformed(&own, &error))?;
                let cargo = dir.join(CARGO);
                if cargo_tables(&cargo)?.is_some() {
                    let text =
                        format!("{} and {} both configure agents; keep one", own.display(), cargo.display());
                    bail!(Usage(text));
                }
                return Self::checked(dir, own, tables).map(Some);
            }
            let cargo = dir.join(CARGO);
            if let Some(tables) = cargo_tables(&cargo)? {
                return Self::checked(dir, cargo, tables).map(Some);
            }
        }
        Ok(None)
    }

    fn checked(project: &Path, file: PathBuf, tables: Tables) -> Result<Self> {
        let config = Self { project: project.to_owned(), file, tables };
        config.gc_policy()?;
        config.remote()?;
        for name in config.tables.agent.keys() {
            if let Err(error) = check_agent_name(name) {
                bail!(Usage(format!("{}: {error}", config.file.display())));
            }
        }
        Ok(config)
    }

    /// Whether the cache is collected after builds.
    pub(crate) fn gc_auto(&self) -> bool {
        self.tables.gc.auto()
    }

    /// How the cache is kept in bounds.
    pub(crate) fn gc_policy(&self) -> Result<Policy> {
        self.tables.gc.policy(&self.file.display().to_string())
    }

    /// The cache that others share, and what is to be done with it.
    pub(crate) fn remote(&self) -> Result<Option<(Place, Mode)>> {
        self.tables.remote.resolve(&self.file.display().to_string())
    }

    /// The agents' names.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tables.agent.keys().map(String::as_str)
    }

    /// Whether the agent's configuration names its image.
    pub(crate) fn names_image(&self, name: &str) -> bool {
        self.tables.agent.get(name).is_some_and(|agent| agent.image.is_some())
    }

    /// What an agent may reach.
    pub(crate) fn egress(&self, name: &str) -> Egress {
        self.tables.agent.get(name).map(|agent| agent.egress.resolve()).unwrap_or_default()
    }

    /// The container beside an agent, if it is to have one.
    pub(crate) fn sidecar(&self, name: &str) -> Result<Option<SidecarSpec>> {
        let Some(table) = self.tables.agent.get(name).and_then(|agent| agent.sidecar.as_ref()) else {
            return Ok(None);
        };
        let place = format!("{}: agent.{name}.sidecar", self.file.display());
        table.resolve(name, &self.project, &place).map(Some)
    }

    /// The agent that is meant when none is named: the only one.
    pub(crate) fn only(&self) -> Result<&str> {
        let names: Vec<&str> = self.names().collect();
        match names.as_slice() {
            [name] => Ok(name),
            [] => {
                Err(Usage(format!("{} configures no agent: add an [agent.NAME] table", self.file.display()))
                    .into())
            }
            _ => Err(Usage(format!("name one of the agents: {}", names.join(", "))).into()),
        }
    }

    /// Whether there is an agent of this name; if not, which names are near.
    pub(crate) fn check_name(&self, name: &str) -> Result<()> {
        if self.tables.agent.contains_key(name) {
            return Ok(());
        }
        let near = near(name, self.names());
        let hint = match near.as_slice() {
            [] => format!("it has {}", self.names().collect::<Vec<_>>().join(", ")),
            near => format!("did you mean '{}'?", near.join("' or '")),
        };
        Err(Usage(format!("{} has no agent '{name}'; {hint}", self.file.display())).into())
    }

    /// The agent of this name, resolved.
    pub(crate) fn agent(
        &self,
        name: &str,
        archive: Option<Source>,
        platform: Option<&str>,
    ) -> Result<AgentSpec> {
        self.check_name(name)?;
        let agent = self.tables.agent.get(name).ok_or_else(|| anyhow!("no agent '{name}'"))?;
        let place = |key: &str| format!("{}: agent.{name}.{key}", self.file.display());
        let usage = |key: &str, problem: String| anyhow!(Usage(format!("{}: {problem}", place(key))));
        let asked = platform.or(agent.platform.as_deref());
        let platform = match asked {
            Some(text) => text.parse().map_err(|problem| match platform {
                Some(_) => anyhow!(Usage(format!("--platform: {problem}"))),
                None => usage("platform", problem),
            })?,
            None => Platform::guest(),
        };
        let level = agent.compression_level.unwrap_or(DEFAULT_LEVEL);
        if !(1..=19).contains(&level) {
            return Err(usage("compression-level", format!("{level} is not between 1 and 19")));
        }
        let cpus = agent.cpus.unwrap_or(CPUS);
        if cpus == 0 {
            return Err(usage("cpus", "a machine needs at least one".into()));
        }
        let memory_mib = agent.memory.unwrap_or(MEMORY_MIB);
        if memory_mib < 64 {
            return Err(usage("memory", format!("{memory_mib} MiB is too little to boot; 64 is the least")));
        }
        if let Some(workdir) = agent.workdir.as_ref().filter(|workdir| !workdir.starts_with('/')) {
            return Err(usage("workdir", format!("'{workdir}' is not absolute")));
        }
        if let Some(name) = agent.env.keys().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
            return Err(usage("env", format!("'{name}' cannot name a variable")));
        }
        let source = match archive {
            Some(source) => source,
            None => self.build(name, agent, asked)?,
        };
        Ok(AgentSpec {
            name: name.to_owned(),
            project: self.project.clone(),
            source,
            platform,
            cpus,
            memory_mib,
            level,
            packer: Packer::default(),
            overrides: Overrides {
                entrypoint: agent.entrypoint.clone(),
                cmd: agent.cmd.clone(),
                env: agent.env.clone().into_iter().collect(),
                workdir: agent.workdir.clone(),
                user: agent.user.clone(),
            },
        })
    }

    fn build(&self, name: &str, agent: &Agent, platform: Option<&str>) -> Result<Source> {
        let context = agent.context.as_ref().ok_or_else(|| {
            let place = self.file.display();
            Usage(format!("{place}: agent.{name}: `context`, the folder to build, is missing"))
        })?;
        let build = BuildSpec {
            no_cache: false,
            context: self.project.join(context),
            dockerfile: agent.dockerfile.as_ref().map(|path| self.project.join(path)),
            tag: agent.image.clone().unwrap_or_else(|| format!("smolcellar/{name}:latest")),
            target: agent.target.clone(),
            platform: platform.map(str::to_owned),
            build_args: agent.build_args.clone(),
        };
        Ok(Source::Build { before: agent.before.clone(), build })
    }
}

/// The tables in a Cargo.toml, if it is there and has ours.
fn cargo_tables(cargo: &Path) -> Result<Option<Tables>> {
    // A Cargo.toml without our table is somebody else's business, even a
    // malformed one.
    let Some(text) = read(cargo)?.filter(|text| text.contains("smolcellar")) else { return Ok(None) };
    let parsed: CargoToml = toml::from_str(&text).map_err(|error| malformed(cargo, &error))?;
    Ok(parsed.workspace.and_then(|w| w.metadata).and_then(|m| m.smolcellar))
}

/// That an agent may have this name.
pub(crate) fn check_agent_name(name: &str) -> Result<()> {
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
    match name.len() <= 64 && name.chars().all(fine) && name.starts_with(|c: char| c.is_ascii_alphanumeric())
    {
        true => Ok(()),
        false => Err(Usage(format!(
            "'{name}' cannot name an agent: use lower-case letters, digits, '-', '_' and '.', at most 64"
        ))
        .into()),
    }
}

/// The agent of an archive where no configuration says more.
pub(crate) fn bare_agent(source: Source, project: PathBuf, platform: Option<&str>) -> Result<AgentSpec> {
    let name = match &source {
        Source::Archive(path) => path.file_name().map(|name| slug(&name.to_string_lossy())),
        _ => None,
    };
    let parse = |text: &str| text.parse().map_err(|problem| Usage(format!("--platform: {problem}")));
    Ok(AgentSpec {
        name: name.filter(|name| !name.is_empty()).unwrap_or_else(|| "archive".into()),
        project,
        source,
        platform: platform.map_or_else(|| Ok(Platform::guest()), parse)?,
        cpus: CPUS,
        memory_mib: MEMORY_MIB,
        overrides: Overrides::default(),
        level: DEFAULT_LEVEL,
        packer: Packer::default(),
    })
}

/// A file's name as an agent's: up to the first dot, what is not allowed left out.
fn slug(name: &str) -> String {
    let stem = name.trim_start_matches('.').split('.').next().unwrap_or_default().to_ascii_lowercase();
    let kept: String = stem.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    kept.trim_matches('-').chars().take(64).collect()
}

fn read(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn malformed(path: &Path, error: &toml::de::Error) -> anyhow::Error {
    Usage(format!("{}: {}", path.display(), error.to_string().trim_end())).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config> {
        let tables = toml::from_str(text).map_err(|error| malformed(Path::new(OWN), &error))?;
        Config::checked(Path::new("/p"), OWN.into(), tables)
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_it_and_its_line() {
        let error = parse("[agent.a]\ncontext = \".\"\ncontxt = \"x\"\n").unwrap_err().to_string();
        assert!(
            error.contains("contxt") && error.contains("line 3") && error.contains("smolcellar.toml"),
            "{error}"
        );
        let error = parse("[agnet.a]\n").unwrap_err().to_string();
        assert!(error.contains("agnet"), "{error}");
    }

    #[test]
    fn an_unknown_agent_is_answered_with_the_near_names() {
        let config = parse("[agent.sample]\ncontext = \".\"\n[agent.other]\ncontext = \".\"\n").unwrap();
        let error = config.agent("smple", None, None).unwrap_err();
        assert!(error.to_string().contains("did you mean 'sample'?"), "{error}");
        assert!(error.is::<Usage>());
        let error = config.only().unwrap_err().to_string();
        assert!(error.contains("other, sample"), "{error}");
    }

    #[test]
    fn paths_are_relative_to_the_configuration() {
        let config = parse("[agent.a]\ncontext = \"ctx\"\ndockerfile = \"docker/Dev\"\n").unwrap();
        let Source::Build { build, .. } = config.agent("a", None, None).unwrap().source else { panic!() };
        assert_eq!(build.context, Path::new("/p/ctx"));
        assert_eq!(build.dockerfile.as_deref(), Some(Path::new("/p/docker/Dev")));
        assert_eq!(build.tag, "smolcellar/a:latest");
    }

    #[test]
    fn values_out_of_range_are_named_with_their_place() {
        for (key, value) in [
            ("cpus", "0"),
            ("memory", "1"),
            ("compression-level", "40"),
            ("platform", "\"x\""),
            ("workdir", "\"rel\""),
            ("env", "{\"A=B\" = \"x\"}"),
        ] {
            let config = parse(&format!("[agent.a]\ncontext = \".\"\n{key} = {value}\n")).unwrap();
            let error = config.agent("a", None, None).unwrap_err().to_string();
            assert!(error.contains(&format!("agent.a.{key}")), "{error}");
        }
        assert!(parse("[agent.\"A b\"]\ncontext=\".\"\n").unwrap_err().to_string().contains("'A b'"));
    }

    #[test]
    fn the_nearest_configuration_upward_counts() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b");
        std::fs::create_dir_all(&deep).unwrap();
        let put = |path: &str, text: &str| {
            smolcellar_store::fsio::write_atomic(dir.path(), &dir.path().join(path), text.as_bytes()).unwrap()
        };
        put("Cargo.toml", "[workspace.metadata.smolcellar.agent.outer]\ncontext = \".\"\n");
        put("a/Cargo.toml", "[package]\nname = \"x\"\n");
        let names = |config: Config| config.names().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(names(Config::find(&deep).unwrap().unwrap()), ["outer"]);
        put("a/smolcellar.toml", "[agent.inner]\ncontext = \".\"\n");
        put("smolcellar.toml", "[agent.inner]\ncontext = \".\"\n");
        let error = Config::find(dir.path()).unwrap_err().to_string();
        assert!(error.contains("both configure agents"), "{error}");
        assert_eq!(names(Config::find(&deep).unwrap().unwrap()), ["inner"]);
    }

    #[test]
    fn an_archive_names_its_agent_after_its_file() {
        let names = ["My App.tar.gz", ".hidden.tar", "..."].map(slug);
        assert_eq!(names, ["my-app", "hidden", ""]);
    }
}
