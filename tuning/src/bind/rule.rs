//! The udev rule that binds a device to vfio-pci again at each start.

use spinwake::pci::{Bdf, PciDevice};

use super::{BindError, VFIO};
use crate::effects::Effects;
use crate::host::Host;

/// Writes the rule. It asks for the device's kind, too: after a card was put in, its address may be another one's.
pub(super) fn write(host: &Host, effects: &dyn Effects, device: &PciDevice) -> Result<(), BindError> {
    let bdf = device.bdf();
    let id = device.id().ok_or(BindError::NoId { bdf })?;
    // The rule comes before the ones that load a device's own driver (80-drivers.rules), and what it runs does, too.
    let text = format!(
        "# Made by spinwake-tune: {bdf} is for programs.\n\
         ACTION==\"add\", SUBSYSTEM==\"pci\", KERNEL==\"{bdf}\", ATTR{{vendor}}==\"{:#06x}\", ATTR{{device}}==\"{:#06x}\", \
         ATTR{{driver_override}}=\"{VFIO}\", RUN+=\"/sbin/modprobe {VFIO}\", \
         RUN+=\"/bin/sh -c 'echo {bdf} > /sys/bus/pci/drivers_probe'\"\n",
        id.vendor, id.device
    );
    let path = path(bdf);
    effects.save(&path, &text).map_err(|source| BindError::Write { bdf, path: path.clone(), source })?;
    reload(host, effects, path)
}

/// Removes the rule, and says whether there was one.
pub(super) fn remove(host: &Host, effects: &dyn Effects, bdf: Bdf) -> Result<Option<String>, BindError> {
    let path = path(bdf);
    // Whoever never asked for a rule needs no right to remove it.
    if !host.has(&path) {
        return Ok(None);
    }
    effects.remove(&path).map_err(|source| BindError::Write { bdf, path: path.clone(), source })?;
    reload(host, effects, path.clone())?;
    Ok(Some(path))
}

/// Where the rule stands.
pub(super) fn path(bdf: Bdf) -> String {
    format!("/etc/udev/rules.d/60-spinwake-bind-{bdf}.rules")
}

/// Lets a running udev read its rules again.
fn reload(host: &Host, effects: &dyn Effects, path: String) -> Result<(), BindError> {
    match host.is_this() {
        true => effects.call("udevadm", &["control", "--reload"]).map_err(|source| BindError::Udev { path, source }),
        false => Ok(()),
    }
}
