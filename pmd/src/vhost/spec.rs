//! What a `vhost:` spec says.

use std::path::PathBuf;

use spinwake::port::{PortSpec, SpecError};

use crate::virtio::socket::one_spelling;

/// The keys of a `vhost:` spec beside those of every port.
pub(crate) const KEYS: [&str; 3] = ["server", "client", "packed"];

/// Pairs of queues at most: a peer's messages name a ring by one byte, and QEMU stops at 256 pairs.
pub(crate) const PAIRS_MAX: u16 = 64;

/// A parsed `vhost:` spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VhostSpec {
    pub(super) path: PathBuf,
    /// We listen, and the peer connects; otherwise the other way round.
    pub(super) server: bool,
    /// Packed rings are offered.
    pub(super) packed: bool,
    /// Pairs of queues that the port can have.
    pub(super) pairs: u16,
}

impl VhostSpec {
    /// Reads the address and the keys of its own, and `queues`.
    pub(crate) fn parse(spec: &PortSpec) -> Result<Self, SpecError> {
        if spec.address().is_empty() {
            return Err(spec.bad_address("a path is missing; write vhost:/run/NAME.sock"));
        }
        // `sun_path` has 108 bytes, one of them for the end (unix(7)).
        if spec.address().len() > 107 {
            return Err(
                spec.bad_address("the path is longer than the 107 bytes of a Unix socket's; choose a shorter one")
            );
        }
        let server = spec.switch("server")?;
        let client = spec.switch("client")?;
        if server.is_some() && server == client {
            return Err(spec.bad_value("client", "the opposite of server; give one of them"));
        }
        let pairs_possible = format!("1 to {PAIRS_MAX}");
        let pairs = spec.key("queues", &pairs_possible)?.unwrap_or(1);
        if !(1..=PAIRS_MAX).contains(&pairs) {
            return Err(spec.bad_value("queues", &pairs_possible));
        }
        Ok(Self {
            path: spec.address().into(),
            server: server.or(client.map(|client| !client)).unwrap_or(true),
            packed: spec.switch("packed")?.unwrap_or(true),
            pairs,
        })
    }

    /// What no two ports can have in common, however the path is spelt.
    pub(crate) fn name(&self) -> String {
        format!("vhost:{}", one_spelling(&self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(spec: &str) -> Result<VhostSpec, SpecError> {
        VhostSpec::parse(&spec.parse().unwrap())
    }

    #[test]
    fn every_key_is_read() {
        let plain = VhostSpec { path: "/run/a".into(), server: true, packed: true, pairs: 1 };
        assert_eq!(parse("vhost:/run/a").unwrap(), plain);
        let other = VhostSpec { server: false, packed: false, pairs: 4, ..plain };
        assert_eq!(parse("vhost:/run/a,client=on,packed=off,queues=4").unwrap(), other);
        assert_eq!(parse("vhost:/run/a,server=off,client=on,packed=off,queues=4").unwrap(), other);
    }

    #[test]
    fn what_is_not_possible_is_refused_by_name() {
        let long = format!("vhost:/{}", "x".repeat(107));
        for (spec, part) in [
            ("vhost:", "path is missing"),
            (&long, "107 bytes"),
            ("vhost:/a,server=maybe", "server=maybe"),
            ("vhost:/a,server=on,client=on", "opposite of server"),
            ("vhost:/a,packed=1", "packed=1"),
            ("vhost:/a,queues=0", "1 to 64"),
            ("vhost:/a,queues=65", "1 to 64"),
        ] {
            let error = parse(spec).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
