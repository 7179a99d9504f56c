//! Advanced descriptors of the Intel 82576: two little-endian 64-bit words each (datasheet 7.1.5 and 7.2.2).
//!
//! ```text
//! receive, given to the device    word 0  buffer address          word 1  header buffer address: 0
//! receive, written back           word 0  hash, packet type       word 1  VLAN | length | errors, status (DD)
//! transmit data                   word 0  buffer address          word 1  frame length, options | command, length
//! transmit context                word 0  VLAN, header lengths    word 1  checksum type
//! transmit, written back                                          word 1  status (DD, bit 32)
//! ```

use spinwake::dma::Iova;
use spinwake::frame::{Checksum, Verdicts};

/// Receive descriptors.
pub mod rx {
    use super::{Checksum, Iova, Verdicts};

    /// Word 1: Descriptor Done. Everything that the device wrote before is valid once this is seen.
    pub const DD: u64 = 1 << 0;
    /// Word 1: End of Packet.
    pub const EOP: u64 = 1 << 1;
    /// Word 1: VLAN Packet: the tag was taken out and stands in the word.
    pub const VP: u64 = 1 << 3;
    /// Word 1: UDP Checksum Calculated.
    pub const UDPCS: u64 = 1 << 4;
    /// Word 1: TCP or UDP (L4) Integrity Checked.
    pub const L4I: u64 = 1 << 5;
    /// Word 1: IPv4 Checksum Checked.
    pub const IPCS: u64 = 1 << 6;
    /// Word 1: Passed In-exact Filter.
    pub const PIF: u64 = 1 << 7;
    /// Word 1: L4 Checksum Error; valid with [`L4I`].
    pub const L4E: u64 = 1 << 29;
    /// Word 1: IPv4 Checksum Error; valid with [`IPCS`].
    pub const IPE: u64 = 1 << 30;
    /// Word 1: RX Error: a broken frame, which comes only when RCTL.SBP asks for those.
    pub const RXE: u64 = 1 << 31;
    /// Word 1: where the length stands.
    pub const LEN_SHIFT: u32 = 32;
    /// Word 1: where the VLAN tag stands.
    pub const VLAN_SHIFT: u32 = 48;

    /// Word 0: RSS type, bits 3:0. Zero when no hash was computed.
    pub const RSS_TYPE_MASK: u64 = 0xf;
    /// Word 0: where the packet type stands, 13 bits.
    pub const PACKET_TYPE_SHIFT: u32 = 4;
    /// Word 0, packet type: IPv4.
    pub const PACKET_IPV4: u64 = 1 << 0;
    /// Word 0, packet type: IPv6.
    pub const PACKET_IPV6: u64 = 1 << 2;
    /// Word 0, packet type: IPv6 with extension headers.
    pub const PACKET_IPV6E: u64 = 1 << 3;
    /// Word 0, packet type: TCP.
    pub const PACKET_TCP: u64 = 1 << 4;
    /// Word 0, packet type: UDP.
    pub const PACKET_UDP: u64 = 1 << 5;
    /// Word 0: where the RSS hash stands.
    pub const RSS_HASH_SHIFT: u32 = 32;

    /// RSS types in word 0: what the hash was computed over.
    pub mod rss_type {
        /// TCP over IPv4.
        pub const TCP_IPV4: u64 = 1;
        /// IPv4.
        pub const IPV4: u64 = 2;
        /// TCP over IPv6.
        pub const TCP_IPV6: u64 = 3;
        /// IPv6 with extension headers.
        pub const IPV6_EX: u64 = 4;
        /// IPv6.
        pub const IPV6: u64 = 5;
        /// TCP over IPv6 with extension headers.
        pub const TCP_IPV6_EX: u64 = 6;
        /// UDP over IPv4.
        pub const UDP_IPV4: u64 = 7;
        /// UDP over IPv6.
        pub const UDP_IPV6: u64 = 8;
    }

    /// Both words that give the buffer at `data` to the device; the second clears [`DD`].
    #[inline(always)]
    pub const fn give(data: Iova) -> [u64; 2] {
        [data.get(), 0]
    }

    /// Bytes in the buffer, of a written-back word 1.
    #[inline(always)]
    pub const fn len(word1: u64) -> usize {
        (word1 >> LEN_SHIFT) as u16 as usize
    }

    /// The VLAN tag of a written-back word 1; valid with [`VP`].
    #[inline(always)]
    pub const fn vlan(word1: u64) -> u16 {
        (word1 >> VLAN_SHIFT) as u16
    }

    /// What a written-back word 1 says of the checksums.
    ///
    /// A UDP packet over IPv4 may come without a checksum: hardware then sets [`L4I`] without [`UDPCS`] (datasheet 7.1.5.2).
    #[inline(always)]
    pub const fn verdicts(word1: u64) -> Verdicts {
        // L4I and IPCS stand side by side, and so do L4E and IPE.
        VERDICTS[(word1 >> 5 & 0b0011 | word1 >> 27 & 0b1100) as usize]
    }

    /// By IPE, L4E, IPCS, L4I, from the high bit to the low one.
    static VERDICTS: [Verdicts; 16] = {
        const fn verdict(checked: bool, wrong: bool) -> Checksum {
            match (checked, wrong) {
                (false, _) => Checksum::Unknown,
                (true, false) => Checksum::Good,
                (true, true) => Checksum::Bad,
            }
        }
        let mut table = [Verdicts::new(Checksum::Unknown, Checksum::Unknown); 16];
        let mut at = 0;
        while at < table.len() {
            let (l3, l4) = (verdict(at & 2 != 0, at & 8 != 0), verdict(at & 1 != 0, at & 4 != 0));
            table[at] = Verdicts::new(l3, l4);
            at += 1;
        }
        table
    };
    const _: () = assert!(L4I == 1 << 5 && IPCS == 1 << 6 && L4E == 1 << 29 && IPE == 1 << 30);

    /// The RSS hash of a written-back word 0, if one was computed.
    #[inline(always)]
    pub const fn rss_hash(word0: u64) -> Option<u32> {
        if word0 & RSS_TYPE_MASK == 0 { None } else { Some((word0 >> RSS_HASH_SHIFT) as u32) }
    }

    /// A written-back word 1: what a device model writes.
    #[inline(always)]
    pub const fn written_back(len: u16, vlan: u16, status_error: u32) -> u64 {
        (vlan as u64) << VLAN_SHIFT | (len as u64) << LEN_SHIFT | status_error as u64
    }
}

/// Transmit descriptors.
pub mod tx {
    /// Word 1: bytes in the buffer of a data descriptor, bits 15:0.
    pub const DTALEN_MASK: u64 = 0xffff;
    /// Word 1: which kind of descriptor, bits 23:20.
    pub const DTYP_MASK: u64 = 0xf << 20;
    /// Word 1: a context descriptor.
    pub const DTYP_CONTEXT: u64 = 2 << 20;
    /// Word 1: a data descriptor.
    pub const DTYP_DATA: u64 = 3 << 20;
    /// Word 1: End of Packet.
    pub const EOP: u64 = 1 << 24;
    /// Word 1: Insert FCS.
    pub const IFCS: u64 = 1 << 25;
    /// Word 1: Report Status: write [`DD`] when done.
    pub const RS: u64 = 1 << 27;
    /// Word 1: Descriptor Extension: an advanced descriptor.
    pub const DEXT: u64 = 1 << 29;
    /// Word 1: VLAN Packet Enable: put the context's tag in.
    pub const VLE: u64 = 1 << 30;
    /// Word 1: TCP Segmentation Enable.
    pub const TSE: u64 = 1 << 31;
    /// Word 1: Descriptor Done, written back.
    pub const DD: u64 = 1 << 32;
    /// Word 1: which context a data descriptor uses or a context descriptor sets, 3 bits.
    pub const IDX_SHIFT: u32 = 36;
    /// Word 1: Insert IPv4 Checksum.
    pub const IXSM: u64 = 1 << 40;
    /// Word 1: Insert TCP/UDP Checksum.
    pub const TXSM: u64 = 1 << 41;
    /// Word 1: bytes of the whole frame, 18 bits.
    pub const PAYLEN_SHIFT: u32 = 46;

    /// Context, word 0: bytes of network header, bits 8:0.
    pub const IPLEN_MASK: u64 = 0x1ff;
    /// Context, word 0: bytes before the network header, 7 bits.
    pub const MACLEN_SHIFT: u32 = 9;
    /// Context, word 0: VLAN tag.
    pub const VLAN_SHIFT: u32 = 16;
    /// Context, word 1: the network header is IPv4.
    pub const TUCMD_IPV4: u64 = 1 << 10;
    /// Context, word 1: the transport header is UDP.
    pub const TUCMD_UDP: u64 = 0 << 11;
    /// Context, word 1: the transport header is TCP.
    pub const TUCMD_TCP: u64 = 1 << 11;
    /// Context, word 1: bits of the transport type.
    pub const TUCMD_L4T_MASK: u64 = 3 << 11;

    /// What every data descriptor of ours has in word 1.
    const DATA: u64 = DTYP_DATA | DEXT | IFCS;

    /// Word 1 of the only data descriptor of a frame of `len` bytes.
    #[inline(always)]
    pub const fn whole(len: usize) -> u64 {
        DATA | EOP | (len as u64) << PAYLEN_SHIFT | len as u64
    }

    /// Word 1 of a data descriptor for `len` bytes of a frame of `total`; `options` are [`EOP`], [`VLE`], [`IXSM`],
    /// [`TXSM`].
    #[inline(always)]
    pub const fn part(len: usize, total: usize, options: u64) -> u64 {
        DATA | options | (total as u64) << PAYLEN_SHIFT | len as u64
    }

    /// Both words of a context descriptor that sets context 0; `tucmd` is made of the `TUCMD_` bits.
    #[inline(always)]
    pub const fn context(vlan: u16, l2_len: usize, l3_len: usize, tucmd: u64) -> [u64; 2] {
        [(vlan as u64) << VLAN_SHIFT | (l2_len as u64) << MACLEN_SHIFT | l3_len as u64, DTYP_CONTEXT | DEXT | tucmd]
    }

    /// Bytes in the buffer, of a data descriptor's word 1: for a device model.
    #[inline(always)]
    pub const fn len(word1: u64) -> usize {
        (word1 & DTALEN_MASK) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_back_receive_word_reads_as_written() {
        let word = rx::written_back(1514, 0xa123, (rx::DD | rx::EOP | rx::VP) as u32);
        assert_eq!((rx::len(word), rx::vlan(word)), (1514, 0xa123));
        assert_eq!(word & (rx::DD | rx::EOP | rx::VP | rx::RXE), rx::DD | rx::EOP | rx::VP);
    }

    #[test]
    fn a_transmit_word_has_its_fields_where_the_datasheet_puts_them() {
        // DTALEN 60, DTYP 3, DCMD EOP|IFCS|DEXT, PAYLEN 60.
        assert_eq!(tx::whole(60), 60 << 46 | 0x2330_003c);
        assert_eq!(tx::part(2048, 9000, tx::VLE) & tx::EOP, 0);
        let [word0, word1] = tx::context(0x0064, 14, 20, tx::TUCMD_IPV4 | tx::TUCMD_TCP);
        assert_eq!((word0, word1), (0x0064 << 16 | 14 << 9 | 20, 0x2020_0c00));
    }

    #[test]
    fn an_error_counts_only_where_the_device_looked() {
        let sums = [(0, Checksum::Unknown), (1, Checksum::Good), (2, Checksum::Unknown), (3, Checksum::Bad)];
        for (network, l3) in sums {
            for (transport, l4) in sums {
                let bit = |state: u64, number, bit| if state & number != 0 { bit } else { 0 };
                let word = bit(network, 1, rx::IPCS) | bit(network, 2, rx::IPE);
                let word = word | bit(transport, 1, rx::L4I) | bit(transport, 2, rx::L4E);
                for rest in [0, !(rx::IPCS | rx::IPE | rx::L4I | rx::L4E)] {
                    assert_eq!(rx::verdicts(word | rest), Verdicts::new(l3, l4), "{word:#x}");
                }
            }
        }
    }

    #[test]
    fn a_hash_is_there_only_with_a_type() {
        assert_eq!(rx::rss_hash(0xdead_beef_0000_0000), None);
        assert_eq!(rx::rss_hash(0xdead_beef_0000_0001), Some(0xdead_beef));
    }
}
