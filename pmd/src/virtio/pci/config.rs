//! The device configuration of a network device (virtio 1.2, 5.1.4), read once, with what is impossible put right or
//! refused.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

use spinwake::mmio::Width;
use spinwake::port::{Link, MacAddr};

use super::transport::Transport;

/// struct virtio_net_config.
mod field {
    pub(super) const MAC: usize = 0;
    pub(super) const STATUS: usize = 6;
    pub(super) const MAX_PAIRS: usize = 8;
    pub(super) const MTU: usize = 10;
    pub(super) const SPEED: usize = 12;
    pub(super) const DUPLEX: usize = 16;
    pub(super) const RSS_MAX_KEY: usize = 17;
    pub(super) const RSS_MAX_TABLE: usize = 18;
    pub(super) const HASH_TYPES: usize = 20;
}

/// Bit of `status`: the link is up.
const LINK_UP: u64 = 1;

/// What the device says of itself. A field whose feature is not offered means nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NetConfig {
    pub(super) mac: MacAddr,
    /// Queue pairs that it has: the control queue is behind them.
    pub(super) device_pairs: u16,
    pub(super) mtu: u16,
    pub(super) rss_key_len: u8,
    pub(super) rss_table_len: u16,
    pub(super) hash_types: u32,
}

impl NetConfig {
    pub(super) fn read(transport: &Transport) -> Self {
        transport.config(|read| {
            let mut mac = MacAddr::default();
            for (at, byte) in mac.0.iter_mut().enumerate() {
                *byte = read(field::MAC + at, Width::Byte) as u8;
            }
            Self {
                mac,
                // 5.1.4: from 1 to 0x8000.
                device_pairs: (read(field::MAX_PAIRS, Width::Word) as u16).clamp(1, 0x7fff),
                mtu: read(field::MTU, Width::Word) as u16,
                rss_key_len: read(field::RSS_MAX_KEY, Width::Byte) as u8,
                rss_table_len: read(field::RSS_MAX_TABLE, Width::Word) as u16,
                hash_types: read(field::HASH_TYPES, Width::Dword) as u32,
            }
        })
    }
}

/// The link, for a device that has `status` and, with `speed`, tells how fast it is.
pub(super) fn link(transport: &Transport, status: bool, speed: bool) -> Link {
    let (up, mbps, duplex) = transport.config(|read| {
        (read(field::STATUS, Width::Word), read(field::SPEED, Width::Dword) as u32, read(field::DUPLEX, Width::Byte))
    });
    if status && up & LINK_UP == 0 {
        return Link::Down;
    }
    // 5.1.4: speeds beyond 31 bits, and duplexes but half (0) and full, are unknown.
    let known = speed && mbps <= i32::MAX as u32;
    Link::Up { mbps: if known { mbps } else { 0 }, full_duplex: !(speed && duplex == 0) }
}

/// An address for a device that has none: of this machine's own making, for a station.
pub(super) fn random_mac() -> MacAddr {
    let random = RandomState::new().build_hasher().finish().to_le_bytes();
    MacAddr([0x02, random[1], random[2], random[3], random[4], random[5]])
}
