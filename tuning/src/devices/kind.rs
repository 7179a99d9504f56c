//! What a device is, in a word or two.

use spinwake::pci::Class;

/// The kind of device that a class stands for (PCI Code and ID Assignment Specification, chapter 1).
pub(super) fn kind(class: Class) -> &'static str {
    match (class.base(), class.sub()) {
        (0x01, 0x08) => "NVMe disk",
        (0x01, _) => "storage",
        (0x02, 0x00) => "Ethernet",
        (0x02, 0x07) => "InfiniBand",
        (0x02, _) => "network",
        (0x03, _) => "graphics",
        (0x04, _) => "multimedia",
        (0x05, _) => "memory",
        (0x06, 0x00) => "host bridge",
        (0x06, 0x04) => "PCI bridge",
        (0x06, _) => "bridge",
        (0x07, _) => "serial port",
        (0x08, _) => "system",
        (0x09, _) => "input",
        (0x0c, 0x03) => "USB",
        (0x0c, 0x05) => "SMBus",
        (0x0c, _) => "serial bus",
        (0x0d, _) => "wireless",
        (0x10, _) => "encryption",
        (0x11, _) => "signals",
        (0x12, _) => "accelerator",
        _ => "other",
    }
}
