//! One worker, met at random moments around its arming.
//!
//! A closed loop sends the next frame a random time after the former one came back, or after the worker armed: while it
//! polls, arms, looks again, is about to block, has just blocked, sleeps. Faults are asked for one at a time, at random
//! moments too.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use spinwake::irq::IrqKind;
use spinwake::wait::{EngineConfig, State, Target, WaitPolicy};
use spinwake_pmd::soft::{After, ClosedLoop, Fault};

use crate::rig::{Chance, LONG, Rig, Setup, await_that, seed};
use crate::tally::{Sleeps, Tally};
use crate::watchdog::Watchdog;

const KINDS: [IrqKind; 3] = [IrqKind::Msix, IrqKind::Msi, IrqKind::Intx];
const POLICIES: [WaitPolicy; 2] = [WaitPolicy::Interrupt, WaitPolicy::Adaptive(Target::None)];
const FAULTS: [Fault; 4] = [Fault::IrqLost, Fault::IrqLate, Fault::IrqDuplicate, Fault::IrqSpurious];
/// Frames in one closed loop.
const FRAMES: u64 = 500;
/// Spurious interrupts in silence, where each ends a sleep.
const IN_SILENCE: u64 = 5;
/// What a machine may add to a wait beside the time that its threads wait for a core: a virtual one stands still at times.
const STALL: Duration = Duration::from_secs(2);

/// Sleeps under the same conditions.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Episode {
    irq: IrqKind,
    policy: WaitPolicy,
    /// The worker sleeps on completed transmits too.
    completions: bool,
    fault: Option<Fault>,
}

/// How long an episode is.
#[derive(Debug, Clone, Copy)]
struct Length {
    sleeps: u64,
    faults: u64,
}

impl Episode {
    /// All without faults, or all with.
    fn all(faulty: bool) -> Vec<Self> {
        let mut all = Vec::new();
        for irq in KINDS {
            for policy in POLICIES {
                if faulty {
                    let of = |fault| Self { irq, policy, completions: false, fault: Some(fault) };
                    all.extend(FAULTS.map(of));
                } else {
                    all.extend([false, true].map(|completions| Self { irq, policy, completions, fault: None }));
                }
            }
        }
        all
    }

    /// Limit and grace of its sleeps. The grace is what tells a wake-up that is lost from one that only waits because the thread which
    /// plays the NIC does: the longer, the surer. But a closed loop gives a frame up after a second, and the next one may wake whom the
    /// former did not: what is lost must be a rescue before. And each interrupt that is dropped costs limit and grace.
    fn wait(self) -> EngineConfig {
        let (limit_ms, grace_ms) = match self.fault {
            Some(Fault::IrqLost) => (20, 280),
            // Interrupts come late after the limit, and later when the machine is busy.
            Some(Fault::IrqLate) => (2, 20_000),
            _ => (300, 650),
        };
        let ms = Duration::from_millis;
        EngineConfig { sleep_limit: ms(limit_ms), grace: ms(grace_ms), ..EngineConfig::new(self.policy) }
    }

    /// From when gaps count and how long they are, in nanoseconds, in the `n`th closed loop.
    fn gaps(self, n: u64) -> (After, RangeInclusive<u64>) {
        match (self.policy, n % 3) {
            (_, 1) => (After::Arm, 0..=30_000),
            (WaitPolicy::Adaptive(_), 2) => (After::Return, 0..=60_000),
            // Long enough that it sleeps soon.
            (WaitPolicy::Adaptive(_), _) => (After::Return, 0..=200_000),
            (_, 2) => (After::Return, 0..=8_000),
            _ => (After::Return, 0..=60_000),
        }
    }

    /// Sleeps for as long as `length` says; `observe` sees the counters now and then.
    fn run(self, length: Length, chance: &mut Chance, observe: &mut dyn FnMut(Sleeps)) -> Tally {
        let setup =
            Setup { irq: self.irq, wait: self.wait(), completions: self.completions, seed: chance.below(1 << 32) };
        let rig = Rig::start(&setup);
        let us = |us| Duration::from_micros(us);
        rig.control.set_delay(Fault::IrqLate, us(1000)..=us(5000));
        rig.control.set_delay(Fault::IrqDuplicate, us(0)..=us(3000));
        let made = || self.fault.map_or(0, |fault| rig.control.faults().made(fault));
        let (mut n, mut asked, mut given_up) = (0, 0, 0);
        // An adaptive worker whose wake-ups are slow, on a busy machine, sleeps seldom.
        let is_done = |n: u64| rig.waits().parks.get() >= length.sleeps || n * FRAMES >= 4 * length.sleeps;
        while !is_done(n) || made() < length.faults {
            let (after, gap_ns) = self.gaps(n);
            // By turns as fast as it goes, and so slowly that frames come between the steps of arming.
            rig.control.slow_arming(if n % 2 == 0 { us(0) } else { us(3) });
            n += 1;
            rig.control.start_loop(ClosedLoop { frames: FRAMES, after, gap_ns });
            let (mut last, mut since) = (0, Instant::now());
            loop {
                let counts = rig.control.loop_counts();
                let done = counts.returned + counts.given_up;
                if done == FRAMES {
                    given_up += counts.given_up;
                    break;
                }
                if done > last {
                    (last, since) = (done, Instant::now());
                }
                assert!(since.elapsed() < LONG, "{self:?}: no frame came back within {LONG:?}: {rig:?}");
                // One at a time, each when the one before was made.
                if let Some(fault) = self.fault.filter(|_| asked < length.faults && made() == asked) {
                    rig.control.inject(fault, 1);
                    asked += 1;
                }
                observe(Sleeps::of(rig.waits()));
                std::thread::sleep(us(100 + chance.below(900)));
            }
        }
        if self.fault == Some(Fault::IrqSpurious) {
            self.disturb_in_silence(&rig);
        }
        self.close(rig, given_up)
    }

    /// Each interrupt without a cause ends a sleep, and is counted.
    fn disturb_in_silence(self, rig: &Rig) {
        for _ in 0..IN_SILENCE {
            await_that("a sleep", rig, || rig.waits().state() == State::Sleep);
            let before = rig.waits().spurious.get();
            rig.control.inject(Fault::IrqSpurious, 1);
            await_that("a spurious interrupt being counted", rig, || rig.waits().spurious.get() > before);
        }
    }

    /// Ends the episode, and holds the worker's account against the NIC's. `given_up` frames were not back within a second.
    fn close(self, rig: Rig, given_up: u64) -> Tally {
        let waits = rig.waits().clone();
        let faults = rig.control.faults();
        let made = self.fault.map_or(0, |fault| faults.made(fault));
        let starved = rig.starved();
        let (drops, overdue, report) = rig.stop();
        let sleeps = Sleeps::of(&waits);
        let facts = format!(
            "{self:?}: {sleeps:?} {drops:?} {given_up} given up, {overdue} overdue, {starved:?} without a core"
        );

        assert_eq!(drops.all(), faults.made(Fault::IrqLost), "a drop that nobody was armed for: {facts}");
        assert_eq!(sleeps.rescues, drops.slept_on, "{facts}");
        if self.fault.is_none() {
            // If the worker was too late to count a rescue, the frame after the one that was given up has hidden it.
            assert!(overdue == 0 || given_up == 0, "{facts}");
        }
        if let Some(Fault::IrqDuplicate | Fault::IrqSpurious) = self.fault {
            assert!(sleeps.spurious > 0, "{facts}");
        }
        let wait = self.wait();
        let bound = match self.fault {
            Some(Fault::IrqLost) => wait.sleep_limit + wait.grace,
            Some(Fault::IrqLate) => wait.sleep_limit + Duration::from_millis(5),
            _ => wait.sleep_limit,
        };
        let longest = Duration::from_nanos(report.response_ns.max());
        assert!(longest <= bound + starved + STALL, "a frame waited for {longest:?}: {facts}");
        Tally { sleeps, frames: report.received, faults: made, drops, response_ns: report.response_ns }
    }
}

/// As many sleeps as `SPINWAKE_SLEEPS` says, over all kinds, policies and faults: `testbench/sleep-stress` runs it.
#[test]
#[ignore = "takes minutes: testbench/sleep-stress runs it"]
fn as_many_sleeps_as_asked_for() {
    let wanted: u64 = std::env::var("SPINWAKE_SLEEPS").map_or(100_000, |n| n.parse().expect("a number of sleeps"));
    let seed = seed();
    let mut long = LongRun::new(wanted);
    println!("{wanted} sleeps, SPINWAKE_SEED={seed}");
    let mut chance = Chance::new(seed);
    let watchdog = Watchdog::new("as_many_sleeps_as_asked_for", Duration::from_secs(3600 + wanted / 1000));
    while long.total.sleeps.parks < wanted {
        for episode in [Episode::all(false), Episode::all(true)].concat() {
            watchdog.step("now", format!("{episode:?}"));
            long.run(episode, &mut chance);
        }
    }
    long.sum_up();
}

/// A long run, and what it has come to.
struct LongRun {
    began: Instant,
    told: Instant,
    wanted: u64,
    total: Tally,
    sorts: BTreeMap<String, Tally>,
}

impl LongRun {
    /// How often it tells how far it is.
    const TELL_EVERY: Duration = Duration::from_secs(5);

    fn new(wanted: u64) -> Self {
        let now = Instant::now();
        Self { began: now, told: now, wanted, total: Tally::default(), sorts: BTreeMap::new() }
    }

    fn run(&mut self, episode: Episode, chance: &mut Chance) {
        let mut length = match (episode.fault, episode.policy) {
            (None, WaitPolicy::Interrupt) => Length { sleeps: 150_000, faults: 0 },
            (None, _) => Length { sleeps: 30_000, faults: 0 },
            (Some(Fault::IrqLost), _) => Length { sleeps: 5_000, faults: 10 },
            (Some(_), _) => Length { sleeps: 10_000, faults: 500 },
        };
        length.sleeps = length.sleeps.min(self.wanted / 20);
        let (began, wanted, done) = (self.began, self.wanted, self.total.sleeps);
        let told = &mut self.told;
        let tally = episode.run(length, chance, &mut |now| {
            if told.elapsed() >= Self::TELL_EVERY {
                *told = Instant::now();
                let mut all = done;
                all += now;
                let Sleeps { parks, rescues, spurious, turned_back, .. } = all;
                let elapsed = began.elapsed();
                let rate = parks as f64 / elapsed.as_secs_f64();
                println!(
                    "{:>5.0} s: {parks} of {wanted} sleeps, {rate:.0}/s, {rescues} rescues, {spurious} spurious, {turned_back} turned back; \
                     now {} {}{}",
                    elapsed.as_secs_f64(),
                    episode.irq,
                    episode.policy,
                    episode.fault.map_or(String::new(), |fault| format!(", {}", fault.key())),
                );
            }
        });
        self.total.add(&tally);
        let fault = episode.fault.map_or("no fault", Fault::key);
        self.sorts
            .entry(format!("{:<6} {:<10} {fault:<12}", episode.irq.to_string(), episode.policy.to_string()))
            .or_default()
            .add(&tally);
    }

    fn sum_up(&self) {
        println!("after {:.0} s:", self.began.elapsed().as_secs_f64());
        for (sort, tally) in &self.sorts {
            println!("{sort} {tally}");
        }
        println!("{:<30} {}", "all", self.total);
    }
}

/// Runs `episodes`, each for `length`, and prints what they came to.
fn run_all(test: &'static str, episodes: &[Episode], length: Length) {
    let seed = seed();
    println!("SPINWAKE_SEED={seed}");
    let watchdog = Watchdog::new(test, 10 * LONG);
    let mut chance = Chance::new(seed);
    for episode in episodes {
        watchdog.step(test, format!("{episode:?}"));
        println!("{episode:?}\n  {}", episode.run(length, &mut chance, &mut |_| {}));
    }
}

#[test]
fn no_moment_around_arming_loses_a_wake_up() {
    run_all("no_moment_around_arming_loses_a_wake_up", &Episode::all(false), Length { sleeps: 5000, faults: 0 });
}

#[test]
fn rescues_are_the_interrupts_that_were_dropped_on_a_sleeper() {
    let episodes: Vec<_> = Episode::all(true).into_iter().filter(|e| e.fault == Some(Fault::IrqLost)).collect();
    run_all("rescues_are_the_interrupts_that_were_dropped_on_a_sleeper", &episodes, Length { sleeps: 500, faults: 6 });
}

#[test]
fn late_doubled_and_spurious_interrupts_need_no_rescue() {
    let episodes: Vec<_> = Episode::all(true).into_iter().filter(|e| e.fault != Some(Fault::IrqLost)).collect();
    run_all("late_doubled_and_spurious_interrupts_need_no_rescue", &episodes, Length { sleeps: 1000, faults: 20 });
}
