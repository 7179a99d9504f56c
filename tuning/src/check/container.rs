//! What a container, a cgroup or Kubernetes lets this process have.
//!
//! Kernel documentation: admin-guide/cgroup-v2 and cgroup-v1 (cpusets, hugetlb, devices). Kubernetes: "Control CPU
//! Management Policies on the Node"; its SR-IOV device plugin names devices in variables PCIDEVICE_*.

use std::path::{Component, Path};

use spinwake::pci::Bdf;

use super::Check;
use super::facts::{Facts, count, named};
use super::item::Finding;
use super::seen::{self, Unseen};
use super::tasks::{few, printable};

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("container.cpuset", cpuset),
    ("container.hugetlb", hugetlb),
    ("container.devices", devices),
    ("container.pcidevice", pcidevice),
    ("container.cpu_manager", cpu_manager),
];

const MEMBERSHIP: &str = "/proc/self/cgroup";

/// Which container this is, where something gives it away.
fn container(facts: &Facts<'_>) -> Option<String> {
    let Facts { host, environment, .. } = facts;
    if in_kubernetes(facts) {
        return Some("Kubernetes".into());
    }
    if host.has("/.dockerenv") {
        return Some("docker".into());
    }
    if host.has("/run/.containerenv") {
        return Some("podman".into());
    }
    let told = environment.get("container").cloned().or_else(|| host.read("/run/systemd/container"));
    told.filter(|name| !name.is_empty()).map(|name| printable(&name))
}

fn in_kubernetes(facts: &Facts<'_>) -> bool {
    facts.environment.keys().any(|name| name == "KUBERNETES_SERVICE_HOST" || name.starts_with("PCIDEVICE_"))
}

fn cpuset(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    const STATUS: &str = "/proc/self/status";
    let online = facts.online()?;
    let allowed = facts.topology.allowed().ok_or_else(|| super::facts::whatever_ails(facts.host, STATUS))?;
    let allowed = allowed.intersection(online);
    let found = if &allowed == online {
        format!("programs started from here may run on every core ({online})")
    } else {
        format!("programs started from here may run on {} of {online}", named(&allowed))
    };
    let workers = facts.workers()?;
    if !allowed.is_empty() && workers.difference(&allowed).is_empty() {
        return Ok(Finding::good(found));
    }
    let cost = format!("a worker cannot have {}: it is refused there", named(&workers.difference(&allowed)));
    Ok(Finding::costs(found, cost).advise(
        "let the cgroup have them (cpuset.cpus; docker: --cpuset-cpus) and start without taskset or CPUAffinity=",
    ))
}

/// The folders of this process's cgroup for a controller and of those above it, nearest first.
fn folders(facts: &Facts<'_>, controller: &str) -> Result<Vec<String>, Unseen> {
    let text = seen::text(facts.host, MEMBERSHIP)?;
    // cgroups(7): number, controllers, path.
    let parse = |line: &str| -> Option<(String, String)> {
        let (number, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        (number.parse::<u32>().is_ok() && path.starts_with('/')).then(|| (controllers.to_owned(), path.to_owned()))
    };
    let lines: Option<Vec<_>> = text.lines().map(parse).collect();
    let lines = lines.filter(|lines| !lines.is_empty()).ok_or_else(|| Unseen::malformed(MEMBERSHIP, &text))?;
    let first = lines.iter().find(|(controllers, _)| controllers.split(',').any(|name| name == controller));
    let second = lines.iter().find(|(controllers, _)| controllers.is_empty());
    let (mount, path) = match (first, second) {
        (Some((controllers, path)), _) => (format!("/sys/fs/cgroup/{controllers}"), path),
        (None, Some((_, path))) => ("/sys/fs/cgroup".into(), path),
        (None, None) => return Ok(Vec::new()),
    };
    let path = Path::new(path.trim_start_matches('/'));
    if path.components().any(|part| !matches!(part, Component::Normal(_))) {
        return Ok(vec![mount]);
    }
    Ok(path.ancestors().map(|part| Path::new(&mount).join(part).to_string_lossy().into_owned()).collect())
}

fn hugetlb(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    /// The usual pool of frames.
    const POOL_BYTES: u64 = 20 << 20;
    let mut least: Option<(u64, String)> = None;
    for folder in folders(facts, "hugetlb")? {
        // What may be in use, and what may be promised: a mapping needs both. First version 2, then version 1.
        for file in
            ["hugetlb.2MB.max", "hugetlb.2MB.rsvd.max", "hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.rsvd.limit_in_bytes"]
        {
            let path = format!("{folder}/{file}");
            let text = match seen::text(facts.host, &path) {
                Err(Unseen::Missing(_)) => continue,
                text => text?,
            };
            if text == "max" {
                continue;
            }
            let bytes: u64 = text.parse().map_err(|_| Unseen::malformed(&path, &text))?;
            if least.as_ref().is_none_or(|(least, _)| bytes < *least) {
                least = Some((bytes, format!("{} MiB in pages of 2 MiB ({path})", bytes >> 20)));
            }
        }
    }
    match least {
        // Version 1 says "no limit" by a number near 2^63.
        Some((bytes, what)) if bytes < POOL_BYTES => Ok(Finding::costs(format!("at most {what}"), super::memory::SMALL_PAGES)
            .advise("raise the limit (Kubernetes: resources.limits of hugepages-2Mi; else: the cgroup's hugetlb.2MB.max, and rsvd.max)")),
        Some((bytes, what)) if bytes < 1 << 50 => Ok(Finding::good(format!("at most {what}"))),
        _ => Ok(Finding::good("no cgroup limits hugepages")),
    }
}

fn devices(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    /// linux/miscdevice.h: /dev/vfio/vfio.
    const VFIO: (u32, u32) = (10, 196);
    let folders = folders(facts, "devices")?;
    for folder in &folders {
        let path = format!("{folder}/devices.list");
        let text = match seen::text(facts.host, &path) {
            Err(Unseen::Missing(_)) => continue,
            text => text?,
        };
        let rules: Option<Vec<_>> = text.lines().map(rule).collect();
        let rules = rules.ok_or_else(|| Unseen::malformed(&path, &text))?;
        let groups = vfio_major(facts).map(|major| (major, 0));
        let lets = |device: (u32, u32)| rules.iter().any(|rule| rule.covers(device));
        return Ok(if lets(VFIO) && groups.is_none_or(lets) {
            Finding::good("the cgroup lets this process open VFIO's nodes")
        } else {
            Finding::broken(
                format!("the cgroup keeps VFIO's nodes from this process ({path})"),
                "no card can be driven from here",
            )
            .advise("start the container with --device /dev/vfio/vfio and the group's node, or by a device plugin")
        });
    }
    match container(facts) {
        None => Ok(Finding::good("no container limits which devices may be opened")),
        Some(name) => Err(Unseen::because(format!(
            "which devices this container ({name}) may open is in a program of the kernel that cannot be read (cgroup v2)"
        ))),
    }
}

/// A line of devices.list: `c 10:196 rwm`, of which numbers may be `*`.
struct Rule {
    characters: bool,
    major: Option<u32>,
    minor: Option<u32>,
    reads_and_writes: bool,
}

impl Rule {
    fn covers(&self, (major, minor): (u32, u32)) -> bool {
        let fits = |own: Option<u32>, other| own.is_none_or(|own| own == other);
        // Which group it will be is not known: a rule for any of the major's nodes will do.
        self.characters && self.reads_and_writes && fits(self.major, major) && (fits(self.minor, minor) || minor == 0)
    }
}

fn rule(line: &str) -> Option<Rule> {
    let mut words = line.split_whitespace();
    let (kind, numbers, access) = (words.next()?, words.next()?, words.next()?);
    let (major, minor) = numbers.split_once(':')?;
    let number = |text: &str| if text == "*" { Some(None) } else { text.parse().ok().map(Some) };
    Some(Rule {
        characters: match kind {
            "a" | "c" => true,
            "b" => false,
            _ => return None,
        },
        major: number(major)?,
        minor: number(minor)?,
        reads_and_writes: access.contains('r') && access.contains('w'),
    })
}

/// The major number of VFIO's groups, which the kernel chooses.
fn vfio_major(facts: &Facts<'_>) -> Option<u32> {
    let text = facts.host.read("/proc/devices")?;
    text.lines().find_map(|line| line.trim().strip_suffix(" vfio")?.trim().parse().ok())
}

/// What Kubernetes' SR-IOV device plugin handed to this container.
fn pcidevice(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    let variables =
        facts.environment.iter().filter(|(name, _)| name.starts_with("PCIDEVICE_") && !name.ends_with("_INFO"));
    let mut handed = Vec::new();
    for (name, value) in variables {
        for address in value.split(',').map(str::trim).filter(|address| !address.is_empty()) {
            let bdf: Bdf = address
                .parse()
                .map_err(|_| Unseen::because(format!("{}={} is no PCI address", printable(name), printable(value))))?;
            handed.push(bdf);
        }
    }
    if handed.is_empty() {
        return Ok(Finding::good(if in_kubernetes(facts) {
            "no PCI device was handed to this container (no PCIDEVICE_*)"
        } else {
            "not a Kubernetes pod"
        }));
    }
    const COST: &str = "this container cannot drive the card it was given";
    for &bdf in &handed {
        let Some(device) = facts.host.sysfs().device(bdf) else {
            return Ok(Finding::broken(format!("{bdf} was handed to this container, and is not in its /sys"), COST)
                .advise("mount the host's /sys, and check the device plugin"));
        };
        let driver = device.driver().unwrap_or_else(|| "no driver".into());
        if !driver.contains("vfio") {
            return Ok(Finding::broken(
                format!("{bdf} was handed to this container, and {} has it", printable(&driver)),
                COST,
            )
            .advise("ask for a resource of the device plugin whose devices are bound to vfio-pci"));
        }
        if let Some(finding) = super::devices::blocked(&device) {
            return Ok(finding);
        }
        if let Some(finding) = super::user::closed(facts, &device)? {
            return Ok(finding);
        }
    }
    Ok(Finding::good(format!("this container was handed {}", few(handed.iter().map(ToString::to_string)))))
}

/// The CPU manager's static policy gives a container of a Guaranteed pod cores of its own, by a cpuset.
fn cpu_manager(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    if !in_kubernetes(facts) {
        return Ok(Finding::good("not a Kubernetes pod"));
    }
    const STATUS: &str = "/proc/self/status";
    let online = facts.online()?;
    let allowed =
        facts.topology.allowed().ok_or_else(|| super::facts::whatever_ails(facts.host, STATUS))?.intersection(online);
    if &allowed == online {
        return Ok(Finding::costs("this container may run on every core: it has none of its own", super::cores::NOT_ISOLATED)
            .advise("set cpuManagerPolicy: static on the node, and give the pod equal, whole-numbered requests and limits of cpu"));
    }
    Ok(Finding::good(format!(
        "this container has {}: {} of {}",
        named(&allowed),
        count(allowed.len(), "core"),
        online.len()
    )))
}

#[cfg(test)]
mod tests {
    use super::super::fake::Tree;
    use super::super::item::State;

    #[test]
    fn hugepages_that_may_not_be_promised_cannot_be_had() {
        let tree = Tree::tuned(2, 1, 1, "1");
        tree.set("/proc/self/cgroup", "0::/box\n").set("/sys/fs/cgroup/box/hugetlb.2MB.max", "max\n");
        assert_eq!(tree.state("container.hugetlb"), State::Good);
        tree.set("/sys/fs/cgroup/box/hugetlb.2MB.rsvd.max", "4194304\n");
        let item = tree.item("container.hugetlb");
        assert!(item.state == State::Costs && item.found.contains("at most 4 MiB"), "{item:?}");
        assert!(item.found.contains("rsvd") && item.remedy.text().contains("rsvd"), "{item:?}");
    }
}
