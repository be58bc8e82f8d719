//! What a launch is going to do: pure, nothing is looked at or made.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::IpAddr;
use std::path::PathBuf;

use smolcellar_smolvm::{CreateRequest, ExecIo, ExecRequest};

use crate::error::{LaunchError, Result};

/// The label of every machine that this crate makes; its value is `launch`.
pub const LABEL: &str = "dev.smolcellar.machine";

/// How much of a slug goes into a machine's name, in bytes.
const SLUG: usize = 40;

/// What is to be launched.
#[derive(Debug, Clone)]
pub struct LaunchSpec {
    /// The `.smolmachine`.
    pub artifact: PathBuf,
    /// The key under which the store locks the artifact against collection.
    pub artifact_key: String,
    /// The machine's name, unique per launch: see [`machine_name`].
    pub machine_name: String,
    /// The command and its arguments: the image's entrypoint and cmd, or what
    /// the user wants instead.
    pub command: Vec<String>,
    /// The guest's environment. Seen in the process list: never secrets.
    pub env: Vec<(String, String)>,
    /// The working folder; `None`: as the artifact says.
    pub workdir: Option<String>,
    /// The user; `None`: as the artifact says.
    pub user: Option<String>,
    /// Virtual processors; `None`: as the artifact says.
    pub cpus: Option<u32>,
    /// Memory in MiB; `None`: as the artifact says.
    pub memory_mib: Option<u32>,
    /// The addresses that the guest may reach; none: no network.
    pub allow_cidrs: Vec<String>,
    /// What the command's streams are.
    pub io: ExecIo,
}

/// Everything decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) artifact_key: String,
    pub(crate) create: CreateRequest,
    pub(crate) exec: ExecRequest,
    pub(crate) io: ExecIo,
}

impl Plan {
    /// `labels`: whether this smolvm knows labels.
    pub(crate) fn resolve(spec: LaunchSpec, labels: bool) -> Result<Self> {
        if spec.command.is_empty() {
            return Err(LaunchError::NoCommand);
        }
        spec.allow_cidrs.iter().try_for_each(|cidr| check_cidr(cidr))?;
        for (what, value) in [("cpus", spec.cpus), ("memory in MiB", spec.memory_mib)] {
            if value == Some(0) {
                return Err(LaunchError::BadOption {
                    what,
                    value: "0".into(),
                    problem: "must be at least 1",
                });
            }
        }
        let labels = if labels { vec![(LABEL.to_owned(), "launch".to_owned())] } else { Vec::new() };
        Ok(Self {
            artifact_key: spec.artifact_key,
            create: CreateRequest {
                name: spec.machine_name,
                artifact: spec.artifact,
                cpus: spec.cpus,
                memory_mib: spec.memory_mib,
                allow_cidrs: spec.allow_cidrs,
                // Here for whatever else runs in the machine, and at exec again:
                // some versions drop part of what they are told with `--from`.
                env: spec.env.clone(),
                labels,
            },
            exec: ExecRequest {
                command: spec.command,
                env: spec.env,
                workdir: spec.workdir,
                user: spec.user,
            },
            io: spec.io,
        })
    }
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

/// A name that no other launch has: `smolcellar-<slug>-<8 random letters>`.
/// What smolvm does not allow in names becomes a hyphen.
pub fn machine_name(slug: &str) -> String {
    let mut name = String::from("smolcellar");
    for word in slug.split(|letter: char| !letter.is_ascii_alphanumeric()) {
        if !word.is_empty() && name.len() + word.len() <= "smolcellar-".len() + SLUG {
            name.push('-');
            name.push_str(&word.to_ascii_lowercase());
        }
    }
    name.push('-');
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
            artifact: "/a.smolmachine".into(),
            artifact_key: "key".into(),
            machine_name: "m".into(),
            command: vec!["agent".into()],
            env: vec![("A".into(), "b".into())],
            workdir: Some("/w".into()),
            user: None,
            cpus: Some(1),
            memory_mib: Some(512),
            allow_cidrs: vec!["10.0.0.2/32".into(), "fd00::/8".into()],
            io: ExecIo::Stream,
        }
    }

    #[test]
    fn a_plan_carries_what_was_asked_and_the_label_where_there_are_labels() {
        let plan = Plan::resolve(spec(), true).unwrap();
        assert_eq!((plan.create.cpus, plan.create.memory_mib), (Some(1), Some(512)));
        assert_eq!(plan.create.labels, [(LABEL.to_owned(), "launch".to_owned())]);
        assert_eq!(plan.exec.env, [("A".to_owned(), "b".to_owned())]);
        assert_eq!(plan.exec.workdir.as_deref(), Some("/w"));
        assert_eq!(Plan::resolve(spec(), false).unwrap().create.labels, []);
    }

    #[test]
    fn what_cannot_be_right_is_refused_before_anything_is_made() {
        let no_command = LaunchSpec { command: vec![], ..spec() };
        assert!(matches!(Plan::resolve(no_command, true), Err(LaunchError::NoCommand)));
        for cidr in [
            "",
            "10.0.0.2",
            "10.0.0.2/33",
            "10.0.0/8",
            "host/32",
            "::1/129",
            "10.0.0.2/",
            "10.0.0.2/+8",
            "-f/8",
        ] {
            let bad = LaunchSpec { allow_cidrs: vec![cidr.into()], ..spec() };
            assert!(Plan::resolve(bad, true).is_err(), "{cidr:?}");
        }
        assert!(Plan::resolve(LaunchSpec { cpus: Some(0), ..spec() }, true).is_err());
        assert!(Plan::resolve(LaunchSpec { memory_mib: Some(0), ..spec() }, true).is_err());
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
