//! An independent back end: the `vhost` crate speaks the protocol, `virtio-queue` runs the rings. It sends every frame back.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use spinwake::sys::event::wait_readable;
use vhost::vhost_user::message::*;
use vhost::vhost_user::{BackendReqHandler, Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

pub(crate) const EVENT_IDX: u64 = 1 << 29;
pub(crate) const INDIRECT: u64 = 1 << 28;
pub(crate) const MRG_RXBUF: u64 = 1 << 15;
/// Checksums and large frames of TCP: CSUM, HOST_TSO4, HOST_TSO6.
pub(crate) const CUTS_TCP: u64 = 1 | 1 << 11 | 1 << 12;
const MQ: u64 = 1 << 22;
const PROTOCOL: u64 = 1 << 30;
const VERSION_1: u64 = 1 << 32;

/// Bytes of the header before each frame.
const HEADER: usize = 12;

/// What a back end is like.
#[derive(Debug, Clone)]
pub(crate) struct Traits {
    pub(crate) features: u64,
    pub(crate) protocol: VhostUserProtocolFeatures,
    pub(crate) pairs: u64,
    pub(crate) slots: u64,
    /// Lets whoever reads the descriptors that it is sent wait.
    pub(crate) blocks: bool,
}

impl Default for Traits {
    fn default() -> Self {
        let protocol = VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK;
        Self {
            features: VERSION_1 | PROTOCOL | MRG_RXBUF | EVENT_IDX | INDIRECT | MQ,
            protocol,
            pairs: 2,
            slots: 0,
            blocks: false,
        }
    }
}

impl Traits {
    /// Takes regions of memory one by one, so many.
    pub(crate) fn with_slots(mut self, slots: u64) -> Self {
        self.protocol |= VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
        Self { slots, ..self }
    }
}

/// What a back end has done.
#[derive(Debug, Default)]
pub(crate) struct Account {
    pub(crate) echoed: AtomicU64,
    pub(crate) regions: AtomicU64,
    /// Rings that the front end took back.
    pub(crate) stopped: AtomicU64,
}

/// A back end on a thread of its own. It goes when it is dropped.
pub(crate) struct Peer {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    pub(crate) account: Arc<Account>,
    path: Option<PathBuf>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Release);
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the back end panicked");
        }
    }
}

impl Peer {
    /// Listens at `path`, for one front end after another.
    pub(crate) fn listen(path: &Path, traits: Traits) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let mut peer = Self::start(traits, move |end| {
            while !end.load(Ordering::Acquire) {
                if wait_readable(listener.as_fd(), Duration::from_millis(5)).unwrap() {
                    return Some(listener.accept().unwrap().0);
                }
            }
            None
        });
        peer.path = Some(path.into());
        peer
    }

    /// Connects to a front end that listens at `path`.
    pub(crate) fn connect(path: &Path, traits: Traits) -> Self {
        let path = path.to_owned();
        Self::start(traits, move |end| {
            while !end.load(Ordering::Acquire) {
                if let Ok(stream) = UnixStream::connect(&path) {
                    return Some(stream);
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            None
        })
    }

    fn start(traits: Traits, call: impl Fn(&AtomicBool) -> Option<UnixStream> + Send + 'static) -> Self {
        let (end, account) = (Arc::new(AtomicBool::new(false)), Arc::new(Account::default()));
        let (ended, counted) = (end.clone(), account.clone());
        let thread = std::thread::spawn(move || {
            while let Some(stream) = call(&ended) {
                serve(stream, &traits, &ended, &counted);
            }
        });
        Self { end, thread: Some(thread), account, path: None }
    }
}

/// One connection, until either side has had enough.
fn serve(stream: UnixStream, traits: &Traits, end: &AtomicBool, account: &Arc<Account>) {
    let echo = Arc::new(Mutex::new(Echo::new(traits.clone(), account.clone())));
    let mut requests = BackendReqHandler::from_stream(stream, echo.clone());
    let socket = requests.try_clone_connection().unwrap();
    while !end.load(Ordering::Acquire) {
        let busy = echo.lock().unwrap().turn();
        let pause = if busy { Duration::ZERO } else { Duration::from_micros(50) };
        if wait_readable(socket.as_fd(), pause).unwrap() && requests.handle_request().is_err() {
            break;
        }
    }
}

#[derive(Debug)]
struct Region {
    guest: u64,
    len: u64,
    user: u64,
    file: Arc<File>,
}

#[derive(Debug, Default)]
struct Ring {
    queue: Option<Queue>,
    call: Option<File>,
    kick: Option<File>,
    is_enabled: bool,
}

#[derive(Debug)]
struct Echo {
    traits: Traits,
    account: Arc<Account>,
    features: u64,
    regions: Vec<Region>,
    memory: GuestMemoryMmap,
    rings: Vec<Ring>,
    /// What has been sent and not yet come back, by pair.
    frames: Vec<VecDeque<Vec<u8>>>,
}

impl Echo {
    fn new(traits: Traits, account: Arc<Account>) -> Self {
        let pairs = traits.pairs as usize;
        Self {
            traits,
            account,
            features: 0,
            regions: Vec::new(),
            memory: GuestMemoryMmap::new(),
            rings: (0..2 * pairs).map(|_| Ring::default()).collect(),
            frames: vec![VecDeque::new(); pairs],
        }
    }

    fn ring(&mut self, index: u32) -> Result<&mut Ring> {
        self.rings.get_mut(index as usize).ok_or(Error::InvalidParam)
    }

    fn queue(&mut self, index: u32) -> Result<&mut Queue> {
        self.ring(index)?.queue.as_mut().ok_or(Error::InvalidOperation("no length yet"))
    }

    /// Maps what the front end has shared.
    fn remap(&mut self) -> Result<()> {
        self.regions.sort_by_key(|region| region.guest);
        let ranges = self.regions.iter().map(|region| {
            let file = FileOffset::from_arc(region.file.clone(), 0);
            (GuestAddress(region.guest), region.len as usize, Some(file))
        });
        let memory = GuestMemoryMmap::from_ranges_with_files(ranges.collect::<Vec<_>>());
        self.memory = memory.map_err(|error| Error::ReqHandlerError(io::Error::other(error.to_string())))?;
        self.account.regions.store(self.regions.len() as u64, Ordering::Release);
        Ok(())
    }

    /// The guest's address of what the front end has at `user`.
    fn guest(&self, user: u64) -> Result<GuestAddress> {
        let region = self.regions.iter().find(|region| (region.user..region.user + region.len).contains(&user));
        region.map(|region| GuestAddress(user - region.user + region.guest)).ok_or(Error::InvalidParam)
    }

    /// Moves what there is to move; whether that was anything.
    fn turn(&mut self) -> bool {
        let mut busy = false;
        for pair in 0..self.frames.len() {
            busy |= self.collect(pair);
            busy |= self.deliver(pair);
        }
        busy
    }

    fn collect(&mut self, pair: usize) -> bool {
        let memory = &self.memory;
        let Some((queue, call)) = self.rings[2 * pair + 1].runs() else { return false };
        let mut done = Vec::new();
        while let Some(chain) = queue.pop_descriptor_chain(memory) {
            let (head, mut bytes) = (chain.head_index(), Vec::new());
            for part in chain {
                assert!(!part.is_write_only(), "a frame to send that is to be written");
                let from = bytes.len();
                bytes.resize(from + part.len() as usize, 0);
                memory.read_slice(&mut bytes[from..], part.addr()).unwrap();
            }
            assert!(bytes.len() > HEADER);
            self.frames[pair].push_back(bytes.split_off(HEADER));
            done.push(head);
        }
        give_back(queue, memory, call, done.into_iter().map(|head| (head, 0)))
    }

    fn deliver(&mut self, pair: usize) -> bool {
        let memory = &self.memory;
        let mergeable = self.features & MRG_RXBUF != 0;
        let Some((queue, call)) = self.rings[2 * pair].runs() else { return false };
        let mut done = Vec::new();
        'frames: while let Some(frame) = self.frames[pair].front() {
            let mut bytes = vec![0; HEADER];
            bytes.extend(frame);
            let (mut heads, mut left) = (Vec::new(), &bytes[..]);
            let mut first = None;
            while !left.is_empty() {
                let Some(chain) = queue.pop_descriptor_chain(memory) else {
                    // Not enough room for all of it: the next turn begins anew.
                    heads.iter().for_each(|_| queue.go_to_previous_position());
                    break 'frames;
                };
                let (head, mut written) = (chain.head_index(), 0);
                for part in chain {
                    assert!(part.is_write_only(), "a buffer to receive in that may not be written");
                    first.get_or_insert(part.addr());
                    let n = left.len().min(part.len() as usize);
                    memory.write_slice(&left[..n], part.addr()).unwrap();
                    left = &left[n..];
                    written += n as u32;
                }
                heads.push((head, written));
                assert!(mergeable || left.is_empty(), "a frame longer than a buffer");
            }
            let count = (heads.len() as u16).to_le_bytes();
            memory.write_slice(&count, GuestAddress(first.unwrap().0 + 10)).unwrap();
            done.extend(heads);
            self.frames[pair].pop_front();
            self.account.echoed.fetch_add(1, Ordering::Relaxed);
        }
        give_back(queue, memory, call, done.into_iter())
    }
}

impl Ring {
    fn runs(&mut self) -> Option<(&mut Queue, &mut File)> {
        if !self.is_enabled || self.kick.is_none() {
            return None;
        }
        Some((self.queue.as_mut().filter(|queue| queue.ready())?, self.call.as_mut()?))
    }
}

fn give_back(
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
    call: &mut File,
    done: impl ExactSizeIterator<Item = (u16, u32)>,
) -> bool {
    if done.len() == 0 {
        return false;
    }
    for (head, written) in done {
        queue.add_used(memory, head, written).unwrap();
    }
    if queue.needs_notification(memory).unwrap() {
        call.write_all(&1u64.to_ne_bytes()).unwrap();
    }
    // It polls, so it needs no kicks; asking for none is part of what is tried.
    queue.disable_notification(memory).unwrap();
    true
}

impl VhostUserBackendReqHandlerMut for Echo {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }
    fn get_features(&mut self) -> Result<u64> {
        Ok(self.traits.features)
    }
    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !self.traits.features != 0 {
            return Err(Error::InvalidParam);
        }
        self.features = features;
        Ok(())
    }
    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(self.traits.protocol)
    }
    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        if features & !self.traits.protocol.bits() == 0 { Ok(()) } else { Err(Error::InvalidParam) }
    }
    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.traits.pairs)
    }
    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(self.traits.slots)
    }
    fn set_mem_table(
        &mut self,
        table: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        let regions = table.iter().zip(files).map(|(region, file)| Region {
            guest: region.guest_phys_addr,
            len: region.memory_size,
            user: region.user_addr,
            file: Arc::new(file),
        });
        self.regions = regions.collect();
        self.remap().map(|()| None)
    }
    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _: Option<bool>,
    ) -> Result<Option<u64>> {
        if self.regions.len() as u64 >= self.traits.slots {
            return Err(Error::InvalidOperation("no slot left"));
        }
        self.regions.push(Region {
            guest: region.guest_phys_addr,
            len: region.memory_size,
            user: region.user_addr,
            file: Arc::new(file),
        });
        self.remap().map(|()| None)
    }
    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let before = self.regions.len();
        self.regions.retain(|known| known.guest != region.guest_phys_addr);
        assert_eq!(self.regions.len() + 1, before, "a region that is not there");
        self.remap()
    }
    fn set_vring_num(&mut self, index: u32, len: u32) -> Result<()> {
        let mut queue = Queue::new(len as u16).map_err(|_| Error::InvalidParam)?;
        queue.set_size(len as u16);
        queue.set_event_idx(self.features & EVENT_IDX != 0);
        self.ring(index)?.queue = Some(queue);
        Ok(())
    }
    fn set_vring_addr(
        &mut self,
        index: u32,
        _: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        available: u64,
        _: u64,
    ) -> Result<()> {
        let [descriptors, used, available] = [self.guest(descriptors)?, self.guest(used)?, self.guest(available)?];
        let queue = self.queue(index)?;
        let wrong = |_| Error::InvalidParam;
        queue.try_set_desc_table_address(descriptors).map_err(wrong)?;
        queue.try_set_used_ring_address(used).map_err(wrong)?;
        queue.try_set_avail_ring_address(available).map_err(wrong)?;
        queue.set_ready(true);
        Ok(())
    }
    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        self.queue(index)?.set_next_avail(base as u16);
        self.queue(index)?.set_next_used(base as u16);
        Ok(())
    }
    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let next = self.queue(index)?.next_avail();
        *self.ring(index)? = Ring::default();
        self.account.stopped.fetch_add(1, Ordering::Release);
        Ok(VhostUserVringState::new(index, next.into()))
    }
    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        if let (true, Some(fd)) = (self.traits.blocks, &fd) {
            // It is no socket, but the call is the same for all.
            UnixStream::from(fd.as_fd().try_clone_to_owned().unwrap()).set_nonblocking(false).unwrap();
        }
        self.ring(index.into())?.kick = fd;
        Ok(())
    }
    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.ring(index.into())?.call = fd;
        Ok(())
    }
    fn set_vring_enable(&mut self, index: u32, on: bool) -> Result<()> {
        self.ring(index)?.is_enabled = on;
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        Err(Error::InvalidParam)
    }
    fn reset_device(&mut self) -> Result<()> {
        Err(Error::InvalidParam)
    }
    fn set_vring_err(&mut self, _: u8, _: Option<File>) -> Result<()> {
        Err(Error::InvalidParam)
    }
    fn get_config(&mut self, _: u32, _: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        Err(Error::InvalidParam)
    }
    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        Err(Error::InvalidParam)
    }
    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        Err(Error::InvalidParam)
    }
    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidParam)
    }
    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        Err(Error::InvalidParam)
    }
    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> Result<()> {
        Err(Error::InvalidParam)
    }
    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidParam)
    }
    fn check_device_state(&mut self) -> Result<()> {
        Err(Error::InvalidParam)
    }
    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidParam)
    }
    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        Err(Error::InvalidParam)
    }
}
