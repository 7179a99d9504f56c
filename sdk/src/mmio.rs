//! Device registers: where they are, who may write them, and how an access reaches the device.
//!
//! A [`Bar`] is one memory BAR of a device. What the kernel lets us map is read and written by plain loads and stores;
//! the rest (and every register of a device that lives in software) goes through a [`RegisterIo`]. A [`Reg`] is the
//! place of one 32-bit register and carries its access mode in its type, so that a read-only register cannot be written.
//!
//! What this module refuses: an address as a number (see [`crate::dma`]), and an access outside the BAR.
#![expect(unsafe_code, reason = "volatile access to mapped device registers")]

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
#[cfg(not(target_arch = "aarch64"))]
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use crate::sys::mem::Mapping;

/// Access mode: read only.
#[derive(Debug, Clone, Copy)]
pub struct Ro;
/// Access mode: read and write.
#[derive(Debug, Clone, Copy)]
pub struct Rw;
/// Access mode: write only; what a read returns means nothing.
#[derive(Debug, Clone, Copy)]
pub struct Wo;
/// Access mode: reading clears it.
#[derive(Debug, Clone, Copy)]
pub struct Rc;

/// An access mode that may be read.
pub trait Readable {}
/// An access mode that may be written.
pub trait Writable {}
impl Readable for Ro {}
impl Readable for Rw {}
impl Readable for Rc {}
impl Writable for Rw {}
impl Writable for Wo {}

/// One 32-bit register: its byte offset in a BAR, with its access mode in the type.
pub struct Reg<A> {
    offset: usize,
    access: PhantomData<A>,
}

impl<A> Reg<A> {
    /// The register at byte `offset` of its BAR.
    ///
    /// # Panics
    ///
    /// If `offset` is not a multiple of four; in a `const`, that stops the build.
    pub const fn at(offset: usize) -> Self {
        assert!(offset.is_multiple_of(4), "a 32-bit register is 4-byte aligned");
        Self { offset, access: PhantomData }
    }

    /// Its byte offset in the BAR.
    pub const fn offset(self) -> usize {
        self.offset
    }
}

impl<A> Clone for Reg<A> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<A> Copy for Reg<A> {}
impl<A> fmt::Debug for Reg<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reg({:#06x})", self.offset)
    }
}

/// The width of one register access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Word,
    /// 32 bits.
    Dword,
    /// 64 bits.
    Qword,
}

impl Width {
    /// Bytes in one access.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Dword => 4,
            Self::Qword => 8,
        }
    }
}

/// Register access that is not a load or a store of ours: through VFIO's file descriptor, or into a software device.
///
/// An access that the device cannot answer reads as all ones, as on a PCI bus, and a write of that kind is lost.
pub trait RegisterIo: Send + Sync + fmt::Debug {
    /// Reads `width` at byte `offset`.
    fn read(&self, offset: usize, width: Width) -> u64;
    /// Writes the low `width` of `value` at byte `offset`.
    fn write(&self, offset: usize, width: Width, value: u64);
}

/// A part of a BAR that is mapped into this process.
///
/// # Invariant
///
/// `range` (byte offsets in the BAR) has the length of `mapping` and starts on a page.
#[derive(Debug)]
struct Window {
    range: Range<usize>,
    mapping: Mapping,
}

/// One memory BAR of a device.
///
/// # Invariant
///
/// `base .. base + window` is mapped device memory, page-aligned, for BAR offsets `0 .. window`, until `self` is
/// dropped; `window <= len`, and it is a multiple of four. It is zero for a BAR that has no mapping at its start.
pub struct Bar {
    base: NonNull<u8>,
    window: usize,
    len: usize,
    windows: Vec<Window>,
    io: Option<Arc<dyn RegisterIo>>,
}

// SAFETY: the mapping belongs to `self`, not to a thread, and device registers may be accessed from any thread;
// `RegisterIo` is `Send + Sync`.
unsafe impl Send for Bar {}
// SAFETY: as for `Send`; `&self` methods are single volatile accesses to memory outside of Rust's own, which the bus
// serialises.
unsafe impl Sync for Bar {}

impl fmt::Debug for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bar").field("len", &self.len).field("windows", &self.windows).field("io", &self.io).finish()
    }
}

impl Bar {
    /// A BAR of `len` bytes, of which `windows` (byte offset, mapping) are mapped and the rest is reached through `io`.
    ///
    /// # Panics
    ///
    /// If a window is not page-aligned or lies outside the BAR.
    pub fn new(len: usize, windows: Vec<(usize, Mapping)>, io: Option<Arc<dyn RegisterIo>>) -> Self {
        let windows: Vec<Window> = windows
            .into_iter()
            .map(|(start, mapping)| {
                assert!(start.is_multiple_of(4096), "a BAR window starts on a page");
                assert!(start.checked_add(mapping.len()).is_some_and(|end| end <= len), "a BAR window lies in its BAR");
                Window { range: start..start + mapping.len(), mapping }
            })
            .collect();
        let first = windows.iter().find(|w| w.range.start == 0);
        // Whole words only: a mapping may be shorter than its last page, and a register at its end must not be cut.
        let (base, window) = first.map_or((NonNull::dangling(), 0), |w| (w.mapping.as_ptr(), w.mapping.len() & !3));
        Self { base, window, len, windows, io }
    }

    /// A BAR whose every register is reached through `io`.
    pub fn trapped(len: usize, io: Arc<dyn RegisterIo>) -> Self {
        Self::new(len, Vec::new(), Some(io))
    }

    /// Bytes in the BAR.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the BAR has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Reads `reg`. Memory that this thread reads afterwards is at least as new as the register's value: what the device
    /// wrote before it is there.
    ///
    /// # Panics
    ///
    /// If `reg` lies outside the BAR.
    #[inline]
    pub fn read<A: Readable>(&self, reg: Reg<A>) -> u32 {
        match self.word(reg.offset) {
            Some(word) => {
                // SAFETY: `word` returned an aligned address inside the mapping (type invariant).
                let value = unsafe { word.read_volatile() };
                device_before_memory();
                value
            }
            None => self.read_slow(reg.offset, Width::Dword) as u32,
        }
    }

    /// Writes `reg`. Later accesses to the BAR by this thread reach the device after it. Nothing is said about memory:
    /// what the device shall find there is announced by [`doorbell`](Self::doorbell).
    ///
    /// # Panics
    ///
    /// If `reg` lies outside the BAR.
    #[inline]
    pub fn write<A: Writable>(&self, reg: Reg<A>, value: u32) {
        match self.word(reg.offset) {
            // SAFETY: `word` returned an aligned address inside the mapping (type invariant).
            Some(word) => unsafe { word.write_volatile(value) },
            None => self.write_slow(reg.offset, Width::Dword, value.into()),
        }
    }

    /// Writes `reg` after every earlier access of this thread to memory is done: the device that acts on it finds the
    /// descriptors that were written, and overwrites no buffer that is still being read.
    ///
    /// # Panics
    ///
    /// If `reg` lies outside the BAR.
    #[inline]
    pub fn doorbell<A: Writable>(&self, reg: Reg<A>, value: u32) {
        memory_before_device();
        self.write(reg, value);
    }

    /// Writes the 16-bit register at byte `offset`, with the order of [`doorbell`](Self::doorbell): for devices whose doorbells
    /// are that wide.
    ///
    /// # Panics
    ///
    /// If `offset` is odd or the register lies outside the BAR.
    #[inline]
    pub fn doorbell16(&self, offset: usize, value: u16) {
        memory_before_device();
        // `window` is even, so an even offset below it leaves room for both bytes.
        if offset < self.window && offset.is_multiple_of(2) {
            // SAFETY: `offset < window`, so the result stays inside the mapping (type invariant).
            let at = unsafe { self.base.add(offset) };
            // SAFETY: both bytes are inside the mapping, whose base is page-aligned, and the offset is even.
            unsafe { at.cast::<u16>().write_volatile(value) };
        } else {
            self.write_slow(offset, Width::Word, value.into());
        }
    }

    /// Sets the bits of `set` and clears those of `clear` in `reg`, by one read and one write.
    pub fn modify(&self, reg: Reg<Rw>, clear: u32, set: u32) {
        self.write(reg, (self.read(reg) & !clear) | set);
    }

    /// Reads `reg` until `done` holds for its value, and returns that value.
    ///
    /// # Errors
    ///
    /// [`NotReached`] with the last value read, when `limit` has passed.
    pub fn wait_for<A: Readable>(
        &self,
        reg: Reg<A>,
        limit: Duration,
        done: impl Fn(u32) -> bool,
    ) -> Result<u32, NotReached> {
        let deadline = Instant::now() + limit;
        loop {
            // The clock is read first: a thread that was descheduled for the whole limit still looks once more.
            let late = Instant::now() >= deadline;
            let value = self.read(reg);
            if done(value) {
                return Ok(value);
            }
            if late {
                return Err(NotReached { offset: reg.offset, last: value, limit });
            }
            std::thread::sleep(Duration::from_micros(20));
        }
    }

    /// Reads `width` at byte `offset`, for devices whose registers are not all 32 bits wide.
    ///
    /// # Panics
    ///
    /// If the access is not aligned to its width or lies outside the BAR.
    pub fn read_at(&self, offset: usize, width: Width) -> u64 {
        self.check(offset, width);
        let value = match self.mapped(offset, width) {
            Some(at) => match width {
                // SAFETY: `mapped` returned an address inside the mapping, aligned to the width.
                Width::Byte => unsafe { at.read_volatile() }.into(),
                // SAFETY: as above.
                Width::Word => unsafe { at.cast::<u16>().read_volatile() }.into(),
                // SAFETY: as above.
                Width::Dword => unsafe { at.cast::<u32>().read_volatile() }.into(),
                // SAFETY: as above.
                Width::Qword => unsafe { at.cast::<u64>().read_volatile() },
            },
            None => self.io.as_ref().map_or(u64::MAX, |io| io.read(offset, width)),
        };
        device_before_memory();
        value
    }

    /// Writes the low `width` of `value` at byte `offset`, for devices whose registers are not all 32 bits wide.
    ///
    /// # Panics
    ///
    /// If the access is not aligned to its width or lies outside the BAR.
    pub fn write_at(&self, offset: usize, width: Width, value: u64) {
        self.check(offset, width);
        match self.mapped(offset, width) {
            Some(at) => match width {
                // SAFETY: `mapped` returned an address inside the mapping, aligned to the width.
                Width::Byte => unsafe { at.write_volatile(value as u8) },
                // SAFETY: as above.
                Width::Word => unsafe { at.cast::<u16>().write_volatile(value as u16) },
                // SAFETY: as above.
                Width::Dword => unsafe { at.cast::<u32>().write_volatile(value as u32) },
                // SAFETY: as above.
                Width::Qword => unsafe { at.cast::<u64>().write_volatile(value) },
            },
            None => {
                if let Some(io) = &self.io {
                    io.write(offset, width, value);
                }
            }
        }
    }

    /// The address of the 32-bit word at byte `offset`, if the mapping at the BAR's start holds it.
    #[inline(always)]
    fn word(&self, offset: usize) -> Option<NonNull<u32>> {
        // Both `offset` and `window` are multiples of four, so the whole word is inside.
        // SAFETY: `offset < window`, so the result stays inside the mapping (type invariant).
        (offset < self.window).then(|| unsafe { self.base.add(offset) }.cast())
    }

    /// The address of byte `offset` in whichever window holds it.
    fn mapped(&self, offset: usize, width: Width) -> Option<NonNull<u8>> {
        let window = self.windows.iter().find(|w| w.range.start <= offset && offset + width.bytes() <= w.range.end)?;
        // SAFETY: the offset is inside this window, whose mapping has the window's length.
        Some(unsafe { window.mapping.as_ptr().add(offset - window.range.start) })
    }

    fn check(&self, offset: usize, width: Width) {
        let bytes = width.bytes();
        assert!(
            offset.is_multiple_of(bytes) && offset.checked_add(bytes).is_some_and(|end| end <= self.len),
            "register access of {bytes} bytes at {offset:#x} in a BAR of {:#x} bytes",
            self.len
        );
    }

    #[cold]
    #[inline(never)]
    fn read_slow(&self, offset: usize, width: Width) -> u64 {
        self.read_at(offset, width)
    }

    #[cold]
    #[inline(never)]
    fn write_slow(&self, offset: usize, width: Width, value: u64) {
        self.write_at(offset, width, value);
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("how memory and device registers are kept in order is known for x86-64 and AArch64 only");

/// Keeps what this thread did to memory ahead of its next access to a device's register.
///
/// x86-64 does stores in order, those to uncached memory too, and none before an earlier load (Intel SDM volume 3,
/// "Memory Ordering in P6 and More Recent Processor Families"): only the compiler must be kept from moving them. That holds
/// neither for a write-combining mapping of a BAR nor for non-temporal stores; there are none here.
///
/// On AArch64 a release fence is `dmb ish`, which binds observers in the inner shareable domain only, and a device's
/// registers count as outer shareable (Arm ARM, DDI 0487, "Device memory"). Linux (arch/arm64/include/asm/barrier.h,
/// `dma_wmb`) takes the outer shareable barrier for stores; here earlier loads are to stay ahead as well.
#[inline(always)]
fn memory_before_device() {
    #[cfg(not(target_arch = "aarch64"))]
    fence(Ordering::Release);
    // SAFETY: a barrier; it touches no register and no memory. It is not marked `nomem`, so the compiler keeps order too.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!("dmb osh", options(nostack, preserves_flags));
    }
}

/// Keeps what this thread does to memory from now on behind its last read of a device's register. The counterpart of
/// [`memory_before_device`], with the same grounds: nothing but the compiler to be told on x86-64, `dmb oshld` on AArch64.
#[inline(always)]
fn device_before_memory() {
    #[cfg(not(target_arch = "aarch64"))]
    fence(Ordering::Acquire);
    // SAFETY: as in `memory_before_device`.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!("dmb oshld", options(nostack, preserves_flags));
    }
}

/// A register did not reach the awaited state in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("register {offset:#06x} still reads {last:#010x} after {limit:?}")]
pub struct NotReached {
    /// Byte offset of the register in its BAR.
    pub offset: usize,
    /// What it read last.
    pub last: u32,
    /// How long it was waited for.
    pub limit: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Debug, Default)]
    struct Log(Mutex<Vec<(usize, u64)>>);

    impl RegisterIo for Log {
        fn read(&self, offset: usize, _: Width) -> u64 {
            offset as u64
        }
        fn write(&self, offset: usize, _: Width, value: u64) {
            self.0.lock().unwrap().push((offset, value));
        }
    }

    #[test]
    fn a_trapped_bar_goes_through_its_io() {
        let log = Arc::new(Log::default());
        let bar = Bar::trapped(0x100, log.clone());
        assert_eq!(bar.read(Reg::<Ro>::at(0x10)), 0x10);
        bar.modify(Reg::at(0x20), 0, 1);
        assert_eq!(*log.0.lock().unwrap(), [(0x20, 0x21)]);
    }

    #[test]
    fn a_doorbell_of_sixteen_bits_takes_the_same_roads() {
        let log = Arc::new(Log::default());
        let bar = Bar::new(0x3000, vec![(0, Mapping::anonymous(4096).unwrap())], Some(log.clone()));
        bar.doorbell16(0xffe, 7);
        assert_eq!(bar.read_at(0xffe, Width::Word), 7);
        bar.doorbell16(0x1002, 9);
        assert_eq!(*log.0.lock().unwrap(), [(0x1002, 9)]);
        let outside = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| bar.doorbell16(0x3000, 1)));
        let odd = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| bar.doorbell16(0x11, 1)));
        assert!(outside.is_err() && odd.is_err());
    }

    #[test]
    fn a_window_serves_its_part_and_io_the_rest() {
        let log = Arc::new(Log::default());
        let mapping = Mapping::anonymous(4096).unwrap();
        let bar = Bar::new(0x3000, vec![(0x1000, mapping)], Some(log.clone()));
        bar.write(Reg::<Rw>::at(0x1ffc), 7);
        assert_eq!(bar.read(Reg::<Rw>::at(0x1ffc)), 7);
        bar.write(Reg::<Rw>::at(0x2000), 9);
        assert_eq!(*log.0.lock().unwrap(), [(0x2000, 9)]);
    }

    #[test]
    fn a_register_that_the_mapping_cuts_goes_through_io() {
        let log = Arc::new(Log::default());
        let mapping = Mapping::anonymous(0x12).unwrap();
        let bar = Bar::new(0x100, vec![(0, mapping)], Some(log.clone()));
        bar.write(Reg::<Rw>::at(0xc), 1);
        bar.write(Reg::<Rw>::at(0x10), 2);
        assert_eq!(bar.read(Reg::<Rw>::at(0xc)), 1);
        assert_eq!(*log.0.lock().unwrap(), [(0x10, 2)]);
    }

    #[test]
    #[should_panic(expected = "in a BAR of 0x100 bytes")]
    fn an_access_outside_the_bar_is_refused() {
        Bar::trapped(0x100, Arc::new(Log::default())).read(Reg::<Ro>::at(0x100));
    }

    #[test]
    fn a_wait_that_fails_tells_what_it_saw() {
        let bar = Bar::trapped(0x100, Arc::new(Log::default()));
        let error = bar.wait_for(Reg::<Ro>::at(0x8), Duration::ZERO, |v| v == 0).unwrap_err();
        assert_eq!(error.last, 8);
    }
}
