//! From the protocol's messages, as the `vhost` crate reads them, to what they mean for a session.
//!
//! The crate checks that a body has its length, reserved bits are zero, ring addresses are aligned for a split ring, sums do
//! not wrap, and descriptors are there. It does not check that features were offered, that a ring exists or is stopped, or what
//! a descriptor is; the session does.

use std::fs::File;
use std::os::fd::OwnedFd;

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight, VhostUserLog,
    VhostUserMemoryRegion, VhostUserShMemConfig, VhostUserSharedMsg, VhostUserSingleMemoryRegion,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut, VhostUserProtocolFeatures};

use super::session::{MEMORY_SLOTS, NewRegion, Offence, Session};
use super::vring::Addresses;

/// The protocol's features that we have. `REPLY_ACK` the crate adds itself.
const PROTOCOL: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::LOG_SHMFD)
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::MTU)
    .union(VhostUserProtocolFeatures::RESET_DEVICE)
    .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    .union(VhostUserProtocolFeatures::STATUS);

/// A session as the crate talks to it.
#[derive(Debug)]
pub(super) struct Messages {
    pub(super) session: Session,
    /// The protocol's features that the peer has chosen.
    pub(super) protocol: VhostUserProtocolFeatures,
    /// What was wrong with the last message.
    offence: Option<Offence>,
}

impl Messages {
    pub(super) fn new(session: Session) -> Self {
        Self { session, protocol: VhostUserProtocolFeatures::empty(), offence: None }
    }

    /// What was wrong with the last message, if a session said it.
    pub(super) fn take_offence(&mut self) -> Option<Offence> {
        self.offence.take()
    }

    /// The crate answers a peer that asked with a failure, and then gives up.
    fn told<T>(&mut self, done: std::result::Result<T, Offence>) -> Result<T> {
        done.map_err(|offence| {
            self.offence = Some(offence);
            Error::InvalidParam
        })
    }

    fn refuse<T>(&mut self, what: &str) -> Result<T> {
        self.told(Err(Offence::new(format_args!("{what}, which was not offered"))))
    }
}

/// A descriptor of our own, closed on exec, which the one that the crate received is not.
fn own(file: File) -> std::result::Result<OwnedFd, Offence> {
    Ok(file.try_clone().map_err(|error| Offence::new(format_args!("its descriptor cannot be kept: {error}")))?.into())
}

fn new_region(region: &VhostUserMemoryRegion, file: File) -> std::result::Result<NewRegion, Offence> {
    Ok(NewRegion {
        guest: region.guest_phys_addr,
        user: region.user_addr,
        len: region.memory_size,
        offset: region.mmap_offset,
        fd: own(file)?,
    })
}

type Bases = Option<Vec<u64>>;

impl VhostUserBackendReqHandlerMut for Messages {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.session.stop_all();
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.session.reset();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.session.offer.features.bits())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        let done = self.session.set_features(features);
        self.told(done)
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Result<Bases> {
        let regions = regions.iter().zip(files).map(|(region, file)| new_region(region, file)).collect();
        let done = Result::and_then(self.told(regions), |regions| {
            let done = self.session.set_memory(regions);
            self.told(done)
        });
        done.map(|()| None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let done = self.session.set_len(index, num);
        self.told(done)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptors: u64,
        device: u64,
        driver: u64,
        log: u64,
    ) -> Result<()> {
        let log = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG).then_some(log);
        let done = self.session.set_addresses(index, Addresses { descriptors, driver, device, log });
        self.told(done)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let done = self.session.set_base(index, base);
        self.told(done)
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let base = self.session.stop(index);
        Ok(VhostUserVringState::new(index, self.told(base)?))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let done = file.map(own).transpose().and_then(|fd| self.session.set_kick(index, fd));
        self.told(done)
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let done = file.map(own).transpose().and_then(|fd| self.session.set_call(index, fd));
        self.told(done)
    }

    fn set_vring_err(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let done = file.map(own).transpose().and_then(|fd| self.session.set_error(index, fd));
        self.told(done)
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(PROTOCOL)
    }

    fn set_protocol_features(&mut self, bits: u64) -> Result<()> {
        let beyond = bits & !PROTOCOL.bits();
        if beyond != 0 {
            return self.refuse(&format!("SET_PROTOCOL_FEATURES with {beyond:#x}"));
        }
        self.protocol = VhostUserProtocolFeatures::from_bits_truncate(bits);
        Ok(())
    }

    /// Pairs, as QEMU and DPDK count them for a network device.
    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.session.offer.pairs.into())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let done = self.session.enable(index, enable);
        self.told(done)
    }

    fn get_config(&mut self, _offset: u32, _size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        self.refuse("GET_CONFIG")
    }

    fn set_config(&mut self, _offset: u32, _bytes: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        self.refuse("SET_CONFIG")
    }

    fn set_gpu_socket(&mut self, _gpu: GpuBackend) -> Result<()> {
        self.refuse("GPU_SET_SOCKET")
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        self.refuse("GET_SHARED_OBJECT")
    }

    fn get_inflight_fd(&mut self, _inflight: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        self.refuse("GET_INFLIGHT_FD")
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        self.refuse("SET_INFLIGHT_FD")
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MEMORY_SLOTS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<u64>> {
        let done = new_region(region, file).and_then(|region| self.session.add_region(region));
        self.told(done).map(|()| None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let done = self.session.remove_region(region.guest_phys_addr, region.user_addr, region.memory_size);
        self.told(done)
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        self.refuse("SET_DEVICE_STATE_FD")
    }

    fn check_device_state(&mut self) -> Result<()> {
        self.refuse("CHECK_DEVICE_STATE")
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        self.refuse("GET_SHMEM_CONFIG")
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        let done = own(file).and_then(|fd| self.session.set_log(&fd, log.mmap_offset, log.mmap_size));
        self.told(done)
    }
}
