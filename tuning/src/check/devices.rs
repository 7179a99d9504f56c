//! Devices for user space: the IOMMU, VFIO, groups, and the bridges above.
//!
//! Kernel documentation: driver-api/vfio, ABI/testing/sysfs-kernel-iommu_groups; PCI Express Base 5.0 section 6.12 (ACS).

use std::collections::BTreeMap;
use std::fs;

use spinwake::pci::{Bdf, CapabilityKind, ConfigSpace, GroupMember, PciDevice, cap};

use super::Check;
use super::facts::{Facts, count};
use super::item::Finding;
use super::seen::{self, Unseen};
use super::tasks::few;

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("devices.iommu", iommu),
    ("devices.iommu_mode", iommu_mode),
    ("devices.vfio", vfio),
    ("devices.bound", bound),
    ("devices.groups", groups),
    ("devices.acs", acs),
];

/// The subclass of a network controller.
const ETHERNET: u8 = 0;
const GROUPS: &str = "/sys/kernel/iommu_groups";
const NO_CARD: &str =
    "no card can be driven from user space: pci: ports fail to open (soft:, virtio-user: and vhost: work)";

/// The numbers of the groups that a real IOMMU stands behind.
fn iommu_groups(facts: &Facts<'_>) -> Vec<u32> {
    let numbers = facts.host.names(GROUPS).into_iter().filter_map(|name| name.parse().ok());
    let real = |number: &u32| facts.host.read(format!("{GROUPS}/{number}/name")).as_deref() != Some("vfio-noiommu");
    numbers.filter(real).collect()
}

fn iommu(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    let groups = iommu_groups(facts);
    if !groups.is_empty() {
        let units = facts.host.names("/sys/class/iommu");
        let units = if units.is_empty() { "an IOMMU".into() } else { few(units) };
        return Ok(Finding::good(format!("on ({units}), {}", count(groups.len(), "group"))));
    }
    if !facts.host.has("/sys/kernel") {
        return Err(Unseen::Missing(GROUPS.into()));
    }
    if facts.devices.as_ref().is_ok_and(Vec::is_empty) || !facts.host.has("/sys/bus/pci") {
        return Ok(Finding::good("this machine shows no PCI device that would need one"));
    }
    // ACPI: DMAR is Intel's table, IVRS is AMD's, VIOT that of virtual ones.
    let tables = facts.host.names("/sys/firmware/acpi/tables");
    let offered = tables.iter().find(|name| ["DMAR", "IVRS", "VIOT"].contains(&name.as_str()));
    if let Some(table) = offered {
        let found = format!("the firmware offers an IOMMU (ACPI table {table}), and the kernel leaves it off");
        return Ok(Finding::broken(found, NO_CARD).mend(facts.apply_boot()).after_reboot());
    }
    let way = match &facts.hypervisor {
        Ok(Some(_)) => {
            "give this virtual machine an IOMMU (QEMU: -machine q35,kernel-irqchip=split -device intel-iommu,intremap=on)"
        }
        _ => "turn on VT-d (Intel) or AMD-Vi (AMD) in the firmware's setup",
    };
    Ok(Finding::broken("there is no IOMMU, or the firmware hides it", NO_CARD).advise(way).after_reboot())
}

fn iommu_mode(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for group in iommu_groups(facts) {
        let path = format!("{GROUPS}/{group}/type");
        let kind = seen::word(facts.host, &path)?;
        if !["identity", "DMA", "DMA-FQ", "blocked", "auto", "unmanaged"].contains(&kind.as_str()) {
            return Err(Unseen::malformed(&path, &kind));
        }
        *kinds.entry(kind).or_default() += 1;
    }
    if kinds.is_empty() {
        return Err(Unseen::because("there is no IOMMU that could have a mode"));
    }
    let translated: usize = ["DMA", "DMA-FQ"].iter().filter_map(|kind| kinds.get(*kind)).sum();
    let all: Vec<_> = kinds.iter().map(|(kind, groups)| format!("{kind} for {}", count(*groups, "group"))).collect();
    let all = all.join(", ");
    if translated == 0 {
        return Ok(Finding::good(format!("pass-through: the kernel's own devices do not pay for it ({all})")));
    }
    Ok(Finding::costs(
        format!("it translates for the kernel's own devices, too ({all})"),
        "the kernel's own disk and network traffic maps and unmaps each buffer; workers' devices are not affected",
    )
    .mend(facts.apply_boot())
    .after_reboot())
}

fn vfio(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    let host = facts.host;
    if !host.has("/sys/module") && !host.has("/sys/bus/pci") {
        return Err(Unseen::Missing("/sys/module".into()));
    }
    let node = host.has("/dev/vfio/vfio");
    // Built in, they show no folder unless they have parameters; the driver and the node show all the same.
    let driver = host.has("/sys/bus/pci/drivers/vfio-pci");
    let type_1 = host.has("/sys/module/vfio_iommu_type1");
    if driver && node {
        let type_1 = if type_1 { "" } else { " (vfio_iommu_type1 is loaded when a program first asks)" };
        return Ok(Finding::good(format!("vfio-pci is there, and so is /dev/vfio/vfio{type_1}")));
    }
    if driver {
        return Ok(Finding::broken("vfio-pci is there, but there is no /dev/vfio/vfio here", NO_CARD)
            .advise("hand /dev/vfio to this container, or check that devtmpfs is mounted at /dev"));
    }
    let release = seen::text(host, "/proc/sys/kernel/osrelease")?;
    let modules = format!("/lib/modules/{release}/modules.dep");
    let listed = match seen::text(host, &modules) {
        Ok(text) => text.lines().any(|line| line.split(':').next().is_some_and(|path| path.contains("/vfio-pci.ko"))),
        Err(Unseen::Missing(_)) => false,
        Err(unseen) => return Err(unseen),
    };
    if listed {
        return Ok(Finding::broken("vfio-pci is not loaded", NO_CARD).run("modprobe vfio-pci"));
    }
    Ok(Finding::broken(format!("this kernel ({release}) has no vfio-pci, not even as a module"), NO_CARD)
        .advise("boot the distribution's full kernel (Debian: linux-image-amd64, not the cloud one)")
        .after_reboot())
}

fn bound(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    let bound = facts.bound_devices()?;
    if !bound.is_empty() {
        return Ok(Finding::good(format!(
            "a program can have {}",
            few(bound.iter().map(|device| device.bdf().to_string()))
        )));
    }
    let devices = facts.devices.as_ref().map_err(Clone::clone)?;
    if let Some(device) = devices.iter().find(|device| device.class().is_none()) {
        return Err(Unseen::because(format!("what {} is, its file `class` does not tell", device.bdf())));
    }
    let network = facts.network_devices()?;
    let free = network.iter().find(|device| {
        // Not a radio, which nobody here drives.
        let wired = device.class().is_some_and(|class| class.sub() == ETHERNET);
        wired && device.net_interfaces().iter().all(|interface| !interface.in_use())
    });
    let cost = "until a card is bound to vfio-pci, there is none for a pci: port to drive";
    match (free, network.len()) {
        (_, 0) => Ok(Finding::good("this machine has no PCI network device")),
        (Some(device), _) => Ok(Finding::costs(
            format!(
                "none of {} is bound to vfio-pci; {} is not in use",
                count(network.len(), "network device"),
                device.bdf()
            ),
            cost,
        )
        .run(format!("spinwake-tune bind {}", device.bdf()))),
        (None, number) => Ok(Finding::costs(
            format!(
                "none of {} is bound to vfio-pci, and the kernel uses each that could be",
                count(number, "network device")
            ),
            cost,
        )
        .advise(
            "choose one with `spinwake-tune devices`, take its interface down, and bind it with `spinwake-tune bind`",
        )),
    }
}

fn groups(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    let devices = facts.devices.as_ref().map_err(Clone::clone)?;
    if devices.is_empty() {
        return Ok(Finding::good("there are no PCI devices"));
    }
    if iommu_groups(facts).is_empty() {
        return Err(Unseen::because("without an IOMMU there are no groups"));
    }
    let bound = facts.bound_devices()?;
    let mut lone = 0;
    for device in &bound {
        if let Some(finding) = blocked(device) {
            return Ok(finding);
        }
    }
    let mut shared = Vec::new();
    for device in facts.network_devices()? {
        match device.iommu_group() {
            Some(group) if group.others(&device.bdf().to_string()).any(GroupMember::blocks) => {
                shared.push(format!("{} (group {})", device.bdf(), group.number));
            }
            Some(_) => lone += 1,
            None => return Err(Unseen::because(format!("{} is in no IOMMU group", device.bdf()))),
        }
    }
    if lone == 0 && !shared.is_empty() {
        let found = format!("every network device shares its group with another that the kernel uses: {}", few(shared));
        return Ok(Finding::costs(found, "they can only be handed to a program together")
            .advise("bind the others of the group, too, or move the card to a slot below a bridge with ACS"));
    }
    let shared = if shared.is_empty() { String::new() } else { format!("; not so {}", few(shared)) };
    Ok(Finding::good(format!("{} can be handed out alone{shared}", count(lone, "network device"))))
}

/// What keeps a device that VFIO has from being opened: another of its group that the kernel drives.
pub(super) fn blocked(device: &PciDevice) -> Option<Finding> {
    let bdf = device.bdf();
    let group = device.iommu_group()?;
    let blocking: Vec<_> = group.others(&bdf.to_string()).filter(|member| member.blocks()).collect();
    if blocking.is_empty() {
        return None;
    }
    let found =
        format!("{bdf} shares IOMMU group {} with {}", group.number, few(blocking.iter().map(ToString::to_string)));
    let names: Vec<_> = blocking.iter().map(|member| member.name.as_str()).collect();
    let finding = Finding::broken(found, "VFIO hands out whole groups, so the device cannot be opened");
    let all_pci = names.iter().all(|name| name.parse::<Bdf>().is_ok());
    Some(if all_pci {
        finding.run(format!("spinwake-tune bind {}", names.join(" ")))
    } else {
        finding.advise("unbind the others")
    })
}

fn acs(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    const COST: &str = "devices below it reach each other past the IOMMU, so the kernel puts them into one group";
    let mut lacking = Vec::new();
    let mut bridges = 0;
    let network = facts.network_devices()?;
    if network.is_empty() {
        facts.devices.as_ref().map_err(Clone::clone)?;
    }
    for device in network {
        // The kernel knows bridges that keep devices apart without access control; groups are what it has made of all it knows.
        let group = device.iommu_group().filter(|group| group.isolated);
        let elsewhere = |bridge: Bdf| {
            group.as_ref().is_some_and(|group| !group.members.iter().any(|member| member.name == bridge.to_string()))
        };
        for bridge in bridges_above(device) {
            bridges += 1;
            if !elsewhere(bridge) && !separates(facts, bridge)? && !lacking.contains(&bridge) {
                lacking.push(bridge);
            }
        }
    }
    match (lacking.is_empty(), bridges) {
        (true, 0) => Ok(Finding::good("no bridge stands above a network device")),
        (true, _) => Ok(Finding::good("every bridge above a network device keeps those below it apart")),
        (false, _) => {
            Ok(Finding::costs(format!("no access control on {}", few(lacking.iter().map(ToString::to_string))), COST)
                .advise("move the card to a slot of the processor's own, or turn on ACS in the firmware's setup"))
        }
    }
}

/// The bridges between the root and a device: the folders its link leads through.
fn bridges_above(device: &PciDevice) -> Vec<Bdf> {
    let Ok(path) = fs::canonicalize(device.path()) else { return Vec::new() };
    let parts = path.components().filter_map(|part| part.as_os_str().to_str()?.parse::<Bdf>().ok());
    parts.filter(|bdf| *bdf != device.bdf()).collect()
}

/// Whether a bridge sends all that its devices say to each other up to the IOMMU: source validation, request and
/// completion redirect, upstream forwarding (PCI Express Base 5.0 section 7.7.8). Judged as by the kernel
/// (drivers/pci/pci.c, `pci_acs_enabled`).
fn separates(facts: &Facts<'_>, bridge: Bdf) -> Result<bool, Unseen> {
    const SV_RR_CR_UF: u16 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 4;
    const CAPABILITY: usize = 4;
    const CONTROL: usize = 6;
    // Types of port, bits 4 to 7 of the capabilities register (section 7.5.3.2).
    const ROOT_PORT: u16 = 4;
    const UPSTREAM: u16 = 5;
    const DOWNSTREAM: u16 = 6;
    let config = facts
        .host
        .sysfs()
        .device(bridge)
        .and_then(|device| device.config())
        .unwrap_or_else(|| ConfigSpace::new(Vec::new()));
    if config.id().is_none() {
        return Err(Unseen::because(format!("the configuration space of {bridge} makes no sense or cannot be read")));
    }
    // An ordinary user is shown the first 64 bytes; a bridge of old PCI has 256 and never access control.
    if config.len() <= 64 {
        return Err(Unseen::Denied(format!("all of /sys/bus/pci/devices/{bridge}/config")));
    }
    let word = |at: u16, offset: usize| config.u16(usize::from(at) + offset).unwrap_or(0);
    let Some(express) = config.capability(CapabilityKind::Standard, cap::EXPRESS) else { return Ok(false) };
    let has_more_functions = config.u8(0x0e).is_some_and(|kind| kind & 0x80 != 0);
    match word(express.offset, 2) >> 4 & 0xf {
        // Of one function, it has nothing below it but the ports that do the separating.
        UPSTREAM if !has_more_functions => return Ok(true),
        ROOT_PORT | UPSTREAM | DOWNSTREAM => {}
        _ => return Ok(false),
    }
    let Some(acs) = config.capability(CapabilityKind::Extended, cap::EXT_ACS) else { return Ok(false) };
    // What a port does not offer to switch, it has no need of, or does always.
    let wanted = SV_RR_CR_UF & word(acs.offset, CAPABILITY);
    Ok(word(acs.offset, CONTROL) & wanted == wanted)
}
