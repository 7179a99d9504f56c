//! A planned placement, worker by worker and port by port.

use std::path::Path;

use spinwake::cpu::{CoreChoice, CpuSet, choose};
use spinwake::mem::{self, PageSize};
use spinwake::pci::{Bdf, PciDevice};
use spinwake::port::PortSpec;

use super::facts::{Facts, named};
use super::item::{Finding, Item};
use super::seen::Unseen;
use super::{cores, devices, interrupts, memory, user};
use crate::placement::{Placement, Worker};

/// What its workers and ports need, each its own item: `worker.core@1`, `port.bound@0000:01:00.0`.
pub(super) fn items(facts: &Facts<'_>, plan: &Placement) -> Vec<Item> {
    let mut items = Vec::new();
    let mut taken = CpuSet::new();
    for worker in &plan.workers {
        worker_items(facts, worker, &taken, &mut items);
        taken.insert(worker.core);
    }
    let mut seen: Vec<&PortSpec> = Vec::new();
    for port in plan.workers.iter().flat_map(|worker| &worker.ports) {
        // Several workers may serve one port, each by queues of its own.
        if !seen.contains(&port) {
            port_items(facts, port, &mut items);
            seen.push(port);
        }
    }
    if let Some(wanted_mib) = plan.hugepages_mib {
        items.push(Item::new("memory.planned_hugepages", hugepages(facts, wanted_mib)));
    }
    items
}

/// Whether any port of the plan is a PCI device.
pub(super) fn has_pci(plan: &Placement) -> bool {
    plan.workers.iter().flat_map(|worker| &worker.ports).any(|port| port.kind() == "pci")
}

/// Judges one thing about a worker.
type Judge<'a> = dyn Fn() -> Result<Finding, Unseen> + 'a;

fn worker_items(facts: &Facts<'_>, worker: &Worker, taken: &CpuSet, items: &mut Vec<Item>) {
    let core = worker.core;
    let own: CpuSet = [core].into_iter().collect();
    let usable = usable(facts, core, taken);
    let runs = usable.as_ref().is_ok_and(|finding| *finding == Finding::good(CAN_RUN));
    items.push(Item::new(format!("worker.core@{core}"), usable));
    let judged: [(&str, &Judge<'_>); 5] = [
        ("isolated", &|| isolated(facts, core)),
        ("tick", &|| cores::tick(facts, &own)),
        ("smt", &|| cores::siblings(facts, &own, facts.workers()?)),
        ("tasks", &|| cores::on_cores(facts, &own)),
        ("interrupts", &|| interrupts::on_cores(facts, &own)),
    ];
    let unless_refused = |judge: &Judge<'_>| {
        if runs { judge() } else { Err(Unseen::because(format!("no worker can run on core {core}"))) }
    };
    for (name, judge) in judged {
        items.push(Item::new(format!("worker.{name}@{core}"), unless_refused(judge)));
    }
    for device in worker.ports.iter().filter_map(|port| bdf(port)?.ok()) {
        items.push(Item::new(format!("worker.numa@{core}/{device}"), unless_refused(&|| numa(facts, core, device))));
    }
}

const CAN_RUN: &str = "a worker can run there";

fn usable(facts: &Facts<'_>, core: usize, taken: &CpuSet) -> Result<Finding, Unseen> {
    facts.online()?;
    Ok(match choose(&facts.topology, CoreChoice::Core(core), None, taken) {
        Ok(_) => Finding::good(CAN_RUN),
        Err(error) => Finding::broken(error.to_string(), "the worker does not start"),
    })
}

fn isolated(facts: &Facts<'_>, core: usize) -> Result<Finding, Unseen> {
    if facts.isolated()?.contains(core) {
        return Ok(Finding::good("the scheduler leaves it alone"));
    }
    Ok(Finding::costs("not isolated", cores::NOT_ISOLATED).mend(facts.apply_boot()).after_reboot())
}

fn numa(facts: &Facts<'_>, core: usize, bdf: Bdf) -> Result<Finding, Unseen> {
    let device = found(facts, bdf).ok_or_else(|| Unseen::because(format!("there is no PCI device {bdf}")))?;
    if facts.topology.nodes().len() == 1 {
        return Ok(Finding::good("there is one NUMA node"));
    }
    let own = facts.topology.core(core).and_then(|core| core.node);
    let (Some(own), Some(node)) = (own, device.numa_node()) else {
        return Err(Unseen::because(format!("on which node core {core} or {bdf} is, the machine does not say")));
    };
    if own == node {
        return Ok(Finding::good(format!("{bdf} is on its node ({node})")));
    }
    let distance = memory::distance(facts, core, node);
    let distance = distance.map_or_else(String::new, |distance| format!(" (distance {distance} where 10 is local)"));
    let near = facts.topology.node_cores(node);
    Ok(Finding::costs(format!("core {core} is on node {own}, {bdf} on node {node}{distance}"), memory::FAR)
        .advise(format!("give the worker one of {}", named(&near))))
}

/// The address of a port that is a PCI device.
fn bdf(port: &PortSpec) -> Option<Result<Bdf, String>> {
    (port.kind() == "pci").then(|| port.address().parse::<Bdf>().map_err(|error| error.to_string()))
}

fn found(facts: &Facts<'_>, bdf: Bdf) -> Option<PciDevice> {
    facts.host.sysfs().device(bdf)
}

fn port_items(facts: &Facts<'_>, port: &PortSpec, items: &mut Vec<Item>) {
    const NOT_OPENED: &str = "the port cannot be opened";
    let mut push = |name: &str, seen| items.push(Item::new(format!("port.{name}@{}", port.address()), seen));
    match (port.kind(), bdf(port)) {
        (_, Some(Err(error))) => push("bound", Ok(Finding::broken(error, NOT_OPENED))),
        (_, Some(Ok(bdf))) => {
            let Some(device) = found(facts, bdf) else {
                let missing = Finding::broken(format!("there is no PCI device {bdf}"), NOT_OPENED);
                return push("bound", Ok(missing.advise("`spinwake-tune devices` lists those there are")));
            };
            let driver = device.driver();
            let has_vfio = driver.as_ref().is_some_and(|driver| driver.contains("vfio"));
            push("bound", Ok(bound(&device, driver.as_deref())));
            push("group", group(&device));
            push(
                "permission",
                match has_vfio {
                    true => user::closed(facts, &device)
                        .map(|closed| closed.unwrap_or_else(|| Finding::good("this user may open it"))),
                    false => Err(Unseen::because("its node is there once it is bound to vfio-pci")),
                },
            );
        }
        ("virtio-user" | "vhost", None) => push("socket", Ok(socket(facts, port))),
        (kind, None) => items.push(Item::new(
            format!("port.needs@{kind}:{}", port.address()),
            match kind {
                "soft" => Ok(Finding::good("needs nothing of the machine")),
                _ => Err(Unseen::because(format!("what a port of kind {kind}: needs is not known here"))),
            },
        )),
    }
}

fn bound(device: &PciDevice, driver: Option<&str>) -> Finding {
    let bdf = device.bdf();
    match driver {
        Some(driver) if driver.contains("vfio") => Finding::good(format!("{driver} has it")),
        driver => {
            let used: Vec<_> =
                device.net_interfaces().into_iter().filter(|interface| interface.in_use()).map(|i| i.name).collect();
            let driver = driver.map_or_else(|| "no driver".into(), |driver| format!("the kernel's driver {driver}"));
            const COST: &str = "the port cannot be opened";
            if used.is_empty() {
                return Finding::broken(format!("{driver} has it"), COST).run(format!("spinwake-tune bind {bdf}"));
            }
            // What is in use is refused, and whether it can be spared is not for a program to know.
            Finding::broken(format!("{driver} has it, and uses it as {}", used.join(", ")), COST).advise(format!(
                "where nobody needs {}: `spinwake-tune bind {bdf}` says how to end its use",
                used.join(", ")
            ))
        }
    }
}

fn group(device: &PciDevice) -> Result<Finding, Unseen> {
    match (devices::blocked(device), device.iommu_group()) {
        (Some(finding), _) => Ok(finding),
        (None, Some(group)) if group.isolated => {
            Ok(Finding::good(format!("IOMMU group {} can be handed out", group.number)))
        }
        _ => Ok(Finding::broken("it is in no IOMMU group", "the port cannot be opened")
            .advise("see devices.iommu: no device can be handed out without an IOMMU")),
    }
}

fn socket(facts: &Facts<'_>, port: &PortSpec) -> Finding {
    let folder = Path::new(port.address()).parent().unwrap_or(Path::new("/"));
    if facts.host.path(folder).is_dir() {
        return Finding::good("the folder of its socket is there");
    }
    Finding::broken(format!("there is no folder {}", folder.display()), "the port's socket cannot be made or found")
        .run(format!("mkdir -p {}", word(&folder.display().to_string())))
}

/// A path as one word of a shell.
pub(super) fn word(path: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
    if path.bytes().all(plain) { path.to_owned() } else { format!("'{}'", path.replace('\'', "'\\''")) }
}

fn hugepages(facts: &Facts<'_>, wanted_mib: u64) -> Result<Finding, Unseen> {
    let pools = mem::all_hugepages(facts.host.root());
    let free = |size: PageSize| {
        pools.iter().find(|pool| pool.size == size && pool.node.is_none()).and_then(|pool| pool.available())
    };
    let small =
        free(PageSize::Huge2M).ok_or_else(|| Unseen::because("how many pages of 2 MiB are free is not known"))?;
    let free_mib = small as u64 * 2;
    if free_mib >= wanted_mib {
        return Ok(Finding::good(format!("{free_mib} MiB of 2 MiB pages are free, {wanted_mib} MiB planned")));
    }
    let configured =
        pools.iter().find(|pool| pool.size == PageSize::Huge2M && pool.node.is_none()).and_then(|pool| pool.configured);
    let pages = configured.unwrap_or(0) as u64 + (wanted_mib - free_mib).div_ceil(2);
    Ok(Finding::costs(format!("{free_mib} MiB of 2 MiB pages are free, {wanted_mib} MiB planned"), memory::SMALL_PAGES)
        .run(format!("spinwake-tune hugepages reserve {pages} --size 2M --persist")))
}

#[cfg(test)]
mod tests {
    use super::super::fake::{CARD, Tree, item};
    use super::super::item::Remedy;
    use super::*;

    #[test]
    fn a_path_is_one_word() {
        assert_eq!([word("/run/a.sock"), word("my plan"), word("it's")], ["/run/a.sock", "'my plan'", r"'it'\''s'"]);
    }

    #[test]
    fn a_card_in_use_is_not_taken_by_a_command_that_would_be_refused() {
        let tree = Tree::tuned(2, 1, 1, "1");
        tree.bind(CARD, "igb");
        let port = format!("pci:{CARD}").parse().unwrap();
        let plan = Placement { workers: vec![Worker { core: 1, ports: vec![port] }], hugepages_mib: None };
        let bound = || item(&tree.check_with(&[], Some(&plan)), &format!("port.bound@{CARD}"));
        assert_eq!(bound().remedy, Remedy::Run(format!("spinwake-tune bind {CARD}")));
        tree.set(format!("/sys/bus/pci/devices/{CARD}/net/eth0/flags"), "0x1003");
        assert!(matches!(bound().remedy, Remedy::Do(what) if what.contains("nobody needs eth0")));
    }
}
