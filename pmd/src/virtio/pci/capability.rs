//! Where a device keeps its structures: the vendor capabilities of its configuration space (virtio 1.2, 4.1.4).
//!
//! A device may offer one structure at several places; the first that lies in a BAR that it has is used (4.1.4.1). What
//! is refused, by name: a device without the modern structures, and places that leave their BAR or are out of line.

use std::collections::HashMap;
use std::sync::Arc;

use spinwake::device::Device;
use spinwake::mmio::{Bar, Width};
use spinwake::pci::{CapabilityKind, ConfigSpace, cap};
use spinwake::port::PortError;

/// Bytes of configuration space with standard capabilities.
const CONFIG_BYTES: usize = 256;
/// struct virtio_pci_cap, and the one of notifications with its multiplier.
const CAP_LEN: u8 = 16;
const NOTIFY_CAP_LEN: u8 = 20;
/// Bytes of struct virtio_pci_common_cfg up to and with queue_device: what every version of the specification has.
const COMMON_LEN: usize = 0x38;

/// What a capability describes (4.1.4, cfg_type).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Structure {
    Common = 1,
    Notify = 2,
    Isr = 3,
    Device = 4,
}

impl Structure {
    const fn name(self) -> &'static str {
        match self {
            Self::Common => "common configuration",
            Self::Notify => "notification",
            Self::Isr => "ISR status",
            Self::Device => "device configuration",
        }
    }

    /// Bytes that the driver needs of it at least, and what its offset must be a multiple of.
    const fn needs(self) -> (usize, usize) {
        match self {
            Self::Common => (COMMON_LEN, 4),
            Self::Notify => (2, 2),
            Self::Isr => (1, 1),
            // The address is its first field.
            Self::Device => (8, 4),
        }
    }
}

/// A structure inside a BAR: every access to it is checked against its length.
#[derive(Debug, Clone)]
pub(super) struct Place {
    bar: Arc<Bar>,
    offset: usize,
    len: usize,
}

impl Place {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Reads `width` at byte `at`; all ones where the structure has no such bytes.
    pub(super) fn read(&self, at: usize, width: Width) -> u64 {
        let inside = at + width.bytes() <= self.len;
        if inside { self.bar.read_at(self.offset + at, width) } else { u64::MAX >> (64 - 8 * width.bytes()) }
    }

    /// Writes the low `width` of `value` at byte `at`, where the structure has such bytes.
    pub(super) fn write(&self, at: usize, width: Width, value: u64) {
        if at + width.bytes() <= self.len {
            self.bar.write_at(self.offset + at, width, value);
        }
    }

    /// The BAR, and the offset in it of the 16 bits at byte `at`; `None` outside of the structure, or out of line.
    pub(super) fn word(&self, at: usize) -> Option<(Arc<Bar>, usize)> {
        let inside = at.checked_add(2)? <= self.len && at.is_multiple_of(2);
        inside.then(|| (self.bar.clone(), self.offset + at))
    }
}

/// Where everything is.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) common: Place,
    pub(super) notify: Place,
    /// Bytes from the doorbell of one notification offset to the next (4.1.4.4).
    pub(super) notify_multiplier: usize,
    pub(super) isr: Place,
    pub(super) device: Place,
}

/// One capability, as the device wrote it.
#[derive(Debug, Clone, Copy)]
struct Raw {
    structure: u8,
    bar: usize,
    offset: u32,
    len: u32,
    multiplier: u32,
}

impl Layout {
    /// Reads the capabilities of `device`.
    pub(super) fn find(device: &dyn Device) -> Result<Self, PortError> {
        let unsupported = |why: String| PortError::Unsupported { port: device.name().into(), why };
        let mut bytes = vec![0; CONFIG_BYTES];
        device.config_read(0, &mut bytes)?;
        let raw = read(&ConfigSpace::new(bytes));
        if raw.iter().all(|raw| raw.structure != Structure::Common as u8) {
            return Err(unsupported(
                "it offers virtio's legacy interface only, which this driver does not speak; have it offer the modern one \
                 (QEMU: disable-modern=off)"
                    .into(),
            ));
        }
        let mut bars = HashMap::new();
        let (notify, notify_multiplier) = place(device, &mut bars, &raw, Structure::Notify)?;
        Ok(Self {
            common: place(device, &mut bars, &raw, Structure::Common)?.0,
            notify,
            notify_multiplier,
            isr: place(device, &mut bars, &raw, Structure::Isr)?.0,
            device: place(device, &mut bars, &raw, Structure::Device)?.0,
        })
    }
}

/// All capabilities that are whole.
fn read(space: &ConfigSpace) -> Vec<Raw> {
    let vendor = |c: &spinwake::pci::Capability| c.kind == CapabilityKind::Standard && c.id == cap::VENDOR;
    let whole = |offset: usize| {
        let (len, structure) = (space.u8(offset + 2)?, space.u8(offset + 3)?);
        let least = if structure == Structure::Notify as u8 { NOTIFY_CAP_LEN } else { CAP_LEN };
        let multiplier = if least == NOTIFY_CAP_LEN { space.u32(offset + 16)? } else { 0 };
        (len >= least).then_some(Raw {
            structure,
            bar: space.u8(offset + 4)?.into(),
            offset: space.u32(offset + 8)?,
            len: space.u32(offset + 12)?,
            multiplier,
        })
    };
    space.capabilities().iter().filter(|c| vendor(c)).filter_map(|c| whole(c.offset.into())).collect()
}

/// The first place of `structure` that can be used, and its multiplier.
fn place(
    device: &dyn Device,
    bars: &mut HashMap<usize, Arc<Bar>>,
    raw: &[Raw],
    structure: Structure,
) -> Result<(Place, usize), PortError> {
    let mut why = "it has no capability for that".to_owned();
    // Values of `bar` above 5 are reserved and to be ignored.
    for raw in raw.iter().filter(|raw| raw.structure == structure as u8 && raw.bar <= 5) {
        let bar = match bars.get(&raw.bar) {
            Some(bar) => bar.clone(),
            None => match device.bar(raw.bar) {
                Ok(bar) => bars.entry(raw.bar).or_insert(Arc::new(bar)).clone(),
                Err(error) => {
                    why = error.to_string();
                    continue;
                }
            },
        };
        match check(raw, structure, bar.len()) {
            Ok((offset, len)) => return Ok((Place { bar, offset, len }, raw.multiplier as usize)),
            Err(error) => why = error,
        }
    }
    let why = format!("its {} structure cannot be used: {why}; the device is broken", structure.name());
    Err(PortError::Unsupported { port: device.name().into(), why })
}

/// Offset and length of a structure in a BAR of `bar_len` bytes.
fn check(raw: &Raw, structure: Structure, bar_len: usize) -> Result<(usize, usize), String> {
    let (offset, len) = (raw.offset as usize, raw.len as usize);
    let (least, align) = structure.needs();
    if len < least {
        return Err(format!("it has {len:#x} bytes, and {least:#x} are needed"));
    }
    if !offset.is_multiple_of(align) {
        return Err(format!("it begins at {offset:#x}, which is no multiple of {align}"));
    }
    if offset.checked_add(len).is_none_or(|end| end > bar_len) {
        return Err(format!("{len:#x} bytes at {offset:#x} leave BAR {} of {bar_len:#x} bytes", raw.bar));
    }
    let multiplier = raw.multiplier;
    if multiplier != 0 && (!multiplier.is_power_of_two() || multiplier == 1) {
        return Err(format!("its multiplier is {multiplier}, not an even power of two"));
    }
    Ok((offset, len))
}
