//! Targets, each watched for a while under Poisson and bursty traffic: whether they are kept, or the worker says why not.

use std::error::Error;
use std::time::Duration;

use hdrhistogram::Histogram;
use spinwake::wait::{Target, WaitPolicy};
use spinwake_pmd::soft::Gap;

use super::options::{Options, Pattern};
use super::rig::{Rig, Slice, Timing, Traffic, later_than};
use super::table::{Table, percent, us};

const TRAFFIC: [Traffic; 3] = [
    Traffic { gap_us: 100, pattern: Gap::Poisson },
    Traffic { gap_us: 1000, pattern: Gap::Poisson },
    Traffic { gap_us: 100, pattern: Gap::Burst(32) },
];

/// How often it is noted whether the worker says that it cannot keep its target.
const WINDOW: Duration = Duration::from_secs(1);
/// The share of sleeps that may be late.
const LATE: f64 = 0.01;

/// Watches all targets and prints what came of them. Before and after each, polling meets the same traffic for half as
/// long: a latency is what sleeping adds, and a machine that stands still now and then is late without.
pub(crate) fn measure(rig: &mut Rig, options: &Options) -> Result<(), Box<dyn Error>> {
    let targets: Vec<WaitPolicy> = options.targets.iter().filter_map(|target| target.0).collect();
    if targets.is_empty() {
        return Ok(());
    }
    let mut head = vec!["target", "traffic", "p50", "p99", "polling's p99", "CPU", "idle CPU", "frames", "late"];
    head.extend([
        "polling's late",
        "sleeps",
        "late answers",
        "polling's late answers",
        "late sleeps",
        "said so",
        "kept",
    ]);
    let mut table = Table::new(&head, options.markdown);
    let mut said = Vec::new();
    for policy in targets {
        for traffic in TRAFFIC {
            let watched = Watched::measure(rig, options, policy, traffic)?;
            let verdict = watched.seconds.iter().rev().find_map(|second| second.verdict.clone());
            said.extend(verdict.map(|verdict| format!("{policy}, {}: {verdict}", watched.traffic())));
            table.add(watched.row());
        }
    }
    println!("{table}");
    for line in said {
        println!("- {line}");
    }
    Ok(())
}

/// What became of one target under one traffic.
struct Watched {
    policy: WaitPolicy,
    traffic: Traffic,
    seconds: Vec<Slice>,
    sum: Slice,
    /// Polling under the same traffic, where that matters.
    polling: Option<Slice>,
}

impl Watched {
    fn measure(rig: &mut Rig, options: &Options, policy: WaitPolicy, traffic: Traffic) -> Result<Self, Box<dyn Error>> {
        let needs_polling = matches!(policy, WaitPolicy::Adaptive(Target::Wake { .. }));
        let half = Duration::from_secs_f64(options.watch / 2.0);
        let poll = |rig: &mut Rig| needs_polling.then(|| rig.run(WaitPolicy::Poll, traffic, half)).transpose();
        let pattern = Pattern(traffic.pattern);
        eprintln!("{policy} under {pattern} gaps of {} us for {} s", traffic.gap_us, options.watch);
        let before = poll(rig)?;
        let window = WINDOW.min(Duration::from_secs_f64(options.watch));
        let windows = (options.watch / window.as_secs_f64()).round() as u32;
        let seconds = rig.run_windows(policy, traffic, Timing::windows(window, windows))?;
        let polling: Vec<Slice> = before.into_iter().chain(poll(rig)?).collect();
        let polling = if polling.is_empty() { None } else { Some(Slice::sum(&polling)?) };
        let sum = Slice::sum(&seconds)?;
        eprintln!("  {}", sum.describe());
        Ok(Self { policy, traffic, seconds, sum, polling })
    }

    fn traffic(&self) -> String {
        format!("{}, {} us", Pattern(self.traffic.pattern), self.traffic.gap_us)
    }

    fn row(&self) -> Vec<String> {
        let Self { sum, polling, .. } = self;
        let microseconds = |slice: &Slice, q| slice.response_us(q).map_or("-".into(), us);
        let late = |times: &Histogram<u64>| {
            self.limit_ns().map_or("-".into(), |limit_ns| {
                let (late, share) = later_than(times, limit_ns);
                format!("{late} ({:.2}%)", 100.0 * share)
            })
        };
        let a_minute = |slice: &Slice| {
            self.limit_ns().map_or("-".into(), |limit_ns| {
                format!("{:.0}/min", 60.0 * late_answers(slice, limit_ns) / slice.time.as_secs_f64())
            })
        };
        let said = self.seconds.iter().filter(|second| second.verdict.is_some()).count();
        vec![
            self.policy.to_string(),
            self.traffic(),
            microseconds(sum, 0.5),
            microseconds(sum, 0.99),
            polling.as_ref().map_or("-".into(), |polling| microseconds(polling, 0.99)),
            percent(sum.cpu_share()),
            percent(sum.idle_share()),
            sum.response_ns.len().to_string(),
            late(&sum.response_ns),
            polling.as_ref().map_or("-".into(), |polling| late(&polling.response_ns)),
            sum.parks.to_string(),
            a_minute(sum),
            polling.as_ref().map_or("-".into(), a_minute),
            self.late_share().map_or("-".into(), |share| format!("{:.2}%", 100.0 * share)),
            format!("{said} s of {}", self.seconds.len()),
            match (self.is_kept(), said > 0) {
                (true, false) => "yes".into(),
                (true, true) => "yes; it says how".into(),
                (false, true) => "no; it says why".into(),
                (false, false) => "NO, and it says nothing".into(),
            },
        ]
    }

    fn is_kept(&self) -> bool {
        match self.policy {
            WaitPolicy::Adaptive(Target::Cpu { share }) => self.sum.idle_share() <= share,
            WaitPolicy::Adaptive(Target::Wake { .. }) => self.late_share().is_some_and(|share| share <= LATE),
            WaitPolicy::Adaptive(Target::None) | WaitPolicy::Poll | WaitPolicy::Interrupt => true,
        }
    }

    /// What a sleep may add, in nanoseconds.
    fn limit_ns(&self) -> Option<u64> {
        match self.policy {
            WaitPolicy::Adaptive(Target::Wake { latency }) => u64::try_from(latency.as_nanos()).ok(),
            _ => None,
        }
    }

    /// Of the sleeps that work ended, the share that were late: as many answers as were later than allowed, each with all
    /// frames that waited for it, less as many as polling was late with in the same time.
    fn late_share(&self) -> Option<f64> {
        let (limit_ns, polling) = (self.limit_ns()?, self.polling.as_ref()?);
        let while_polling = late_answers(polling, limit_ns) / polling.time.as_secs_f64();
        let added = late_answers(&self.sum, limit_ns) - while_polling * self.sum.time.as_secs_f64();
        // A worker that never slept added nothing.
        Some(if self.sum.wakes > 0 { (added / self.sum.wakes as f64).max(0.0) } else { 0.0 })
    }
}

fn late_answers(slice: &Slice, limit_ns: u64) -> f64 {
    later_than(&slice.first_response_ns, limit_ns).0 as f64
}
