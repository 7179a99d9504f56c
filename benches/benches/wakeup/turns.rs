//! All policies in turn, under each traffic.

use std::error::Error;

use spinwake::wait::WaitPolicy;
use spinwake_apps::plot::Series;
use spinwake_bench::compare::Spread;

use super::options::{Options, Pattern};
use super::rig::{Rig, Slice, Traffic};
use super::table::{Table, percent, us};

/// What is shown of response times.
const QUANTILES: [(&str, f64); 5] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("p99.99", 0.9999)];

/// What all rounds measured of one policy under one traffic.
pub(crate) struct Measured {
    pub(crate) policy: WaitPolicy,
    rounds: Vec<Slice>,
    pub(crate) sum: Slice,
}

/// One traffic, and the policies under it.
pub(crate) struct Case {
    pub(crate) pattern: Pattern,
    pub(crate) gap_us: u32,
    pub(crate) policies: Vec<Measured>,
}

/// Measures all cases and prints their tables as they come.
pub(crate) fn measure(rig: &mut Rig, options: &Options) -> Result<Vec<Case>, Box<dyn Error>> {
    let mut cases = Vec::new();
    for pattern in &options.patterns {
        for &gap_us in &options.gaps {
            let case = Case::measure(rig, options, *pattern, gap_us)?;
            println!("{}", case.table(options.markdown));
            cases.push(case);
        }
    }
    Ok(cases)
}

impl Case {
    fn measure(rig: &mut Rig, options: &Options, pattern: Pattern, gap_us: u32) -> Result<Self, Box<dyn Error>> {
        let traffic = Traffic { gap_us, pattern: pattern.0 };
        let mut rounds: Vec<Vec<Slice>> = vec![Vec::new(); options.policies.len()];
        for round in 1..=options.rounds {
            for (policy, slices) in options.policies.iter().zip(&mut rounds) {
                eprintln!("{pattern} gaps of {gap_us} us: round {round} of {}, {policy}", options.rounds);
                let slice = rig.run(*policy, traffic, options.slice())?;
                eprintln!("  {}", slice.describe());
                slices.push(slice);
            }
        }
        let joined = |(policy, rounds): (&WaitPolicy, Vec<Slice>)| {
            Ok::<_, Box<dyn Error>>(Measured { policy: *policy, sum: Slice::sum(&rounds)?, rounds })
        };
        let policies = options.policies.iter().zip(rounds).map(joined).collect::<Result<_, _>>()?;
        Ok(Self { pattern, gap_us, policies })
    }

    fn table(&self, markdown: bool) -> Table {
        let first = format!("{} gaps of {} us", self.pattern, self.gap_us);
        let mut head = vec![first.as_str()];
        head.extend(QUANTILES.map(|(name, _)| name));
        head.extend(["p99 / first", "CPU", "idle CPU", "parks/s", "regret", "rescues", "lost", "wake p50", "wake p99"]);
        let mut table = Table::new(&head, markdown);
        for measured in &self.policies {
            let Measured { policy, sum, .. } = measured;
            let mut row = vec![policy.to_string()];
            row.extend(QUANTILES.map(|(_, q)| sum.response_us(q).map_or("-".into(), us)));
            row.push(self.policies.first().map_or("-".into(), |first| measured.p99_over(first)));
            row.extend([percent(sum.cpu_share()), percent(sum.idle_share())]);
            row.push(format!("{:.0}", sum.parks as f64 / sum.time.as_secs_f64()));
            row.push(if sum.parks == 0 { "-".into() } else { percent(sum.regrets as f64 / sum.parks as f64) });
            row.push(sum.rescues.to_string());
            row.push(sum.sent.saturating_sub(sum.received).to_string());
            row.extend([0.5, 0.99].map(|q| match sum.wake_ns.len() {
                0 => "-".into(),
                _ => us(sum.wake_ns.value_at_quantile(q) as f64 / 1e3),
            }));
            table.add(row);
        }
        table
    }
}

impl Measured {
    /// Response times by rarity: what one frame in 2, 4, 8... exceeds, in microseconds.
    pub(crate) fn curve(&self) -> Series {
        let point = |doubling: i32| {
            let frames = 2f64.powi(doubling);
            Some((frames, self.sum.response_us(1.0 - 1.0 / frames)?))
        };
        Series { name: self.policy.to_string(), points: (1..=17).filter_map(point).collect() }
    }

    /// Its p99 as a multiple of another's, round by round.
    fn p99_over(&self, other: &Self) -> String {
        let p99 = |slice: &Slice| slice.response_ns.value_at_quantile(0.99) as f64;
        let ratio = Spread::of(self.rounds.iter().zip(&other.rounds).map(|(own, other)| p99(own) / p99(other)));
        format!("{:.2} ({:.2}-{:.2})", ratio.median, ratio.min, ratio.max)
    }
}
