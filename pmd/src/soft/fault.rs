//! Faults that a soft NIC makes on purpose: which, how often, and how many so far.
//!
//! A fault comes from the port spec (`fault=drop:1%+irq-lost:0.1%`) or from a test ([`super::Control::inject`]). Each one
//! made is counted, so that a test can tell what the model did from what a driver did.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// A frame is lost on the wire to the port.
    Drop,
    /// A frame is late on the wire.
    Delay,
    /// A frame comes twice.
    Duplicate,
    /// A frame comes after the one behind it.
    Reorder,
    /// An interrupt does not reach its vector.
    IrqLost,
    /// An interrupt reaches its vector late.
    IrqLate,
    /// An interrupt fires its vector twice, the second time a little later.
    IrqDuplicate,
    /// Every vector fires without a cause.
    IrqSpurious,
    /// A receive descriptor gives a length beyond its buffer.
    LieLength,
    /// A receive descriptor gives a length of zero.
    LieZero,
    /// The last receive descriptor of a frame says that more follow.
    LieChain,
    /// A receive descriptor says that the frame is broken.
    LieError,
    /// A descriptor that the device does not own says that it holds a frame.
    LieDone,
    /// Packet type, hash, VLAN tag and checksum verdicts of a receive descriptor are garbage.
    LieMeta,
    /// The link goes down for a while.
    LinkFlap,
    /// The device stops answering for a while: registers read all ones, no DMA, no interrupts.
    Stall,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::Drop,
        Self::Delay,
        Self::Duplicate,
        Self::Reorder,
        Self::IrqLost,
        Self::IrqLate,
        Self::IrqDuplicate,
        Self::IrqSpurious,
        Self::LieLength,
        Self::LieZero,
        Self::LieChain,
        Self::LieError,
        Self::LieDone,
        Self::LieMeta,
        Self::LinkFlap,
        Self::Stall,
    ];

    /// Its name in a port spec.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Delay => "delay",
            Self::Duplicate => "dup",
            Self::Reorder => "reorder",
            Self::IrqLost => "irq-lost",
            Self::IrqLate => "irq-late",
            Self::IrqDuplicate => "irq-dup",
            Self::IrqSpurious => "irq-spurious",
            Self::LieLength => "lie-len",
            Self::LieZero => "lie-zero",
            Self::LieChain => "lie-chain",
            Self::LieError => "lie-error",
            Self::LieDone => "lie-dd",
            Self::LieMeta => "lie-meta",
            Self::LinkFlap => "link-flap",
            Self::Stall => "stall",
        }
    }

    /// The faults that come by the clock, not by chance.
    const fn is_periodic(self) -> bool {
        matches!(self, Self::LinkFlap | Self::Stall)
    }

    /// The faults that make something late.
    pub(super) const fn is_late(self) -> bool {
        matches!(self, Self::Delay | Self::IrqLate | Self::IrqDuplicate)
    }

    const fn default_time_ns(self) -> RangeInclusive<u64> {
        let time_ns = match self {
            Self::Delay => 200_000,
            Self::IrqLate | Self::IrqDuplicate => 100_000,
            Self::LinkFlap | Self::Stall => 1_000_000_000,
            _ => 0,
        };
        time_ns..=time_ns
    }
}

const KINDS: usize = Fault::ALL.len();

/// How often each fault shall happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FaultPlan {
    /// In parts per million of the chances that it has (frames, interrupts); for periodic ones, zero or not.
    share_ppm: [u32; KINDS],
    /// How late (anything in the range), or how often (its start), in nanoseconds.
    time_ns: [RangeInclusive<u64>; KINDS],
}

impl Default for FaultPlan {
    /// Nothing goes wrong.
    fn default() -> Self {
        Self { share_ppm: [0; KINDS], time_ns: Fault::ALL.map(Fault::default_time_ns) }
    }
}

impl FaultPlan {
    /// What `fault=` takes, in words.
    pub(super) const POSSIBLE: &'static str = "random, or KIND[:TIME][:SHARE%] joined by +, as in drop:1%+delay:200us:1% or irq-late:10us-5ms; the kinds are drop, delay, dup, \
         reorder, irq-lost, irq-late, irq-dup, irq-spurious, lie-len, lie-zero, lie-chain, lie-error, lie-dd, lie-meta, \
         link-flap and stall (these two by their period, as in link-flap:1s)";

    /// Reads the value of `fault=`; `None` when it means nothing.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut plan = Self::default();
        for part in text.split('+') {
            if part == "random" {
                plan.randomize();
                continue;
            }
            let mut words = part.split(':');
            let name = words.next()?;
            let fault = *Fault::ALL.iter().find(|f| f.key() == name)?;
            let mut share_ppm = if fault.is_periodic() { 1_000_000 } else { 10_000 };
            for word in words {
                if let Some(percent) = word.strip_suffix('%') {
                    let percent: f64 = percent.parse().ok().filter(|p| (0.0..=100.0).contains(p))?;
                    share_ppm = (percent * 10_000.0).round() as u32;
                } else {
                    let least_ns = if fault.is_periodic() { 1_000_000 } else { 1 };
                    let (low, high) = word.split_once('-').filter(|_| fault.is_late()).unwrap_or((word, word));
                    let (low, high) = (parse_time_ns(low)?, parse_time_ns(high)?);
                    plan.time_ns[fault as usize] = Some(low..=high).filter(|t| least_ns <= high && !t.is_empty())?;
                }
            }
            plan.share_ppm[fault as usize] = share_ppm;
        }
        Some(plan)
    }

    /// Everything at a low rate, but for the device standing still.
    fn randomize(&mut self) {
        for fault in Fault::ALL {
            self.share_ppm[fault as usize] = match fault {
                Fault::Stall => 0,
                Fault::LinkFlap => 1_000_000,
                Fault::Drop | Fault::Delay | Fault::Duplicate | Fault::Reorder => 2_000,
                _ => 500,
            };
        }
        self.time_ns[Fault::LinkFlap as usize] = 5_000_000_000..=5_000_000_000;
    }

    fn is_quiet(&self) -> bool {
        self.share_ppm.iter().all(|share| *share == 0)
    }
}

/// `200us`, `1.5ms`, `2s` in nanoseconds; at most an hour.
fn parse_time_ns(text: &str) -> Option<u64> {
    let split = text.find(|c: char| c.is_ascii_alphabetic())?;
    let scale = match &text[split..] {
        "ns" => 1.0,
        "us" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        _ => return None,
    };
    let number: f64 = text[..split].parse().ok()?;
    let limit = Duration::from_secs(3600).as_nanos() as f64;
    (0.0..=limit).contains(&(number * scale)).then_some((number * scale) as u64)
}

/// How many faults a soft NIC has made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultCounts {
    made: [u64; KINDS],
    /// Frames that a sink saw again because a fault had made a copy of them. They are no duplicates of the driver's.
    pub copies_seen: u64,
    /// Frames that a sink saw changed because a descriptor had lied about them in a way that no driver can notice (two
    /// frames chained into one). They are not counted as corrupt.
    pub tainted_seen: u64,
}

impl FaultCounts {
    /// How often `fault` happened.
    pub fn made(&self, fault: Fault) -> u64 {
        self.made[fault as usize]
    }
}

/// The faults of one NIC: planned, asked for, made.
#[derive(Debug)]
pub(super) struct Faults {
    share_ppm: [u32; KINDS],
    /// As in the plan, or as a test set it since. Looked at only when a fault happens.
    time_ns: Mutex<[RangeInclusive<u64>; KINDS]>,
    /// Whether anything was ever planned or asked for: what a fault-free NIC pays is one load.
    live: AtomicBool,
    asked: [AtomicU32; KINDS],
    made: [AtomicU64; KINDS],
    pub(super) copies_seen: AtomicU64,
    pub(super) tainted_seen: AtomicU64,
    chance: AtomicU64,
}

impl Faults {
    pub(super) fn new(plan: FaultPlan) -> Self {
        Self {
            live: AtomicBool::new(!plan.is_quiet()),
            share_ppm: plan.share_ppm,
            time_ns: Mutex::new(plan.time_ns),
            asked: std::array::from_fn(|_| AtomicU32::new(0)),
            made: std::array::from_fn(|_| AtomicU64::new(0)),
            copies_seen: AtomicU64::new(0),
            tainted_seen: AtomicU64::new(0),
            chance: AtomicU64::new(0),
        }
    }

    /// Makes the next `n` chances of `fault` happen.
    pub(super) fn ask(&self, fault: Fault, n: u32) {
        self.asked[fault as usize].fetch_add(n, Ordering::Relaxed);
        self.live.store(true, Ordering::Release);
    }

    /// Whether `fault` shall happen now; counts it if so.
    #[inline]
    pub(super) fn hit(&self, fault: Fault, rng: &mut Rng) -> bool {
        if !self.live.load(Ordering::Acquire) {
            return false;
        }
        self.asked(fault) || {
            let share = self.share_ppm[fault as usize];
            let hit = share > 0 && !fault.is_periodic() && rng.below(1_000_000) < u64::from(share);
            if hit {
                self.count(fault);
            }
            hit
        }
    }

    /// As [`hit`](Self::hit), for a thread that has no source of chance of its own.
    pub(super) fn hit_anywhere(&self, fault: Fault) -> bool {
        self.live.load(Ordering::Acquire) && self.hit(fault, &mut Rng::new(self.chance.fetch_add(1, Ordering::Relaxed)))
    }

    /// Whether a test asked for `fault`; takes and counts it if so.
    pub(super) fn asked(&self, fault: Fault) -> bool {
        if !self.live.load(Ordering::Acquire) {
            return false;
        }
        let asked = &self.asked[fault as usize];
        let taken = asked.load(Ordering::Relaxed) > 0
            && asked.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok();
        if taken {
            self.count(fault);
        }
        taken
    }

    pub(super) fn count(&self, fault: Fault) {
        self.made[fault as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How late `fault` makes things this time, in nanoseconds.
    pub(super) fn delay_ns(&self, fault: Fault, rng: &mut Rng) -> u64 {
        let range = self.times_ns()[fault as usize].clone();
        rng.within(&range)
    }

    /// Changes how late `fault` makes things.
    pub(super) fn set_delay_ns(&self, fault: Fault, range: RangeInclusive<u64>) {
        self.times_ns()[fault as usize] = range;
    }

    /// The period of a fault that comes by the clock, in nanoseconds; `None` when it is not planned.
    pub(super) fn period_ns(&self, fault: Fault) -> Option<u64> {
        (self.share_ppm[fault as usize] > 0).then(|| *self.times_ns()[fault as usize].start())
    }

    fn times_ns(&self) -> MutexGuard<'_, [RangeInclusive<u64>; KINDS]> {
        self.time_ns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn counts(&self) -> FaultCounts {
        FaultCounts {
            made: std::array::from_fn(|i| self.made[i].load(Ordering::Relaxed)),
            copies_seen: self.copies_seen.load(Ordering::Relaxed),
            tainted_seen: self.tainted_seen.load(Ordering::Relaxed),
        }
    }
}

/// A small, seeded source of chance (SplitMix64): the same seed makes the same faults for the same frames.
#[derive(Debug, Clone)]
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `n`, which is not zero.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    /// A number in `range`, which is not empty.
    pub(super) fn within(&mut self, range: &RangeInclusive<u64>) -> u64 {
        range.start() + self.below((range.end() - range.start()).saturating_add(1))
    }
}

/// Spreads the bits of `x` over the whole word.
pub(super) fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_reads_kinds_times_and_shares() {
        let plan = FaultPlan::parse("drop:1%+delay:200us:0.5%+link-flap:2s+irq-lost").unwrap();
        let of = |f: Fault| (plan.share_ppm[f as usize], plan.time_ns[f as usize].clone());
        assert_eq!(of(Fault::Drop).0, 10_000);
        assert_eq!(of(Fault::Delay), (5_000, 200_000..=200_000));
        assert_eq!(of(Fault::LinkFlap), (1_000_000, 2_000_000_000..=2_000_000_000));
        assert_eq!(of(Fault::IrqLost).0, 10_000);
        assert_eq!(of(Fault::Reorder).0, 0);
        assert!(FaultPlan::parse("random").is_some());
    }

    #[test]
    fn a_delay_may_be_a_range_and_a_test_may_change_it() {
        let faults = Faults::new(FaultPlan::parse("irq-late:10us-5ms:2%").unwrap());
        let mut rng = Rng::new(1);
        let delays: Vec<u64> = (0..1000).map(|_| faults.delay_ns(Fault::IrqLate, &mut rng)).collect();
        assert!(delays.iter().all(|d| (10_000..=5_000_000).contains(d)));
        assert!(delays.iter().any(|d| *d < 500_000) && delays.iter().any(|d| *d > 4_500_000));
        faults.set_delay_ns(Fault::IrqLate, 7..=7);
        assert_eq!(faults.delay_ns(Fault::IrqLate, &mut rng), 7);
        assert_eq!(faults.delay_ns(Fault::Delay, &mut rng), 200_000);
    }

    #[test]
    fn a_plan_that_means_nothing_is_refused() {
        for text in [
            "",
            "drop:",
            "drop:1",
            "drop:101%",
            "drop:-1%",
            "gone",
            "delay:1y",
            "drop+",
            "stall:1ns",
            "delay:NaNs",
            "irq-late:2us-1us",
            "irq-late:1us-",
            "irq-late:1us-2us-3us",
            "link-flap:1s-2s",
            "drop:1us-2us",
        ] {
            assert_eq!(FaultPlan::parse(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_asked_for_happens_as_often_and_is_counted() {
        let faults = Faults::new(FaultPlan::default());
        let mut rng = Rng::new(1);
        assert!(!faults.hit(Fault::Drop, &mut rng));
        faults.ask(Fault::Drop, 2);
        assert_eq!((0..5).filter(|_| faults.hit(Fault::Drop, &mut rng)).count(), 2);
        assert_eq!(faults.counts().made(Fault::Drop), 2);
        assert_eq!(faults.counts().made(Fault::Delay), 0);
    }

    #[test]
    fn a_share_is_met_on_average() {
        let faults = Faults::new(FaultPlan::parse("drop:10%").unwrap());
        let mut rng = Rng::new(7);
        let hits = (0..100_000).filter(|_| faults.hit(Fault::Drop, &mut rng)).count();
        assert!((9_000..11_000).contains(&hits), "{hits}");
    }
}
