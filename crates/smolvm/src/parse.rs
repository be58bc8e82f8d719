//! Pure parsers of what smolvm prints.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::version::Version;

/// A machine as `machine ls --json` and `machine status --json` show it; the
/// many other fields are left out.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct MachineInfo {
    /// Its name.
    pub name: String,
    /// What it is doing.
    pub state: MachineState,
    /// The process that runs it, on this machine.
    #[serde(default)]
    pub pid: Option<i32>,
    /// Its labels; none in versions without them.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// The state of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub enum MachineState {
    /// Made, never started.
    Created,
    /// Its process lives and its agent answers.
    Running,
    /// It was stopped.
    Stopped,
    /// Anything else: "unreachable", "failed", or what a newer version adds.
    Other(String),
}

impl From<String> for MachineState {
    fn from(text: String) -> Self {
        match text.as_str() {
            "created" => Self::Created,
            "running" => Self::Running,
            "stopped" => Self::Stopped,
            _ => Self::Other(text),
        }
    }
}

/// A connection that smolvm refused to a guest, as `machine egress-events
/// --json` lists them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct EgressEvent {
    /// What the guest wanted: "connect".
    #[serde(default)]
    pub operation: String,
    /// Where to.
    pub dest: String,
}

/// All events of `machine egress-events --json`.
pub(crate) fn egress_events(stdout: &[u8]) -> Result<Vec<EgressEvent>, String> {
    serde_json::from_slice(stdout).map_err(|error| error.to_string())
}

/// The version in `smolvm 1.32.2`.
pub(crate) fn version(stdout: &[u8]) -> Option<Version> {
    let text = std::str::from_utf8(stdout).ok()?;
    let words = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    words
        .filter_map(|words| if let ["smolvm", version] = words[..] { version.parse().ok() } else { None })
        .next()
}

/// The absolute path on the only line.
pub(crate) fn path(stdout: &[u8]) -> Option<PathBuf> {
    let line = stdout.strip_suffix(b"\n").unwrap_or(stdout);
    let path = Path::new(OsStr::from_bytes(line));
    (path.is_absolute() && !line.contains(&b'\n')).then(|| path.to_owned())
}

/// All machines of `machine ls --json`.
pub(crate) fn machines(stdout: &[u8]) -> Result<Vec<MachineInfo>, String> {
    serde_json::from_slice(stdout).map_err(|error| error.to_string())
}

/// The machine of `machine status --json`.
pub(crate) fn machine(stdout: &[u8]) -> Result<MachineInfo, String> {
    serde_json::from_slice(stdout).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_line_is_found_among_others() {
        assert_eq!(version(b"smolvm 1.32.2\n"), Some(Version::new(1, 32, 2)));
        assert_eq!(version(b"a wrapper says hello\nsmolvm 0.8.0\n"), Some(Version::new(0, 8, 0)));
        for bad in
            [&b""[..], b"smolvm\n", b"smol 1.2.3\n", b"smolvm x.y.z\n", b"\xff\xfe", b"smolvm 1.2.3 extra\n"]
        {
            assert_eq!(version(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn only_one_absolute_path_is_a_path() {
        assert_eq!(path(b"/a b/c\n"), Some("/a b/c".into()));
        for bad in [&b""[..], b"\n", b"a/b\n", b"/a\n/b\n"] {
            assert_eq!(path(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_list_of_machines_is_read_whatever_else_it_says() {
        let list = br#"[{"name":"a","state":"running","pid":42,"labels":{"k":"v"},"cpus":1,"new":[]},
                        {"name":"b","state":"unreachable","pid":null}]"#;
        let machines = machines(list).unwrap();
        assert_eq!(machines[0].state, MachineState::Running);
        assert_eq!((machines[0].pid, machines[0].labels["k"].as_str()), (Some(42), "v"));
        assert_eq!(machines[1].state, MachineState::Other("unreachable".into()));
        assert!(machines[1].labels.is_empty() && machines[1].pid.is_none());
    }

    #[test]
    fn what_is_no_list_is_an_error_not_an_empty_list() {
        for bad in [&b""[..], b"No machines\n", b"{}", b"[{\"name\":\"a\"}]", b"[] trailing"] {
            assert!(machines(bad).is_err(), "{bad:?}");
        }
        assert!(machine(b"[]").is_err());
        assert_eq!(machines(b"[]").unwrap(), []);
    }

    #[test]
    fn refused_connections_are_read_in_order() {
        let list = br#"[{"timestamp":1,"operation":"connect","dest":"10.9.9.2:7000"},{"dest":"1.1.1.1:53","new":{}}]"#;
        let events = egress_events(list).unwrap();
        assert_eq!((events[0].operation.as_str(), events[1].dest.as_str()), ("connect", "1.1.1.1:53"));
        assert!(egress_events(b"{}").is_err() && egress_events(b"").is_err());
    }
}
