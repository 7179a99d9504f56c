//! Every interleaving of a few operations on the rings, and every value that weak memory allows, by loom's model checker.
//!
//!     RUSTFLAGS="--cfg loom" cargo test -p spinwake --release --test loom_ring
#![cfg(loom)]

use arrayvec::ArrayVec;
use loom::model::Builder;
use loom::sync::Arc;
use loom::thread;
use spinwake::ring::{mpmc, spsc};

type Burst = ArrayVec<u32, 2>;

/// Explores `scenario` with at most this many preemptions; loom's authors find two or three enough for nearly every bug.
fn explore(preemptions: usize, scenario: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(scenario);
}

#[test]
fn spsc_wraps_with_bursts() {
    explore(4, || {
        let (mut producer, mut consumer) = spsc::ring(2).unwrap();
        let pushing = thread::spawn(move || {
            let mut rest: ArrayVec<u32, 4> = [1, 2, 3, 4].into();
            while !rest.is_empty() {
                if producer.push_burst(&mut rest) == 0 {
                    thread::yield_now();
                }
            }
        });
        let mut popped: ArrayVec<u32, 4> = ArrayVec::new();
        while !popped.is_full() {
            if consumer.pop_burst(&mut popped) == 0 {
                thread::yield_now();
            }
        }
        assert_eq!(popped[..], [1, 2, 3, 4]);
        pushing.join().unwrap();
        assert!(consumer.is_empty());
    });
}

#[test]
fn spsc_closed_and_empty_means_finished() {
    explore(4, || {
        let (mut producer, mut consumer) = spsc::ring(2).unwrap();
        let pushing = thread::spawn(move || {
            producer.push(1).unwrap();
            producer.push(2).unwrap();
        });
        let mut popped = Vec::new();
        loop {
            let closed = consumer.is_closed();
            match consumer.pop() {
                Some(item) => popped.push(item),
                None if closed => break,
                None => thread::yield_now(),
            }
        }
        assert_eq!(popped, [1, 2]);
        pushing.join().unwrap();
    });
}

#[test]
fn spsc_drops_what_is_inside() {
    explore(4, || {
        let item = Arc::new(());
        let (mut producer, mut consumer) = spsc::ring(2).unwrap();
        let inside = [Arc::clone(&item), Arc::clone(&item), Arc::clone(&item)];
        let pushing = thread::spawn(move || {
            let mut rest = ArrayVec::from(inside);
            producer.push_burst(&mut rest);
            producer.push_burst(&mut rest);
        });
        drop(consumer.pop());
        drop(consumer);
        pushing.join().unwrap();
        assert_eq!(Arc::strong_count(&item), 1);
    });
}

#[test]
fn spsc_producer_sees_what_a_gone_consumer_left() {
    explore(4, || {
        let (mut producer, mut consumer) = spsc::ring(2).unwrap();
        producer.push_burst(&mut Burst::from([1, 2]));
        let popping = thread::spawn(move || consumer.pop());
        if producer.is_closed() {
            assert_eq!(producer.len(), 1);
        }
        assert_eq!(popping.join().unwrap(), Some(1));
    });
}

/// Pops bursts this many times; a model must end.
fn pop_some(consumer: &mut mpmc::Consumer<u32>, tries: usize) -> Vec<u32> {
    let mut popped = Vec::new();
    for _ in 0..tries {
        let mut burst = Burst::new();
        if consumer.pop_burst(&mut burst) == 0 {
            thread::yield_now();
        }
        popped.extend(burst);
    }
    popped
}

/// Each of `expected` is in `popped` once, and nothing else is.
fn assert_each_once(mut popped: Vec<u32>, expected: &[u32]) {
    popped.sort_unstable();
    assert_eq!(popped, expected);
}

#[test]
fn mpmc_one_of_each_wraps_with_bursts() {
    explore(3, || {
        let (mut producer, mut consumer) = mpmc::ring(2).unwrap();
        let pushing = thread::spawn(move || {
            let mut rest: ArrayVec<u32, 5> = [1, 2, 3, 4, 5].into();
            while !rest.is_empty() {
                if producer.push_burst(&mut rest) == 0 {
                    thread::yield_now();
                }
            }
        });
        let mut popped: ArrayVec<u32, 5> = ArrayVec::new();
        while !popped.is_full() {
            if consumer.pop_burst(&mut popped) == 0 {
                thread::yield_now();
            }
        }
        assert_eq!(popped[..], [1, 2, 3, 4, 5]);
        pushing.join().unwrap();
        assert!(consumer.is_empty());
    });
}

#[test]
fn mpmc_two_producers_one_consumer() {
    explore(3, || {
        let (producer, mut consumer) = mpmc::ring(2).unwrap();
        let pushing: Vec<_> = [[10, 11], [20, 21]]
            .into_iter()
            .map(|items| {
                let mut producer = producer.clone();
                thread::spawn(move || {
                    let mut rest = Burst::from(items);
                    producer.push_burst(&mut rest);
                    rest
                })
            })
            .collect();
        drop(producer);
        let mut popped = pop_some(&mut consumer, 2);
        let refused: Vec<_> = pushing.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        assert!(consumer.is_closed());
        popped.extend(pop_some(&mut consumer, 2));
        for tens in [1, 2] {
            assert!(popped.iter().filter(|&item| item / 10 == tens).is_sorted());
        }
        popped.extend(refused);
        assert_each_once(popped, &[10, 11, 20, 21]);
    });
}

#[test]
fn mpmc_one_producer_two_consumers() {
    explore(3, || {
        let (mut producer, mut consumer) = mpmc::ring(2).unwrap();
        let popping: Vec<_> = (0..2)
            .map(|_| {
                let mut consumer = consumer.clone();
                thread::spawn(move || pop_some(&mut consumer, 1))
            })
            .collect();
        let mut rest: ArrayVec<u32, 3> = [1, 2, 3].into();
        producer.push_burst(&mut rest);
        producer.push_burst(&mut rest);
        let mut popped: Vec<_> = popping.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        popped.extend(rest);
        popped.extend(pop_some(&mut consumer, 2));
        assert_each_once(popped, &[1, 2, 3]);
    });
}

#[test]
fn mpmc_drops_what_is_inside() {
    explore(3, || {
        let item = Arc::new(());
        let (producer, mut consumer) = mpmc::ring(2).unwrap();
        let pushing: Vec<_> = (0..2)
            .map(|_| {
                let (mut producer, item) = (producer.clone(), Arc::clone(&item));
                thread::spawn(move || drop(producer.push(item)))
            })
            .collect();
        drop(producer);
        drop(consumer.pop());
        drop(consumer);
        for thread in pushing {
            thread.join().unwrap();
        }
        assert_eq!(Arc::strong_count(&item), 1);
    });
}

#[test]
fn mpmc_closed_and_empty_means_finished() {
    explore(3, || {
        let (producer, mut consumer) = mpmc::ring(2).unwrap();
        let pushing: Vec<_> = [1, 2]
            .into_iter()
            .map(|item| {
                let mut producer = producer.clone();
                thread::spawn(move || producer.push(item).unwrap())
            })
            .collect();
        drop(producer);
        let mut popped = Vec::new();
        while !(consumer.is_closed() && consumer.is_empty()) {
            match consumer.pop() {
                Some(item) => popped.push(item),
                None => thread::yield_now(),
            }
        }
        assert_each_once(popped, &[1, 2]);
        for thread in pushing {
            thread.join().unwrap();
        }
    });
}

#[test]
fn mpmc_producer_sees_what_gone_consumers_left() {
    explore(3, || {
        let (mut producer, mut consumer) = mpmc::ring(2).unwrap();
        producer.push_burst(&mut Burst::from([1, 2]));
        let popping = thread::spawn(move || consumer.pop());
        if producer.is_closed() {
            assert_eq!(producer.len(), 1);
        }
        assert_eq!(popping.join().unwrap(), Some(1));
    });
}

/// A thread that is a whole lap behind must not take an old mark for a new one.
#[test]
fn mpmc_a_consumer_is_lapped() {
    explore(4, || {
        let (mut producer, mut consumer) = mpmc::ring(1).unwrap();
        let mut late = consumer.clone();
        let popping = thread::spawn(move || late.pop());
        let mut popped = Vec::new();
        let mut pushed = 0;
        for item in 1..=3 {
            if producer.push(item).is_ok() {
                pushed += 1;
            }
            popped.extend(consumer.pop());
        }
        popped.extend(popping.join().unwrap());
        popped.extend(consumer.pop());
        assert_eq!(popped.len(), pushed);
        popped.sort_unstable();
        popped.dedup();
        assert_eq!(popped.len(), pushed);
    });
}

#[test]
fn mpmc_a_producer_is_lapped() {
    explore(4, || {
        let (mut producer, mut consumer) = mpmc::ring(1).unwrap();
        let mut late = producer.clone();
        let pushing = thread::spawn(move || late.push(100).is_ok());
        let mut popped = Vec::new();
        let mut pushed = 0;
        for item in 1..=3 {
            if producer.push(item).is_ok() {
                pushed += 1;
            }
            popped.extend(consumer.pop());
        }
        if pushing.join().unwrap() {
            pushed += 1;
        }
        popped.extend(consumer.pop());
        assert_eq!(popped.len(), pushed);
        popped.sort_unstable();
        popped.dedup();
        assert_eq!(popped.len(), pushed);
    });
}

#[test]
fn mpmc_length_never_exceeds_what_was_pushed() {
    explore(3, || {
        let (producer, mut consumer) = mpmc::ring(4).unwrap();
        let mut other = producer.clone();
        let pushing = thread::spawn(move || other.push(1).unwrap());
        let popping = thread::spawn(move || consumer.pop());
        assert!(producer.len() <= 1);
        pushing.join().unwrap();
        popping.join().unwrap();
    });
}
