//! `ADDR[:PORT]` and CIDR filters.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use ipnet::IpNet;
use ipvs_guard_common::filter::Rule;

/// A virtual service or a real server: an address and perhaps a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    address: IpAddr,
    port: Option<u16>,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let bare = s
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(s);
        if let Ok(address) = bare.parse() {
            return Ok(Self {
                address,
                port: None,
            });
        }
        match s.parse::<SocketAddr>() {
            Ok(socket) if socket.port() != 0 => Ok(Self {
                address: socket.ip(),
                port: Some(socket.port()),
            }),
            Ok(_) => Err("port 0 names no service; leave the port out to mean every port".into()),
            Err(_) => Err(
                "neither ADDR nor ADDR:PORT; write 10.96.0.10, 10.96.0.10:80, fd00::a or [fd00::a]:80"
                    .into(),
            ),
        }
    }
}

impl From<Target> for Rule {
    fn from(target: Target) -> Self {
        Self::new(target.address.into(), 128, target.port.unwrap_or(0))
    }
}

/// A client or a network of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client(IpNet);

impl FromStr for Client {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if let Ok(address) = s.parse::<IpAddr>() {
            return Ok(Self(address.into()));
        }
        s.parse().map(Self).map_err(|_| {
            "neither an address nor a network; write 10.0.0.5, 10.0.0.0/16 or fd00::/64".into()
        })
    }
}

impl From<Client> for Rule {
    fn from(Client(net): Client) -> Self {
        let prefix = match net {
            IpNet::V4(v4) => v4.prefix_len() + 96,
            IpNet::V6(v6) => v6.prefix_len(),
        };
        Self::new(net.network().into(), prefix, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        let parse = |s: &str| s.parse::<Target>();
        assert_eq!(parse("10.0.0.1:80").unwrap().port, Some(80));
        assert_eq!(parse("10.0.0.1").unwrap().port, None);
        assert_eq!(parse("fd00::1").unwrap().port, None);
        assert_eq!(parse("[fd00::1]").unwrap().port, None);
        assert_eq!(parse("[fd00::1]:443").unwrap().port, Some(443));
        for bad in [
            "",
            "10.0.0",
            "10.0.0.1:0",
            "10.0.0.1:99999",
            "example:80",
            "10.0.0.1:",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn clients() {
        assert!("10.0.0.0/8".parse::<Client>().is_ok());
        assert!("fd00::/8".parse::<Client>().is_ok());
        assert!("10.0.0.0/33".parse::<Client>().is_err());
        assert!("here".parse::<Client>().is_err());
    }
}
