//! Memory that is there: mapped, bound, prefaulted.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::ptr::NonNull;

use super::error::Shortage;
use super::hugepages::{available_bytes, default_hugepage, hugepages, nodes_with_memory};
use super::{MemError, MemRequest, PageSize, Sharing};
use crate::sys::mem::{Mapping, Memfd, is_out_of_pages, is_unavailable, is_unknown_size, memlock_limit};

/// Zeroed memory of one page size, aligned to it, every page present. Freed when dropped: whoever gives its address to a
/// device must quiesce the device first.
///
/// It gives out its address and never a reference. What the memory holds at any time, and who may touch it, is for the
/// user to know.
#[derive(Debug)]
pub struct Memory {
    mapping: Mapping,
    memfd: Option<Memfd>,
    page: PageSize,
    node: Option<usize>,
}

impl Memory {
    /// Grants `request`, or says why not. Where there are not enough huge pages and the request allows, it takes
    /// ordinary ones and logs a warning that says why and what mends it.
    ///
    /// # Errors
    ///
    /// See [`MemError`]; nothing stays allocated.
    pub fn alloc(request: &MemRequest) -> Result<Self, MemError> {
        match Self::attempt(request, request.page) {
            Err(refusal) if request.fallback && refusal.is_about_huge_pages() => {
                log::warn!(
                    "Using ordinary pages of 4 KiB for {} bytes, which costs TLB misses: {refusal}.",
                    request.len
                );
                Self::attempt(request, PageSize::Ordinary)
            }
            other => other,
        }
    }

    /// Where it starts: aligned to the page size.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.mapping.as_ptr()
    }

    /// Bytes: what was asked for, rounded up to whole pages.
    pub fn len(&self) -> usize {
        self.mapping.len()
    }

    /// Whether it has no bytes: never.
    pub fn is_empty(&self) -> bool {
        self.mapping.is_empty()
    }

    /// The page size in use. [`PageSize::Ordinary`] memory may still be in transparent huge pages, but none can count
    /// on it.
    pub fn page_size(&self) -> PageSize {
        self.page
    }

    /// The NUMA node that all of it comes from, if one was asked for.
    pub fn node(&self) -> Option<usize> {
        self.node
    }

    /// What another process maps to see the same memory, from offset 0, [`len`](Self::len) bytes; `None` for private
    /// memory. The descriptor's size is sealed.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.memfd.as_ref().map(Memfd::as_fd)
    }

    fn attempt(request: &MemRequest, page: PageSize) -> Result<Self, MemError> {
        let root = Path::new(MACHINE);
        if request.len == 0 {
            return Err(MemError::Empty);
        }
        let len = page.round_up(request.len).ok_or(MemError::TooLong { len: request.len, page })?;
        if let Some(node) = request.node {
            check_node(root, node)?;
        }
        if !page.is_huge() {
            check_available(root, len)?;
        }

        let refused = |(call, source)| refusal(root, request.node, len, page, call, source);
        let (mapping, memfd) = match request.sharing {
            Sharing::Private => (private(root, len, page).map_err(refused)?, None),
            Sharing::Shared => {
                let (mapping, memfd) = shared(len, page).map_err(refused)?;
                (mapping, Some(memfd))
            }
        };
        let mut memory = Self { mapping, memfd, page, node: request.node };
        // Before the first touch: a page that is there already stays where it is.
        if let Some(node) = request.node {
            memory.bind(root, node)?;
        }
        if !page.is_huge() {
            // Only advice: a kernel without transparent huge pages refuses it, and nothing is lost.
            let _ = memory.mapping.advise_huge();
        }
        if let Err(source) = memory.mapping.prefault(page.bytes()) {
            // The pages that it did get are free again when the refusal counts them.
            drop(memory);
            return Err(refused(("madvise(MADV_POPULATE_WRITE)", source)));
        }
        // Huge pages are never swapped (kernel: admin-guide/mm/hugetlbpage), and locking them would only use up the limit.
        if request.lock && !page.is_huge() {
            memory.lock()?;
        }
        Ok(memory)
    }

    fn bind(&self, root: &Path, node: usize) -> Result<(), MemError> {
        match self.mapping.bind_to_node(node) {
            // Where all memory is on the one node, binding changes nothing, so a kernel or container without it will do.
            Err(error) if is_unavailable(&error) && node == 0 && nodes_with_memory(root).len() <= 1 => Ok(()),
            other => other.map_err(|source| MemError::Bind { len: self.len(), node, source }),
        }
    }

    fn lock(&self) -> Result<(), MemError> {
        self.mapping.lock().map_err(|source| match memlock_limit() {
            Ok(limit_bytes) => MemError::Lock { len: self.len(), limit_bytes, source },
            Err(source) => {
                MemError::Call { call: "getrlimit(RLIMIT_MEMLOCK)", len: self.len(), page: self.page, source }
            }
        })
    }
}

/// The tree that sysfs and /proc are mounted in.
const MACHINE: &str = "/";

/// A failed call and why.
type Refused = (&'static str, io::Error);

fn private(root: &Path, len: usize, page: PageSize) -> Result<Mapping, Refused> {
    let mapping = match page {
        PageSize::Ordinary => Mapping::anonymous(len),
        // hugepage-rs knows the kernel's default size alone.
        huge if default_hugepage(root) == Some(huge) => Mapping::default_huge(len, huge.bytes()),
        huge => Mapping::anonymous_huge(len, huge.bytes()),
    };
    let mapping = mapping.map_err(|source| ("mmap", source))?;
    // A child that only means to run another program must not make us copy the pages that a device writes.
    mapping.keep_from_children().map_err(|source| ("madvise(MADV_DONTFORK)", source))?;
    Ok(mapping)
}

fn shared(len: usize, page: PageSize) -> Result<(Mapping, Memfd), Refused> {
    let memfd = Memfd::new(c"spinwake", len, page.is_huge().then_some(page.bytes()))?;
    let mapping = Mapping::memfd(&memfd).map_err(|source| ("mmap", source))?;
    Ok((mapping, memfd))
}

/// A node that the kernel does not list is refused; a kernel that lists none is asked with `mbind` instead.
fn check_node(root: &Path, node: usize) -> Result<(), MemError> {
    let known = nodes_with_memory(root);
    if known.is_empty() || known.contains(&node) { Ok(()) } else { Err(MemError::NoSuchNode { node, known }) }
}

/// Prefaulting more than there is would end in the out-of-memory killer, not in an error.
fn check_available(root: &Path, wanted_bytes: usize) -> Result<(), MemError> {
    match available_bytes(root) {
        Some(available_bytes) if wanted_bytes > available_bytes => {
            Err(MemError::NotEnoughMemory { wanted_bytes, available_bytes })
        }
        _ => Ok(()),
    }
}

/// What a failed call that makes or prefaults memory means.
fn refusal(
    root: &Path,
    node: Option<usize>,
    len: usize,
    page: PageSize,
    call: &'static str,
    source: io::Error,
) -> MemError {
    if page.is_huge() && is_out_of_pages(&source) {
        let wanted = len / page.bytes();
        return MemError::Exhausted(Box::new(Shortage { wanted, pool: hugepages(root, page, node), call, source }));
    }
    if page.is_huge() && is_unknown_size(&source) {
        return MemError::UnknownSize { call, page, source };
    }
    MemError::Call { call, len, page, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_requests_are_refused_by_name() {
        assert!(matches!(Memory::alloc(&MemRequest::new(0)), Err(MemError::Empty)));
        assert!(matches!(Memory::alloc(&MemRequest::new(usize::MAX)), Err(MemError::TooLong { .. })));
        let error = Memory::alloc(&MemRequest::new(1).page(PageSize::Ordinary).node(1000)).unwrap_err();
        assert!(error.to_string().contains("node 1000"), "{error}");
    }

    #[test]
    fn more_than_the_machine_has_is_an_error_and_not_the_end() {
        for sharing in [Sharing::Private, Sharing::Shared] {
            let request = MemRequest::new(1 << 46).page(PageSize::Ordinary).sharing(sharing);
            let error = Memory::alloc(&request).unwrap_err();
            assert!(matches!(error, MemError::NotEnoughMemory { .. }), "{error}");
        }
    }

    #[test]
    fn a_failed_call_is_judged_by_errno_and_page_size() {
        let root = Path::new("/nowhere/at/all");
        let judge = |page, errno| refusal(root, None, 4 << 20, page, "mmap", io::Error::from_raw_os_error(errno));
        let (einval, enomem, efault, eacces) = (22, 12, 14, 13);
        assert!(matches!(judge(PageSize::Huge2M, enomem), MemError::Exhausted(s) if s.wanted == 2));
        assert!(matches!(judge(PageSize::Huge2M, efault), MemError::Exhausted(_)));
        assert!(matches!(judge(PageSize::Huge1G, einval), MemError::UnknownSize { .. }));
        assert!(matches!(judge(PageSize::Huge2M, eacces), MemError::Call { .. }));
        assert!(matches!(judge(PageSize::Ordinary, enomem), MemError::Call { .. }));
    }
}
