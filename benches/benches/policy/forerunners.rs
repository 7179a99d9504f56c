//! How others decide, modelled from what their sources do: only the decision, on a machine that charges all alike.
//!
//! A look that finds nothing takes the machine's `poll_ns` everywhere. Interrupts come at once, and each rule's own delays are
//! exactly as long as they say.

use super::replay::{Machine, Rule, Wait};

/// DPDK's l3fwd-power in its interrupt mode (`examples/l3fwd-power/main.c`).
///
/// After more than 10 empty polls (`MIN_ZERO_POLL_COUNT`) it waits 1 µs (`MINIMUM_SLEEP_TIME`) after each; the 300th
/// (`SUSPEND_THRESHOLD`, in `power_idle_heuristic`) arms the interrupt and sleeps. A received packet starts the count again.
pub(crate) struct L3fwdPower {
    machine: Machine,
}

impl L3fwdPower {
    const QUICK_POLLS: u64 = 10;
    const POLLS: u64 = 300;
    const DELAY_NS: u64 = 1_000;

    pub(crate) fn new(machine: Machine) -> Self {
        Self { machine }
    }

    /// When the `n`th poll without a packet ends.
    fn poll_ends_ns(&self, n: u64) -> u64 {
        n * self.machine.poll_ns + n.saturating_sub(Self::QUICK_POLLS + 1) * Self::DELAY_NS
    }
}

impl Rule for L3fwdPower {
    fn meet(&mut self, gap_ns: u64) -> Wait {
        let suspends_ns = self.poll_ends_ns(Self::POLLS);
        if gap_ns > suspends_ns {
            return Wait::slept(suspends_ns, self.machine);
        }
        let quick_ns = self.poll_ends_ns(Self::QUICK_POLLS + 1);
        if gap_ns <= quick_ns {
            return Wait::looked(gap_ns);
        }
        // Found by the first poll that ends after it came.
        let late = (gap_ns - quick_ns).div_ceil(Self::DELAY_NS + self.machine.poll_ns);
        let found_ns = self.poll_ends_ns(Self::QUICK_POLLS + 1 + late);
        Wait { looked_ns: gap_ns, added_ns: found_ns - gap_ns, ..Wait::default() }
    }

    fn worst_gap_ns(&self) -> Option<u64> {
        Some(self.poll_ends_ns(Self::POLLS) + 1)
    }
}

/// VPP's adaptive mode of an input node (`src/vlib/main.c`, `dispatch_node`; `src/vlib/node_funcs.h`,
/// `vlib_node_runtime_update_main_loop_vector_stats`; `src/vlib/unix/input.c`).
///
/// It counts packets in epochs of 128 main loops (`VLIB_LOG2_MAIN_LOOPS_PER_STATS_UPDATE` is 7) and looks at the last complete
/// one: 10 or more turn interrupts into polling, 5 or fewer turn polling into interrupts, after one more dispatch. Without
/// polling nodes a worker sleeps in epoll for 10 ms at most, so that each main loop is a wake-up.
pub(crate) struct Vpp {
    machine: Machine,
    loops: u64,
    /// The epoch counted now, its packets, and those of the one before it.
    epoch: u64,
    count: u64,
    count_before: u64,
    polling: bool,
    /// Polls once more before it waits for interrupts.
    leaving: bool,
}

impl Vpp {
    const LOOPS_LOG2: u32 = 7;
    const TO_POLLING: u64 = 10;
    const TO_INTERRUPTS: u64 = 5;
    const TIMEOUT_NS: u64 = 10_000_000;

    pub(crate) fn new(machine: Machine) -> Self {
        Self { machine, loops: 0, epoch: 0, count: 0, count_before: 0, polling: false, leaving: false }
    }

    /// One main loop in which the node takes `packets`, and the change of mode that follows from it.
    fn dispatch(&mut self, packets: u64) {
        self.loops += 1;
        let epoch = self.loops >> Self::LOOPS_LOG2;
        match epoch - self.epoch {
            0 => {}
            1 => (self.count_before, self.count) = (self.count, 0),
            _ => (self.count_before, self.count) = (0, 0),
        }
        self.epoch = epoch;
        self.count += packets;
        if !self.polling && self.count_before >= Self::TO_POLLING {
            (self.polling, self.leaving) = (true, false);
        } else if self.polling && self.count_before <= Self::TO_INTERRUPTS {
            (self.polling, self.leaving) = (!self.leaving, !self.leaving);
        }
    }

    /// Polls until a packet comes after `gap_ns`, or it stops polling. Returns how long that was.
    fn poll(&mut self, gap_ns: u64) -> u64 {
        let mut now_ns = 0;
        while self.polling && now_ns + self.machine.poll_ns < gap_ns {
            self.dispatch(0);
            now_ns += self.machine.poll_ns;
        }
        if self.polling { gap_ns } else { now_ns }
    }
}

impl Rule for Vpp {
    fn meet(&mut self, gap_ns: u64) -> Wait {
        let looked_ns = self.poll(gap_ns);
        if self.polling {
            self.dispatch(1);
            return Wait::looked(looked_ns);
        }
        let needless = (gap_ns - looked_ns) / Self::TIMEOUT_NS;
        self.loops += needless;
        self.dispatch(1);
        Wait { needless, ..Wait::slept(looked_ns, self.machine) }
    }

    fn worst_gap_ns(&self) -> Option<u64> {
        let mut ahead = Self { ..*self };
        Some(ahead.poll(u64::MAX) + 1)
    }
}

/// ixy's hybrid of interrupts and polling (`src/interrupts.c`, `src/interrupts.h`; `src/driver/ixgbe.c`, `ixgbe_rx_batch`).
///
/// Every 4096th call, if a second has passed, it takes the packets a millisecond since the last check; while the average of the last
/// 5 (`MOVING_AVERAGE_RANGE`) is above 1200 (`INTERRUPT_THRESHOLD`) it polls, otherwise each call waits for an interrupt. (A full
/// batch at a check makes it poll, too; here packets come one by one.)
pub(crate) struct Ixy {
    machine: Machine,
    now_ns: u64,
    checked_at_ns: u64,
    calls: u64,
    packets: u64,
    rates: [u64; 5],
    checks: usize,
    polling: bool,
}

impl Ixy {
    const CALLS: u64 = 4096;
    const INTERVAL_NS: u64 = 1_000_000_000;
    const THRESHOLD: u64 = 1200;

    pub(crate) fn new(machine: Machine) -> Self {
        Self { machine, now_ns: 0, checked_at_ns: 0, calls: 0, packets: 0, rates: [0; 5], checks: 0, polling: false }
    }

    fn check(&mut self) {
        let passed_ns = self.now_ns - self.checked_at_ns;
        if passed_ns <= Self::INTERVAL_NS {
            return;
        }
        self.rates[self.checks % self.rates.len()] = self.packets / (passed_ns / 1_000_000);
        self.checks += 1;
        self.packets = 0;
        let average = self.rates.iter().sum::<u64>() / self.checks.min(self.rates.len()) as u64;
        self.polling = average > Self::THRESHOLD;
        self.checked_at_ns = self.now_ns;
    }

    /// The next call at which it may check, and change its mind.
    fn calls_to_check(&self) -> u64 {
        Self::CALLS - self.calls % Self::CALLS
    }
}

impl Rule for Ixy {
    fn meet(&mut self, gap_ns: u64) -> Wait {
        let came_ns = self.now_ns + gap_ns;
        let began_ns = self.now_ns;
        while self.polling && self.now_ns < came_ns {
            let calls = self.calls_to_check().min((came_ns - self.now_ns).div_ceil(self.machine.poll_ns));
            self.calls += calls;
            self.now_ns = (self.now_ns + calls * self.machine.poll_ns).min(came_ns);
            if self.calls.is_multiple_of(Self::CALLS) {
                self.check();
            }
        }
        let wait = if self.now_ns == came_ns {
            Wait::looked(gap_ns)
        } else {
            let looked_ns = self.now_ns - began_ns;
            self.now_ns = came_ns + self.machine.wake_ns;
            Wait::slept(looked_ns, self.machine)
        };
        self.packets += 1;
        self.calls += 1;
        if self.calls.is_multiple_of(Self::CALLS) {
            self.check();
        }
        wait
    }

    fn worst_gap_ns(&self) -> Option<u64> {
        (!self.polling).then_some(1)
    }
}

/// Snabb's pace (`src/core/app.lua`, `pace_breathing`).
///
/// Each breath without a packet sleeps (`usleep`) 1 µs longer than the last, up to 100 µs (`maxsleep`); a breath with one halves
/// that. A timer ends each sleep, not a packet; here it is punctual but for what any wake-up takes.
pub(crate) struct Snabb {
    machine: Machine,
    sleep_us: u64,
}

impl Snabb {
    const LONGEST_US: u64 = 100;

    pub(crate) fn new(machine: Machine) -> Self {
        Self { machine, sleep_us: 0 }
    }
}

impl Rule for Snabb {
    fn meet(&mut self, gap_ns: u64) -> Wait {
        let mut wait = Wait::default();
        let mut now_ns = 0;
        loop {
            if now_ns + self.machine.poll_ns >= gap_ns {
                wait.looked_ns += gap_ns.saturating_sub(now_ns);
                wait.added_ns = now_ns.saturating_sub(gap_ns);
                break;
            }
            wait.looked_ns += self.machine.poll_ns;
            self.sleep_us = (self.sleep_us + 1).min(Self::LONGEST_US);
            let slept_ns = self.sleep_us * 1_000 + self.machine.wake_ns;
            now_ns += self.machine.poll_ns + slept_ns;
            wait.needless += 1;
        }
        if wait.added_ns > 0 {
            (wait.sleeps, wait.needless) = (1, wait.needless - 1);
        }
        self.sleep_us /= 2;
        wait
    }

    fn worst_gap_ns(&self) -> Option<u64> {
        Some(self.machine.poll_ns + 1)
    }
}
