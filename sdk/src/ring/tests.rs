//! What both kinds of ring promise, on one thread against a model and on several for real.

use std::collections::VecDeque;
use std::hint;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use proptest::prelude::*;

use super::{CreateError, mpmc, spsc};
use crate::sys::epoll::{Epoll, Events, Trigger, Woken};
use crate::wait::{Parked, Source, Steps, Wake, Waker, after_arming, park};

/// Items that pass through a ring in the threaded tests.
const ITEMS: u64 = if cfg!(miri) { 300 } else { 200_000 };
/// Room in the bursts here; small, so that rings fill up in the middle of one.
const BURST: usize = 8;
type Burst<T> = ArrayVec<T, BURST>;

/// One call on a ring.
#[derive(Debug, Clone)]
enum Call {
    Push,
    PushBurst(usize),
    Pop,
    /// With this many items in the caller's buffer already.
    PopBurst(usize),
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let call = prop_oneof![
        Just(Call::Push),
        (0..=BURST).prop_map(Call::PushBurst),
        Just(Call::Pop),
        (0..=BURST).prop_map(Call::PopBurst),
    ];
    prop::collection::vec(call, 0..if cfg!(miri) { 20 } else { 200 })
}

fn cases() -> ProptestConfig {
    ProptestConfig { cases: if cfg!(miri) { 8 } else { 500 }, failure_persistence: None, ..ProptestConfig::default() }
}

/// An item that can be told from others and whose copies can be counted.
type Item = (u64, Arc<()>);

/// Runs `calls` on a ring made by `ring` and on a queue that is obviously right; both must do the same.
macro_rules! against_a_model {
    ($ring:path, $capacity:expr, $calls:expr) => {{
        let (mut producer, mut consumer) = $ring($capacity).unwrap();
        let mut model = VecDeque::new();
        let alive = Arc::new(());
        let mut serial = 0;
        let mut next = || {
            serial += 1;
            (serial, Arc::clone(&alive))
        };
        for call in $calls {
            match call {
                Call::Push => {
                    let item: Item = next();
                    let fits = model.len() < $capacity;
                    prop_assert_eq!(producer.push(item.clone()), if fits { Ok(()) } else { Err(item.clone()) });
                    if fits {
                        model.push_back(item);
                    }
                }
                Call::PushBurst(count) => {
                    let all: Vec<Item> = (0..count).map(|_| next()).collect();
                    let mut burst: Burst<Item> = all.iter().cloned().collect();
                    let moved = producer.push_burst(&mut burst);
                    prop_assert_eq!(moved, count.min($capacity - model.len()));
                    prop_assert_eq!(&burst[..], &all[moved..]);
                    model.extend(all[..moved].iter().cloned());
                }
                Call::Pop => prop_assert_eq!(consumer.pop(), model.pop_front()),
                Call::PopBurst(already) => {
                    let mut burst: Burst<Item> = (0..already).map(|_| next()).collect();
                    let mut expected = burst.to_vec();
                    let moved = consumer.pop_burst(&mut burst);
                    prop_assert_eq!(moved, model.len().min(BURST - already));
                    expected.extend(model.drain(..moved));
                    prop_assert_eq!(&burst[..], &expected[..]);
                }
            }
            prop_assert_eq!(producer.len(), model.len());
            prop_assert_eq!(consumer.len(), model.len());
            prop_assert_eq!(producer.is_empty(), model.is_empty());
            prop_assert_eq!(consumer.is_empty(), model.is_empty());
        }
        let inside = model.len();
        drop(model);
        prop_assert_eq!(Arc::strong_count(&alive), 1 + inside);
        drop((producer, consumer));
        prop_assert_eq!(Arc::strong_count(&alive), 1);
    }};
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn spsc_does_what_a_queue_does(capacity in (0..8_u32).prop_map(|n| 1_usize << n), calls in calls()) {
        against_a_model!(spsc::ring, capacity, calls);
    }

    #[test]
    fn mpmc_does_what_a_queue_does(capacity in (0..8_u32).prop_map(|n| 1_usize << n), calls in calls()) {
        against_a_model!(mpmc::ring, capacity, calls);
    }
}

#[test]
fn bad_capacities_are_refused_with_one_that_works() {
    let refused = |capacity| spsc::ring::<u64>(capacity).map(|_| ()).unwrap_err();
    assert_eq!(refused(0), CreateError::NotPowerOfTwo { capacity: 0, next: 1 });
    assert_eq!(refused(1000), CreateError::NotPowerOfTwo { capacity: 1000, next: 1024 });
    assert_eq!(mpmc::ring::<u64>(1000).map(|_| ()).unwrap_err(), refused(1000));
    assert!(refused(1000).to_string().contains("such as 1024"));
    let huge = 1 << (usize::BITS - 1);
    assert!(
        matches!(refused(huge), CreateError::TooLarge { capacity, slot_bytes: 8, max } if capacity == huge && max < huge)
    );
    assert!(matches!(refused(usize::MAX), CreateError::NotPowerOfTwo { next, .. } if next.is_power_of_two()));
    assert!(matches!(mpmc::ring::<()>(huge).map(|_| ()).unwrap_err(), CreateError::TooLarge { .. }));
}

#[test]
fn values_without_a_size_are_counted_all_the_same() {
    let (mut producer, mut consumer) = spsc::ring::<()>(4).unwrap();
    let mut burst: Burst<()> = [(); BURST].into();
    assert_eq!((producer.push_burst(&mut burst), burst.len()), (4, 4));
    assert_eq!(consumer.pop_burst(&mut Burst::new()), 4);
}

#[test]
fn a_ring_knows_when_its_other_side_is_gone_and_keeps_what_was_pushed() {
    let (mut producer, mut consumer) = spsc::ring(4).unwrap();
    producer.push(Box::new(1)).unwrap();
    assert!(!producer.is_closed() && !consumer.is_closed());
    drop(producer);
    assert!(consumer.is_closed());
    assert_eq!((consumer.pop(), consumer.pop()), (Some(Box::new(1)), None));

    let (producer, consumer) = spsc::ring::<u8>(4).unwrap();
    drop(consumer);
    assert!(producer.is_closed());

    let (mut first, mut consumer) = mpmc::ring(4).unwrap();
    let second = first.clone();
    first.push(Box::new(1)).unwrap();
    drop(first);
    assert!(!consumer.is_closed(), "a clone is still there");
    drop(consumer.clone());
    assert!(!second.is_closed());
    drop(second);
    assert!(consumer.is_closed());
    assert_eq!((consumer.pop(), consumer.pop()), (Some(Box::new(1)), None));
}

#[test]
fn handles_go_to_other_threads_but_are_not_shared_between_them() {
    fn send<T: Send>() {}
    trait AmbiguousIfSync<A> {
        fn check() {}
    }
    struct Sync_;
    impl<T> AmbiguousIfSync<()> for T {}
    impl<T: Sync> AmbiguousIfSync<Sync_> for T {}

    send::<(spsc::Producer<u8>, spsc::Consumer<u8>, mpmc::Producer<u8>, mpmc::Consumer<u8>)>();
    // Each of these lines stops compiling when the type becomes `Sync`.
    <spsc::Producer<u8> as AmbiguousIfSync<_>>::check();
    <spsc::Consumer<u8> as AmbiguousIfSync<_>>::check();
    <mpmc::Producer<u8> as AmbiguousIfSync<_>>::check();
    <mpmc::Consumer<u8> as AmbiguousIfSync<_>>::check();
}

#[test]
fn spsc_keeps_order_between_threads() {
    let (mut producer, mut consumer) = spsc::ring(16).unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut burst: Burst<Box<u64>> = Burst::new();
            let mut items = (0..ITEMS).map(Box::new);
            loop {
                burst.extend(items.by_ref().take(burst.remaining_capacity()));
                if burst.is_empty() {
                    break;
                }
                if producer.push_burst(&mut burst) == 0 {
                    thread::yield_now();
                }
            }
        });
        let mut burst: Burst<Box<u64>> = Burst::new();
        let mut expected = 0..ITEMS;
        while !(consumer.is_closed() && consumer.is_empty()) {
            if consumer.pop_burst(&mut burst) == 0 {
                thread::yield_now();
            }
            for item in burst.drain(..) {
                assert_eq!(Some(*item), expected.next());
            }
        }
        assert_eq!(expected.next(), None);
    });
}

#[test]
fn mpmc_hands_each_item_to_one_consumer_in_its_producer_s_order() {
    const PRODUCERS: u64 = 2;
    let (producer, consumer) = mpmc::ring(16).unwrap();
    let seen = thread::scope(|scope| {
        for id in 0..PRODUCERS {
            let mut producer = producer.clone();
            scope.spawn(move || {
                let mut burst: Burst<Box<(u64, u64)>> = Burst::new();
                let mut items = (0..ITEMS).map(|n| Box::new((id, n)));
                loop {
                    // Bursts of every size, so that claims of different lengths meet.
                    let size = burst.capacity().min(1 + items.size_hint().0 % BURST);
                    burst.extend(items.by_ref().take(size.saturating_sub(burst.len())));
                    if burst.is_empty() {
                        break;
                    }
                    if producer.push_burst(&mut burst) == 0 {
                        thread::yield_now();
                    }
                }
            });
        }
        drop(producer);
        let consumers: Vec<_> = (0..2)
            .map(|_| {
                let mut consumer = consumer.clone();
                scope.spawn(move || {
                    let mut burst: Burst<Box<(u64, u64)>> = Burst::new();
                    let mut seen = vec![Vec::new(); PRODUCERS as usize];
                    while !(consumer.is_closed() && consumer.is_empty()) {
                        if consumer.pop_burst(&mut burst) == 0 {
                            thread::yield_now();
                        }
                        for item in burst.drain(..) {
                            seen[item.0 as usize].push(item.1);
                        }
                    }
                    seen
                })
            })
            .collect();
        consumers.into_iter().map(|consumer| consumer.join().unwrap()).collect::<Vec<_>>()
    });
    for id in 0..PRODUCERS as usize {
        for consumer in &seen {
            assert!(consumer[id].is_sorted(), "a consumer saw producer {id}'s items out of order");
        }
        let mut all: Vec<_> = seen.iter().flat_map(|consumer| &consumer[id]).copied().collect();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..ITEMS), "each item of producer {id} exactly once");
    }
}

#[test]
fn a_ring_that_nobody_waits_for_has_no_eventfd_and_one_that_somebody_does_has_a_name() {
    let (_producer, consumer) = spsc::ring::<u8>(4).unwrap();
    assert_eq!(consumer.label(), "ring of 4");
    let consumer = consumer.named("from worker 1");
    assert_eq!(consumer.label(), "from worker 1");
    assert!(matches!(consumer.wake(), Wake::Waker(_)));

    let (_producer, consumer) = mpmc::ring::<u8>(4).unwrap();
    let consumer = consumer.named("to all");
    let other = consumer.clone();
    assert_eq!(other.label(), "to all");
    let (Wake::Waker(one), Wake::Waker(two)) = (consumer.wake(), other.wake()) else { panic!("no waker") };
    assert!(Arc::ptr_eq(&one, &two));
}

#[test]
fn closing_is_work_once_and_only_for_an_armed_consumer() {
    let (producer, mut consumer) = spsc::ring::<u8>(4).unwrap();
    consumer.arm();
    assert!(!consumer.pending());
    drop(producer);
    assert!(consumer.pending());
    consumer.disarm();
    assert!(!consumer.pending());
    consumer.arm();
    assert!(!consumer.pending(), "it would never sleep again");

    let (first, mut consumer) = mpmc::ring::<u8>(4).unwrap();
    let second = first.clone();
    consumer.arm();
    drop(first);
    assert!(!consumer.pending());
    drop(second);
    assert!(consumer.pending());
    consumer.disarm();
    consumer.arm();
    assert!(!consumer.pending());
}

/// Far longer than any sleep here lasts if no wake-up is lost.
const LONG: Duration = Duration::from_secs(30);
/// Sleeps in a stress test, as far as they fit into the time.
const SLEEPS: u64 = 200_000;
const STRESS: Duration = Duration::from_secs(4);

/// Parks a thread on one consumer, as the wait engine would.
struct Sleeper<'a, C> {
    consumer: &'a mut C,
    waker: Arc<Waker>,
    epoll: Epoll,
    events: Events,
}

impl<'a, C: Source> Sleeper<'a, C> {
    fn new(consumer: &'a mut C) -> Self {
        let Wake::Waker(waker) = consumer.wake() else { panic!("{} has no waker", consumer.label()) };
        let epoll = Epoll::new().expect("an epoll set");
        epoll.add(waker.vector().expect("an eventfd").as_fd(), 0, Trigger::Edge).expect("it is open");
        Self { consumer, waker, epoll, events: Events::new(1) }
    }
}

impl<C: Source> Steps for Sleeper<'_, C> {
    fn arm(&mut self) {
        self.consumer.arm();
    }
    fn fence(&mut self) {
        after_arming(self.waker.needs_heavy_fence());
    }
    fn look(&mut self) -> bool {
        self.consumer.pending()
    }
    fn block(&mut self) -> bool {
        self.epoll.wait(&mut self.events, LONG).expect("it is open") != Woken::TimedOut
    }
    fn disarm(&mut self) {
        self.consumer.disarm();
    }
}

/// Sleeps until its ring is closed and empty. `pop` empties it. Returns how often it was woken.
fn sleep_until_closed<C: Source>(consumer: &mut C, mut pop: impl FnMut(&mut C) -> bool) -> u64 {
    let mut sleeper = Sleeper::new(consumer);
    let mut woken = 0;
    while !pop(sleeper.consumer) {
        match park(&mut sleeper) {
            Parked::FoundWork => {}
            Parked::Woken => woken += 1,
            Parked::TimedOut => panic!("it slept for {LONG:?}: a wake-up was lost"),
        }
    }
    woken
}

/// Pushes numbers, each once what `taken` counts says that all before it have been taken, at moments all around that at
/// which a consumer goes to sleep. Returns how many.
fn push_one_by_one(taken: &AtomicU64, mut push: impl FnMut(u64)) -> u64 {
    let begin = Instant::now();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut number = 0;
    while number < SLEEPS && begin.elapsed() < STRESS {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        for _ in 0..random % 1024 {
            hint::spin_loop();
        }
        push(number);
        number += 1;
        let pushed = Instant::now();
        while taken.load(Ordering::Acquire) < number {
            assert!(pushed.elapsed() < 2 * LONG, "number {number} was not taken");
            thread::yield_now();
        }
    }
    number
}

#[test]
fn no_push_is_slept_through() {
    let (mut producer, mut consumer) = spsc::ring(4).unwrap();
    let taken = &AtomicU64::new(0);
    thread::scope(|scope| {
        let pushing = scope.spawn(move || push_one_by_one(taken, |number| producer.push(number).unwrap()));
        let woken = sleep_until_closed(&mut consumer, |consumer| {
            let closed = consumer.is_closed();
            while let Some(number) = consumer.pop() {
                assert_eq!(number, taken.fetch_add(1, Ordering::Release));
            }
            closed
        });
        let pushed = pushing.join().unwrap();
        assert_eq!(pushed, taken.load(Ordering::Relaxed));
        assert!(woken > 0, "of {pushed} numbers, none came when the consumer slept");
    });
}

#[test]
fn no_push_of_two_producers_is_slept_through_by_two_consumers() {
    let (producer, consumer) = mpmc::ring(4).unwrap();
    let taken: &[AtomicU64; 2] = &Default::default();
    thread::scope(|scope| {
        let pushing = [(0, producer.clone()), (1, producer)]
            .map(|(me, mut producer)| scope.spawn(move || push_one_by_one(&taken[me], |_| producer.push(me).unwrap())));
        let sleeping = [consumer.clone(), consumer].map(|mut consumer| {
            scope.spawn(move || {
                sleep_until_closed(&mut consumer, |consumer| {
                    let closed = consumer.is_closed();
                    while let Some(me) = consumer.pop() {
                        taken[me].fetch_add(1, Ordering::Release);
                    }
                    closed
                })
            })
        });
        let pushed = pushing.map(|thread| thread.join().unwrap());
        let woken = sleeping.map(|thread| thread.join().unwrap());
        assert_eq!(pushed, taken.each_ref().map(|taken| taken.load(Ordering::Relaxed)));
        assert!(woken.iter().sum::<u64>() > 0, "of {pushed:?} numbers, none came when a consumer slept");
    });
}
