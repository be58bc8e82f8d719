//! The sidecar: a container of the user's beside a guest, an egress proxy or a
//! git gate. What it is to be and where it is: pure. `sidecar_up` makes it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::Serialize;
use smolcellar_engine::{Attachment, BuildSpec, ContainerSpec, NetworkSpec};

use crate::container::words;
use crate::plan::Published;
use crate::spec::LABEL;
use crate::subnet::Subnet;

/// What a sidecar is to be.
#[derive(Debug, Clone)]
pub struct SidecarSpec {
    /// The image's name; the one that is built if `build` says how.
    pub image: String,
    /// How its image is built; `None`: the engine has it, or gets it.
    pub build: Option<BuildSpec>,
    /// Which of its services it is to run; what they are is the image's
    /// business.
    pub services: Vec<String>,
    /// The ports that the guest may know, by name.
    pub ports: BTreeMap<String, u16>,
    /// Its own environment, in the engine's records: never secrets.
    pub env: BTreeMap<String, String>,
    /// How guests get to it.
    pub reach: Reach,
}

/// How a guest that is a machine gets to the sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reach {
    /// At its address in the launch's network.
    Bridge,
    /// At random ports of the host's loopback, known once it is up: where the
    /// engine's networks are not this host's.
    Loopback,
}

impl Reach {
    /// What works on this platform: engines run in a machine of their own on
    /// all but Linux.
    pub const fn of_platform() -> Self {
        if cfg!(target_os = "linux") { Self::Bridge } else { Self::Loopback }
    }
}

/// Where a machine finds the loopback of its host: at the gateway of its link,
/// the first address of smolvm's default `--guest-subnet`, 100.96.0.0/30. Seen
/// with smolvm 1.32.2, in `tests/vm`; 127.0.0.1 is the machine itself there.
const HOST_LOOPBACK: Ipv4Addr = Ipv4Addr::new(100, 96, 0, 1);

/// The port whose name makes it the proxy of the guest.
const PROXY: &str = "http-proxy";

/// A sidecar, decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sidecar {
    /// Its image.
    pub image: String,
    /// Whether that is built first.
    pub built: bool,
    /// Its container's name.
    pub container: String,
    /// The launch's network.
    pub network: Network,
    /// Its address there.
    pub ip: Ipv4Addr,
    /// How guests get to it.
    pub reach: Reach,
    /// The services it is to run.
    pub services: Vec<String>,
    /// Where they are.
    pub ports: Vec<SidecarPort>,
}

/// The network of a launch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// Its addresses. If they are another network's when the launch begins, it
    /// takes the next that are free.
    pub subnet: String,
    /// The host's address.
    pub gateway: Ipv4Addr,
    /// Whether the host has it.
    pub host_joins: bool,
}

/// A port of the sidecar's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SidecarPort {
    /// Its name.
    pub name: String,
    /// Its number in the sidecar.
    pub port: u16,
    /// Where the guest reaches it; `null`: known once the sidecar is up.
    pub address: Option<SocketAddr>,
}

impl Network {
    pub(crate) fn of(machine: &str, subnet: Subnet, host_joins: bool) -> Self {
        Self { name: machine.to_owned(), subnet: subnet.cidr(), gateway: subnet.gateway(), host_joins }
    }

    pub(crate) fn spec(&self) -> NetworkSpec {
        NetworkSpec {
            name: self.name.clone(),
            labels: vec![(LABEL.to_owned(), self.name.clone())],
            subnet: self.subnet.clone(),
            gateway: self.gateway,
            host_joins: self.host_joins,
        }
    }
}

/// The name of a machine's sidecar.
pub(crate) fn container_name(machine: &str) -> String {
    format!("{machine}-sidecar")
}

impl SidecarSpec {
    /// Decides. `published` are its ports on the host's loopback, once they are
    /// known. `container_guest`: the guest shares its network.
    pub(crate) fn resolve(
        &self,
        network: Network,
        ip: Ipv4Addr,
        published: Option<&Published>,
        container_guest: bool,
        machine: &str,
    ) -> Sidecar {
        let address = |port: u16| match self.reach {
            Reach::Loopback if !container_guest => {
                let published = published?.get(&port)?;
                Some(SocketAddr::new(IpAddr::V4(HOST_LOOPBACK), published.port()))
            }
            _ => Some(SocketAddr::new(IpAddr::V4(ip), port)),
        };
        let ports = self.ports.iter().map(|(name, port)| SidecarPort {
            name: name.clone(),
            port: *port,
            address: address(*port),
        });
        Sidecar {
            image: self.image.clone(),
            built: self.build.is_some(),
            container: container_name(machine),
            network,
            ip,
            reach: self.reach,
            services: self.services.clone(),
            ports: ports.collect(),
        }
    }

    /// Its container. It gets the launch's network in a second step, so that it
    /// has the engine's default network, its way out, too.
    pub(crate) fn container(&self, sidecar: &Sidecar, agent: &str, image: &str) -> ContainerSpec {
        let mut env = vec![
            ("SMOLCELLAR_AGENT".to_owned(), agent.to_owned()),
            ("SMOLCELLAR_SERVICES".to_owned(), self.services.join(",")),
        ];
        env.extend(self.env.iter().map(|(name, value)| (name.clone(), value.clone())));
        ContainerSpec {
            name: sidecar.container.clone(),
            image: image.to_owned(),
            labels: vec![(LABEL.to_owned(), sidecar.network.name.clone())],
            network: Attachment::Default,
            env,
            publish: match self.reach {
                Reach::Bridge => Vec::new(),
                Reach::Loopback => self.ports.values().copied().collect(),
            },
            // It is in two networks, and must be no way from one to the other.
            options: words(&["--sysctl", "net.ipv4.ip_forward=0"]),
            ..ContainerSpec::default()
        }
    }
}

impl Sidecar {
    /// What a guest may reach of it.
    pub(crate) fn allowed(&self) -> String {
        match self.reach {
            Reach::Bridge => format!("{}/32", self.ip),
            Reach::Loopback => format!("{HOST_LOOPBACK}/32"),
        }
    }

    /// What a guest is told of it. Addresses, never names: a guest that may
    /// reach one address has no resolver.
    pub(crate) fn guest_env(&self) -> Vec<(String, String)> {
        let mut env = vec![("SMOLCELLAR_SERVICES".to_owned(), self.services.join(","))];
        for port in &self.ports {
            let address = port.address.map_or_else(|| UNKNOWN.to_owned(), |address| address.to_string());
            env.push((format!("SMOLCELLAR_SIDECAR_{}", variable(&port.name)), address.clone()));
            if port.name == PROXY {
                for name in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"] {
                    env.push((name.to_owned(), format!("http://{address}")));
                }
                for name in ["NO_PROXY", "no_proxy"] {
                    env.push((name.to_owned(), "127.0.0.1,localhost".to_owned()));
                }
            }
        }
        env
    }
}

/// Stands for an address in the command lines of a plan made before it.
const UNKNOWN: &str = "(known once the sidecar is up)";

/// A port's name as part of a variable's: `http-proxy` is `HTTP_PROXY`.
fn variable(name: &str) -> String {
    name.to_ascii_uppercase().replace(|letter: char| !letter.is_ascii_alphanumeric(), "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(reach: Reach) -> SidecarSpec {
        SidecarSpec {
            image: "team/gate:1".into(),
            build: None,
            services: vec!["egress-proxy".into(), "git-gate".into()],
            ports: BTreeMap::from([("git".into(), 9418), ("http-proxy".into(), 3128)]),
            env: BTreeMap::from([("MODE".into(), "strict".into())]),
            reach,
        }
    }

    fn sidecar(reach: Reach, published: Option<&Published>, container_guest: bool) -> Sidecar {
        let subnet = Subnet::candidate("m", 0);
        let network = Network::of("m", subnet, true);
        spec(reach).resolve(network, subnet.sidecar(), published, container_guest, "m")
    }

    #[test]
    fn a_guest_is_told_addresses_and_may_reach_that_one() {
        let sidecar = sidecar(Reach::Bridge, None, false);
        let (ip, env) = (sidecar.ip, sidecar.guest_env());
        let value = |name: &str| env.iter().find(|(known, _)| known == name).unwrap().1.clone();
        assert_eq!(value("SMOLCELLAR_SIDECAR_GIT"), format!("{ip}:9418"));
        assert_eq!(value("HTTPS_PROXY"), format!("http://{ip}:3128"));
        assert_eq!(value("SMOLCELLAR_SERVICES"), "egress-proxy,git-gate");
        assert_eq!(sidecar.allowed(), format!("{ip}/32"));
        let container = spec(Reach::Bridge).container(&sidecar, "a", "i");
        assert!(container.publish.is_empty());
        assert!(container.env.contains(&("MODE".into(), "strict".into())));
        assert_eq!(container.labels, [(LABEL.to_owned(), "m".to_owned())]);
    }

    #[test]
    fn by_loopback_the_addresses_are_known_once_it_is_up() {
        let before = sidecar(Reach::Loopback, None, false);
        assert!(before.ports.iter().all(|port| port.address.is_none()));
        assert_eq!(before.allowed(), "100.96.0.1/32");
        let published: Published = [(3128, "127.0.0.1:40000"), (9418, "127.0.0.1:40001")]
            .map(|(port, address)| (port, address.parse().unwrap()))
            .into();
        let up = sidecar(Reach::Loopback, Some(&published), false);
        assert!(up.guest_env().contains(&("http_proxy".into(), "http://100.96.0.1:40000".into())));
        assert_eq!(spec(Reach::Loopback).container(&up, "a", "i").publish, [9418, 3128]);
        // A container shares its network, wherever that is.
        let beside = sidecar(Reach::Loopback, None, true);
        assert!(beside.ports.iter().all(|port| port.address.is_some()));
    }
}
