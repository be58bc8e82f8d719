//! Which addresses a launch's network has: decided from the machine's name
//! alone, so that a plan can say it; the engine refuses what is another
//! network's, and then the next candidate's turn comes.

use std::hash::{DefaultHasher, Hasher};
use std::net::Ipv4Addr;

/// The addresses of one launch: a /24 in 10.64.0.0/10.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Subnet(u32);

/// How many candidates are tried. Each is another network's with a chance of
/// one in thousands.
pub(crate) const CANDIDATES: u32 = 64;

const FIRST: u32 = u32::from_be_bytes([10, 64, 0, 0]);
/// How many /24 are in a /10.
const COUNT: u32 = 1 << 14;
/// From one candidate to the next: into another /16, as one network often has
/// a whole one (Podman's own has 10.88.0.0/16). Odd, so that all differ.
const STEP: u32 = 257;

impl Subnet {
    /// The `turn`th candidate of a machine.
    pub(crate) fn candidate(machine: &str, turn: u32) -> Self {
        // Its keys are constants: the same name gives the same number.
        let mut hasher = DefaultHasher::new();
        hasher.write(machine.as_bytes());
        let start = (hasher.finish() % u64::from(COUNT)) as u32;
        Self(FIRST + ((start + turn * STEP) % COUNT) * 256)
    }

    /// `10.64.0.0/24`.
    pub(crate) fn cidr(self) -> String {
        format!("{}/24", Ipv4Addr::from(self.0))
    }

    /// The host's address.
    pub(crate) fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from(self.0 + 1)
    }

    /// The sidecar's address.
    pub(crate) fn sidecar(self) -> Ipv4Addr {
        Ipv4Addr::from(self.0 + 2)
    }

    /// The guest's address, where it is a container.
    pub(crate) fn guest(self) -> Ipv4Addr {
        Ipv4Addr::from(self.0 + 3)
    }

    /// The guest's address in the network of this gateway.
    pub(crate) fn guest_of(gateway: Ipv4Addr) -> Ipv4Addr {
        Self(u32::from(gateway) - 1).guest()
    }

    /// Whether this host already has a way to some of these addresses, which
    /// the engine does not look at.
    pub(crate) fn is_routed(self, routes: &[Route]) -> bool {
        routes.iter().any(|(net, mask)| {
            let mask = mask & u32::from_be_bytes([255, 255, 255, 0]);
            // The default route leads everywhere, and is in nobody's way.
            mask != 0 && net & mask == self.0 & mask
        })
    }
}

/// A destination and its mask.
pub(crate) type Route = (u32, u32);

/// The routes of this host; none where that cannot be told.
pub(crate) fn routes() -> Vec<Route> {
    parse_routes(&std::fs::read_to_string("/proc/net/route").unwrap_or_default())
}

/// `/proc/net/route`: columns, of which the second is the destination and the
/// eighth the mask, in hexadecimal as the machine has them in memory.
fn parse_routes(text: &str) -> Vec<Route> {
    let number = |text: &str| u32::from_str_radix(text, 16).ok().map(u32::from_be);
    let route = |line: &str| {
        let columns: Vec<&str> = line.split_ascii_whitespace().collect();
        Some((number(columns.get(1)?)?, number(columns.get(7)?)?))
    };
    text.lines().filter_map(route).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn candidates_are_of_the_name_and_all_different() {
        let all: HashSet<String> = (0..CANDIDATES).map(|turn| Subnet::candidate("m", turn).cidr()).collect();
        assert_eq!(all.len(), CANDIDATES as usize);
        let wide: HashSet<u8> =
            (0..4).map(|turn| Subnet::candidate("m", turn).gateway().octets()[1]).collect();
        assert_eq!(wide.len(), 4, "one /16 that is taken must not take them all");
        assert_eq!(Subnet::candidate("m", 0), Subnet::candidate("m", 0));
        assert_ne!(Subnet::candidate("m", 0), Subnet::candidate("n", 0));
        for turn in 0..COUNT {
            let subnet = Subnet::candidate("m", turn);
            let octets = subnet.gateway().octets();
            assert!(octets[0] == 10 && (64..128).contains(&octets[1]) && octets[3] == 1, "{octets:?}");
            assert_eq!((subnet.sidecar().octets()[3], subnet.guest().octets()[3]), (2, 3));
        }
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_network_that_the_host_already_reaches_is_passed_over() {
        let table = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\n\
                     eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\n\
                     tun0\t0040400A\t00000000\t0001\t0\t0\t0\t00F0FFFF\t0\n";
        let routes = parse_routes(table);
        assert_eq!(routes.len(), 2);
        let subnet = |third| Subnet(u32::from_be_bytes([10, 64, third, 0]));
        assert!(subnet(64).is_routed(&routes) && subnet(79).is_routed(&routes));
        assert!(!subnet(63).is_routed(&routes) && !subnet(80).is_routed(&routes));
        // A route to one host of it, and one to all of 10/8.
        assert!(subnet(5).is_routed(&[(subnet(5).0 + 9, u32::MAX)]));
        assert!(subnet(5).is_routed(&[(u32::from_be_bytes([10, 0, 0, 0]), 0xff00_0000)]));
    }
}
