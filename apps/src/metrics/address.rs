//! Where metrics are served.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

/// Where metrics are served: `127.0.0.1:9464`, `[::1]:9464` or `unix:/run/l2fwd.sock`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetricsAddress {
    /// A TCP port of one address of this machine, or of all for `0.0.0.0` and `[::]`. Port 0 takes a free one.
    Tcp(SocketAddr),
    /// A Unix socket at this path.
    Unix(PathBuf),
}

/// An address for metrics cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// `unix:` and nothing behind it.
    #[error("{given} names no path; give one, as in unix:/run/metrics.sock")]
    NoPath {
        /// What was given.
        given: String,
    },
    /// A host alone.
    #[error("{given} has no port; add one, as in {example}")]
    NoPort {
        /// What was given.
        given: String,
        /// How it would do.
        example: String,
    },
    /// The port is no number that a port can have.
    #[error("{port} in {given} is no port; give a number from 0 to 65535, 0 for any that is free")]
    BadPort {
        /// What was given.
        given: String,
        /// What stands in the port's place.
        port: String,
    },
    /// Neither an IP address nor `unix:`.
    #[error("{given} is no address to serve metrics at; give IP:PORT, as in 127.0.0.1:9464, or unix:/path")]
    Unknown {
        /// What was given.
        given: String,
    },
}

impl FromStr for MetricsAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let given = text.to_owned();
        match text.strip_prefix("unix:") {
            Some("") => return Err(AddressError::NoPath { given }),
            Some(path) => return Ok(Self::Unix(path.into())),
            None => {}
        }
        if let Ok(address) = text.parse() {
            return Ok(Self::Tcp(address));
        }
        let host_alone = text.trim_end_matches(':').trim_matches(['[', ']']);
        if let Ok(ip) = host_alone.parse::<IpAddr>() {
            return Err(AddressError::NoPort { given, example: SocketAddr::new(ip, 9464).to_string() });
        }
        match text.rsplit_once(':') {
            Some((host, port)) if host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() => {
                Err(AddressError::BadPort { port: port.into(), given })
            }
            _ => Err(AddressError::Unknown { given }),
        }
    }
}

impl fmt::Display for MetricsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for text in ["127.0.0.1:9464", "[::1]:0", "0.0.0.0:80", "unix:/run/a b.sock", "unix:relative"] {
            assert_eq!(text.parse::<MetricsAddress>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, words) in [
            ("127.0.0.1", &["127.0.0.1 has no port", "127.0.0.1:9464"][..]),
            ("127.0.0.1:", &["no port", "127.0.0.1:9464"]),
            ("::1", &["no port", "[::1]:9464"]),
            ("[::1]", &["no port", "[::1]:9464"]),
            ("127.0.0.1:65536", &["65536 in 127.0.0.1:65536 is no port", "0 to 65535"]),
            ("127.0.0.1:http", &["http in"]),
            ("[::1]:x", &["x in [::1]:x"]),
            ("unix:", &["no path", "unix:/run"]),
            ("", &["IP:PORT"]),
            ("9464", &["9464 is no address", "IP:PORT"]),
            ("/run/a.sock", &["unix:/path"]),
            ("localhost:9464", &["localhost:9464 is no address", "127.0.0.1:9464"]),
        ] {
            let error = text.parse::<MetricsAddress>().unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{text}: {error}");
        }
    }
}
