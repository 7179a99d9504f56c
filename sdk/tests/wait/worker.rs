//! Workers: requests of other threads while they sleep and while they are busy.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use spinwake::cpu::{CoreChoice, CpuSet, Topology, choose};
use spinwake::sys::sched;
use spinwake::wait::{EngineConfig, Source, State, Target, WaitPolicy};
use spinwake::worker::{CallError, Task, Worker, WorkerConfig};

use crate::rig::{Device, LONG, patient, until};

/// Takes what its devices bring.
#[derive(Debug)]
struct Taker {
    devices: Vec<Device>,
    taken: usize,
    hold: Arc<Hold>,
}

/// Holds every turn up, while wanted.
#[derive(Debug, Default)]
struct Hold {
    wanted: AtomicBool,
    held: AtomicBool,
}

impl Taker {
    fn new(devices: Vec<Device>) -> Self {
        Self { devices, taken: 0, hold: Arc::default() }
    }
}

impl Task for Taker {
    fn turn(&mut self) -> usize {
        while self.hold.wanted.load(Ordering::SeqCst) {
            self.hold.held.store(true, Ordering::SeqCst);
            std::thread::yield_now();
        }
        let taken = self.devices.iter().map(Device::take).sum();
        self.taken += taken;
        taken
    }

    fn sources(&mut self, each: &mut dyn FnMut(&mut dyn Source)) {
        self.devices.iter_mut().for_each(|device| each(device));
    }
}

fn spawn<T: Task + 'static>(config: EngineConfig, task: T) -> Worker<T> {
    let core = choose(&Topology::read(), CoreChoice::Auto, None, &CpuSet::new()).expect("some core").core;
    Worker::spawn(WorkerConfig { name: "test".into(), core, fifo: None, wait: config }, task).expect("a worker")
}

#[test]
fn a_request_is_served_asleep_and_awake() {
    for policy in [WaitPolicy::Poll, WaitPolicy::Interrupt, WaitPolicy::Adaptive(Target::None)] {
        let worker = spawn(patient(policy), Taker::new(vec![Device::new()]));
        for n in 0..100 {
            if policy == WaitPolicy::Interrupt {
                until("a sleep", || worker.waits().state() == State::Sleep);
            }
            assert_eq!(worker.call(LONG, move |task| task.devices.len() + n), Ok(1 + n));
        }
        assert_eq!(worker.waits().rescues.get(), 0);
        worker.stop().unwrap();
    }
}

#[test]
fn sources_added_by_a_request_wake_and_those_taken_away_do_not() {
    let worker = spawn(patient(WaitPolicy::Interrupt), Taker::new(Vec::new()));
    for _ in 0..20 {
        let device = Device::new();
        let shared = device.shared.clone();
        worker.call(LONG, move |task| task.devices.push(device)).unwrap();
        until("a sleep", || shared.is_armed());
        shared.put();
        until("the work being taken", || shared.work.load(Ordering::SeqCst) == 0);
        let device = worker.call(LONG, |task| task.devices.pop()).unwrap().expect("it was there");
        assert!(!device.shared.is_armed());
        until("the refresh", || worker.waits().sources().len() == 1);
    }
    assert_eq!(worker.stop().unwrap().taken, 20);
}

#[test]
fn a_request_that_nobody_gets_to_is_withdrawn() {
    let task = Taker::new(vec![Device::new()]);
    let hold = task.hold.clone();
    let worker = spawn(EngineConfig::new(WaitPolicy::Poll), task);
    hold.wanted.store(true, Ordering::SeqCst);
    until("the worker being held up", || hold.held.load(Ordering::SeqCst));
    let limit = Duration::from_millis(20);
    let ran = Arc::new(AtomicBool::new(false));
    let theirs = ran.clone();
    let called = worker.call(limit, move |_| theirs.store(true, Ordering::SeqCst));
    hold.wanted.store(false, Ordering::SeqCst);
    assert_eq!(called.unwrap_err(), CallError::TimedOut { name: "test".into(), limit });
    worker.call(LONG, |_| ()).unwrap();
    assert!(!ran.load(Ordering::SeqCst), "it ran after it was withdrawn");
}

#[test]
fn a_caller_whose_request_takes_longer_than_its_limit_sleeps_meanwhile() {
    let worker = spawn(EngineConfig::new(WaitPolicy::Poll), Taker::new(Vec::new()));
    let long = |_: &mut Taker| std::thread::sleep(Duration::from_millis(500));
    let mut before = sched::thread_cpu_time();
    until("a request that is begun within its limit", || {
        before = sched::thread_cpu_time();
        worker.call(Duration::from_millis(1), long).is_ok()
    });
    let used = sched::thread_cpu_time() - before;
    assert!(used < Duration::from_millis(50), "{used:?}");
    worker.stop().unwrap();
}

/// Counts its turns.
struct Turns(usize);

impl Task for Turns {
    fn turn(&mut self) -> usize {
        self.0 += 1;
        0
    }

    fn sources(&mut self, _: &mut dyn FnMut(&mut dyn Source)) {}
}

#[test]
fn requests_that_never_cease_leave_turns_between_them() {
    let worker = spawn(EngineConfig::new(WaitPolicy::Poll), Turns(0));
    let request = |task: &mut Turns| {
        // Long enough for the next caller to be there before it is over.
        std::thread::sleep(Duration::from_millis(2));
        task.0
    };
    std::thread::scope(|scope| {
        // Two take turns at keeping the queue from being empty.
        let callers = [(); 2].map(|()| {
            scope.spawn(|| {
                let mut seen: Vec<usize> = (0..50).map(|_| worker.call(LONG, request).unwrap()).collect();
                seen.dedup();
                seen.len()
            })
        });
        for caller in callers {
            let different = caller.join().unwrap();
            assert!(different > 40, "turns were seen to pass between {different} of 50 requests");
        }
    });
    worker.stop().unwrap();
}

#[test]
fn a_request_that_panics_ends_the_worker_and_tells_the_caller() {
    let worker = spawn(patient(WaitPolicy::Interrupt), Taker::new(vec![Device::new()]));
    let error = worker.call(LONG, |_| panic!("on purpose")).unwrap_err();
    assert_eq!(error, CallError::Ended { name: "test".into() });
    until("its end", || !worker.is_running());
    assert_eq!(worker.call(LONG, |_| ()).unwrap_err(), CallError::Ended { name: "test".into() });
    assert!(worker.stop().unwrap_err().to_string().contains("on purpose"));
}

#[test]
fn a_source_that_cannot_wake_added_at_run_time_makes_it_poll() {
    let worker = spawn(patient(WaitPolicy::Interrupt), Taker::new(Vec::new()));
    let device = Device { can_wake: false, ..Device::new() };
    let shared = device.shared.clone();
    worker.call(LONG, move |task| task.devices.push(device)).unwrap();
    for _ in 0..10 {
        shared.put_silently();
        until("the work being taken", || shared.work.load(Ordering::SeqCst) == 0);
    }
    worker.stop().unwrap();
}

#[test]
fn a_request_ends_an_idle_gap_as_work_does() {
    let worker = spawn(patient(WaitPolicy::Adaptive(Target::None)), Taker::new(vec![Device::new()]));
    for _ in 0..20 {
        until("a sleep", || worker.waits().state() == State::Sleep);
        worker.call(LONG, |_| ()).unwrap();
    }
    // Else nothing is known of what was spent in it, and a share of the processor is not kept.
    until("gaps", || worker.waits().gap_ns.snapshot().count() >= 20);
    worker.stop().unwrap();
}
