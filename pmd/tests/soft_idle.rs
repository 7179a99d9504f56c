//! The embedded NIC's own thread sleeps when it has nothing to do. In a process of its own, because all soft NICs of a
//! process share that thread.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::time::Duration;

use spinwake::frame::{Burst, Pool, PoolConfig};

/// Processor time that the fabric's thread has used, in nanoseconds (proc(5), schedstat).
fn fabric_cpu_ns() -> u64 {
    let tasks = fs::read_dir("/proc/self/task").unwrap().map(|entry| entry.unwrap().path());
    let fabric = tasks
        .into_iter()
        .find(|task| fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "soft-fabric"))
        .unwrap();
    fs::read_to_string(fabric.join("schedstat")).unwrap().split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn an_idle_soft_nic_costs_less_than_half_a_percent_of_a_core() {
    let mut port = spinwake_pmd::open("soft:,rate=0").unwrap();
    let mut queues = port.start().unwrap();
    let mut pool = Pool::new(&PoolConfig { frames: 1024, ..PoolConfig::default() }).unwrap();
    queues.rx[0].rx_burst(&mut pool, &mut Burst::new());
    std::thread::sleep(Duration::from_millis(100));
    let before = fabric_cpu_ns();
    let span = Duration::from_secs(2);
    std::thread::sleep(span);
    let used = Duration::from_nanos(fabric_cpu_ns() - before);
    assert!(used < span / 200, "{used:?} of {span:?}");
}
