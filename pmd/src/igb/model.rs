//! Which devices the driver knows, and what differs between them.

use super::regs;
use crate::vectors::Side;

/// Intel's vendor number.
const INTEL: u16 = 0x8086;

/// How the entries of IVAR are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IvarLayout {
    /// Register n holds receive and transmit queue n, then receive and transmit queue n + 8 (82576).
    Columns,
    /// Register n holds receive and transmit queue 2n, then receive and transmit queue 2n + 1 (I350 and later).
    Pairs,
}

impl IvarLayout {
    /// The IVAR register and the bit at which the entry of queue `q` starts.
    pub(super) const fn entry(self, side: Side, q: usize) -> (usize, u32) {
        let (register, low) = match self {
            Self::Columns => (q % 8, q < 8),
            Self::Pairs => (q / 2, q.is_multiple_of(2)),
        };
        let shift = if low { 0 } else { 16 };
        match side {
            Side::Rx => (register, shift),
            Side::Tx => (register, shift + 8),
        }
    }
}

/// One family of controllers.
#[derive(Debug)]
pub struct Model {
    /// Queues each way.
    pub queues: u16,
    /// Entries of the receive address table; the first is the port's own address.
    pub addresses: usize,
    /// Registers EITR.
    pub vectors: usize,
    /// Layout of IVAR.
    pub ivar: IvarLayout,
}

const I82576: Model = Model { queues: 16, addresses: 24, vectors: 25, ivar: IvarLayout::Columns };
const I350: Model = Model { queues: 8, addresses: 32, vectors: 25, ivar: IvarLayout::Pairs };
const I210: Model = Model { queues: 4, addresses: 16, vectors: 5, ivar: IvarLayout::Pairs };
const I211: Model = Model { queues: 2, addresses: 16, vectors: 5, ivar: IvarLayout::Pairs };
const _: () = assert!(I82576.queues as usize <= regs::MAX_QUEUES && I82576.vectors <= regs::MAX_VECTORS);

/// A device that the driver drives.
#[derive(Debug)]
pub struct IdRow {
    /// PCI vendor number.
    pub vendor: u16,
    /// PCI device number.
    pub device: u16,
    /// What people call it.
    pub name: &'static str,
    /// Whether the driver has run on it; a row that says no follows the datasheet and is not yet run on hardware.
    pub tested: bool,
    /// What it can do.
    pub model: Model,
}

const fn row(device: u16, name: &'static str, tested: bool, model: Model) -> IdRow {
    IdRow { vendor: INTEL, device, name, tested, model }
}

/// Every device that the driver drives: those with copper ports. Fibre and backplane ones need their PCS set up, which
/// the driver does not do.
pub const IDS: &[IdRow] = &[
    // Run on QEMU's model of it (`-device igb`) and on the embedded one.
    row(0x10C9, "82576", true, I82576),
    row(0x10E8, "82576 quad port", false, I82576),
    row(0x1526, "82576 quad port ET2", false, I82576),
    row(0x150A, "82576NS", false, I82576),
    row(0x1521, "I350", false, I350),
    row(0x1533, "I210", false, I210),
    row(0x157B, "I210 without flash", false, I210),
    row(0x1539, "I211", false, I211),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique() {
        for (i, a) in IDS.iter().enumerate() {
            assert!(IDS[i + 1..].iter().all(|b| (a.vendor, a.device) != (b.vendor, b.device)), "{a:?}");
        }
    }

    #[test]
    fn ivar_entries_of_one_layout_do_not_overlap() {
        for row in IDS {
            let queues = usize::from(row.model.queues);
            let entries = |side| (0..queues).map(move |q| row.model.ivar.entry(side, q));
            let mut seen: Vec<_> = entries(Side::Rx).chain(entries(Side::Tx)).collect();
            assert!(seen.iter().all(|&(register, shift)| register < 8 && shift <= 24));
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), 2 * queues, "{}", row.name);
        }
    }
}
