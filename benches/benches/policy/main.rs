//! The wait policy beside the rules of others, over traces of idle gaps, in virtual time.
//!
//!     cargo bench -p spinwake-bench --bench policy [-- --wake-us 25 --pcap FILE --markdown --plots]
//!
//! With the cost of a gap `g` under spin time `s` and wake-up cost `W` counted as `g` if `g <= s`, else `s + W`, the table shows
//! each rule's cost over that of knowing the future, the latency it adds to what ends a gap, and which share of idle time the
//! processor was busy. None of that depends on the machine it runs on: the same command prints the same figures. Only what learning
//! costs is measured.

mod forerunners;
mod replay;
mod rules;
mod traces;

use std::error::Error;
use std::path::{Path, PathBuf};

use clap::Parser;
use spinwake::clock::Clock;
use spinwake::wait::{Adaptive, Idle, Target, WakeCost};
use spinwake_apps::plot::{self, Axis, Frame, Series};
use spinwake_bench::cycles;

use replay::{Bill, Gaps, Machine, replay};
use rules::NAMES;
use traces::{Random, Trace};

#[derive(Debug, Parser)]
struct Options {
    /// What a wake-up adds to latency, in microseconds
    #[arg(long, default_value_t = 20.0)]
    wake_us: f64,
    /// Processor time of one sleep and wake-up, in microseconds; a quarter of what it adds to latency if not given
    #[arg(long)]
    cpu_us: Option<f64>,
    /// A capture whose inter-arrival times are replayed; a relative path starts at the benchmarks' folder
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/traces/http.pcap"))]
    pcap: PathBuf,
    /// Print Markdown tables, a row for each trace
    #[arg(long)]
    markdown: bool,
    /// Draw the plots anew
    #[arg(long)]
    plots: bool,
    /// What cargo passes to each benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

/// One look that finds nothing.
const POLL_NS: u64 = 100;

/// Where the plots are.
const PLOTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/plots");

/// What each rule paid for one trace; `None` where the rule makes no sense.
struct Row {
    trace: Trace,
    bills: Vec<Option<Bill>>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    if !(0.1..=1e6).contains(&options.wake_us) {
        return Err(format!("--wake-us {}: a wake-up takes from 0.1 to 1000000 us", options.wake_us).into());
    }
    let wake_ns = (options.wake_us * 1e3) as u64;
    let cpu_ns = options.cpu_us.map_or(wake_ns / 4, |us| (us * 1e3) as u64);
    let machine = Machine { wake_ns, cpu_ns, poll_ns: POLL_NS };
    let mut traces = traces::all(machine.sleep_ns());
    traces.push(traces::captured(&options.pcap)?);
    let rows: Vec<Row> = traces.into_iter().map(|trace| run(trace, machine)).collect();

    println!(
        "a wake-up adds {} us and takes {} us of the processor, W = {} us together; an empty look takes {POLL_NS} ns",
        us(wake_ns),
        us(cpu_ns),
        us(machine.sleep_ns())
    );
    if options.markdown {
        print_markdown(&rows)
    } else {
        print_text(&rows)
    }
    print_goals(&rows);
    println!(
        "\nlearning takes {:.0} ns a gap where gaps are looked through, {:.0} ns where each is slept in",
        learning_ns(5_000),
        learning_ns(200_000)
    );
    if options.plots {
        draw(Path::new(PLOTS), &rows, machine)?;
    }
    Ok(())
}

fn run(trace: Trace, machine: Machine) -> Row {
    let bill = |i| rules::rule(i, &trace.gaps, machine).map(|mut rule| replay(rule.as_mut(), &trace.gaps, machine));
    let bills = (0..NAMES.len()).map(bill).collect();
    Row { trace, bills }
}

fn us(ns: u64) -> f64 {
    ns as f64 / 1e3
}

fn print_text(rows: &[Row]) {
    for row in rows {
        println!("\n{}", row.trace.name);
        println!("  {:<18}{:>12}{:>14}{:>14}{:>12}", "", "cost / opt", "p50 added us", "p99 added us", "CPU share");
        for (name, bill) in NAMES.iter().zip(&row.bills) {
            let Some(bill) = bill else { continue };
            println!(
                "  {name:<18}{:>12.3}{:>14.1}{:>14.1}{:>11.1}%",
                bill.over_optimum(),
                bill.added_us(0.5),
                bill.added_us(0.99),
                100.0 * bill.cpu_share()
            );
        }
    }
}

fn print_markdown(rows: &[Row]) {
    println!("\nCost over optimum; latency added at p50 / p99 in us; share of the processor:\n");
    println!("| | {} |", NAMES.join(" | "));
    println!("|---|{}", "---|".repeat(NAMES.len()));
    for row in rows {
        let cell = |bill: &Option<Bill>| {
            bill.as_ref().map_or("–".to_owned(), |bill| {
                let (p50, p99) = (bill.added_us(0.5), bill.added_us(0.99));
                format!("{:.2}; {p50:.0} / {p99:.0}; {:.0}%", bill.over_optimum(), 100.0 * bill.cpu_share())
            })
        };
        let cells: Vec<String> = row.bills.iter().map(cell).collect();
        println!("| {} | {} |", row.trace.name, cells.join(" | "));
    }
}

/// What the policy is held to: see the module documentation of the sdk's `wait`.
fn print_goals(rows: &[Row]) {
    let cost = |row: &Row, name| {
        let index = NAMES.iter().position(|known| *known == name)?;
        row.bills[index].as_ref().map(Bill::over_optimum)
    };
    println!(
        "\nadaptive against the best fixed spin time (steady: at most 1.03, changing: below 1), the adversary: at most 2.1"
    );
    for row in rows {
        let Some(ours) = cost(row, "adaptive") else { continue };
        let (ratio, goal) = match cost(row, "best fixed") {
            Some(best) => {
                (ours / best, row.trace.steady.map(|steady| if steady { ours <= 1.03 * best } else { ours < best }))
            }
            None => (ours, Some(ours <= 2.1)),
        };
        let verdict = goal.map_or("", |kept| if kept { "kept" } else { "missed" });
        println!("  {:<28}{ratio:>8.4}  {verdict}", row.trace.name);
    }
}

/// Real time that the policy takes to learn from a gap, on average over many of this mean length: the least of some rounds.
fn learning_ns(mean_ns: u64) -> f64 {
    const GAPS: usize = 100_000;
    let gaps = traces::poisson(&mut Random(9), mean_ns as f64, GAPS);
    let cost = WakeCost { latency_ns: 25_000, latency_p99_ns: 40_000, cpu_ns: 6_000 };
    let mut policy = Adaptive::new(cost, Target::None);
    let mut round = || {
        cycles(|| {
            for gap_ns in &gaps {
                let spin_ns = policy.spin_ns();
                let looked = *gap_ns <= spin_ns;
                policy.learn(if looked { Idle::looked(*gap_ns) } else { Idle::slept(*gap_ns, spin_ns, 25_000) });
            }
        })
    };
    let least = (0..10).map(|_| round()).min().unwrap_or(0);
    Clock::get().ticks_to_ns(least) as f64 / GAPS as f64
}

/// Mean gaps of the plots over Poisson traffic, in wake-up costs, and how many gaps each takes.
const SWEEP: std::ops::RangeInclusive<i32> = -12..=12;
const SWEEP_GAPS: usize = 20_000;

/// One figure of a bill.
type Figure = fn(&Bill) -> f64;

fn draw(folder: &Path, rows: &[Row], machine: Machine) -> Result<(), Box<dyn Error>> {
    let mean = |step: i32| 10f64.powf(f64::from(step) / 6.0);
    let sweep: Vec<(f64, Row)> = SWEEP
        .map(|step| {
            let gaps = traces::poisson(&mut Random(7), mean(step) * machine.sleep_ns() as f64, SWEEP_GAPS);
            let trace = Trace { name: String::new(), steady: Some(true), gaps: Gaps::Fixed(gaps) };
            (mean(step), run(trace, machine))
        })
        .collect();
    let series = |value: Figure| -> Vec<Series> {
        let line = |i: usize| {
            sweep.iter().filter_map(move |(mean, row)| Some((*mean, value(row.bills[i].as_ref()?)))).collect()
        };
        (0..NAMES.len()).map(|i| Series { name: NAMES[i].into(), points: line(i) }).collect()
    };
    let x = Axis { label: "mean gap of Poisson traffic, in wake-up costs W", log: true };
    let plots: [(&str, &str, Axis<'_>, Figure); 3] = [
        (
            "policy-cost.svg",
            "What waiting costs, over what it would with the future known",
            Axis { label: "cost over optimum", log: true },
            Bill::over_optimum,
        ),
        (
            "policy-cpu.svg",
            "Processor time spent while idle",
            Axis { label: "share of idle time, %", log: false },
            |bill| 100.0 * bill.cpu_share(),
        ),
        (
            "policy-latency.svg",
            "Latency that waiting adds, at p99",
            Axis { label: "added latency, us (from 0.1)", log: true },
            |bill| bill.added_us(0.99).max(0.1),
        ),
    ];
    for (file, title, y, value) in plots {
        plot::lines(&folder.join(file), Frame { title, x, y }, &series(value))?;
    }
    let worst =
        |i: usize| rows.iter().filter_map(|row| row.bills[i].as_ref()).map(Bill::over_optimum).fold(0.0, f64::max);
    // A rule with a target keeps to that at any cost.
    let without_target = (0..NAMES.len()).filter(|i| !NAMES[*i].contains(':'));
    let bars: Vec<(String, f64)> = without_target.map(|i| (NAMES[i].to_owned(), worst(i))).collect();
    let title = "The worst of all traces; the adversary too, but for the two that know gaps beforehand";
    let y = Axis { label: "cost over optimum", log: true };
    plot::bars(&folder.join("policy-worst.svg"), Frame { title, x, y }, &bars)?;
    println!("\nplots are in {}", folder.display());
    Ok(())
}
