//! Registers of the Intel 82576 and its successors: "82576EB Gigabit Ethernet Controller Datasheet", chapter 8.
//!
//! Names are the datasheet's. Queue registers take the queue's number; those of the 82576 start at 0xC000 (receive) and
//! 0xE000 (transmit), 0x40 apart (sections 8.10 and 8.12). The aliases below 0x4000, which reach only four queues, are
//! not used.

use spinwake::mmio::{Rc, Reg, Ro, Rw, Wo};

/// Queues of the largest model, each way.
pub const MAX_QUEUES: usize = 16;
/// Interrupt vectors of the largest model (EICR bits in MSI-X mode).
pub const MAX_VECTORS: usize = 25;

/// Device Control (8.2.1).
pub const CTRL: Reg<Rw> = Reg::at(0x0000);
/// Bits of [`CTRL`].
pub mod ctrl {
    /// Full Duplex, when duplex is forced.
    pub const FD: u32 = 1 << 0;
    /// PCIe (GIO) Master Disable: no new DMA request; STATUS.GIO_MASTER_EN falls when the last one is done.
    pub const GIO_MASTER_DISABLE: u32 = 1 << 2;
    /// Set Link Up.
    pub const SLU: u32 = 1 << 6;
    /// Force Speed.
    pub const FRCSPD: u32 = 1 << 11;
    /// Force Duplex.
    pub const FRCDPLX: u32 = 1 << 12;
    /// Device Reset. Clears itself; wait for it with a deadline.
    pub const RST: u32 = 1 << 26;
    /// Receive Flow Control Enable.
    pub const RFCE: u32 = 1 << 27;
    /// Transmit Flow Control Enable.
    pub const TFCE: u32 = 1 << 28;
    /// VLAN Mode Enable: take tags out of received frames.
    pub const VME: u32 = 1 << 30;
    /// PHY Reset.
    pub const PHY_RST: u32 = 1 << 31;
}

/// Device Status (8.2.2).
pub const STATUS: Reg<Ro> = Reg::at(0x0008);
/// Bits of [`STATUS`].
pub mod status {
    /// Full Duplex.
    pub const FD: u32 = 1 << 0;
    /// Link Up.
    pub const LU: u32 = 1 << 1;
    /// Speed: 0 is 10 Mbit/s, 1 is 100, 2 and 3 are 1000.
    pub const SPEED_SHIFT: u32 = 6;
    /// Two bits.
    pub const SPEED_MASK: u32 = 3;
    /// PHY Reset Asserted.
    pub const PHYRA: u32 = 1 << 10;
    /// PCIe (GIO) Master Enable Status: requests are allowed or outstanding.
    pub const GIO_MASTER_EN: u32 = 1 << 19;
}

/// Extended Device Control (8.2.3).
pub const CTRL_EXT: Reg<Rw> = Reg::at(0x0018);
/// Bits of [`CTRL_EXT`].
pub mod ctrl_ext {
    /// Physical function's reset is done: lets virtual functions proceed.
    pub const PFRSTD: u32 = 1 << 14;
    /// Extended VLAN: frames carry two tags.
    pub const EXT_VLAN: u32 = 1 << 26;
    /// Driver Loaded, for the management firmware.
    pub const DRV_LOAD: u32 = 1 << 28;
}

/// EEPROM/Flash Control (8.4.1).
pub const EECD: Reg<Rw> = Reg::at(0x0010);
/// Bits of [`EECD`].
pub mod eecd {
    /// EEPROM Present.
    pub const EE_PRES: u32 = 1 << 8;
    /// Automatic Read Done: the device has loaded its configuration.
    pub const AUTO_RD: u32 = 1 << 9;
}

/// EEPROM Read (8.4.2).
pub const EERD: Reg<Rw> = Reg::at(0x0014);
/// Bits of [`EERD`].
pub mod eerd {
    /// Start.
    pub const START: u32 = 1 << 0;
    /// Done.
    pub const DONE: u32 = 1 << 1;
    /// Word address.
    pub const ADDR_SHIFT: u32 = 2;
    /// Data read.
    pub const DATA_SHIFT: u32 = 16;
}

/// MDI Control: access to the PHY (8.2.4).
pub const MDIC: Reg<Rw> = Reg::at(0x0020);
/// Bits of [`MDIC`].
pub mod mdic {
    /// Data, both ways.
    pub const DATA_MASK: u32 = 0xffff;
    /// PHY register.
    pub const REGADD_SHIFT: u32 = 16;
    /// PHY address; the internal one is 1.
    pub const PHYADD_SHIFT: u32 = 21;
    /// Write.
    pub const OP_WRITE: u32 = 1 << 26;
    /// Read.
    pub const OP_READ: u32 = 1 << 27;
    /// Done.
    pub const R: u32 = 1 << 28;
    /// The PHY did not answer.
    pub const E: u32 = 1 << 30;
}

/// PHY registers of IEEE 802.3 clause 22, as reached through [`MDIC`].
pub mod phy {
    /// Control.
    pub const PCTRL: u32 = 0;
    /// Status; link is latched low.
    pub const PSTATUS: u32 = 1;
    /// Identifier, upper half.
    pub const PHYID1: u32 = 2;
    /// Address of the internal PHY.
    pub const ADDRESS: u32 = 1;
    /// PCTRL: restart autonegotiation; clears itself.
    pub const RESTART_AN: u16 = 1 << 9;
    /// PCTRL: power down.
    pub const POWER_DOWN: u16 = 1 << 11;
    /// PCTRL: enable autonegotiation.
    pub const AN_ENABLE: u16 = 1 << 12;
    /// PSTATUS: autonegotiation complete.
    pub const AN_COMPLETE: u16 = 1 << 5;
    /// PSTATUS: link is up (latched low).
    pub const LINK: u16 = 1 << 2;
}

/// Flow Control Address Low (8.2.6).
pub const FCAL: Reg<Rw> = Reg::at(0x0028);
/// Flow Control Address High.
pub const FCAH: Reg<Rw> = Reg::at(0x002C);
/// Flow Control Type.
pub const FCT: Reg<Rw> = Reg::at(0x0030);
/// VLAN Ether Type (8.2.10): bits 15:0 for a single tag.
pub const VET: Reg<Rw> = Reg::at(0x0038);
/// Software Semaphore (8.16).
pub const SWSM: Reg<Rw> = Reg::at(0x5B50);
/// Bits of [`SWSM`].
pub mod swsm {
    /// Software semaphore: reading it as 0 takes it.
    pub const SMBI: u32 = 1 << 0;
    /// Software against firmware: taken when a written 1 reads back.
    pub const SWESMBI: u32 = 1 << 1;
}
/// Software-Firmware Synchronization (8.16): who owns which shared resource.
pub const SW_FW_SYNC: Reg<Rw> = Reg::at(0x5B5C);

/// Interrupt Cause Read (8.8). Reading clears it when GPIE.NSICR is set; writing ones clears those.
pub const ICR: Reg<Rw> = Reg::at(0x00C0);
/// Interrupt Cause Set.
pub const ICS: Reg<Wo> = Reg::at(0x00C8);
/// Interrupt Mask Set/Read.
pub const IMS: Reg<Rw> = Reg::at(0x00D0);
/// Interrupt Mask Clear.
pub const IMC: Reg<Wo> = Reg::at(0x00D8);
/// Interrupt Acknowledge Auto-mask: what a read of ICR masks.
pub const IAM: Reg<Rw> = Reg::at(0x00E0);
/// Bits of [`ICR`], [`ICS`], [`IMS`], [`IMC`] and [`IAM`].
pub mod icr {
    /// Transmit Descriptor Written Back.
    pub const TXDW: u32 = 1 << 0;
    /// Link Status Change.
    pub const LSC: u32 = 1 << 2;
    /// Receive Descriptor Minimum Threshold.
    pub const RXDMT0: u32 = 1 << 4;
    /// Receiver Miss: the packet buffer was full.
    pub const RXMISS: u32 = 1 << 6;
    /// Receiver Descriptor Write Back.
    pub const RXDW: u32 = 1 << 7;
    /// DMA Engine (transmit) out of sync.
    pub const DOUTSYNC: u32 = 1 << 28;
    /// Device Reset Asserted.
    pub const DRSTA: u32 = 1 << 30;
    /// Interrupt Asserted.
    pub const INTA: u32 = 1 << 31;
}

/// General Purpose Interrupt Enable (8.8).
pub const GPIE: Reg<Rw> = Reg::at(0x1514);
/// Bits of [`GPIE`].
pub mod gpie {
    /// Non Selective Interrupt Clear on Read: a read of ICR always clears it.
    pub const NSICR: u32 = 1 << 0;
    /// Multiple MSI-X: EICR has one bit a vector.
    pub const MULTIPLE_MSIX: u32 = 1 << 4;
    /// Extended Interrupt Auto Mask Enable: EIAM acts when a message is sent.
    pub const EIAME: u32 = 1 << 30;
    /// Pending Bit Array support.
    pub const PBA_SUPPORT: u32 = 1 << 31;
}
/// Extended Interrupt Cause Set (8.8).
pub const EICS: Reg<Wo> = Reg::at(0x1520);
/// Extended Interrupt Mask Set/Read.
pub const EIMS: Reg<Rw> = Reg::at(0x1524);
/// Extended Interrupt Mask Clear.
pub const EIMC: Reg<Wo> = Reg::at(0x1528);
/// Extended Interrupt Auto Clear: EICR bits that the sending of their message clears.
pub const EIAC: Reg<Rw> = Reg::at(0x152C);
/// Extended Interrupt Auto Mask: EIMS bits that the sending of their message clears (GPIE.EIAME).
pub const EIAM: Reg<Rw> = Reg::at(0x1530);
/// Extended Interrupt Cause. Reading clears all of it; writing ones clears those.
pub const EICR: Reg<Rw> = Reg::at(0x1580);
/// Bits of [`EICR`], [`EICS`], [`EIMS`], [`EIMC`], [`EIAC`] and [`EIAM`].
pub mod eicr {
    /// Every bit that means something in MSI-X mode: one a vector.
    pub const MSIX_MASK: u32 = 0x01ff_ffff;
    /// Every bit that means something otherwise: causes of queues, TCP timer, other.
    pub const LEGACY_MASK: u32 = 0xc000_ffff;
    /// Some ICR cause, outside MSI-X mode.
    pub const OTHER: u32 = 1 << 31;
}
/// Extended Interrupt Throttle of vector `v` (7.3.4, 8.8): zero sends each interrupt at once.
pub const fn eitr(v: usize) -> Reg<Rw> {
    assert!(v < MAX_VECTORS);
    Reg::at(0x1680 + 4 * v)
}
/// Bits of [`eitr`](fn@eitr).
pub mod eitr {
    /// The least time between two interrupts, in microseconds.
    pub const INTERVAL_SHIFT: u32 = 2;
    /// The longest interval: 13 bits of microseconds.
    pub const INTERVAL_MAX: u32 = 0x1fff;
    /// Counter Ignore: this write changes the interval only, and leaves the counter of the one that runs alone.
    pub const CNT_INGR: u32 = 1 << 31;
}
/// Interrupt Vector Allocation, register `n` (8.8): four 8-bit entries, see [`ivar`].
pub const fn ivar(n: usize) -> Reg<Rw> {
    assert!(n < 8);
    Reg::at(0x1700 + 4 * n)
}
/// Interrupt Vector Allocation, Miscellaneous: bits 7:0 for the TCP timer, 15:8 for other causes (ICR).
pub const IVAR_MISC: Reg<Rw> = Reg::at(0x1740);
/// An entry of [`ivar`] or [`IVAR_MISC`] is valid with this bit; the vector stands in the bits below.
pub const IVAR_VALID: u32 = 1 << 7;

/// Receive Control (8.10.1).
pub const RCTL: Reg<Rw> = Reg::at(0x0100);
/// Bits of [`RCTL`].
pub mod rctl {
    /// Receiver Enable.
    pub const RXEN: u32 = 1 << 1;
    /// Store Bad Packets.
    pub const SBP: u32 = 1 << 2;
    /// Unicast Promiscuous.
    pub const UPE: u32 = 1 << 3;
    /// Multicast Promiscuous.
    pub const MPE: u32 = 1 << 4;
    /// Long Packet Enable: RLPML is the limit.
    pub const LPE: u32 = 1 << 5;
    /// MAC loopback.
    pub const LBM_MAC: u32 = 1 << 6;
    /// Multicast Offset: which 12 address bits index MTA; 0 takes bits 47:36.
    pub const MO_SHIFT: u32 = 12;
    /// Broadcast Accept.
    pub const BAM: u32 = 1 << 15;
    /// VLAN Filter Enable.
    pub const VFE: u32 = 1 << 18;
    /// Strip Ethernet CRC.
    pub const SECRC: u32 = 1 << 26;
}
/// Receive Checksum Control (8.10).
pub const RXCSUM: Reg<Rw> = Reg::at(0x5000);
/// Bits of [`RXCSUM`].
pub mod rxcsum {
    /// IP Checksum Offload.
    pub const IPOFLD: u32 = 1 << 8;
    /// TCP/UDP Checksum Offload.
    pub const TUOFLD: u32 = 1 << 9;
    /// Packet Checksum Disable: the descriptor carries the RSS hash instead.
    pub const PCSD: u32 = 1 << 13;
}
/// Receive Long Packet Maximum Length (8.10): bytes including the frame check sequence, 14 bits.
pub const RLPML: Reg<Rw> = Reg::at(0x5004);
/// Receive Filter Control (8.10).
pub const RFCTL: Reg<Rw> = Reg::at(0x5008);

/// Receive Descriptor Base Address Low of queue `q` (8.10).
pub const fn rdbal(q: usize) -> Reg<Rw> {
    rx_queue(q, 0x00)
}
/// Receive Descriptor Base Address High of queue `q`.
pub const fn rdbah(q: usize) -> Reg<Rw> {
    rx_queue(q, 0x04)
}
/// Receive Descriptor Ring Length of queue `q`, in bytes, a multiple of 128.
pub const fn rdlen(q: usize) -> Reg<Rw> {
    rx_queue(q, 0x08)
}
/// Split and Replication Receive Control of queue `q`.
pub const fn srrctl(q: usize) -> Reg<Rw> {
    rx_queue(q, 0x0C)
}
/// Bits of [`srrctl`](fn@srrctl).
pub mod srrctl {
    /// Size of a buffer in KiB, bits 6:0.
    pub const BSIZEPACKET_MASK: u32 = 0x7f;
    /// Advanced descriptors, one buffer each.
    pub const DESCTYPE_ADV_ONEBUF: u32 = 1 << 25;
    /// All bits of the descriptor type.
    pub const DESCTYPE_MASK: u32 = 7 << 25;
    /// Drop frames of a queue without descriptors, so that they do not block the others.
    pub const DROP_EN: u32 = 1 << 31;
}
/// Receive Descriptor Head of queue `q`: the next descriptor that the device fills.
pub const fn rdh(q: usize) -> Reg<Rw> {
    rx_queue(q, 0x10)
}
/// Receive Descriptor Tail of queue `q`: one past the last descriptor that the device may fill. Head equal to tail means
/// that it may fill none. Written only through `Bar::doorbell` while the queue runs.
pub const fn rdt(q: usize) -> Reg<Wo> {
    assert!(q < MAX_QUEUES);
    Reg::at(0xC018 + 0x40 * q)
}
/// Receive Descriptor Control of queue `q`.
pub const fn rxdctl(q: usize) -> Reg<Rw> {
    rx_queue(q, 0x28)
}
/// Receive Queue Drop Packet Count of queue `q`: reading clears it, on the I210 and I211 writing zero.
pub const fn rqdpc(q: usize) -> Reg<Rw> {
    rx_queue(q, 0x30)
}
/// Bits of [`rxdctl`](fn@rxdctl) and [`txdctl`](fn@txdctl).
pub mod xdctl {
    /// Prefetch threshold, in descriptors.
    pub const PTHRESH_SHIFT: u32 = 0;
    /// Host threshold, in descriptors.
    pub const HTHRESH_SHIFT: u32 = 8;
    /// Write-back threshold, in descriptors.
    pub const WTHRESH_SHIFT: u32 = 16;
    /// Queue Enable. Reads as written only when the queue has started or stopped.
    pub const ENABLE: u32 = 1 << 25;
    /// Software Flush: write back what is done (transmit).
    pub const SWFLSH: u32 = 1 << 26;
}

const fn rx_queue(q: usize, offset: usize) -> Reg<Rw> {
    assert!(q < MAX_QUEUES);
    Reg::at(0xC000 + 0x40 * q + offset)
}

/// Transmit Control (8.12).
pub const TCTL: Reg<Rw> = Reg::at(0x0400);
/// Bits of [`TCTL`].
pub mod tctl {
    /// Transmit Enable.
    pub const EN: u32 = 1 << 1;
    /// Pad Short Packets to 64 bytes.
    pub const PSP: u32 = 1 << 3;
    /// Collision Threshold.
    pub const CT_SHIFT: u32 = 4;
    /// Bits of the collision threshold.
    pub const CT_MASK: u32 = 0xff << 4;
    /// Re-transmit on Late Collision.
    pub const RTLC: u32 = 1 << 24;
}
/// Transmit Descriptor Base Address Low of queue `q` (8.12).
pub const fn tdbal(q: usize) -> Reg<Rw> {
    tx_queue(q, 0x00)
}
/// Transmit Descriptor Base Address High of queue `q`.
pub const fn tdbah(q: usize) -> Reg<Rw> {
    tx_queue(q, 0x04)
}
/// Transmit Descriptor Ring Length of queue `q`, in bytes, a multiple of 128.
pub const fn tdlen(q: usize) -> Reg<Rw> {
    tx_queue(q, 0x08)
}
/// Transmit Descriptor Head of queue `q`.
pub const fn tdh(q: usize) -> Reg<Rw> {
    tx_queue(q, 0x10)
}
/// Transmit Descriptor Tail of queue `q`: one past the last descriptor to send. Written only through `Bar::doorbell`
/// while the queue runs.
pub const fn tdt(q: usize) -> Reg<Wo> {
    assert!(q < MAX_QUEUES);
    Reg::at(0xE018 + 0x40 * q)
}
/// Transmit Descriptor Control of queue `q`.
pub const fn txdctl(q: usize) -> Reg<Rw> {
    tx_queue(q, 0x28)
}
/// Transmit Descriptor Completion Write-Back Address Low of queue `q`; bit 0 turns head write-back on.
pub const fn tdwbal(q: usize) -> Reg<Rw> {
    tx_queue(q, 0x38)
}
/// Transmit Descriptor Completion Write-Back Address High of queue `q`.
pub const fn tdwbah(q: usize) -> Reg<Rw> {
    tx_queue(q, 0x3C)
}

const fn tx_queue(q: usize, offset: usize) -> Reg<Rw> {
    assert!(q < MAX_QUEUES);
    Reg::at(0xE000 + 0x40 * q + offset)
}

/// Multicast Table Array, word `n`: 4,096 bits (8.10).
pub const fn mta(n: usize) -> Reg<Rw> {
    assert!(n < 128);
    Reg::at(0x5200 + 4 * n)
}
/// Unicast Table Array, word `n`.
pub const fn uta(n: usize) -> Reg<Wo> {
    assert!(n < 128);
    Reg::at(0xA000 + 4 * n)
}
/// Receive Address Low, entry `n`: bytes 0 to 3 of an Ethernet address, first byte lowest.
pub const fn ral(n: usize) -> Reg<Rw> {
    assert!(n < 32);
    if n < 16 { Reg::at(0x5400 + 8 * n) } else { Reg::at(0x54E0 + 8 * (n - 16)) }
}
/// Receive Address High, entry `n`: bytes 4 and 5, and [`RAH_AV`].
pub const fn rah(n: usize) -> Reg<Rw> {
    assert!(n < 32);
    if n < 16 { Reg::at(0x5404 + 8 * n) } else { Reg::at(0x54E4 + 8 * (n - 16)) }
}
/// Address Valid: the entry takes part in filtering.
pub const RAH_AV: u32 = 1 << 31;
/// VLAN Filter Table Array, word `n`: one bit a VLAN id.
pub const fn vfta(n: usize) -> Reg<Rw> {
    assert!(n < 128);
    Reg::at(0x5600 + 4 * n)
}

/// Multiple Receive Queues Command (8.10).
pub const MRQC: Reg<Rw> = Reg::at(0x5818);
/// Bits of [`MRQC`].
pub mod mrqc {
    /// Receive-side scaling over all queues, no virtual machines; bits 2:0.
    pub const ENABLE_RSS: u32 = 2;
    /// Hash TCP over IPv4.
    pub const TCP_IPV4: u32 = 1 << 16;
    /// Hash IPv4.
    pub const IPV4: u32 = 1 << 17;
    /// Hash TCP over IPv6, with extension headers' addresses.
    pub const TCP_IPV6_EX: u32 = 1 << 18;
    /// Hash IPv6, with extension headers' addresses.
    pub const IPV6_EX: u32 = 1 << 19;
    /// Hash IPv6.
    pub const IPV6: u32 = 1 << 20;
    /// Hash TCP over IPv6.
    pub const TCP_IPV6: u32 = 1 << 21;
    /// Hash UDP over IPv4.
    pub const UDP_IPV4: u32 = 1 << 22;
    /// Hash UDP over IPv6.
    pub const UDP_IPV6: u32 = 1 << 23;
}
/// Redirection Table, word `n`: four entries of 8 bits, lowest first; the low hash bits 6:0 choose one of 128, and its
/// low four bits (three in later models) are a queue.
pub const fn reta(n: usize) -> Reg<Rw> {
    assert!(n < 32);
    Reg::at(0x5C00 + 4 * n)
}
/// RSS Random Key, word `n`: bytes 4n to 4n+3 of the key, first byte lowest.
pub const fn rssrk(n: usize) -> Reg<Rw> {
    assert!(n < 10);
    Reg::at(0x5C80 + 4 * n)
}
/// VMDq Control (8.26): zero, as no virtual machines are served.
pub const VT_CTL: Reg<Rw> = Reg::at(0x581C);

/// CRC Error Count (8.19).
pub const CRCERRS: Reg<Rc> = Reg::at(0x4000);
/// Alignment Error Count.
pub const ALGNERRC: Reg<Rc> = Reg::at(0x4004);
/// RX Error Count.
pub const RXERRC: Reg<Rc> = Reg::at(0x400C);
/// Missed Packets Count: no room in the packet buffer.
pub const MPC: Reg<Rc> = Reg::at(0x4010);
/// Receive Length Error Count.
pub const RLEC: Reg<Rc> = Reg::at(0x4040);
/// Good Packets Received Count.
pub const GPRC: Reg<Rc> = Reg::at(0x4074);
/// Broadcast Packets Received Count.
pub const BPRC: Reg<Rc> = Reg::at(0x4078);
/// Multicast Packets Received Count.
pub const MPRC: Reg<Rc> = Reg::at(0x407C);
/// Good Packets Transmitted Count.
pub const GPTC: Reg<Rc> = Reg::at(0x4080);
/// Good Octets Received Count, low half: with the frame check sequence. Read it before [`GORCH`], which clears both.
pub const GORCL: Reg<Rc> = Reg::at(0x4088);
/// Good Octets Received Count, high half.
pub const GORCH: Reg<Rc> = Reg::at(0x408C);
/// Good Octets Transmitted Count, low half: with the frame check sequence. Read it before [`GOTCH`], which clears both.
pub const GOTCL: Reg<Rc> = Reg::at(0x4090);
/// Good Octets Transmitted Count, high half.
pub const GOTCH: Reg<Rc> = Reg::at(0x4094);
/// Receive No Buffers Count: frames that had to wait for descriptors, not all of them lost.
pub const RNBC: Reg<Rc> = Reg::at(0x40A0);
/// Receive Undersize Count.
pub const RUC: Reg<Rc> = Reg::at(0x40A4);
/// Receive Fragment Count: undersized and broken.
pub const RFC: Reg<Rc> = Reg::at(0x40A8);
/// Receive Oversize Count.
pub const ROC: Reg<Rc> = Reg::at(0x40AC);
/// Receive Jabber Count: oversized and broken.
pub const RJC: Reg<Rc> = Reg::at(0x40B0);
/// Total Packets Received, good and bad.
pub const TPR: Reg<Rc> = Reg::at(0x40D0);
/// Total Packets Transmitted.
pub const TPT: Reg<Rc> = Reg::at(0x40D4);

/// First and one past the last byte of the block of statistics registers, all cleared by reading.
pub const STATISTICS: std::ops::Range<usize> = 0x4000..0x4128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_registers_lie_where_the_datasheet_puts_them() {
        assert_eq!((rdbal(0).offset(), rdt(3).offset(), rxdctl(15).offset()), (0xC000, 0xC0D8, 0xC3E8));
        assert_eq!((tdbal(0).offset(), tdt(3).offset(), txdctl(15).offset()), (0xE000, 0xE0D8, 0xE3E8));
        assert_eq!((ral(15).offset(), ral(16).offset(), rah(16).offset()), (0x5478, 0x54E0, 0x54E4));
        assert_eq!((eitr(24).offset(), ivar(7).offset(), reta(31).offset()), (0x16E0, 0x171C, 0x5C7C));
    }

    #[test]
    #[should_panic(expected = "q < MAX_QUEUES")]
    fn there_is_no_seventeenth_queue() {
        rdt(16);
    }
}
