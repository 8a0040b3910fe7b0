//! Which addresses a provider may be reached at, decided after names are resolved.
//!
//! A name is resolved once for a connection and the address that was checked is the one connected to, so a
//! name that changes its meaning in between gains nothing.

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A network in CIDR notation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    fn parse(text: &str) -> Option<Self> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address.parse().ok()?, Some(bits.parse::<u8>().ok()?)),
            None => (text.parse().ok()?, None),
        };
        let width = if matches!(address, IpAddr::V4(_)) { 32 } else { 128 };
        let bits = bits.unwrap_or(width);
        (bits <= width).then_some(Self { address, bits })
    }

    fn holds(&self, other: IpAddr) -> bool {
        let (a, b, width) = match (self.address, other) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(a.to_bits()), u128::from(b.to_bits()), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits(), b.to_bits(), 128),
            _ => return false,
        };
        self.bits == 0 || (a ^ b) >> (width - u32::from(self.bits)) == 0
    }
}

/// The rule.
#[derive(Clone, Debug, Default)]
pub struct Reach {
    allowed: Vec<Network>,
}

impl Reach {
    /// Reads networks; the first that is none is the error.
    pub fn new(allowed: &[String]) -> Result<Self, String> {
        let read = |text: &String| {
            Network::parse(text)
                .ok_or_else(|| format!("allowAddresses: {text:?} is no network; write for example 127.0.0.0/8"))
        };
        Ok(Self { allowed: allowed.iter().map(read).collect::<Result<_, _>>()? })
    }

    /// Loopback beside what every provider may use; for tests and machines of one's own.
    pub fn with_loopback() -> Self {
        let v4 = Network { address: IpAddr::V4(Ipv4Addr::LOCALHOST), bits: 8 };
        let v6 = Network { address: IpAddr::V6(Ipv6Addr::LOCALHOST), bits: 128 };
        Self { allowed: vec![v4, v6] }
    }

    /// Why an address must not be connected to; none when it may.
    pub fn objection(&self, address: IpAddr) -> Option<&'static str> {
        // ::ffff:127.0.0.1 connects to 127.0.0.1
        let address = address.to_canonical();
        if self.allowed.iter().any(|network| network.holds(address)) {
            return None;
        }
        match address {
            IpAddr::V4(v4) => objection_v4(v4),
            IpAddr::V6(v6) => objection_v6(v6),
        }
    }
}

fn objection_v4(address: Ipv4Addr) -> Option<&'static str> {
    let octets = address.octets();
    if address.is_loopback() {
        Some("a loopback address")
    } else if address.is_link_local() || octets == [100, 100, 100, 200] || octets == [192, 0, 0, 192] {
        // cloud machines answer with their credentials there
        Some("a link-local or metadata address")
    } else if address.is_unspecified() || octets[0] == 0 {
        Some("the unspecified address")
    } else if address.is_multicast() || address.is_broadcast() || octets[0] >= 240 {
        Some("a multicast or reserved address")
    } else {
        None
    }
}

fn objection_v6(address: Ipv6Addr) -> Option<&'static str> {
    let segments = address.segments();
    if address.is_loopback() {
        Some("a loopback address")
    } else if segments[0] & 0xffc0 == 0xfe80 || segments == [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254] {
        Some("a link-local or metadata address")
    } else if address.is_unspecified() {
        Some("the unspecified address")
    } else if address.is_multicast() {
        Some("a multicast or reserved address")
    } else if segments[..6] == [0x64, 0xff9b, 0, 0, 0, 0] {
        // NAT64 carries an IPv4 address in its last 32 bits
        objection_v4(Ipv4Addr::from_bits((u32::from(segments[6]) << 16) | u32::from(segments[7])))
    } else {
        None
    }
}

/// Resolves names and leaves out what must not be connected to.
#[derive(Clone, Debug)]
pub struct Guard(pub Arc<Reach>);

impl Guard {
    /// Where a name may be connected to; ports are 0.
    pub async fn addresses(self, name: String) -> Result<std::vec::IntoIter<SocketAddr>, BoxError> {
        let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
        let mut refused = None;
        let mut fit = Vec::with_capacity(found.len());
        for address in found {
            match self.0.objection(address.ip()) {
                None => fit.push(address),
                Some(why) => refused = Some(why),
            }
        }
        match refused {
            Some(why) if fit.is_empty() => Err(format!(
                "{name} resolves to {why}, which providers must not use; name it in allowAddresses if it is meant"
            )
            .into()),
            _ => Ok(fit.into_iter()),
        }
    }
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.clone();
        Box::pin(async move { Ok(Box::new(guard.addresses(name.as_str().to_owned()).await?) as Addrs) })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn inner_addresses_are_refused_unless_allowed() {
        let none = Reach::default();
        for address in [
            "127.0.0.1",
            "127.8.9.1",
            "169.254.169.254",
            "169.254.170.23",
            "100.100.100.200",
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fd00:ec2::254",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "ff02::1",
        ] {
            assert!(none.objection(address.parse().unwrap()).is_some(), "{address}");
        }
        for address in ["10.1.2.3", "192.168.0.4", "172.16.9.9", "8.8.8.8", "2606:4700::1", "fd12::1"] {
            assert_eq!(none.objection(address.parse().unwrap()), None, "{address}");
        }
        let some = Reach::new(&["127.0.0.0/8".into(), "fe80::/10".into()]).unwrap();
        assert_eq!(some.objection("127.3.3.3".parse().unwrap()), None);
        assert_eq!(some.objection("::ffff:127.0.0.1".parse().unwrap()), None);
        assert_eq!(some.objection("fe80::5".parse().unwrap()), None);
        assert!(some.objection("169.254.169.254".parse().unwrap()).is_some());
        assert!(Reach::new(&["loopback".into()]).unwrap_err().contains("loopback"));
        assert!(Reach::new(&["10.0.0.0/33".into()]).is_err());
    }
}
