//! A status register as a source: edu's factorial, polled for and slept on.

use std::thread;

use spinwake::irq::{AckProgram, AckStep};
use spinwake::wait::{EngineConfig, RegisterSource, Source, Status, StatusInterrupt, Target, WaitPolicy, Wake};
use spinwake::worker::{Task, Worker, WorkerConfig};

use super::*;

/// STATUS: the factorial is being computed.
const COMPUTING: u64 = 0x01;
/// STATUS: raise an interrupt when it is done.
const IRQ_FACT: u32 = 0x80;
/// IRQ_STATUS: what that interrupt sets.
const FACT_IRQ: u32 = 0x01;
const ROUNDS: u32 = 400;

/// What edu computes: in 32 bits, which makes it zero from 34 on.
fn factorial(n: u32) -> u32 {
    if n > 33 { 0 } else { (1..=n).fold(1, u32::wrapping_mul) }
}

fn done(bar: &Arc<Bar>) -> RegisterSource {
    let status = Status {
        offset: edu_regs::STATUS.offset(),
        width: Width::Dword,
        mask: COMPUTING,
        value: 0,
        clears_on_read: false,
    };
    RegisterSource::new("edu factorial", bar.clone(), status)
}

#[test]
fn guest_edu_is_polled_by_its_status_register() {
    let Some(_guest) = guest() else { return };
    let bar = Arc::new(edu().bar(0).unwrap());
    let mut source = done(&bar);
    assert!(matches!(source.wake(), Wake::Never(_)));
    let mut waited = 0;
    for round in 0..ROUNDS {
        // Now and then one that takes milliseconds.
        let n = if round % 20 == 0 { 1 << 22 } else { round % 40 };
        bar.write(edu_regs::FACTORIAL, n);
        let deadline = Instant::now() + LONG;
        while !source.pending() {
            waited += 1;
            assert!(Instant::now() < deadline, "round {round}: the factorial of {n} is not done");
        }
        assert!(source.take().is_some());
        assert_eq!(bar.read(edu_regs::FACTORIAL), factorial(n), "round {round}: the factorial of {n}");
    }
    assert!(waited > 0, "it was always done at once: nothing was waited for");
}

/// The factorial's status, by which it interrupts with `kind`; and the vector.
fn done_by(device: &Arc<dyn Device>, bar: &Arc<Bar>, kind: IrqKind) -> (RegisterSource, Arc<Vector>) {
    device.set_bus_master(true).unwrap(); // a message is a write
    let vector = Arc::new(Vector::new().unwrap());
    device.irq_enable(kind, &[vector.as_fd()]).unwrap();
    let (status, acknowledge) = (Reg::at(edu_regs::STATUS.offset()), Reg::at(edu_regs::IRQ_ACK.offset()));
    let acknowledge = AckStep::Write(acknowledge, FACT_IRQ);
    let source = done(bar).wakes_by(StatusInterrupt {
        vector: vector.clone(),
        kind,
        arm: AckProgram::new([acknowledge, AckStep::Write(status, IRQ_FACT)]),
        disarm: AckProgram::new([AckStep::Write(status, 0), acknowledge]),
        device: Some(device.clone()),
    });
    (source, vector)
}

/// Factorials, of which those that take longer are slept on.
fn sleep_on(kind: IrqKind) {
    let device: Arc<dyn Device> = Arc::new(edu());
    let bar = Arc::new(device.bar(0).unwrap());
    let (mut source, vector) = done_by(&device, &bar, kind);
    // Doubled until it takes longer than arming, on whatever machine this is.
    let mut long = 1 << 20;
    let (mut sleeps, mut spurious) = (0, 0);
    for round in 0..ROUNDS {
        let n = if round % 4 == 0 { long } else { round % 40 };
        bar.write(edu_regs::FACTORIAL, n);
        let mut slept = false;
        while !source.pending() {
            source.arm();
            if !source.pending() {
                assert!(vector.wait(LONG) > 0, "round {round}: {kind} was lost after {sleeps} sleeps");
                slept = true;
                spurious += u32::from(!source.pending());
            }
            source.disarm();
            vector.take();
            source.fired();
        }
        assert!(source.take().is_some());
        assert_eq!(bar.read(edu_regs::FACTORIAL), factorial(n), "round {round}: the factorial of {n}");
        sleeps += u32::from(slept);
        if n == long && !slept {
            long = (long * 2).min(1 << 30);
        }
    }
    println!("{kind}: {sleeps} sleeps, {spurious} spurious wakes, the longest factorial {long}");
    assert!(sleeps >= ROUNDS / 8, "{kind}: {sleeps} sleeps");
}

#[test]
fn guest_edu_wakes_by_msi() {
    let Some(_guest) = guest() else { return };
    sleep_on(IrqKind::Msi);
}

#[test]
fn guest_edu_wakes_by_intx() {
    let Some(_guest) = guest() else { return };
    sleep_on(IrqKind::Intx);
}

/// Has edu compute one factorial after another.
#[derive(Debug)]
struct Factorials {
    bar: Arc<Bar>,
    done: RegisterSource,
    /// What is being computed.
    n: u32,
    computed: u32,
    wrong: Vec<(u32, u32)>,
}

impl Factorials {
    fn begin(&mut self) {
        // Every fourth one takes milliseconds.
        self.n = if self.computed.is_multiple_of(4) { 1 << 22 } else { self.computed % 40 };
        self.bar.write(edu_regs::FACTORIAL, self.n);
    }
}

impl Task for Factorials {
    fn on_start(&mut self) {
        self.begin();
    }

    fn turn(&mut self) -> usize {
        if self.done.take().is_none() {
            return 0;
        }
        let result = self.bar.read(edu_regs::FACTORIAL);
        if result != factorial(self.n) {
            self.wrong.push((self.n, result));
        }
        self.computed += 1;
        self.begin();
        1
    }

    fn sources(&mut self, each: &mut dyn FnMut(&mut dyn Source)) {
        each(&mut self.done);
    }
}

/// Polled first, because nothing can wake it, then slept on by MSI and by INTx: one worker all the way.
#[test]
fn guest_edu_is_served_by_one_adaptive_worker() {
    let Some(_guest) = guest() else { return };
    let device: Arc<dyn Device> = Arc::new(edu());
    let bar = Arc::new(device.bar(0).unwrap());
    let task = Factorials { bar: bar.clone(), done: done(&bar), n: 0, computed: 0, wrong: Vec::new() };
    let wait = EngineConfig::new(WaitPolicy::Adaptive(Target::None));
    let worker = Worker::spawn(WorkerConfig { name: "edu".into(), core: 1, fifo: None, wait }, task).unwrap();
    assert!(
        worker.notes().iter().any(|note| note.contains("edu factorial") && note.contains("polls")),
        "{:?}",
        worker.notes()
    );
    let woken = || {
        let sources = worker.waits().sources();
        sources.iter().filter(|source| source.label == "edu factorial").map(|source| source.wakes.get()).sum::<u64>()
    };
    let compute = |how: &str, count: u32, wakes: u64| {
        let deadline = Instant::now() + LONG;
        let (goal, wakes) = (worker.call(LONG, |task| task.computed).unwrap() + count, woken() + wakes);
        while worker.call(LONG, |task| task.computed).unwrap() < goal || woken() < wakes {
            assert!(Instant::now() < deadline, "{how}: {:?}", worker.waits());
            thread::sleep(Duration::from_millis(50));
        }
    };
    let waits = worker.waits();
    compute("polling", ROUNDS, 0);
    assert_eq!(waits.parks.get(), 0, "nothing could have woken it");
    for kind in [IrqKind::Msi, IrqKind::Intx] {
        let theirs = device.clone();
        worker
            .call(LONG, move |task| {
                // Off first, for another kind cannot be on at the same time.
                drop(theirs.irq_disable());
                task.done = done_by(&theirs, &task.bar, kind).0;
            })
            .unwrap();
        let parks = waits.parks.get();
        compute(&kind.to_string(), ROUNDS, 50);
        println!(
            "{kind}: {} parks, {} wakes in all, {} spurious",
            waits.parks.get() - parks,
            woken(),
            waits.spurious.get()
        );
    }
    assert_eq!(waits.rescues.get(), 0);
    assert_eq!(worker.stop().unwrap().wrong, []);
}
