//! One connection's worth of talk with a back end: what it can do, which memory it has, which rings run.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use spinwake::dma::TableRegion;

use super::channel::{Channel, Failure};
use super::message::{Message, Request, TABLE_MAX, protocol, status};
use super::ring::Ring;
use crate::virtio::features::Features;

/// For all that is said at a beginning or at an end.
const LIMIT: Duration = Duration::from_secs(3);

/// Protocol features that this front end knows what to do with.
const KNOWN: u64 =
    protocol::MQ | protocol::REPLY_ACK | protocol::NET_MTU | protocol::CONFIGURE_MEM_SLOTS | protocol::STATUS;

/// A ring that begins: position 0, and for packed rings both wrap counters set (VIRTIO 1.2, 2.8.1; the layout of the number
/// is that of VHOST_USER_SET_VRING_BASE).
const SPLIT_START: u32 = 0;
const PACKED_START: u32 = 1 << 15 | 1 << 31;

/// A back end that is connected.
#[derive(Debug)]
pub(super) struct Session {
    channel: Channel,
    /// What it offers.
    pub(super) offered: Features,
    /// Protocol features in use.
    protocol: u64,
    /// Pairs of queues that it has.
    pub(super) pairs: u16,
    /// Regions that it takes.
    slots: usize,
    /// Regions that it has.
    sent: Vec<TableRegion>,
}

impl Session {
    /// Asks the back end at the other end of `stream` what it can do.
    pub(super) fn open(stream: UnixStream) -> Result<Self, Failure> {
        let mut channel = Channel::new(stream);
        channel.give(LIMIT);
        let offered = Features::from_bits(channel.ask(Request::GET_FEATURES)?);
        let mut session = Self { channel, offered, protocol: 0, pairs: 1, slots: TABLE_MAX, sent: Vec::new() };
        let channel = &mut session.channel;
        if offered.has(Features::PROTOCOL_FEATURES) {
            let protocol = channel.ask(Request::GET_PROTOCOL_FEATURES)? & KNOWN;
            channel.tell(&Message::number(Request::SET_PROTOCOL_FEATURES, protocol))?;
            channel.acknowledged = protocol & protocol::REPLY_ACK != 0;
            session.protocol = protocol;
        }
        channel.tell(&Message::empty(Request::SET_OWNER))?;
        if session.protocol & protocol::MQ != 0 {
            let pairs = channel.ask(Request::GET_QUEUE_NUM)?;
            session.pairs = u16::try_from(pairs).ok().filter(|pairs| *pairs > 0).ok_or_else(|| Failure::Nonsense {
                request: Request::GET_QUEUE_NUM,
                what: format!("{pairs} pairs of queues"),
            })?;
        }
        if session.protocol & protocol::CONFIGURE_MEM_SLOTS != 0 {
            let slots = channel.ask(Request::GET_MAX_MEM_SLOTS)?;
            session.slots = usize::try_from(slots).unwrap_or(usize::MAX);
        }
        Ok(session)
    }

    /// The socket, to watch it.
    pub(super) fn stream(&self) -> io::Result<UnixStream> {
        self.channel.stream().try_clone()
    }

    /// Looks whether the back end is still there, and silent.
    pub(super) fn look(&self) -> Result<(), Failure> {
        self.channel.look()
    }

    /// Takes `features` into use, and says what the back end may want to know before rings run.
    pub(super) fn begin(&mut self, features: Features, mtu: u16) -> Result<(), Failure> {
        self.channel.give(LIMIT);
        self.set_status(0)?;
        self.set_status(status::ACKNOWLEDGE | status::DRIVER)?;
        self.channel.tell(&Message::number(Request::SET_FEATURES, features.bits()))?;
        self.set_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK)?;
        if features.has(Features::MTU) && self.protocol & protocol::NET_MTU != 0 {
            self.channel.tell(&Message::number(Request::NET_SET_MTU, mtu.into()))?;
        }
        Ok(())
    }

    /// Whether it has some of our memory.
    pub(super) fn has_memory(&self) -> bool {
        !self.sent.is_empty()
    }

    /// Whether the back end takes as many regions as `table` has.
    pub(super) fn check_room(&self, table: &[TableRegion]) -> Result<(), Failure> {
        if table.len() <= self.slots {
            return Ok(());
        }
        Err(Failure::Unfit(format!(
            "takes {} regions of memory, and the program has {}; make fewer pools, or start a back end that takes more",
            self.slots,
            table.len()
        )))
    }

    /// Makes `table` what the back end has.
    pub(super) fn share(&mut self, table: &[TableRegion]) -> Result<(), Failure> {
        self.check_room(table)?;
        self.channel.give(LIMIT);
        if self.protocol & protocol::CONFIGURE_MEM_SLOTS == 0 {
            if self.sent != table && !table.is_empty() {
                self.channel.tell(&Message::table(table)?)?;
                self.sent = table.to_vec();
            }
            return Ok(());
        }
        while let Some(at) = self.sent.iter().position(|sent| !table.contains(sent)) {
            self.channel.tell(&Message::remove(&self.sent[at]))?;
            self.sent.remove(at);
        }
        for region in table {
            if !self.sent.contains(region) {
                self.channel.tell(&Message::add(region)?)?;
                self.sent.push(region.clone());
            }
        }
        Ok(())
    }

    /// Hands over `ring` from its beginning. It does not run yet.
    pub(super) fn place(&mut self, ring: &Ring) -> Result<(), Failure> {
        let channel = &mut self.channel;
        let base = if ring.is_packed() { PACKED_START } else { SPLIT_START };
        channel.tell(&Message::ring(Request::SET_VRING_NUM, ring.index, ring.len.into()))?;
        channel.tell(&Message::ring(Request::SET_VRING_BASE, ring.index, base))?;
        channel.tell(&Message::addresses(ring.index, ring.addresses()))?;
        let call = ring.call.as_fd().try_clone_to_owned()?;
        channel.tell(&Message::event(Request::SET_VRING_CALL, ring.index, call))?;
        let kick = ring.kick.as_fd().try_clone_to_owned()?;
        channel.tell(&Message::event(Request::SET_VRING_KICK, ring.index, kick))
    }

    /// Lets the rings run that were placed.
    pub(super) fn run<'a>(&mut self, rings: impl Iterator<Item = &'a Ring>) -> Result<(), Failure> {
        // Without the protocol's features a ring runs as soon as it is kicked.
        if self.offered.has(Features::PROTOCOL_FEATURES) {
            for ring in rings {
                self.channel.tell(&Message::ring(Request::SET_VRING_ENABLE, ring.index, 1))?;
            }
        }
        self.set_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK)
    }

    /// Stops ring `index`: once it is answered, the back end leaves it alone.
    pub(super) fn stop(&mut self, index: u32) -> Result<(), Failure> {
        self.channel.give(LIMIT);
        self.channel.ask_ring(Request::GET_VRING_BASE, index).map(drop)
    }

    fn set_status(&mut self, value: u64) -> Result<(), Failure> {
        if self.protocol & protocol::STATUS == 0 {
            return Ok(());
        }
        self.channel.tell(&Message::number(Request::SET_STATUS, value))
    }
}
