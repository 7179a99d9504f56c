//! Our side of the comparison.
#![expect(unsafe_code, reason = "refilling a burst without a copy, as DPDK's test does")]

use std::hint;
use std::sync::Barrier;
use std::thread;

use arrayvec::ArrayVec;
use spinwake::cpu::pin_current_thread;
use spinwake::ring::{mpmc, spsc};
use spinwake_bench::cycles;

/// Elements moved in one call, at most.
const BURST: usize = 32;
/// Elements in one timed pass, as many as in DPDK's.
const ELEMENTS: usize = BURST << 15;

type Burst<T> = ArrayVec<T, BURST>;

/// Which ring.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Single,
    Multi,
}

/// TSC cycles per element.
pub(crate) struct Figure {
    /// Of the producer, while another core pops.
    pub(crate) push: f64,
    /// Of that consumer.
    pub(crate) pop: f64,
    /// Of a push and a pop on one core.
    pub(crate) one_core: f64,
}

/// Times a ring of `capacity` elements of 8 or 16 bytes.
pub(crate) fn measure(kind: Kind, element_bytes: usize, capacity: usize, from: usize, to: usize) -> Figure {
    const SIZES: &str = "the capacities of this benchmark are powers of two";
    match (kind, element_bytes) {
        (Kind::Single, 8) => time(spsc::ring::<u64>(capacity).expect(SIZES), from, to),
        (Kind::Single, _) => time(spsc::ring::<[u64; 2]>(capacity).expect(SIZES), from, to),
        (Kind::Multi, 8) => time(mpmc::ring::<u64>(capacity).expect(SIZES), from, to),
        (Kind::Multi, _) => time(mpmc::ring::<[u64; 2]>(capacity).expect(SIZES), from, to),
    }
}

trait Push<T>: Send {
    fn push(&mut self, burst: &mut Burst<T>) -> usize;
}
trait Pop<T>: Send {
    fn pop(&mut self, burst: &mut Burst<T>) -> usize;
}
impl<T: Send> Push<T> for spsc::Producer<T> {
    fn push(&mut self, burst: &mut Burst<T>) -> usize {
        self.push_burst(burst)
    }
}
impl<T: Send> Pop<T> for spsc::Consumer<T> {
    fn pop(&mut self, burst: &mut Burst<T>) -> usize {
        self.pop_burst(burst)
    }
}
impl<T: Send> Push<T> for mpmc::Producer<T> {
    fn push(&mut self, burst: &mut Burst<T>) -> usize {
        self.push_burst(burst)
    }
}
impl<T: Send> Pop<T> for mpmc::Consumer<T> {
    fn pop(&mut self, burst: &mut Burst<T>) -> usize {
        self.pop_burst(burst)
    }
}

fn time<T: Copy + Default>(ends: (impl Push<T>, impl Pop<T>), from: usize, to: usize) -> Figure {
    let (mut producer, mut consumer) = ends;
    let (started, done) = (Barrier::new(2), Barrier::new(2));
    thread::scope(|scope| {
        let pushing = scope.spawn(|| {
            pin(from);
            let one_core = through_one_core(&mut producer, &mut consumer);
            let consumer = &mut consumer;
            let popping = thread::scope(|scope| {
                let popping = scope.spawn(|| {
                    pin(to);
                    started.wait();
                    pop_all(consumer);
                    done.wait();
                    pop_all(consumer)
                });
                started.wait();
                push_all(&mut producer);
                done.wait();
                let push = push_all(&mut producer);
                (push, popping.join().expect("the consumer does not panic"))
            });
            Figure { push: popping.0, pop: popping.1, one_core }
        });
        pushing.join().expect("the producer does not panic")
    })
}

/// Cycles per element of pushing `ELEMENTS`.
fn push_all<T: Copy + Default>(producer: &mut impl Push<T>) -> f64 {
    let mut burst = Burst::from([T::default(); BURST]);
    let mut left = ELEMENTS;
    let spent = cycles(|| {
        while left > 0 {
            refill(&mut burst, left);
            let moved = producer.push(&mut burst);
            if moved == 0 {
                hint::spin_loop();
            }
            left -= moved;
        }
    });
    spent as f64 / ELEMENTS as f64
}

/// Cycles per element of popping `ELEMENTS`.
fn pop_all<T>(consumer: &mut impl Pop<T>) -> f64 {
    let mut burst = Burst::new();
    let mut left = ELEMENTS;
    let spent = cycles(|| {
        while left > 0 {
            burst.clear();
            let moved = consumer.pop(&mut burst);
            if moved == 0 {
                hint::spin_loop();
            }
            left -= moved;
        }
    });
    spent as f64 / ELEMENTS as f64
}

/// Cycles per element of pushing and popping in turn.
fn through_one_core<T: Copy + Default>(producer: &mut impl Push<T>, consumer: &mut impl Pop<T>) -> f64 {
    let mut burst = Burst::from([T::default(); BURST]);
    let spent = cycles(|| {
        for _ in 0..ELEMENTS / BURST {
            producer.push(&mut burst);
            consumer.pop(&mut burst);
        }
    });
    spent as f64 / ELEMENTS as f64
}

/// Makes the burst full again, or as long as `left`, with whatever was in it.
#[inline(always)]
fn refill<T: Copy>(burst: &mut Burst<T>, left: usize) {
    // SAFETY: every caller made the burst full once, and moving a `Copy` value out of it leaves its bytes valid.
    unsafe { burst.set_len(left.min(BURST)) };
}

fn pin(core: usize) {
    pin_current_thread(core).expect("a core that this process may use");
}
