//! The rules: ours, the plain ones, and the two that know more than any rule can.

use spinwake::wait::{Adaptive, Idle, Target, WakeCost};

use super::forerunners::{Ixy, L3fwdPower, Snabb, Vpp};
use super::replay::{Gaps, Machine, Rule, Wait};

/// Names of all rules, in the order of the tables. The last two need to see a trace before it happens.
pub(crate) const NAMES: [&str; 11] = [
    "adaptive",
    "always poll",
    "always block",
    "spin one W",
    "l3fwd-power",
    "VPP",
    "ixy",
    "Snabb",
    "adaptive:cpu=10%",
    "best fixed",
    "optimum",
];

/// The rule of that place in [`NAMES`], as it is before its first gap; `None` where an adversary leaves nothing to be known
/// beforehand.
pub(crate) fn rule(index: usize, gaps: &Gaps, machine: Machine) -> Option<Box<dyn Rule>> {
    let fixed = |spin_ns| Some(Box::new(Fixed { spin_ns, machine }) as Box<dyn Rule>);
    Some(match NAMES[index] {
        "adaptive" => Box::new(Ours::new(Target::None, machine)),
        "adaptive:cpu=10%" => Box::new(Ours::new(Target::Cpu { share: 0.1 }, machine)),
        "always poll" => return fixed(u64::MAX),
        "always block" => return fixed(0),
        "spin one W" => return fixed(machine.sleep_ns()),
        "l3fwd-power" => Box::new(L3fwdPower::new(machine)),
        "VPP" => Box::new(Vpp::new(machine)),
        "ixy" => Box::new(Ixy::new(machine)),
        "Snabb" => Box::new(Snabb::new(machine)),
        "best fixed" => match gaps {
            Gaps::Fixed(gaps) => return fixed(best_fixed_ns(gaps, machine)),
            Gaps::Adversary(_) => return None,
        },
        _ => match gaps {
            Gaps::Fixed(_) => Box::new(Optimum { machine }),
            Gaps::Adversary(_) => return None,
        },
    })
}

/// The sdk's policy.
struct Ours {
    policy: Adaptive,
    machine: Machine,
    /// Virtual time, and when the last interrupt was.
    now_ns: u64,
    fired_at_ns: u64,
}

impl Ours {
    fn new(target: Target, machine: Machine) -> Self {
        let cost = WakeCost { latency_ns: machine.wake_ns, latency_p99_ns: machine.wake_ns, cpu_ns: machine.cpu_ns };
        Self { policy: Adaptive::new(cost, target), machine, now_ns: 0, fired_at_ns: 0 }
    }
}

impl Rule for Ours {
    fn meet(&mut self, gap_ns: u64) -> Wait {
        let spin_ns = self.policy.spin_ns();
        if gap_ns <= spin_ns {
            self.now_ns += gap_ns;
            self.policy.learn(Idle::looked(gap_ns));
            return Wait::looked(gap_ns);
        }
        let came_ns = self.now_ns + gap_ns;
        let fires_ns = came_ns.max(self.fired_at_ns + self.policy.hold_ns());
        let added_ns = fires_ns - came_ns + self.machine.wake_ns;
        self.now_ns = came_ns + added_ns;
        self.fired_at_ns = fires_ns;
        self.policy.learn(Idle::slept(gap_ns, spin_ns, added_ns));
        Wait { looked_ns: spin_ns, added_ns, sleeps: 1, needless: 0 }
    }

    fn worst_gap_ns(&self) -> Option<u64> {
        self.policy.spin_ns().checked_add(1)
    }
}

/// Always the same time to look.
struct Fixed {
    spin_ns: u64,
    machine: Machine,
}

impl Rule for Fixed {
    fn meet(&mut self, gap_ns: u64) -> Wait {
        if gap_ns <= self.spin_ns { Wait::looked(gap_ns) } else { Wait::slept(self.spin_ns, self.machine) }
    }

    fn worst_gap_ns(&self) -> Option<u64> {
        self.spin_ns.checked_add(1)
    }
}

/// Knows how long each gap will be.
struct Optimum {
    machine: Machine,
}

impl Rule for Optimum {
    fn meet(&mut self, gap_ns: u64) -> Wait {
        if gap_ns <= self.machine.sleep_ns() { Wait::looked(gap_ns) } else { Wait::slept(0, self.machine) }
    }

    fn worst_gap_ns(&self) -> Option<u64> {
        None
    }
}

/// The fixed time to look that costs least over these gaps: zero, or the length of one of them.
fn best_fixed_ns(gaps: &[u64], machine: Machine) -> u64 {
    let mut sorted: Vec<u64> = gaps.iter().map(|gap_ns| machine.poll_ns.max(*gap_ns)).collect();
    sorted.sort_unstable();
    let cost = |caught_ns: u64, longer: usize, spin_ns: u64| {
        caught_ns as f64 + longer as f64 * (spin_ns + machine.sleep_ns()) as f64
    };
    let mut best = (cost(0, sorted.len(), 0), 0);
    let mut caught_ns = 0;
    for (i, gap_ns) in sorted.iter().enumerate() {
        caught_ns += gap_ns;
        let cost = cost(caught_ns, sorted.len() - i - 1, *gap_ns);
        if cost < best.0 {
            best = (cost, *gap_ns);
        }
    }
    best.1
}
