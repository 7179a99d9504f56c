//! DPDK's vhost as the back end: `dpdk-testpmd`, which sends every frame back. They run, as root, when SPINWAKE_TEST_TIER lists
//! `host`, one at a time: each takes a core for itself.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::rig::{Rig, socket, wait};

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Whether such a test can run; says why not.
fn turn() -> Option<MutexGuard<'static, ()>> {
    if !std::env::var("SPINWAKE_TEST_TIER").is_ok_and(|tiers| tiers.contains("host")) {
        eprintln!("skipped: SPINWAKE_TEST_TIER does not list host");
        return None;
    }
    if Command::new("dpdk-testpmd").arg("--version").output().is_err() {
        eprintln!("skipped: no dpdk-testpmd (Debian: dpdk-dev)");
        return None;
    }
    Some(ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A running testpmd.
struct Testpmd(Child);

impl Testpmd {
    fn start(path: &Path, queues: usize, options: &str) -> Self {
        let socket = path.display();
        let vdev = format!("net_vhost0,iface={socket},queues={queues}{options}");
        let prefix = format!("--file-prefix=sw{}", std::process::id());
        let eal =
            ["--lcores", "0@0,1@1", "--no-pci", "--no-huge", "--no-telemetry", "-m", "256", "--vdev", &vdev, &prefix];
        let queues = queues.to_string();
        let own = ["--", "--forward-mode=io", "--nb-cores=1", "--total-num-mbufs=16384", "--auto-start"];
        let counts = [format!("--rxq={queues}"), format!("--txq={queues}"), "--stats-period=1000".into()];
        let mut command = Command::new("dpdk-testpmd");
        let child = command.args(eal).args(own).args(counts).stdin(Stdio::null()).stdout(Stdio::null());
        let testpmd = Self(child.stderr(Stdio::null()).spawn().unwrap());
        let listens = !options.contains("client=1");
        wait("testpmd's start", || !listens || path.exists());
        testpmd
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        // As if it had crashed: it says no farewell, and leaves its socket behind, on which it would not start again.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A minute of frames would show no more than these do, on rings of 256.
const FRAMES: usize = 5_000;

fn circle(keys: &str, queues: usize) {
    let Some(_turn) = turn() else { return };
    let (_dir, path) = socket();
    let _testpmd = Testpmd::start(&path, queues, "");
    let mut rig = Rig::open(&path, &format!(",queues={queues},rx_ring=256,tx_ring=256{keys}"));
    rig.until_circling();
    for len in [64, 60, 300, 1500] {
        for q in 0..queues {
            rig.circle(q, len, FRAMES);
        }
    }
    let stats = rig.port.stats();
    assert!(stats.queues.iter().all(|queue| queue.rx_lies == 0 && queue.tx_refused == 0), "{stats:?}");
    assert!(stats.extra.iter().all(|(_, count)| *count == 0), "{stats:?}");
    rig.end();
}

#[test]
fn host_frames_circle_through_dpdk_on_split_rings() {
    circle("", 1);
}

#[test]
fn host_frames_circle_through_dpdk_on_packed_rings() {
    circle(",packed=on", 1);
}

#[test]
fn host_frames_circle_through_dpdk_on_several_queues() {
    circle("", 2);
}

#[test]
fn host_frames_circle_through_dpdk_with_mergeable_buffers() {
    circle(",packed=on,mrg=on", 1);
}

#[test]
fn host_dpdk_is_killed_and_comes_back() {
    let Some(_turn) = turn() else { return };
    for keys in ["", ",packed=on"] {
        let (_dir, path) = socket();
        let mut testpmd = Testpmd::start(&path, 1, "");
        let mut rig = Rig::open(&path, keys);
        for _ in 0..3 {
            rig.until_circling();
            rig.circle(0, 64, 2000);
            drop(testpmd);
            rig.until_down();
            std::fs::remove_file(&path).unwrap();
            testpmd = Testpmd::start(&path, 1, "");
            let back = Instant::now();
            rig.until_up();
            println!("it had the rings {:?} after its socket was there", back.elapsed());
        }
        rig.end();
    }
}

#[test]
fn host_dpdk_connects_to_us() {
    let Some(_turn) = turn() else { return };
    let (_dir, path) = socket();
    let mut rig = Rig::open(&path, ",server=on");
    let testpmd = Testpmd::start(&path, 1, ",client=1");
    rig.until_up();
    rig.until_circling();
    rig.circle(0, 64, 2000);
    drop(testpmd);
    rig.until_down();
    std::thread::sleep(Duration::from_millis(50));
    let _testpmd = Testpmd::start(&path, 1, ",client=1");
    rig.until_up();
    rig.until_circling();
    rig.circle(0, 64, 2000);
    rig.end();
}
