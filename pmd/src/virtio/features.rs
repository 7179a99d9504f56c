//! Feature bits, and which of them a driver and a device agree on.
//!
//! Numbers and names are those of "Virtual I/O Device (VIRTIO) Version 1.2", 5.1.3 and 6; the two of vhost-user are from its
//! protocol description.

use std::fmt;

use spinwake::port::Offloads;

/// A set of feature bits.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Features(u64);

/// Defines each feature with its bit and name.
macro_rules! features {
    ($($(#[$doc:meta])* $name:ident = $bit:literal;)*) => {
        impl Features {
            $($(#[$doc])* pub(crate) const $name: Self = Self(1 << $bit);)*

            /// Every feature that has a name here.
            const NAMES: &[(Self, &'static str)] = &[$((Self::$name, stringify!($name))),*];
        }
    };
}

features! {
    /// The device finishes partial checksums of sent frames.
    CSUM = 0;
    /// The driver takes frames with partial checksums, or with verified ones.
    GUEST_CSUM = 1;
    /// Receive offloads can be changed while running.
    CTRL_GUEST_OFFLOADS = 2;
    /// The device tells its largest MTU.
    MTU = 3;
    /// The device has an address of its own.
    MAC = 5;
    /// The driver takes large frames of TCP over IPv4.
    GUEST_TSO4 = 7;
    /// The driver takes large frames of TCP over IPv6.
    GUEST_TSO6 = 8;
    /// The driver takes large frames with ECN.
    GUEST_ECN = 9;
    /// The driver takes large frames of UDP, cut by IP fragmentation.
    GUEST_UFO = 10;
    /// The device cuts large frames of TCP over IPv4.
    HOST_TSO4 = 11;
    /// The device cuts large frames of TCP over IPv6.
    HOST_TSO6 = 12;
    /// The device cuts large frames with ECN.
    HOST_ECN = 13;
    /// The device cuts large frames of UDP by IP fragmentation.
    HOST_UFO = 14;
    /// A received frame may take several buffers.
    MRG_RXBUF = 15;
    /// The device tells the state of its link.
    STATUS = 16;
    /// There is a control queue.
    CTRL_VQ = 17;
    /// The control queue takes promiscuous mode and address filters.
    CTRL_RX = 18;
    /// The control queue takes VLAN filters.
    CTRL_VLAN = 19;
    /// More modes of reception.
    CTRL_RX_EXTRA = 20;
    /// The driver announces itself after a migration.
    GUEST_ANNOUNCE = 21;
    /// Several pairs of queues.
    MQ = 22;
    /// The control queue sets the device's address.
    CTRL_MAC_ADDR = 23;
    /// vhost: writes to memory are logged, for migration.
    LOG_ALL = 26;
    /// A descriptor may stand for a table of them.
    INDIRECT_DESC = 28;
    /// Each side tells from which position on it wants to be notified.
    EVENT_IDX = 29;
    /// vhost-user: there is a second set of features, those of the protocol.
    PROTOCOL_FEATURES = 30;
    /// The device follows version 1 of the specification.
    VERSION_1 = 32;
    /// The device sees memory as the platform's IOMMU shows it.
    ACCESS_PLATFORM = 33;
    /// Rings have the packed layout.
    RING_PACKED = 34;
    /// The device uses buffers in the order in which it was given them.
    IN_ORDER = 35;
    /// Memory is ordered as the platform orders it for devices.
    ORDER_PLATFORM = 36;
    /// The device has virtual functions.
    SR_IOV = 37;
    /// Notifications carry the position.
    NOTIFICATION_DATA = 38;
    /// The device says what to write as a notification.
    NOTIF_CONFIG_DATA = 39;
    /// A queue can be reset alone.
    RING_RESET = 40;
    /// Hashes through tunnels.
    HASH_TUNNEL = 51;
    /// Notifications can be held back, queue by queue.
    VQ_NOTF_COAL = 52;
    /// Notifications can be held back.
    NOTF_COAL = 53;
    /// The driver takes large frames of UDP over IPv4.
    GUEST_USO4 = 54;
    /// The driver takes large frames of UDP over IPv6.
    GUEST_USO6 = 55;
    /// The device cuts large frames of UDP.
    HOST_USO = 56;
    /// Received frames carry a hash.
    HASH_REPORT = 57;
    /// The driver tells how long headers are.
    GUEST_HDRLEN = 59;
    /// Flows are spread by a hash over the receive queues.
    RSS = 60;
    /// Received segments are put together.
    RSC_EXT = 61;
    /// A device that stands in for another.
    STANDBY = 62;
    /// The device tells speed and duplex.
    SPEED_DUPLEX = 63;
}

/// Each feature that makes no sense without another (5.1.3.1; MTU and others need none).
const NEEDS: &[(Features, Features)] = &[
    (Features::GUEST_TSO4, Features::GUEST_CSUM),
    (Features::GUEST_TSO6, Features::GUEST_CSUM),
    (Features::GUEST_UFO, Features::GUEST_CSUM),
    (Features::GUEST_USO4, Features::GUEST_CSUM),
    (Features::GUEST_USO6, Features::GUEST_CSUM),
    (Features::HOST_TSO4, Features::CSUM),
    (Features::HOST_TSO6, Features::CSUM),
    (Features::HOST_UFO, Features::CSUM),
    (Features::HOST_USO, Features::CSUM),
    (Features::CTRL_RX, Features::CTRL_VQ),
    (Features::CTRL_VLAN, Features::CTRL_VQ),
    (Features::CTRL_RX_EXTRA, Features::CTRL_VQ),
    (Features::GUEST_ANNOUNCE, Features::CTRL_VQ),
    (Features::MQ, Features::CTRL_VQ),
    (Features::CTRL_MAC_ADDR, Features::CTRL_VQ),
    (Features::NOTF_COAL, Features::CTRL_VQ),
    (Features::VQ_NOTF_COAL, Features::CTRL_VQ),
    (Features::RSS, Features::CTRL_VQ),
    (Features::HASH_REPORT, Features::CTRL_VQ),
];

/// Each feature that makes no sense without one of two others.
const NEEDS_ONE_OF: &[(Features, Features)] = &[
    (Features::GUEST_ECN, Features::GUEST_TSO4.with(Features::GUEST_TSO6)),
    (Features::HOST_ECN, Features::HOST_TSO4.with(Features::HOST_TSO6)),
];

impl Features {
    /// No feature.
    pub(crate) const NONE: Self = Self(0);

    /// The set with these bits.
    pub(crate) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The bits, as they go to the device.
    pub(crate) const fn bits(self) -> u64 {
        self.0
    }

    /// Those of either set.
    #[must_use]
    pub(crate) const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those that are in both sets.
    #[must_use]
    pub(crate) const fn common(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Without those of `other`.
    #[must_use]
    pub(crate) const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether all of `other` are in it.
    pub(crate) const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether it has no feature.
    pub(crate) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// `self` if `on`, else nothing.
    #[must_use]
    pub(crate) const fn when(self, on: bool) -> Self {
        if on { self } else { Self::NONE }
    }

    /// What a driver needs for these offloads.
    pub(crate) fn for_driver(offloads: Offloads) -> Self {
        let tcp = Self::HOST_TSO4.with(Self::HOST_TSO6).with(Self::HOST_ECN);
        let large = Self::GUEST_TSO4.with(Self::GUEST_TSO6).with(Self::GUEST_ECN);
        let large = large.with(Self::GUEST_USO4).with(Self::GUEST_USO6);
        Self::CSUM
            .when(offloads.tx_checksum)
            .with(Self::GUEST_CSUM.when(offloads.rx_checksum))
            .with(tcp.when(offloads.tcp_segmentation))
            .with(Self::HOST_USO.when(offloads.udp_segmentation))
            .with(large.when(offloads.large_receive))
    }

    /// What a back end offers for these offloads: the other way round, what it receives is what its driver sends.
    pub(crate) fn for_device(offloads: Offloads) -> Self {
        let tcp = Self::GUEST_TSO4.with(Self::GUEST_TSO6).with(Self::GUEST_ECN);
        let udp = Self::GUEST_USO4.with(Self::GUEST_USO6);
        let large = Self::HOST_TSO4.with(Self::HOST_TSO6).with(Self::HOST_ECN).with(Self::HOST_USO);
        Self::GUEST_CSUM
            .when(offloads.tx_checksum)
            .with(Self::CSUM.when(offloads.rx_checksum))
            .with(tcp.when(offloads.tcp_segmentation))
            .with(udp.when(offloads.udp_segmentation))
            .with(large.when(offloads.large_receive))
    }

    /// Without those whose requirements are missing.
    #[must_use]
    pub(crate) fn consistent(mut self) -> Self {
        for &(feature, needed) in NEEDS {
            if !self.has(needed) {
                self = self.without(feature);
            }
        }
        for &(feature, any) in NEEDS_ONE_OF {
            if self.common(any).is_empty() {
                self = self.without(feature);
            }
        }
        self
    }
}

/// Names, separated by blanks; bits without one as `bit N`.
impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        let mut between = "";
        for bit in (0..64).filter(|bit| self.0 & 1 << bit != 0) {
            f.write_str(between)?;
            match Self::NAMES.iter().find(|name| name.0.0 == 1 << bit) {
                Some((_, name)) => f.write_str(name)?,
                None => write!(f, "bit {bit}")?,
            }
            between = " ";
        }
        Ok(())
    }
}

impl fmt::Debug for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Features({self})")
    }
}

/// A device lacks features without which its driver cannot work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the device does not offer {lacking}; it offers {offered}")]
pub(crate) struct Lacking {
    lacking: Features,
    offered: Features,
}

/// What driver and device agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Agreement {
    /// Both will do this.
    pub(crate) features: Features,
    /// Offered by one side, and not taken by the other.
    declined: Features,
    /// Wanted, and not offered or without what they need.
    missed: Features,
}

/// Agrees on what is offered, wanted and consistent.
///
/// # Errors
///
/// When one of `needed` is not offered.
pub(crate) fn agree(offered: Features, wanted: Features, needed: Features) -> Result<Agreement, Lacking> {
    let features = offered.common(wanted.with(needed)).consistent();
    let lacking = needed.without(features);
    if !lacking.is_empty() {
        return Err(Lacking { lacking, offered });
    }
    Ok(Agreement { features, declined: offered.without(features), missed: wanted.without(features) })
}

impl Agreement {
    /// What the other side took of what was `offered`, as it told.
    pub(crate) fn told(offered: Features, taken: Features) -> Self {
        Self { features: taken, declined: offered.without(taken), missed: Features::NONE }
    }
}

/// One line for the log.
impl fmt::Display for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "features in use: {}; offered and left: {}", self.features, self.declined)?;
        if self.missed.is_empty() { Ok(()) } else { write!(f, "; wanted and not to be had: {}", self.missed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_have_what_is_agreed_on() {
        let offered =
            Features::VERSION_1.with(Features::MRG_RXBUF).with(Features::CSUM).with(Features::from_bits(1 << 49));
        let wanted = Features::MRG_RXBUF.with(Features::EVENT_IDX);
        let agreement = agree(offered, wanted, Features::VERSION_1).unwrap();
        assert_eq!(agreement.features, Features::VERSION_1.with(Features::MRG_RXBUF));
        assert_eq!(
            agreement.to_string(),
            "features in use: MRG_RXBUF VERSION_1; offered and left: CSUM bit 49; wanted and not to be had: EVENT_IDX"
        );
    }

    #[test]
    fn what_is_needed_and_not_offered_is_named() {
        let error = agree(Features::CSUM, Features::NONE, Features::VERSION_1).unwrap_err().to_string();
        assert_eq!(error, "the device does not offer VERSION_1; it offers CSUM");
    }

    #[test]
    fn a_feature_goes_with_what_it_needs() {
        let tso = Features::HOST_TSO4.with(Features::HOST_ECN).with(Features::MQ);
        assert_eq!(tso.consistent(), Features::NONE);
        let whole = tso.with(Features::CSUM).with(Features::CTRL_VQ);
        assert_eq!(whole.consistent(), whole);
    }

    #[test]
    fn offloads_mean_opposite_bits_on_the_two_sides() {
        let all = Offloads {
            rx_checksum: true,
            tx_checksum: true,
            tcp_segmentation: true,
            udp_segmentation: true,
            large_receive: true,
            ..Offloads::default()
        };
        assert_eq!(Features::for_driver(all), Features::for_device(all));
        let send = Offloads { tx_checksum: true, ..Offloads::default() };
        assert_eq!(Features::for_driver(send), Features::CSUM);
        assert_eq!(Features::for_device(send), Features::GUEST_CSUM);
        assert_eq!(Features::for_driver(Offloads::default()), Features::NONE);
    }
}
