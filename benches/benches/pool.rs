//! Cycles an element of taking frames from a pool and giving them back, in bursts of 32, beside DPDK's pools.
//!
//! `cargo bench -p spinwake-bench --bench pool`

use std::error::Error;

use spinwake::dma::Domain;
use spinwake::frame::{BURST, Burst, Pool, PoolConfig};
use spinwake_bench::compare::{Comparison, Spread};
use spinwake_bench::dpdk::Peer;
use spinwake_bench::{cycles, worker_core};

const ROUNDS: usize = 7;
const TURNS: u64 = 20_000;
const REPEATS: usize = 50;

fn main() -> Result<(), Box<dyn Error>> {
    let core = worker_core()?;
    let mut pool = Pool::new_in(&Domain::new(), &PoolConfig::default())?;
    let mut burst: Burst = Burst::new();
    let peer = Peer::build("mempool");
    let (mut ours, mut singly, mut mempool, mut mbuf) = (vec![], vec![], vec![], vec![]);
    for round in 1..=ROUNDS {
        eprintln!("round {round} of {ROUNDS}");
        ours.push(best_of_repeats(|| {
            pool.take_burst(&mut burst);
            pool.give_burst(&mut burst);
        }));
        singly.push(best_of_repeats(|| {
            while !burst.is_full() {
                let Some(frame) = pool.take() else { break };
                burst.push(frame);
            }
            burst.drain(..).for_each(|frame| pool.give(frame));
        }));
        if let Ok(peer) = &peer {
            let figures = peer.run(core, &[])?;
            mempool.push(figures.get("mempool")?);
            mbuf.push(figures.get("mbuf")?);
        }
    }
    println!("take and give back, bursts of {BURST}, cycles an element (least of {REPEATS} repeats, {ROUNDS} rounds)");
    println!("  frames, by the burst   {}", Spread::of(&ours));
    println!("  frames, one by one     {}", Spread::of(&singly));
    match peer {
        Err(error) => println!("  DPDK: not measured: {error}"),
        Ok(_) => {
            println!("  DPDK packet buffers    {}", Spread::of(&mbuf));
            println!("  DPDK raw mempool       {}", Spread::of(&mempool));
            println!("  frames / DPDK packet buffers   {}", Comparison::of(&ours, &mbuf));
            println!("  frames / DPDK raw mempool      {}", Comparison::of(&ours, &mempool));
        }
    }
    Ok(())
}

/// Cycles an element of one turn, which moves a burst.
fn best_of_repeats(mut turn: impl FnMut()) -> f64 {
    let least = (0..REPEATS).map(|_| cycles(|| (0..TURNS).for_each(|_| turn()))).min().unwrap_or(0);
    least as f64 / (TURNS * BURST as u64) as f64
}
