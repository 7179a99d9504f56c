//! `vfs`: the virtual functions of a device (SR-IOV).

use std::fmt;
use std::io;
use std::num::ParseIntError;

use clap::ArgAction;
use serde::Serialize;
use spinwake::pci::{Bdf, PciDevice};

use crate::bind::{Lines, Process, Use, unbind, uses, virtual_functions};
use crate::effects::{Effects, hint};
use crate::host::Host;
use crate::output::Report;

/// Lists the virtual functions of a device, or makes it have so many (SR-IOV)
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Its address, as in 0000:01:00.0
    #[arg(value_name = "BDF")]
    pub device: Bdf,

    /// How many it shall have; 0 removes them
    #[arg(value_name = "N", value_parser = count)]
    pub count: Option<u16>,

    /// Even if network interfaces of those that go are up; given twice, even if they are in use otherwise
    #[arg(long, action = ArgAction::Count)]
    pub force: u8,
}

fn count(text: &str) -> Result<u16, String> {
    text.parse().map_err(|error: ParseIntError| format!("{error}; a device has 65535 virtual functions at most"))
}

/// How many virtual functions a device has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Now.
    pub now: u16,
    /// At most.
    pub total: u16,
}

impl Count {
    /// What the device says; `None` when it has no SR-IOV.
    pub fn read(device: &PciDevice) -> Option<Self> {
        let number = |file| std::fs::read_to_string(device.path().join(file)).ok()?.trim().parse().ok();
        Some(Self { now: number("sriov_numvfs")?, total: number("sriov_totalvfs")? })
    }
}

/// Virtual functions could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum VfsError {
    /// No such device.
    #[error("there is no PCI device {bdf}; `spinwake-tune devices --all` lists them")]
    Missing {
        /// The address.
        bdf: Bdf,
    },
    /// The device has no such thing.
    #[error("{bdf} cannot have virtual functions: {why}")]
    NoSrIov {
        /// The address.
        bdf: Bdf,
        /// More of it.
        why: String,
    },
    /// Too many.
    #[error("{bdf} has {total} virtual functions at most, not {wanted}")]
    TooMany {
        /// The address.
        bdf: Bdf,
        /// What was asked for.
        wanted: u16,
        /// What it has at most.
        total: u16,
    },
    /// Those that would go are used.
    #[error(
        "{bdf}: the virtual function {vf} would go, and is in use. Each of these ends like this, or say --force:{uses}"
    )]
    InUse {
        /// The address.
        bdf: Bdf,
        /// The virtual function.
        vf: Bdf,
        /// What for.
        uses: Lines,
    },
    /// Those that would go are used for more than nothing.
    #[error(
        "{bdf}: the virtual function {vf} is in use, and saying --force once is not enough. Say --force --force, and this \
         is lost:{uses}"
    )]
    WouldLose {
        /// The address.
        bdf: Bdf,
        /// The virtual function.
        vf: Bdf,
        /// What for.
        uses: Lines,
    },
    /// A program drives one.
    #[error(
        "{bdf}: the virtual function {vf} is driven by {holder}: the kernel would wait for its end; end it first (`kill {}`)",
        holder.pid
    )]
    Held {
        /// The address.
        bdf: Bdf,
        /// The virtual function.
        vf: Bdf,
        /// Who has it.
        holder: Process,
    },
    /// The kernel refused.
    #[error(
        "{bdf}: {path}: {source}{}; it has {now} virtual functions now; the kernel log says more (`dmesg`)",
        hint(source)
    )]
    Write {
        /// The address.
        bdf: Bdf,
        /// The file.
        path: String,
        /// The meaning of errno.
        source: io::Error,
        /// What it has now.
        now: u16,
    },
}

/// The virtual functions of a device.
#[derive(Debug, Serialize)]
pub struct VirtualFunctions {
    /// Its address.
    pub bdf: String,
    /// How many it had before.
    pub before: u16,
    /// How many it has now, and at most.
    pub count: Count,
    /// The virtual functions.
    pub functions: Vec<super::Device>,
}

/// Lists, makes or removes virtual functions.
///
/// # Errors
///
/// When the device has no SR-IOV, those that would go are in use, or the kernel refuses.
pub fn run(args: &Args, host: &Host) -> Result<VirtualFunctions, VfsError> {
    change(args, host, host)
}

fn change(args: &Args, host: &Host, effects: &dyn Effects) -> Result<VirtualFunctions, VfsError> {
    let bdf = args.device;
    let device = host.sysfs().device(bdf).ok_or(VfsError::Missing { bdf })?;
    let before = Count::read(&device).ok_or_else(|| VfsError::NoSrIov { bdf, why: why_none(&device) })?;
    if let Some(wanted) = args.count.filter(|&wanted| wanted != before.now) {
        if wanted > before.total {
            return Err(VfsError::TooMany { bdf, wanted, total: before.total });
        }
        // The kernel changes their number only by way of none at all.
        for vf in virtual_functions(&device) {
            may_go(host, bdf, vf, args.force)?;
        }
        let path = format!("/sys/bus/pci/devices/{bdf}/sriov_numvfs");
        let steps = if before.now != 0 && wanted != 0 { vec![0, wanted] } else { vec![wanted] };
        for step in steps {
            effects.write(&path, &step.to_string()).map_err(|source| {
                let now = Count::read(&device).map_or(0, |count| count.now);
                VfsError::Write { bdf, path: path.clone(), source, now }
            })?;
        }
    }
    let sysfs = host.sysfs();
    let functions = virtual_functions(&device).into_iter().filter_map(|vf| sysfs.device(vf));
    Ok(VirtualFunctions {
        bdf: bdf.to_string(),
        before: before.now,
        count: Count::read(&device).unwrap_or(before),
        functions: functions.map(|vf| super::Device::read(host, &vf)).collect(),
    })
}

fn why_none(device: &PciDevice) -> String {
    if device.path().join("physfn").exists() {
        return "it is a virtual function itself".into();
    }
    "the device has no SR-IOV, or the firmware or the kernel keeps it off".into()
}

fn may_go(host: &Host, bdf: Bdf, vf: Bdf, force: u8) -> Result<(), VfsError> {
    let Some(device) = host.sysfs().device(vf) else { return Ok(()) };
    if let Some(holder) = unbind::holders(host, &device).into_iter().next() {
        return Err(VfsError::Held { bdf, vf, holder });
    }
    let found = uses(host, &device);
    match force {
        0 if !found.is_empty() => Err(VfsError::InUse { bdf, vf, uses: Lines::ways_out(found) }),
        1 if found.iter().any(Use::is_serious) => Err(VfsError::WouldLose { bdf, vf, uses: Lines::losses(found) }),
        _ => Ok(()),
    }
}

impl Report for VirtualFunctions {}

impl fmt::Display for VirtualFunctions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Count { now, total } = self.count;
        write!(f, "{} has {now} of {total} virtual functions", self.bdf)?;
        if self.before != now {
            write!(f, " (had {})", self.before)?;
        }
        for function in &self.functions {
            let driver = function.driver.as_deref().unwrap_or("no driver");
            let group = function
                .group
                .as_ref()
                .map_or("no IOMMU group".into(), |group| format!("IOMMU group {}", group.number));
            write!(f, "\n  {}  {driver}, {group}", function.bdf)?;
            let remarks: Vec<_> = function.interfaces.iter().map(String::as_str).collect();
            if !remarks.is_empty() {
                write!(f, ", {}", remarks.join(", "))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effects::fake::Fake;

    const BDF: &str = "0000:0a:00.0";

    fn machine() -> Fake {
        let fake = Fake::new();
        fake.device(BDF, "0x020000", Some("igb"), Some(7));
        fake.put(&format!("/sys/bus/pci/devices/{BDF}/sriov_totalvfs"), "7\n");
        fake.put(&format!("/sys/bus/pci/devices/{BDF}/sriov_numvfs"), "0\n");
        fake.put("/proc/net/route", "");
        fake.put("/proc/net/fib_trie", "");
        fake
    }

    fn vfs(fake: &Fake, count: Option<u16>, force: u8) -> Result<String, String> {
        let args = Args { device: BDF.parse().unwrap(), count, force };
        change(&args, fake.host(), fake).map(|report| report.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn they_are_made_listed_changed_and_removed() {
        let fake = machine();
        assert_eq!(vfs(&fake, None, 0).unwrap(), "0000:0a:00.0 has 0 of 7 virtual functions");
        let text = vfs(&fake, Some(2), 0).unwrap();
        assert!(
            text.starts_with(
                "0000:0a:00.0 has 2 of 7 virtual functions (had 0)\n  0000:0a:10.0  igbvf, IOMMU group 50"
            ),
            "{text}"
        );
        assert_eq!(vfs(&fake, None, 0).unwrap().lines().count(), 3);
        // By way of none.
        assert!(vfs(&fake, Some(3), 0).unwrap().starts_with("0000:0a:00.0 has 3 of 7 virtual functions (had 2)"));
        fake.done.borrow_mut().clear();
        vfs(&fake, Some(3), 0).unwrap();
        assert!(fake.done.borrow().is_empty());
        assert_eq!(vfs(&fake, Some(0), 0).unwrap(), "0000:0a:00.0 has 0 of 7 virtual functions (had 3)");
    }

    #[test]
    fn one_in_use_stays() {
        let fake = machine();
        vfs(&fake, Some(1), 0).unwrap();
        fake.put("/sys/bus/pci/devices/0000:0a:10.0/net/eth9/flags", "0x1003");
        let error = vfs(&fake, Some(0), 0).unwrap_err();
        assert!(error.contains("0000:0a:10.0 would go") && error.contains("eth9 is up"), "{error}");
        assert!(vfs(&fake, Some(0), 1).is_ok());
    }

    #[test]
    fn one_that_a_program_drives_stays_whatever_is_said() {
        let fake = machine();
        vfs(&fake, Some(1), 0).unwrap();
        let driver = fake.host().path("/sys/bus/pci/devices/0000:0a:10.0/driver");
        std::fs::remove_file(driver).unwrap();
        fake.link("/sys/bus/pci/devices/0000:0a:10.0/driver", "/sys/bus/pci/drivers/vfio-pci");
        fake.put("/proc/9/comm", "l2fwd");
        fake.link_to("/proc/9/fd/3", "/dev/vfio/50");
        let error = vfs(&fake, Some(0), 2).unwrap_err();
        assert!(error.contains("driven by process 9 (l2fwd)"), "{error}");
    }

    #[test]
    fn what_cannot_be_is_told() {
        let fake = machine();
        assert_eq!(vfs(&fake, Some(8), 0).unwrap_err(), "0000:0a:00.0 has 7 virtual functions at most, not 8");
        std::fs::remove_file(fake.host().path(format!("/sys/bus/pci/devices/{BDF}/sriov_numvfs"))).unwrap();
        assert!(vfs(&fake, None, 0).unwrap_err().contains("the device has no SR-IOV"));
    }
}
