//! VFIO for real: a kernel, an IOMMU and devices, in a throwaway guest whose devices these tests rebind as they like.
//!
//! They run when `SPINWAKE_TEST_TIER` contains `guest`, and need QEMU's `edu` and two `igb` behind an IOMMU.
#![expect(unsafe_code, reason = "memory that a device writes")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use spinwake::device::{Device, DeviceError, Iommu};
use spinwake::irq::{IrqKind, Vector};
use spinwake::mmio::{Bar, Reg, Ro, Rw, Width, Wo};
use spinwake::pci::{Bdf, DeviceId, PciDevice, Sysfs};
use spinwake::sys::mem::Mapping;
use spinwake::vfio::{OpenError, VfioDevice};

const EDU: DeviceId = DeviceId { vendor: 0x1234, device: 0x11e8 };
const IGB: DeviceId = DeviceId { vendor: 0x8086, device: 0x10c9 };
const NOBODY: u32 = 65534;
/// Far longer than anything takes: emulation on a busy machine is slow.
const LONG: Duration = Duration::from_secs(60);

mod dma;
mod edu;
mod guest;
mod interrupts;
mod lifecycle;
mod other;
mod refusals;
mod registers;
mod status;

use edu::*;
use guest::*;
use other::*;
