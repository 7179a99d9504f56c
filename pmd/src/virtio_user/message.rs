//! What a front end says: QEMU's docs/interop/vhost-user.rst, whose names and numbers these are.

use std::fmt;
use std::os::fd::OwnedFd;

use spinwake::dma::TableRegion;

/// Requests of the front end that this one makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
#[expect(non_camel_case_types, reason = "the protocol's own names, as messages show them")]
pub(super) enum Request {
    GET_FEATURES = 1,
    SET_FEATURES = 2,
    SET_OWNER = 3,
    SET_MEM_TABLE = 5,
    SET_VRING_NUM = 8,
    SET_VRING_ADDR = 9,
    SET_VRING_BASE = 10,
    GET_VRING_BASE = 11,
    SET_VRING_KICK = 12,
    SET_VRING_CALL = 13,
    GET_PROTOCOL_FEATURES = 15,
    SET_PROTOCOL_FEATURES = 16,
    GET_QUEUE_NUM = 17,
    SET_VRING_ENABLE = 18,
    NET_SET_MTU = 20,
    GET_MAX_MEM_SLOTS = 36,
    ADD_MEM_REG = 37,
    REM_MEM_REG = 38,
    SET_STATUS = 39,
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Bits of the protocol's own features.
pub(super) mod protocol {
    /// Several pairs of queues.
    pub(crate) const MQ: u64 = 1 << 0;
    /// Any request can ask for an answer.
    pub(crate) const REPLY_ACK: u64 = 1 << 3;
    /// The front end tells the MTU.
    pub(crate) const NET_MTU: u64 = 1 << 4;
    /// Regions of memory come and go one by one.
    pub(crate) const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
    /// The front end tells the device's status.
    pub(crate) const STATUS: u64 = 1 << 16;
}

/// The status of a virtio device (VIRTIO 1.2, 2.1).
pub(super) mod status {
    pub(crate) const ACKNOWLEDGE: u64 = 1;
    pub(crate) const DRIVER: u64 = 2;
    pub(crate) const DRIVER_OK: u64 = 4;
    pub(crate) const FEATURES_OK: u64 = 8;
}

/// Bytes of the header before each message: request, flags, length of what follows.
pub(super) const HEADER_LEN: usize = 12;
/// Version of the protocol, in the lowest two bits of the flags.
pub(super) const VERSION: u32 = 1;
pub(super) const VERSION_MASK: u32 = 3;
/// An answer.
pub(super) const REPLY: u32 = 1 << 2;
/// An answer is asked for.
pub(super) const NEED_REPLY: u32 = 1 << 3;

/// Regions that SET_MEM_TABLE takes: what every back end takes (VHOST_MEMORY_BASELINE_NREGIONS).
pub(super) const TABLE_MAX: usize = 8;

/// A request with its body and the descriptors that go along.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) request: Request,
    pub(super) body: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
}

impl Message {
    pub(super) fn empty(request: Request) -> Self {
        Self { request, body: Vec::new(), fds: Vec::new() }
    }

    pub(super) fn number(request: Request, value: u64) -> Self {
        Self { body: value.to_le_bytes().into(), ..Self::empty(request) }
    }

    /// One that says something of a ring.
    pub(super) fn ring(request: Request, index: u32, value: u32) -> Self {
        Self { body: words(&[index, value]), ..Self::empty(request) }
    }

    /// One that hands over a ring's eventfd.
    pub(super) fn event(request: Request, index: u32, fd: OwnedFd) -> Self {
        Self { fds: vec![fd], ..Self::number(request, index.into()) }
    }

    /// Where a ring's parts are in this process.
    pub(super) fn addresses(index: u32, [descriptors, driver, device]: [u64; 3]) -> Self {
        let mut body = words(&[index, 0]);
        // "Used" stands before "available"; the log's address comes last and means nothing without the flag.
        [descriptors, device, driver, 0].iter().for_each(|at| body.extend(at.to_le_bytes()));
        Self { body, ..Self::empty(Request::SET_VRING_ADDR) }
    }

    /// The whole of the memory.
    pub(super) fn table(regions: &[TableRegion]) -> std::io::Result<Self> {
        let mut body = words(&[regions.len() as u32, 0]);
        regions.iter().for_each(|region| body.extend(description(region)));
        let fds = regions.iter().map(|region| region.fd().try_clone_to_owned()).collect::<Result<_, _>>()?;
        Ok(Self { body, fds, ..Self::empty(Request::SET_MEM_TABLE) })
    }

    /// One region that comes.
    pub(super) fn add(region: &TableRegion) -> std::io::Result<Self> {
        Ok(Self { fds: vec![region.fd().try_clone_to_owned()?], ..Self::single(Request::ADD_MEM_REG, region) })
    }

    /// One region that goes.
    pub(super) fn remove(region: &TableRegion) -> Self {
        Self::single(Request::REM_MEM_REG, region)
    }

    fn single(request: Request, region: &TableRegion) -> Self {
        let body = [0; 8].into_iter().chain(description(region)).collect();
        Self { body, ..Self::empty(request) }
    }

    /// All that goes over the socket.
    pub(super) fn bytes(&self, flags: u32) -> Vec<u8> {
        let mut bytes = words(&[self.request as u32, VERSION | flags, self.body.len() as u32]);
        bytes.extend(&self.body);
        bytes
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Guest address, bytes, address in this process, offset in the file.
fn description(region: &TableRegion) -> impl Iterator<Item = u8> {
    [region.iova(), region.bytes(), region.address(), 0].into_iter().flat_map(u64::to_le_bytes)
}
