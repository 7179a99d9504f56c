//! What machine it is: as much as a reader of a bug report needs, and no name, address or serial number.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use spinwake::clock::Clock;
use spinwake::cpu::{CpuSet, Topology};
use spinwake::mem;

use crate::host::Host;

/// The machine in names and values.
pub(super) fn machine(host: &Host, now: SystemTime) -> Vec<(String, String)> {
    let topology = host.topology();
    let unknown = || "unknown".to_owned();
    let mut facts: Vec<(&str, String)> = vec![
        ("Processor", cpuinfo(host, "model name").unwrap_or_else(unknown)),
        ("Cores", cores(&topology)),
        ("Isolated cores", set(topology.isolated())),
        ("Cores without a tick (nohz_full)", set(topology.nohz_full())),
        ("This process may use", set(topology.allowed())),
        ("NUMA", numa(host, &topology)),
        ("Memory", memory(host).unwrap_or_else(unknown)),
        ("Virtualisation", virtualisation(host)),
        ("Kernel", kernel(host)),
        ("Kernel command line", host.read("/proc/cmdline").unwrap_or_else(unknown)),
        ("Distribution", distribution(host).unwrap_or_else(unknown)),
        ("Kernel's clock", host.read(format!("{CLOCK}/current_clocksource")).unwrap_or_else(unknown)),
    ];
    if host.is_this() {
        facts.push(("Spinwake's clock", Clock::get().source().to_string()));
    }
    facts.push(("Made by", format!("spinwake-tune {}, {}", env!("CARGO_PKG_VERSION"), utc(now))));
    facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

const CLOCK: &str = "/sys/devices/system/clocksource/clocksource0";

/// Every network device, and everything that is bound to vfio-pci: as rows of a table.
pub(super) fn devices(host: &Host) -> Vec<Vec<String>> {
    let Ok(devices) = host.sysfs().devices() else { return Vec::new() };
    let dash = || "-".to_owned();
    let shown = devices.into_iter().filter(|device| {
        device.class().is_some_and(spinwake::pci::Class::is_network) || device.driver().as_deref() == Some("vfio-pci")
    });
    shown
        .map(|device| {
            let in_use = |interface: spinwake::pci::NetInterface| {
                let state = if interface.in_use() { " (in use)" } else { "" };
                interface.name + state
            };
            vec![
                device.bdf().to_string(),
                device.id().map_or_else(dash, |id| id.to_string()),
                device.driver().unwrap_or_else(dash),
                device.iommu_group().map_or_else(|| "none".into(), |group| group.number.to_string()),
                device.numa_node().map_or_else(dash, |node| node.to_string()),
                device.net_interfaces().into_iter().map(in_use).collect::<Vec<_>>().join(", "),
            ]
        })
        .collect()
}

/// Every pool of hugepages: as rows of a table.
pub(super) fn hugepages(host: &Host) -> Vec<Vec<String>> {
    let number = |n: Option<usize>| n.map_or_else(|| "unknown".to_owned(), |n| n.to_string());
    let row = |count: mem::HugepageCount| {
        let place = count.node.map_or_else(|| "whole machine".into(), |node| format!("node {node}"));
        let reserved = if count.node.is_some() { "-".into() } else { number(count.reserved) };
        vec![count.size.to_string(), place, number(count.configured), number(count.free), reserved]
    };
    mem::all_hugepages(host.root()).into_iter().map(row).collect()
}

fn cpuinfo(host: &Host, name: &str) -> Option<String> {
    let text = host.read("/proc/cpuinfo")?;
    text.lines()
        .find_map(|line| line.split_once(':').filter(|(key, _)| key.trim() == name))
        .map(|(_, value)| value.trim().to_owned())
}

fn cores(topology: &Topology) -> String {
    let online = topology.online().map_or_else(|| "unknown".into(), |online| format!("{} ({online})", online.len()));
    let packages = match topology.packages().len() {
        0 => "an unknown number of packages".into(),
        1 => "1 package".into(),
        n => format!("{n} packages"),
    };
    let threads = topology.cores().iter().filter_map(|core| core.siblings.as_ref()).map(CpuSet::len).max();
    let smt = match threads {
        None => "SMT unknown".into(),
        Some(0 | 1) => "no SMT".into(),
        Some(n) => format!("SMT, {n} to a core"),
    };
    format!("{online} online, {packages}, {smt}")
}

fn set(cores: Option<&CpuSet>) -> String {
    match cores {
        None => "unknown".into(),
        Some(cores) if cores.is_empty() => "none".into(),
        Some(cores) => cores.to_string(),
    }
}

fn numa(host: &Host, topology: &Topology) -> String {
    let node = |node: usize| {
        let memory = host.read(format!("/sys/devices/system/node/node{node}/meminfo"));
        let memory = memory.and_then(|text| kib(&text, &format!("Node {node} MemTotal:")));
        let memory = memory.map_or_else(|| "memory unknown".into(), gib);
        format!("node {node}: cores {}, {memory}", topology.node_cores(node))
    };
    let nodes: Vec<String> = topology.nodes().into_iter().map(node).collect();
    if nodes.is_empty() { "unknown".into() } else { nodes.join("; ") }
}

fn memory(host: &Host) -> Option<String> {
    let text = host.read("/proc/meminfo")?;
    let field = |name: &str| kib(&text, name).map_or_else(|| "unknown".into(), gib);
    Some(format!("{}, {} available, swap {}", field("MemTotal:"), field("MemAvailable:"), field("SwapTotal:")))
}

/// The number after `name`, which is in KiB.
fn kib(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.trim().strip_prefix(name))?.trim().strip_suffix("kB")?.trim().parse().ok()
}

fn gib(kib: u64) -> String {
    format!("{:.1} GiB", kib as f64 / f64::from(1 << 20))
}

fn virtualisation(host: &Host) -> String {
    let product: Vec<String> = ["sys_vendor", "product_name"]
        .iter()
        .filter_map(|name| host.read(format!("/sys/class/dmi/id/{name}")))
        .collect();
    let product = if product.is_empty() { String::new() } else { format!(" ({})", product.join(" ")) };
    match cpuinfo(host, "flags") {
        None => format!("unknown{product}"),
        // CPUID 1, ECX bit 31.
        Some(flags) if flags.split_whitespace().any(|flag| flag == "hypervisor") => {
            format!("a virtual machine{product}")
        }
        Some(_) => format!("none seen{product}"),
    }
}

fn kernel(host: &Host) -> String {
    let read = |name: &str| host.read(format!("/proc/sys/kernel/{name}"));
    match read("osrelease") {
        None => "unknown".into(),
        Some(release) => format!("{release} {}", read("version").unwrap_or_default()).trim().to_owned(),
    }
}

fn distribution(host: &Host) -> Option<String> {
    let text = host.read("/etc/os-release")?;
    Some(text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?.trim_matches('"').to_owned())
}

/// A moment as `2024-02-29 12:00 UTC`.
fn utc(now: SystemTime) -> String {
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let (hours, minutes) = (seconds / 3_600 % 24, seconds / 60 % 60);
    // Years begin in March here, so that a leap day is the last one; 400 years are one era of 146,097 days.
    let days = seconds / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!("{}-{month:02}-{day:02} {hours:02}:{minutes:02} UTC", era * 400 + year + later)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (1_709_210_100, "2024-02-29 12:35 UTC"),
            (4_107_542_400, "2100-03-01 00:00 UTC"),
        ] {
            assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn an_empty_machine_is_unknown() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::at(root.path());
        let facts = machine(&host, UNIX_EPOCH);
        let unknown = facts.iter().filter(|(_, value)| value.contains("unknown")).count();
        assert_eq!(unknown, facts.len() - 1, "all but who made it: {facts:?}");
        assert!(devices(&host).is_empty() && hugepages(&host).is_empty());
    }

    #[test]
    fn this_machine_is_known() {
        let facts = machine(&Host::default(), SystemTime::now());
        let fact = |name: &str| &facts.iter().find(|(fact, _)| fact == name).unwrap().1;
        assert!(fact("Memory").contains("GiB") && fact("Cores").contains("online"), "{facts:?}");
    }
}
