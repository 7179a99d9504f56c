//! Replaying gaps: what a rule pays for each, and what that comes to.

use hdrhistogram::Histogram;

/// What the modelled machine charges.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Machine {
    /// What a wake-up adds to the latency of the work that caused it.
    pub(crate) wake_ns: u64,
    /// Processor time of one sleep and wake-up.
    pub(crate) cpu_ns: u64,
    /// One look that finds nothing, and the shortest gap there is.
    pub(crate) poll_ns: u64,
}

impl Machine {
    /// What a sleep costs: its latency and its processor time.
    pub(crate) fn sleep_ns(&self) -> u64 {
        self.wake_ns + self.cpu_ns
    }
}

/// How a rule got through one gap.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wait {
    /// Time spent looking.
    pub(crate) looked_ns: u64,
    /// From the work's coming to its being found.
    pub(crate) added_ns: u64,
    /// Sleeps that the work ended,
    pub(crate) sleeps: u64,
    /// and those that a time limit ended without any.
    pub(crate) needless: u64,
}

impl Wait {
    /// The work was found while looking.
    pub(crate) fn looked(looked_ns: u64) -> Self {
        Self { looked_ns, ..Self::default() }
    }

    /// It ended a sleep.
    pub(crate) fn slept(looked_ns: u64, machine: Machine) -> Self {
        Self { looked_ns, added_ns: machine.wake_ns, sleeps: 1, needless: 0 }
    }
}

/// A rule that decides how long to look and when to sleep. It meets gaps one after the other and learns from them.
pub(crate) trait Rule {
    /// Gets through a gap that ends after this long.
    fn meet(&mut self, gap_ns: u64) -> Wait;

    /// The gap that would now be worst: the work comes just after it stopped looking. `None` if it never stops.
    fn worst_gap_ns(&self) -> Option<u64>;
}

/// What a rule paid for a trace.
#[derive(Debug)]
pub(crate) struct Bill {
    cost_ns: f64,
    optimum_ns: f64,
    cpu_ns: f64,
    idle_ns: f64,
    added: Histogram<u64>,
}

impl Bill {
    pub(crate) fn new() -> Self {
        // Latencies up to 10 s, to within a thousandth; a second without work is the longest that any trace has.
        let added = Histogram::new_with_max(10_000_000_000, 3).expect("the bounds are those of a histogram");
        Self { cost_ns: 0.0, optimum_ns: 0.0, cpu_ns: 0.0, idle_ns: 0.0, added }
    }

    /// Adds a gap and how a rule got through it.
    ///
    /// The cost is time spent looking, plus latency added, plus what sleeps take of the processor; one that is ended by work adds
    /// at least the latency of a wake-up, also where a timer happened to end it at the right moment.
    pub(crate) fn add(&mut self, gap_ns: u64, wait: Wait, machine: Machine) {
        let slept_ns = if wait.sleeps + wait.needless > 0 { wait.added_ns.max(machine.wake_ns) } else { wait.added_ns };
        let cpu_ns = wait.looked_ns + (wait.sleeps + wait.needless) * machine.cpu_ns;
        self.cost_ns += (cpu_ns + slept_ns) as f64;
        self.optimum_ns += gap_ns.min(machine.sleep_ns()) as f64;
        self.cpu_ns += cpu_ns as f64;
        self.idle_ns += (gap_ns + wait.added_ns) as f64;
        self.added.saturating_record(wait.added_ns);
    }

    /// Cost over the cost of knowing the future.
    pub(crate) fn over_optimum(&self) -> f64 {
        self.cost_ns / self.optimum_ns
    }

    /// The share of idle time that the processor was busy being idle, at most one.
    pub(crate) fn cpu_share(&self) -> f64 {
        (self.cpu_ns / self.idle_ns).min(1.0)
    }

    /// Latency that a share of all gaps' ends do not exceed, in microseconds.
    pub(crate) fn added_us(&self, quantile: f64) -> f64 {
        self.added.value_at_quantile(quantile) as f64 / 1e3
    }
}

/// Where the gaps come from.
#[derive(Debug)]
pub(crate) enum Gaps {
    /// Known beforehand.
    Fixed(Vec<u64>),
    /// This many, each ending at the worst moment for the rule that meets it.
    Adversary(usize),
}

/// A rule that never stops looking is kept waiting by an adversary for as long as this many sleeps cost.
const PATIENCE: u64 = 100;

/// Lets `rule` meet all of `gaps`.
pub(crate) fn replay(rule: &mut dyn Rule, gaps: &Gaps, machine: Machine) -> Bill {
    let mut bill = Bill::new();
    let mut meet = |rule: &mut dyn Rule, gap_ns: u64| {
        let gap_ns = gap_ns.max(machine.poll_ns);
        let wait = rule.meet(gap_ns);
        bill.add(gap_ns, wait, machine);
    };
    match gaps {
        Gaps::Fixed(gaps) => gaps.iter().for_each(|gap_ns| meet(rule, *gap_ns)),
        Gaps::Adversary(count) => {
            for _ in 0..*count {
                let patience_ns = PATIENCE * machine.sleep_ns();
                let gap_ns = rule.worst_gap_ns().map_or(patience_ns, |gap_ns| gap_ns.min(patience_ns));
                meet(rule, gap_ns);
            }
        }
    }
    bill
}
