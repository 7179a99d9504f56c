//! `soft:`, the embedded NIC: a model of the Intel 82576 in this process, for the unmodified `igb` driver to run on with no
//! hardware, no root and no hugepages.
//!
//! ```text
//! igb driver ──registers──▶ trap ─┐                           ┌─ generator and sink (built in)
//!     │  ▲                        ├─ Nic ── fabric's thread ──┼─ cable to another soft port (wire=NAME)
//!     │  └──────eventfds── irq ◀──┘             │             └─ loop (wire=loop)
//!     └─rings and buffers──▶ SoftIommu ◀──DMA───┘
//! ```
//!
//! It decides as the datasheet says, not as the driver expects: filters, RSS, checksums, write-backs and interrupts are
//! all really done. On top it makes faults on purpose ([`Fault`]), counts them, and keeps an account of every frame, so
//! that a test can tell what went wrong by design from what a driver did.
//!
//! Not modelled: legacy and header-split descriptors, segmentation offload, virtual functions, flow control, wake-up.

mod clock;
mod closed_loop;
mod control;
mod device;
mod fabric;
mod fault;
mod generator;
mod irq;
mod layout;
mod memory;
mod nic;
mod packet;
mod registers;
mod rss;
mod rx;
mod schedule;
mod sink;
mod spec;
mod station;
mod trap;
mod tx;
mod wire;

use std::io;
use std::sync::Arc;

use hdrhistogram::Histogram;
use spinwake::device::Device;
use spinwake::pci::DeviceId;
use spinwake::port::{GeneratorReport, PortSpec, SpecError};

pub use closed_loop::{After, ClosedLoop, LoopCounts};
pub use control::{Control, ModelCounts};
pub use fault::{Fault, FaultCounts};
pub use spec::{Gap, KEYS, Rate};

use device::SoftDevice;
use fabric::PlugError;
use nic::Nic;
use spec::{SoftSpec, Wire};

/// A soft NIC could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The port spec is wrong.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The cable has two ends, and both are in use.
    #[error("port spec \"{spec}\": two ports are on wire \"{wire}\" already; name another wire")]
    WireTaken {
        /// The spec.
        spec: String,
        /// The wire.
        wire: String,
    },
    /// The system gave no thread or no file descriptor.
    #[error("port spec \"{spec}\": {call} failed: {source}; raise the limit (`ulimit -n`, `ulimit -u`)")]
    System {
        /// The spec.
        spec: String,
        /// What failed.
        call: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// Makes the soft NIC that `spec` describes.
///
/// # Errors
///
/// When a key or value is not possible, or both ends of the named wire are in use.
pub fn open(spec: &PortSpec) -> Result<SoftNic, OpenError> {
    let parsed = SoftSpec::parse(spec)?;
    let nic = fabric::plug(parsed).map_err(|error| match error {
        PlugError::CableTaken(wire) => OpenError::WireTaken { spec: spec.to_string(), wire },
        PlugError::Os(call, source) => OpenError::System { spec: spec.to_string(), call, source },
    })?;
    Ok(SoftNic { device: Arc::new(SoftDevice::new(nic.clone())), nic })
}

/// What the soft NIC that `spec` describes would be, and how many queues it would have each way. Makes nothing.
pub(crate) fn check(spec: &PortSpec) -> Result<(DeviceId, u16), SpecError> {
    SoftSpec::parse(spec).map(|parsed| (device::ID, parsed.queues))
}

/// An opened soft NIC. It lives until this and every handle to its device are dropped.
#[derive(Debug)]
pub struct SoftNic {
    nic: Arc<Nic>,
    device: Arc<SoftDevice>,
}

impl SoftNic {
    /// The device, for a driver.
    pub fn device(&self) -> Arc<dyn Device> {
        self.device.clone()
    }

    /// How many queues it has each way; a driver may use no more.
    pub fn queues(&self) -> u16 {
        self.nic.spec.queues
    }

    /// The handle for tests.
    pub fn control(&self) -> Control {
        Control::new(self.nic.clone())
    }

    /// What its generator has sent and its sink has seen, for as long as the caller likes to ask; `None` when it is cabled
    /// and has neither.
    pub fn reporter(&self) -> Option<Reporter> {
        let idle = self.nic.spec.wire != Wire::Generator && self.nic.spec.rate == Rate::Silent;
        (!idle).then(|| Reporter { nic: self.nic.clone() })
    }
}

/// Tells what a soft NIC's generator and sink have counted.
#[derive(Debug, Clone)]
pub struct Reporter {
    nic: Arc<Nic>,
}

impl Reporter {
    /// The counts now. Copies some hundred kilobytes, and the NIC waits meanwhile.
    pub fn report(&self) -> GeneratorReport {
        self.nic.account.report()
    }

    /// Puts `other` in the place of the response times that were measured so far, which it becomes: for short windows, since
    /// the NIC need not wait for that.
    pub fn exchange_response_times(&self, other: &mut Histogram<u64>) {
        self.nic.account.exchange_response_times(other);
    }
}

#[cfg(test)]
mod tests;
