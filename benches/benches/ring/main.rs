//! Rings between cores beside DPDK's `rte_ring`, on the work of its `ring_perf_autotest`: bursts of 32 from one core to
//! another, and through one core.
//!
//!     cargo bench -p spinwake-bench --bench ring [-- ROUNDS]
//!
//! Each round times ours once and runs `dpdk-test` once (where installed), one after the other, so that both meet the same
//! machine. Between two cores a figure is the TSC cycles of the pushing side for each element plus those of the popping
//! side, as DPDK counts; on one core it is those of a push and a pop together. DPDK's ring has 4096 slots, which its test
//! fixes. The least of the rounds says most about the ring, the rest about the machine's other business.

mod dpdk;
mod ours;

use spinwake::cpu::Topology;
use spinwake_bench::compare::Spread;

use ours::{Figure, Kind};

/// Rounds, unless the command line says otherwise.
const ROUNDS: usize = 7;

/// One line of the table.
struct Row {
    name: &'static str,
    kind: Kind,
    element_bytes: usize,
    capacity: usize,
}

const ROWS: [Row; 8] = [
    Row { name: "SPSC", kind: Kind::Single, element_bytes: 8, capacity: 4096 },
    Row { name: "SPSC", kind: Kind::Single, element_bytes: 8, capacity: 1024 },
    Row { name: "SPSC", kind: Kind::Single, element_bytes: 16, capacity: 4096 },
    Row { name: "SPSC", kind: Kind::Single, element_bytes: 16, capacity: 1024 },
    Row { name: "MPMC", kind: Kind::Multi, element_bytes: 8, capacity: 4096 },
    Row { name: "MPMC", kind: Kind::Multi, element_bytes: 8, capacity: 1024 },
    Row { name: "MPMC", kind: Kind::Multi, element_bytes: 16, capacity: 4096 },
    Row { name: "MPMC", kind: Kind::Multi, element_bytes: 16, capacity: 1024 },
];

fn main() {
    let rounds = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(ROUNDS).max(1);
    let cores: Vec<usize> = Topology::read().allowed().map_or_else(Vec::new, |cores| cores.iter().collect());
    let &[first, second, ..] = &cores[..] else {
        println!("this process may use {} core(s); the benchmark needs two", cores.len());
        return;
    };
    let peer = dpdk::Peer::find(first, second);
    if let Err(why) = &peer {
        println!("without DPDK's figures: {why}");
    }

    let mut ours: Vec<Vec<Figure>> = Vec::new();
    let mut theirs: Vec<dpdk::Figures> = Vec::new();
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        ours.push(
            ROWS.iter().map(|row| ours::measure(row.kind, row.element_bytes, row.capacity, first, second)).collect(),
        );
        match peer.as_ref().map(dpdk::Peer::run) {
            Ok(Ok(figures)) => theirs.push(figures),
            Ok(Err(why)) => println!("round {}: no figures from DPDK: {why}", round + 1),
            Err(_) => {}
        }
    }

    println!("\ncores {first} and {second}, bursts of 32, TSC cycles per element, {rounds} rounds");
    print_table(
        "two cores, push + pop",
        &ours,
        &theirs,
        |figure| figure.push + figure.pop,
        |dpdk, row| dpdk.two_cores(row),
    );
    println!("\nof which, at the least");
    for (i, row) in ROWS.iter().enumerate() {
        let push = Spread::of(ours.iter().map(|round| round[i].push));
        let pop = Spread::of(ours.iter().map(|round| round[i].pop));
        println!("{}  push {:5.2}  pop {:5.2}", row.label(), push.min, pop.min);
    }
    print_table("one core, push and pop", &ours, &theirs, |figure| figure.one_core, |dpdk, row| dpdk.one_core(row));
}

impl Row {
    fn label(&self) -> String {
        format!("{} {:2} B {:4} slots", self.name, self.element_bytes, self.capacity)
    }
}

fn print_table(
    title: &str,
    ours: &[Vec<Figure>],
    theirs: &[dpdk::Figures],
    of_ours: impl Fn(&Figure) -> f64,
    of_theirs: impl Fn(&dpdk::Figures, &Row) -> f64,
) {
    println!("\n{title:24}   ours: min median |  DPDK: min median | ours/DPDK: of mins; by round: median (range)");
    for (i, row) in ROWS.iter().enumerate() {
        let own = Spread::of(ours.iter().map(|round| of_ours(&round[i])));
        print!("{:24}   {:9.2} {:6.2}", row.label(), own.min, own.median);
        if theirs.is_empty() {
            println!(" |  not measured");
            continue;
        }
        let peer = Spread::of(theirs.iter().map(|round| of_theirs(round, row)));
        let ratio = Spread::of(ours.iter().zip(theirs).map(|(own, peer)| of_ours(&own[i]) / of_theirs(peer, row)));
        println!(
            " |  {:9.2} {:6.2} |  {:15.2} {:17.2} ({:.2}-{:.2})",
            peer.min,
            peer.median,
            own.min / peer.min,
            ratio.median,
            ratio.min,
            ratio.max
        );
    }
}
