//! Which wait policy suits what was measured.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use spinwake::wait::{Target, WaitPolicy};

use super::{Cell, DeviceWake, Way};
use crate::units::Ns;

/// A recommendation and its reasons.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advice {
    /// What to give to `--wait`.
    pub policy: String,
    /// What else to give to it, and when.
    pub alternatives: Vec<Alternative>,
    /// Why, in plain sentences.
    pub reasons: Vec<String>,
}

/// Another policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alternative {
    /// What to give to `--wait`.
    pub policy: String,
    /// When it is the better one.
    pub when: String,
}

/// Above this a sleep is nothing that a low-latency program can promise.
const HOPELESS_NS: u64 = 1_000_000;
/// Sleeps at least this long count for a promise: a worker spins through shorter gaps.
const SLEEPS_FROM_NS: u64 = 100_000;
/// A deep sleep that takes this much longer to end, and twice as long, is an idle state.
const DEEPER_NS: u64 = 5_000;
/// How often a worker without traffic wakes up by its own bound, and for stray work: each millisecond is plenty.
const WAKES_PER_SECOND: f64 = 1_000.0;

impl Advice {
    /// What follows from these figures of a core. A device's count in place of an eventfd's where it interrupted itself.
    pub(super) fn of(core: usize, cells: &[Cell], device: Option<&DeviceWake>) -> Self {
        let eventfd: Vec<&Cell> = match device {
            Some(device) if device.by_device => device.cells.iter().collect(),
            _ => cells.iter().filter(|cell| cell.way == Way::Eventfd).collect(),
        };
        let spin_ns = cells.iter().filter(|cell| cell.way == Way::Spin).map(|cell| cell.p50_ns).min().unwrap_or(0);
        let long: Vec<&&Cell> = eventfd.iter().filter(|cell| cell.idle_ns >= SLEEPS_FROM_NS).collect();
        let poll =
            |why: String| Self { policy: WaitPolicy::Poll.to_string(), alternatives: Vec::new(), reasons: vec![why] };
        let (Some(worst), Some(usual)) = (long.iter().max_by_key(|cell| cell.p99_ns), long.first()) else {
            return poll("no sleep could be measured, so nothing can be promised of one".into());
        };
        let limit_ns = rounded_up(worst.p99_ns.saturating_add(worst.p99_ns / 4));
        let pays_ns = usual.p50_ns.saturating_add(usual.cpu_ns);
        let share = (usual.cpu_ns as f64 * WAKES_PER_SECOND / 1e9).clamp(0.001, 1.0);
        let wake = policy(Target::Wake { latency: Duration::from_nanos(limit_ns) });
        let mut reasons = vec![
            format!(
                "a sleep on an eventfd adds {} at the median and {} at p99 (the worst of the lengths from {} on), spinning {}",
                Ns(usual.p50_ns),
                Ns(worst.p99_ns),
                Ns(SLEEPS_FROM_NS),
                Ns(spin_ns)
            ),
            format!(
                "it takes {} of processor time, so it pays for gaps longer than about {}",
                Ns(usual.cpu_ns),
                Ns(pays_ns)
            ),
        ];
        if let (Some(shallow), Some(deep)) = (long.first(), long.last())
            && deep.p50_ns > shallow.p50_ns.saturating_mul(2)
            && deep.p50_ns - shallow.p50_ns > DEEPER_NS
        {
            reasons.push(format!(
                "after {} of idleness a wake-up takes {}, after {} only {}: the core, or the hypervisor, sleeps deeper; limit \
                 its idle states (`spinwake-tune apply low-latency`)",
                Ns(deep.idle_ns),
                Ns(deep.p50_ns),
                Ns(shallow.idle_ns),
                Ns(shallow.p50_ns)
            ));
        }
        if let Some(timeout) = cells.iter().filter(|cell| cell.way == Way::Timeout).max_by_key(|cell| cell.p99_ns) {
            reasons.push(format!("a timer that bounds a sleep is late by {} at p99", Ns(timeout.p99_ns)));
        }
        for cell in cells
            .iter()
            .filter(|cell| matches!(cell.way, Way::Umwait | Way::Mwaitx) && cell.idle_ns >= SLEEPS_FROM_NS)
            .take(1)
        {
            reasons.push(format!(
                "{} ends {} after the write; workers that spin use it by themselves",
                cell.way,
                Ns(cell.p50_ns)
            ));
        }
        let cpu = Alternative {
            policy: policy(Target::Cpu { share: percent_up(share) }).to_string(),
            when: "processor time matters more than latency: that share of the core is what an idle worker may use"
                .into(),
        };
        if limit_ns > HOPELESS_NS {
            reasons.push(format!(
                "one sleep in a hundred takes {} or more: see what takes the core first (`spinwake-tune check`, `spinwake-tune \
                 jitter --core {core}`)",
                Ns(worst.p99_ns)
            ));
            return Self { policy: WaitPolicy::Poll.to_string(), alternatives: vec![cpu], reasons };
        }
        let poll = Alternative {
            policy: WaitPolicy::Poll.to_string(),
            when: format!("{} more now and then is too much, and a core may be spent", Ns(usual.p50_ns)),
        };
        reasons.push(format!(
            "{wake} promises that of a hundred sleeps at most one adds more than {}: what p99 is here, with a quarter of headroom",
            Ns(limit_ns)
        ));
        Self { policy: wake.to_string(), alternatives: vec![poll, cpu], reasons }
    }
}

fn policy(target: Target) -> WaitPolicy {
    WaitPolicy::Adaptive(target)
}

/// The next of 1, 1.5, 2, 3, 5, 7 times a power of ten, in whole microseconds, within what a target may be.
fn rounded_up(ns: u64) -> u64 {
    let mut decade: u64 = 1_000;
    while decade < 1_000_000_000 {
        for tenths in [10, 15, 20, 30, 50, 70] {
            let step = decade / 10 * tenths;
            if step >= ns && step.is_multiple_of(1_000) {
                return step;
            }
        }
        decade *= 10;
    }
    1_000_000_000
}

/// A share rounded up to whole percents; below one, to tenths.
fn percent_up(share: f64) -> f64 {
    let step = if share < 0.01 { 0.001 } else { 0.01 };
    ((share / step).ceil() * step).clamp(0.001, 1.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cell(way: Way, idle_us: u64, p50_ns: u64, p99_ns: u64, cpu_ns: u64) -> Cell {
        Cell { way, idle_ns: idle_us * 1_000, sleeps: 100, p50_ns, p99_ns, max_ns: p99_ns * 2, cpu_ns }
    }

    #[test]
    fn the_target_is_what_p99_is_with_headroom() {
        let cells = [
            cell(Way::Spin, 20, 90, 200, 0),
            cell(Way::Eventfd, 20, 900, 90_000, 3_000),
            cell(Way::Eventfd, 100, 4_000, 11_000, 3_000),
            cell(Way::Eventfd, 10_000, 5_000, 13_000, 3_000),
            cell(Way::Timeout, 100, 1_000, 9_000, 1),
        ];
        let advice = Advice::of(3, &cells, None);
        assert_eq!(advice.policy, "adaptive:wake=20us");
        let policies: Vec<&str> = advice.alternatives.iter().map(|other| other.policy.as_str()).collect();
        assert_eq!(policies, ["poll", "adaptive:cpu=0.3%"]);
        assert!(!advice.reasons.iter().any(|why| why.contains("deeper")));
        assert!(advice.reasons.iter().any(|why| why.contains("late by 9 us")), "{:?}", advice.reasons);
    }

    #[test]
    fn deep_idle_is_named_and_a_hopeless_machine_polls() {
        let deep = [cell(Way::Eventfd, 100, 4_000, 6_000, 2_000), cell(Way::Eventfd, 10_000, 60_000, 90_000, 2_000)];
        assert!(Advice::of(3, &deep, None).reasons.iter().any(|why| why.contains("deeper")));
        let hopeless = [cell(Way::Eventfd, 100, 4_000, 4_000_000, 2_000)];
        let hopeless = Advice::of(3, &hopeless, None);
        assert!(hopeless.policy == "poll" && hopeless.reasons.iter().any(|why| why.contains("jitter --core 3`")));
        assert_eq!(Advice::of(3, &[], None).policy, "poll");
    }

    #[test]
    fn a_device_that_interrupts_itself_counts_in_place_of_an_eventfd() {
        let cells = [cell(Way::Eventfd, 100, 4_000, 6_000, 2_000)];
        let mut device = DeviceWake {
            bdf: "0000:01:00.0".into(),
            kind: "MSI".into(),
            by_device: true,
            cells: vec![cell(Way::Eventfd, 100, 40_000, 60_000, 2_000)],
        };
        assert_eq!(Advice::of(3, &cells, Some(&device)).policy, "adaptive:wake=100us");
        device.by_device = false;
        assert_eq!(Advice::of(3, &cells, Some(&device)).policy, "adaptive:wake=10us");
    }

    proptest! {
        #[test]
        fn whatever_was_measured_a_worker_understands_the_policy(p50 in 0u64..1 << 40, p99 in any::<u64>(), cpu in any::<u64>()) {
            let advice = Advice::of(3, &[cell(Way::Eventfd, 100, p50, p99 / 4, cpu / 4)], None);
            let others = advice.alternatives.iter().map(|other| &other.policy);
            for policy in others.chain([&advice.policy]) {
                prop_assert!(policy.parse::<WaitPolicy>().is_ok(), "{}", policy);
            }
        }
    }
}
