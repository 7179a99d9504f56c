//! Which frames the device lets in: by address and by VLAN.

use spinwake::mmio::Bar;
use spinwake::port::MacAddr;

use super::model::Model;
use super::regs::{self, RAH_AV, rctl};

/// Words of MTA and VFTA.
const TABLE_WORDS: usize = 128;

/// What was asked for; survives stop and start.
#[derive(Debug, Default)]
pub(super) struct Filters {
    pub(super) promiscuous: bool,
    pub(super) multicast: Vec<MacAddr>,
    pub(super) vlans: Option<Vec<u16>>,
}

impl Filters {
    /// The bits of RCTL that turn them on.
    pub(super) fn rctl(&self) -> u32 {
        let mut bits = rctl::BAM;
        if self.promiscuous {
            bits |= rctl::UPE | rctl::MPE;
        }
        if self.vlans.is_some() {
            bits |= rctl::VFE;
        }
        bits
    }

    /// Writes every table.
    pub(super) fn write(&self, bar: &Bar, model: &Model, mac: MacAddr) {
        write_address(bar, 0, Some(mac));
        self.write_multicast(bar, model);
        self.write_vlans(bar);
        for word in 0..TABLE_WORDS {
            bar.write(regs::uta(word), 0);
        }
    }

    /// As many groups as the address table has room for go there, and match exactly; the others share 4,096 hash bits.
    pub(super) fn write_multicast(&self, bar: &Bar, model: &Model) {
        let exact = exact_multicast(model).min(self.multicast.len());
        let (exact, hashed) = self.multicast.split_at(exact);
        for entry in 1..model.addresses {
            write_address(bar, entry, exact.get(entry - 1).copied());
        }
        let mut table = [0; TABLE_WORDS];
        for group in hashed {
            let hash = multicast_hash(*group);
            table[hash / 32] |= 1 << (hash % 32);
        }
        for (word, bits) in table.into_iter().enumerate() {
            bar.write(regs::mta(word), bits);
        }
    }

    /// One bit a VLAN id. Frames without a tag always pass.
    pub(super) fn write_vlans(&self, bar: &Bar) {
        let mut table = [0; TABLE_WORDS];
        for id in self.vlans.iter().flatten() {
            let id = usize::from(id & 0xfff);
            table[id / 32] |= 1 << (id % 32);
        }
        for (word, bits) in table.into_iter().enumerate() {
            bar.write(regs::vfta(word), bits);
        }
    }
}

/// Groups that the address table holds next to the port's own address.
pub(super) fn exact_multicast(model: &Model) -> usize {
    model.addresses - 1
}

fn write_address(bar: &Bar, entry: usize, mac: Option<MacAddr>) {
    // Invalid first, so that no mixture of two addresses is ever valid.
    bar.write(regs::rah(entry), 0);
    let Some(MacAddr([a, b, c, d, e, f])) = mac else { return };
    bar.write(regs::ral(entry), u32::from_le_bytes([a, b, c, d]));
    bar.write(regs::rah(entry), RAH_AV | u32::from(e) | u32::from(f) << 8);
}

/// The bit of MTA for an address with RCTL.MO = 0: its bits 47:36, the last byte's first.
fn multicast_hash(MacAddr([.., e, f]): MacAddr) -> usize {
    (usize::from(f) << 8 | usize::from(e)) >> 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_takes_the_upper_twelve_bits_of_the_last_two_bytes() {
        assert_eq!(multicast_hash(MacAddr([0x01, 0, 0x5e, 0, 0x12, 0x34])), 0x341);
        assert_eq!(multicast_hash(MacAddr::BROADCAST), 0xfff);
    }
}
