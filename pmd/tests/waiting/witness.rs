//! Says of each interrupt that was dropped whether somebody slept on it.
//!
//! A drop has its chance only while the queue is armed, but not every armed worker sleeps, and not every sleep ends at its
//! limit:
//!
//! ```text
//!  arm ──▶ second look ──▶ blocked ·········· limit ──▶ look ──▶ disarm
//!   └──── A ────┘└───────────────── B ──────────────────┘└── C ──┘      dropped here
//! ```
//!
//! - **A**: the second look finds the frame (it is in the ring before its interrupt), and there is no sleep.
//! - **B**: only the limit finds it. This, and nothing else, is a rescue: unless the sleep was ended by an interrupt from before,
//!   which came when the worker had already turned back.
//! - **C**: the sleep is over; the next turn finds the frame.
//!
//! [`Witness`] stands between the engine and the queue, sees each call, and compares the NIC's own count of drops at
//! arming with that at disarming, when no more can happen. So its count of **B** is exact, whenever the drop came.

use std::cell::Cell;
use std::time::Duration;

use spinwake::port::RxQueue;
use spinwake::sys::relax::Watch;
use spinwake::wait::{Source, Wake};
use spinwake_pmd::soft::{Control, Fault};

/// What became of the interrupts that were dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Drops {
    /// **B**: nothing but the limit could find the frame.
    pub(crate) slept_on: u64,
    /// **A**: the second look found it.
    pub(crate) turned_back: u64,
    /// **B**, but an earlier interrupt ended the sleep.
    pub(crate) woken_otherwise: u64,
    /// **C**: the sleep was over.
    pub(crate) after_sleep: u64,
}

impl Drops {
    pub(crate) fn all(self) -> u64 {
        self.slept_on + self.turned_back + self.woken_otherwise + self.after_sleep
    }
}

/// Where the engine is with the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Not armed.
    Off,
    /// Armed; the next look is the second.
    Armed,
    /// The second look found work.
    TurnedBack,
    /// It did not; the next look is the one after the sleep.
    Asleep,
    /// Whether that look found work, and whether an interrupt had ended the sleep.
    Awake { work: bool, fired: bool },
}

/// A receive queue with a witness.
#[derive(Debug)]
pub(crate) struct Witness {
    pub(crate) rx: Box<dyn RxQueue>,
    control: Control,
    phase: Cell<Phase>,
    fired: bool,
    dropped_before: u64,
    pub(crate) drops: Drops,
    /// Sleeps that went on with work there, until an interrupt came.
    pub(crate) overdue: u64,
}

impl Witness {
    pub(crate) fn new(rx: Box<dyn RxQueue>, control: Control) -> Self {
        Self {
            rx,
            control,
            phase: Cell::new(Phase::Off),
            fired: false,
            dropped_before: 0,
            drops: Drops::default(),
            overdue: 0,
        }
    }

    fn dropped(&self) -> u64 {
        self.control.faults().made(Fault::IrqLost)
    }
}

impl Source for Witness {
    fn label(&self) -> String {
        self.rx.label()
    }

    fn pending(&self) -> bool {
        let work = self.rx.pending();
        match self.phase.get() {
            Phase::Armed => self.phase.set(if work { Phase::TurnedBack } else { Phase::Asleep }),
            Phase::Asleep => self.phase.set(Phase::Awake { work, fired: self.fired }),
            Phase::Off | Phase::TurnedBack | Phase::Awake { .. } => {}
        }
        work
    }

    fn arm(&mut self) {
        self.dropped_before = self.dropped();
        self.fired = false;
        self.phase.set(Phase::Armed);
        self.rx.arm();
    }

    fn disarm(&mut self) {
        self.rx.disarm();
        let dropped = self.dropped() - self.dropped_before;
        let Drops { slept_on, turned_back, woken_otherwise, after_sleep } = &mut self.drops;
        let phase = self.phase.replace(Phase::Off);
        let seen_before = matches!(phase, Phase::TurnedBack | Phase::Awake { work: true, fired: false });
        self.overdue += u64::from(self.fired && seen_before);
        let count = match phase {
            Phase::Awake { work: true, .. } if self.fired => woken_otherwise,
            Phase::Awake { work: true, .. } => slept_on,
            Phase::Awake { work: false, .. } => after_sleep,
            // Another source had work, and this one was not asked.
            Phase::TurnedBack | Phase::Armed | Phase::Asleep | Phase::Off => turned_back,
        };
        *count += dropped;
    }

    fn wake(&self) -> Wake {
        self.rx.wake()
    }

    fn fired(&mut self) {
        self.fired = true;
        self.rx.fired();
    }

    fn watch(&self) -> Option<Watch<'_>> {
        self.rx.watch()
    }

    fn moderate(&mut self, interval: Duration) -> Option<Duration> {
        self.rx.moderate(interval)
    }
}
