//! The registers of a modern virtio PCI device: status, features, queues, notifications (virtio 1.2, 4.1.4 and 3.1).

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use spinwake::device::Device;
use spinwake::mmio::{Bar, NotReached, Width};
use spinwake::port::PortError;

use super::capability::Layout;
use crate::virtio::ring::{Areas, Doorbell, RingMemory};

/// For a reset of the device, or of one queue, to be over. Devices in hardware wait for outstanding DMA.
const RESET_LIMIT: Duration = Duration::from_secs(2);
/// For the device configuration to hold still while it is read.
const STILL_LIMIT: Duration = Duration::from_millis(100);
/// Between two looks at a register.
const PAUSE: Duration = Duration::from_micros(20);

/// struct virtio_pci_common_cfg (4.1.4.3).
mod common {
    pub(super) const DEVICE_FEATURE_SELECT: usize = 0x00;
    pub(super) const DEVICE_FEATURE: usize = 0x04;
    pub(super) const DRIVER_FEATURE_SELECT: usize = 0x08;
    pub(super) const DRIVER_FEATURE: usize = 0x0c;
    pub(super) const CONFIG_MSIX_VECTOR: usize = 0x10;
    pub(super) const NUM_QUEUES: usize = 0x12;
    pub(super) const DEVICE_STATUS: usize = 0x14;
    pub(super) const CONFIG_GENERATION: usize = 0x15;
    pub(super) const QUEUE_SELECT: usize = 0x16;
    pub(super) const QUEUE_SIZE: usize = 0x18;
    pub(super) const QUEUE_MSIX_VECTOR: usize = 0x1a;
    pub(super) const QUEUE_ENABLE: usize = 0x1c;
    pub(super) const QUEUE_NOTIFY_OFF: usize = 0x1e;
    pub(super) const QUEUE_DESC: usize = 0x20;
    pub(super) const QUEUE_DRIVER: usize = 0x28;
    pub(super) const QUEUE_DEVICE: usize = 0x30;
    /// Only with VIRTIO_F_RING_RESET.
    pub(super) const QUEUE_RESET: usize = 0x3a;
}

/// Device status (2.1).
pub(super) mod status {
    pub(in super::super) const ACKNOWLEDGE: u8 = 1;
    pub(in super::super) const DRIVER: u8 = 2;
    pub(in super::super) const DRIVER_OK: u8 = 4;
    pub(in super::super) const FEATURES_OK: u8 = 8;
    pub(in super::super) const NEEDS_RESET: u8 = 64;
    pub(in super::super) const FAILED: u8 = 128;
}

/// No vector (4.1.5.1.2).
pub(super) const NO_VECTOR: u16 = 0xffff;
/// What a bus answers in place of a device that does not.
const NO_ANSWER: u8 = 0xff;

/// ISR status (4.1.4.5).
pub(super) mod isr {
    pub(in super::super) const QUEUE: u8 = 1;
}

/// The registers of one device.
pub(super) struct Transport {
    name: String,
    layout: Layout,
    /// Held while a queue is selected, because the registers of all queues are the same ones.
    selected: Mutex<()>,
    /// Whether its silence has been reported.
    silent: AtomicBool,
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Transport {
    /// Finds the registers of `device`, and resets it.
    pub(super) fn open(device: &dyn Device) -> Result<Self, PortError> {
        let layout = Layout::find(device)?;
        let this =
            Self { name: device.name().into(), layout, selected: Mutex::default(), silent: AtomicBool::new(false) };
        if this.read8(common::DEVICE_STATUS) == NO_ANSWER {
            let why = "it does not answer: every register reads as ones; was it removed, or is it powered down?";
            return Err(this.unsupported(why.into()));
        }
        this.reset()?;
        Ok(this)
    }

    /// Stops the device: no DMA and no interrupt, and everything to be set up again (4.1.4.3.2: the driver waits until
    /// the status reads as zero).
    pub(super) fn reset(&self) -> Result<(), PortError> {
        self.layout.common.write(common::DEVICE_STATUS, Width::Byte, 0);
        self.await_value("its reset", common::DEVICE_STATUS, Width::Byte, 0)
    }

    /// Device status; `None` for a device that does not answer (said in the log once).
    pub(super) fn status(&self) -> Option<u8> {
        let value = self.read8(common::DEVICE_STATUS);
        if value != NO_ANSWER {
            return Some(value);
        }
        if !self.silent.swap(true, Ordering::Relaxed) {
            log::warn!("{} does not answer any more: it was removed, or its bus failed", self.name);
        }
        None
    }

    /// Adds `bits` to the device status.
    pub(super) fn add_status(&self, bits: u8) {
        let now = self.read8(common::DEVICE_STATUS);
        self.layout.common.write(common::DEVICE_STATUS, Width::Byte, (now | bits).into());
    }

    /// The features that the device offers.
    pub(super) fn offered(&self) -> u64 {
        let half = |n: u64| {
            self.layout.common.write(common::DEVICE_FEATURE_SELECT, Width::Dword, n);
            self.layout.common.read(common::DEVICE_FEATURE, Width::Dword)
        };
        half(0) | half(1) << 32
    }

    /// Accepts `features`, and asks the device whether it can work with them (3.1.1, steps 4 to 6).
    pub(super) fn accept(&self, features: u64) -> Result<(), PortError> {
        for half in [0, 1] {
            self.layout.common.write(common::DRIVER_FEATURE_SELECT, Width::Dword, half);
            self.layout.common.write(common::DRIVER_FEATURE, Width::Dword, features >> (32 * half) & 0xffff_ffff);
        }
        self.add_status(status::FEATURES_OK);
        if self.read8(common::DEVICE_STATUS) & status::FEATURES_OK != 0 {
            return Ok(());
        }
        self.add_status(status::FAILED);
        Err(self.unsupported(format!(
            "it refuses the features that the driver chose ({features:#x}) of those it offers ({:#x}); the device is broken",
            self.offered()
        )))
    }

    /// Queues that the device has, of every sort.
    pub(super) fn queues(&self) -> u16 {
        self.read16(common::NUM_QUEUES)
    }

    /// The most descriptors that queue `index` takes; zero for a queue that it does not have.
    pub(super) fn queue_len(&self, index: u16) -> u16 {
        let _selected = self.select(index);
        let len = self.read16(common::QUEUE_SIZE);
        // 2.7: a queue has 32768 descriptors at most. All ones is a device that does not answer.
        if len > 32768 { 0 } else { len }
    }

    /// Tells the device where queue `index` is and which vector is its, enables it, and returns its doorbell.
    pub(super) fn enable_queue(&self, index: u16, memory: &RingMemory, vector: u16) -> Result<PciDoorbell, PortError> {
        let _selected = self.select(index);
        let doorbell = self.doorbell(index)?;
        let common = &self.layout.common;
        common.write(common::QUEUE_SIZE, Width::Word, memory.len().into());
        let Areas { descriptors, driver, device } = memory.areas();
        for (register, area) in
            [(common::QUEUE_DESC, descriptors), (common::QUEUE_DRIVER, driver), (common::QUEUE_DEVICE, device)]
        {
            let iova = memory.cells().iova(area).get();
            // 4.1.3.1: a 64-bit field may be written in halves.
            common.write(register, Width::Dword, iova & 0xffff_ffff);
            common.write(register + 4, Width::Dword, iova >> 32);
        }
        common.write(common::QUEUE_MSIX_VECTOR, Width::Word, vector.into());
        // 4.1.5.1.2.1: read back; the device may be out of resources.
        if self.read16(common::QUEUE_MSIX_VECTOR) != vector {
            return Err(self.unsupported(format!("it has no vector {vector} for queue {index}; try irq=intx")));
        }
        common.write(common::QUEUE_ENABLE, Width::Word, 1);
        if self.read16(common::QUEUE_ENABLE) != 1 {
            return Err(self.unsupported(format!("it does not enable queue {index}; the device is broken")));
        }
        Ok(doorbell)
    }

    /// Takes queue `index` from the device (2.6.1; with VIRTIO_F_RING_RESET only).
    pub(super) fn reset_queue(&self, index: u16) -> Result<(), PortError> {
        let _selected = self.select(index);
        self.layout.common.write(common::QUEUE_RESET, Width::Word, 1);
        // 4.1.4.3.2: the driver waits until it reads back as zero.
        self.await_value("the reset of a queue", common::QUEUE_RESET, Width::Word, 0)
    }

    /// Gives configuration changes vector `vector`; returns whether the device has it.
    pub(super) fn set_config_vector(&self, vector: u16) -> bool {
        self.layout.common.write(common::CONFIG_MSIX_VECTOR, Width::Word, vector.into());
        self.read16(common::CONFIG_MSIX_VECTOR) == vector
    }

    /// ISR status; reading clears it and lowers the line of INTx.
    pub(super) fn take_isr(&self) -> u8 {
        self.layout.isr.read(0, Width::Byte) as u8
    }

    /// The device configuration, as `read` makes it out of fields, all of one generation (4.1.4.3.1).
    pub(super) fn config<T>(&self, read: impl Fn(&dyn Fn(usize, Width) -> u64) -> T) -> T {
        let deadline = Instant::now() + STILL_LIMIT;
        loop {
            let before = self.read8(common::CONFIG_GENERATION);
            let value = read(&|at, width| self.layout.device.read(at, width));
            let late = Instant::now() >= deadline;
            if late || self.read8(common::CONFIG_GENERATION) == before {
                // One that changes all the time is read again at the next change.
                return value;
            }
        }
    }

    /// The doorbell of queue `index`, which is selected (4.1.4.4).
    fn doorbell(&self, index: u16) -> Result<PciDoorbell, PortError> {
        let number = self.read16(common::QUEUE_NOTIFY_OFF);
        let at = usize::from(number) * self.layout.notify_multiplier;
        let Some((bar, offset)) = self.layout.notify.word(at) else {
            return Err(self.unsupported(format!(
                "the doorbell of queue {index}, at {at:#x}, is outside of its notification structure of {:#x} bytes; the \
                 device is broken",
                self.layout.notify.len()
            )));
        };
        Ok(PciDoorbell { bar, offset, queue: index })
    }

    fn select(&self, index: u16) -> MutexGuard<'_, ()> {
        let selected = self.selected.lock().unwrap_or_else(PoisonError::into_inner);
        self.layout.common.write(common::QUEUE_SELECT, Width::Word, index.into());
        selected
    }

    fn read8(&self, at: usize) -> u8 {
        self.layout.common.read(at, Width::Byte) as u8
    }

    fn read16(&self, at: usize) -> u16 {
        self.layout.common.read(at, Width::Word) as u16
    }

    fn await_value(&self, what: &'static str, at: usize, width: Width, wanted: u64) -> Result<(), PortError> {
        let deadline = Instant::now() + RESET_LIMIT;
        loop {
            // The clock is read first: a thread that was descheduled for the whole limit still looks once more.
            let late = Instant::now() >= deadline;
            let last = self.layout.common.read(at, width);
            if last == wanted {
                return Ok(());
            }
            if late {
                let source = NotReached { offset: at, last: last as u32, limit: RESET_LIMIT };
                return Err(PortError::Timeout { port: self.name.clone(), what, source });
            }
            std::thread::sleep(PAUSE);
        }
    }

    pub(super) fn unsupported(&self, why: String) -> PortError {
        PortError::Unsupported { port: self.name.clone(), why }
    }
}

/// The 16 bits that a queue's number is written to (4.1.5.2).
#[derive(Debug)]
pub(super) struct PciDoorbell {
    bar: Arc<Bar>,
    offset: usize,
    queue: u16,
}

impl Doorbell for PciDoorbell {
    #[inline]
    fn ring(&self) {
        self.bar.doorbell16(self.offset, self.queue);
    }
}
