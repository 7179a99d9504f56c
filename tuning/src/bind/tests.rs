//! `bind`, `unbind` and `permit` on a machine made of files, whose kernel is played.

use super::unbind::UnbindReport;
use super::*;
use crate::effects::fake::Fake;

const BDF: &str = "0000:01:00.0";
const OTHER: &str = "0000:01:00.1";

/// A card of igb's, alone in group 7, with an interface that is down.
fn machine() -> Fake {
    let fake = Fake::new();
    fake.device(BDF, "0x020000", Some("igb"), Some(7));
    interface(&fake, BDF, "0x1002");
    for file in ["route", "fib_trie"] {
        fake.put(&format!("/proc/net/{file}"), "");
    }
    fake.put("/proc/self/mountinfo", "");
    fake
}

fn interface(fake: &Fake, bdf: &str, flags: &str) {
    fake.put(&format!("/sys/bus/pci/devices/{bdf}/net/eth0/flags"), flags);
}

fn give_address(fake: &Fake) {
    interface(fake, BDF, "0x1003");
    fake.put(
        "/proc/net/route",
        "Iface Destination Gateway Flags RefCnt Use Metric Mask\n\
         eth0 00000000 0100000A 0003 0 0 0 00000000\neth0 0000000A 00000000 0001 0 0 0 00FFFFFF\n",
    );
    fake.put("/proc/net/fib_trie", "|-- 10.0.0.7\n/32 host LOCAL\n");
}

fn args(devices: &[&str], force: u8) -> Args {
    Args { devices: devices.iter().map(|bdf| bdf.parse().unwrap()).collect(), force, persist: false }
}

fn try_bind(fake: &Fake, devices: &[&str], force: u8) -> Result<BindReport, BindError> {
    bind(&args(devices, force), fake.host(), fake)
}

fn try_unbind(fake: &Fake, devices: &[&str]) -> Result<UnbindReport, BindError> {
    let args = unbind::Args { devices: devices.iter().map(|bdf| bdf.parse().unwrap()).collect() };
    unbind::unbind(&args, fake.host(), fake)
}

/// The refusal, after which nothing may have been done.
fn refusal(fake: &Fake, devices: &[&str], force: u8) -> String {
    let error = try_bind(fake, devices, force).unwrap_err().to_string();
    assert!(fake.done.borrow().is_empty(), "{error}: {:?}", fake.done);
    error
}

fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
}

#[test]
fn a_device_goes_to_vfio_and_back_to_the_driver_it_had() {
    let fake = machine();
    let text = try_bind(&fake, &[BDF], 0).unwrap().to_string();
    assert_says(&text, &["is bound to vfio-pci now", "gives it back to igb", "driver igb", "group 7: it is alone"]);
    assert_eq!(fake.driver_of(BDF).as_deref(), Some("vfio-pci"));
    assert_says(&try_bind(&fake, &[BDF], 0).unwrap().to_string(), &["is bound to vfio-pci already"]);

    // Another driver knows the device, too, and the kernel would choose that one.
    fake.device("0000:09:00.0", "0x020000", Some("igb"), None);
    let text = try_unbind(&fake, &[BDF]).unwrap().to_string();
    assert_says(&text, &["is with igb again (was with vfio-pci)", "interface eth0"]);
    assert_eq!(fake.driver_of(BDF).as_deref(), Some("igb"));
    let device = fake.host().sysfs().device(BDF.parse().unwrap()).unwrap();
    assert_eq!(device.driver_override(), None);
    assert!(fake.host().names("/run/spinwake-tune/drivers").is_empty());
    assert_says(&try_unbind(&fake, &[BDF]).unwrap().to_string(), &["stays with igb"]);
}

#[test]
fn an_interface_that_is_up_needs_force_once() {
    let fake = machine();
    interface(&fake, BDF, "0x1003");
    assert_says(&refusal(&fake, &[BDF], 0), &["in use", "eth0 is up: `ip link set eth0 down`", "--force"]);
    assert_says(&try_bind(&fake, &[BDF], 1).unwrap().to_string(), &["lost: the interface eth0"]);
}

#[test]
fn the_default_route_needs_force_twice() {
    let fake = machine();
    give_address(&fake);
    let expected = ["eth0 has the default route", "`ip address delete 10.0.0.7/24 dev eth0`", "or say --force:"];
    assert_says(&refusal(&fake, &[BDF], 0), &expected);
    let expected = ["Say --force --force, and this is lost:", "this machine's way to the world", "10.0.0.7/24 of eth0"];
    assert_says(&refusal(&fake, &[BDF], 1), &expected);
    assert_says(&try_bind(&fake, &[BDF], 2).unwrap().to_string(), &["lost: this machine's way to the world"]);
}

#[test]
fn a_mounted_disk_needs_force_twice() {
    let fake = machine();
    fake.device("0000:03:00.0", "0x010802", Some("nvme"), Some(9));
    let disk = "/sys/bus/pci/devices/0000:03:00.0/nvme/nvme0/nvme0n1";
    fake.put(&format!("{disk}/dev"), "259:0");
    fake.link("/sys/class/block/nvme0n1", disk);
    fake.put("/proc/self/mountinfo", "1 0 259:0 / / rw - ext4 /dev/nvme0n1 rw\n");
    assert_says(&refusal(&fake, &["03:00.0"], 0), &["/dev/nvme0n1 is mounted at /", "`umount /`"]);
    assert_says(&refusal(&fake, &["03:00.0"], 1), &["--force --force", "the file system at / (on /dev/nvme0n1)"]);
    try_bind(&fake, &["03:00.0"], 2).unwrap();
    assert_eq!(fake.driver_of("0000:03:00.0").as_deref(), Some("vfio-pci"));
}

#[test]
fn a_device_of_any_kind_may_go_and_bridges_never() {
    let fake = machine();
    fake.device("0000:04:00.0", "0x00ff00", None, Some(4));
    fake.put("/sys/bus/pci/devices/0000:04:00.0/device", "0x11e8");
    let text = try_bind(&fake, &["04:00.0"], 0).unwrap().to_string();
    assert_says(&text, &["it had no driver before", "no driver of Spinwake knows this device"]);
    fake.done.borrow_mut().clear();
    fake.device("0000:05:00.0", "0x060400", Some("pcieport"), Some(4));
    assert_says(&refusal(&fake, &["05:00.0"], 9), &["is a bridge"]);
}

#[test]
fn nothing_is_written_for_any_when_one_is_refused() {
    let fake = machine();
    fake.device("0000:02:00.0", "0x020000", Some("igb"), None);
    assert_says(&refusal(&fake, &[BDF, "0000:02:00.0"], 2), &["02:00.0 is in no IOMMU group", "intel_iommu=on"]);
    assert_says(&refusal(&fake, &[BDF, "0f:00.0"], 2), &["no PCI device 0000:0f:00.0", "devices --all"]);
}

#[test]
fn a_driver_that_does_not_take_it_gives_it_back() {
    let fake = machine();
    fake.unwilling.borrow_mut().insert("vfio-pci".into());
    let error = try_bind(&fake, &[BDF], 0).unwrap_err().to_string();
    assert_says(&error, &["vfio-pci did not take it", "it is with igb again"]);
    assert_eq!(fake.driver_of(BDF).as_deref(), Some("igb"));
    let device = fake.host().sysfs().device(BDF.parse().unwrap()).unwrap();
    assert_eq!(device.driver_override(), None);
    assert!(fake.host().names("/run/spinwake-tune/drivers").is_empty());
}

#[test]
fn a_shared_folder_that_is_mounted_needs_force_twice() {
    let fake = machine();
    for (bdf, number, driver) in [("0000:06:00.0", 6, "9pnet_virtio"), ("0000:07:00.0", 7, "virtiofs")] {
        fake.device(bdf, "0x018000", Some("virtio-pci"), Some(number));
        let virtio = format!("/sys/bus/pci/devices/{bdf}/virtio{number}");
        fake.link(&format!("{virtio}/driver"), &format!("/sys/bus/virtio/drivers/{driver}"));
        fake.put(&format!("{virtio}/features"), "");
    }
    fake.put("/sys/bus/pci/devices/0000:06:00.0/virtio6/mount_tag", "/dev/root\0");
    fake.put(
        "/proc/self/mountinfo",
        "1 0 0:20 / / rw - 9p /dev/root rw\n2 1 0:21 / /mnt rw - virtiofs data rw\n3 1 0:22 / /x rw - 9p other rw\n",
    );
    assert_says(&refusal(&fake, &["06:00.0"], 0), &["the shared folder /dev/root is mounted at /", "`umount /`"]);
    // An older kernel does not say which of these mounts is this device's.
    assert_says(&refusal(&fake, &["07:00.0"], 1), &["the file system at /mnt"]);
    fake.put("/sys/fs/virtiofs/1/tag", "more\n");
    fake.link("/sys/fs/virtiofs/1/device", "/sys/bus/pci/devices/0000:07:00.0/virtio7");
    try_bind(&fake, &["07:00.0"], 0).unwrap();
}

#[test]
fn one_that_was_stopped_in_the_middle_still_knows_who_had_it() {
    let fake = machine();
    fake.put(&format!("/run/spinwake-tune/drivers/{BDF}"), "igb_of_ours\n");
    std::fs::remove_file(fake.host().path(format!("/sys/bus/pci/devices/{BDF}/driver"))).unwrap();
    fake.put(&format!("/sys/bus/pci/devices/{BDF}/driver_override"), "vfio-pci\n");
    fake.driver("igb_of_ours");
    try_bind(&fake, &[BDF], 0).unwrap();
    assert_says(&try_unbind(&fake, &[BDF]).unwrap().to_string(), &["is with igb_of_ours again"]);
}

#[test]
fn names_of_processes_do_nothing_to_a_terminal() {
    let fake = machine();
    fake.put("/proc/9/comm", "x\u{1b}[2J\ny\n");
    assert_eq!(Process::read(fake.host(), 9).name, "x?[2J?y");
}

#[test]
fn a_failure_names_those_that_were_bound_before() {
    let fake = machine();
    fake.device("0000:02:00.0", "0x020000", Some("igb"), Some(8));
    std::fs::remove_file(fake.host().path("/sys/bus/pci/devices/0000:02:00.0/driver_override")).unwrap();
    let error = try_bind(&fake, &[BDF, "02:00.0"], 0).unwrap_err().to_string();
    assert_says(
        &error,
        &["02:00.0/driver_override", "bound before that: 0000:01:00.0 (`spinwake-tune unbind 0000:01:00.0`"],
    );
    assert_eq!(fake.driver_of("0000:02:00.0").as_deref(), Some("igb"));
}

#[test]
fn the_module_is_loaded_after_all_checks() {
    let fake = machine();
    std::fs::remove_dir_all(fake.host().path("/sys/bus/pci/drivers/vfio-pci")).unwrap();
    let error = try_bind(&fake, &[BDF], 0).unwrap_err().to_string();
    assert_says(&error, &["cannot be loaded: `modprobe vfio-pci`: Module not found; nothing was changed"]);
    assert_eq!(fake.driver_of(BDF).as_deref(), Some("igb"));
    fake.loadable.borrow_mut().insert("vfio-pci".into());
    assert_says(&try_bind(&fake, &[BDF], 0).unwrap().to_string(), &["the module vfio-pci was loaded"]);
}

#[test]
fn the_others_of_a_group_are_named_with_what_becomes_of_them() {
    let fake = machine();
    fake.device(OTHER, "0x020000", Some("igb"), Some(7));
    fake.device("0000:01:00.2", "0x020000", None, Some(7));
    fake.device("0000:00:01.0", "0x060400", Some("pcieport"), Some(7));
    let text = try_bind(&fake, &[BDF], 0).unwrap().to_string();
    let expected = ["NOT USABLE YET", "01:00.1 stays with igb", "`spinwake-tune bind 0000:01:00.1`"];
    assert_says(&text, &expected);
    assert_says(&text, &["01:00.2 stays without a driver", "00:01.0 stays with pcieport, which may"]);
    let text = try_bind(&fake, &[BDF, OTHER], 0).unwrap().to_string();
    assert_says(&text, &["together with", "01:00.1 is with vfio-pci: whoever has one of them has the other, too"]);
    assert!(!text.contains("NOT USABLE"), "{text}");
}

#[test]
fn a_device_that_a_program_drives_is_not_taken_from_it() {
    let fake = machine();
    try_bind(&fake, &[BDF], 0).unwrap();
    fake.put("/proc/88/comm", "l2fwd\n");
    fake.link_to("/proc/88/fd/4", "/dev/vfio/7");
    let error = try_unbind(&fake, &[BDF]).unwrap_err().to_string();
    assert_says(&error, &["driven by process 88 (l2fwd)", "`kill 88`"]);
    assert_eq!(fake.driver_of(BDF).as_deref(), Some("vfio-pci"));
}

#[test]
fn a_driver_whose_module_has_gone_is_loaded_again() {
    let fake = machine();
    try_bind(&fake, &[BDF], 0).unwrap();
    std::fs::remove_dir_all(fake.host().path("/sys/bus/pci/drivers/igb")).unwrap();
    assert_says(&try_unbind(&fake, &[BDF]).unwrap().to_string(), &["has no driver", "taken from igb, which did not"]);
    try_bind(&fake, &[BDF], 0).unwrap();
    // Nobody remembers its driver now: the module that names the device brings it.
    fake.loadable.borrow_mut().insert(format!("pci:{BDF}"));
    assert_says(&try_unbind(&fake, &[BDF]).unwrap().to_string(), &["is with igb again"]);
}

#[test]
fn virtual_functions_count_as_uses() {
    let fake = machine();
    fake.link(&format!("/sys/bus/pci/devices/{BDF}/virtfn0"), &format!("/sys/bus/pci/devices/{OTHER}"));
    fake.device(OTHER, "0x020000", Some("vfio-pci"), Some(8));
    assert_says(&refusal(&fake, &[BDF], 1), &["its 1 virtual functions, whoever has them"]);
}

#[test]
fn an_odd_memory_of_the_earlier_driver_is_not_believed() {
    let fake = machine();
    for text in ["", "../../evil", ".", "a\nb"] {
        fake.put(&format!("/run/spinwake-tune/drivers/{BDF}"), text);
        assert_eq!(hand_over::remembered(fake.host(), BDF.parse().unwrap()), None, "{text}");
    }
}

#[test]
fn a_rule_binds_it_at_each_start_until_it_is_given_back() {
    let fake = machine();
    let args = Args { persist: true, ..args(&[BDF], 0) };
    let path = "/etc/udev/rules.d/60-spinwake-bind-0000:01:00.0.rules";
    assert_says(&bind(&args, fake.host(), &fake).unwrap().to_string(), &["at each start", path]);
    let rule = fake.host().read(path).unwrap();
    assert_says(
        &rule,
        &["KERNEL==\"0000:01:00.0\", ATTR{vendor}==\"0x8086\", ATTR{device}==\"0x10c9\"", "modprobe vfio-pci"],
    );
    assert_says(&rule, &["ATTR{driver_override}=\"vfio-pci\"", "echo 0000:01:00.0 > /sys/bus/pci/drivers_probe"]);
    assert_says(&try_unbind(&fake, &[BDF]).unwrap().to_string(), &["is with igb again", &format!("removed: {path}")]);
    assert!(!fake.host().has(path));
}

mod permission {
    use super::*;
    use crate::bind::permit::{PermitError, PermitReport, permit};

    fn bound() -> Fake {
        let fake = machine();
        fake.put("/etc/passwd", "root:x:0:0::/:\nann:x:1000:1000::/:\n");
        fake.put("/etc/group", "root:x:0:\nnet:x:44:\n");
        fake.put("/dev/vfio/7", "");
        fake.put("/dev/vfio/vfio", "");
        try_bind(&fake, &[BDF], 0).unwrap();
        fake.done.borrow_mut().clear();
        fake
    }

    fn try_permit(fake: &Fake, words: &[&str]) -> Result<PermitReport, PermitError> {
        use clap::{Args as _, FromArgMatches as _};
        let command = permit::Args::augment_args(clap::Command::new("permit"));
        let matches = command.try_get_matches_from(["permit", BDF].iter().chain(words)).unwrap();
        permit(&permit::Args::from_arg_matches(&matches).unwrap(), fake.host(), fake)
    }

    #[test]
    fn a_user_gets_the_group_s_node() {
        let fake = bound();
        let text = try_permit(&fake, &["--user", "ann"]).unwrap().to_string();
        assert_says(
            &text,
            &["user ann may drive 0000:01:00.0: /dev/vfio/7 is user 1000", "ulimit -l 524288", "--persist"],
        );
        assert_says(&text, &["/dev/vfio/vfio is not open to everybody"]);
        assert!(fake.done.borrow()[0].starts_with("give /dev/vfio/7 1000 "), "{:?}", fake.done);
        assert_eq!(fake.done.borrow().len(), 1);
    }

    #[test]
    fn persisting_writes_a_rule_and_a_limit_and_revoking_removes_the_rule() {
        let fake = bound();
        let text = try_permit(&fake, &["--group", "net", "--persist", "--memlock", "64"]).unwrap().to_string();
        assert_says(
            &text,
            &["group net may drive", "written: /etc/udev/rules.d/60-spinwake-permit-0000:01:00.0.rules"],
        );
        let rule = fake.host().read("/etc/udev/rules.d/60-spinwake-permit-0000:01:00.0.rules").unwrap();
        assert_says(
            &rule,
            &["TEST==\"/sys/kernel/iommu_groups/%k/devices/0000:01:00.0\"", "GROUP=\"44\"", "MODE=\"066"],
        );
        let limits = fake.host().read("/etc/security/limits.d/60-spinwake-group-net.conf").unwrap();
        assert!(limits.ends_with("@net - memlock 65536"), "{limits}");
        let text = try_permit(&fake, &["--revoke"]).unwrap().to_string();
        assert_says(
            &text,
            &["only root may drive", "removed: /etc/udev/rules.d/60-spinwake-permit-0000:01:00.0.rules"],
        );
        assert!(fake.done.borrow().contains(&"give /dev/vfio/7 0 0 0600".to_owned()), "{:?}", fake.done);
    }

    #[test]
    fn a_permission_is_taken_away_without_the_device() {
        let fake = bound();
        try_permit(&fake, &["--user", "ann", "--persist"]).unwrap();
        let rule = "/etc/udev/rules.d/60-spinwake-permit-0000:01:00.0.rules";
        try_unbind(&fake, &[BDF]).unwrap();
        assert!(fake.host().has(rule));
        let text = try_permit(&fake, &["--revoke"]).unwrap().to_string();
        assert_says(&text, &["nobody may drive 0000:01:00.0 as it is", &format!("removed: {rule}")]);
        assert!(!fake.host().has(rule));
        assert_says(&try_permit(&fake, &["--revoke"]).unwrap_err().to_string(), &["is with igb"]);
    }

    #[test]
    fn what_cannot_be_permitted_is_told() {
        let fake = bound();
        let error = try_permit(&fake, &["--user", "bob"]).unwrap_err().to_string();
        assert_says(&error, &["no user \"bob\""]);
        try_unbind(&fake, &[BDF]).unwrap();
        fake.done.borrow_mut().clear();
        let error = try_permit(&fake, &["--user", "ann"]).unwrap_err().to_string();
        assert_says(&error, &["is with igb", "spinwake-tune bind 0000:01:00.0"]);
        assert!(fake.done.borrow().is_empty());
    }
}
