//! What somebody wants of memory.

use super::PageSize;

/// Who may see the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sharing {
    /// This process, and devices that it gives access. Children made by `fork` do not have it.
    Private,
    /// Whoever is handed the file descriptor, too.
    Shared,
}

/// A wish for memory, granted by [`Memory::alloc`](super::Memory::alloc).
///
/// ```
/// use spinwake::mem::{MemRequest, Memory, PageSize};
///
/// let memory = Memory::alloc(&MemRequest::new(100_000).page(PageSize::Ordinary))?;
/// assert_eq!(memory.len(), 102_400);
/// # Ok::<(), spinwake::mem::MemError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemRequest {
    /// Bytes; rounded up to whole pages.
    pub len: usize,
    /// The page size to use.
    pub page: PageSize,
    /// Whether ordinary pages, with a warning, will do when there are not enough huge ones.
    pub fallback: bool,
    /// The NUMA node that all of it must come from; `None` for any.
    pub node: Option<usize>,
    /// Who may see it.
    pub sharing: Sharing,
    /// Whether to lock it in memory. Huge pages are never swapped and need no lock, and what VFIO maps for a device is
    /// pinned anyway.
    pub lock: bool,
}

impl MemRequest {
    /// `len` bytes in 2 MiB pages, or ordinary ones when there are not enough; of any node, private, not locked.
    pub fn new(len: usize) -> Self {
        Self { len, page: PageSize::Huge2M, fallback: true, node: None, sharing: Sharing::Private, lock: false }
    }

    /// Wants pages of this size.
    pub fn page(mut self, page: PageSize) -> Self {
        self.page = page;
        self
    }

    /// Whether ordinary pages will do.
    pub fn fallback(mut self, fallback: bool) -> Self {
        self.fallback = fallback;
        self
    }

    /// Wants it all from NUMA node `node`, or from any for `None`.
    pub fn node(mut self, node: impl Into<Option<usize>>) -> Self {
        self.node = node.into();
        self
    }

    /// Says who may see it.
    pub fn sharing(mut self, sharing: Sharing) -> Self {
        self.sharing = sharing;
        self
    }

    /// Whether to lock it in memory.
    pub fn lock(mut self, lock: bool) -> Self {
        self.lock = lock;
        self
    }
}
