//! Processor time by the kernel's account, where that differs from what was calibrated.

use super::*;
use traces::Random;

/// Serves Poisson gaps for a simulated minute when a sleep really takes `cpu_ns`, of which the policy is told every 100
/// ms if
/// `audited`. Returns it, and which share of idle time was spent.
fn a_minute(target: Target, mean_ns: f64, cpu_ns: u64, audited: bool) -> (Adaptive, f64) {
    let mut policy = Adaptive::new(COST, target);
    let mut random = Random(8);
    let (mut now_ns, mut spent_ns, mut told_ns, mut audited_at_ns, mut woken_at_ns) = (0u64, 0u64, 0u64, 0u64, 0u64);
    while now_ns < 60_000_000_000 {
        let gap_ns = random.exponential(mean_ns);
        let (began_ns, spin_ns) = (now_ns, policy.spin_ns());
        if gap_ns <= spin_ns {
            now_ns += gap_ns;
            spent_ns += gap_ns;
            policy.learn(Idle::looked(gap_ns));
        } else {
            now_ns = (began_ns + gap_ns).max(woken_at_ns + policy.hold_ns()) + W;
            woken_at_ns = now_ns;
            spent_ns += spin_ns + cpu_ns;
            policy.learn(Idle { gap_ns, idle_ns: now_ns - began_ns, looked_ns: spin_ns, sleeps: 1 });
        }
        if audited && now_ns - audited_at_ns >= 100_000_000 {
            policy.on_cpu_time(spent_ns - told_ns);
            (told_ns, audited_at_ns) = (spent_ns, now_ns);
        }
    }
    (policy, spent_ns as f64 / now_ns as f64)
}

#[test]
fn a_share_is_kept_by_the_kernels_account_though_sleeps_cost_more_than_was_measured() {
    let target = Target::Cpu { share: 0.1 };
    for mean_ns in [50_000.0, 100_000.0, 1e6] {
        let (policy, share) = a_minute(target, mean_ns, 3 * COST.cpu_ns, true);
        assert!(share <= 0.1, "every {mean_ns} ns: {share}, {:?}", policy.cost());
    }
    // It would not be by what was calibrated alone.
    let (_, unaudited) = a_minute(target, 100_000.0, 3 * COST.cpu_ns, false);
    assert!(unaudited > 0.11, "{unaudited}");
}

#[test]
fn the_cost_of_a_sleep_is_learned_where_sleeps_are_what_costs() {
    for cpu_ns in [COST.cpu_ns / 3, COST.cpu_ns, 4 * COST.cpu_ns] {
        let (policy, _) = a_minute(Target::None, 1e6, cpu_ns, true);
        assert!(policy.cost().cpu_ns.abs_diff(cpu_ns) < cpu_ns / 20, "{cpu_ns}: {:?}", policy.cost());
    }
    // A worker that only looks learns nothing about sleeps.
    let (policy, _) = a_minute(Target::None, 1_000.0, 4 * COST.cpu_ns, true);
    assert_eq!(policy.cost(), COST);
}

#[test]
fn time_that_the_kernel_did_not_give_is_not_spent() {
    let mut policy = Adaptive::new(COST, Target::Cpu { share: 0.1 });
    let before = policy.cost();
    // Looked through half of the time by the clock, while others had the core.
    for _ in 0..1_000 {
        policy.learn(Idle { gap_ns: 100_000, idle_ns: 100_000, looked_ns: 50_000, sleeps: 0 });
    }
    assert!(policy.hold_ns() > 0, "in debt by its own account");
    policy.on_cpu_time(0);
    assert_eq!((policy.hold_ns(), policy.cost()), (0, before));
}

#[test]
fn where_costs_are_about_equal_it_looks_on() {
    // Frames every 5 us; one gap in a thousand is a little longer than a wake-up takes. Sleeping in those would save as
    // much as nothing, and delay all frames that come meanwhile.
    let mut policy = Adaptive::new(COST, Target::None);
    let mut slept = 0;
    for i in 0..100_000u64 {
        let gap_ns = if i % 1_000 == 999 { 2 * W } else { 5_000 };
        slept += u64::from(i > 10_000 && gap_ns > policy.spin_ns());
        meet(&mut policy, gap_ns);
    }
    assert_eq!(slept, 0);
    // Where frames are rare, looking on is not about equal.
    let mut rare = Adaptive::new(COST, Target::None);
    for _ in 0..1_000 {
        meet(&mut rare, 40 * W);
    }
    assert_eq!(rare.spin_ns(), 0);
}

#[test]
fn a_debt_is_paid_without_a_long_silence() {
    let mut policy = Adaptive::new(COST, Target::Cpu { share: 0.1 });
    policy.learn(Idle::looked(1_000));
    // 20 ms that nobody reckoned with: interrupts of others, say. They are worth 200 ms of idle time.
    policy.on_cpu_time(20_000_000);
    // A sleep for each ten times what it takes; the silence is a few times that.
    let spacing_ns = policy.cost().cpu_ns * 10;
    assert!((spacing_ns..5 * spacing_ns).contains(&policy.hold_ns()), "{} ns", policy.hold_ns());
    let (mut idle_ns, mut sleeps) = (0, 0);
    while policy.hold_ns() > 0 {
        let gap_ns = policy.hold_ns().max(100_000);
        idle_ns += gap_ns + W;
        sleeps += 1;
        policy.learn(Idle::slept(gap_ns, 0, W));
        assert!(sleeps < 10_000, "{idle_ns} ns later it still pays");
    }
    assert!((200_000_000..300_000_000).contains(&idle_ns), "{idle_ns} ns");
}
