//! Memory as the kernel sees it: page sizes from smaps, the fallback and its warning, sharing.
//!
//! Tests named `host_` need root and huge pages set aside; they run when SPINWAKE_TEST_TIER lists `host`.
#![expect(unsafe_code, reason = "reads and writes memory through the addresses under test")]
#![expect(clippy::unwrap_used, reason = "the helpers of tests, too, fail by panicking")]

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use spinwake::mem::{MemError, MemRequest, Memory, PageSize, Sharing, all_hugepages, hugepages};
use spinwake::sys::mem::Mapping;

const MIB: usize = 1 << 20;

#[test]
fn ordinary_memory_is_zeroed_present_and_writable() {
    let memory = Memory::alloc(&MemRequest::new(3 * MIB + 1).page(PageSize::Ordinary)).unwrap();
    assert_eq!((memory.page_size(), memory.len()), (PageSize::Ordinary, 3 * MIB + 4096));
    assert!(memory.fd().is_none());
    assert_eq!(kib(&memory, "KernelPageSize"), 4);
    assert!(kib(&memory, "Rss") * 1024 >= memory.len(), "prefaulted");
    check_zeroed_aligned_writable(&memory);
}

#[test]
fn binding_to_the_first_node_works_without_privileges() {
    let memory = Memory::alloc(&MemRequest::new(MIB).page(PageSize::Ordinary).node(0)).unwrap();
    assert_eq!(memory.node(), Some(0));
    check_zeroed_aligned_writable(&memory);
}

#[test]
fn shared_memory_is_seen_through_its_descriptor() {
    let memory = Memory::alloc(&MemRequest::new(MIB).page(PageSize::Ordinary).sharing(Sharing::Shared)).unwrap();
    check_shared(&memory);
    check_zeroed_aligned_writable(&memory);
}

#[test]
fn without_huge_pages_ordinary_ones_are_taken_with_a_warning() {
    let size = PageSize::Huge1G;
    if hugepages(Path::new("/"), size, None).available().is_some_and(|pages| pages > 0) {
        println!("skipped: this machine has huge pages of {size} to give");
        return;
    }
    capture_warnings();
    // A length of its own, to find its warning among those of other tests.
    let len = 5 * MIB + 77;
    for sharing in [Sharing::Private, Sharing::Shared] {
        let memory = Memory::alloc(&MemRequest::new(len).page(size).sharing(sharing)).unwrap();
        assert_eq!(memory.page_size(), PageSize::Ordinary);
        assert_eq!(memory.fd().is_some(), sharing == Sharing::Shared);
        assert!(memory.len() < 6 * MIB);
        check_zeroed_aligned_writable(&memory);
    }
    let warnings = WARNINGS.lock().unwrap();
    let ours: Vec<_> = warnings.iter().filter(|text| text.contains(&len.to_string())).collect();
    assert_eq!(ours.len(), 2, "{warnings:?}");
    assert!(ours.iter().all(|text| text.contains("4 KiB") && text.contains("1 GiB")), "{ours:?}");
}

#[test]
fn without_fallback_a_shortage_is_refused_with_the_numbers_and_the_mend() {
    // 1 TiB: no machine that runs this has it set aside, and promising it fails before any page is taken.
    let wanted = MemRequest::new(1 << 40).fallback(false);
    for sharing in [Sharing::Private, Sharing::Shared] {
        let error = Memory::alloc(&wanted.clone().sharing(sharing)).unwrap_err();
        let text = error.to_string();
        let MemError::Exhausted(shortage) = error else { panic!("{text}") };
        assert_eq!((shortage.wanted, shortage.pool.size), (524_288, PageSize::Huge2M));
        for part in ["of 2 MiB on any NUMA node", "wanted 524288", "free ", "configured ", "mmap: ", "echo "] {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
    }
    let text = Memory::alloc(&wanted.node(0)).unwrap_err().to_string();
    assert!(text.contains("of 2 MiB on NUMA node 0"), "{text}");
}

#[test]
fn locking_works_or_names_the_limit() {
    match Memory::alloc(&MemRequest::new(16 * MIB).page(PageSize::Ordinary).lock(true)) {
        Ok(memory) => assert!(kib(&memory, "Locked") >= 16 * 1024),
        Err(error @ MemError::Lock { .. }) => assert!(error.to_string().contains("RLIMIT_MEMLOCK"), "{error}"),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn host_private_2_mib_pages() {
    let Some(_pool) = host_tier() else { return };
    for request in [MemRequest::new(3 * MIB), MemRequest::new(3 * MIB).node(0).lock(true)] {
        let memory = Memory::alloc(&request.fallback(false)).unwrap();
        assert_eq!((memory.page_size(), memory.len()), (PageSize::Huge2M, 4 * MIB));
        assert_eq!((kib(&memory, "KernelPageSize"), kib(&memory, "MMUPageSize")), (2048, 2048));
        assert!(kib(&memory, "Private_Hugetlb") >= 4096, "prefaulted");
        check_zeroed_aligned_writable(&memory);
    }
}

#[test]
fn host_shared_2_mib_pages() {
    let Some(_pool) = host_tier() else { return };
    for request in [MemRequest::new(4 * MIB), MemRequest::new(4 * MIB).node(0)] {
        let memory = Memory::alloc(&request.fallback(false).sharing(Sharing::Shared)).unwrap();
        assert_eq!((memory.page_size(), memory.len()), (PageSize::Huge2M, 4 * MIB));
        assert_eq!((kib(&memory, "KernelPageSize"), kib(&memory, "MMUPageSize")), (2048, 2048));
        // One process maps it, so the kernel counts it as private to that process.
        assert_eq!(kib(&memory, "Private_Hugetlb") + kib(&memory, "Shared_Hugetlb"), 4096, "prefaulted");
        check_shared(&memory);
        check_zeroed_aligned_writable(&memory);
    }
}

#[test]
fn host_a_1_gib_page() {
    let Some(_pool) = host_tier() else { return };
    if hugepages(Path::new("/"), PageSize::Huge1G, None).available().unwrap_or(0) == 0 {
        println!("skipped: no huge page of 1 GiB is set aside");
        return;
    }
    for sharing in [Sharing::Private, Sharing::Shared] {
        let request = MemRequest::new(1).page(PageSize::Huge1G).fallback(false).sharing(sharing);
        let memory = Memory::alloc(&request).unwrap();
        assert_eq!((memory.page_size(), memory.len()), (PageSize::Huge1G, 1 << 30));
        assert_eq!(kib(&memory, "KernelPageSize"), 1 << 20);
        check_zeroed_aligned_writable(&memory);
    }
}

#[test]
fn host_a_node_with_too_few_pages_is_an_error_and_not_a_signal() {
    let Some(_pool) = host_tier() else { return };
    let root = Path::new("/");
    let free = |node| hugepages(root, PageSize::Huge2M, node).available().unwrap_or(0);
    // mmap promises pages of the machine; that they are not on the node comes out when they are touched.
    let Some((node, pages)) = all_hugepages(root)
        .into_iter()
        .filter(|pool| pool.size == PageSize::Huge2M)
        .find_map(|pool| Some((pool.node?, pool.available()? + 1)))
        .filter(|&(_, pages)| pages <= free(None))
    else {
        println!("skipped: needs huge pages on two NUMA nodes");
        return;
    };
    for sharing in [Sharing::Private, Sharing::Shared] {
        let request = MemRequest::new(pages * 2 * MIB).fallback(false).node(node).sharing(sharing);
        let text = Memory::alloc(&request).unwrap_err().to_string();
        for part in
            [format!("on NUMA node {node}: wanted {pages}, free {}", pages - 1), format!("/node{node}/hugepages/")]
        {
            assert!(text.contains(&part), "no {part:?} in {text}");
        }
        assert_eq!(free(Some(node)), pages - 1, "all that was taken went back");
    }
}

#[test]
fn host_memory_goes_back_to_the_pool() {
    let Some(_pool) = host_tier() else { return };
    let pool = hugepages(Path::new("/"), PageSize::Huge2M, None).configured.unwrap();
    // More in all than the pool has: it would run dry if a round kept a page.
    let pages = 4;
    for _ in 0..=pool / pages {
        for sharing in [Sharing::Private, Sharing::Shared] {
            let request = MemRequest::new(pages * 2 * MIB).fallback(false).sharing(sharing);
            drop(Memory::alloc(&request).unwrap());
        }
    }
}

/// The right to use the machine's huge pages, one test at a time, if this run may use them. Says so when not, and insists
/// that there are some when it may.
fn host_tier() -> Option<MutexGuard<'static, ()>> {
    static POOL: Mutex<()> = Mutex::new(());
    let tiers = std::env::var("SPINWAKE_TEST_TIER").unwrap_or_default();
    if !tiers.contains("host") {
        println!("skipped: needs the host tier");
        return None;
    }
    let guard = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    let pool = hugepages(Path::new("/"), PageSize::Huge2M, None);
    assert!(
        pool.available().unwrap_or(0) >= 16,
        "the host tier needs 16 huge pages of 2 MiB, but there are: {pool}; \
         run `echo 64 > /proc/sys/vm/nr_hugepages` as root"
    );
    Some(guard)
}

static WARNINGS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Collects what is logged from now on.
fn capture_warnings() {
    struct Collector;
    impl log::Log for Collector {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }
        fn log(&self, record: &log::Record<'_>) {
            WARNINGS.lock().unwrap().push(record.args().to_string());
        }
        fn flush(&self) {}
    }
    log::set_logger(&Collector).unwrap();
    log::set_max_level(log::LevelFilter::Warn);
}

/// A value in KiB from the entry of /proc/self/smaps that holds the memory's first byte.
fn kib(memory: &Memory, key: &str) -> usize {
    let start = memory.as_ptr().as_ptr().addr();
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    for line in smaps.lines() {
        let first = line.split_whitespace().next().unwrap();
        if let Some((from, to)) = first.split_once('-') {
            let address = |text| usize::from_str_radix(text, 16).unwrap();
            inside = (address(from)..address(to)).contains(&start);
        } else if inside && first.strip_suffix(':') == Some(key) {
            return line.split_whitespace().nth(1).unwrap().parse().unwrap();
        }
    }
    panic!("smaps has no {key} for {start:#x}");
}

fn check_zeroed_aligned_writable(memory: &Memory) {
    let base = memory.as_ptr().as_ptr();
    assert!(base.addr().is_multiple_of(memory.page_size().bytes()));
    for offset in (0..memory.len()).step_by(512) {
        assert_eq!(read(base, offset), 0, "at {offset}");
    }
    let last = memory.len() - 1;
    write(base, last, 0x5a);
    assert_eq!(read(base, last), 0x5a);
}

/// Maps the memory a second time, as another process would, and sees writes both ways. Leaves it zeroed.
fn check_shared(memory: &Memory) {
    let other = Mapping::shared(memory.fd().unwrap(), 0, memory.len()).unwrap();
    let (ours, theirs) = (memory.as_ptr().as_ptr(), other.as_ptr().as_ptr());
    assert_ne!(ours, theirs);
    for (from, to, offset) in [(ours, theirs, 0), (theirs, ours, memory.len() - 1)] {
        write(from, offset, 0xa5);
        assert_eq!(read(to, offset), 0xa5);
        write(from, offset, 0);
    }
}

fn read(base: *mut u8, offset: usize) -> u8 {
    // SAFETY: callers pass an offset within the mapping at `base`.
    let at = unsafe { base.add(offset) };
    // SAFETY: mapped memory that only this test uses.
    unsafe { at.read_volatile() }
}

fn write(base: *mut u8, offset: usize, value: u8) {
    // SAFETY: callers pass an offset within the mapping at `base`.
    let at = unsafe { base.add(offset) };
    // SAFETY: mapped memory that only this test uses.
    unsafe { at.write_volatile(value) }
}
