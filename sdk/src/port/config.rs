//! What a port can do, and what it shall do.

use std::ops::RangeInclusive;

/// Work that a device may do on frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads {
    /// Check IPv4, TCP and UDP checksums of received frames.
    pub rx_checksum: bool,
    /// Fill in IPv4, TCP and UDP checksums of sent frames that ask for it.
    pub tx_checksum: bool,
    /// Take VLAN tags out of received frames.
    pub vlan_strip: bool,
    /// Put VLAN tags into sent frames that carry one.
    pub vlan_insert: bool,
    /// Note the receive-side-scaling hash in each frame.
    pub rss_hash: bool,
    /// Cut sent frames of TCP that ask for it into segments. Needs `tx_checksum`.
    pub tcp_segmentation: bool,
    /// Cut sent frames of UDP that ask for it into datagrams. Needs `tx_checksum`.
    pub udp_segmentation: bool,
    /// Receive frames longer than the MTU that the device, or a virtual machine, would otherwise have to cut: they ask to be
    /// cut when they are sent on. Needs `rx_checksum`.
    pub large_receive: bool,
}

impl Offloads {
    /// All that are wanted by `self` and lacking in `have`, by name.
    pub fn beyond(self, have: Self) -> Vec<&'static str> {
        [
            (self.rx_checksum && !have.rx_checksum, "rx_checksum"),
            (self.tx_checksum && !have.tx_checksum, "tx_checksum"),
            (self.vlan_strip && !have.vlan_strip, "vlan_strip"),
            (self.vlan_insert && !have.vlan_insert, "vlan_insert"),
            (self.rss_hash && !have.rss_hash, "rss_hash"),
            (self.tcp_segmentation && !have.tcp_segmentation, "tcp_segmentation"),
            (self.udp_segmentation && !have.udp_segmentation, "udp_segmentation"),
            (self.large_receive && !have.large_receive, "large_receive"),
        ]
        .into_iter()
        .filter_map(|(lacks, name)| lacks.then_some(name))
        .collect()
    }
}

/// What a port can do.
#[derive(Debug, Clone)]
pub struct Capabilities {
    /// Receive queues at most.
    pub max_rx_queues: u16,
    /// Transmit queues at most.
    pub max_tx_queues: u16,
    /// Descriptors in a receive ring; powers of two within.
    pub rx_ring_len: RangeInclusive<u16>,
    /// Descriptors in a transmit ring; powers of two within.
    pub tx_ring_len: RangeInclusive<u16>,
    /// Largest payload of an Ethernet frame, in bytes.
    pub max_mtu: u16,
    /// Offloads.
    pub offloads: Offloads,
    /// Addresses that its multicast filter holds exactly; more of them let others pass too.
    pub exact_multicast: usize,
}

/// What a port shall do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortConfig {
    /// Receive queues; over one, receive-side scaling spreads flows over them.
    pub rx_queues: u16,
    /// Transmit queues.
    pub tx_queues: u16,
    /// Descriptors in each receive ring.
    pub rx_ring_len: u16,
    /// Descriptors in each transmit ring.
    pub tx_ring_len: u16,
    /// Payload of an Ethernet frame, in bytes. Frames longer than a buffer arrive as chains.
    pub mtu: u16,
    /// Receive all frames, not just those for its own address.
    pub promiscuous: bool,
    /// The key of the receive-side-scaling hash.
    pub rss_key: [u8; 40],
    /// Offloads.
    pub offloads: Offloads,
}

/// The key that spreads both directions of a flow evenly enough, and is the one most NICs are documented with.
const RSS_KEY: [u8; 40] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca, 0x2b,
    0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac,
    0x01, 0xfa,
];

impl Default for PortConfig {
    /// One queue each way of 512 descriptors, an MTU of 1,500, no offloads.
    fn default() -> Self {
        Self {
            rx_queues: 1,
            tx_queues: 1,
            rx_ring_len: 512,
            tx_ring_len: 512,
            mtu: 1500,
            promiscuous: false,
            rss_key: RSS_KEY,
            offloads: Offloads::default(),
        }
    }
}

/// A configuration was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The port cannot do that.
    #[error("{port}: {key}={value} is not possible; it takes {possible}")]
    Value {
        /// Which port.
        port: String,
        /// Which setting.
        key: &'static str,
        /// What was asked for.
        value: String,
        /// What is possible.
        possible: String,
    },
    /// The port does not know these offloads.
    #[error("{port} has no {what}; leave it off")]
    Offload {
        /// Which port.
        port: String,
        /// Their names.
        what: String,
    },
    /// The port is started.
    #[error("{port} is started; stop it before configuring it")]
    Started {
        /// Which port.
        port: String,
    },
}

impl PortConfig {
    /// Whether a port named `port` with these capabilities can do all that.
    ///
    /// # Errors
    ///
    /// The first setting that it cannot do, with what is possible.
    pub fn check(&self, port: &str, can: &Capabilities) -> Result<(), ConfigError> {
        let refuse = |key, value: u16, possible: String| {
            Err(ConfigError::Value { port: port.into(), key, value: value.to_string(), possible })
        };
        for (key, value, max) in
            [("rx_queues", self.rx_queues, can.max_rx_queues), ("tx_queues", self.tx_queues, can.max_tx_queues)]
        {
            if value == 0 || value > max {
                let possible = if max == 1 { "only 1".into() } else { format!("1 to {max}") };
                return refuse(key, value, possible);
            }
        }
        for (key, value, range) in
            [("rx_ring_len", self.rx_ring_len, &can.rx_ring_len), ("tx_ring_len", self.tx_ring_len, &can.tx_ring_len)]
        {
            if !value.is_power_of_two() || !range.contains(&value) {
                return refuse(key, value, format!("powers of two from {} to {}", range.start(), range.end()));
            }
        }
        // 68 is the least MTU of IPv4 (RFC 791).
        if !(68..=can.max_mtu).contains(&self.mtu) {
            return refuse("mtu", self.mtu, format!("68 to {}", can.max_mtu));
        }
        let lacking = self.offloads.beyond(can.offloads);
        if !lacking.is_empty() {
            return Err(ConfigError::Offload { port: port.into(), what: lacking.join(", ") });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capabilities() -> Capabilities {
        Capabilities {
            max_rx_queues: 1,
            max_tx_queues: 1,
            rx_ring_len: 32..=4096,
            tx_ring_len: 32..=4096,
            max_mtu: 9000,
            offloads: Offloads { rx_checksum: true, ..Offloads::default() },
            exact_multicast: 0,
        }
    }

    #[test]
    fn the_default_is_possible() {
        PortConfig::default().check("p", &capabilities()).unwrap();
    }

    #[test]
    fn two_queues_on_a_device_with_one_are_refused_by_name() {
        let error = PortConfig { rx_queues: 2, ..PortConfig::default() }.check("p", &capabilities()).unwrap_err();
        assert_eq!(error.to_string(), "p: rx_queues=2 is not possible; it takes only 1");
    }

    #[test]
    fn what_is_out_of_range_is_refused() {
        let can = capabilities();
        for config in [
            PortConfig { tx_queues: 0, ..PortConfig::default() },
            PortConfig { rx_ring_len: 500, ..PortConfig::default() },
            PortConfig { tx_ring_len: 8192, ..PortConfig::default() },
            PortConfig { mtu: 9001, ..PortConfig::default() },
            PortConfig { mtu: 67, ..PortConfig::default() },
            PortConfig { offloads: Offloads { vlan_strip: true, ..Offloads::default() }, ..PortConfig::default() },
        ] {
            assert!(config.check("p", &can).is_err(), "{config:?}");
        }
    }
}
