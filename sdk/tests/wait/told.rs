//! Every event that an engine consumes is told to its sources, wherever it was consumed: a driver relies on it to unmask
//! INTx.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use spinwake::clock::Clock;
use spinwake::sys::event::wait_readable;
use spinwake::wait::{Engine, EngineConfig, FdSource, Source, Target, Timer, WaitPolicy, Wake};

use crate::rig::{Device, LONG, Shared, engine, idle_until_work, patient, until};

/// Counts the events that it is told of.
struct Told {
    device: Device,
    times: usize,
}

impl Told {
    fn new(device: Device) -> Self {
        Self { device, times: 0 }
    }

    /// How often it was told since the last call.
    fn times(&mut self) -> usize {
        std::mem::take(&mut self.times)
    }

    fn fire(&self) {
        self.device.shared.vector.signal(1);
    }
}

impl Source for Told {
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
        self.device.wake()
    }
    fn fired(&mut self) {
        self.times += 1;
    }
}

/// Whether an event waits to be consumed.
fn is_ready(engine: &Engine) -> bool {
    wait_readable(engine.as_fd(), Duration::ZERO).expect("the descriptor is open")
}

#[test]
fn an_event_that_no_sleep_was_ended_by_is_told_all_the_same() {
    let mut source = Told::new(Device::new());
    source.fire();
    let mut engine = engine(patient(WaitPolicy::Interrupt), &mut [&mut source]);
    assert_eq!((source.times(), is_ready(&engine)), (1, false), "it fired before there was an engine");
    source.fire();
    engine.refresh(&mut |each| each(&mut source)).unwrap();
    assert_eq!((source.times(), is_ready(&engine)), (1, false), "before the sources changed");
    // A park that is called off leaves the event to the next one, which then ends at once.
    source.device.shared.put_silently();
    source.fire();
    engine.idle(Clock::get().now(), &mut |each| each(&mut source));
    assert_eq!((engine.counters().turned_back.get(), source.times(), is_ready(&engine)), (1, 0, true));
    source.device.take();
    engine.idle(Clock::get().now(), &mut |each| each(&mut source));
    assert_eq!((engine.counters().spurious.get(), source.times(), is_ready(&engine)), (1, 1, false));
}

#[test]
fn an_event_that_a_foreign_loop_waited_for_is_told() {
    let mut source = Told::new(Device::new());
    let mut engine = engine(patient(WaitPolicy::Interrupt), &mut [&mut source]);
    engine.prepare(&mut |each| each(&mut source)).expect("there is no work");
    source.fire();
    assert!(is_ready(&engine) && is_ready(&engine), "looking consumes nothing");
    assert_eq!(source.times(), 0);
    engine.resume(&mut |each| each(&mut source));
    assert_eq!((source.times(), is_ready(&engine)), (1, false));
    // One that was called off, with a new park after it.
    engine.prepare(&mut |each| each(&mut source)).expect("there is no work");
    source.fire();
    engine.prepare(&mut |each| each(&mut source)).expect("there is no work");
    assert!(is_ready(&engine));
    engine.resume(&mut |each| each(&mut source));
    assert_eq!((source.times(), is_ready(&engine)), (1, false));
}

#[test]
fn an_event_that_came_with_a_look_at_descriptors_is_told() {
    let mut source = Told::new(Device::new());
    let (_ours, theirs) = UnixStream::pair().unwrap();
    let mut socket = FdSource::new("socket", &theirs).unwrap();
    for policy in [WaitPolicy::Poll, WaitPolicy::Interrupt] {
        let mut engine = engine(patient(policy), &mut [&mut source, &mut socket]);
        source.times();
        source.fire();
        let mut each = |visit: &mut dyn FnMut(&mut dyn Source)| {
            visit(&mut source);
            visit(&mut socket);
        };
        if policy == WaitPolicy::Poll {
            engine.idle(Clock::get().now(), &mut each);
        } else {
            engine.prepare(&mut each).expect("there is no work");
        }
        assert_eq!((source.times(), is_ready(&engine)), (1, false), "{policy}");
    }
}

#[test]
fn an_event_that_came_in_a_sleep_s_grace_is_told() {
    let mut source = Told::new(Device::new());
    let shared = source.device.shared.clone();
    let config =
        EngineConfig { sleep_limit: Duration::from_millis(5), grace: LONG, ..EngineConfig::new(WaitPolicy::Interrupt) };
    let mut engine = engine(config, &mut [&mut source]);
    let producer = thread::spawn(move || {
        until("the sleep", || shared.is_armed());
        shared.put_silently();
        thread::sleep(Duration::from_millis(50));
        shared.vector.signal(1);
    });
    while source.times() == 0 {
        idle_until_work(&mut engine, &mut [&mut source]);
    }
    producer.join().unwrap();
    assert!(!is_ready(&engine));
}

#[test]
fn all_that_share_a_vector_are_told_of_its_events_in_every_engine() {
    let mut a = Told::new(Device::new());
    let sharing = |with: &Told| {
        let shared = Arc::new(Shared::with(with.device.shared.vector.clone()));
        Told::new(Device { shared, can_wake: true })
    };
    let (mut b, mut c) = (sharing(&a), sharing(&a));
    let mut one = engine(patient(WaitPolicy::Interrupt), &mut [&mut a, &mut b]);
    let mut other = engine(patient(WaitPolicy::Interrupt), &mut [&mut c]);
    a.fire();
    one.idle(Clock::get().now(), &mut |each| {
        each(&mut a);
        each(&mut b);
    });
    assert_eq!((a.times(), b.times(), c.times()), (1, 1, 0));
    other.idle(Clock::get().now(), &mut |each| each(&mut c));
    assert_eq!(c.times(), 1);
}

#[test]
fn an_event_that_came_while_wake_ups_are_kept_apart_is_told() {
    let (mut source, mut timer) = (Told::new(Device::new()), Timer::new("tick"));
    let policy = WaitPolicy::Adaptive(Target::Cpu { share: 1e-4 });
    let mut engine = engine(patient(policy), &mut [&mut source, &mut timer]);
    timer.set(Duration::from_millis(1));
    idle_until_work(&mut engine, &mut [&mut source, &mut timer]);
    assert!(timer.take_due());
    // With work there is no sleep after it.
    source.device.shared.put_silently();
    source.fire();
    let parks = engine.counters().parks.get();
    engine.idle(Clock::get().now(), &mut |each| {
        each(&mut source);
        each(&mut timer);
    });
    assert_eq!((source.times(), is_ready(&engine), engine.counters().parks.get()), (1, false, parks));
}
