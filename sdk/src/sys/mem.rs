//! mmap, memfd and what belongs to them: huge pages, NUMA binding, prefaulting, locking.
#![expect(unsafe_code, reason = "system calls")]

use std::alloc::Layout;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

/// Memory mapped into this process, unmapped when dropped.
///
/// # Invariant
///
/// `ptr .. ptr + len` is one mapping that belongs to `self` alone, made by what `origin` says.
#[derive(Debug)]
pub struct Mapping {
    ptr: NonNull<u8>,
    len: usize,
    origin: Origin,
}

/// Who made a mapping, and so how it is given back and whether its pages are plain memory.
#[derive(Debug, Clone, Copy)]
enum Origin {
    /// mmap without a file.
    Anonymous,
    /// mmap of a [`Memfd`].
    Memfd,
    /// mmap of any file: perhaps a device's registers.
    File,
    /// hugepage-rs, with the layout its `dealloc` wants back.
    HugepageRs(Layout),
}

// SAFETY: a mapping belongs to the process, not to a thread.
unsafe impl Send for Mapping {}
// SAFETY: `&Mapping` gives out only its address and length.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `len` bytes of zeroed, private, ordinary memory.
    pub fn anonymous(len: usize) -> io::Result<Self> {
        Self::map(len, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0, Origin::Anonymous)
    }

    /// `len` bytes of zeroed, private memory in huge pages of `page_bytes`, a power of two that divides `len`. The
    /// pages are promised, not yet taken.
    pub fn anonymous_huge(len: usize, page_bytes: usize) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB;
        let size_flag = (page_bytes.trailing_zeros() as i32) << libc::MAP_HUGE_SHIFT;
        Self::map(len, flags | size_flag, -1, 0, Origin::Anonymous)
    }

    /// As [`anonymous_huge`](Self::anonymous_huge) through hugepage-rs. `page_bytes` must be the kernel's default
    /// huge page size, the only one that crate knows; a kernel that names none makes it panic.
    pub fn default_huge(len: usize, page_bytes: usize) -> io::Result<Self> {
        let layout = Layout::from_size_align(len, page_bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
        if len == 0 || !len.is_multiple_of(page_bytes) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: the layout has a size other than zero.
        let ptr = unsafe { hugepage_rs::alloc(layout) };
        // Null means that mmap, its only call, failed just now: errno is still that of mmap.
        let ptr = NonNull::new(ptr).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { ptr, len, origin: Origin::HugepageRs(layout) })
    }

    /// `len` bytes of `fd` from byte `offset`, shared, readable and writable.
    pub fn shared(fd: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<Self> {
        Self::map(len, libc::MAP_SHARED, fd.as_raw_fd(), offset, Origin::File)
    }

    /// The same, but no page is taken before it is touched, even in a process that locks all it maps from now on
    /// (`mlockall`): of a file that another process made, there may be more than this machine has.
    pub fn shared_untouched(fd: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<Self> {
        // The kernel takes no page for memory without access, nor when shared memory gets it (mm/mprotect.c).
        let mapping = Self::map_for(libc::PROT_NONE, len, libc::MAP_SHARED, fd.as_raw_fd(), offset, Origin::File)?;
        // SAFETY: the range is ours (type invariant), and unlocking changes no content.
        checked(unsafe { libc::munlock(mapping.ptr.as_ptr().cast(), len) }.into())?;
        // SAFETY: the range is ours (type invariant), and nobody has been given it yet.
        let rc = unsafe { libc::mprotect(mapping.ptr.as_ptr().cast(), len, libc::PROT_READ | libc::PROT_WRITE) };
        checked(rc.into())?;
        Ok(mapping)
    }

    /// All of `memfd`, shared, readable and writable.
    pub fn memfd(memfd: &Memfd) -> io::Result<Self> {
        Self::map(memfd.len, libc::MAP_SHARED, memfd.fd.as_raw_fd(), 0, Origin::Memfd)
    }

    fn map(len: usize, flags: i32, fd: i32, offset: u64, origin: Origin) -> io::Result<Self> {
        Self::map_for(libc::PROT_READ | libc::PROT_WRITE, len, flags, fd, offset, origin)
    }

    fn map_for(prot: i32, len: usize, flags: i32, fd: i32, offset: u64, origin: Origin) -> io::Result<Self> {
        let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: the kernel chooses the address, so no existing mapping is touched.
        let ptr = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, fd, offset) };
        if ptr == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let ptr = NonNull::new(ptr.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { ptr, len, origin })
    }

    /// Where it starts.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.ptr
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes. The kernel maps nothing of that size, so never.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Lets pages that are not there yet come from NUMA node `node` alone (`mbind`, MPOL_BIND).
    pub fn bind_to_node(&self, node: usize) -> io::Result<()> {
        let word_bits = libc::c_ulong::BITS as usize;
        // More nodes than any kernel is built for (MAX_NUMNODES is 1024 at most).
        if node >= 1024 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut mask: [libc::c_ulong; 1024 / libc::c_ulong::BITS as usize] = [0; _];
        mask[node / word_bits] = 1 << (node % word_bits);
        // The kernel takes one off `maxnode` (get_nodes in mm/mempolicy.c) and ignores zero bits beyond its own nodes.
        let max_node = 1024 + 1usize;
        // SAFETY: the range is ours (type invariant), the mask lives through the call, and no page moves.
        let rc = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                self.ptr.as_ptr(),
                self.len,
                libc::c_long::from(libc::MPOL_BIND),
                mask.as_ptr(),
                max_node,
                0usize,
            )
        };
        checked(rc)
    }

    /// Asks for transparent huge pages where the kernel has them.
    pub fn advise_huge(&self) -> io::Result<()> {
        self.advise(libc::MADV_HUGEPAGE)
    }

    /// Keeps the mapping out of children that `fork` makes, so that no write of ours ever copies a page.
    pub fn keep_from_children(&self) -> io::Result<()> {
        self.advise(libc::MADV_DONTFORK)
    }

    /// Takes every page now, so that no later touch can fault; `page_bytes` is the size of the pages in use. Only for
    /// fresh memory that nobody has been given yet.
    ///
    /// A page that cannot be had is an error on Linux 5.14 and later (MADV_POPULATE_WRITE). An older kernel has no
    /// such call: there each page is touched, and a missing one kills the process with SIGBUS.
    ///
    /// # Errors
    ///
    /// EFAULT or ENOMEM when a page cannot be had; `Unsupported` for a file that may be a device's registers.
    pub fn prefault(&mut self, page_bytes: usize) -> io::Result<()> {
        if matches!(self.origin, Origin::File) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        match self.advise(libc::MADV_POPULATE_WRITE) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => self.touch(page_bytes),
            other => other,
        }
    }

    fn touch(&mut self, page_bytes: usize) -> io::Result<()> {
        for offset in (0..self.len).step_by(page_bytes) {
            // SAFETY: `offset < len`, so it is inside the mapping (type invariant).
            let byte = unsafe { self.ptr.add(offset) };
            // SAFETY: plain writable memory (not `Origin::File`), still zero, and nobody else's (`&mut self`).
            unsafe { byte.write_volatile(0) };
        }
        Ok(())
    }

    /// Keeps every page in memory (`mlock`).
    pub fn lock(&self) -> io::Result<()> {
        // SAFETY: the range is ours (type invariant), and locking changes no content.
        checked(unsafe { libc::mlock(self.ptr.as_ptr().cast(), self.len) }.into())
    }

    /// For advice that neither drops nor changes content.
    fn advise(&self, advice: i32) -> io::Result<()> {
        // SAFETY: the range is ours (type invariant), and the callers' advice leaves its content as it is.
        checked(unsafe { libc::madvise(self.ptr.as_ptr().cast(), self.len, advice) }.into())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        match self.origin {
            // SAFETY: it came from hugepage-rs with this layout (type invariant); nobody uses it after `drop`.
            Origin::HugepageRs(layout) => unsafe { hugepage_rs::dealloc(self.ptr.as_ptr(), layout) },
            Origin::Anonymous | Origin::Memfd | Origin::File => {
                // SAFETY: the range is ours (type invariant) and nobody uses it after `drop`.
                unsafe { libc::munmap(self.ptr.as_ptr().cast(), self.len) };
            }
        }
    }
}

/// Memory behind a file descriptor, for another process to map. Its size is sealed: nobody who is given the descriptor
/// can shrink it under us, which would make a touch of ours a SIGBUS.
#[derive(Debug)]
pub struct Memfd {
    fd: OwnedFd,
    len: usize,
}

impl Memfd {
    /// `len` zeroed bytes; in huge pages if `huge_page_bytes` says of which size, a power of two that divides `len`.
    /// No page is taken or promised before the memory is mapped. `name` shows in `/proc/PID/maps`.
    ///
    /// # Errors
    ///
    /// The call that failed, and why.
    pub fn new(name: &CStr, len: usize, huge_page_bytes: Option<usize>) -> Result<Self, (&'static str, io::Error)> {
        let in_call = |call| move |source| (call, source);
        let size = libc::off_t::try_from(len).map_err(|_| ("ftruncate", io::ErrorKind::FileTooLarge.into()))?;
        let huge = huge_page_bytes
            .map_or(0, |bytes| libc::MFD_HUGETLB | bytes.trailing_zeros() << libc::MAP_HUGE_SHIFT as u32);
        // SAFETY: `name` is a C string that lives through the call.
        let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | huge) };
        checked(fd.into()).map_err(in_call("memfd_create"))?;
        // SAFETY: `fd` was just created and belongs to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: no pointers; the result is checked.
        checked(unsafe { libc::ftruncate(fd.as_raw_fd(), size) }.into()).map_err(in_call("ftruncate"))?;
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        // SAFETY: no pointers; the result is checked.
        let rc = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) };
        checked(rc.into()).map_err(in_call("fcntl(F_ADD_SEALS)"))?;
        Ok(Self { fd, len })
    }

    /// The descriptor, to hand to whoever shall map the memory too.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.fd)
    }
}

/// Whether somebody who has the file may make it shorter: it is not sealed against that, or of a kind that knows no seals.
pub fn can_shrink(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: no pointers; the result is checked.
    let seals = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) };
    seals < 0 || seals & libc::F_SEAL_SHRINK == 0
}

/// How many bytes this process may lock in memory (RLIMIT_MEMLOCK, the soft limit); `None` when it is unlimited.
pub fn memlock_limit() -> io::Result<Option<u64>> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is ours and lives through the call.
    checked(unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) }.into())?;
    Ok((limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur))
}

/// Whether a failed call that makes, maps or prefaults memory says that there are not enough pages: ENOMEM, ENOSPC, or
/// the EFAULT of MADV_POPULATE_WRITE, which stands for a SIGBUS that did not happen.
pub fn is_out_of_pages(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::ENOSPC | libc::EFAULT))
}

/// Whether a failed call that makes huge memory says that the kernel has no pages of that size: EINVAL from mmap, ENODEV
/// from memfd_create, ENOSYS from a kernel without hugetlbfs.
pub fn is_unknown_size(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENODEV | libc::ENOSYS))
}

/// Whether a failed `mbind` says that the call is not there: a kernel without NUMA (ENOSYS), or a container that
/// filters the call (EPERM).
pub fn is_unavailable(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM))
}

fn checked(rc: libc::c_long) -> io::Result<()> {
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 4096;

    fn byte(mapping: &Mapping, offset: usize) -> u8 {
        assert!(offset < mapping.len());
        // SAFETY: inside the mapping, as just asserted.
        let at = unsafe { mapping.as_ptr().add(offset) };
        // SAFETY: mapped readable memory.
        unsafe { at.read_volatile() }
    }

    fn set_byte(mapping: &Mapping, offset: usize, value: u8) {
        assert!(offset < mapping.len());
        // SAFETY: inside the mapping, as just asserted.
        let at = unsafe { mapping.as_ptr().add(offset) };
        // SAFETY: mapped writable memory of this test.
        unsafe { at.write_volatile(value) }
    }

    #[test]
    fn a_memfd_mapped_twice_is_the_same_memory() {
        let memfd = Memfd::new(c"twice", 4 * PAGE, None).unwrap();
        let one = Mapping::memfd(&memfd).unwrap();
        let other = Mapping::shared(memfd.as_fd(), 0, 4 * PAGE).unwrap();
        assert_ne!(one.as_ptr(), other.as_ptr());
        set_byte(&one, 3 * PAGE + 5, 0xa5);
        assert_eq!(byte(&other, 3 * PAGE + 5), 0xa5);
    }

    #[test]
    fn a_memfd_cannot_be_resized_by_whoever_holds_it() {
        let memfd = Memfd::new(c"sealed", 2 * PAGE, None).unwrap();
        let file = std::fs::File::from(memfd.as_fd().try_clone_to_owned().unwrap());
        assert!(file.set_len(PAGE as u64).is_err());
        assert!(file.set_len(3 * PAGE as u64).is_err());
    }

    #[test]
    fn touching_reaches_every_page_and_leaves_them_zero() {
        let memfd = Memfd::new(c"touched", 8 * PAGE, None).unwrap();
        let mut mapping = Mapping::memfd(&memfd).unwrap();
        mapping.touch(PAGE).unwrap();
        assert_eq!((0..8 * PAGE).filter(|&at| byte(&mapping, at) != 0).count(), 0);
        let file = std::fs::File::from(memfd.as_fd().try_clone_to_owned().unwrap());
        // Blocks of 512 bytes: only touched pages have any.
        assert_eq!(std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap()), 8 * PAGE as u64 / 512);
    }

    #[test]
    fn prefault_refuses_files_that_may_be_registers() {
        let memfd = Memfd::new(c"registers", PAGE, None).unwrap();
        let mut mapping = Mapping::shared(memfd.as_fd(), 0, PAGE).unwrap();
        assert_eq!(mapping.prefault(PAGE).unwrap_err().kind(), io::ErrorKind::Unsupported);
    }

    #[test]
    fn a_huge_page_that_cannot_be_had_is_an_error_and_not_a_signal() {
        let pool = "/sys/kernel/mm/hugepages/hugepages-1048576kB/";
        let read = |name: &str| std::fs::read_to_string(format!("{pool}{name}")).ok()?.trim().parse::<u64>().ok();
        if read("free_hugepages") != Some(0) || read("nr_overcommit_hugepages") != Some(0) {
            eprintln!("skipped: needs a kernel with an empty pool of 1 GiB pages");
            return;
        }
        // MAP_NORESERVE: the mapping is made without pages, and only the fault finds out.
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_NORESERVE;
        let flags = flags | 30 << libc::MAP_HUGE_SHIFT;
        let mut mapping = Mapping::map(1 << 30, flags, -1, 0, Origin::Anonymous).unwrap();
        let error = mapping.prefault(1 << 30).unwrap_err();
        assert!(is_out_of_pages(&error), "{error}");
    }

    #[test]
    fn an_impossible_node_is_refused() {
        let mapping = Mapping::anonymous(PAGE).unwrap();
        assert_eq!(mapping.bind_to_node(1023).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(mapping.bind_to_node(usize::MAX).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn default_huge_refuses_parts_of_pages() {
        assert_eq!(Mapping::default_huge(0, 1 << 21).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(Mapping::default_huge(PAGE, 1 << 21).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
