//! An engine inside an event loop of somebody else's: epoll, mio, tokio.

use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use spinwake::wait::{Engine, WaitPolicy};
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
