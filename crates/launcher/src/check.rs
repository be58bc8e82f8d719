//! What of a launch can be told to be wrong without looking at anything.

use std::collections::HashSet;
use std::net::IpAddr;

use crate::error::{LaunchError, Result};
use crate::spec::{Backend, LaunchSpec};

/// Refuses what cannot be right.
pub(crate) fn check(spec: &LaunchSpec) -> Result<()> {
    let bad = |what, value: String, problem| Err(LaunchError::BadOption { what, value, problem });
    if !is_name(&spec.machine_name) {
        let problem =
            "must be letters, digits and single hyphens, with a letter or a digit at both ends, at most 64";
        return bad("machine name", spec.machine_name.clone(), problem);
    }
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
    if spec.backend == Backend::Docker {
        if let Some(first) = spec.egress.allow_cidr.iter().chain(&spec.egress.allow_host).next() {
            let problem = "cannot be allowed to a container, which cannot be limited to addresses; let it through a \
                           sidecar, or use the backend smolvm";
            return bad("egress", first.clone(), problem);
        }
        if spec.keep && !spec.ports.is_empty() {
            let problem = "of a container is there only as long as its launcher: not with --keep or --detach";
            return bad("port", spec.ports[0].to_string(), problem);
        }
    }
    let mut numbers = HashSet::new();
    for (name, port) in spec.sidecar.iter().flat_map(|sidecar| &sidecar.ports) {
        if *port == 0 || !numbers.insert(port) {
            return bad("sidecar port", format!("{name} = {port}"), "is zero, or another one's too");
        }
    }
    for secret in &spec.secrets {
        if spec.env.iter().any(|(name, _)| *name == secret.guest) {
            return bad("secret", secret.guest.clone(), "is a variable of the environment too");
        }
    }
    Ok(())
}

/// What smolvm, container engines and file systems all take for a name.
fn is_name(name: &str) -> bool {
    let word = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric());
    name.len() <= 64 && name.split('-').all(word)
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
