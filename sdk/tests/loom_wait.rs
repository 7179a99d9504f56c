//! The whole way from arming to waking, in every interleaving and with every value that weak memory allows, by loom's
//! model checker: no wake-up is lost, and each step of the protocol is needed for that.
//!
//!     RUSTFLAGS="--cfg loom" cargo test -p spinwake --release --test loom_wait
//!
//! Sleeping has no bound here, so a lost wake-up is a deadlock, which loom reports. The order of steps, the waker and the
//! rings are the real ones; the eventfd, epoll, the fences and a card stand in. Preemptions are not bounded, except where a
//! test's name says so: the scenarios are small instead.
#![cfg(loom)]

use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::sync::Arc;

use arrayvec::ArrayVec;
use loom::model::Builder;
use loom::sync::Mutex;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use spinwake::ring::{mpmc, spsc};
use spinwake::wait::model::{Epoll, Fence, Vector, without};
use spinwake::wait::{Arming, Parked, Source, Steps, Wake, Waker, after_arming, park};

thread_local! {
    /// Loom runs all threads of a model on one.
    static EXECUTIONS: Cell<usize> = const { Cell::new(0) };
}

/// Explores `scenario` exhaustively.
fn explore(scenario: impl Fn() + Send + Sync + 'static) {
    explore_with(None, scenario);
}

/// Explores `scenario` with this many preemptions at most.
fn explore_with(preemptions: Option<usize>, scenario: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = preemptions;
    builder.check(move || {
        EXECUTIONS.set(EXECUTIONS.get() + 1);
        scenario();
    });
    println!("{} executions", EXECUTIONS.get());
}

/// A value that is only dropped on purpose: loom's own objects must not be while a deadlock unwinds.
fn kept<T>(value: T) -> ManuallyDrop<T> {
    ManuallyDrop::new(value)
}

fn drop_kept<T>(value: ManuallyDrop<T>) {
    drop(ManuallyDrop::into_inner(value));
}

/// Tests of mistakes: each must lose a wake-up.
macro_rules! must_lose_a_wake_up {
    ($($name:ident: $explore:expr;)*) => {$(
        #[test]
        #[should_panic(expected = "deadlock")]
        fn $name() {
            $explore;
        }
    )*};
}

/// How a worker parks: as it should, or with a mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Right,
    NoSecondLook,
    LookBeforeArming,
    FenceBeforeArming,
    NoFence,
}

/// The worker's part, with epoll's place taken: what the wait engine does around `park`.
struct Worker {
    epoll: Epoll,
    asymmetric: bool,
    order: Order,
}

impl Worker {
    fn new(order: Order) -> Self {
        Self { epoll: Epoll::of_this_thread(), asymmetric: false, order }
    }

    fn watch(mut self, source: &dyn Source) -> Self {
        let Wake::Waker(waker) = source.wake() else { panic!("{} has no waker", source.label()) };
        waker.vector().unwrap().watch(&self.epoll);
        self.asymmetric |= waker.needs_heavy_fence();
        self
    }

    fn park(&self, sources: &mut [&mut dyn Source]) {
        let parked = park(&mut Park { worker: self, sources });
        assert_ne!(parked, Parked::TimedOut);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.epoll.close();
    }
}

struct Park<'a, 'b> {
    worker: &'a Worker,
    sources: &'a mut [&'b mut dyn Source],
}

impl Park<'_, '_> {
    fn arm_all(&mut self) {
        self.sources.iter_mut().for_each(|source| source.arm());
    }

    fn any_pending(&self) -> bool {
        self.sources.iter().any(|source| source.pending())
    }
}

impl Steps for Park<'_, '_> {
    fn arm(&mut self) {
        match self.worker.order {
            Order::LookBeforeArming => {}
            Order::FenceBeforeArming => after_arming(self.worker.asymmetric),
            _ => self.arm_all(),
        }
    }

    fn fence(&mut self) {
        match self.worker.order {
            Order::LookBeforeArming | Order::NoFence => {}
            Order::FenceBeforeArming => self.arm_all(),
            _ => after_arming(self.worker.asymmetric),
        }
    }

    fn look(&mut self) -> bool {
        match self.worker.order {
            Order::NoSecondLook => false,
            Order::LookBeforeArming => {
                let found = self.any_pending();
                self.arm_all();
                after_arming(self.worker.asymmetric);
                found
            }
            _ => self.any_pending(),
        }
    }

    fn block(&mut self) -> bool {
        self.worker.epoll.wait();
        true
    }

    fn disarm(&mut self) {
        self.sources.iter_mut().for_each(|source| source.disarm());
    }
}

/// Requests of other threads: a number of them, and a waker.
struct Requests {
    made: Arc<AtomicUsize>,
    served: usize,
    waker: Arc<Waker>,
    arming: Arming,
}

impl Requests {
    fn new(waker: Waker) -> Self {
        Self { made: Arc::new(AtomicUsize::new(0)), served: 0, waker: Arc::new(waker), arming: Arming::default() }
    }

    fn requester(&self) -> Requester {
        Requester { made: Arc::clone(&self.made), waker: Arc::clone(&self.waker) }
    }

    /// Parks until there have been `enough` requests.
    fn serve(&mut self, worker: Worker, enough: usize) {
        while self.served < enough {
            worker.park(&mut [&mut *self]);
            self.served = self.made.load(Ordering::Acquire);
        }
    }
}

impl Source for Requests {
    fn label(&self) -> String {
        "requests".into()
    }
    fn pending(&self) -> bool {
        self.made.load(Ordering::Relaxed) != self.served
    }
    fn arm(&mut self) {
        self.waker.arm(&mut self.arming);
    }
    fn disarm(&mut self) {
        self.waker.disarm(&mut self.arming);
    }
    fn wake(&self) -> Wake {
        Wake::Waker(Arc::clone(&self.waker))
    }
}

struct Requester {
    made: Arc<AtomicUsize>,
    waker: Arc<Waker>,
}

impl Requester {
    fn request(&self) {
        self.made.fetch_add(1, Ordering::Release);
        self.waker.wake();
    }
}

/// One thread asks twice, another serves.
fn two_requests(waker: fn() -> Waker, order: Order) -> impl Fn() + Send + Sync + 'static {
    move || {
        let mut requests = Requests::new(waker());
        let worker = Worker::new(order).watch(&requests);
        let requester = requests.requester();
        let asking = thread::spawn(move || {
            requester.request();
            requester.request();
        });
        requests.serve(worker, 2);
        asking.join().unwrap();
    }
}

#[test]
fn requests_wake() {
    explore(two_requests(Waker::new, Order::Right));
}

#[test]
fn requests_wake_with_asymmetric_fences() {
    explore(two_requests(Waker::asymmetric, Order::Right));
}

/// Three threads: two ask, and the third serves.
#[test]
fn requests_of_two_threads_wake() {
    explore(|| {
        let mut requests = Requests::new(Waker::new());
        let worker = Worker::new(Order::Right).watch(&requests);
        let asking = [requests.requester(), requests.requester()].map(|one| thread::spawn(move || one.request()));
        requests.serve(worker, 2);
        asking.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

/// One that disarms does not cut off another, which sleeps on the same waker.
#[test]
fn two_workers_share_a_waker() {
    explore(|| {
        let mut requests = Requests::new(Waker::asymmetric());
        let (waker, requester) = (Arc::clone(&requests.waker), requests.requester());
        let sleeping = thread::spawn(move || Worker::new(Order::Right).watch(&requests).park(&mut [&mut requests]));
        let asking = thread::spawn(move || requester.request());
        let mut arming = Arming::default();
        waker.arm(&mut arming);
        waker.disarm(&mut arming);
        sleeping.join().unwrap();
        asking.join().unwrap();
    });
}

must_lose_a_wake_up! {
    requests_without_a_second_look: explore(two_requests(Waker::new, Order::NoSecondLook));
    requests_with_the_look_before_the_arming: explore(two_requests(Waker::new, Order::LookBeforeArming));
    requests_with_the_fence_before_the_arming: explore(two_requests(Waker::new, Order::FenceBeforeArming));
    requests_without_the_worker_s_fence: explore(two_requests(Waker::new, Order::NoFence));
    requests_without_any_fence: without(Fence::Full, || explore(two_requests(Waker::new, Order::Right)));
    requests_without_the_heavy_fence: without(Fence::Heavy, || explore(two_requests(Waker::asymmetric, Order::Right)));
    requests_without_the_light_fence: without(Fence::Light, || explore(two_requests(Waker::asymmetric, Order::Right)));
    requests_that_wake_before_they_are_made: explore(|| {
        let mut requests = Requests::new(Waker::new());
        let worker = Worker::new(Order::Right).watch(&requests);
        let requester = requests.requester();
        let asking = thread::spawn(move || {
            requester.waker.wake();
            requester.made.fetch_add(1, Ordering::Release);
        });
        requests.serve(worker, 1);
        asking.join().unwrap();
    });
}

/// Parks until `done`, and lets the consumer serve in between.
fn serve<T: Source>(worker: Worker, source: &mut T, mut done: impl FnMut(&mut T) -> bool) {
    while !done(source) {
        worker.park(&mut [&mut *source]);
    }
}

/// One producer pushes and goes; the consumer has everything and the closing in the end.
fn spsc_scenario(order: Order) -> impl Fn() + Send + Sync + 'static {
    move || {
        let (mut producer, consumer) = spsc::ring(2).unwrap();
        let mut consumer = kept(consumer);
        let worker = Worker::new(order).watch(&*consumer);
        let pushing = thread::spawn(move || producer.push(1).unwrap());
        let mut popped = Vec::new();
        serve(worker, &mut *consumer, |consumer| {
            let closed = consumer.is_closed();
            popped.extend(consumer.pop());
            closed && consumer.is_empty()
        });
        assert_eq!(popped, [1]);
        pushing.join().unwrap();
        drop_kept(consumer);
    }
}

#[test]
fn an_spsc_ring_wakes() {
    explore(spsc_scenario(Order::Right));
}

must_lose_a_wake_up! {
    an_spsc_ring_without_a_second_look: explore(spsc_scenario(Order::NoSecondLook));
    an_spsc_ring_with_the_look_before_the_arming: explore(spsc_scenario(Order::LookBeforeArming));
    an_spsc_ring_with_the_fence_before_the_arming: explore(spsc_scenario(Order::FenceBeforeArming));
    an_spsc_ring_without_the_heavy_fence: without(Fence::Heavy, || explore(spsc_scenario(Order::Right)));
    an_spsc_ring_without_the_light_fence: without(Fence::Light, || explore(spsc_scenario(Order::Right)));
}

/// Two producers push one item each while the consumer parks: until it has both, or once.
fn mpmc_scenario(order: Order, once: bool) -> impl Fn() + Send + Sync + 'static {
    move || {
        let (producer, consumer) = mpmc::ring(2).unwrap();
        let mut consumer = kept(consumer);
        let worker = Worker::new(order).watch(&*consumer);
        let other = producer.clone();
        let pushing = [(1, producer), (2, other)].map(|(item, mut producer)| {
            // The handle comes back: a drop is a step more, and has a scenario of its own.
            thread::spawn(move || {
                producer.push(item).unwrap();
                kept(producer)
            })
        });
        let mut popped: ArrayVec<u32, 2> = ArrayVec::new();
        if once {
            worker.park(&mut [&mut *consumer]);
            drop(worker);
        } else {
            serve(worker, &mut *consumer, |consumer| {
                consumer.pop_burst(&mut popped);
                popped.is_full()
            });
        }
        pushing.into_iter().for_each(|thread| drop_kept(thread.join().unwrap()));
        consumer.pop_burst(&mut popped);
        popped.sort_unstable();
        assert_eq!(popped[..], [1, 2]);
        drop_kept(consumer);
    }
}

#[test]
fn an_mpmc_ring_with_two_producers_wakes_once() {
    explore(mpmc_scenario(Order::Right, true));
}

#[test]
fn an_mpmc_ring_with_two_producers_wakes_again_within_three_preemptions() {
    explore_with(Some(3), mpmc_scenario(Order::Right, false));
}

must_lose_a_wake_up! {
    an_mpmc_ring_without_a_second_look: explore(mpmc_scenario(Order::NoSecondLook, true));
    an_mpmc_ring_with_the_look_before_the_arming: explore(mpmc_scenario(Order::LookBeforeArming, true));
    an_mpmc_ring_with_the_fence_before_the_arming: explore(mpmc_scenario(Order::FenceBeforeArming, true));
    an_mpmc_ring_without_the_heavy_fence: without(Fence::Heavy, || explore(mpmc_scenario(Order::Right, true)));
    an_mpmc_ring_without_the_light_fence: without(Fence::Light, || explore(mpmc_scenario(Order::Right, true)));
}

/// One item wakes every consumer that sleeps.
#[test]
fn an_mpmc_ring_wakes_two_consumers() {
    explore(|| {
        let (mut producer, mut consumer) = mpmc::ring(2).unwrap();
        let mut other = consumer.clone();
        let sleeping = thread::spawn(move || {
            let worker = Worker::new(Order::Right).watch(&other);
            worker.park(&mut [&mut other]);
            other
        });
        let pushing = thread::spawn(move || {
            producer.push(1).unwrap();
            producer
        });
        let worker = Worker::new(Order::Right).watch(&consumer);
        worker.park(&mut [&mut consumer]);
        drop(worker);
        drop((sleeping.join().unwrap(), pushing.join().unwrap()));
        assert_eq!(consumer.pop(), Some(1));
    });
}

#[test]
fn an_mpmc_ring_wakes_when_its_last_producer_goes() {
    explore(|| {
        let (producer, mut consumer) = mpmc::ring::<u32>(1).unwrap();
        let worker = Worker::new(Order::Right).watch(&consumer);
        let other = producer.clone();
        let going = [producer, other].map(|producer| thread::spawn(move || drop(producer)));
        serve(worker, &mut consumer, |consumer| consumer.is_closed());
        going.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

/// A card: descriptors in memory, which it writes, and registers, which the host reaches over a bus.
///
/// As on PCIe, what the host writes arrives in order but at any later time, unless the host reads a register: that waits for
/// its writes, and for what the card wrote to memory before it answered.
#[derive(Debug)]
struct Card {
    written: AtomicUsize,
    registers: Mutex<Registers>,
    vector: Vector,
}

#[derive(Debug, Default)]
struct Registers {
    /// A frame has come since this was cleared.
    cause: bool,
    /// A frame shall fire the vector, which clears this and the cause.
    unmasked: bool,
    /// On their way to the card, in this order: clear the cause, unmask.
    clear_posted: bool,
    unmask_posted: bool,
}

impl Card {
    /// A card that has been polled for a while.
    fn new() -> Self {
        let registers = Registers { cause: true, ..Registers::default() };
        Self { written: AtomicUsize::new(0), registers: Mutex::new(registers), vector: Vector::new().unwrap() }
    }

    /// A frame comes.
    fn receive(&self) {
        self.written.fetch_add(1, Ordering::Release);
        self.change(|registers| registers.cause = true);
    }

    /// The next write of the host arrives, if one is on its way.
    fn arrive(&self) {
        self.change(|registers| {
            if std::mem::take(&mut registers.clear_posted) {
                registers.cause = false;
            } else if std::mem::take(&mut registers.unmask_posted) {
                registers.unmasked = true;
            }
        });
    }

    /// Changes the registers, and fires if that is due. One step: nobody else runs while the lock is held.
    fn change(&self, change: impl FnOnce(&mut Registers)) {
        let mut registers = self.registers.lock().unwrap();
        change(&mut registers);
        let due = registers.cause && registers.unmasked;
        if due {
            (registers.cause, registers.unmasked) = (false, false);
        }
        drop(registers);
        if due {
            self.vector.signal(1);
        }
    }
}

/// The receive queue of a card.
struct Queue {
    card: Arc<Card>,
    taken: usize,
    reads_back: bool,
}

impl Source for Queue {
    fn label(&self) -> String {
        "queue".into()
    }
    fn pending(&self) -> bool {
        self.card.written.load(Ordering::Relaxed) != self.taken
    }
    fn arm(&mut self) {
        self.card.change(|registers| (registers.clear_posted, registers.unmask_posted) = (true, true));
        if self.reads_back {
            self.card.arrive();
            self.card.arrive();
        }
    }
    fn disarm(&mut self) {
        self.card.change(|registers| *registers = Registers { cause: registers.cause, ..Registers::default() });
    }
    fn wake(&self) -> Wake {
        Wake::Never("the model watches its vector by itself".into())
    }
}

/// A card receives frames while a worker sleeps on its queue.
fn card_scenario(order: Order, frames: usize, reads_back: bool) -> impl Fn() + Send + Sync + 'static {
    move || {
        let card = Arc::new(Card::new());
        let mut queue = Queue { card: Arc::clone(&card), taken: 0, reads_back };
        let worker = Worker::new(order);
        card.vector.watch(&worker.epoll);
        let bus = (!reads_back).then(|| {
            let card = Arc::clone(&card);
            thread::spawn(move || {
                card.arrive();
                card.arrive();
            })
        });
        let receiving = thread::spawn(move || (0..frames).for_each(|_| card.receive()));
        serve(worker, &mut queue, |queue| {
            queue.taken = queue.card.written.load(Ordering::Acquire);
            queue.taken == frames
        });
        receiving.join().unwrap();
        bus.into_iter().for_each(|bus| bus.join().unwrap());
    }
}

#[test]
fn a_card_wakes() {
    explore(card_scenario(Order::Right, 2, true));
}

must_lose_a_wake_up! {
    a_card_without_a_second_look: explore(card_scenario(Order::NoSecondLook, 1, true));
    a_card_with_the_look_before_the_arming: explore(card_scenario(Order::LookBeforeArming, 1, true));
    a_card_whose_arming_is_not_read_back: explore(card_scenario(Order::Right, 1, false));
}

/// One worker sleeps on a card and on a ring; work on both.
fn card_and_ring_scenario(order: Order) -> impl Fn() + Send + Sync + 'static {
    move || {
        let card = Arc::new(Card::new());
        let mut queue = Queue { card: Arc::clone(&card), taken: 0, reads_back: true };
        let (mut producer, consumer) = spsc::ring(1).unwrap();
        let mut consumer = kept(consumer);
        let worker = Worker::new(order).watch(&*consumer);
        card.vector.watch(&worker.epoll);
        let receiving = thread::spawn(move || card.receive());
        let pushing = thread::spawn(move || {
            producer.push(1).unwrap();
            kept(producer)
        });
        let mut popped = None;
        while queue.taken == 0 || popped.is_none() {
            worker.park(&mut [&mut queue, &mut *consumer]);
            queue.taken = queue.card.written.load(Ordering::Acquire);
            popped = popped.or(consumer.pop());
        }
        drop(worker);
        receiving.join().unwrap();
        drop_kept(pushing.join().unwrap());
        drop_kept(consumer);
    }
}

#[test]
fn a_card_and_a_ring_wake_one_worker() {
    explore(card_and_ring_scenario(Order::Right));
}

must_lose_a_wake_up! {
    a_card_and_a_ring_without_a_second_look: explore(card_and_ring_scenario(Order::NoSecondLook));
    a_card_and_a_ring_without_the_heavy_fence: without(Fence::Heavy, || explore(card_and_ring_scenario(Order::Right)));
    a_card_and_a_ring_without_the_light_fence: without(Fence::Light, || explore(card_and_ring_scenario(Order::Right)));
}
