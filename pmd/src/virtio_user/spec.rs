//! What a `virtio-user:` spec says.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use spinwake::port::{MacAddr, PortSpec, SpecError};

use crate::virtio::socket::one_spelling;

/// The keys of a `virtio-user:` spec beside those of every port.
pub(crate) const KEYS: [&str; 4] = ["packed", "server", "mac", "mrg"];

/// Pairs of queues at most: a message names a ring by one byte.
pub(crate) const PAIRS_MAX: u16 = 64;

/// Bytes of the longest path of a socket: `sun_path` has 108, one of them for the end (unix(7)).
const PATH_MAX: usize = 107;

/// A parsed `virtio-user:` spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UserSpec {
    /// Where the socket is.
    pub(super) path: PathBuf,
    /// We listen, and the back end connects; otherwise the other way round.
    pub(super) server: bool,
    /// Rings have the packed layout.
    pub(super) packed: bool,
    /// A received frame may take several buffers, also where none is longer than one: how many is written to a cache line of its
    /// own, which both sides then pass on with each frame.
    pub(super) mergeable: bool,
    /// Its own address.
    pub(super) mac: MacAddr,
    /// Pairs of queues that are asked for.
    pub(super) pairs: u16,
}

impl UserSpec {
    /// Reads the address, the keys of its own, and `queues`.
    pub(crate) fn parse(spec: &PortSpec) -> Result<Self, SpecError> {
        let address = spec.address();
        if address.is_empty() {
            return Err(spec.bad_address("a path is missing; write virtio-user:/run/NAME.sock"));
        }
        if address.len() > PATH_MAX {
            return Err(
                spec.bad_address("the path is longer than the 107 bytes of a Unix socket's; choose a shorter one")
            );
        }
        let pairs_possible = format!("1 to {PAIRS_MAX}");
        let pairs = spec.key("queues", &pairs_possible)?.unwrap_or(1);
        if !(1..=PAIRS_MAX).contains(&pairs) {
            return Err(spec.bad_value("queues", &pairs_possible));
        }
        let mac_possible = "an address of one station, as in 02:00:00:00:00:01";
        let mac = spec.key("mac", mac_possible)?.unwrap_or_else(|| mac_of(Path::new(address)));
        if !mac.is_unicast() {
            return Err(spec.bad_value("mac", mac_possible));
        }
        Ok(Self {
            path: address.into(),
            server: spec.switch("server")?.unwrap_or(false),
            packed: spec.switch("packed")?.unwrap_or(false),
            mergeable: spec.switch("mrg")?.unwrap_or(false),
            mac,
            pairs,
        })
    }

    /// What no two ports can have in common, however the path is spelt.
    pub(crate) fn name(&self) -> String {
        one_spelling(&self.path)
    }

    /// Whether there could be a socket at the path, as far as can be told without touching it.
    pub(crate) fn look(&self, spec: &PortSpec) -> Result<(), SpecError> {
        let folder = match self.path.parent() {
            Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
            Some(folder) => folder,
            None => return Err(spec.bad_address("it is a folder; name a socket in it")),
        };
        if !folder.is_dir() {
            return Err(
                spec.bad_address(format!("there is no folder {}; make it, or correct the path", folder.display()))
            );
        }
        match self.path.metadata() {
            Ok(found) if !found.file_type().is_socket() => {
                Err(spec.bad_address("what is there is no socket; name the back end's, or a path where nothing is yet"))
            }
            // One that is not there yet may be there soon.
            _ => Ok(()),
        }
    }
}

/// A locally administered address (bit 1 of the first byte) that stays the same for a path: FNV-1a over its bytes.
fn mac_of(path: &Path) -> MacAddr {
    let start: u64 = 0xcbf2_9ce4_8422_2325;
    let hash = path.as_os_str().as_encoded_bytes().iter();
    let hash = hash.fold(start, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    let [a, b, c, d, e, ..] = (hash ^ hash >> 40).to_le_bytes();
    MacAddr([0x02, a, b, c, d, e])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(spec: &str) -> Result<UserSpec, SpecError> {
        UserSpec::parse(&spec.parse().unwrap())
    }

    #[test]
    fn every_key_is_read() {
        let plain = parse("virtio-user:/run/a").unwrap();
        assert!(plain.mac.is_unicast() && plain.mac != parse("virtio-user:/run/b").unwrap().mac);
        let expected = UserSpec {
            path: "/run/a".into(),
            server: false,
            packed: false,
            mergeable: false,
            mac: plain.mac,
            pairs: 1,
        };
        assert_eq!(plain, expected);
        let mac = MacAddr([2, 0, 0, 0, 0, 9]);
        let other = UserSpec { server: true, packed: true, mergeable: true, mac, pairs: 4, ..expected };
        let spec = "virtio-user:/run/a,server=on,packed=on,mrg=on,mac=02:00:00:00:00:09,queues=4";
        assert_eq!(parse(spec).unwrap(), other);
    }

    #[test]
    fn what_is_not_possible_is_refused_by_name() {
        let long = format!("virtio-user:/{}", "x".repeat(107));
        for (spec, part) in [
            ("virtio-user:", "path is missing"),
            (&long, "107 bytes"),
            ("virtio-user:/a,server=maybe", "server=maybe"),
            ("virtio-user:/a,packed=1", "packed=1"),
            ("virtio-user:/a,queues=0", "1 to 64"),
            ("virtio-user:/a,queues=65", "1 to 64"),
            ("virtio-user:/a,mac=ff:ff:ff:ff:ff:ff", "an address of one station"),
            ("virtio-user:/a,mac=eth0", "an address of one station"),
        ] {
            let error = parse(spec).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_place_where_no_socket_can_be_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let look = |path: PathBuf| {
            let spec: PortSpec = format!("virtio-user:{}", path.display()).parse().unwrap();
            UserSpec::parse(&spec).unwrap().look(&spec).map_err(|error| error.to_string())
        };
        assert!(look(file).unwrap_err().contains("no socket"));
        assert!(look(dir.path().join("none/s")).unwrap_err().contains("there is no folder"));
        look(dir.path().join("later")).unwrap();
    }

    #[test]
    fn one_path_in_two_spellings_is_one_path() {
        let dir = tempfile::tempdir().unwrap();
        let spelt = |text: &str| parse(&format!("virtio-user:{}/{text}", dir.path().display())).unwrap().name();
        assert_eq!(spelt("s"), spelt("./s"));
        assert_ne!(spelt("s"), spelt("t"));
    }
}
