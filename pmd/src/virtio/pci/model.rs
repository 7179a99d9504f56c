//! A device's registers in software, for tests: those of QEMU's layout, with faults on request. It has no queues behind them.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard};

use spinwake::device::{Device, DeviceError, DeviceId, Iommu, Notices};
use spinwake::irq::IrqKind;
use spinwake::mmio::{Bar, RegisterIo, Width};

use crate::soft;
use crate::virtio::features::Features;

/// Where QEMU puts its structures in BAR 4.
const BAR: usize = 4;
const BAR_LEN: usize = 0x4000;
const ISR: usize = 0x1000;
const CONFIG: usize = 0x2000;
const NOTIFY: usize = 0x3000;
const MULTIPLIER: u32 = 4;

/// A capability of the device: type, BAR, offset, length.
pub(super) type Cap = (u8, u8, u32, u32);
pub(super) const GOOD_CAPS: [Cap; 4] = [
    (1, BAR as u8, 0, 0x1000),
    (3, BAR as u8, ISR as u32, 0x1000),
    (4, BAR as u8, CONFIG as u32, 0x1000),
    (2, BAR as u8, NOTIFY as u32, 0x1000),
];

/// Registers of one queue.
#[derive(Debug, Clone, Default)]
pub(super) struct Queue {
    pub(super) len: u16,
    pub(super) vector: u16,
    pub(super) enabled: bool,
    pub(super) addresses: [u32; 6],
    pub(super) resets: usize,
}

/// What the device is, and the faults that it has.
#[derive(Debug)]
pub(super) struct State {
    pub(super) offered: Features,
    pub(super) accepted: u64,
    pub(super) status: u8,
    pub(super) queues: Vec<Queue>,
    pub(super) config: [u8; 24],
    pub(super) notified: Vec<(usize, u64)>,
    pub(super) config_vector: u16,
    pub(super) master: bool,
    pub(super) vectors: usize,
    pub(super) isr: u8,
    pub(super) generation: u8,
    /// What `queue_notify_off` says beyond the queue's number.
    pub(super) doorbells_at: u16,
    /// Each read of the configuration changes the generation, this often.
    pub(super) restless: usize,
    pub(super) refuses_features: bool,
    pub(super) refuses_vectors: bool,
    /// Neither its own reset nor that of the function works.
    pub(super) stuck: bool,
    pub(super) gone: bool,
    select: [usize; 3],
}

/// A model with `pairs` pairs of queues of 256 descriptors, and its control plane.
#[derive(Debug)]
pub(super) struct Model {
    caps: Vec<Cap>,
    multiplier: u32,
    iommu: Arc<dyn Iommu>,
    state: Arc<Mutex<State>>,
}

impl Model {
    pub(super) fn new(offered: Features, pairs: u16) -> Self {
        Self::with(offered, pairs, &GOOD_CAPS, MULTIPLIER)
    }

    pub(super) fn with(offered: Features, pairs: u16, caps: &[Cap], multiplier: u32) -> Self {
        let mut config = [0; 24];
        config[..6].copy_from_slice(&[0x52, 0x54, 0, 0, 0, 7]);
        config[6] = 1;
        config[8..10].copy_from_slice(&pairs.to_le_bytes());
        config[10..12].copy_from_slice(&9000u16.to_le_bytes());
        config[12..16].copy_from_slice(&25_000u32.to_le_bytes());
        config[16] = 1;
        let state = State {
            offered,
            accepted: 0,
            status: 0x0f,
            queues: vec![Queue { len: 256, ..Queue::default() }; usize::from(2 * pairs + 1)],
            config,
            notified: Vec::new(),
            config_vector: 0xffff,
            master: true,
            vectors: 3,
            isr: 0,
            generation: 0,
            doorbells_at: 0,
            restless: 0,
            refuses_features: false,
            refuses_vectors: false,
            stuck: false,
            gone: false,
            select: [0; 3],
        };
        // The memory behind it is that of some other device in software.
        let iommu = soft::open(&"soft:,rate=0".parse().unwrap()).unwrap().device().iommu();
        Self { caps: caps.to_vec(), multiplier, iommu, state: Arc::new(Mutex::new(state)) }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Whether it does nothing and may do nothing.
    pub(super) fn is_quiet(&self) -> bool {
        let state = self.state();
        state.status == 0 && !state.master
    }

    fn config_space(&self) -> Vec<u8> {
        let mut bytes = vec![0; 256];
        bytes[..4].copy_from_slice(&[0xf4, 0x1a, 0x41, 0x10]);
        bytes[6] = 0x10;
        bytes[0x34] = 0x40;
        for (i, &(kind, bar, offset, len)) in self.caps.iter().enumerate() {
            let at = 0x40 + 20 * i;
            let next = if i + 1 < self.caps.len() { at as u8 + 20 } else { 0 };
            bytes[at..at + 5].copy_from_slice(&[0x09, next, 20, kind, bar]);
            bytes[at + 8..at + 12].copy_from_slice(&offset.to_le_bytes());
            bytes[at + 12..at + 16].copy_from_slice(&len.to_le_bytes());
            bytes[at + 16..at + 20].copy_from_slice(&self.multiplier.to_le_bytes());
        }
        bytes
    }
}

impl Device for Model {
    fn name(&self) -> &str {
        "model"
    }
    fn id(&self) -> DeviceId {
        DeviceId { vendor: 0x1af4, device: 0x1041 }
    }
    fn numa_node(&self) -> Option<usize> {
        None
    }
    fn bar(&self, index: usize) -> Result<Bar, DeviceError> {
        match index {
            BAR => Ok(Bar::trapped(BAR_LEN, Arc::new(Registers(self.state.clone())))),
            _ => Err(DeviceError::Missing { device: "model".into(), what: format!("BAR {index}") }),
        }
    }
    fn config_read(&self, offset: u16, buf: &mut [u8]) -> Result<(), DeviceError> {
        let mut bytes = self.config_space();
        bytes[4] = if self.state().master { 6 } else { 2 };
        buf.copy_from_slice(&bytes[offset.into()..usize::from(offset) + buf.len()]);
        Ok(())
    }
    fn config_write(&self, _: u16, _: &[u8]) -> Result<(), DeviceError> {
        Ok(())
    }
    fn reset(&self) -> Result<(), DeviceError> {
        if self.state().stuck {
            return Err(DeviceError::Missing { device: "model".into(), what: "way to be reset alone".into() });
        }
        self.state().status = 0;
        Ok(())
    }
    fn set_bus_master(&self, on: bool) -> Result<(), DeviceError> {
        let mut state = self.state();
        // A device that is stuck does not even let its bus mastering be turned off.
        state.master = on || state.stuck;
        Ok(())
    }
    fn iommu(&self) -> Arc<dyn Iommu> {
        self.iommu.clone()
    }
    fn irq_count(&self, kind: IrqKind) -> usize {
        match kind {
            IrqKind::Intx => 1,
            IrqKind::Msi => 0,
            IrqKind::Msix => self.state().vectors,
        }
    }
    fn irq_enable(&self, _: IrqKind, _: &[BorrowedFd<'_>]) -> Result<(), DeviceError> {
        Ok(())
    }
    fn irq_disable(&self) -> Result<(), DeviceError> {
        Ok(())
    }
    fn irq_unmask(&self) -> Result<(), DeviceError> {
        Ok(())
    }
    fn notices(&self) -> Option<&Notices> {
        None
    }
}

/// BAR 4.
#[derive(Debug)]
struct Registers(Arc<Mutex<State>>);

impl State {
    /// As QEMU's, it has the queues of its further pairs only while they are agreed on.
    fn queues(&self) -> usize {
        let several = Features::from_bits(self.accepted).has(Features::MQ);
        if several { self.queues.len() } else { self.queues.len().min(3) }
    }

    fn queue(&mut self) -> Option<&mut Queue> {
        let (queues, selected) = (self.queues(), self.select[2]);
        self.queues[..queues].get_mut(selected)
    }

    fn read_common(&mut self, at: usize) -> u64 {
        let number = self.select[2] as u16;
        let doorbell = number.wrapping_add(self.doorbells_at);
        let queue = self.queue().cloned().unwrap_or_default();
        match at {
            0x04 => self.offered.bits() >> (32 * self.select[0]) & 0xffff_ffff,
            0x10 => self.config_vector.into(),
            0x12 => self.queues() as u64,
            0x14 => self.status.into(),
            0x15 => self.generation.into(),
            0x18 => queue.len.into(),
            0x1a => queue.vector.into(),
            0x1c => queue.enabled.into(),
            0x1e => doorbell.into(),
            _ => 0,
        }
    }

    fn write_common(&mut self, at: usize, value: u64) {
        let (refuses, half) = (self.refuses_vectors, self.select[1]);
        let vector = if refuses { 0xffff } else { value as u16 };
        match at {
            0x00 => self.select[0] = value as usize,
            0x08 => self.select[1] = value as usize,
            0x0c => self.accepted = self.accepted & !(0xffff_ffff << (32 * half)) | value << (32 * half),
            0x10 => self.config_vector = vector,
            0x14 if value == 0 => self.reset(),
            0x14 => self.status = value as u8 & !if self.refuses_features { 8 } else { 0 },
            0x16 => self.select[2] = value as usize,
            _ => {
                let Some(queue) = self.queue() else { return };
                match at {
                    0x18 => queue.len = value as u16,
                    0x1a => queue.vector = vector,
                    0x1c => queue.enabled = value == 1,
                    0x20..0x38 => queue.addresses[(at - 0x20) / 4] = value as u32,
                    0x3a => (queue.enabled, queue.resets) = (false, queue.resets + 1),
                    _ => panic!("a write at {at:#x}"),
                }
            }
        }
    }

    fn reset(&mut self) {
        if !self.stuck {
            self.status = 0;
            self.accepted = 0;
            self.config_vector = 0xffff;
            for queue in &mut self.queues {
                *queue = Queue { len: 256, vector: 0xffff, ..Queue::default() };
            }
        }
    }
}

impl RegisterIo for Registers {
    fn read(&self, offset: usize, width: Width) -> u64 {
        let mut state = self.0.lock().unwrap();
        if state.gone {
            return u64::MAX >> (64 - 8 * width.bytes());
        }
        match offset {
            0..ISR => state.read_common(offset),
            ISR..CONFIG => std::mem::take(&mut state.isr).into(),
            CONFIG..NOTIFY => {
                if state.restless > 0 {
                    state.restless -= 1;
                    state.generation = state.generation.wrapping_add(1);
                    // What is read now is no good.
                    return 0;
                }
                let bytes = (0..width.bytes()).map(|i| state.config.get(offset - CONFIG + i).copied().unwrap_or(0));
                bytes.rev().fold(0, |value, byte| value << 8 | u64::from(byte))
            }
            _ => 0,
        }
    }

    fn write(&self, offset: usize, width: Width, value: u64) {
        let mut state = self.0.lock().unwrap();
        match offset {
            0..ISR => state.write_common(offset, value),
            NOTIFY.. => {
                assert_eq!(width, Width::Word);
                state.notified.push((offset - NOTIFY, value));
            }
            _ => panic!("a write at {offset:#x}"),
        }
    }
}
