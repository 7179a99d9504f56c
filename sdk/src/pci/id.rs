//! What a device says it is: maker, model, and kind.

use std::fmt;

/// Who made a device and which one it is, from configuration space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceId {
    /// Vendor, offset 0x00.
    pub vendor: u16,
    /// Device, offset 0x02.
    pub device: u16,
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:04x}", self.vendor, self.device)
    }
}

/// What kind of device it is: base class, subclass and programming interface (PCI Code and ID Assignment
/// Specification, chapter 1), as the 24 bits at offset 0x09 of configuration space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Class(pub u32);

impl Class {
    /// The base class: 0x02 is a network controller, 0x06 a bridge.
    pub fn base(self) -> u8 {
        (self.0 >> 16) as u8
    }

    /// The subclass: 0x00 of a network controller is Ethernet.
    pub fn sub(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Whether it is a network controller of any kind.
    pub fn is_network(self) -> bool {
        self.base() == 0x02
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:06x}", self.0)
    }
}
