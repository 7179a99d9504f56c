//! An engine inside an event loop of somebody else's: epoll, mio, tokio.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use spinwake::irq::IrqKind;
use spinwake::sys::event::wait_readable;
use spinwake::wait::{Engine, EngineConfig, FdSource, Source, Target, WaitPolicy, Wake};
use tokio::io::unix::AsyncFd;

use crate::rig::{Device, LONG, engine, patient, until};

const ROUNDS: usize = 100;

/// Puts one piece of work after another, each once the sleeper is armed.
fn producer(device: &Device) -> thread::JoinHandle<()> {
    let shared = device.shared.clone();
    thread::spawn(move || {
        for _ in 0..ROUNDS {
            until("arming", || shared.is_armed());
            thread::sleep(Duration::from_micros(200));
            shared.put();
            until("the work being taken", || shared.work.load(std::sync::atomic::Ordering::SeqCst) == 0);
        }
    })
}

/// Sleeps by `block` until all work has been taken.
fn serve(mut block: impl FnMut(&Engine, Duration)) {
    let mut device = Device::new();
    let mut engine = engine(patient(WaitPolicy::Interrupt), &mut [&mut device]);
    let producer = producer(&device);
    let mut taken = 0;
    while taken < ROUNDS {
        if let Some(limit) = engine.prepare(&mut |each| each(&mut device)) {
            assert!(limit <= LONG);
            block(&engine, limit);
            engine.resume(&mut |each| each(&mut device));
        }
        taken += device.take();
    }
    producer.join().expect("the producer");
    let counters = engine.counters();
    assert_eq!((counters.rescues.get(), counters.timeouts.get()), (0, 0), "{counters:?}");
    assert!(counters.wakes.get() > 0);
}

#[test]
fn it_fits_poll() {
    serve(|engine, limit| {
        assert!(spinwake::sys::event::wait_readable(engine.as_fd(), limit).unwrap());
    });
}

#[test]
fn it_fits_mio() {
    let mut poll = Poll::new().unwrap();
    let mut events = Events::with_capacity(4);
    let mut registered = false;
    serve(move |engine, limit| {
        let fd = engine.as_fd().as_raw_fd();
        if !std::mem::replace(&mut registered, true) {
            poll.registry().register(&mut SourceFd(&fd), Token(7), Interest::READABLE).unwrap();
        }
        poll.poll(&mut events, Some(limit)).unwrap();
        assert!(events.iter().any(|event| event.token() == Token(7) && event.is_readable()));
    });
}

#[test]
fn it_fits_tokio() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut device = Device::new();
        let mut engine = engine(patient(WaitPolicy::Interrupt), &mut [&mut device]);
        #[expect(deprecated, reason = "its successor wants unsafe code; this descriptor is its own")]
        let descriptor = AsyncFd::new(engine.as_fd().try_clone_to_owned().unwrap()).unwrap();
        let producer = producer(&device);
        let mut taken = 0;
        while taken < ROUNDS {
            if let Some(limit) = engine.prepare(&mut |each| each(&mut device)) {
                let mut guard = tokio::time::timeout(limit, descriptor.readable()).await.unwrap().unwrap();
                engine.resume(&mut |each| each(&mut device));
                guard.clear_ready();
            }
            taken += device.take();
        }
        producer.join().unwrap();
        assert_eq!(engine.counters().rescues.get(), 0);
    });
}

#[test]
fn what_is_left_unread_is_found_again_by_a_loop_that_watches_for_edges() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let mut source = FdSource::new("socket", &theirs).unwrap();
    let mut engine = engine(patient(WaitPolicy::Interrupt), &mut [&mut source]);
    let mut poll = Poll::new().unwrap();
    let mut events = Events::with_capacity(4);
    poll.registry().register(&mut SourceFd(&engine.as_fd().as_raw_fd()), Token(7), Interest::READABLE).unwrap();
    assert!(engine.prepare(&mut |each| each(&mut source)).is_some());
    ours.write_all(&[1, 2]).unwrap();
    poll.poll(&mut events, Some(LONG)).unwrap();
    engine.resume(&mut |each| each(&mut source));
    assert!(source.take_readable());
    (&theirs).read_exact(&mut [0]).unwrap();
    // Nothing fires for the second byte.
    poll.poll(&mut events, Some(Duration::from_millis(1))).unwrap();
    assert!(events.is_empty());
    assert_eq!(engine.prepare(&mut |each| each(&mut source)), None);
    assert!(source.take_readable());
    (&theirs).read_exact(&mut [0]).unwrap();
    assert!(engine.prepare(&mut |each| each(&mut source)).is_some());
}

#[test]
fn an_engine_that_must_not_sleep_has_its_loop_look_and_no_more() {
    for policy in [WaitPolicy::Poll, WaitPolicy::Adaptive(Target::None)] {
        let mut device = Device { can_wake: false, ..Device::new() };
        let mut engine = engine(EngineConfig::new(policy), &mut [&mut device]);
        for _ in 0..3 {
            assert_eq!(engine.prepare(&mut |each| each(&mut device)), Some(Duration::ZERO));
            assert!(!device.shared.is_armed());
            device.shared.put_silently();
            engine.resume(&mut |each| each(&mut device));
            assert_eq!(engine.prepare(&mut |each| each(&mut device)), None);
            device.take();
        }
        let counters = engine.counters();
        assert_eq!((counters.parks.get(), counters.rescues.get()), (0, 0));
    }
}

#[test]
fn a_sleep_that_was_prepared_is_called_off_by_the_next_and_by_other_sources() {
    let (mut device, mut other) = (Device::new(), Device::new());
    let mut engine = engine(patient(WaitPolicy::Interrupt), &mut [&mut device]);
    assert!(engine.prepare(&mut |each| each(&mut device)).is_some());
    device.shared.put();
    assert!(wait_readable(engine.as_fd(), LONG).unwrap());
    assert_eq!(engine.prepare(&mut |each| each(&mut device)), None);
    engine.resume(&mut |each| each(&mut device));
    assert_eq!(engine.counters().parks.get(), 0, "there was nothing to resume");

    device.take();
    assert!(engine.prepare(&mut |each| each(&mut device)).is_some());
    let mut both = |each: &mut dyn FnMut(&mut dyn Source)| {
        each(&mut device);
        each(&mut other);
    };
    engine.refresh(&mut both).unwrap();
    engine.resume(&mut both);
    assert!(!device.shared.is_armed());
    assert_eq!(engine.counters().parks.get(), 0);
}

/// A line of INTx: masked each time it fires, unmasked by the arming after its source was told.
struct Line {
    device: Device,
    masked: bool,
    told: bool,
    /// Work comes as soon as it is armed.
    comes: bool,
}

impl Line {
    fn interrupt(&mut self) {
        self.device.shared.put_silently();
        if !std::mem::replace(&mut self.masked, true) {
            self.device.shared.vector.signal(1);
        }
    }
}

impl Source for Line {
    fn label(&self) -> String {
        self.device.label()
    }
    fn pending(&self) -> bool {
        self.device.pending()
    }
    fn arm(&mut self) {
        self.device.arm();
        if std::mem::take(&mut self.told) {
            self.masked = false;
        }
        if std::mem::take(&mut self.comes) {
            self.interrupt();
        }
    }
    fn disarm(&mut self) {
        self.device.disarm();
    }
    fn wake(&self) -> Wake {
        Wake::Vector(self.device.shared.vector.clone(), IrqKind::Intx)
    }
    fn fired(&mut self) {
        self.told = true;
    }
}

#[test]
fn a_line_that_fired_into_a_sleep_called_off_is_unmasked_in_a_loop_that_watches_for_edges() {
    let mut line = Line { device: Device::new(), masked: false, told: false, comes: true };
    let mut engine = engine(patient(WaitPolicy::Interrupt), &mut [&mut line]);
    let mut poll = Poll::new().unwrap();
    let mut events = Events::with_capacity(4);
    poll.registry().register(&mut SourceFd(&engine.as_fd().as_raw_fd()), Token(7), Interest::READABLE).unwrap();
    assert_eq!(engine.prepare(&mut |each| each(&mut line)), None, "work came meanwhile");
    // The loop looks at its other descriptors, and has seen the engine's edge then.
    poll.poll(&mut events, Some(LONG)).unwrap();
    assert!(!events.is_empty() && line.masked);
    assert_eq!(line.device.take(), 1);
    assert!(engine.prepare(&mut |each| each(&mut line)).is_some());
    assert!(!line.masked, "nothing could wake it");
    line.interrupt();
    poll.poll(&mut events, Some(LONG)).unwrap();
    assert!(!events.is_empty());
    engine.resume(&mut |each| each(&mut line));
    assert_eq!((engine.counters().wakes.get(), engine.counters().rescues.get()), (1, 0));
}
