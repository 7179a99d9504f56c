//! A pool's memory: buffers that devices reach, headers that they do not, and how a frame finds them.
#![expect(unsafe_code, reason = "shared ownership of a pool's memory by its frames")]

use std::cell::UnsafeCell;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicPtr, Ordering};

#[cfg(loom)]
use loom::sync::atomic::AtomicU32;
#[cfg(not(loom))]
use std::sync::atomic::AtomicU32;

use super::layout::Layout;
use super::returns::{Fate, NONE, Returns};
use super::{Frame, Segmentation};
use crate::dma::DmaRegion;

/// Pools that may exist in one process at a time.
pub(super) const MAX_POOLS: usize = 1024;

/// What only some frames have. Valid where the frame's flags say so.
#[derive(Debug, Default)]
pub(super) struct Extra {
    /// The rest of a chain.
    pub(super) next: Option<Frame>,
    /// VLAN tag: priority, DEI, id.
    pub(super) vlan: u16,
    /// Receive-side-scaling hash.
    pub(super) rss_hash: u32,
    /// Bytes before the network header, for checksum requests.
    pub(super) l2_len: u8,
    /// Bytes of network header, for checksum requests.
    pub(super) l3_len: u16,
    /// How it shall be cut.
    pub(super) segmentation: Option<Segmentation>,
}

/// A buffer's header.
///
/// # Invariant
///
/// `extra` is accessed only by the owner of the buffer's frame; `link` only while the buffer is on its way home.
#[repr(align(64))]
struct Header {
    extra: UnsafeCell<Extra>,
    link: AtomicU32,
}

/// The memory of one pool.
///
/// # Invariant
///
/// `region` holds `headers.len()` buffers, placed by `layout`. It lives while its pool or any of its frames does:
/// whoever gives up the last of them (see [`Returns`]) frees it.
pub(super) struct Home {
    pub(super) region: DmaRegion,
    layout: Layout,
    headers: Box<[Header]>,
    returns: Returns,
    id: u16,
}

// SAFETY: `extra` belongs to the frame's owner (invariant of `Header`), everything else is shared by atomics or constant.
unsafe impl Sync for Home {}

/// The last holder frees it, on whichever thread: it is `Send` by its parts, and must stay so.
const _: () = {
    const fn sent<T: Send>() {}
    sent::<Home>();
};

impl fmt::Debug for Home {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Home").field("id", &self.id).field("frames", &self.headers.len()).finish_non_exhaustive()
    }
}

/// Every living pool's home by its id: how 16 bit in a frame find it.
static HOMES: [AtomicPtr<Home>; MAX_POOLS] = [const { AtomicPtr::new(std::ptr::null_mut()) }; MAX_POOLS];
/// Serialises the choice of ids.
static IDS: Mutex<()> = Mutex::new(());

impl Home {
    /// A home for `count` buffers in `region`; `None` when the process has [`MAX_POOLS`] pools already.
    pub(super) fn create(region: DmaRegion, count: usize) -> Option<NonNull<Self>> {
        let layout = Layout::of(region.page_size());
        assert!(layout.bytes(count) <= region.len() && count < (u32::MAX - 1) as usize);
        let _ids = IDS.lock().unwrap_or_else(PoisonError::into_inner);
        let id = HOMES.iter().position(|home| home.load(Ordering::Relaxed).is_null())?;
        let headers = (0..count).map(|_| Header { extra: UnsafeCell::default(), link: AtomicU32::new(NONE) }).collect();
        let home = NonNull::from(Box::leak(Box::new(Self {
            region,
            layout,
            headers,
            returns: Returns::new(),
            id: id as u16,
        })));
        HOMES[id].store(home.as_ptr(), Ordering::Release);
        Some(home)
    }

    pub(super) fn id(&self) -> u16 {
        self.id
    }

    /// The home that has `id`; it lives while its pool or one of its frames does.
    pub(super) fn of(id: u16) -> NonNull<Self> {
        let home = HOMES[usize::from(id) % MAX_POOLS].load(Ordering::Acquire);
        NonNull::new(home).expect("a pool's home outlives its frames (type invariant)")
    }

    /// Where buffer `index` starts.
    pub(super) fn buffer(&self, index: usize) -> NonNull<u8> {
        assert!(index < self.headers.len());
        // SAFETY: the region holds that many buffers (type invariant).
        unsafe { self.region.as_ptr().add(self.layout.offset(index)) }
    }

    fn index_of(&self, buffer: NonNull<u8>) -> usize {
        self.layout.index(buffer.as_ptr() as usize - self.region.as_ptr().as_ptr() as usize)
    }

    /// The extra data of the frame in `buffer`.
    pub(super) fn extra(&self, buffer: NonNull<u8>) -> *mut Extra {
        self.headers[self.index_of(buffer)].extra.get()
    }

    /// Gives `buffer` back from anywhere.
    ///
    /// # Safety
    ///
    /// `buffer` is one of `home`'s, the caller owned its frame, and uses neither afterwards.
    pub(super) unsafe fn give_back(home: NonNull<Self>, buffer: NonNull<u8>) {
        // SAFETY: alive while the caller's frame is, and after that unless `push` says otherwise.
        let this = unsafe { home.as_ref() };
        let index = this.index_of(buffer);
        if this.returns.push(index as u32, &this.headers[index].link) == Fate::Last {
            // SAFETY: nobody else holds anything of this home.
            unsafe { Self::free(home) };
        }
    }

    /// Moves every returned buffer to `free`. Only the pool's owner may call it.
    pub(super) fn collect(&self, free: &mut Vec<NonNull<u8>>) {
        free.extend(self.walk(self.returns.take_all()).map(|index| self.buffer(index)));
    }

    /// The pool goes, with `missing` buffers not home.
    ///
    /// # Safety
    ///
    /// Only the pool's owner may call it, once, and must not use the home afterwards.
    pub(super) unsafe fn abandon(home: NonNull<Self>, missing: usize) {
        // SAFETY: alive while the pool is, and after that unless `settle` says otherwise.
        let this = unsafe { home.as_ref() };
        let returned = this.walk(this.returns.abandon(missing as u32)).count();
        if this.returns.settle(returned as u32 + 1) == Fate::Last {
            // SAFETY: nobody else holds anything of this home.
            unsafe { Self::free(home) };
        }
    }

    /// The numbers of the buffers in a list taken from `returns`.
    fn walk(&self, first: u32) -> impl Iterator<Item = usize> {
        let some = |at: u32| (at != NONE).then_some(at as usize);
        std::iter::successors(some(first), move |&at| some(self.headers[at].link.load(Ordering::Relaxed)))
    }

    /// # Safety
    ///
    /// Nobody else holds the pool or a frame of this home.
    unsafe fn free(home: NonNull<Self>) {
        // SAFETY: alive until the end of this function.
        let id = unsafe { home.as_ref() }.id;
        HOMES[usize::from(id)].store(std::ptr::null_mut(), Ordering::Release);
        // SAFETY: made by `Box::leak` in `create`, and freed once: the caller is the last holder.
        drop(unsafe { Box::from_raw(home.as_ptr()) });
    }
}
