//! What the control plane and all queues of one device share: its registers, the power to stop it, and the queues that
//! were dropped while the device may still reach their memory.
//!
//! ```text
//! running ── drop of a queue ──▶ its ring is reset, and it is gone          where the device has RING_RESET
//!                         └────▶ kept here ── reset of the device ──▶ gone   where not
//! ```
//!
//! Memory that the device was given is freed only once the device cannot reach it any longer: after its own reset, or
//! that of the function, or with its bus mastering verifiably off. One that obeys none of them keeps the memory for good.

use std::fmt;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use spinwake::device::Device;
use spinwake::dma::{Attachment, Domain};
use spinwake::port::PortError;

use super::ctrl::Control;
use super::transport::{Transport, status};
use crate::virtio::queue::{DriverRx, DriverTx};

/// A queue that is not used any more, and that the device may still use.
#[derive(Debug)]
pub(super) enum Retired {
    Rx(Box<dyn DriverRx>),
    Tx(Box<dyn DriverTx>),
    Control(Control),
}

impl Retired {
    /// Sends its buffers home and frees its memory. The device must have let go of it.
    fn release(self) {
        match self {
            Self::Rx(mut queue) => _ = queue.reset(),
            Self::Tx(mut queue) => _ = queue.reset(),
            Self::Control(control) => drop(control),
        }
    }

    /// Leaves its buffers and its memory to the device for good.
    fn abandon(mut self) {
        match &mut self {
            Self::Rx(queue) => queue.abandon(),
            Self::Tx(queue) => queue.abandon(),
            Self::Control(_) => {}
        }
        mem::forget(self);
    }
}

/// Whether the device leaves memory alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// It does: it was reset since it was last given queues.
    Nothing,
    /// It uses its queues.
    Queues {
        /// It can give back one alone.
        ring_reset: bool,
    },
    /// It would not stop: what it was given is its own for good.
    Lost,
}

#[derive(Debug)]
struct State {
    reach: Reach,
    retired: Vec<Retired>,
}

/// One device.
///
/// Field order matters: the attachment, whose drop takes memory from the device, goes last.
pub(super) struct Nic {
    pub(super) transport: Transport,
    pub(super) device: Arc<dyn Device>,
    /// Queues that live.
    alive: AtomicUsize,
    state: Mutex<State>,
    /// Whether it was reported that it needs a reset.
    told: AtomicBool,
    attachment: Attachment,
}

impl fmt::Debug for Nic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nic").field("device", &self.device).field("alive", &self.alive).finish_non_exhaustive()
    }
}

impl Nic {
    /// Resets `device` and makes the domain's memory visible to it. It is quiet, and its bus mastering off, afterwards.
    pub(super) fn open(device: Arc<dyn Device>, domain: &Domain) -> Result<Self, PortError> {
        let transport = Transport::open(&*device)?;
        device.set_bus_master(false)?;
        let attachment =
            domain.attach(&*device, 64).map_err(|source| PortError::Dma { port: device.name().into(), source })?;
        Ok(Self {
            transport,
            device,
            alive: AtomicUsize::new(0),
            state: Mutex::new(State { reach: Reach::Nothing, retired: Vec::new() }),
            told: AtomicBool::new(false),
            attachment,
        })
    }

    pub(super) fn name(&self) -> &str {
        self.device.name()
    }

    pub(super) fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    pub(super) fn domain(&self) -> &Domain {
        self.attachment.domain()
    }

    pub(super) fn is_lost(&self) -> bool {
        self.state().reach == Reach::Lost
    }

    /// From now on the device may reach the memory of the queues that it is told of.
    pub(super) fn give_queues(&self, ring_reset: bool) {
        self.state().reach = Reach::Queues { ring_reset };
        self.told.store(false, Ordering::Relaxed);
    }

    pub(super) fn alive(&self) -> usize {
        self.alive.load(Ordering::Acquire)
    }

    /// Counts a queue that starts to live.
    pub(super) fn born(&self) {
        self.alive.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes queue `index` from the program, and from the device as soon as that lets go of it.
    pub(super) fn retire(&self, index: u16, queue: Retired) {
        let mut state = self.state();
        match state.reach {
            Reach::Nothing => {
                drop(state);
                queue.release();
            }
            Reach::Queues { ring_reset } => {
                let reset = ring_reset.then(|| self.transport.reset_queue(index));
                if let Some(Ok(())) = reset {
                    drop(state);
                    queue.release();
                } else {
                    if let Some(Err(error)) = reset {
                        log::warn!("{error}; its buffers come home when the port is stopped");
                    }
                    state.retired.push(queue);
                }
            }
            Reach::Lost => {
                drop(state);
                queue.abandon();
            }
        }
    }

    /// Counts a queue that has been retired.
    pub(super) fn died(&self) {
        // Release: who sees the count go down sees what the queue did before.
        self.alive.fetch_sub(1, Ordering::Release);
    }

    /// Device status. A device that asks for a reset is reported, once each time that it is started.
    pub(super) fn status(&self) -> Option<u8> {
        let now = self.transport.status()?;
        if now & status::NEEDS_RESET != 0 && !self.told.swap(true, Ordering::Relaxed) {
            log::error!(
                "{}: the device met an error from which it cannot recover, and moves no more frames; stop the port and \
                 start it again, which resets it",
                self.name()
            );
        }
        Some(now)
    }

    /// Stops all DMA and interrupts, whatever queues live, and releases those that were retired. Returns whether the device
    /// can be trusted to be quiet.
    pub(super) fn quiesce(&self) -> bool {
        let mut state = self.state();
        if state.reach == Reach::Lost {
            return false;
        }
        if let Err(error) = self.device.irq_disable() {
            log::warn!("{}: its interrupts stay on: {error}", self.name());
        }
        let quiet = self.halt();
        let retired = mem::take(&mut state.retired);
        state.reach = if quiet { Reach::Nothing } else { Reach::Lost };
        drop(state);
        match quiet {
            true => retired.into_iter().for_each(Retired::release),
            false => retired.into_iter().for_each(Retired::abandon),
        }
        quiet
    }

    /// The rungs of the ladder: the device's own reset, that of the function, no bus mastering.
    fn halt(&self) -> bool {
        let reset = self.transport.reset();
        let master_off = self.device.set_bus_master(false);
        let Err(error) = reset else { return true };
        log::warn!("{error}; resetting the function instead");
        let Err(reason) = self.device.reset() else { return true };
        if master_off.is_ok() && self.device.is_bus_master_off() {
            return true;
        }
        log::error!(
            "{}: it cannot be stopped ({reason}); the buffers and rings that it was given stay allocated, because it may \
             still write to them. Close the program and look at the kernel log",
            self.name()
        );
        false
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Nic {
    fn drop(&mut self) {
        self.quiesce();
    }
}
