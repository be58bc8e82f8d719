//! Understanding what engines print. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::Deserialize;
use smolcellar_store::Digest;

/// What `image inspect` says of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageInfo {
    /// The engine's ID of it.
    pub id: Digest,
    /// Whether that is the digest of its config. Not so in Docker's containerd
    /// store, where it is the digest of a manifest or an index.
    pub id_is_config: bool,
    /// Uncompressed bytes, as the engine counts them.
    pub size: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    id: String,
    #[serde(default)]
    size: u64,
    /// Only the containerd store has it.
    descriptor: Option<serde_json::Value>,
}

/// Parses one image's JSON from `image inspect`.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn image_info(json: &str) -> Result<ImageInfo, String> {
    // Podman answers with a list of one, whatever it is asked for.
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Answer {
        One(Inspected),
        List([Inspected; 1]),
    }
    let answer = serde_json::from_str(json.trim()).map_err(|error| error.to_string())?;
    let (Answer::One(inspected) | Answer::List([inspected])) = answer;
    let id = image_id(&inspected.id)?;
    Ok(ImageInfo { id, id_is_config: inspected.descriptor.is_none_or(|d| d.is_null()), size: inspected.size })
}

/// Parses an image ID: Docker writes `sha256:` before it, Podman does not.
///
/// # Errors
/// If it is neither.
pub(crate) fn image_id(text: &str) -> Result<Digest, String> {
    let text = text.trim();
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    Digest::from_hex(hex).map_err(|error| error.to_string())
}

/// What an engine's complaint says of why it cannot be reached, without what it
/// said before; `None` if that is not the complaint.
pub(crate) fn unreachable(stderr: &str) -> Option<String> {
    const SIGNS: [&str; 6] = [
        "Cannot connect to the Docker daemon",
        "Is the docker daemon running",
        "permission denied while trying to connect",
        "error during connect",
        "failed to connect to the docker API",
        "Cannot connect to Podman",
    ];
    let is_sign = |line: &str| SIGNS.iter().any(|sign| line.contains(sign));
    let from = stderr.lines().position(is_sign)?;
    Some(stderr.lines().skip(from).collect::<Vec<_>>().join("\n").trim_end().to_owned())
}

/// An engine's output without the notice that it has a better builder.
pub(crate) fn without_notice(output: &str) -> String {
    const NOTICE: [&str; 3] =
        ["DEPRECATED: The legacy builder", "Install the buildx component", "docs.docker.com/go/buildx"];
    let kept = output.lines().filter(|line| !NOTICE.iter().any(|part| line.contains(part)));
    kept.collect::<Vec<_>>().join("\n").trim().to_owned()
}

/// What `container inspect` says of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerInfo {
    /// Whether it runs.
    pub running: bool,
    /// How its program ended, if it did.
    pub exit_code: i32,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its networks' names, and its addresses in them.
    pub addresses: Vec<(String, IpAddr)>,
    /// Its published TCP ports, and where they are on this host.
    pub published: Vec<(u16, SocketAddr)>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedContainer {
    state: InspectedState,
    config: InspectedConfig,
    network_settings: InspectedNetworks,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedState {
    running: bool,
    #[serde(default)]
    exit_code: i32,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedConfig {
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedNetworks {
    networks: Option<BTreeMap<String, InspectedEndpoint>>,
    ports: Option<BTreeMap<String, Option<Vec<InspectedPort>>>>,
}

#[derive(Deserialize)]
struct InspectedEndpoint {
    #[serde(rename = "IPAddress", default)]
    address: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedPort {
    #[serde(default)]
    host_ip: String,
    host_port: String,
}

/// Parses one container's JSON from `container inspect`.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn container_info(json: &str) -> Result<ContainerInfo, String> {
    // Podman writes a list of one, whatever the format.
    let value: serde_json::Value = serde_json::from_str(json.trim()).map_err(|error| error.to_string())?;
    let value = match value {
        serde_json::Value::Array(mut one) if one.len() == 1 => one.remove(0),
        other => other,
    };
    if !value.is_object() {
        return Err("it is no object".into());
    }
    let inspected: InspectedContainer = serde_json::from_value(value).map_err(|error| error.to_string())?;
    let networks = inspected.network_settings.networks.unwrap_or_default();
    let addresses = networks.into_iter().filter_map(|(name, endpoint)| {
        // Empty while it does not run.
        endpoint.address.parse().ok().map(|address| (name, address))
    });
    let mut published = Vec::new();
    for (inner, outer) in inspected.network_settings.ports.unwrap_or_default() {
        let Some(port) = inner.strip_suffix("/tcp").and_then(|port| port.parse().ok()) else { continue };
        for outer in outer.unwrap_or_default() {
            let ip = outer.host_ip.parse().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
            if let Ok(host_port) = outer.host_port.parse::<u16>() {
                published.push((port, SocketAddr::new(ip, host_port)));
            }
        }
    }
    Ok(ContainerInfo {
        running: inspected.state.running,
        exit_code: inspected.state.exit_code,
        labels: inspected.config.labels.unwrap_or_default(),
        addresses: addresses.collect(),
        published,
    })
}

/// Whether an engine's complaint is that there is no such thing.
pub(crate) fn is_absent(stderr: &str) -> bool {
    let stderr = stderr.to_ascii_lowercase();
    is_no_such_image(&stderr)
        || ["no such container", "no such object", "no such network", "no container with name", "network not found"]
            .iter()
            .any(|sign| stderr.contains(sign))
        // Not "not found" alone: a context, a program or a host may be that too.
        || stderr.lines().any(|line| line.contains("daemon: network ") && line.trim_end().ends_with(" not found"))
}

/// Whether an engine's complaint is that addresses are another network's.
pub(crate) fn is_overlap(stderr: &str) -> bool {
    let stderr = stderr.to_ascii_lowercase();
    ["pool overlaps", "is already used", "overlaps with", "already being used"]
        .iter()
        .any(|sign| stderr.contains(sign))
}

/// Whether an engine's complaint is that there is no such image.
pub(crate) fn is_no_such_image(stderr: &str) -> bool {
    let stderr = stderr.to_ascii_lowercase();
    ["no such image", "image not known", "failed to find image"].iter().any(|sign| stderr.contains(sign))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn podmans_list_of_one_is_understood_and_longer_ones_are_not() {
        let id = "a".repeat(64);
        let one = format!("{{\"Id\":\"{id}\",\"Size\":7}}");
        let info = image_info(&format!("[{one}]")).unwrap();
        assert_eq!((info.id.hex(), info.size, info.id_is_config), (id, 7, true));
        assert!(image_info("[]").is_err() && image_info(&format!("[{one},{one}]")).is_err());
    }

    #[test]
    fn the_classic_store_and_the_containerd_store_are_told_apart() {
        let classic = image_info(&format!(r#"{{"Id":"{ID}","Size":5,"RootFS":{{}}}}"#)).unwrap();
        assert!(classic.id_is_config);
        let containerd = format!(
            r#"{{"Id":"{ID}","Descriptor":{{"mediaType":"application/vnd.oci.image.index.v1+json"}}}}"#
        );
        assert!(!image_info(&containerd).unwrap().id_is_config);
    }

    #[test]
    fn the_reason_comes_without_what_was_said_before_it() {
        let said = "DEPRECATED: The legacy builder is deprecated.\n   Install the buildx component to build\n   \
                    https://docs.docker.com/go/buildx/\n\nerror during connect: x\nCannot connect to the Docker daemon.\n";
        assert_eq!(
            unreachable(said).unwrap(),
            "error during connect: x\nCannot connect to the Docker daemon."
        );
        assert_eq!(unreachable("no such image"), None);
        assert_eq!(without_notice(&format!("{said}more")).lines().count(), 3);
    }

    #[test]
    fn podmans_bare_ids_are_ids_and_short_ones_are_not() {
        assert_eq!(image_id(ID), image_id(&format!("{}\n", &ID[7..])));
        assert!(image_id("abc123").is_err());
        assert!(image_info("{}").is_err() && image_info("").is_err());
    }

    #[test]
    fn a_container_is_understood_in_both_engines_words() {
        let docker = r#"{"State":{"Status":"running","Running":true,"Pid":7,"ExitCode":0},"Config":{"Labels":{"a":"b"}},
            "NetworkSettings":{"Ports":{"3128/tcp":[{"HostIp":"127.0.0.1","HostPort":"32768"}],"53/udp":null,"80/tcp":null},
            "Networks":{"bridge":{"IPAddress":"172.17.0.2"},"n":{"IPAddress":""}}}}"#;
        let info = container_info(docker).unwrap();
        assert!(info.running && info.labels["a"] == "b");
        assert_eq!(info.published(3128).unwrap().to_string(), "127.0.0.1:32768");
        assert_eq!((info.published(80), info.address("n")), (None, None));
        assert_eq!(info.address("bridge").unwrap().to_string(), "172.17.0.2");
        let podman = r#"[{"State":{"Running":false,"ExitCode":3},"Config":{"Labels":null},
            "NetworkSettings":{"Ports":{"1/tcp":[{"HostIp":"","HostPort":"2"}]},"Networks":null}}]"#;
        let info = container_info(podman).unwrap();
        assert_eq!((info.running, info.exit_code), (false, 3));
        assert_eq!(info.published(1).unwrap().to_string(), "127.0.0.1:2");
        assert!(container_info("[]").is_err() && container_info("").is_err());
    }

    #[test]
    fn what_is_absent_or_taken_is_told_from_other_trouble() {
        for said in [
            "Error response from daemon: No such container: x",
            "Error: no such network: x",
            "Error response from daemon: network x not found",
            "Error: no container with name or ID \"x\" found: no such container",
        ] {
            assert!(is_absent(said), "{said}");
        }
        for said in ["permission denied", "context \"x\": context not found", "sh: 1: docker: not found"] {
            assert!(!is_absent(said), "{said}");
        }
        assert!(is_overlap("Error response from daemon: Pool overlaps with other one on this address space"));
        assert!(is_overlap("Error: subnet 10.0.0.0/24 is already used on the host or by another config"));
        assert!(!is_overlap("invalid subnet"));
    }
}
