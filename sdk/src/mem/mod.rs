//! Memory for buffers and rings: huge pages, on one NUMA node, present before first use.
//!
//! ```text
//! MemRequest ──▶ map ──▶ bind to node ──▶ prefault ──▶ lock ──▶ Memory
//!                 └───────────┴── not enough huge pages ──▶ ordinary pages, with a warning, or MemError
//! ```
//!
//! [`Memory`] owns what it hands out as a raw pointer, never as a reference: a device may be writing it. It knows
//! nothing of addresses that devices see; that is [`crate::dma`].
//!
//! Memory private to the process comes from hugepage-rs in the kernel's default huge page size, and from `mmap` in
//! other sizes; memory for another process comes from `memfd_create`. All of it is zeroed.
//!
//! [`PeerMemory`] is the other way round: what another process shares with this one, whose every address is hostile.
//!
//! It refuses to find out late. A huge page that is missing, on the wanted node or under a cgroup's limit, is an error
//! of [`Memory::alloc`] and not a SIGBUS on the data path (from Linux 5.14; an older kernel cannot tell in advance).

mod dirty;
mod error;
mod hugepages;
mod memory;
mod page;
mod peer;
mod request;

pub use dirty::DirtyLog;
pub use error::{MemError, Shortage};
pub use hugepages::{HugepageCount, all_hugepages, default_hugepage, hugepages};
pub use memory::Memory;
pub use page::{PageSize, ParsePageSizeError};
pub use peer::{PeerArea, PeerError, PeerMemory, PeerRegion, PeerSlice, PeerView};
pub use request::{MemRequest, Sharing};
