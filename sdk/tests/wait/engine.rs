//! One engine and its sources.

use std::cell::Cell;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use spinwake::clock::Clock;
use spinwake::cpu::set_timer_slack_ns;
use spinwake::sys::event::wait_readable;
use spinwake::sys::sched;
use spinwake::wait::{
    Engine, EngineConfig, EngineError, FdSource, Source, Target, Timer, WaitCounters, WaitPolicy, Wake,
};

use crate::rig::{Device, LONG, Shared, engine, idle_until_work, patient, until};

const POLICIES: [WaitPolicy; 3] = [WaitPolicy::Poll, WaitPolicy::Interrupt, WaitPolicy::Adaptive(Target::None)];

#[test]
fn every_policy_finds_what_a_device_announces() {
    for policy in POLICIES {
        let mut device = Device::new();
        let shared = device.shared.clone();
        let mut engine = engine(patient(policy), &mut [&mut device]);
        let counters = engine.counters().clone();
        const WORK: usize = 200;
        let producer = thread::spawn(move || {
            for n in 0..WORK {
                // Now and then it waits for the sleeper, else it comes while that is awake.
                if n % 4 == 0 && policy != WaitPolicy::Poll {
                    until("a sleep", || shared.is_armed());
                    thread::sleep(Duration::from_micros(n as u64 * 10));
                }
                shared.put();
            }
        });
        let mut taken = 0;
        while taken < WORK {
            idle_until_work(&mut engine, &mut [&mut device]);
            taken += device.take();
        }
        producer.join().unwrap();
        assert_eq!((counters.rescues.get(), counters.timeouts.get()), (0, 0), "{policy}");
        match policy {
            WaitPolicy::Poll => assert_eq!(counters.parks.get(), 0),
            _ => {
                assert!(counters.wakes.get() > 0, "{policy}: {counters:?}");
                assert_eq!(counters.sources()[0].wakes.get(), counters.wakes.get());
            }
        }
    }
}

#[test]
fn work_whose_wake_up_is_lost_is_found_by_the_limit_and_counted() {
    let mut device = Device::new();
    let shared = device.shared.clone();
    let mut engine = engine(EngineConfig::new(WaitPolicy::Interrupt), &mut [&mut device]);
    let counters = engine.counters().clone();
    const LOST: u64 = 20;
    let producer = thread::spawn(move || {
        for _ in 0..LOST {
            until("the sleep", || shared.is_armed());
            // Past the second look, so that nothing but the limit can find it.
            thread::sleep(Duration::from_millis(1));
            shared.put_silently();
            until("the rescue", || shared.work.load(std::sync::atomic::Ordering::SeqCst) == 0);
        }
    });
    for _ in 0..LOST {
        idle_until_work(&mut engine, &mut [&mut device]);
        device.take();
    }
    producer.join().unwrap();
    // A thread that is held up between its look and its work may find the sleeper awake: rare, and no rescue.
    let (rescues, woken) = (counters.rescues.get(), counters.turned_back.get());
    assert!(rescues + woken >= LOST && rescues > LOST / 2, "{rescues} rescues, {woken} times turned back");
}

#[test]
fn a_wake_up_that_is_only_late_is_no_rescue() {
    let mut device = Device::new();
    let shared = device.shared.clone();
    let config =
        EngineConfig { sleep_limit: Duration::from_millis(5), grace: LONG, ..EngineConfig::new(WaitPolicy::Interrupt) };
    let mut engine = engine(config, &mut [&mut device]);
    let counters = engine.counters().clone();
    let producer = thread::spawn(move || {
        until("the sleep", || shared.is_armed());
        shared.put_silently();
        // Long after the sleep's limit.
        thread::sleep(Duration::from_millis(50));
        shared.vector.signal(1);
    });
    idle_until_work(&mut engine, &mut [&mut device]);
    producer.join().unwrap();
    assert_eq!(counters.rescues.get(), 0);
}

#[test]
fn a_timer_ends_a_sleep_when_it_is_due() {
    let mut timer = Timer::new("tick");
    let mut engine = engine(patient(WaitPolicy::Interrupt), &mut [&mut timer]);
    for _ in 0..20 {
        let start = Instant::now();
        timer.set(Duration::from_millis(2));
        idle_until_work(&mut engine, &mut [&mut timer]);
        assert!(timer.take_due() && start.elapsed() >= Duration::from_millis(2));
    }
    let counters = engine.counters();
    assert_eq!((counters.rescues.get(), counters.timeouts.get()), (0, 0));
    assert!(counters.sources()[0].wakes.get() > 0 && counters.wake_ns.snapshot().count() > 0);
}

#[test]
fn a_timer_that_is_due_does_not_hide_a_lost_wake_up() {
    let (mut device, mut timer) = (Device::new(), Timer::new("tick"));
    let shared = device.shared.clone();
    let mut engine = engine(patient(WaitPolicy::Interrupt), &mut [&mut device, &mut timer]);
    let counters = engine.counters().clone();
    let producer = thread::spawn(move || {
        until("the sleep", || shared.is_armed());
        thread::sleep(Duration::from_millis(1));
        shared.put_silently();
    });
    timer.set(Duration::from_millis(500));
    while !timer.take_due() {
        idle_until_work(&mut engine, &mut [&mut device, &mut timer]);
    }
    producer.join().unwrap();
    assert_eq!((counters.rescues.get(), counters.wakes.get(), device.take()), (1, 1, 1));
}

#[test]
fn a_descriptor_is_noticed_asleep_and_awake() {
    for policy in POLICIES {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let mut source = FdSource::new("socket", &theirs).unwrap();
        let mut engine = engine(patient(policy), &mut [&mut source]);
        for n in 0..20u8 {
            ours.write_all(&[n]).unwrap();
            idle_until_work(&mut engine, &mut [&mut source]);
            assert!(source.take_readable() && !source.take_readable());
            let mut read = [0];
            (&theirs).read_exact(&mut read).unwrap();
            assert_eq!(read, [n]);
        }
    }
}

#[test]
fn what_is_left_unread_is_found_again() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let mut source = FdSource::new("socket", &theirs).unwrap();
    let mut engine = engine(patient(WaitPolicy::Interrupt), &mut [&mut source]);
    ours.write_all(&[1, 2]).unwrap();
    for _ in 0..2 {
        idle_until_work(&mut engine, &mut [&mut source]);
        assert!(source.take_readable());
        (&theirs).read_exact(&mut [0]).unwrap();
    }
}

#[test]
fn a_source_that_cannot_wake_is_refused_or_polled_and_named() {
    let mut device = Device { can_wake: false, ..Device::new() };
    let refused = Engine::new(EngineConfig::new(WaitPolicy::Interrupt), Arc::default(), &mut |each| each(&mut device))
        .unwrap_err();
    assert!(
        matches!(&refused, EngineError::CannotWake { label, why } if label == "device" && why.contains("no vector")),
        "{refused}"
    );
    let mut engine = engine(patient(WaitPolicy::Adaptive(Target::None)), &mut [&mut device]);
    let notes = engine.notes();
    assert_eq!(notes[0], "device: cannot wake (the test gave it no vector)", "{notes:?}");
    assert!(notes.iter().any(|note| note.contains("because of device it polls")), "{notes:?}");
    let shared = device.shared.clone();
    let producer = thread::spawn(move || {
        thread::sleep(Duration::from_millis(20));
        shared.put_silently();
    });
    idle_until_work(&mut engine, &mut [&mut device]);
    producer.join().unwrap();
    assert_eq!(engine.counters().parks.get(), 0);
}

#[test]
fn a_file_that_is_always_readable_is_refused_by_name() {
    let file = tempfile::tempfile().unwrap();
    let mut source = FdSource::new("journal", &file).unwrap();
    let error = Engine::new(patient(WaitPolicy::Interrupt), Arc::default(), &mut |each| each(&mut source)).unwrap_err();
    assert!(error.to_string().starts_with("journal cannot be waited for"), "{error}");
}

#[test]
fn sources_come_and_go_between_sleeps() {
    let (mut a, mut b) = (Device::new(), Device::new());
    let mut engine = engine(patient(WaitPolicy::Interrupt), &mut [&mut a]);
    for round in 0..50 {
        let device = if round % 2 == 0 { &mut a } else { &mut b };
        engine.refresh(&mut |each| each(&mut *device)).unwrap();
        let shared = device.shared.clone();
        let producer = thread::spawn(move || {
            until("the sleep", || shared.is_armed());
            shared.put();
        });
        idle_until_work(&mut engine, &mut [&mut *device]);
        device.take();
        producer.join().unwrap();
    }
    assert_eq!(engine.counters().rescues.get(), 0);
}

#[test]
fn a_signal_handler_does_not_end_a_sleep() {
    let counters = Arc::<WaitCounters>::default();
    let seen = counters.clone();
    let (tell, tid) = std::sync::mpsc::channel();
    let device = Device::new();
    let shared = device.shared.clone();
    // Any handler makes system calls return early.
    let flag = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let handler = signal_hook::flag::register(signal_hook::consts::SIGUSR1, flag.clone()).unwrap();
    let sleeper = thread::spawn(move || {
        let mut device = device;
        tell.send(sched::thread_id()).unwrap();
        let mut engine = Engine::new(patient(WaitPolicy::Interrupt), counters, &mut |each| each(&mut device)).unwrap();
        idle_until_work(&mut engine, &mut [&mut device]);
    });
    let tid = tid.recv().unwrap();
    until("the sleep", || shared.is_armed());
    for _ in 0..20 {
        sched::signal_thread(tid, signal_hook::consts::SIGUSR1).unwrap();
        thread::sleep(Duration::from_millis(1));
    }
    assert!(flag.load(std::sync::atomic::Ordering::SeqCst));
    assert_eq!(seen.parks.get(), 0, "it is still in its first sleep");
    shared.put();
    sleeper.join().unwrap();
    signal_hook::low_level::unregister(handler);
    assert_eq!((seen.parks.get(), seen.wakes.get(), seen.rescues.get()), (1, 1, 0));
}

#[test]
fn two_that_share_a_vector_are_told_apart_by_their_work() {
    let mut a = Device::new();
    // One vector for both, as with MSI and INTx.
    let mut b = Device { shared: Arc::new(Shared::with(a.shared.vector.clone())), can_wake: true };
    let mut engine = engine(patient(WaitPolicy::Interrupt), &mut [&mut a, &mut b]);
    let shared = b.shared.clone();
    let producer = thread::spawn(move || {
        until("the sleep", || shared.is_armed());
        thread::sleep(Duration::from_millis(5));
        shared.put();
    });
    idle_until_work(&mut engine, &mut [&mut a, &mut b]);
    producer.join().unwrap();
    let sources = engine.counters().sources();
    assert_eq!((sources[0].wakes.get(), sources[1].wakes.get()), (0, engine.counters().wakes.get()));
}

#[test]
fn an_engine_whose_sources_change_takes_no_wake_up_away_from_another() {
    let mut a = Device::new();
    // Queues of one port on two workers, with one vector for both.
    let mut b = Device { shared: Arc::new(Shared::with(a.shared.vector.clone())), can_wake: true };
    let mut sleeper = engine(patient(WaitPolicy::Interrupt), &mut [&mut a]);
    let mut other = engine(patient(WaitPolicy::Interrupt), &mut [&mut b]);
    sleeper.prepare(&mut |each| each(&mut a)).expect("there is no work");
    a.shared.put();
    other.refresh(&mut |each| each(&mut b)).unwrap();
    assert!(wait_readable(sleeper.as_fd(), Duration::ZERO).unwrap(), "its wake-up is gone");
    sleeper.resume(&mut |each| each(&mut a));
    assert_eq!(sleeper.counters().wakes.get(), 1);
}

#[test]
fn what_fired_before_its_source_came_is_no_wake_up() {
    let mut device = Device::new();
    device.shared.vector.signal(1);
    let mut engine = engine(patient(WaitPolicy::Interrupt), &mut [&mut device]);
    for _ in 0..2 {
        engine.prepare(&mut |each| each(&mut device)).expect("there is no work");
        assert!(!wait_readable(engine.as_fd(), Duration::ZERO).unwrap());
        engine.resume(&mut |each| each(&mut device));
        device.shared.vector.signal(1);
        engine.refresh(&mut |each| each(&mut device)).unwrap();
    }
}

#[test]
fn sources_of_one_name_keep_a_count_each() {
    let (mut a, mut b) = (Device::new(), Device::new());
    let mut engine = engine(patient(WaitPolicy::Interrupt), &mut [&mut a, &mut b]);
    let before = engine.counters().sources();
    engine
        .refresh(&mut |each| {
            each(&mut a);
            each(&mut b);
        })
        .unwrap();
    let after = engine.counters().sources();
    assert!(before.iter().zip(&after).all(|(before, after)| Arc::ptr_eq(before, after)));
    assert!(!Arc::ptr_eq(&after[0], &after[1]));
}

/// Counts how often it is asked how it wakes.
struct Asked {
    device: Device,
    times: Cell<usize>,
}

impl Source for Asked {
    fn label(&self) -> String {
        self.device.label()
    }
    fn pending(&self) -> bool {
        self.device.pending()
    }
    fn arm(&mut self) {
        self.device.arm();
    }
    fn disarm(&mut self) {
        self.device.disarm();
    }
    fn wake(&self) -> Wake {
        self.times.set(self.times.get() + 1);
        self.device.wake()
    }
}

#[test]
fn how_a_source_wakes_is_asked_when_sources_change_and_not_when_it_has_work() {
    let mut source = Asked { device: Device::new(), times: Cell::new(0) };
    let mut engine = engine(patient(WaitPolicy::Interrupt), &mut [&mut source]);
    for _ in 0..10 {
        source.device.shared.put();
        engine.idle(Clock::get().now(), &mut |each| each(&mut source));
        source.device.take();
    }
    assert_eq!(engine.counters().turned_back.get(), 10);
    assert_eq!(source.times.get(), 1);
}

/// A device that holds its wake-ups back for less long than it is asked to.
struct Hasty(Device);

impl Source for Hasty {
    fn label(&self) -> String {
        self.0.label()
    }
    fn pending(&self) -> bool {
        self.0.pending()
    }
    fn wake(&self) -> Wake {
        self.0.wake()
    }
    fn moderate(&mut self, interval: Duration) -> Option<Duration> {
        Some(interval / 2)
    }
}

#[test]
fn wake_ups_that_a_device_keeps_apart_for_too_short_are_kept_apart_by_the_engine() {
    let (mut device, mut timer) = (Hasty(Device::new()), Timer::new("tick"));
    let policy = WaitPolicy::Adaptive(Target::Cpu { share: 1e-4 });
    let mut engine = engine(patient(policy), &mut [&mut device, &mut timer]);
    let start = Instant::now();
    // A sleep that is more than the share pays for.
    timer.set(Duration::from_millis(1));
    idle_until_work(&mut engine, &mut [&mut device, &mut timer]);
    timer.clear();
    device.0.shared.put_silently();
    engine.idle(Clock::get().now(), &mut |each| {
        each(&mut device);
        each(&mut timer);
    });
    let hold = Duration::from_nanos(engine.counters().hold_ns.get());
    assert!(!hold.is_zero() && start.elapsed() >= hold, "{:?} passed, not {hold:?}", start.elapsed());
}

#[test]
fn a_timer_is_on_time_while_wake_ups_are_kept_apart() {
    let (mut device, mut timer) = (Device::new(), Timer::new("tick"));
    let policy = WaitPolicy::Adaptive(Target::Cpu { share: 1e-4 });
    let mut engine = engine(patient(policy), &mut [&mut device, &mut timer]);
    timer.set(Duration::from_millis(1));
    idle_until_work(&mut engine, &mut [&mut device, &mut timer]);
    assert!(timer.take_due());
    let (start, delay) = (Instant::now(), Duration::from_millis(5));
    timer.set(delay);
    idle_until_work(&mut engine, &mut [&mut device, &mut timer]);
    let took = start.elapsed();
    let hold = Duration::from_nanos(engine.counters().hold_ns.get());
    assert!(hold > 4 * delay && took < hold / 2, "{took:?} of {hold:?}");
}

#[test]
fn it_tells_how_each_source_wakes() {
    let mut device = Device::new();
    let mut timer = Timer::new("tick");
    let (_ours, theirs) = UnixStream::pair().unwrap();
    let mut socket = FdSource::new("socket", &theirs).unwrap();
    let mut sources: [&mut dyn Source; 3] = [&mut device, &mut timer, &mut socket];
    let engine = engine(patient(WaitPolicy::Interrupt), &mut sources);
    let notes = engine.notes();
    assert_eq!(
        notes[..3],
        ["device: wakes by MSI-X", "tick: wakes by its deadline", "socket: wakes by becoming readable"]
    );
    assert!(notes[3].starts_with("a wake-up takes ") && notes[3].contains(" at p99, and "), "{notes:?}");
}

#[test]
fn a_target_out_of_reach_is_told_to_whoever_asks() {
    let mut device = Device::new();
    // No sleep takes less than a microsecond anywhere.
    let target = Target::Wake { latency: Duration::from_micros(1) };
    let engine = engine(patient(WaitPolicy::Adaptive(target)), &mut [&mut device]);
    let verdict = engine.counters().verdict().expect("a verdict");
    assert!(verdict.contains("wake=1us cannot be kept by sleeping"), "{verdict}");
    let notes = engine.notes();
    assert_eq!(notes.last(), Some(&verdict));
    // What was tried for it, or why it could not be.
    assert!(notes.iter().any(|note| note.contains("idle cores")), "{notes:?}");
    assert!(engine.counters().cost_p99_ns.get() > 1_000 && engine.counters().cost_cpu_ns.get() > 0);
}

#[test]
fn a_target_within_reach_needs_no_words() {
    let mut device = Device::new();
    let target = Target::Wake { latency: LONG };
    let engine = engine(patient(WaitPolicy::Adaptive(target)), &mut [&mut device]);
    assert_eq!(engine.counters().verdict(), None);
    assert!(engine.notes().iter().all(|note| !note.contains("idle cores")), "{:?}", engine.notes());
}

/// Sleeps until a device has work, and does not tell when it announced that; again and again until it was `enough`.
fn sleep_on_a_device(target: Target, enough: impl Fn(&WaitCounters) -> bool) -> Arc<WaitCounters> {
    let mut device = Device::new();
    let mut engine = engine(patient(WaitPolicy::Adaptive(target)), &mut [&mut device]);
    let (shared, counters) = (device.shared.clone(), engine.counters().clone());
    let deadline = Instant::now() + LONG;
    while !enough(&counters) {
        assert!(Instant::now() < deadline, "not enough: {counters:?}");
        thread::scope(|scope| {
            scope.spawn(|| {
                until("a sleep", || shared.is_armed());
                thread::sleep(Duration::from_millis(5));
                shared.put();
            });
            idle_until_work(&mut engine, &mut [&mut device]);
            device.take();
        });
    }
    counters
}

/// Whether there is a core beside this one, from which wake-ups can be watched.
fn is_watched() -> bool {
    let target = Target::Wake { latency: LONG };
    let notes = engine(patient(WaitPolicy::Adaptive(target)), &mut [&mut Device::new()]).notes();
    let why_not = notes.into_iter().find(|note| note.contains("could be watched"));
    if let Some(why) = &why_not {
        eprintln!("skipped: {why}");
    }
    why_not.is_none()
}

#[test]
fn how_long_a_device_takes_to_wake_is_seen_without_a_sleep_more() {
    if !is_watched() {
        return;
    }
    let target = Target::Wake { latency: LONG };
    let counters = sleep_on_a_device(target, |counters| counters.wake_ns.snapshot().count() >= 5);
    // What a sounding interrupts is no sleep of its own, no limit that passed, and nothing that was lost.
    assert_eq!((counters.timeouts.get(), counters.rescues.get()), (0, 0), "{counters:?}");
    assert_eq!(counters.parks.get(), counters.wakes.get() + counters.spurious.get(), "{counters:?}");
    // Who keeps to no latency does not ask.
    let counters = sleep_on_a_device(Target::None, |counters| counters.parks.get() >= 20);
    assert_eq!(counters.wake_ns.snapshot().count(), 0);
}

#[test]
fn how_long_a_foreign_loop_takes_to_wake_is_seen_too() {
    if !is_watched() {
        return;
    }
    let mut device = Device::new();
    let mut engine = engine(patient(WaitPolicy::Adaptive(Target::Wake { latency: LONG })), &mut [&mut device]);
    let deadline = Instant::now() + LONG;
    while engine.counters().wake_ns.snapshot().count() < 5 {
        assert!(Instant::now() < deadline, "{:?}", engine.counters());
        let limit = engine.prepare(&mut |each| each(&mut device)).expect("there is no work");
        wait_readable(engine.as_fd(), limit).expect("the descriptor is open");
        engine.resume(&mut |each| each(&mut device));
    }
    let counters = engine.counters();
    assert_eq!((counters.wakes.get(), counters.spurious.get(), counters.timeouts.get()), (0, 0, 0), "{counters:?}");
}

#[test]
fn work_that_a_foreign_loop_finds_as_its_sleep_is_sounded_is_a_rescue_if_its_wake_up_was_lost() {
    if !is_watched() {
        return;
    }
    let mut device = Device::new();
    let config = EngineConfig {
        sleep_limit: LONG,
        grace: Duration::from_millis(2),
        ..EngineConfig::new(WaitPolicy::Adaptive(Target::Wake { latency: LONG }))
    };
    let mut engine = engine(config, &mut [&mut device]);
    let limit = engine.prepare(&mut |each| each(&mut device)).expect("there is no work");
    device.shared.put_silently();
    wait_readable(engine.as_fd(), limit).expect("the descriptor is open");
    engine.resume(&mut |each| each(&mut device));
    assert_eq!((engine.counters().rescues.get(), engine.counters().wakes.get()), (1, 0), "{:?}", engine.counters());
}

#[test]
fn what_a_sleep_takes_of_the_processor_is_learned_from_the_kernel() {
    let mut timer = Timer::new("tick");
    let mut engine = engine(patient(WaitPolicy::Adaptive(Target::None)), &mut [&mut timer]);
    let counters = engine.counters().clone();
    let calibrated = counters.cost_cpu_ns.get();
    let deadline = Instant::now() + LONG;
    // Two measurements of something in nanoseconds are never the same for long.
    while counters.cost_cpu_ns.get() == calibrated {
        assert!(Instant::now() < deadline, "still {calibrated} ns after {} sleeps", counters.parks.get());
        timer.set(Duration::from_millis(2));
        idle_until_work(&mut engine, &mut [&mut timer]);
        timer.take_due();
    }
    assert!(calibrated > 0 && counters.parks.get() > 0);
}

#[test]
fn a_timer_is_not_late_while_its_thread_s_slack_lasts() {
    // In a thread of its own: the slack is that thread's.
    let counters = thread::spawn(|| {
        set_timer_slack_ns(200_000_000).unwrap();
        let mut device = Device::new();
        let config = EngineConfig { sleep_limit: Duration::from_millis(1), ..EngineConfig::new(WaitPolicy::Interrupt) };
        let mut engine = engine(config, &mut [&mut device]);
        while engine.counters().timeouts.get() < 10 {
            engine.idle(Clock::get().now(), &mut |each| each(&mut device));
        }
        engine.counters().clone()
    });
    let counters = counters.join().expect("no panic");
    // A machine that is busy may take longer than that now and then.
    assert!(counters.wake_ns.snapshot().count() < 5, "{counters:?}");
}
