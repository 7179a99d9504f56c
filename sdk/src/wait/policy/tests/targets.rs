//! Targets, kept over a minute by a simulated worker.

use std::time::Duration;

use super::*;

/// A worker that serves frames and is idle in between, as the wait engine is.
struct Worker {
    policy: Adaptive,
    now_ns: u64,
    fired_at_ns: u64,
    idle_ns: u64,
    spent_ns: u64,
    sleeps: u64,
    late: u64,
    soundings: u64,
    /// When its next sleep is sounded, if it is asleep then.
    sounds_ns: u64,
    random: Random,
    /// When the verdict was first heard.
    told_at_ns: Option<u64>,
    /// Sum of what waiting added to the frames that ended a gap.
    added_ns: u64,
}

/// Processor time of serving one frame.
const SERVE_NS: u64 = 300;

impl Worker {
    fn new(target: Target) -> Self {
        let policy = Adaptive::new(COST, target);
        Self {
            policy,
            now_ns: 0,
            fired_at_ns: 0,
            idle_ns: 0,
            spent_ns: 0,
            sleeps: 0,
            late: 0,
            soundings: 0,
            sounds_ns: 0,
            random: Random(8),
            told_at_ns: None,
            added_ns: 0,
        }
    }

    /// Serves frames that arrive with these gaps between them, for a minute. A sleep adds what `latency_ns` says.
    fn run(mut self, mut gap_ns: impl FnMut() -> u64, mut latency_ns: impl FnMut() -> u64, limit_ns: u64) -> Self {
        let mut arrives_ns = 0;
        while self.now_ns < 60_000_000_000 {
            arrives_ns += gap_ns();
            if arrives_ns > self.now_ns {
                self.wait(arrives_ns, &mut latency_ns, limit_ns);
            }
            self.now_ns += SERVE_NS;
        }
        self
    }

    /// Idle until the work that comes then is found.
    fn wait(&mut self, arrives_ns: u64, latency_ns: &mut impl FnMut() -> u64, limit_ns: u64) {
        let began_ns = self.now_ns;
        let gap_ns = arrives_ns - began_ns;
        let spin_ns = self.policy.spin_ns();
        if gap_ns <= spin_ns {
            self.now_ns = arrives_ns;
            self.idle_ns += gap_ns;
            self.spent_ns += gap_ns;
            self.policy.learn(Idle::looked(gap_ns));
            return;
        }
        let fires_ns = arrives_ns.max(self.fired_at_ns + self.policy.hold_ns());
        self.now_ns = self.wake(began_ns + spin_ns, fires_ns, latency_ns);
        let latency_ns = self.now_ns - fires_ns;
        self.fired_at_ns = fires_ns;
        self.sleeps += 1;
        self.late += u64::from(latency_ns > limit_ns);
        self.added_ns += self.now_ns - arrives_ns;
        self.idle_ns += self.now_ns - began_ns;
        self.spent_ns += spin_ns + COST.cpu_ns;
        self.policy.learn(Idle { gap_ns, idle_ns: self.now_ns - began_ns, looked_ns: spin_ns, sleeps: 1 });
        if self.told_at_ns.is_none() && self.policy.verdict().is_some() {
            self.told_at_ns = Some(self.now_ns);
        }
    }

    /// Sleeps until a device fires, which does not tell when it did; meanwhile the sleep may be sounded. Returns when the
    /// worker is awake.
    fn wake(&mut self, sleeps_ns: u64, fires_ns: u64, latency_ns: &mut impl FnMut() -> u64) -> u64 {
        while self.policy.wants_soundings() && self.sounds_ns < fires_ns {
            let sounded_ns = self.sounds_ns;
            let pace_ns = if self.policy.in_doubt() { 8_000_000 } else { 30_000_000 };
            self.sounds_ns += (pace_ns as f64 * (0.5 + self.random.unit())) as u64;
            if sounded_ns < sleeps_ns {
                continue; // it was awake
            }
            self.soundings += 1;
            let awake_ns = sounded_ns + latency_ns();
            self.policy.on_wake_latency(awake_ns - sounded_ns);
            // What fired meanwhile is found; else it sleeps on.
            if fires_ns <= awake_ns {
                return awake_ns;
            }
        }
        fires_ns + latency_ns()
    }

    fn share(&self) -> f64 {
        self.spent_ns as f64 / self.idle_ns as f64
    }
}

/// Traffic of some kind: the gap from each frame to the next.
type Gaps = Box<dyn FnMut() -> u64>;

fn bursts(shape: f64) -> impl FnMut() -> u64 {
    let gaps = on_off(&mut Random(5), 30, shape, 300_000);
    let mut next = (0..gaps.len()).cycle();
    move || next.next().map_or(0, |i| gaps[i])
}

fn poisson(mean_ns: f64) -> impl FnMut() -> u64 {
    let mut random = Random(6);
    move || random.exponential(mean_ns)
}

#[test]
fn a_share_of_the_processor_is_kept_over_a_minute() {
    for share in [0.01, 0.1, 0.5] {
        let mut traffic: Vec<(&str, Gaps)> =
            vec![("Poisson, 100 us", Box::new(poisson(100_000.0))), ("Poisson, 2 ms", Box::new(poisson(2e6)))];
        if share == 0.1 {
            traffic.push(("Poisson, 20 us", Box::new(poisson(20_000.0))));
            traffic.push(("bursts", Box::new(bursts(1.2))));
        }
        for (name, gap_ns) in traffic {
            let worker = Worker::new(Target::Cpu { share }).run(gap_ns, || W, u64::MAX);
            let spent = worker.share();
            assert!(spent <= share * 1.001, "{name}: {spent} of {share}");
        }
    }
}

#[test]
fn what_the_share_leaves_is_used() {
    // With half a core, much of the gaps of 100 us can be looked through; with all of it, all.
    let half = Worker::new(Target::Cpu { share: 0.5 }).run(poisson(100_000.0), || W, u64::MAX);
    assert!(half.share() > 0.4, "{}", half.share());
    let all = Worker::new(Target::Cpu { share: 1.0 }).run(poisson(100_000.0), || W, u64::MAX);
    assert_eq!((all.sleeps, all.added_ns), (0, 0));
}

#[test]
fn too_many_wake_ups_are_held_back_and_the_verdict_says_so() {
    let worker = Worker::new(Target::Cpu { share: 0.05 }).run(poisson(10_000.0), || W, u64::MAX);
    assert!(worker.policy.hold_ns() >= 120_000, "{}", worker.policy.hold_ns());
    let verdict = worker.policy.verdict().expect("a reason");
    assert!(verdict.contains("cpu=5%") && verdict.contains("6 us of processor time"), "{verdict}");
    let easy = Worker::new(Target::Cpu { share: 0.05 }).run(poisson(1e6), || W, u64::MAX);
    assert_eq!((easy.policy.hold_ns(), easy.policy.verdict()), (0, None));
}

/// Wake-ups of which a few, by chance, add 90 us and the others 20 us.
fn sometimes_late(share: f64) -> impl FnMut() -> u64 {
    let mut random = Random(7);
    move || if random.unit() < share { 90_000 } else { 20_000 }
}

fn wake(latency_us: u64) -> Target {
    Target::Wake { latency: Duration::from_micros(latency_us) }
}

#[test]
fn a_wake_up_latency_is_kept_over_a_minute() {
    for late in [0.0, 0.004, 0.008, 0.012, 0.5] {
        let mut traffic: Vec<(&str, Gaps)> =
            vec![("Poisson, 200 us", Box::new(poisson(200_000.0))), ("Poisson, 2 ms", Box::new(poisson(2e6)))];
        if late == 0.004 {
            traffic.push(("bursts", Box::new(bursts(1.5))));
        }
        for (name, gap_ns) in traffic {
            let worker = Worker::new(wake(50)).run(gap_ns, sometimes_late(late), 50_000);
            let kept = worker.late * 100 <= worker.sleeps;
            assert!(kept || worker.policy.verdict().is_some(), "{name}, {late}: {} of {}", worker.late, worker.sleeps);
            // Nothing late: it sleeps as soon as that saves processor time.
            assert!(late > 0.0 || worker.policy.verdict().is_none(), "{name}: {:?}", worker.policy.verdict());
        }
    }
}

#[test]
fn late_wake_ups_of_a_device_are_noticed_within_seconds() {
    for (name, mean_ns, within_ns) in [("100 us", 100_000.0, 20e9), ("1 ms", 1e6, 20e9)] {
        let worker = Worker::new(wake(50)).run(poisson(mean_ns), sometimes_late(0.02), 50_000);
        let told_at_ns = worker.told_at_ns.expect("a verdict");
        assert!((told_at_ns as f64) < within_ns, "gaps of {name}: after {}", Ns(told_at_ns));
        assert!(worker.policy.verdict().is_some());
        // It did not need to break its promise to see that.
        let frames = 60e9 / mean_ns;
        assert!((worker.late as f64) < 0.01 * frames, "gaps of {name}: {} late", worker.late);
    }
}

#[test]
fn wake_ups_that_are_seldom_late_are_not_refused() {
    for (name, mean_ns) in [("100 us", 100_000.0), ("1 ms", 1e6)] {
        let worker = Worker::new(wake(50)).run(poisson(mean_ns), sometimes_late(0.001), 50_000);
        assert_eq!((worker.told_at_ns, worker.policy.verdict()), (None, None), "gaps of {name}");
        // Some thirty a second: less than a thousandth of a core.
        assert!((1_000..3_000).contains(&worker.soundings), "gaps of {name}: {} sleeps were sounded", worker.soundings);
    }
}

#[test]
fn without_a_latency_to_keep_to_no_sleep_is_sounded() {
    for target in [Target::None, Target::Cpu { share: 0.1 }] {
        let worker = Worker::new(target).run(poisson(1e6), sometimes_late(0.02), 50_000);
        assert_eq!((worker.soundings, worker.told_at_ns), (0, None));
    }
}

#[test]
fn within_its_latency_it_spends_least() {
    let free = Worker::new(wake(50)).run(poisson(100_000.0), || W, 50_000);
    // 6 us of processor time a gap.
    assert!((free.share() - 0.048).abs() < 0.01, "{}", free.share());
    // Gaps shorter than what a sleep takes are looked through.
    let short = Worker::new(wake(50)).run(|| 4_000, || W, 50_000);
    assert!(short.sleeps < 10, "{}", short.sleeps);
}

#[test]
fn a_latency_that_no_sleep_keeps_makes_it_poll_and_say_so() {
    let policy = Adaptive::new(WakeCost { latency_ns: 24_000, latency_p99_ns: 61_000, cpu_ns: 6_000 }, wake(20));
    assert_eq!(policy.spin_ns(), u64::MAX);
    let verdict = policy.verdict().expect("a reason");
    assert!(verdict.contains("24 us at the median and 61 us at p99") && verdict.contains("wake=20us"), "{verdict}");
}

#[test]
fn wake_ups_that_became_slow_end_the_sleeping() {
    let worker = Worker::new(wake(50)).run(poisson(1e6), || 90_000, 50_000);
    // Of the 60,000 frames of that minute: those until it notices, and those of each trial.
    assert!(worker.late < 200, "{} late", worker.late);
    assert!(worker.policy.verdict().is_some_and(|why| why.contains("took longer than")));
}

#[test]
fn a_worker_that_was_late_does_not_poll_for_ever_when_no_work_comes() {
    let mut policy = Adaptive::new(COST, wake(50));
    while policy.spin_ns() < u64::MAX && policy.verdict().is_none() {
        policy.on_wake_latency(90_000);
    }
    // No gap ends meanwhile: what it looks for in this one is all that it will.
    assert!((100_000_000..=200_000_000).contains(&policy.spin_ns()), "{}", Ns(policy.spin_ns()));
}

#[test]
fn late_ends_of_a_long_night_are_forgiven_in_the_morning() {
    let mut policy = Adaptive::new(COST, wake(50));
    // One gap of a night, in sleeps of 10 ms, of which many end late and delay nobody.
    for i in 0..1_000_000 {
        policy.on_wake_latency(if i % 10 == 0 { 90_000 } else { 20_000 });
    }
    policy.learn(Idle { gap_ns: 10_000_000_000_000, idle_ns: 10_000_000_020_000, looked_ns: 0, sleeps: 1_000_000 });
    let mut measured = 0;
    while policy.verdict().is_some() {
        assert!(measured < 5_000, "still {:?}", policy.verdict());
        let spin_ns = policy.spin_ns();
        if spin_ns < 1_000_000 {
            policy.on_wake_latency(20_000);
            measured += 1;
        }
        policy.learn(if spin_ns < 1_000_000 {
            Idle::slept(1_000_000, spin_ns, 20_000)
        } else {
            Idle::looked(1_000_000)
        });
    }
}

/// Mostly short gaps, and a few that are so long that their mean is longer than most.
fn mice_and_elephants(elephant_ns: u64) -> impl FnMut() -> u64 {
    let mut random = Random(9);
    move || if random.unit() < 0.9 { 60_000 } else { elephant_ns }
}

#[test]
fn late_wake_ups_are_noticed_though_most_sleeps_are_shorter_than_their_mean() {
    for elephant_ns in [5_000_000, 20_000_000] {
        let run = |late| Worker::new(wake(50)).run(mice_and_elephants(elephant_ns), sometimes_late(late), 50_000);
        for late in [0.012, 0.015, 0.03] {
            let worker = run(late);
            assert!(worker.policy.verdict().is_some(), "{late}: {} of {}", worker.late, worker.sleeps);
        }
        assert_eq!(run(0.001).policy.verdict(), None);
    }
}
