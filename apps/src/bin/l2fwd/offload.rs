//! Which work on frames may be put off from one port to the next.
//!
//! A virtual machine may hand over frames whose checksums are unfinished, or that are far longer than its MTU: whoever puts
//! them on a wire finishes them. That saves work where nobody does, as between two virtual machines on one host. So a port is
//! asked to receive such frames only if the port by which they leave can finish them.

use spinwake::port::{Capabilities, Offloads, PortConfig};

/// What a port that `can` do this shall do, when its frames leave by one that can do `partner`, and it sends what that one
/// receives.
pub(crate) fn between(can: Offloads, partner: Offloads) -> Offloads {
    let unfinished = |from: Offloads, to: Offloads| from.rx_checksum && to.tx_checksum;
    // A large frame may be of either kind.
    let large = |from: Offloads, to: Offloads| {
        unfinished(from, to) && from.large_receive && to.tcp_segmentation && to.udp_segmentation
    };
    let segment = large(partner, can);
    Offloads {
        rx_checksum: unfinished(can, partner),
        large_receive: large(can, partner),
        tx_checksum: unfinished(partner, can),
        tcp_segmentation: segment,
        udp_segmentation: segment,
        ..Offloads::default()
    }
}

/// The configuration of a port with these capabilities, whose partner has those.
pub(crate) fn configured(config: &PortConfig, can: &Capabilities, partner: &Capabilities) -> PortConfig {
    PortConfig { offloads: between(can.offloads, partner.offloads), ..config.clone() }
}

/// For people: what of it is on.
pub(crate) fn named(offloads: Offloads) -> String {
    match offloads.beyond(Offloads::default()).join(", ") {
        none if none.is_empty() => "none".into(),
        some => some,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Offloads = Offloads {
        rx_checksum: false,
        tx_checksum: false,
        vlan_strip: false,
        vlan_insert: false,
        rss_hash: false,
        tcp_segmentation: false,
        udp_segmentation: false,
        large_receive: false,
    };
    const SUMS: Offloads = Offloads { rx_checksum: true, tx_checksum: true, ..NOTHING };
    const ALL: Offloads = Offloads { tcp_segmentation: true, udp_segmentation: true, large_receive: true, ..SUMS };

    #[test]
    fn a_port_receives_only_what_its_partner_can_finish() {
        assert_eq!(between(ALL, ALL), ALL);
        assert_eq!(between(ALL, SUMS), SUMS);
        assert_eq!(between(SUMS, ALL), SUMS);
        assert_eq!((between(ALL, NOTHING), between(NOTHING, ALL)), (NOTHING, NOTHING));
        // One that cannot cut datagrams must not be handed large ones.
        let only_tcp = Offloads { udp_segmentation: false, ..ALL };
        assert!(!between(ALL, only_tcp).large_receive && between(only_tcp, ALL).large_receive);
        // It receives unfinished frames and cannot finish any.
        let one_way = Offloads { tx_checksum: false, ..SUMS };
        assert_eq!(between(one_way, ALL), Offloads { rx_checksum: true, ..NOTHING });
        assert_eq!(between(ALL, one_way), Offloads { tx_checksum: true, ..NOTHING });
        assert_eq!(between(one_way, one_way), NOTHING);
    }

    #[test]
    fn every_configuration_is_one_that_the_port_can_do() {
        let bits = |n: u32| Offloads {
            rx_checksum: n & 1 != 0,
            tx_checksum: n & 2 != 0,
            tcp_segmentation: n & 4 != 0,
            udp_segmentation: n & 8 != 0,
            large_receive: n & 16 != 0,
            ..NOTHING
        };
        for (a, b) in (0..32).flat_map(|a| (0..32).map(move |b| (bits(a), bits(b)))) {
            let set = between(a, b);
            assert!(set.beyond(a).is_empty(), "{set:?} of {a:?}");
            assert!(set.rx_checksum || !set.large_receive);
            assert!(set.tx_checksum || !(set.tcp_segmentation || set.udp_segmentation));
        }
    }
}
