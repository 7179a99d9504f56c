//! Cycles a frame of the whole path from a receive ring to a transmit ring, over two embedded NICs, in bursts of 32.
//!
//! `cargo bench -p spinwake-bench --bench path`
//!
//! The NICs run on a thread of their own, so descriptors and data come from another core's cache, as they would from a
//! device. Only turns that moved a full burst count. `benches/instructions` runs the same program under valgrind and
//! counts what `turn` executes.

use std::error::Error;
use std::time::{Duration, Instant};

use spinwake::frame::{BURST, Burst, Pool, PoolConfig};
use spinwake::port::{RxQueue, TxQueue};
use spinwake_bench::compare::Spread;
use spinwake_bench::{cycles, worker_core};

const ROUNDS: usize = 7;

fn main() -> Result<(), Box<dyn Error>> {
    // Under valgrind, where everything is slow, a fraction of the work counts the same instructions.
    let full_bursts: usize = std::env::var("SPINWAKE_BURSTS").map_or(Ok(20_000), |text| text.parse())?;
    worker_core()?;
    let mut ports = [spinwake_pmd::open("soft:,rate=max")?, spinwake_pmd::open("soft:,rate=0")?];
    let mut pool = Pool::new(&PoolConfig::default())?;
    let (mut from, mut to) = (ports[0].start()?, ports[1].start()?);
    let (rx, tx) = (&mut *from.rx[0], &mut *to.tx[0]);
    let mut burst = Burst::new();
    // A receive ring has no buffers before the first look at it.
    turn(rx, tx, &mut pool, &mut burst);

    let mut figures = Vec::new();
    for _ in 0..ROUNDS {
        let deadline = Instant::now() + Duration::from_secs(120);
        let mut full = Vec::with_capacity(full_bursts);
        while full.len() < full_bursts {
            if !rx.pending() {
                // The NICs' thread may need this core (under valgrind it does).
                std::thread::sleep(Duration::from_micros(100));
            }
            let mut moved = 0;
            let spent = cycles(|| moved = if rx.pending() { turn(rx, tx, &mut pool, &mut burst) } else { 0 });
            pool.give_burst(&mut burst);
            if moved == BURST {
                full.push(spent as f64 / BURST as f64);
            } else if Instant::now() > deadline {
                return Err(format!("only {} full bursts came in two minutes", full.len()).into());
            }
        }
        figures.push(Spread::of(&full).median);
    }
    println!("receive, forward and transmit, bursts of {BURST}, cycles a frame (median burst, {ROUNDS} rounds)");
    println!("  soft: to soft:   {}", Spread::of(&figures));
    println!("  of which reading the clock: {:.2}", cycles(|| ()) as f64 / BURST as f64);
    println!("frames {}", rx.counters().frames.get());
    Ok(())
}

/// What a forwarder does with one burst.
#[inline(never)]
fn turn(rx: &mut dyn RxQueue, tx: &mut dyn TxQueue, pool: &mut Pool, burst: &mut Burst) -> usize {
    let moved = rx.rx_burst(pool, burst);
    tx.tx_burst(pool, burst);
    moved
}
