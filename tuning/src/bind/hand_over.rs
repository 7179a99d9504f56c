//! The moves between drivers, and what is remembered of them.

use std::fs;

use spinwake::pci::{Bdf, PciDevice};

use super::{BindError, VFIO, is_user_space};
use crate::effects::Effects;
use crate::host::Host;

/// Binds a device to vfio-pci, and remembers who had it. If vfio-pci does not take it, whoever had it gets it back.
pub(super) fn to_vfio(host: &Host, effects: &dyn Effects, device: &PciDevice) -> Result<(), BindError> {
    let bdf = device.bdf();
    let was = device.driver();
    if was.as_deref() == Some(VFIO) {
        return Ok(());
    }
    let before = device.driver_override().unwrap_or_default();
    // A `bind` that was stopped in the middle left no driver, and the name of the one that was: that stays.
    if let Some(driver) = was.as_deref().filter(|driver| !is_user_space(driver)) {
        remember(effects, bdf, driver)?;
    }
    let moved = take(effects, device, VFIO);
    if device.driver().as_deref() == Some(VFIO) {
        return Ok(());
    }
    // Whatever became of it: as it was, as far as that can be had.
    let _ = write(effects, bdf, &file(bdf, "driver_override"), &format!("{before}\n"));
    if let Some(was) = was {
        restore(host, effects, device, Some(&was));
    }
    forget(effects, bdf);
    let why = match moved {
        // Nothing had been moved yet.
        Err(error) if device.driver().is_some() => return Err(error),
        Err(error) => format!(": {error}"),
        Ok(()) => String::new(),
    };
    Err(BindError::NotTaken {
        bdf,
        wanted: VFIO.into(),
        why,
        now: device.driver().unwrap_or_else(|| "no driver".into()),
    })
}

/// Gives a device back to the driver that had it before, or to the one that the kernel would choose.
pub(super) fn to_kernel(host: &Host, effects: &dyn Effects, device: &PciDevice) -> Result<(), BindError> {
    let bdf = device.bdf();
    // An empty line takes the override away.
    if device.driver_override().is_some() {
        write(effects, bdf, &file(bdf, "driver_override"), "\n")?;
    }
    if device.driver().is_none_or(|driver| is_user_space(&driver)) {
        if device.driver().is_some() {
            write(effects, bdf, &file(bdf, "driver/unbind"), &bdf.to_string())?;
        }
        restore(host, effects, device, remembered(host, bdf).as_deref());
    }
    forget(effects, bdf);
    Ok(())
}

/// Who had the device before it was bound, if that is known.
pub(crate) fn remembered(host: &Host, bdf: Bdf) -> Option<String> {
    // It becomes part of a path.
    host.read(memory(bdf)).filter(|name| !name.is_empty() && !name.contains(['/', '\n']) && !name.starts_with('.'))
}

/// Names the only driver that may have the device, takes it from the one that has it, and lets the kernel look again.
fn take(effects: &dyn Effects, device: &PciDevice, only: &str) -> Result<(), BindError> {
    let bdf = device.bdf();
    write(effects, bdf, &file(bdf, "driver_override"), &format!("{only}\n"))?;
    if device.driver().is_some() {
        write(effects, bdf, &file(bdf, "driver/unbind"), &bdf.to_string())?;
    }
    write(effects, bdf, "/sys/bus/pci/drivers_probe", &bdf.to_string())
}

/// Gives a device that nobody has to `driver`, or to whom the kernel chooses. Whether it worked, the device tells.
fn restore(host: &Host, effects: &dyn Effects, device: &PciDevice, driver: Option<&str>) {
    let name = device.bdf().to_string();
    if let Some(driver) = driver {
        let bind = format!("/sys/bus/pci/drivers/{driver}/bind");
        if !host.has(&bind) {
            // Its module was unloaded meanwhile. That this may fail, the device tells below.
            let _ = effects.call("modprobe", &[driver]);
        }
        if device.driver().is_none() {
            let _ = effects.write(&bind, &name);
        }
    }
    if device.driver().is_none() {
        let _ = effects.write("/sys/bus/pci/drivers_probe", &name);
    }
    if device.driver().is_none()
        && let Ok(alias) = fs::read_to_string(device.path().join("modalias"))
        && effects.call("modprobe", &["-q", alias.trim()]).is_ok()
        && device.driver().is_none()
    {
        let _ = effects.write("/sys/bus/pci/drivers_probe", &name);
    }
}

fn file(bdf: Bdf, name: &str) -> String {
    format!("/sys/bus/pci/devices/{bdf}/{name}")
}

/// Where the earlier driver's name stands. Like the binding itself, it is gone after a reboot.
fn memory(bdf: Bdf) -> String {
    format!("/run/spinwake-tune/drivers/{bdf}")
}

fn remember(effects: &dyn Effects, bdf: Bdf, driver: &str) -> Result<(), BindError> {
    let path = memory(bdf);
    effects.save(&path, &format!("{driver}\n")).map_err(|source| BindError::Write { bdf, path, source })
}

/// A name that stays is overwritten by the next `bind`: no reason to fail.
fn forget(effects: &dyn Effects, bdf: Bdf) {
    let _ = effects.remove(&memory(bdf));
}

fn write(effects: &dyn Effects, bdf: Bdf, path: &str, text: &str) -> Result<(), BindError> {
    effects.write(path, text).map_err(|source| BindError::Write { bdf, path: path.into(), source })
}
