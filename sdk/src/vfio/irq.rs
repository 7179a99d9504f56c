//! A device's interrupts: which kinds it has, which one is on.

use std::fs;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::file::DeviceFile;
use crate::device::{DeviceError, Notices};
use crate::irq::{IrqKind, Vector};
use crate::sys::vfio::{self, IrqIndex};

const CALL: &str = "VFIO_DEVICE_SET_IRQS";

/// The interrupts of one device. One kind is on at a time: the kernel refuses a second.
#[derive(Debug)]
pub(super) struct Interrupts {
    intx: usize,
    msi: usize,
    msix: usize,
    /// The number of its line, by which the kernel's own users of it can be found.
    line: Option<u32>,
    on: Mutex<Option<IrqKind>>,
}

impl Interrupts {
    /// Asks which interrupts the device has. All are off.
    pub(super) fn of(file: &DeviceFile, line: Option<u32>) -> Self {
        // An index that the device does not have is an error or zero, as the kernel's version has it. The upper bounds
        // are those of the PCI specifications.
        let count = |index, most| vfio::irq_count(file.fd(), index).map_or(0, |n| n.min(most) as usize);
        Self {
            intx: count(IrqIndex::Intx, 1),
            msi: count(IrqIndex::Msi, 32),
            msix: count(IrqIndex::Msix, 2048),
            line,
            on: Mutex::new(None),
        }
    }

    pub(super) fn count(&self, kind: IrqKind) -> usize {
        match kind {
            IrqKind::Intx => self.intx,
            IrqKind::Msi => self.msi,
            IrqKind::Msix => self.msix,
        }
    }

    /// Turns `kind` on and everything else off.
    pub(super) fn enable(
        &self,
        file: &DeviceFile,
        kind: IrqKind,
        vectors: &[BorrowedFd<'_>],
    ) -> Result<(), DeviceError> {
        let most = self.count(kind);
        if vectors.len() > most {
            let what = format!("{} {kind} vectors: it has {most}", vectors.len());
            return Err(file.missing(what));
        }
        let mut on = self.on();
        Self::turn_off(file, &mut on)?;
        if vectors.is_empty() {
            return Ok(());
        }
        let given = vfio::irqs_on(file.fd(), index(kind), vectors).map_err(|e| {
            let hint = match (kind, e.raw_os_error()) {
                (IrqKind::Intx, Some(EBUSY)) => self.shared_line(Path::new("/proc/interrupts")),
                _ => String::new(),
            };
            file.failed(CALL, e, hint)
        })?;
        if given > 0 {
            let what = format!("{} {kind} vectors to give now: the kernel has {given}", vectors.len());
            return Err(file.missing(what));
        }
        *on = Some(kind);
        Ok(())
    }

    /// Turns whatever is on off.
    pub(super) fn disable(&self, file: &DeviceFile) -> Result<(), DeviceError> {
        Self::turn_off(file, &mut self.on())
    }

    /// Lets the line fire again.
    pub(super) fn unmask(&self, file: &DeviceFile) -> Result<(), DeviceError> {
        match *self.on() {
            Some(IrqKind::Intx) => vfio::irq_unmask(file.fd(), IrqIndex::Intx).map_err(|e| file.failed(CALL, e, "")),
            Some(_) => Ok(()),
            None => Err(file.missing("interrupt to unmask: none is on")),
        }
    }

    /// Lets the kernel signal vector `vector` of the kind that is on, as if it had fired.
    pub(super) fn trigger(&self, file: &DeviceFile, vector: usize) -> Result<(), DeviceError> {
        let on = self.on();
        let Some((kind, number)) = on.zip(u32::try_from(vector).ok()).filter(|(kind, _)| vector < self.count(*kind))
        else {
            return Err(file.missing(format!("vector {vector} that is on")));
        };
        vfio::irq_trigger(file.fd(), index(kind), number).map_err(|e| file.failed(CALL, e, ""))
    }

    fn turn_off(file: &DeviceFile, on: &mut Option<IrqKind>) -> Result<(), DeviceError> {
        if let Some(kind) = *on {
            vfio::irqs_off(file.fd(), index(kind)).map_err(|e| file.failed(CALL, e, ""))?;
            *on = None;
        }
        Ok(())
    }

    fn on(&self) -> MutexGuard<'_, Option<IrqKind>> {
        self.on.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the line was refused: the kernel shares it only with devices that can mask their own interrupt.
    fn shared_line(&self, interrupts: &Path) -> String {
        let table = fs::read_to_string(interrupts).unwrap_or_default();
        let users = self.line.and_then(|line| users_of(&table, line));
        format!(
            "; its interrupt line is shared{} and the device cannot mask it alone; use MSI or MSI-X, or move the device to \
             another slot",
            users.map(|users| format!(" (in /proc/interrupts: {users})")).unwrap_or_default()
        )
    }
}

/// Sets up the bus's notices, where the device offers any.
pub(super) fn notices(file: &DeviceFile) -> std::io::Result<Option<Notices>> {
    let offered = |index| vfio::irq_count(file.fd(), index).is_ok_and(|n| n > 0);
    let (removal, error) = (offered(IrqIndex::Req), offered(IrqIndex::Err));
    if !removal && !error {
        return Ok(None);
    }
    let notices = Notices { removal: Vector::new()?, error: Vector::new()? };
    for (offered, index, vector) in [(removal, IrqIndex::Req, &notices.removal), (error, IrqIndex::Err, &notices.error)]
    {
        if offered {
            vfio::irqs_on(file.fd(), index, &[std::os::fd::AsFd::as_fd(vector)])?;
        }
    }
    Ok(Some(notices))
}

/// `EBUSY` (asm-generic/errno-base.h).
const EBUSY: i32 = 16;

fn index(kind: IrqKind) -> IrqIndex {
    match kind {
        IrqKind::Intx => IrqIndex::Intx,
        IrqKind::Msi => IrqIndex::Msi,
        IrqKind::Msix => IrqIndex::Msix,
    }
}

/// What `/proc/interrupts` says of a line, after its number and counts: `IO-APIC 16-fasteoi ehci_hcd:usb1`.
fn users_of(table: &str, line: u32) -> Option<String> {
    let row = table.lines().find_map(|row| row.trim_start().strip_prefix(&format!("{line}:")))?;
    let words: Vec<_> = row.split_whitespace().skip_while(|word| word.bytes().all(|b| b.is_ascii_digit())).collect();
    (!words.is_empty()).then(|| words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_of_a_shared_line_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("interrupts");
        fs::write(
            &path,
            "      CPU0  CPU1\n  1:  0  9  IO-APIC  1-edge  i8042\n 16:  5  0  IO-APIC  16-fasteoi  usb1, snd\n",
        )
        .unwrap();
        let irqs = |line| Interrupts { intx: 1, msi: 0, msix: 0, line, on: Mutex::new(None) };
        let text = irqs(Some(16)).shared_line(&path);
        assert!(text.contains("IO-APIC 16-fasteoi usb1, snd") && text.contains("use MSI"), "{text}");
        for line in [Some(17), Some(6), None] {
            assert!(irqs(line).shared_line(&path).contains("line is shared and the device"));
        }
    }
}
