//! Whole machines made of files, judged.

use proptest::prelude::*;

use super::fake::{CARD, Tree, item};
use super::*;
use crate::output::Report;
use crate::placement::Placement;

fn states(report: &CheckReport, state: State) -> Vec<&str> {
    report.items.iter().filter(|item| item.state == state).map(|item| item.id.as_str()).collect()
}

fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
}

#[test]
fn a_stock_machine_is_told_all_that_ails_it() {
    let report = Tree::cores(128, 2, 2).check();
    assert_eq!(states(&report, State::Broken), ["devices.iommu", "devices.vfio"]);
    assert_eq!(states(&report, State::Unknown), ["devices.iommu_mode", "devices.groups"], "without an IOMMU");
    assert_eq!(
        states(&report, State::Costs),
        [
            "cores.isolated",
            "cores.tasks",
            "cores.nohz_full",
            "cores.rcu_nocbs",
            "interrupts.default_affinity",
            "kernel.threads",
            "kernel.workqueues",
            "kernel.watchdogs",
            "kernel.numa_balancing",
            "kernel.mitigations",
            "power.governor",
            "power.turbo",
            "power.c_states",
            "power.dma_latency",
            "memory.hugepages",
            "memory.thp",
            "memory.swap",
            "devices.bound",
        ]
    );
    assert_eq!(report.exit_code(), 1);
    for item in &report.items {
        assert_eq!(item.state == State::Good, item.cost.is_empty() && item.state != State::Unknown, "{item:?}");
        assert!(
            item.state == State::Good || item.state == State::Unknown || !item.remedy.text().is_empty(),
            "{item:?}"
        );
        assert!(!item.found.is_empty());
    }
}

#[test]
fn a_tuned_machine_has_nothing_to_mend_but_what_is_said() {
    let report = Tree::tuned(128, 2, 2, "32-63,96-127").check();
    assert_eq!(states(&report, State::Broken), [""; 0]);
    assert_eq!(states(&report, State::Unknown), [""; 0]);
    assert_eq!(states(&report, State::Costs), ["kernel.mitigations"]);
    assert_eq!(report.exit_code(), 0);
    assert_says(
        &report.to_string(),
        &["cores 32-63,96-127", "0 broken, 1 cost latency, 0 unknown", "spinwake-tune jitter --core 32"],
    );
}

#[test]
fn what_needs_a_boot_comes_first() {
    let text = Tree::cores(2, 1, 1).check().to_string();
    let next = text.split("Next, as root:").nth(1).unwrap();
    assert_eq!(
        next, "\n    spinwake-tune apply low-latency --cores 1 --boot\n    reboot\n    spinwake-tune check",
        "{text}"
    );

    let tree = Tree::tuned(2, 1, 1, "1");
    tree.set("/proc/irq/30/effective_affinity_list", "1").remove("/sys/bus/pci/drivers/vfio-pci");
    tree.set("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "0");
    let text = tree.check().to_string();
    let next: Vec<_> = text.split("Next, as root:").nth(1).unwrap().lines().skip(1).map(str::trim).collect();
    let reserve = "spinwake-tune hugepages reserve 64 --size 2M --persist";
    assert_eq!(
        next,
        ["modprobe vfio-pci", "spinwake-tune apply low-latency", reserve, "spinwake-tune check"],
        "{text}"
    );
}

#[test]
fn without_a_known_boot_loader_it_says_what_to_write_where_that_is_read() {
    let tree = Tree::cores(2, 1, 1);
    tree.remove("/etc/default/grub");
    let report = tree.check();
    let text = report.to_string();
    assert!(!text.contains("--boot") && !text.contains("    reboot"), "{text}");
    let remedy = report.items[0].remedy.text();
    assert_says(remedy, &["`isolcpus=managed_irq,domain,1 ", " nohz_full=1 ", "neither GRUB nor systemd-boot"]);
    let mut only_by_hand = report;
    only_by_hand.items.retain(|item| item.id == "cores.isolated");
    let text = only_by_hand.to_string();
    let next = text.split("Next, as root:").nth(1).unwrap();
    assert_says(next, &["# what stands under \"do:\" above", "spinwake-tune jitter --core 1"]);
}

#[test]
fn json_is_what_was_promised() {
    let report = Tree::cores(2, 1, 1).check();
    let json: serde_json::Value = serde_json::to_value(&report).unwrap();
    let isolated = &json["items"][0];
    let keys: Vec<_> = isolated.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["cost", "found", "id", "reboot", "remedy", "state"]);
    assert_eq!(
        (&isolated["id"], &isolated["state"], &isolated["reboot"]),
        (&"cores.isolated".into(), &"costs".into(), &true.into())
    );
    assert_eq!(isolated["remedy"], "spinwake-tune apply low-latency --cores 1 --boot");
}

#[test]
fn an_empty_machine_is_unknown_throughout() {
    let report = Tree::empty().check();
    let known: Vec<_> = report.items.iter().filter(|item| item.state != State::Unknown).map(|item| &item.id).collect();
    // That there is no such environment variable or container is known all the same.
    assert_eq!(known, ["container.pcidevice", "container.cpu_manager"]);
    assert_eq!(report.exit_code(), 0);
    assert_says(&report.to_string(), &["an unknown number of cores", "no core to judge"]);
}

#[test]
fn a_core_more_or_less_is_noticed() {
    let tree = Tree::tuned(8, 2, 1, "3,7");
    assert_says(&tree.item("cores.smt").found, &["siblings among cores 3,7"]);
    tree.allow(400, "0-3");
    assert_says(&tree.item("cores.tasks").found, &["1 thread may run on cores 3,7: sshd (400)"]);
    assert_eq!(tree.item("cores.tasks").remedy.text(), "for thread in 400; do taskset -cp 0-2,4-6 $thread; done");
    tree.allow(400, "3");
    assert_says(&tree.item("cores.tasks").found, &["pinned there: sshd (400)"]);
    assert_eq!(tree.state("cores.tasks"), State::Good);
    tree.set("/sys/devices/system/cpu/isolated", "3");
    assert_eq!(tree.item("cores.smt").remedy.text(), "echo 0 > /sys/devices/system/cpu/cpu7/online");
    tree.set("/sys/devices/system/cpu/nohz_full", "(null)");
    assert_eq!(tree.state("cores.nohz_full"), State::Costs);
    tree.remove("/sys/devices/system/cpu/nohz_full");
    assert_says(&tree.item("cores.nohz_full").found, &["no CONFIG_NO_HZ_FULL"]);
    assert_eq!(tree.state("cores.rcu_nocbs"), State::Good, "rcu_nocbs does not need the other");
    tree.remove("/proc/10000");
    assert_says(&tree.item("cores.rcu_nocbs").found, &["no CONFIG_RCU_NOCB_CPU"]);
}

#[test]
fn interrupts_and_who_moves_them() {
    let tree = Tree::tuned(2, 1, 1, "1");
    tree.set("/proc/irq/30/effective_affinity_list", "1");
    assert_says(&tree.item("interrupts.affinity").found, &["1 of 1 interrupt delivered to core 1: 30 (nvme0q1)"]);
    assert_eq!(tree.state("interrupts.managed"), State::Unknown, "no debugfs");
    tree.set("/sys/kernel/debug/irq/irqs/30", "handler: x\ndstate:   0x37609200\n            IRQD_AFFINITY_MANAGED\n");
    assert_says(&tree.item("interrupts.managed").found, &["1 managed interrupt on core 1: 30 (nvme0q1)"]);
    tree.set("/sys/kernel/debug/irq/irqs/30", "handler: x\ndstate:   0x37609200\n");
    assert_eq!(tree.state("interrupts.managed"), State::Good);
    // An older kernel does not tell where one goes, only where it may.
    tree.remove("/proc/irq/30/effective_affinity_list");
    assert_eq!(tree.state("interrupts.affinity"), State::Good);
    tree.set("/proc/irq/30/smp_affinity_list", "0-1");
    assert_eq!(tree.state("interrupts.affinity"), State::Costs);
    // What VFIO hands to a program is the worker's own.
    tree.folder("/proc/irq/30/vfio-msix[0](0000:01:00.0)").remove("/proc/irq/30/nvme0q1");
    assert_eq!(tree.state("interrupts.affinity"), State::Good);
    tree.task(500, "irqbalance", 0x0040_0100, "0");
    assert_eq!(tree.item("interrupts.irqbalance").remedy.text(), "systemctl disable --now irqbalance");
}

#[test]
fn kernels_without_this_or_that() {
    let tree = Tree::tuned(2, 1, 1, "1");
    for file in ["watchdog", "nmi_watchdog", "soft_watchdog", "watchdog_cpumask", "numa_balancing"] {
        tree.remove(&format!("/proc/sys/kernel/{file}"));
    }
    tree.remove("/sys/kernel/mm/transparent_hugepage").remove("/sys/kernel/iommu_groups/0/type");
    assert_eq!(tree.state("kernel.watchdogs"), State::Good);
    assert_eq!(tree.state("kernel.numa_balancing"), State::Good);
    assert_eq!(tree.state("memory.thp"), State::Good);
    assert_eq!(tree.state("devices.iommu_mode"), State::Unknown, "Linux before 5.8");
    tree.remove("/sys/devices/system/cpu/cpu1/cpufreq").remove("/sys/devices/system/cpu/intel_pstate");
    assert_eq!(tree.state("power.governor"), State::Unknown);
    assert_eq!(tree.state("power.turbo"), State::Unknown);
    tree.set("/sys/devices/system/cpu/cpufreq/boost", "0");
    assert_eq!(tree.state("power.turbo"), State::Good);
    tree.remove("/sys/devices/system/cpu/cpu1/cpuidle").set("/sys/devices/system/cpu/cpuidle/current_driver", "none");
    assert_eq!(tree.state("power.c_states"), State::Good);
    tree.remove("/sys/devices/virtual/workqueue");
    assert_eq!(tree.state("kernel.workqueues"), State::Unknown);
}

#[test]
fn power_is_judged_on_the_cores_of_workers() {
    let tree = Tree::tuned(8, 1, 1, "4-7");
    assert_eq!((tree.state("power.governor"), tree.state("power.c_states")), (State::Good, State::Good));
    tree.set("/sys/devices/system/cpu/cpu5/cpufreq/scaling_governor", "powersave");
    assert_says(&tree.item("power.governor").found, &["performance on cores 4,6-7", "powersave on core 5"]);
    tree.set("/sys/devices/system/cpu/cpu5/cpuidle/state1/disable", "0");
    assert_says(&tree.item("power.c_states").found, &["C6, which takes 133 µs"]);
    assert_eq!(tree.state("power.dma_latency"), State::Costs);
    tree.set("/dev/cpu_dma_latency", 0u32.to_ne_bytes());
    assert_eq!((tree.state("power.c_states"), tree.state("power.dma_latency")), (State::Good, State::Good));
}

#[test]
fn hugepages_by_size_and_node() {
    let tree = Tree::tuned(128, 2, 2, "32-63");
    assert_says(&tree.item("memory.hugepages").found, &["64 of 2 MiB (64 free; node 0: 32, node 1: 32)"]);
    tree.set("/sys/devices/system/node/node1/hugepages/hugepages-2048kB/free_hugepages", "0");
    let item = tree.item("memory.hugepages");
    assert_says(&item.found, &["none free on node 1"]);
    assert_eq!(item.remedy.text(), "spinwake-tune hugepages reserve 64 --size 2M --node 1 --persist");
    tree.set("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "0");
    assert_says(&tree.item("memory.hugepages").found, &["all hugepages are taken"]);
    assert_eq!(tree.item("memory.hugepages").remedy.text(), "spinwake-tune hugepages reserve 128 --size 2M --persist");
}

#[test]
fn a_device_far_from_every_worker_is_named_with_the_distance() {
    let tree = Tree::tuned(128, 2, 2, "1-8");
    let item = tree.item("memory.numa");
    assert_says(&item.found, &[CARD, "node 1, distance 21"]);
    assert_says(item.remedy.text(), &["--cores 32-63,96-127 --boot"]);
    tree.set(format!("/sys/bus/pci/devices/{CARD}/numa_node"), "-1");
    assert_eq!(tree.state("memory.numa"), State::Unknown);
}

#[test]
fn devices_groups_and_bridges() {
    let tree = Tree::tuned(2, 1, 1, "1");
    let other = "0000:01:00.1";
    tree.set(format!("/sys/bus/pci/devices/{other}/class"), "0x010802").bind(other, "nvme").group(other, 0);
    let item = tree.item("devices.groups");
    assert_eq!((item.state, item.remedy.text()), (State::Broken, "spinwake-tune bind 0000:01:00.1"));
    tree.bind(CARD, "igb");
    assert_says(&tree.item("devices.groups").found, &["every network device shares its group"]);
    assert_says(tree.item("devices.bound").remedy.text(), &["spinwake-tune bind 0000:01:00.0"]);
    tree.set(format!("/sys/bus/pci/devices/{CARD}/net/eth0/flags"), "0x1003");
    assert_says(&tree.item("devices.bound").found, &["the kernel uses each that could be"]);
    tree.set("/sys/kernel/iommu_groups/0/type", "DMA-FQ");
    assert_eq!(tree.state("devices.iommu_mode"), State::Costs);
    tree.set("/sys/kernel/iommu_groups/0/name", "vfio-noiommu");
    assert_eq!(tree.state("devices.iommu"), State::Broken, "VFIO's mode without an IOMMU is none");
    tree.remove("/sys/firmware/acpi/tables/DMAR");
    assert_says(tree.item("devices.iommu").remedy.text(), &["VT-d", "firmware"]);
    tree.remove("/sys/bus/pci/drivers/vfio-pci").remove("/lib/modules/6.12.1/modules.dep");
    assert_says(&tree.item("devices.vfio").found, &["6.12.1", "not even as a module"]);
}

#[test]
fn access_control_of_bridges_is_read_from_their_configuration() {
    let tree = Tree::tuned(2, 1, 1, "1");
    let (bridge, real) = ("0000:00:01.0", "/sys/devices/pci0000:00/0000:00:01.0");
    tree.folder(&format!("{real}/0000:02:00.0")).link(&format!("/sys/bus/pci/devices/{bridge}"), real);
    tree.link("/sys/bus/pci/devices/0000:02:00.0", &format!("{real}/0000:02:00.0"));
    tree.set(format!("{real}/0000:02:00.0/class"), "0x020000");
    const ROOT_PORT: u8 = 4;
    const UPSTREAM: u8 = 5;
    let config = |len: usize, port: u8, offered: u16, control: u16| {
        let mut bytes = vec![0; len];
        bytes[..2].copy_from_slice(&[0x36, 0x1b]);
        if len > 0x42 {
            // A list of one: PCI Express, with the type of port.
            (bytes[0x06], bytes[0x34], bytes[0x40], bytes[0x42]) = (0x10, 0x40, 0x10, port << 4);
        }
        if len > 0x106 {
            bytes[0x100..0x104].copy_from_slice(&0x0001_000d_u32.to_le_bytes());
            bytes[0x104..0x106].copy_from_slice(&offered.to_le_bytes());
            bytes[0x106..0x108].copy_from_slice(&control.to_le_bytes());
        }
        tree.set(format!("{real}/config"), bytes);
        tree.item("devices.acs")
    };
    assert_eq!(config(4096, ROOT_PORT, 0x1f, 0x1d).state, State::Good);
    assert_says(&config(4096, ROOT_PORT, 0x1f, 0x1c).found, &["no access control on 0000:00:01.0"]);
    assert_eq!(config(4096, ROOT_PORT, 0x1d, 0x0d).state, State::Costs, "upstream forwarding is offered, and off");
    assert_eq!(config(4096, ROOT_PORT, 0x0f, 0x0d).state, State::Good, "and here it is not offered");
    assert_eq!(config(256, ROOT_PORT, 0, 0).state, State::Costs);
    assert_eq!(config(256, UPSTREAM, 0, 0).state, State::Good, "the ports below it do the separating");
    assert_eq!(config(4096, 7, 0x1d, 0x1d).state, State::Costs, "behind a bridge to old PCI all share one bus");
    assert_says(config(64, ROOT_PORT, 0, 0).remedy.text(), &["as root"]);
    assert_eq!(config(3, ROOT_PORT, 0, 0).state, State::Unknown);
    // What the kernel has made of it counts, by whatever it knows of the bridge.
    tree.group("0000:02:00.0", 7).group(bridge, 8);
    assert_eq!(config(256, ROOT_PORT, 0, 0).state, State::Good);
    tree.group(bridge, 7);
    assert_eq!(config(256, ROOT_PORT, 0, 0).state, State::Costs);
}

#[test]
fn an_ordinary_user_needs_the_node_and_memlock() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let tree = Tree::tuned(2, 1, 1, "1");
    let node = tree.host().path("/dev/vfio/0");
    let mode = |mode| std::fs::set_permissions(&node, std::fs::Permissions::from_mode(mode)).unwrap();
    std::fs::set_permissions(tree.host().path("/dev/vfio/vfio"), std::fs::Permissions::from_mode(0o666)).unwrap();
    std::fs::set_permissions(tree.host().path("/dev/cpu_dma_latency"), std::fs::Permissions::from_mode(0o600)).unwrap();
    let own = std::fs::metadata(&node).unwrap().uid();
    let stranger = own + 1;
    tree.user(stranger, 0, "8388608");
    mode(0o600);
    let item = tree.item("user.devices");
    assert_says(&item.found, &["/dev/vfio/0 of 0000:01:00.0", "mode 0600"]);
    assert_eq!(
        (item.state, item.remedy.text().to_owned()),
        (State::Broken, format!("spinwake-tune permit {CARD} --user {stranger}"))
    );
    tree.set("/etc/passwd", format!("root:x:0:0::/root:/bin/sh\nann:x:{stranger}:100::/home/ann:/bin/sh\n"));
    assert_eq!(tree.item("user.devices").remedy.text(), format!("spinwake-tune permit {CARD} --user ann"));
    tree.set("/etc/passwd", format!("$(reboot):x:{stranger}:100::/:/bin/sh\n"));
    assert_eq!(tree.item("user.devices").remedy.text(), format!("spinwake-tune permit {CARD} --user {stranger}"));
    assert_says(&tree.item("user.memlock").found, &["8 MiB"]);
    assert_eq!((tree.state("user.memlock"), tree.state("user.realtime")), (State::Broken, State::Good));
    assert_eq!(tree.state("user.dma_latency"), State::Good, "no deep state is on");
    tree.set("/sys/devices/system/cpu/cpu1/cpuidle/state1/disable", "0");
    assert_eq!(tree.state("user.dma_latency"), State::Costs);
    tree.set("/sys/devices/system/cpu/isolated", "");
    assert_eq!(tree.state("user.realtime"), State::Costs);
    tree.set("/sys/devices/system/cpu/isolated", "1");
    mode(0o666);
    tree.user(stranger, 0, "unlimited");
    assert_eq!((tree.state("user.devices"), tree.state("user.memlock")), (State::Good, State::Good));
    tree.remove("/dev/vfio/0");
    assert_says(&tree.item("user.devices").found, &["there is no /dev/vfio/0 here"]);
}

#[test]
fn a_virtual_machine_is_told_apart() {
    let tree = Tree::tuned(2, 1, 1, "1");
    assert_eq!(tree.state("machine.virtual"), State::Good);
    tree.set("/proc/cpuinfo", "flags : fpu hypervisor\n").set("/sys/class/dmi/id/sys_vendor", "QEMU\n");
    assert_says(&tree.item("machine.virtual").found, &["QEMU"]);
    assert_eq!((tree.state("machine.steal"), tree.state("machine.halt_polling")), (State::Good, State::Costs));
    assert_says(tree.item("machine.halt_polling").remedy.text(), &["--wait poll", "intel_idle never looks"]);
    for (way, state) in [("ACPI HLT", State::Costs), ("MWAIT 0x60", State::Good)] {
        tree.set("/sys/devices/system/cpu/cpu1/cpuidle/state0/desc", "CPUIDLE CORE POLL IDLE\n");
        tree.set("/sys/devices/system/cpu/cpu1/cpuidle/state1/desc", way);
        assert_eq!(tree.state("machine.halt_polling"), state, "{way}");
    }
    tree.remove("/sys/devices/system/cpu/cpu1/cpuidle").set("/sys/devices/system/cpu/cpuidle/current_driver", "none\n");
    assert_says(tree.item("machine.halt_polling").remedy.text(), &["on KVM", "--wait poll"]);
    tree.set("/sys/devices/system/cpu/cpuidle/available_governors", "menu teo haltpoll \n");
    assert_eq!(tree.item("machine.halt_polling").remedy.text(), "boot with cpuidle_haltpoll.force=1");
    tree.set("/lib/modules/6.12.1/modules.dep", "kernel/drivers/cpuidle/cpuidle-haltpoll.ko.xz:\n");
    assert_eq!(tree.item("machine.halt_polling").remedy.text(), "modprobe cpuidle-haltpoll force=1");
    tree.set("/proc/stat", "cpu0 1 1 1 1 1 1 1 1\ncpu1 10 0 0 80 0 0 0 10 0 0\n");
    assert_says(&tree.item("machine.steal").found, &["10.00% of the time of core 1"]);
    tree.set("/sys/devices/system/cpu/cpuidle/current_driver", "haltpoll");
    tree.set("/sys/module/haltpoll/parameters/guest_halt_poll_ns", "200000");
    assert_says(&tree.item("machine.halt_polling").found, &["200 µs"]);
    tree.set("/sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet");
    assert_says(tree.item("machine.clocksource").remedy.text(), &["echo tsc >"]);
    tree.set("/sys/devices/system/clocksource/clocksource0/available_clocksource", "hpet acpi_pm");
    assert_says(tree.item("machine.clocksource").remedy.text(), &["invariant TSC"]);
}

#[test]
fn cgroups_of_both_versions() {
    let tree = Tree::tuned(8, 1, 1, "4-7");
    tree.set("/proc/self/cgroup", "0::/kubepods/pod1/fwd\n")
        .set("/sys/fs/cgroup/kubepods/pod1/hugetlb.2MB.max", "4194304");
    tree.set("/sys/fs/cgroup/kubepods/hugetlb.2MB.max", "max");
    assert_says(&tree.item("container.hugetlb").found, &["at most 4 MiB", "pod1"]);
    tree.set("/sys/fs/cgroup/kubepods/pod1/fwd/cpuset.cpus.effective", "2-5");
    tree.set("/proc/self/status", "Cpus_allowed_list:\t2-3\n");
    let item = tree.item("container.cpuset");
    assert_says(&item.found, &["cores 2-5 of 0-7"]);
    assert_says(&item.cost, &["cannot have cores 6-7"]);

    tree.set("/proc/self/cgroup", "5:cpuset:/box\n4:devices:/box\n3:hugetlb:/box\n0::/\n");
    tree.set("/sys/fs/cgroup/hugetlb/box/hugetlb.2MB.limit_in_bytes", "9223372036854771712");
    assert_eq!(tree.state("container.hugetlb"), State::Good);
    tree.set("/sys/fs/cgroup/devices/box/devices.list", "c 1:3 rwm\nb *:* m\nc 10:196 rw\n")
        .set("/proc/devices", "Character devices:\n242 vfio\n");
    assert_eq!(tree.state("container.devices"), State::Broken);
    tree.set("/sys/fs/cgroup/devices/box/devices.list", "c 242:* rwm\nc 10:196 rw\n");
    assert_eq!(tree.state("container.devices"), State::Good);
    tree.set("/sys/fs/cgroup/devices/box/devices.list", "a *:* rwm");
    assert_eq!(tree.state("container.devices"), State::Good);
    tree.set("/proc/self/cgroup", "0::/../elsewhere\n").set("/.dockerenv", "");
    assert_eq!((tree.state("container.hugetlb"), tree.state("container.devices")), (State::Good, State::Unknown));
}

#[test]
fn what_kubernetes_handed_over_is_judged() {
    let tree = Tree::tuned(8, 1, 1, "4-7");
    let check = |value: &str, id: &str| {
        item(&tree.check_with(&[("PCIDEVICE_INTEL_COM_NIC", value), ("PCIDEVICE_INTEL_COM_NIC_INFO", "{}")], None), id)
    };
    assert_eq!(check(CARD, "container.pcidevice").state, State::Good);
    assert_eq!(check("0000:07:00.0", "container.pcidevice").state, State::Broken);
    assert_eq!(check("mdev-1", "container.pcidevice").state, State::Unknown);
    assert_eq!(check(CARD, "container.cpu_manager").state, State::Costs);
    tree.set("/proc/self/status", "Cpus_allowed_list:\t4-5\n").set("/proc/self/cgroup", "0::/\n");
    tree.set("/sys/fs/cgroup/cpuset.cpus.effective", "4-5");
    assert_says(&check(CARD, "container.cpu_manager").found, &["cores 4-5"]);
    tree.bind(CARD, "igb");
    assert_says(&check(CARD, "container.pcidevice").found, &["igb has it"]);
}

fn plan(text: &str) -> Placement {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    Placement::load(file.path()).unwrap()
}

#[test]
fn a_planned_placement_is_judged_worker_by_worker() {
    let tree = Tree::tuned(128, 2, 2, "32-35,96-97");
    let plan = plan(&format!(
        "[[workers]]\ncore = 32\nports = [\"pci:{CARD},queues=2\", \"vhost:/run/a.sock\"]\n[[workers]]\ncore = 96\n\
         [[workers]]\ncore = 2\nports = [\"pci:{CARD},queues=2\", \"pci:0000:09:00.0\", \"soft:\", \"af_warp:x\"]\n\
         [[workers]]\ncore = 34\n[[workers]]\ncore = 34\n[[workers]]\ncore = 500\n[memory]\nhugepages_mib = 200"
    ));
    let report = tree.check_with(&[], Some(&plan));
    let state = |id: &str| item(&report, id).state;
    let found = |id: &str| item(&report, id).found;
    assert_eq!(
        (state("worker.core@32"), state("worker.isolated@32"), state("worker.tick@32")),
        (State::Good, State::Good, State::Good)
    );
    assert_says(&found("worker.smt@32"), &["another worker's core 96"]);
    assert_says(&found("worker.smt@34"), &["core 98, where anything may run"]);
    assert_eq!((state("worker.isolated@2"), state("worker.tasks@2")), (State::Costs, State::Costs));
    assert_eq!(state(&format!("worker.numa@32/{CARD}")), State::Good);
    assert_says(&found(&format!("worker.numa@2/{CARD}")), &["core 2 is on node 0", "on node 1 (distance 21"]);
    assert_says(&found("worker.core@500"), &["core 500 does not exist"]);
    assert_eq!((state("worker.core@500"), state("worker.tasks@500")), (State::Broken, State::Unknown));
    let twice: Vec<_> = report.items.iter().filter(|item| item.id == "worker.core@34").map(|item| item.state).collect();
    assert_eq!(twice, [State::Good, State::Broken], "two workers on one core");
    assert_eq!(state(&format!("port.bound@{CARD}")), State::Good);
    assert_eq!(state("port.bound@0000:09:00.0"), State::Broken);
    assert_eq!(
        (state("port.socket@/run/a.sock"), state("port.needs@soft:"), state("port.needs@af_warp:x")),
        (State::Broken, State::Good, State::Unknown)
    );
    assert_eq!(
        item(&report, "memory.planned_hugepages").remedy.text(),
        "spinwake-tune hugepages reserve 100 --size 2M --persist"
    );
    assert_says(&report.to_string(), &["planned on cores 2,32,34,96"]);
}

#[test]
fn a_plan_without_cards_needs_no_iommu() {
    let report = Tree::cores(2, 1, 1).check_with(&[], Some(&plan("[[workers]]\ncore = 1\nports = [\"soft:\"]")));
    assert_eq!(states(&report, State::Broken), [""; 0]);
}

/// Bytes that are no file of the kernel's, and some that nearly are.
fn garbage() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 1..60)
            .prop_filter("no text of digits", |bytes| !bytes.iter().all(u8::is_ascii_digit)),
        "[^0-9a-zA-Z\\s]{1,20}".prop_map(String::into_bytes),
        Just(b"0-".to_vec()),
        Just(vec![0; 70]),
        Just(b"99999999999999999999-99999999999999999999".to_vec()),
    ]
}

/// What is known by a file or link being there, whatever it holds.
const BY_EXISTENCE: [&str; 7] = [
    "devices.iommu",
    "devices.vfio",
    "devices.bound",
    "devices.groups",
    "devices.acs",
    "container.pcidevice",
    "container.cpu_manager",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_machine_of_garbage_is_unknown_and_never_good(junk in prop::collection::vec(garbage(), 1..20)) {
        let tree = Tree::tuned(4, 1, 2, "2-3");
        for (index, file) in tree.files().iter().enumerate() {
            std::fs::write(file, &junk[index % junk.len()]).unwrap();
        }
        let plan = plan(&format!("[[workers]]\ncore = 2\nports = [\"pci:{CARD}\"]\n[memory]\nhugepages_mib = 2"));
        for plan in [None, Some(&plan)] {
            let report = tree.check_with(&[], plan);
            let _ = (report.to_string(), serde_json::to_string(&report).unwrap());
            for item in report.items.iter().filter(|item| !item.id.starts_with("port.") && !BY_EXISTENCE.contains(&item.id.as_str())) {
                prop_assert_eq!(item.state, State::Unknown, "{:?}", item);
            }
        }
    }

    #[test]
    fn one_spoilt_file_spoils_no_more_than_it_should(index in any::<prop::sample::Index>(), junk in garbage()) {
        let tree = Tree::tuned(4, 1, 2, "2-3");
        let ids = |report: &CheckReport| report.items.iter().map(|item| item.id.clone()).collect::<Vec<_>>();
        let before = tree.check();
        let files = tree.files();
        std::fs::write(index.get(&files), junk).unwrap();
        let after = tree.check();
        prop_assert_eq!(ids(&before), ids(&after));
        prop_assert!(after.to_string().lines().count() > 20);
    }
}

#[test]
fn every_file_matters_to_somebody_or_is_not_read() {
    // Each file taken away in turn: no panic, and the same items.
    let ids = |report: &CheckReport| report.items.iter().map(|item| item.id.clone()).collect::<Vec<_>>();
    let tree = Tree::tuned(2, 1, 1, "1");
    let whole = ids(&tree.check());
    for file in tree.files() {
        let kept = std::fs::read(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert_eq!(ids(&tree.check()), whole, "without {}", file.display());
        std::fs::write(&file, kept).unwrap();
    }
    assert_eq!(states(&tree.check(), State::Unknown), [""; 0]);
}
