//! The embedded NIC's own thread sleeps when it has nothing to do. In a process of its own, because all soft NICs of a
//! process share that thread.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use spinwake::frame::{Burst, Pool, PoolConfig};

/// The folder of the fabric's thread (proc(5)).
fn fabric() -> PathBuf {
    let tasks = fs::read_dir("/proc/self/task").unwrap().map(|entry| entry.unwrap().path());
    tasks
        .into_iter()
        .find(|task| fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "soft-fabric"))
        .unwrap()
}

/// Processor time that it has used, in nanoseconds.
fn cpu_ns() -> u64 {
    fs::read_to_string(fabric().join("schedstat")).unwrap().split(' ').next().unwrap().parse().unwrap()
}

/// How often it has gone to sleep.
fn sleeps() -> u64 {
    let status = fs::read_to_string(fabric().join("status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
    line.trim().parse().unwrap()
}

#[test]
fn idle_soft_nics_cost_nothing_and_a_driver_that_arms_and_disarms_does_not_wake_them() {
    let mut ports = [(); 2].map(|()| spinwake_pmd::open("soft:,rate=0").unwrap());
    let mut queues = ports.each_mut().map(|port| port.start().unwrap());
    let mut pool = Pool::new(&PoolConfig { frames: 4096, ..PoolConfig::default() }).unwrap();
    for rx in queues.iter_mut().flat_map(|q| &mut q.rx) {
        rx.rx_burst(&mut pool, &mut Burst::new());
    }
    std::thread::sleep(Duration::from_millis(100));

    let (before_ns, slept) = (cpu_ns(), sleeps());
    const ROUNDS: u32 = 200;
    const PAUSE: Duration = Duration::from_millis(10);
    let start = std::time::Instant::now();
    for _ in 0..ROUNDS {
        for rx in queues.iter_mut().flat_map(|q| &mut q.rx) {
            rx.arm();
            assert!(!rx.pending());
        }
        std::thread::sleep(PAUSE);
        queues.iter_mut().flat_map(|q| &mut q.rx).for_each(|rx| rx.disarm());
    }
    let span = start.elapsed();
    let used = Duration::from_nanos(cpu_ns() - before_ns);
    assert!(used < span / 1000, "{used:?} of {span:?}");
    // It looks up once a second by itself.
    let (woken, own) = (sleeps() - slept, span.as_secs() + 2);
    assert!(woken <= own, "{woken} sleeps in {span:?}, of which {own} are its own");
    println!("{used:?} of {span:?}, {woken} sleeps");
}
