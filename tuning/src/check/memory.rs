//! Memory: hugepages, what takes pages away, and how far cores and devices are from it.
//!
//! Kernel documentation: admin-guide/mm/hugetlbpage, admin-guide/mm/transhuge, admin-guide/mm/numaperf.

use spinwake::cpu::CpuSet;
use spinwake::mem::{self, HugepageCount, PageSize};

use super::Check;
use super::facts::{Facts, count, named};
use super::item::Finding;
use super::seen::{self, Unseen};
use super::tasks::few;

pub(super) const CHECKS: &[(&str, Check)] =
    &[("memory.hugepages", hugepages), ("memory.thp", thp), ("memory.swap", swap), ("memory.numa", numa)];

/// Enough for a few pools of the usual size (18 MiB each): 128 MiB.
const COMFORTABLE: usize = 64;
pub(super) const SMALL_PAGES: &str =
    "buffers lie in pages of 4 KiB: up to a tenth slower by TLB misses, and more of the IOMMU's";

fn hugepages(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    let pools = mem::all_hugepages(facts.host.root());
    let whole: Vec<_> = pools.iter().filter(|pool| pool.node.is_none()).collect();
    if whole.is_empty() {
        const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
        return Err(match seen::value::<usize>(facts.host, POOL) {
            Err(unseen) => unseen,
            Ok(_) => Unseen::because("the pools of hugepages are not known"),
        });
    }
    if let Some(pool) = whole.iter().find(|pool| pool.free.is_none()) {
        return Err(Unseen::because(format!("how many of the {} pages are free is not known", pool.size)));
    }
    let found = shown(&pools);
    let reserve = |node: Option<usize>| {
        let node = node.map_or_else(String::new, |node| format!(" --node {node}"));
        format!("spinwake-tune hugepages reserve {COMFORTABLE} --size 2M{node} --persist")
    };
    if whole.iter().all(|pool| pool.configured == Some(0)) {
        return Ok(Finding::costs("no hugepages are reserved", SMALL_PAGES).run(reserve(None)));
    }
    if whole.iter().all(|pool| pool.available() == Some(0)) {
        let finding = Finding::costs(format!("all hugepages are taken: {found}"), SMALL_PAGES);
        let pages: usize =
            whole.iter().filter(|pool| pool.size == PageSize::Huge2M).filter_map(|pool| pool.configured).sum();
        return Ok(finding.run(format!("spinwake-tune hugepages reserve {} --size 2M --persist", pages + COMFORTABLE)));
    }
    // Pages on a node where no worker is are far from it.
    if let Ok(workers) = facts.workers() {
        let nodes = facts.topology.cores().iter().filter(|core| workers.contains(core.id)).filter_map(|core| core.node);
        for node in nodes {
            let own: Vec<_> = pools.iter().filter(|pool| pool.node == Some(node)).collect();
            if !own.is_empty() && own.iter().all(|pool| pool.free == Some(0)) {
                let found = format!("none free on node {node}, where workers are: {found}");
                return Ok(Finding::costs(found, "workers there use memory of another node, or pages of 4 KiB")
                    .run(reserve(Some(node))));
            }
        }
    }
    Ok(Finding::good(found))
}

/// `2 MiB: 64 (60 free; node 0: 64)`.
fn shown(pools: &[HugepageCount]) -> String {
    let number = |n: Option<usize>| n.map_or_else(|| "unknown".into(), |n| n.to_string());
    let sizes = pools.iter().filter(|pool| pool.node.is_none() && pool.configured != Some(0)).map(|whole| {
        let on_node = |pool: &HugepageCount| Some(format!("node {}: {}", pool.node?, number(pool.configured)));
        let nodes: Vec<_> = pools.iter().filter(|pool| pool.size == whole.size).filter_map(on_node).collect();
        let nodes = if nodes.is_empty() { String::new() } else { format!("; {}", nodes.join(", ")) };
        format!("{} of {} ({} free{nodes})", number(whole.configured), whole.size, number(whole.free))
    });
    sizes.collect::<Vec<_>>().join("; ")
}

fn thp(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    const FOLDER: &str = "/sys/kernel/mm/transparent_hugepage";
    let word = match seen::chosen(facts.host, &format!("{FOLDER}/enabled")) {
        Err(Unseen::Missing(_)) if facts.host.has("/sys/kernel/mm/hugepages") => {
            return Ok(Finding::good("this kernel has no transparent hugepages"));
        }
        word => word?,
    };
    match word.as_str() {
        "always" => Ok(Finding::costs(
            "transparent hugepages for every program (always)",
            "the kernel stops threads to make room and move pages, for tens of microseconds to milliseconds",
        )
        .mend(facts.apply())),
        "madvise" => Ok(Finding::good("transparent hugepages only for programs that ask (madvise)")),
        "never" => Ok(Finding::good("no transparent hugepages (never)")),
        word => Err(Unseen::malformed(&format!("{FOLDER}/enabled"), word)),
    }
}

fn swap(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    const SWAPS: &str = "/proc/swaps";
    let text = match seen::text(facts.host, SWAPS) {
        Err(Unseen::Missing(_)) if facts.host.has("/proc/meminfo") && facts.host.has("/proc/vmstat") => {
            return Ok(Finding::good("this kernel has no swap"));
        }
        text => text?,
    };
    let mut lines = text.lines();
    if !lines.next().is_some_and(|header| header.starts_with("Filename")) {
        return Err(Unseen::malformed(SWAPS, &text));
    }
    let areas: Vec<_> = lines.filter_map(|line| line.split_whitespace().next()).map(super::tasks::printable).collect();
    if areas.is_empty() {
        return Ok(Finding::good("none"));
    }
    let found = format!("{} in use: {}", count(areas.len(), "swap area"), few(areas));
    Ok(Finding::costs(
        found,
        "a page of the program that was swapped out stops its worker for a disk access: milliseconds",
    )
    .run("swapoff --all"))
}

fn numa(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    let nodes = facts.topology.nodes();
    match nodes.len() {
        0 if facts.host.has("/sys/devices/system/node") => {
            return Err(Unseen::because("/sys/devices/system/node does not tell which cores are on which node"));
        }
        0 => return Err(Unseen::Missing("/sys/devices/system/node".into())),
        1 => return Ok(Finding::good("one NUMA node: every core is as near as any other to memory and devices")),
        _ => {}
    }
    let workers = facts.workers()?;
    let bound = facts.bound_devices()?;
    let devices = if bound.is_empty() { facts.network_devices()? } else { bound };
    if devices.is_empty() {
        return Ok(Finding::good(format!("{} NUMA nodes, and no network device to be far from", nodes.len())));
    }
    let near = |node: usize| !facts.topology.node_cores(node).intersection(workers).is_empty();
    let mut far = Vec::new();
    for device in &devices {
        let Some(node) = device.numa_node() else {
            return Err(Unseen::because(format!("on which node {} is, the firmware does not say", device.bdf())));
        };
        if !near(node) {
            let distance = workers.iter().filter_map(|core| distance(facts, core, node)).min();
            let distance =
                distance.map_or_else(String::new, |distance| format!(", distance {distance} where 10 is local"));
            far.push((node, format!("{} (node {node}{distance})", device.bdf())));
        }
    }
    let Some((node, _)) = far.first() else {
        return Ok(Finding::good(format!("each network device has one of {} on its node", named(workers))));
    };
    let found =
        format!("none of {} is on the node of {}", named(workers), few(far.iter().map(|(_, device)| device.clone())));
    let finding = Finding::costs(found, FAR);
    let best = best_of(&facts.topology.node_cores(*node));
    if best.is_empty() {
        return Ok(finding.advise("move the card to a slot of a processor that has cores for workers"));
    }
    Ok(finding.mend(facts.apply_boot_for(&best)).after_reboot())
}

pub(super) const FAR: &str =
    "each access of one to the other's memory crosses between nodes: some 100 ns a frame, and less throughput";

/// Cores of a node without core 0.
fn best_of(cores: &CpuSet) -> CpuSet {
    cores.difference(&[0].into_iter().collect())
}

/// How far the node of a core is from another one, as the firmware tells: 10 is local.
pub(super) fn distance(facts: &Facts<'_>, core: usize, node: usize) -> Option<u32> {
    let own = facts.topology.core(core)?.node?;
    let text = facts.host.read(format!("/sys/devices/system/node/node{own}/distance"))?;
    // One number for each node that is online, in their order.
    let online: CpuSet = facts.host.value("/sys/devices/system/node/online")?;
    let index = online.iter().position(|other| other == node)?;
    text.split_whitespace().nth(index)?.parse().ok()
}
