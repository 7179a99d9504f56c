//! The edu device (QEMU's docs/specs/edu.rst).

use super::*;

pub(crate) mod edu_regs {
    use super::{Reg, Ro, Rw, Wo};
    pub(crate) const ID: Reg<Ro> = Reg::at(0x00);
    pub(crate) const LIVENESS: Reg<Rw> = Reg::at(0x04);
    pub(crate) const FACTORIAL: Reg<Rw> = Reg::at(0x08);
    pub(crate) const STATUS: Reg<Rw> = Reg::at(0x20);
    pub(crate) const IRQ_STATUS: Reg<Ro> = Reg::at(0x24);
    pub(crate) const IRQ_RAISE: Reg<Wo> = Reg::at(0x60);
    pub(crate) const IRQ_ACK: Reg<Wo> = Reg::at(0x64);
    pub(crate) const DMA_SRC: Reg<Rw> = Reg::at(0x80);
    pub(crate) const DMA_DST: Reg<Rw> = Reg::at(0x88);
    pub(crate) const DMA_COUNT: Reg<Rw> = Reg::at(0x90);
    pub(crate) const DMA_CMD: Reg<Rw> = Reg::at(0x98);
}

pub(crate) const EDU_ID: u32 = 0x0100_00ed;
/// The device's own buffer, as its DMA engine addresses it.
pub(crate) const EDU_BUFFER: u32 = 0x40000;

pub(crate) fn edu_dma(bar: &Bar, src: u32, dst: u32, to_memory: bool) {
    bar.write(edu_regs::DMA_SRC, src);
    bar.write(edu_regs::DMA_DST, dst);
    bar.write(edu_regs::DMA_COUNT, 4096);
    bar.doorbell(edu_regs::DMA_CMD, 1 | u32::from(to_memory) << 1);
    bar.wait_for(edu_regs::DMA_CMD, LONG, |cmd| cmd & 1 == 0).unwrap();
}

/// A page that a device may write at any time.
pub(crate) struct Page(Mapping);

impl Page {
    pub(crate) fn new() -> Self {
        Self(Mapping::anonymous(4096).unwrap())
    }

    pub(crate) fn bytes(&self) -> &[AtomicU8] {
        // SAFETY: the mapping is 4096 bytes and lives as long as `self`; atomics may change under us.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().as_ptr().cast::<AtomicU8>(), 4096) }
    }

    pub(crate) fn fill(&self, seed: u8) {
        for (i, byte) in self.bytes().iter().enumerate() {
            byte.store(seed.wrapping_add(i as u8), Ordering::Release);
        }
    }

    pub(crate) fn holds(&self, seed: u8) -> bool {
        self.bytes().iter().enumerate().all(|(i, byte)| byte.load(Ordering::Acquire) == seed.wrapping_add(i as u8))
    }

    pub(crate) fn map(&self, iommu: &Arc<dyn Iommu>, iova: u32) -> Result<(), DeviceError> {
        let memory = spinwake::device::Mapping { va: self.0.as_ptr().as_ptr(), len: 4096, iova: iova.into(), fd: None };
        // SAFETY: every test unmaps, or closes its devices, before it drops the page, and touches it by atomics only.
        unsafe { iommu.map(memory) }
    }
}
