//! Adaptive's p99 beside polling's where gaps are shorter than a wake-up, on a machine that stands still now and then.
//!
//! A machine whose host takes a core away for milliseconds, some times a second, has its p99 made by that: of a second's
//! frames one in a hundred waits for the host, under any policy, or not, by chance. So each run is cut into short windows,
//! most of which the host leaves alone; each window has a p99; and the median of these is what is compared. Polling
//! runs twice in each round, under two names: what the two differ by is what this machine cannot tell apart.

use std::error::Error;
use std::time::Duration;

use spinwake::wait::{Target, WaitPolicy};
use spinwake_pmd::soft::Gap;

use super::options::{Options, Pattern};
use super::rig::{Rig, Timing, Traffic, Windows, response_us};
use super::table::{Table, percent, us};

const POLICIES: [(&str, WaitPolicy); 3] =
    [("poll", WaitPolicy::Poll), ("poll again", WaitPolicy::Poll), ("adaptive", WaitPolicy::Adaptive(Target::None))];
/// Who comes first changes from round to round.
const ORDERS: [[usize; 3]; 6] = [[0, 2, 1], [1, 2, 0], [2, 0, 1], [2, 1, 0], [0, 1, 2], [1, 0, 2]];
const TIMING: Timing = Timing {
    warm_up: Duration::from_millis(150),
    window: Duration::from_millis(10),
    windows: 30,
    rest: Duration::from_millis(30),
};
/// Times that rounds are drawn anew, for the interval.
const DRAWS: usize = 2_000;
/// What of the drawn ratios lies within the interval.
const WITHIN: [f64; 2] = [0.025, 0.975];

/// One policy's windows, round by round.
type Rounds = Vec<Windows>;

/// Measures all and prints the tables.
pub(crate) fn measure(rig: &mut Rig, options: &Options) -> Result<(), Box<dyn Error>> {
    for &gap_us in options.tail_gaps.iter().filter(|_| options.tails > 0) {
        let traffic = Traffic { gap_us, pattern: Gap::Poisson };
        let mut policies: [Rounds; 3] = Default::default();
        for round in 0..options.tails {
            eprintln!("tails at gaps of {gap_us} us: round {} of {}", round + 1, options.tails);
            for at in ORDERS[round as usize % ORDERS.len()] {
                policies[at].push(rig.run_closely(POLICIES[at].1, traffic, TIMING)?);
            }
        }
        println!("{}", table(traffic, &policies, options.markdown)?);
    }
    Ok(())
}

fn table(traffic: Traffic, policies: &[Rounds; 3], markdown: bool) -> Result<Table, Box<dyn Error>> {
    let first = format!("{} gaps of {} us", Pattern(traffic.pattern), traffic.gap_us);
    let mut head = vec![first.as_str(), "p50", "p90", "p99 of a window, median", "its quartiles"];
    head.extend(["p99 / polling's", "95% of draws within", "p99 of all", "CPU", "parks/s"]);
    let mut table = Table::new(&head, markdown);
    let p99s: Vec<Vec<Vec<f64>>> =
        policies.iter().map(|rounds| rounds.iter().map(|round| round.p99_us.clone()).collect()).collect();
    for (((name, _), rounds), own) in POLICIES.iter().zip(policies).zip(&p99s) {
        let mut times = rounds.first().ok_or("nothing was measured")?.response_ns.clone();
        for round in &rounds[1..] {
            times.add(&round.response_ns).map_err(|error| format!("two histograms differ: {error}"))?;
        }
        let time: f64 = rounds.iter().map(|round| round.time.as_secs_f64()).sum();
        let cpu: f64 = rounds.iter().map(|round| round.cpu.as_secs_f64()).sum();
        let parks: u64 = rounds.iter().map(|round| round.parks).sum();
        let mut all = own.concat();
        let [low, median, high] = [0.25, 0.5, 0.75].map(|q| quantile(&mut all, q));
        let (ratio, [from, to]) = ratio(own, &p99s[0]);
        table.add(vec![
            (*name).to_string(),
            response_us(&times, 0.5).map_or("-".into(), us),
            response_us(&times, 0.9).map_or("-".into(), us),
            us(median),
            format!("{}-{}", us(low), us(high)),
            format!("{ratio:.3}"),
            format!("{from:.3}-{to:.3}"),
            response_us(&times, 0.99).map_or("-".into(), us),
            percent(cpu / time),
            format!("{:.1}", parks as f64 / time),
        ]);
    }
    Ok(table)
}

/// The ratio of the medians of two policies' windows; and the interval in which most such ratios lie when as many rounds are
/// drawn from these anew, with repetition. Windows of one round stay together, as what disturbs one disturbs others.
fn ratio(own: &[Vec<f64>], other: &[Vec<f64>]) -> (f64, [f64; 2]) {
    let rounds = own.len().min(other.len());
    let of = |picked: &[usize]| {
        let median = |from: &[Vec<f64>]| {
            let mut all: Vec<f64> = picked.iter().flat_map(|&round| from[round].iter().copied()).collect();
            quantile(&mut all, 0.5)
        };
        median(own) / median(other)
    };
    let mut random = 1u64;
    let mut draw = || {
        // Any sequence would do that repeats itself in no fewer draws: Knuth's multiplier for 64 bits.
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % rounds
    };
    let mut drawn: Vec<f64> = (0..DRAWS)
        .map(|_| {
            let picked: Vec<usize> = (0..rounds).map(|_| draw()).collect();
            of(&picked)
        })
        .collect();
    let all: Vec<usize> = (0..rounds).collect();
    (of(&all), WITHIN.map(|q| quantile(&mut drawn, q)))
}

/// The figure that a share `q` of them does not exceed; of none, not-a-number.
fn quantile(figures: &mut [f64], q: f64) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    let at = (figures.len() as f64 * q) as usize;
    figures.get(at.min(figures.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}
