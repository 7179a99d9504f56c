//! Targets, each watched for a while under Poisson and bursty traffic: whether they are kept, or the worker says why not.

use std::error::Error;
use std::time::Duration;

use spinwake::wait::{Target, WaitPolicy};
use spinwake_pmd::soft::Gap;

use super::options::{Options, Pattern};
use super::rig::{Rig, Slice, Traffic};
use super::table::{Table, percent, us};

const TRAFFIC: [Traffic; 3] = [
    Traffic { gap_us: 100, pattern: Gap::Poisson },
    Traffic { gap_us: 1000, pattern: Gap::Poisson },
    Traffic { gap_us: 100, pattern: Gap::Burst(32) },
];

/// Watches all targets and prints what came of them.
pub(crate) fn measure(rig: &mut Rig, options: &Options) -> Result<(), Box<dyn Error>> {
    let targets: Vec<WaitPolicy> = options.targets.iter().filter_map(|target| target.0).collect();
    if targets.is_empty() {
        return Ok(());
    }
    let head = ["target", "traffic", "p50", "p99", "CPU", "idle CPU", "sleeps", "late", "kept"];
    let mut table = Table::new(&head, options.markdown);
    let mut said = Vec::new();
    for policy in targets {
        for traffic in TRAFFIC {
            let pattern = Pattern(traffic.pattern);
            eprintln!("{policy} under {pattern} gaps of {} us for {} s", traffic.gap_us, options.watch);
            let slice = rig.run(policy, traffic, Duration::from_secs_f64(options.watch))?;
            eprintln!("  {}", slice.describe());
            let verdict = slice.verdict.clone();
            let (late, kept) = judge(policy, traffic, &slice);
            table.add(vec![
                policy.to_string(),
                format!("{pattern}, {} us", traffic.gap_us),
                slice.response_us(0.5).map_or("-".into(), us),
                slice.response_us(0.99).map_or("-".into(), us),
                percent(slice.cpu_share()),
                percent(slice.idle_share()),
                slice.parks.to_string(),
                late.to_string(),
                match (kept, &verdict) {
                    (true, None) => "yes".into(),
                    (true, Some(_)) => "yes; it says how".into(),
                    (false, Some(_)) => "no; it says why".into(),
                    (false, None) => "NO, and it says nothing".into(),
                },
            ]);
            said.extend(verdict.map(|verdict| format!("{policy}, {pattern}, {} us: {verdict}", traffic.gap_us)));
        }
    }
    println!("{table}");
    for line in said {
        println!("- {line}");
    }
    Ok(())
}

/// How many frames were late by the target, and whether it was kept.
///
/// A late sleep shows in the first frame after it at least, and in all frames of a burst.
fn judge(policy: WaitPolicy, traffic: Traffic, slice: &Slice) -> (u64, bool) {
    match policy {
        WaitPolicy::Adaptive(Target::Wake { latency }) => {
            let limit_ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
            let late = slice.response_ns.len() - slice.response_ns.count_between(0, limit_ns);
            let late = if let Gap::Burst(frames) = traffic.pattern { late.div_ceil(frames.into()) } else { late };
            (late, late * 100 <= slice.wakes)
        }
        WaitPolicy::Adaptive(Target::Cpu { share }) => (0, slice.idle_share() <= share),
        WaitPolicy::Adaptive(Target::None) | WaitPolicy::Poll | WaitPolicy::Interrupt => (0, true),
    }
}
