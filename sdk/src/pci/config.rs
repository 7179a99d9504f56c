//! Configuration space and the capability lists in it.

use std::fmt;

use super::{Class, DeviceId};

/// Capability numbers that drivers ask for (PCI Local Bus 3.0 appendix H; PCI Express Base 5.0 section 7.9).
pub mod cap {
    /// Power Management.
    pub const PM: u16 = 0x01;
    /// Message Signalled Interrupts.
    pub const MSI: u16 = 0x05;
    /// Vendor-specific: where virtio describes its structures.
    pub const VENDOR: u16 = 0x09;
    /// PCI Express.
    pub const EXPRESS: u16 = 0x10;
    /// MSI-X.
    pub const MSIX: u16 = 0x11;
    /// Access Control Services, an extended capability.
    pub const EXT_ACS: u16 = 0x0d;
    /// Single Root I/O Virtualization, an extended capability.
    pub const EXT_SRIOV: u16 = 0x10;
}

/// The command register (PCI Local Bus 3.0 section 6.2.2).
pub(crate) mod command {
    pub(crate) const OFFSET: u16 = 0x04;
    pub(crate) const MEMORY: u16 = 1 << 1;
    pub(crate) const BUS_MASTER: u16 = 1 << 2;
    pub(crate) const INTX_DISABLE: u16 = 1 << 10;
}

/// Which of the two capability lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CapabilityKind {
    /// The list in the first 256 bytes.
    Standard,
    /// The list from byte 256 on, which PCI Express devices have.
    Extended,
}

/// One entry of a capability list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capability {
    /// In which list; the numbers of the two mean different things.
    pub kind: CapabilityKind,
    /// What it is: see [`cap`].
    pub id: u16,
    /// Byte offset of its header in configuration space.
    pub offset: u16,
}

/// A copy of a function's configuration space: 64 bytes (what an ordinary user may read), 256, or 4096.
#[derive(Clone, PartialEq, Eq)]
pub struct ConfigSpace {
    bytes: Vec<u8>,
}

impl ConfigSpace {
    /// The space that reads as `bytes`; what is beyond them reads as `None`.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes }
    }

    /// Bytes that could be read.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing could be read.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The byte at `offset`.
    pub fn u8(&self, offset: usize) -> Option<u8> {
        self.bytes.get(offset).copied()
    }

    /// The little-endian 16 bits at `offset`.
    pub fn u16(&self, offset: usize) -> Option<u16> {
        self.array(offset).map(u16::from_le_bytes)
    }

    /// The little-endian 32 bits at `offset`.
    pub fn u32(&self, offset: usize) -> Option<u32> {
        self.array(offset).map(u32::from_le_bytes)
    }

    /// Vendor and device, offsets 0x00 and 0x02. `None` for a function that does not answer (all ones).
    pub fn id(&self) -> Option<DeviceId> {
        let id = DeviceId { vendor: self.u16(0)?, device: self.u16(2)? };
        (id.vendor != 0xffff).then_some(id)
    }

    /// The class, offset 0x09.
    pub fn class(&self) -> Option<Class> {
        self.u32(8).map(|word| Class(word >> 8))
    }

    /// All capabilities, the standard list first. A list that points outside the space, or at itself, ends there.
    pub fn capabilities(&self) -> Vec<Capability> {
        let mut found = self.standard();
        found.extend(self.extended());
        found
    }

    /// The first capability `id` of that kind.
    pub fn capability(&self, kind: CapabilityKind, id: u16) -> Option<Capability> {
        self.capabilities().into_iter().find(|c| c.kind == kind && c.id == id)
    }

    /// PCI Local Bus 3.0 section 6.7: status bit 4, then a list from the pointer at 0x34.
    fn standard(&self) -> Vec<Capability> {
        const HAS_LIST: u16 = 1 << 4;
        // An entry takes at least four of the 192 bytes after the header, so more steps than that are a loop.
        const LONGEST: usize = (256 - 64) / 4;
        let mut found = Vec::new();
        if self.u16(6).is_none_or(|status| status & HAS_LIST == 0) {
            return found;
        }
        let mut next = self.u8(0x34);
        while let Some(pointer) = next
            && found.len() < LONGEST
        {
            // The two low bits are reserved and to be masked.
            let offset = u16::from(pointer & !3);
            let (Some(id), true) = (self.u8(offset.into()), offset >= 0x40) else { break };
            if id == 0xff || found.iter().any(|c: &Capability| c.offset == offset) {
                break;
            }
            found.push(Capability { kind: CapabilityKind::Standard, id: id.into(), offset });
            next = self.u8(usize::from(offset) + 1);
        }
        found
    }

    /// PCI Express Base 5.0 section 7.6.3: a list from 0x100, next pointer in the upper twelve bits.
    fn extended(&self) -> Vec<Capability> {
        const LONGEST: usize = (4096 - 256) / 8;
        let mut found = Vec::new();
        let mut offset = 0x100u16;
        while let Some(header) = self.u32(offset.into())
            && found.len() < LONGEST
        {
            if header == 0 || header == u32::MAX || found.iter().any(|c: &Capability| c.offset == offset) {
                break;
            }
            found.push(Capability { kind: CapabilityKind::Extended, id: header as u16, offset });
            offset = (header >> 20) as u16 & !3;
            if offset < 0x100 {
                break;
            }
        }
        found
    }

    fn array<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.bytes.get(offset..offset.checked_add(N)?)?.try_into().ok()
    }
}

impl fmt::Debug for ConfigSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigSpace").field("len", &self.bytes.len()).field("id", &self.id()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A space with these standard `(offset, id, next)` and extended `(offset, id, next)` entries.
    fn space(len: usize, standard: &[(u8, u8, u8)], extended: &[(u16, u16, u16)]) -> ConfigSpace {
        let mut bytes = vec![0; len];
        bytes[..4].copy_from_slice(&[0x86, 0x80, 0xc9, 0x10]);
        bytes[8..12].copy_from_slice(&[0x01, 0x00, 0x00, 0x02]);
        bytes[6] = 0x10;
        bytes[0x34] = standard.first().map_or(0, |c| c.0);
        for &(at, id, next) in standard {
            bytes[usize::from(at)] = id;
            bytes[usize::from(at) + 1] = next;
        }
        for &(at, id, next) in extended {
            let header = u32::from(id) | 1 << 16 | u32::from(next) << 20;
            bytes[usize::from(at)..usize::from(at) + 4].copy_from_slice(&header.to_le_bytes());
        }
        ConfigSpace::new(bytes)
    }

    #[test]
    fn both_lists_are_walked() {
        let space = space(4096, &[(0x40, 0x01, 0x50), (0x50, 0x05, 0)], &[(0x100, 0x0d, 0x160), (0x160, 0x10, 0)]);
        let found: Vec<_> = space.capabilities().iter().map(|c| (c.id, c.offset)).collect();
        assert_eq!(found, [(0x01, 0x40), (0x05, 0x50), (0x0d, 0x100), (0x10, 0x160)]);
        assert_eq!(space.capability(CapabilityKind::Standard, cap::MSI).unwrap().offset, 0x50);
        assert_eq!(space.capability(CapabilityKind::Extended, cap::EXT_SRIOV).unwrap().offset, 0x160);
        assert_eq!(space.capability(CapabilityKind::Standard, cap::MSIX), None);
        assert_eq!(space.id().unwrap().to_string(), "8086:10c9");
        assert!(space.class().unwrap().is_network());
    }

    #[test]
    fn a_list_that_loops_or_leaves_the_space_ends() {
        assert_eq!(space(256, &[(0x40, 1, 0x50), (0x50, 5, 0x40)], &[]).capabilities().len(), 2);
        assert_eq!(space(256, &[(0x40, 1, 0x40)], &[]).capabilities().len(), 1);
        assert_eq!(space(256, &[(0x40, 1, 0x20)], &[]).capabilities().len(), 1);
        assert_eq!(space(64, &[], &[]).capabilities().len(), 0);
        assert_eq!(space(4096, &[], &[(0x100, 1, 0x100)]).capabilities().len(), 1);
        assert_eq!(space(4096, &[], &[(0x100, 1, 0x104), (0x104, 2, 0x100)]).capabilities().len(), 2);
    }

    proptest! {
        #[test]
        fn no_content_hangs_or_panics(bytes in prop::collection::vec(any::<u8>(), 0..4200)) {
            let mut bytes = bytes;
            if let Some(status) = bytes.get_mut(6) {
                *status |= 0x10;
            }
            let space = ConfigSpace::new(bytes);
            prop_assert!(space.capabilities().len() <= 48 + 480);
            let _ = (space.id(), space.class());
        }
    }
}
