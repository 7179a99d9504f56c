//! The fabric: one thread of the process that drives all soft NICs and the wires between them.
//!
//! It is made with the first NIC and ends with the last. Drivers tell it about work by setting a bit and ringing its
//! [`Bell`], which costs a system call only when it sleeps; it sleeps whenever nothing is to be done, and just short of
//! the moment when the next frame is due it stays awake.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use spinwake::cpu::KeepOff;
use spinwake::irq::Vector;

use super::clock::now_ns;
use super::nic::{Nic, pending};
use super::sink;
use super::spec::{SoftSpec, Wire};
use super::station::Station;
use super::wire::Shared;

/// What is due sooner than this is waited for awake: going to sleep and waking up takes as long.
const AWAKE_NS: u64 = 200_000;
/// How much before the due time a sleep ends: the timer's slack and the wake-up.
const EARLY_NS: u64 = 120_000;
/// After work, it stays awake this long: the next doorbell is often near, also that of a driver which has to wake up first.
/// A driver that sleeps would otherwise pay for waking the fabric, which no device makes it do.
const LINGER_NS: u64 = 100_000;
/// How often it looks whether it is on a core that belongs to somebody.
const CORES_NS: u64 = 10_000_000;
/// A sleep's bound: should a wake-up ever be lost, this finds the work.
const LONGEST_SLEEP_NS: u64 = 1_000_000_000;

/// Wakes the fabric.
#[derive(Debug)]
pub(super) struct Bell {
    asleep: AtomicBool,
    /// NICs have been plugged in.
    news: AtomicBool,
    vector: Vector,
}

impl Bell {
    fn new() -> io::Result<Self> {
        Ok(Self { asleep: AtomicBool::new(false), news: AtomicBool::new(true), vector: Vector::new()? })
    }

    /// Wakes the fabric if it sleeps. What it shall find must have been stored before, sequentially consistent.
    #[inline]
    pub(super) fn ring(&self) {
        if self.asleep.load(Ordering::SeqCst) && self.asleep.swap(false, Ordering::SeqCst) {
            self.vector.signal(1);
        }
    }

    /// Sleeps for at most `limit`, unless `has_work` says that there is something to do.
    fn sleep(&self, limit: Duration, has_work: impl FnOnce() -> bool) {
        self.asleep.store(true, Ordering::SeqCst);
        // Announced, then looked again: whoever stored work after this look finds `asleep` and signals.
        if !has_work() {
            self.vector.wait(limit);
        }
        self.asleep.store(false, Ordering::SeqCst);
    }
}

/// What the fabric's thread and those who plug NICs in share.
#[derive(Debug)]
struct Plant {
    bell: Arc<Bell>,
    inbox: Vec<Arc<Nic>>,
    /// Ends in use of each cable.
    cables: HashMap<String, usize>,
}

static PLANT: Mutex<Option<Plant>> = Mutex::new(None);
static NEXT_ID: Mutex<u16> = Mutex::new(0);

/// A soft NIC could not be connected.
#[derive(Debug)]
pub(super) enum PlugError {
    /// Two ports have this cable already.
    CableTaken(String),
    /// No thread, or no file descriptor.
    Os(&'static str, io::Error),
}

/// Makes a NIC and connects it.
pub(super) fn plug(spec: SoftSpec) -> Result<Arc<Nic>, PlugError> {
    let mut plant = plant();
    if plant.is_none() {
        let bell = Arc::new(Bell::new().map_err(|e| PlugError::Os("eventfd", e))?);
        let thread = std::thread::Builder::new().name("soft-fabric".into());
        let of_thread = bell.clone();
        thread.spawn(move || run(&of_thread)).map_err(|e| PlugError::Os("starting a thread", e))?;
        *plant = Some(Plant { bell, inbox: Vec::new(), cables: HashMap::new() });
    }
    // Just made, if it was not there.
    let Some(plant) = plant.as_mut() else { unreachable!("the plant was made above") };
    if let Wire::Cable(name) = &spec.wire {
        let ends = plant.cables.entry(name.clone()).or_default();
        if *ends == 2 {
            return Err(PlugError::CableTaken(name.clone()));
        }
        *ends += 1;
    }
    let id = {
        let mut next = NEXT_ID.lock().unwrap_or_else(PoisonError::into_inner);
        let id = *next;
        *next = next.wrapping_add(1);
        id
    };
    let nic = Arc::new(Nic::new(id, spec, plant.bell.clone()));
    plant.inbox.push(nic.clone());
    plant.bell.news.store(true, Ordering::SeqCst);
    plant.bell.ring();
    Ok(nic)
}

/// Disconnects a NIC; the fabric lets go of it soon.
pub(super) fn unplug(nic: &Nic) {
    if let (Some(plant), Wire::Cable(name)) = (plant().as_mut(), &nic.spec.wire)
        && let Some(ends) = plant.cables.get_mut(name)
    {
        *ends -= 1;
        if *ends == 0 {
            plant.cables.remove(name);
        }
    }
    nic.unplugged.store(true, Ordering::SeqCst);
    nic.notify(pending::CONFIG);
}

fn plant() -> MutexGuard<'static, Option<Plant>> {
    PLANT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The fabric's thread.
fn run(bell: &Bell) {
    let mut stations: Vec<Station> = Vec::new();
    let mut partners: Vec<Option<usize>> = Vec::new();
    let mut shared = Shared::default();
    let mut last_busy_ns = 0;
    // Drivers are played with, not competed with: a device does not run on its driver's core.
    let mut keep_off = KeepOff::new();
    let mut cores_due_ns = 0;
    loop {
        if bell.news.swap(false, Ordering::SeqCst) {
            let arrived = plant().as_mut().map(|p| std::mem::take(&mut p.inbox)).unwrap_or_default();
            stations.extend(arrived.into_iter().map(Station::new));
            partners = pair(&stations);
        }
        if stations.iter().any(|s| s.nic.unplugged.load(Ordering::SeqCst)) {
            for gone in stations.extract_if(.., |s| s.nic.unplugged.load(Ordering::SeqCst)) {
                shared.ledger.forget(gone.nic.id);
            }
            partners = pair(&stations);
            if stations.is_empty() && close() {
                return;
            }
        }
        let (busy, due_ns) = round(&mut stations, &partners, &mut shared);
        let now = now_ns();
        if now >= cores_due_ns {
            keep_off.look();
            cores_due_ns = now + CORES_NS;
        }
        if busy {
            last_busy_ns = now;
            continue;
        }
        if due_ns.saturating_sub(now) < AWAKE_NS || now - last_busy_ns < LINGER_NS {
            std::thread::yield_now();
            continue;
        }
        let limit = due_ns.saturating_sub(now).saturating_sub(EARLY_NS).min(LONGEST_SLEEP_NS);
        bell.sleep(Duration::from_nanos(limit), || {
            bell.news.load(Ordering::SeqCst) || stations.iter().any(|s| s.nic.has_work())
        });
    }
}

/// Gives each station its turn and carries what it sent; returns whether anything moved, and when something is due.
fn round(stations: &mut [Station], partners: &[Option<usize>], shared: &mut Shared) -> (bool, u64) {
    let (mut busy, mut due_ns) = (false, u64::MAX);
    for (i, partner) in partners.iter().enumerate() {
        let station = &mut stations[i];
        let now = now_ns();
        let done = station.round(shared, partner.is_some() || station.cable().is_none(), now);
        busy |= done.busy;
        due_ns = due_ns.min(done.due_ns);
        if station.outbox.is_empty() {
            continue;
        }
        let mut frames = std::mem::take(&mut station.outbox);
        match &station.nic.spec.wire {
            Wire::Generator => {
                sink::take_in(&station.nic, &mut shared.ledger, &mut frames, &mut shared.spare, now_ns());
            }
            Wire::Loop | Wire::Cable(_) => {
                let to = partner.unwrap_or(i);
                let Station { nic, ingress, tally, .. } = &mut stations[to];
                for sent in frames.drain(..) {
                    ingress.arrive(nic, shared, tally, sent.frame, now);
                }
            }
        }
        stations[i].outbox = frames;
    }
    (busy, due_ns)
}

/// Who is at the other end of whose cable.
fn pair(stations: &[Station]) -> Vec<Option<usize>> {
    let other_end = |(i, station): (usize, &Station)| {
        let cable = station.cable()?;
        stations.iter().enumerate().find(|(j, other)| *j != i && other.cable() == Some(cable)).map(|(j, _)| j)
    };
    stations.iter().enumerate().map(other_end).collect()
}

/// Ends the plant if nobody has been plugged in meanwhile.
fn close() -> bool {
    let mut plant = plant();
    let empty = plant.as_ref().is_none_or(|p| p.inbox.is_empty());
    if empty {
        *plant = None;
    }
    empty
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    /// A producer that rings after each piece of work, and a consumer that sleeps whenever it sees none: with a lost
    /// wake-up, a sleep would last its whole bound.
    #[test]
    fn no_wake_up_is_lost() {
        let bell = Arc::new(Bell::new().unwrap());
        let (made, taken) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        const WORK: u64 = 20_000;
        let consumer = std::thread::spawn({
            let (bell, made, taken) = (bell.clone(), made.clone(), taken.clone());
            move || {
                let mut overslept = 0;
                while taken.load(Ordering::SeqCst) < WORK {
                    let start = now_ns();
                    bell.sleep(Duration::from_secs(20), || made.load(Ordering::SeqCst) > taken.load(Ordering::SeqCst));
                    overslept += u64::from(now_ns() - start > 19_000_000_000);
                    taken.store(made.load(Ordering::SeqCst), Ordering::SeqCst);
                }
                overslept
            }
        });
        for n in 1..=WORK {
            made.store(n, Ordering::SeqCst);
            bell.ring();
            if n % 3 == 0 {
                while taken.load(Ordering::SeqCst) < n {
                    std::thread::yield_now();
                }
            }
        }
        assert_eq!(consumer.join().unwrap(), 0);
    }
}
