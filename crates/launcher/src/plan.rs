//! What a launch is going to do: pure, nothing is looked at or made.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::IpAddr;
use std::path::PathBuf;

use serde::Serialize;
use smolcellar_smolvm::{Cli, CreateRequest, ExecIo, ExecRequest, Feature, Port, Secret, Volume};

use crate::bringup::Bounds;
use crate::error::{LaunchError, Result};

/// The label of every machine that this crate makes; its value is `launch`.
pub const LABEL: &str = "dev.smolcellar.machine";

/// The longest slug, in bytes.
const SLUG: usize = 40;

/// What is to be launched.
#[derive(Debug, Clone)]
pub struct LaunchSpec {
    /// The agent's name.
    pub agent: String,
    /// The image, and who says so.
    pub image: Option<ImageRef>,
    /// What to boot; `None`: it is not built yet, so this can only be planned.
    pub artifact: Option<Artifact>,
    /// The machine's name, unique per launch: see [`machine_name`].
    pub machine_name: String,
    /// The command and its arguments: the image's entrypoint and cmd, or what
    /// the user wants instead. Empty where only the image can tell.
    pub command: Vec<String>,
    /// The guest's environment. Seen in the process list: never secrets.
    pub env: Vec<(String, String)>,
    /// Secrets of the guest's environment, by reference.
    pub secrets: Vec<Secret>,
    /// The working folder; `None`: as the artifact says.
    pub workdir: Option<String>,
    /// The user; `None`: as the artifact says.
    pub user: Option<String>,
    /// Virtual processors; `None`: as the artifact says.
    pub cpus: Option<u32>,
    /// Memory in MiB; `None`: as the artifact says.
    pub memory_mib: Option<u32>,
    /// Host folders in the guest.
    pub volumes: Vec<Volume>,
    /// Guest ports on this host.
    pub ports: Vec<Port>,
    /// What the guest may reach; nothing: no network.
    pub egress: Egress,
    /// What the command's streams are.
    pub io: ExecIo,
}

/// The name of an image, and what named it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageRef {
    /// `name[:tag]`.
    pub reference: String,
    /// "environment" (or the command line), "config" or "default".
    pub from: &'static str,
}

/// A built artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Artifact {
    /// The key under which the store locks it against collection.
    pub key: String,
    /// The `.smolmachine`.
    pub path: PathBuf,
}

/// What a guest may reach.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Egress {
    /// Addresses: `10.0.0.2/32`.
    pub allow_cidr: Vec<String>,
    /// Hosts, resolved when the guest starts.
    pub allow_host: Vec<String>,
}

/// Everything decided: what a launch is going to do. Made without asking
/// anybody anything; its JSON is what `launch --dry-run --format json` prints.
/// Secrets are in it by reference only.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// The agent's name.
    pub agent: String,
    /// Its name in names of machines.
    pub slug: String,
    /// The machine's name.
    pub machine: String,
    /// What runs it: "smolvm".
    pub backend: &'static str,
    /// The image, and who says so.
    pub image: Option<ImageRef>,
    /// What is booted; `null`: it is to be built first.
    pub artifact: Option<Artifact>,
    /// What runs in it; empty: as the image that is to be built says.
    pub command: Vec<String>,
    /// Virtual processors; `null`: as the artifact says.
    pub cpus: Option<u32>,
    /// Memory in MiB; `null`: as the artifact says.
    pub memory_mib: Option<u32>,
    /// The working folder; `null`: as the artifact says.
    pub workdir: Option<String>,
    /// The user; `null`: as the artifact says.
    pub user: Option<String>,
    /// Variables of the guest.
    pub env: BTreeMap<String, String>,
    /// Variables of the guest whose values only smolvm sees.
    pub secrets: Vec<Secret>,
    /// Host folders in the guest.
    pub volumes: Vec<Volume>,
    /// Guest ports on this host.
    pub ports: Vec<Port>,
    /// What the guest may reach.
    pub egress: Egress,
    /// Every command line, in order; the last two are teardown.
    pub commands: Vec<Vec<String>>,
    #[serde(skip)]
    pub(crate) create: CreateRequest,
    #[serde(skip)]
    pub(crate) exec: ExecRequest,
    #[serde(skip)]
    pub(crate) io: ExecIo,
}

/// Stands for the artifact in the command lines of a plan made before it.
const NOT_BUILT: &str = "(the artifact, built first)";
/// Stands for a command that only the image can tell.
const OF_IMAGE: &str = "(the image's entrypoint and cmd)";

impl Plan {
    /// Decides. `cli` is asked for its version and for command lines; nothing
    /// is run.
    ///
    /// # Errors
    /// [`LaunchError::NoCommand`], [`LaunchError::BadOption`],
    /// [`LaunchError::Smolvm`] where this smolvm cannot be told what is wanted.
    pub fn resolve(spec: LaunchSpec, cli: &Cli) -> Result<Self> {
        if spec.command.is_empty() && spec.artifact.is_some() {
            return Err(LaunchError::NoCommand);
        }
        check(&spec)?;
        let labels = match cli.supports(Feature::Labels) {
            true => vec![(LABEL.to_owned(), "launch".to_owned())],
            false => Vec::new(),
        };
        let create = CreateRequest {
            name: spec.machine_name.clone(),
            artifact: spec
                .artifact
                .as_ref()
                .map_or_else(|| NOT_BUILT.into(), |artifact| artifact.path.clone()),
            cpus: spec.cpus,
            memory_mib: spec.memory_mib,
            allow_cidrs: spec.egress.allow_cidr.clone(),
            allow_hosts: spec.egress.allow_host.clone(),
            volumes: spec.volumes.clone(),
            ports: spec.ports.clone(),
            // Here for whatever else runs in the machine, and at exec again:
            // some versions drop part of what they are told with `--from`.
            env: spec.env.clone(),
            labels,
        };
        let command = if spec.command.is_empty() { vec![OF_IMAGE.to_owned()] } else { spec.command.clone() };
        let exec = ExecRequest {
            command,
            env: spec.env.clone(),
            secrets: spec.secrets.clone(),
            workdir: spec.workdir.clone(),
            user: spec.user.clone(),
        };
        let lines = cli.lines(&create, &exec, spec.io, Bounds::default().grace)?;
        let text =
            |words: Vec<OsString>| words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        Ok(Self {
            slug: slug(&spec.agent),
            agent: spec.agent,
            machine: spec.machine_name,
            backend: "smolvm",
            image: spec.image,
            artifact: spec.artifact,
            command: spec.command,
            cpus: spec.cpus,
            memory_mib: spec.memory_mib,
            workdir: spec.workdir,
            user: spec.user,
            env: spec.env.into_iter().collect(),
            secrets: spec.secrets,
            volumes: spec.volumes,
            ports: spec.ports,
            egress: spec.egress,
            commands: lines.into_iter().map(text).collect(),
            create,
            exec,
            io: spec.io,
        })
    }
}

/// What can be told to be wrong without looking at anything.
fn check(spec: &LaunchSpec) -> Result<()> {
    let bad = |what, value: String, problem| Err(LaunchError::BadOption { what, value, problem });
    spec.egress.allow_cidr.iter().try_for_each(|cidr| check_cidr(cidr))?;
    spec.egress.allow_host.iter().try_for_each(|host| check_host(host))?;
    for (what, value) in [("cpus", spec.cpus), ("memory in MiB", spec.memory_mib)] {
        if value == Some(0) {
            return bad(what, "0".into(), "must be at least 1");
        }
    }
    let mut guests = HashSet::new();
    for volume in &spec.volumes {
        if !guests.insert(volume.guest.trim_end_matches('/')) {
            return bad("volume", volume.to_string(), "has a place in the guest that another volume has too");
        }
    }
    let mut hosts = HashSet::new();
    for port in &spec.ports {
        if !hosts.insert(port.host) {
            return bad("port", port.to_string(), "has a host port that another one has too");
        }
    }
    for secret in &spec.secrets {
        if spec.env.iter().any(|(name, _)| *name == secret.guest) {
            return bad("secret", secret.guest.clone(), "is a variable of the environment too");
        }
    }
    Ok(())
}

/// A host name (RFC 1123); smolvm resolves it.
fn check_host(host: &str) -> Result<()> {
    let label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        !label.is_empty() && label.len() <= 63 && label.bytes().all(inner) && !label.starts_with('-')
    };
    if host.len() <= 253 && host.split('.').all(label) {
        return Ok(());
    }
    let problem = "is no host name; addresses go with --allow-cidr";
    Err(LaunchError::BadOption { what: "allowed host", value: host.to_owned(), problem })
}

fn check_cidr(text: &str) -> Result<()> {
    let bad = |problem| LaunchError::BadOption { what: "allowed address", value: text.to_owned(), problem };
    let (address, prefix) =
        text.split_once('/').ok_or_else(|| bad("has no prefix length; write 10.0.0.2/32"))?;
    let address: IpAddr = address.parse().map_err(|_| bad("does not begin with an IP address"))?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let length = prefix.parse::<u8>().ok().filter(|length| *length <= longest && !prefix.starts_with('+'));
    length.map(drop).ok_or_else(|| bad("has no valid prefix length"))
}

/// An agent's name as machines' names may have it: lower-case letters, digits
/// and single hyphens. Words that would make it too long are left out.
pub fn slug(name: &str) -> String {
    let mut slug = String::new();
    for word in name.split(|letter: char| !letter.is_ascii_alphanumeric()) {
        let hyphen = usize::from(!slug.is_empty());
        if !word.is_empty() && slug.len() + hyphen + word.len() <= SLUG {
            if hyphen == 1 {
                slug.push('-');
            }
            slug.push_str(&word.to_ascii_lowercase());
        }
    }
    slug
}

/// A name that no other launch has: `smolcellar-<slug>-<8 random letters>`.
pub fn machine_name(agent: &str) -> String {
    let slug = slug(agent);
    let mut name = String::from("smolcellar-");
    if !slug.is_empty() {
        name.push_str(&slug);
        name.push('-');
    }
    // RandomState is seeded by the system.
    let mut random = RandomState::new().build_hasher().finish();
    for _ in 0..8 {
        let letter = u8::try_from(random % 26).unwrap_or(0);
        name.push(char::from(b'a' + letter));
        random /= 26;
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn spec() -> LaunchSpec {
        LaunchSpec {
            agent: "My Agent".into(),
            image: Some(ImageRef { reference: "my/agent:dev".into(), from: "config" }),
            artifact: Some(Artifact { key: "key".into(), path: "/a.smolmachine".into() }),
            machine_name: "m".into(),
            command: vec!["agent".into()],
            env: vec![("A".into(), "b".into())],
            secrets: vec!["TOKEN=GH_TOKEN".parse().unwrap()],
            workdir: Some("/w".into()),
            user: None,
            cpus: Some(1),
            memory_mib: Some(512),
            volumes: vec!["/src:/work:ro".parse().unwrap()],
            ports: vec!["8080:80".parse().unwrap()],
            egress: Egress {
                allow_cidr: vec!["10.0.0.2/32".into(), "fd00::/8".into()],
                allow_host: vec!["api.example.org".into()],
            },
            io: ExecIo::Stream,
        }
    }

    fn cli() -> Cli {
        Cli::assumed(smolcellar_smolvm::PINNED_VERSION)
    }

    #[test]
    fn a_plan_is_everything_that_was_asked_and_every_command_line() {
        let plan = Plan::resolve(spec(), &cli()).unwrap();
        assert_eq!(plan.create.labels, [(LABEL.to_owned(), "launch".to_owned())]);
        let lines: Vec<String> = plan.commands.iter().map(|words| words.join(" ")).collect();
        assert_eq!(
            lines,
            [
                "smolvm machine create --name m --from /a.smolmachine --cpus 1 --mem 512 --allow-cidr 10.0.0.2/32 \
             --allow-cidr fd00::/8 --allow-host api.example.org -v /src:/work:ro -p 8080:80 -e A=b --label \
             dev.smolcellar.machine=launch",
                "smolvm machine start --name m --no-workload",
                "smolvm machine exec --name m -w /w -e A=b --secret-env TOKEN=GH_TOKEN --stream -- agent",
                "smolvm machine stop --name m --timeout 2",
                "smolvm machine delete --name m -f",
            ]
        );
        let json = serde_json::to_value(&plan).unwrap();
        assert_eq!(json["slug"], "my-agent");
        assert_eq!(json["secrets"][0]["host"], "GH_TOKEN");
        assert_eq!(json["volumes"][0]["read_only"], true);
        assert_eq!(json["egress"]["allow_host"][0], "api.example.org");
        let old =
            Plan::resolve(LaunchSpec { secrets: vec![], ..spec() }, &Cli::assumed("0.8.0".parse().unwrap()));
        assert_eq!(old.unwrap().create.labels, []);
    }

    #[test]
    fn what_is_not_built_yet_is_planned_too() {
        let plan = Plan::resolve(LaunchSpec { artifact: None, command: vec![], ..spec() }, &cli()).unwrap();
        assert_eq!(plan.commands[0][6], NOT_BUILT);
        assert_eq!(plan.commands[2].last().unwrap(), OF_IMAGE);
        assert!(plan.command.is_empty());
    }

    #[test]
    fn what_cannot_be_right_is_refused_before_anything_is_made() {
        let refused = |spec: LaunchSpec| Plan::resolve(spec, &cli()).unwrap_err();
        assert!(matches!(refused(LaunchSpec { command: vec![], ..spec() }), LaunchError::NoCommand));
        let cidrs = [
            "",
            "10.0.0.2",
            "10.0.0.2/33",
            "10.0.0/8",
            "host/32",
            "::1/129",
            "10.0.0.2/",
            "10.0.0.2/+8",
            "-f/8",
        ];
        for cidr in cidrs {
            let egress = Egress { allow_cidr: vec![cidr.into()], ..Egress::default() };
            refused(LaunchSpec { egress, ..spec() });
        }
        for host in ["", "a..b", "-f", "a b", "a/b", "a:1", &"x".repeat(64)] {
            let egress = Egress { allow_host: vec![host.into()], ..Egress::default() };
            refused(LaunchSpec { egress, ..spec() });
        }
        refused(LaunchSpec { cpus: Some(0), ..spec() });
        refused(LaunchSpec { memory_mib: Some(0), ..spec() });
        refused(LaunchSpec { ports: vec!["1:2".parse().unwrap(), "1:3".parse().unwrap()], ..spec() });
        refused(LaunchSpec { volumes: vec!["/a:/x".parse().unwrap(), "/b:/x/".parse().unwrap()], ..spec() });
        refused(LaunchSpec { secrets: vec!["A=B".parse().unwrap()], ..spec() });
    }

    #[test]
    fn names_are_allowed_ones_whatever_the_slug_and_never_repeat() {
        for slug in ["sample", "", "My Agent/ü", "--x--", "a_b", &"long ".repeat(100), &"x".repeat(500)] {
            let name = machine_name(slug);
            assert!(name.starts_with("smolcellar-") && name.len() <= 64, "{name}");
            assert!(!name.contains("--") && !name.ends_with('-'), "{name}");
            assert!(
                name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
                "{name}"
            );
        }
        let names: HashSet<_> = (0..1000).map(|_| machine_name("a")).collect();
        assert_eq!(names.len(), 1000);
    }
}
