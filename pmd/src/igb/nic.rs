//! What the control plane and all queues of one controller share: its registers, and the power to stop it.
//!
//! Memory that the device was given is freed only once the device cannot reach it any longer. [`Nic::stop_queue`] climbs
//! a ladder to get there: the queue's enable bit, then a reset of the whole device; a device that obeys neither keeps
//! the memory for good.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use spinwake::device::Device;
use spinwake::dma::{Attachment, Domain};
use spinwake::frame::Pool;
use spinwake::mmio::{Bar, Reg, Rw};
use spinwake::port::{MacAddr, PortError};

use super::model::Model;
use super::regs::{self, ctrl, ctrl_ext, eecd, eerd, icr, status, xdctl};

/// For a queue to start or stop, and for outstanding DMA requests to end.
const QUEUE_LIMIT: Duration = Duration::from_millis(100);
/// For a reset to be over.
const RESET_LIMIT: Duration = Duration::from_millis(200);
/// Registers must not be touched for this long after a reset began (datasheet 4.2.1.6).
const RESET_PAUSE: Duration = Duration::from_millis(2);
/// For the configuration to be read from the EEPROM.
const EEPROM_LIMIT: Duration = Duration::from_millis(20);
/// What a bus answers in place of a device that does not.
const NO_ANSWER: u32 = u32::MAX;

/// Whether the device can be trusted to leave memory alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Health {
    /// It does what it is told.
    Good,
    /// It was reset from under its queues: quiet, with everything to be set up again.
    Reset,
    /// It would not stop: what it was given is its own for good.
    Lost,
}

/// One controller.
///
/// Field order matters: the attachment, whose drop takes memory from the device, goes last.
pub(super) struct Nic {
    pub(super) bar: Bar,
    pub(super) device: Arc<dyn Device>,
    pub(super) model: &'static Model,
    /// Queues that live.
    alive: AtomicUsize,
    health: Mutex<Health>,
    /// Whether its silence has been reported.
    silent: AtomicBool,
    attachment: Attachment,
}

impl fmt::Debug for Nic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nic").field("device", &self.device).field("alive", &self.alive).finish_non_exhaustive()
    }
}

impl Nic {
    /// Resets `device` and makes the domain's memory visible to it. It is quiet, and its bus mastering off, afterwards.
    pub(super) fn open(device: Arc<dyn Device>, model: &'static Model, domain: &Domain) -> Result<Self, PortError> {
        let bar = device.bar(0)?;
        // The highest register that the driver uses is a transmit queue's.
        let needed = regs::tdwbah(regs::MAX_QUEUES - 1).offset() + 4;
        if bar.len() < needed {
            let why =
                format!("its BAR 0 has {:#x} bytes and the driver needs {needed:#x}; is it a {model:?}?", bar.len());
            return Err(PortError::Unsupported { port: device.name().into(), why });
        }
        reset(&*device, &bar)?;
        let attachment =
            domain.attach(&*device, 64).map_err(|source| PortError::Dma { port: device.name().into(), source })?;
        Ok(Self {
            bar,
            device,
            model,
            alive: AtomicUsize::new(0),
            health: Mutex::new(Health::Good),
            silent: AtomicBool::new(false),
            attachment,
        })
    }

    pub(super) fn name(&self) -> &str {
        self.device.name()
    }

    /// The device's place in the DMA domain.
    pub(super) fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    /// A pool of another domain is a mistake of the program: there, the same address is other memory.
    #[inline(always)]
    pub(super) fn check_domain(&self, pool: &Pool) {
        assert!(
            pool.domain() == self.attachment.domain(),
            "a pool that this port's device cannot reach: it is in another DMA domain"
        );
    }

    pub(super) fn health(&self) -> Health {
        *self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resets the device once more, because it was reset from under its queues; everything must be set up again.
    pub(super) fn revive(&self) -> Result<(), PortError> {
        reset(&*self.device, &self.bar)?;
        *self.health.lock().unwrap_or_else(PoisonError::into_inner) = Health::Good;
        Ok(())
    }

    /// STATUS, or `None` for a device that does not answer (said in the log once).
    pub(super) fn status(&self) -> Option<u32> {
        let value = self.bar.read(regs::STATUS);
        if value != NO_ANSWER {
            return Some(value);
        }
        if !self.silent.swap(true, Ordering::Relaxed) {
            log::warn!("{} does not answer any more: it was removed, or its bus failed", self.name());
        }
        None
    }

    pub(super) fn alive(&self) -> usize {
        self.alive.load(Ordering::Acquire)
    }

    /// Counts a queue that starts to live.
    pub(super) fn born(&self) {
        self.alive.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a queue that has given up all its memory.
    pub(super) fn died(&self) {
        // Release: who sees the count go down sees what the queue did before.
        self.alive.fetch_sub(1, Ordering::Release);
    }

    /// Enables the queue that `control` (RXDCTL or TXDCTL) controls.
    pub(super) fn start_queue(&self, control: Reg<Rw>, thresholds: u32, what: &'static str) -> Result<(), PortError> {
        self.bar.write(control, thresholds | xdctl::ENABLE);
        match self.bar.wait_for(control, QUEUE_LIMIT, |v| v & xdctl::ENABLE != 0 && v != NO_ANSWER) {
            Ok(_) => Ok(()),
            Err(source) => Err(PortError::Timeout { port: self.name().into(), what, source }),
        }
    }

    /// Takes its memory from the queue that `control` (RXDCTL or TXDCTL) controls. Returns whether that worked: if not,
    /// the memory must never be freed.
    #[must_use]
    pub(super) fn stop_queue(&self, control: Reg<Rw>) -> bool {
        match self.health() {
            Health::Good => {}
            Health::Reset => return true,
            Health::Lost => return false,
        }
        self.bar.modify(control, xdctl::ENABLE, 0);
        match self.bar.wait_for(control, QUEUE_LIMIT, |v| v & xdctl::ENABLE == 0) {
            Ok(_) => true,
            Err(error) => {
                log::warn!("{}: a queue did not stop ({error}); resetting the device", self.name());
                self.halt()
            }
        }
    }

    /// Stops all DMA and interrupts, whatever queues live. Returns whether the device can be trusted to be quiet.
    pub(super) fn quiesce(&self) -> bool {
        if self.health() == Health::Lost {
            return false;
        }
        silence(&self.bar);
        if let Err(error) = self.device.irq_disable() {
            log::warn!("{}: its interrupts stay on: {error}", self.name());
        }
        match self.device.set_bus_master(false) {
            Ok(()) => true,
            Err(error) => {
                log::warn!("{}: its bus mastering stays on ({error}); resetting it", self.name());
                self.halt()
            }
        }
    }

    /// The last means: resets the whole device. Returns whether it is quiet.
    fn halt(&self) -> bool {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        if *health != Health::Good {
            return *health == Health::Reset;
        }
        let reset = self.device.reset();
        let master_off = self.device.set_bus_master(false);
        if reset.is_ok() || (master_off.is_ok() && self.device.is_bus_master_off()) {
            *health = Health::Reset;
            return true;
        }
        let reason = reset.err().map(|e| e.to_string()).unwrap_or_default();
        log::error!(
            "{}: it cannot be stopped ({reason}); the buffers and rings that it was given stay allocated, because it may \
             still write to them. Close the program and look at the kernel log",
            self.name()
        );
        *health = Health::Lost;
        false
    }

    /// The address that the device came up with: from its receive address table, or from its EEPROM.
    pub(super) fn mac(&self) -> Result<MacAddr, PortError> {
        let low = self.bar.read(regs::ral(0)).to_le_bytes();
        let high = self.bar.read(regs::rah(0)).to_le_bytes();
        let mac = MacAddr([low[0], low[1], low[2], low[3], high[0], high[1]]);
        if mac.is_unicast() {
            return Ok(mac);
        }
        let mut bytes = [0; 6];
        for (word, pair) in bytes.chunks_exact_mut(2).enumerate() {
            pair.copy_from_slice(&self.eeprom(word as u32)?.to_le_bytes());
        }
        let mac = MacAddr(bytes);
        if mac.is_unicast() {
            return Ok(mac);
        }
        let why = format!("its EEPROM holds {mac}, which is no station's address; is its EEPROM programmed?");
        Err(PortError::Unsupported { port: self.name().into(), why })
    }

    /// Word `address` of the EEPROM.
    fn eeprom(&self, address: u32) -> Result<u16, PortError> {
        self.bar.write(regs::EERD, address << eerd::ADDR_SHIFT | eerd::START);
        match self.bar.wait_for(regs::EERD, EEPROM_LIMIT, |v| v & eerd::DONE != 0 && v != NO_ANSWER) {
            Ok(value) => Ok((value >> eerd::DATA_SHIFT) as u16),
            Err(source) => Err(PortError::Timeout { port: self.name().into(), what: "a read of its EEPROM", source }),
        }
    }
}

impl Drop for Nic {
    fn drop(&mut self) {
        if self.quiesce() {
            self.bar.modify(regs::CTRL_EXT, ctrl_ext::DRV_LOAD, 0);
        }
    }
}

/// Masks every interrupt, stops both directions, and waits for outstanding DMA to end.
fn silence(bar: &Bar) {
    bar.write(regs::IMC, u32::MAX);
    bar.write(regs::EIMC, u32::MAX);
    bar.modify(regs::RCTL, regs::rctl::RXEN, 0);
    bar.modify(regs::TCTL, regs::tctl::EN, 0);
    bar.modify(regs::CTRL, 0, ctrl::GIO_MASTER_DISABLE);
    if let Err(error) = bar.wait_for(regs::STATUS, QUEUE_LIMIT, |v| v & status::GIO_MASTER_EN == 0) {
        // Bus mastering is turned off next, in configuration space, which does not ask the device.
        log::debug!("outstanding DMA requests did not end: {error}");
    }
}

/// Brings the device to a known state: quiet, interrupts masked, registers at their power-on values.
fn reset(device: &dyn Device, bar: &Bar) -> Result<(), PortError> {
    let unsupported = |why: &str| PortError::Unsupported { port: device.name().into(), why: why.into() };
    if bar.read(regs::STATUS) == NO_ANSWER {
        return Err(unsupported(
            "it does not answer: every register reads as ones; was it removed, or is it powered down?",
        ));
    }
    silence(bar);
    device.set_bus_master(false)?;
    bar.modify(regs::CTRL, 0, ctrl::RST);
    std::thread::sleep(RESET_PAUSE);
    if let Err(source) = bar.wait_for(regs::CTRL, RESET_LIMIT, |v| v & ctrl::RST == 0) {
        log::warn!("{}: CTRL.RST does not clear ({source}); resetting the function instead", device.name());
        device.reset()?;
        if let Err(source) = bar.wait_for(regs::CTRL, RESET_LIMIT, |v| v & ctrl::RST == 0) {
            return Err(PortError::Timeout { port: device.name().into(), what: "the end of its reset", source });
        }
    }
    // QEMU's igb never sets AUTO_RD; its registers are right from the start. Hardware takes a few milliseconds.
    if let Err(error) = bar.wait_for(regs::EECD, EEPROM_LIMIT, |v| v & eecd::AUTO_RD != 0) {
        log::debug!("{}: EECD.AUTO_RD did not come: {error}", device.name());
    }
    bar.write(regs::IMC, u32::MAX);
    bar.write(regs::EIMC, u32::MAX);
    bar.read(regs::ICR);
    bar.write(regs::ICR, !icr::INTA);
    Ok(())
}
