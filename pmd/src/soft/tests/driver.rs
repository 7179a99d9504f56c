//! A driver in a hundred lines: one receive and one transmit queue a number, buffers that never move.
#![expect(unsafe_code, reason = "reads and writes buffers that it mapped for the device")]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use spinwake::device::Device;
use spinwake::dma::{Attachment, DescRing, DmaRegion, Domain};
use spinwake::mem::MemRequest;
use spinwake::mmio::{Bar, Reg, Rw};

use super::super::layout::{self as at, ctrl, queue, rctl, tctl};
use super::super::{Control, SoftNic};
use super::wait;

pub(super) const RING: usize = 64;
const BUFFER: usize = 2048;

pub(super) struct Driver {
    pub(super) nic: SoftNic,
    pub(super) device: Arc<dyn Device>,
    pub(super) bar: Bar,
    pub(super) queues: Vec<Queue>,
    pub(super) domain: Domain,
    attachment: Attachment,
}

pub(super) struct Queue {
    pub(super) rx: DescRing,
    pub(super) tx: DescRing,
    pub(super) buffers: DmaRegion,
    next: usize,
    sent: usize,
}

/// What a written-back descriptor said.
#[derive(Debug, Clone)]
pub(super) struct Received {
    pub(super) data: Vec<u8>,
    pub(super) low: u64,
    pub(super) high: u64,
}

impl Driver {
    /// Brings up `queues` queues: broadcast and own address, everything else as after a reset.
    pub(super) fn start(nic: SoftNic, queues: usize) -> Self {
        let device = nic.device();
        let domain = Domain::new();
        let attachment = domain.attach(&*device, 64).unwrap();
        let bar = device.bar(0).unwrap();
        let mut driver = Self { nic, device, bar, queues: Vec::new(), domain, attachment };
        driver.device.set_bus_master(true).unwrap();
        for q in 0..queues {
            driver.start_queue(q);
        }
        driver.set(at::CTRL, ctrl::SLU);
        driver.set(at::RCTL, rctl::EN | rctl::BAM | rctl::SECRC | rctl::LPE);
        driver.set(at::TCTL, tctl::EN | tctl::PSP);
        wait(|| {
            driver.get(at::STATUS) & at::status::LU != 0 || driver.nic.nic.spec.wire != super::super::Wire::Generator
        });
        driver
    }

    fn start_queue(&mut self, q: usize) {
        let rx = DescRing::new(&self.attachment, RING, None).unwrap();
        let tx = DescRing::new(&self.attachment, RING, None).unwrap();
        let buffers = self.domain.alloc(&MemRequest::new(2 * RING * BUFFER)).unwrap();
        for (ring, of) in [(&rx, at::rx as fn(usize, usize) -> usize), (&tx, at::tx)] {
            self.set(of(q, queue::DCTL), 0);
            let base = ring.iova().get();
            self.set(of(q, queue::BAL), base as u32);
            self.set(of(q, queue::BAH), (base >> 32) as u32);
            self.set(of(q, queue::LEN), (RING * 16) as u32);
            self.set(of(q, queue::HEAD), 0);
            self.set(of(q, queue::TAIL), 0);
        }
        self.set(at::rx(q, queue::SRRCTL), 2 | 1 << at::srrctl::DESCTYPE_SHIFT);
        for dctl in [at::rx(q, queue::DCTL), at::tx(q, queue::DCTL)] {
            self.set(dctl, at::DCTL_ENABLE);
            wait(|| self.get(dctl) & at::DCTL_ENABLE != 0);
        }
        let queue = Queue { rx, tx, buffers, next: 0, sent: 0 };
        (0..RING - 1).for_each(|i| queue.post(i));
        self.set(at::rx(q, queue::TAIL), (RING - 1) as u32);
        self.queues.push(queue);
    }

    pub(super) fn control(&self) -> Control {
        self.nic.control()
    }

    pub(super) fn get(&self, offset: usize) -> u32 {
        self.bar.read(Reg::<Rw>::at(offset))
    }

    pub(super) fn set(&self, offset: usize, value: u32) {
        self.bar.doorbell(Reg::<Rw>::at(offset), value);
    }

    /// The next descriptor that queue `q` received, whatever it says; its buffer is posted again.
    pub(super) fn receive(&mut self, q: usize) -> Option<Received> {
        let queue = &mut self.queues[q];
        let received = queue.take()?;
        // One stays ours: the tail names the first descriptor that the device may not fill.
        let tail = (queue.next + RING - 1) % RING;
        queue.post(tail + RING - 1);
        self.set(at::rx(q, queue::TAIL), tail as u32);
        Some(received)
    }

    /// Waits for the next descriptor of queue `q`.
    #[track_caller]
    pub(super) fn expect(&mut self, q: usize) -> Received {
        let mut got = None;
        wait(|| {
            got = self.receive(q);
            got.is_some()
        });
        got.unwrap()
    }

    /// Sends `frame` on queue `q`, with these options and (if any) a context before it; waits until it is done.
    pub(super) fn send_with(
        &mut self,
        q: usize,
        frame: &[u8],
        command: u32,
        options: u32,
        context: Option<(u32, u32)>,
    ) {
        let queue = &mut self.queues[q];
        if let Some((lens, kind)) = context {
            queue.put(u64::from(lens), u64::from(kind | 2 << 20 | 1 << 29));
        }
        let slot = queue.sent % RING;
        let iova = queue.fill(slot, frame);
        let command = command | frame.len() as u32 | 3 << 20 | 1 << 24 | 1 << 25 | 1 << 27 | 1 << 29;
        let options = options | (frame.len() as u32) << 14;
        queue.put(iova, u64::from(command) | u64::from(options) << 32);
        let tail = (queue.sent % RING) as u32;
        self.set(at::tx(q, queue::TAIL), tail);
        let queue = &self.queues[q];
        wait(|| queue.tx.load(slot, 1, Ordering::Acquire) & 1 << 32 != 0);
    }

    pub(super) fn send(&mut self, q: usize, frame: &[u8]) {
        self.send_with(q, frame, 0, 0, None);
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.device.set_bus_master(false).unwrap();
    }
}

impl Queue {
    fn post(&self, slot: usize) {
        let slot = slot % RING;
        self.rx.store(slot, 1, 0);
        self.rx.store(slot, 0, self.buffers.iova(slot * BUFFER).get());
    }

    fn take(&mut self) -> Option<Received> {
        let high = self.rx.load(self.next, 1, Ordering::Acquire);
        if high & 1 == 0 {
            return None;
        }
        let low = self.rx.load(self.next, 0, Ordering::Relaxed);
        let len = (high >> 32 & 0xFFFF) as usize;
        // SAFETY: the slot's buffer lies in the region.
        let buffer = unsafe { self.buffers.as_ptr().add(self.next * BUFFER) };
        // SAFETY: the device is done with the buffer.
        let data = unsafe { std::slice::from_raw_parts(buffer.as_ptr(), len.min(BUFFER)) };
        let received = Received { data: data.to_vec(), low, high };
        self.next = (self.next + 1) % RING;
        Some(received)
    }

    fn fill(&self, slot: usize, frame: &[u8]) -> u64 {
        assert!(frame.len() <= BUFFER);
        let offset = (RING + slot) * BUFFER;
        // SAFETY: the slot's buffer lies in the region.
        let buffer = unsafe { self.buffers.as_ptr().add(offset) };
        // SAFETY: the frame fits, and the device has not been given the buffer yet.
        unsafe { std::ptr::copy_nonoverlapping(frame.as_ptr(), buffer.as_ptr(), frame.len()) };
        self.buffers.iova(offset).get()
    }

    fn put(&mut self, low: u64, high: u64) {
        self.tx.store(self.sent, 0, low);
        self.tx.store(self.sent, 1, high);
        self.sent += 1;
    }
}
