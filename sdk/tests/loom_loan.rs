//! A loan between a control plane and a worker, in every interleaving and with every value that weak memory allows: the
//! two never use what is lent at once, a recall always returns, and a borrower that sleeps is woken for it.
//!
//!     RUSTFLAGS="--cfg loom" cargo test -p spinwake --release --test loom_loan
//!
//! Sleeping has no bound here, so a lost wake-up is a deadlock, which loom reports, and so is a recall that waits for ever.
#![cfg(loom)]
#![expect(unsafe_code, reason = "what is lent stands in a cell that loom watches")]

use std::time::{Duration, Instant};

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use spinwake::wait::{Loan, Recalled};

/// What stands for the ring: loom reports two threads in it at once.
type Ring = Arc<UnsafeCell<u32>>;

type RingLoan = Loan<Ring, u32>;

/// What stands for the relay's eventfd.
#[derive(Default)]
struct Event {
    fired: Mutex<bool>,
    changed: Condvar,
}

impl Event {
    fn signal(&self) {
        *self.fired.lock().unwrap() = true;
        self.changed.notify_one();
    }

    fn wait(&self) {
        let mut fired = self.fired.lock().unwrap();
        while !*fired {
            fired = self.changed.wait(fired).unwrap();
        }
        *fired = false;
    }
}

fn step(ring: &Ring) -> u32 {
    ring.with_mut(|value| {
        // SAFETY: this is what the model checks: loom fails if another thread is in it.
        unsafe {
            *value += 1;
            *value
        }
    })
}

fn never() -> Instant {
    Instant::now() + Duration::from_secs(1 << 20)
}

/// A worker that uses what is lent to it, and sleeps until anything changes.
fn work(loan: &RingLoan, event: &Event, ended: &AtomicBool) {
    let mut seen = RingLoan::UNSEEN;
    let mut held: Option<Ring> = None;
    loop {
        if loan.changed(seen) {
            let back = held.take().map(|ring| step(&ring));
            held = loan.exchange(&mut seen, back);
            held.as_ref().map(step);
        } else if ended.load(Ordering::Acquire) {
            return;
        } else {
            event.wait();
        }
    }
}

fn explore(scenario: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(scenario);
}

#[test]
fn a_recall_gets_the_ring_back_from_a_worker_that_runs_or_sleeps() {
    explore(|| {
        let (loan, event, ring) =
            (Arc::new(RingLoan::new()), Arc::new(Event::default()), Ring::new(UnsafeCell::new(0)));
        let ended = Arc::new(AtomicBool::new(false));
        let worker = thread::spawn({
            let (loan, event, ended) = (loan.clone(), event.clone(), ended.clone());
            move || work(&loan, &event, &ended)
        });
        for _ in 0..2 {
            loan.lend(ring.clone(), || event.signal());
            match loan.recall(never(), || event.signal()) {
                Recalled::Unused(ring) => {
                    step(&ring);
                }
                Recalled::Returned(at) => assert_eq!(step(&ring), at + 1),
                Recalled::Nothing | Recalled::Late => panic!("it was lent, and there is no deadline"),
            }
        }
        ended.store(true, Ordering::Release);
        event.signal();
        worker.join().unwrap();
    });
}

#[test]
fn a_worker_that_ends_leaves_the_ring_to_its_lender() {
    explore(|| {
        let (loan, ring) = (Arc::new(RingLoan::new()), Ring::new(UnsafeCell::new(0)));
        loan.lend(ring.clone(), || {});
        let worker = thread::spawn({
            let loan = loan.clone();
            move || {
                let mut seen = RingLoan::UNSEEN;
                let Some(ring) = loan.exchange(&mut seen, None) else { return };
                let back = step(&ring);
                loan.put_back(seen, ring, back);
            }
        });
        match loan.recall(never(), || {}) {
            Recalled::Unused(_) | Recalled::Returned(_) => step(&ring),
            Recalled::Nothing | Recalled::Late => panic!("it was lent, and there is no deadline"),
        };
        worker.join().unwrap();
    });
}
