//! What this user may do without being root.
//!
//! Kernel documentation: driver-api/vfio; capabilities(7), getrlimit(2).

use std::fs;
use std::os::unix::fs::MetadataExt;

use spinwake::pci::PciDevice;

use super::Check;
use super::facts::Facts;
use super::identity::{self, Identity, Limit, capability};
use super::item::Finding;
use super::power;
use super::seen::Unseen;
use super::workers::Origin;

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("user.devices", devices),
    ("user.memlock", memlock),
    ("user.realtime", realtime),
    ("user.dma_latency", dma_latency),
];

/// A pool of the usual size (8,192 frames, 18 MiB) and the rings of a few ports.
const POOL_MIB: u64 = 20;

/// The user for a command line: the name where there is one that a shell takes as it stands, else the number.
fn user_name(facts: &Facts<'_>, identity: &Identity) -> String {
    let users = facts.host.read("/etc/passwd").unwrap_or_default();
    // passwd(5): name, password, number.
    let name = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(identity.user)).then_some(name)
    });
    let plain = |name: &&str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
    };
    name.filter(plain).map_or_else(|| identity.user.to_string(), str::to_owned)
}

fn devices(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    let bound = facts.bound_devices()?;
    let identity = facts.identity.as_ref().map_err(Clone::clone)?;
    if bound.is_empty() {
        return if identity.can(capability::DAC_OVERRIDE) {
            Ok(Finding::good(format!("{} may open any device", identity.name())))
        } else {
            Err(Unseen::because("no device is bound to vfio-pci, so there is none that this user could open"))
        };
    }
    for device in &bound {
        if let Some(finding) = closed(facts, device)? {
            return Ok(finding);
        }
    }
    Ok(Finding::good(format!("{} may open every device that is bound to vfio-pci", identity.name())))
}

/// What keeps this user from opening a device that VFIO has.
pub(super) fn closed(facts: &Facts<'_>, device: &PciDevice) -> Result<Option<Finding>, Unseen> {
    let identity = facts.identity.as_ref().map_err(Clone::clone)?;
    let bdf = device.bdf();
    let group = device.iommu_group().ok_or_else(|| Unseen::because(format!("{bdf} is in no IOMMU group")))?.number;
    for path in [format!("/dev/vfio/{group}"), "/dev/vfio/vfio".into()] {
        let Ok(node) = fs::metadata(facts.host.path(&path)) else {
            return Ok(Some(
                Finding::broken(format!("{bdf} is bound to VFIO, but there is no {path} here"), "it cannot be opened")
                    .advise(format!(
                        "hand {path} to this container (Kubernetes: by a device plugin; docker: --device {path})"
                    )),
            ));
        };
        if !identity.may_use(node.uid(), node.gid(), node.mode()) {
            let mode = node.mode() & 0o7777;
            let found = format!(
                "{} may not open {path} of {bdf}: it belongs to user {}, group {}, mode {mode:04o}",
                identity.name(),
                node.uid(),
                node.gid()
            );
            let finding = Finding::broken(found, "programs of this user cannot drive it");
            return Ok(Some(finding.run(format!("spinwake-tune permit {bdf} --user {}", user_name(facts, identity)))));
        }
    }
    Ok(None)
}

fn memlock(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    let identity = facts.identity.as_ref().map_err(Clone::clone)?;
    if identity.can(capability::IPC_LOCK) {
        return Ok(Finding::good(format!("{} may lock as much memory as there is (CAP_IPC_LOCK)", identity.name())));
    }
    let bytes = match identity::limit(facts.host, "Max locked memory")? {
        Limit::None => return Ok(Finding::good("memory may be locked without limit")),
        Limit::At(bytes) => bytes,
    };
    let found = format!("{} may lock {} (RLIMIT_MEMLOCK)", identity.name(), amount(bytes));
    if bytes >= POOL_MIB << 20 {
        return Ok(Finding::good(found));
    }
    let cost = format!(
        "VFIO locks all that a device reaches: the usual pool needs {POOL_MIB} MiB, and pci: ports fail to start with less"
    );
    let finding = Finding::broken(found, cost);
    Ok(match facts.bound_devices().unwrap_or_default().first() {
        Some(device) => finding.run(format!(
            "spinwake-tune permit {} --user {} --persist",
            device.bdf(),
            user_name(facts, identity)
        )),
        None => finding.run(format!(
            "echo '{} - memlock unlimited' > /etc/security/limits.d/50-spinwake.conf   # then log in anew",
            user_name(facts, identity)
        )),
    })
}

fn realtime(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    let identity = facts.identity.as_ref().map_err(Clone::clone)?;
    if identity.can(capability::SYS_NICE) {
        return Ok(Finding::good(format!(
            "{} may give its threads real-time priority (CAP_SYS_NICE)",
            identity.name()
        )));
    }
    match identity::limit(facts.host, "Max realtime priority")? {
        Limit::At(0) if facts.origin() == Origin::Isolated => {
            Ok(Finding::good("real-time priority is not allowed, and not needed on isolated cores"))
        }
        Limit::At(0) => Ok(Finding::costs(
            format!("{} may not give its threads real-time priority", identity.name()),
            "on a core that is not isolated other tasks run before a worker",
        )
        .run(format!(
            "echo '{} - rtprio 50' > /etc/security/limits.d/51-spinwake.conf   # then log in anew",
            user_name(facts, identity)
        ))),
        Limit::At(priority) => Ok(Finding::good(format!("real-time priority up to {priority} is allowed"))),
        Limit::None => Ok(Finding::good("any real-time priority is allowed")),
    }
}

fn dma_latency(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    const PATH: &str = "/dev/cpu_dma_latency";
    let identity = facts.identity.as_ref().map_err(Clone::clone)?;
    let Ok(node) = fs::metadata(facts.host.path(PATH)) else { return Err(Unseen::Missing(PATH.into())) };
    if identity.may_use(node.uid(), node.gid(), node.mode()) {
        return Ok(Finding::good(format!("{} may hold cores out of deep idle states ({PATH})", identity.name())));
    }
    let Some(wake_us) = power::deep_us(facts)? else {
        return Ok(Finding::good("nobody needs to hold cores awake: their idle states are shallow"));
    };
    Ok(Finding::costs(
        format!("{} may not hold cores out of deep idle states ({PATH})", identity.name()),
        format!("workers that sleep wake up to {wake_us} µs late"),
    )
    .run(format!("chown {} {PATH}", user_name(facts, identity))))
}

fn amount(bytes: u64) -> String {
    if bytes >= 1 << 20 { format!("{} MiB", bytes >> 20) } else { format!("{} KiB", bytes >> 10) }
}
