//! Where the modelled registers are and what their bits mean: Intel 82576 datasheet, chapter 8.
//!
//! Offsets are written out here a second time, on purpose: the model is the driver's examiner, and a table that both
//! shared would hide a wrong offset from it.

/// Bytes in BAR 0.
pub(super) const BAR_LEN: usize = 0x2_0000;

/// Device Control (8.2.1).
pub(super) const CTRL: usize = 0x0000;
pub(super) mod ctrl {
    /// Full duplex.
    pub(crate) const FD: u32 = 1 << 0;
    /// GIO Master Disable: the device starts no new requests.
    pub(crate) const GIO_MASTER_DISABLE: u32 = 1 << 2;
    /// Set Link Up: lets the MAC see the PHY's link.
    pub(crate) const SLU: u32 = 1 << 6;
    /// Speed 1,000 Mbit/s.
    pub(crate) const SPEED_1000: u32 = 2 << 8;
    /// Software reset; clears itself.
    pub(crate) const RST: u32 = 1 << 26;
    /// Device reset; clears itself.
    pub(crate) const DEV_RST: u32 = 1 << 29;
    /// VLAN Mode Enable: tags are taken out of received frames.
    pub(crate) const VME: u32 = 1 << 30;
    /// PHY reset; clears itself here.
    pub(crate) const PHY_RST: u32 = 1 << 31;
}
/// Device Control, duplicate.
pub(super) const CTRL_DUP: usize = 0x0004;
/// Device Status (8.2.2).
pub(super) const STATUS: usize = 0x0008;
pub(super) mod status {
    /// Full duplex.
    pub(crate) const FD: u32 = 1 << 0;
    /// Link up.
    pub(crate) const LU: u32 = 1 << 1;
    /// Speed 1,000 Mbit/s.
    pub(crate) const SPEED_1000: u32 = 2 << 6;
    /// PHY reset asserted.
    pub(crate) const PHYRA: u32 = 1 << 10;
    /// The device may start requests.
    pub(crate) const GIO_MASTER_ENABLE: u32 = 1 << 19;
    /// Reset done.
    pub(crate) const PF_RST_DONE: u32 = 1 << 21;
}
/// EEPROM Control (8.4.1).
pub(super) const EECD: usize = 0x0010;
/// What it reads after a reset: EEPROM present (bit 8), read into the registers (bit 9).
pub(super) const EECD_READY: u32 = 0x300;
/// EEPROM Read (8.4.2): start, done, address at bit 2, data at bit 16.
pub(super) const EERD: usize = 0x0014;
/// Extended Device Control.
pub(super) const CTRL_EXT: usize = 0x0018;
/// MDI Control (8.2.4): the window on the PHY's registers.
pub(super) const MDIC: usize = 0x0020;
/// VLAN EtherType.
pub(super) const VET: usize = 0x0038;

/// Receive Control (8.10.1).
pub(super) const RCTL: usize = 0x0100;
pub(super) mod rctl {
    pub(crate) const EN: u32 = 1 << 1;
    pub(crate) const UPE: u32 = 1 << 3;
    pub(crate) const MPE: u32 = 1 << 4;
    pub(crate) const LPE: u32 = 1 << 5;
    /// Bits 13:12: which bits of the address index the multicast table.
    pub(crate) const MO_SHIFT: u32 = 12;
    pub(crate) const BAM: u32 = 1 << 15;
    /// Bits 17:16: buffer size where SRRCTL gives none.
    pub(crate) const BSIZE_SHIFT: u32 = 16;
    pub(crate) const VFE: u32 = 1 << 18;
    /// Strip the frame check sequence.
    pub(crate) const SECRC: u32 = 1 << 26;
}
/// Transmit Control (8.12.1).
pub(super) const TCTL: usize = 0x0400;
pub(super) mod tctl {
    pub(crate) const EN: u32 = 1 << 1;
    /// Pad short packets.
    pub(crate) const PSP: u32 = 1 << 3;
}

/// Interrupt Cause Read (8.8.9), and its fellows.
pub(super) const ICR: usize = 0x1500;
pub(super) const ICS: usize = 0x1504;
pub(super) const IMS: usize = 0x1508;
pub(super) const IMC: usize = 0x150C;
pub(super) const IAM: usize = 0x1510;
/// General Purpose Interrupt Enable (8.8.14).
pub(super) const GPIE: usize = 0x1514;
/// Extended Interrupt Cause Set (8.8.2), and its fellows.
pub(super) const EICS: usize = 0x1520;
pub(super) const EIMS: usize = 0x1524;
pub(super) const EIMC: usize = 0x1528;
pub(super) const EIAC: usize = 0x152C;
pub(super) const EIAM: usize = 0x1530;
pub(super) const EICR: usize = 0x1580;
/// Extended Interrupt Throttle of vector 0; the others follow (8.8.12).
pub(super) const EITR: usize = 0x1680;
/// Interrupt Vector Allocation (8.8.13): eight registers.
pub(super) const IVAR: usize = 0x1700;
pub(super) const IVAR_MISC: usize = 0x1740;
/// MSI-X vectors of the device.
pub(super) const MSIX_VECTORS: usize = 25;
pub(super) mod icr {
    /// Transmit descriptors written back.
    pub(crate) const TXDW: u32 = 1 << 0;
    /// Link status changed.
    pub(crate) const LSC: u32 = 1 << 2;
    /// Frames missed.
    pub(crate) const RXMISS: u32 = 1 << 6;
    /// Receive descriptors written back.
    pub(crate) const RXDW: u32 = 1 << 7;
    /// An interrupt was asserted.
    pub(crate) const INTA: u32 = 1 << 31;
}
pub(super) mod gpie {
    /// A read of ICR clears it whatever is masked.
    pub(crate) const NSICR: u32 = 1 << 0;
    /// Several MSI-X vectors.
    pub(crate) const MULTIPLE_MSIX: u32 = 1 << 4;
    /// EIAM applies when a message is sent.
    pub(crate) const EIAME: u32 = 1 << 30;
}
/// An IVAR entry is in use.
pub(super) const IVAR_VALID: u32 = 0x80;

/// Software Semaphore: a read takes it.
pub(super) const SWSM: usize = 0x5B50;

/// First and last of the statistics registers (8.18), all cleared by reading.
pub(super) const STATISTICS_START: usize = 0x4000;
pub(super) const STATISTICS_END: usize = 0x4130;
pub(super) const STATISTICS: std::ops::Range<usize> = STATISTICS_START..STATISTICS_END;
pub(super) mod stat {
    pub(crate) const MPC: usize = 0x4010;
    pub(crate) const PRC64: usize = 0x405C;
    pub(crate) const GPRC: usize = 0x4074;
    pub(crate) const BPRC: usize = 0x4078;
    pub(crate) const MPRC: usize = 0x407C;
    pub(crate) const GPTC: usize = 0x4080;
    pub(crate) const GORCL: usize = 0x4088;
    pub(crate) const GOTCL: usize = 0x4090;
    pub(crate) const RNBC: usize = 0x40A0;
    pub(crate) const ROC: usize = 0x40AC;
    pub(crate) const TORL: usize = 0x40C0;
    pub(crate) const TOTL: usize = 0x40C8;
    pub(crate) const TPR: usize = 0x40D0;
    pub(crate) const TPT: usize = 0x40D4;
    pub(crate) const PTC64: usize = 0x40D8;
    pub(crate) const MPTC: usize = 0x40F0;
    pub(crate) const BPTC: usize = 0x40F4;
    /// The 64-bit ones, by their low halves.
    pub(crate) const WIDE: [usize; 4] = [GORCL, GOTCL, TORL, TOTL];
}

/// Receive Checksum Control.
pub(super) const RXCSUM: usize = 0x5000;
pub(super) mod rxcsum {
    pub(crate) const IPOFLD: u32 = 1 << 8;
    pub(crate) const TUOFLD: u32 = 1 << 9;
    /// The descriptor carries the RSS hash in place of the packet checksum.
    pub(crate) const PCSD: u32 = 1 << 13;
}
/// Receive Long Packet Maximum Length.
pub(super) const RLPML: usize = 0x5004;
/// Multicast Table Array: 128 registers.
pub(super) const MTA: usize = 0x5200;
/// Receive Address 0 to 15, eight bytes each; 16 to 23 are at `RA2`.
pub(super) const RA: usize = 0x5400;
pub(super) const RA2: usize = 0x54E0;
/// Receive Address High: address valid.
pub(super) const RAH_AV: u32 = 1 << 31;
/// VLAN Filter Table Array: 128 registers.
pub(super) const VFTA: usize = 0x5600;
/// Multiple Receive Queues Command.
pub(super) const MRQC: usize = 0x5818;
pub(super) mod mrqc {
    /// Bits 2:0: RSS over several queues.
    pub(crate) const RSS: u32 = 2;
    pub(crate) const TCP_IPV4: u32 = 1 << 16;
    pub(crate) const IPV4: u32 = 1 << 17;
    pub(crate) const IPV6: u32 = 1 << 20;
    pub(crate) const TCP_IPV6: u32 = 1 << 21;
    pub(crate) const UDP_IPV4: u32 = 1 << 22;
    pub(crate) const UDP_IPV6: u32 = 1 << 23;
}
/// Redirection Table: 128 entries, four a register.
pub(super) const RETA: usize = 0x5C00;
/// RSS Random Key: ten registers.
pub(super) const RSSRK: usize = 0x5C80;

/// The registers of receive queue 0; each queue has 0x40 bytes.
pub(super) const RX_QUEUES: usize = 0xC000;
/// The registers of transmit queue 0.
pub(super) const TX_QUEUES: usize = 0xE000;
/// Queues of the device.
pub(super) const QUEUES: usize = 16;
/// Offsets within a queue's registers, the same for receive and transmit.
pub(super) mod queue {
    pub(crate) const BAL: usize = 0x00;
    pub(crate) const BAH: usize = 0x04;
    pub(crate) const LEN: usize = 0x08;
    /// Receive only: Split and Replication Receive Control.
    pub(crate) const SRRCTL: usize = 0x0C;
    pub(crate) const HEAD: usize = 0x10;
    pub(crate) const TAIL: usize = 0x18;
    pub(crate) const DCTL: usize = 0x28;
    /// Receive only: frames dropped for want of a descriptor, cleared by reading.
    pub(crate) const RQDPC: usize = 0x30;
    /// Transmit only: where the head is written back to.
    pub(crate) const WBAL: usize = 0x38;
    pub(crate) const WBAH: usize = 0x3C;
}
/// RXDCTL and TXDCTL: queue enable.
pub(super) const DCTL_ENABLE: u32 = 1 << 25;
/// What the driver wants of the enable bit, in a bit that the device does not have.
pub(super) const DCTL_WISH: u32 = 1 << 30;
pub(super) mod srrctl {
    /// Bits 27:25: descriptor type; 1 is "advanced, one buffer".
    pub(crate) const DESCTYPE_SHIFT: u32 = 25;
    /// Drop when the queue has no descriptors, rather than hold up all queues.
    pub(crate) const DROP_EN: u32 = 1 << 31;
}

/// The register of receive queue `q` at `at` within the queue's registers.
pub(super) const fn rx(q: usize, at: usize) -> usize {
    RX_QUEUES + 0x40 * q + at
}

/// The register of transmit queue `q` at `at` within the queue's registers.
pub(super) const fn tx(q: usize, at: usize) -> usize {
    TX_QUEUES + 0x40 * q + at
}

/// The one offset of a register that has several (8.1.2.2): older devices had queues 0 to 3 and the filter tables
/// elsewhere, and the 82576 still answers there.
pub(super) const fn canonical(offset: usize) -> usize {
    match offset {
        0x0040..0x00C0 => offset - 0x0040 + RA,
        0x00C0 => ICR,
        0x00C8 => ICS,
        0x00D0 => IMS,
        0x00D8 => IMC,
        0x00E0 => IAM,
        0x0200..0x0400 => offset - 0x0200 + MTA,
        0x0600..0x0800 => offset - 0x0600 + VFTA,
        0x2800..0x2C00 => old_queue(offset - 0x2800, RX_QUEUES),
        0x3800..0x3C00 => old_queue(offset - 0x3800, TX_QUEUES),
        _ => offset,
    }
}

const fn old_queue(within: usize, base: usize) -> usize {
    base + 0x40 * (within / 0x100) + within % 0x40
}
