//! What both kinds of ring promise, on one thread against a model and on several for real.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;

use arrayvec::ArrayVec;
use proptest::prelude::*;

use super::{CreateError, mpmc, spsc};

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
