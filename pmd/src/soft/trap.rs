//! What a register access does: the driver's thread comes in here, in place of a load or store to a mapped BAR.

use std::sync::atomic::Ordering;
use std::time::Duration;

use spinwake::mmio::{RegisterIo, Width};

use super::clock::now_ns;
use super::fault::{Fault, Rng};
use super::layout::{self as at, ctrl, icr, queue, status};
use super::nic::{Nic, Order, pending};

/// How long an access waits for the fabric at most.
const TURN_LIMIT: Duration = Duration::from_secs(5);

impl RegisterIo for Nic {
    fn read(&self, offset: usize, width: Width) -> u64 {
        if !self.answers() {
            return u64::MAX >> (64 - 8 * width.bytes());
        }
        let word = |offset: usize| u64::from(self.read_word(at::canonical(offset)));
        match width {
            Width::Dword => word(offset),
            Width::Qword => word(offset) | word(offset + 4) << 32,
            // Narrow reads do happen on PCI; the device answers with the whole register, the bus picks the lanes.
            Width::Byte => word(offset & !3) >> (8 * (offset & 3)) & 0xFF,
            Width::Word => word(offset & !3) >> (8 * (offset & 3)) & 0xFFFF,
        }
    }

    fn write(&self, offset: usize, width: Width, value: u64) {
        if !self.answers() {
            return;
        }
        match width {
            Width::Dword => self.write_word(at::canonical(offset), value as u32),
            Width::Qword => {
                self.write_word(at::canonical(offset), value as u32);
                self.write_word(at::canonical(offset + 4), (value >> 32) as u32);
            }
            // The device takes 32-bit writes only (8.1.1).
            Width::Byte | Width::Word => self.count_unknown(),
        }
    }
}

impl Nic {
    fn read_word(&self, offset: usize) -> u32 {
        self.dawdle(offset);
        match offset {
            at::STATUS => self.status(),
            at::CTRL_DUP => self.registers.get(at::CTRL),
            at::SWSM => self.registers.fetch_or(at::SWSM, 1),
            _ if at::STATISTICS.contains(&offset) => self.registers.take_statistic(offset),
            at::RX_QUEUES..0xC400 if offset % 0x40 == queue::RQDPC => self.registers.take(offset),
            _ => {
                if let Some(value) = self.irq.read(offset, &self.faults) {
                    return value;
                }
                if !is_modelled(offset) {
                    self.count_unknown();
                }
                let value = self.registers.get(offset);
                let is_queue = matches!(offset, at::RX_QUEUES..0xC400 | at::TX_QUEUES..0xE400);
                if is_queue && offset % 0x40 == queue::DCTL { value & !at::DCTL_WISH } else { value }
            }
        }
    }

    fn write_word(&self, offset: usize, value: u32) {
        self.dawdle(offset);
        match offset {
            at::RX_QUEUES..0xC400 => self.write_queue(offset, value, at::RX_QUEUES, 16),
            at::TX_QUEUES..0xE400 => self.write_queue(offset, value, at::TX_QUEUES, 0),
            at::CTRL | at::CTRL_DUP => self.write_ctrl(value),
            // Read only.
            at::STATUS | at::STATISTICS_START..at::STATISTICS_END => {}
            at::EERD => self.registers.set(at::EERD, self.read_eeprom(value)),
            at::MDIC => self.write_mdic(value),
            at::EECD => self.registers.set(at::EECD, value | at::EECD_READY),
            at::EIMS | at::IMS => {
                self.race();
                let due_ns = self.irq.due_ns();
                self.irq.write(offset, value, &self.faults);
                self.keep_time(due_ns);
                if self.looping.load(Ordering::Relaxed) {
                    self.armed_ns.store(now_ns(), Ordering::Relaxed);
                    self.notify(pending::ARMED);
                }
            }
            _ => {
                let due_ns = self.irq.due_ns();
                if self.irq.write(offset, value, &self.faults) {
                    return self.keep_time(due_ns);
                }
                if !is_modelled(offset) {
                    self.count_unknown();
                }
                self.registers.set(offset, value);
                match offset {
                    at::RCTL | at::TCTL => self.notify(pending::CONFIG),
                    at::RSSRK..0x5CA8 => self.notify(pending::KEY),
                    _ => {}
                }
            }
        }
    }

    /// A write to a queue's register. Tails are doorbells; DCTL's enable bit is only a wish until the fabric grants it.
    fn write_queue(&self, offset: usize, value: u32, base: usize, shift: usize) {
        let q = (offset - base) / 0x40;
        match offset % 0x40 {
            queue::TAIL => {
                if base == at::TX_QUEUES {
                    self.note_rung(q);
                }
                self.registers.set(offset, value & 0xFFFF);
                if base == at::RX_QUEUES {
                    self.lie_done(q, value & 0xFFFF);
                }
                self.notify(1 << (shift + q));
            }
            queue::DCTL => {
                let wish = if value & at::DCTL_ENABLE != 0 { at::DCTL_WISH } else { 0 };
                let kept = value & !(at::DCTL_ENABLE | at::DCTL_WISH);
                self.registers.update(offset, |old| kept | wish | old & at::DCTL_ENABLE);
                self.notify(pending::CONFIG);
                if (wish != 0) != (self.registers.get(offset) & at::DCTL_ENABLE != 0) {
                    // A driver gives the device a deadline, and a device is never descheduled, but the fabric may be: so
                    // its turn is waited for here, where no driver's clock runs.
                    let ticket = self.order(Order::Barrier);
                    self.await_order(ticket, TURN_LIMIT);
                }
            }
            // 128-byte units (8.10.5, 8.10.7).
            queue::BAL => self.registers.set(offset, value & !0x7F),
            queue::LEN => self.registers.set(offset, value & 0xF_FF80),
            _ => self.registers.set(offset, value),
        }
    }

    fn write_ctrl(&self, value: u32) {
        let was_up = self.link_up();
        let reset = value & (ctrl::RST | ctrl::DEV_RST) != 0;
        self.registers.set(at::CTRL, value & !(ctrl::PHY_RST | ctrl::DEV_RST) | if reset { ctrl::RST } else { 0 });
        if value & ctrl::GIO_MASTER_DISABLE != 0 {
            self.memory.wait_idle();
        }
        if reset {
            self.notify(pending::RESET);
        } else if self.link_up() != was_up {
            self.irq.raise(&self.faults, icr::LSC, 0, 0);
            self.notify(pending::CONFIG);
        }
    }

    fn status(&self) -> u32 {
        let mut value = status::FD | status::SPEED_1000 | status::PF_RST_DONE | status::PHYRA;
        if self.link_up() {
            value |= status::LU;
        }
        if self.registers.get(at::CTRL) & ctrl::GIO_MASTER_DISABLE == 0 && self.memory.mastering() {
            value |= status::GIO_MASTER_ENABLE;
        }
        value
    }

    /// The EEPROM holds the address in its first three words and sums up to 0xBABA (6.1).
    fn read_eeprom(&self, command: u32) -> u32 {
        let address = command >> 2 & 0x3FFF;
        let mac = self.mac.0;
        let word = |i: usize| u16::from_le_bytes([mac[2 * i], mac[2 * i + 1]]);
        let data = match address {
            0..=2 => word(address as usize),
            0x3F => 0xBABA_u16.wrapping_sub(word(0)).wrapping_sub(word(1)).wrapping_sub(word(2)),
            _ => 0,
        };
        if command & 1 == 0 { address << 2 } else { 1 << 1 | address << 2 | u32::from(data) << 16 }
    }

    /// The PHY: its identity and link, as far as a driver looks (IEEE 802.3 clause 22).
    fn write_mdic(&self, command: u32) {
        const READ: u32 = 2 << 26;
        const READY: u32 = 1 << 28;
        const ERROR: u32 = 1 << 30;
        let (register, phy) = (command >> 16 & 0x1F, command >> 21 & 0x1F);
        let link = self.link.load(Ordering::Acquire);
        let data = match register {
            // 1,000 Mbit/s, full duplex, autonegotiation.
            0 => 0x1140,
            // Everything up to 100 Mbit/s, extended status; autonegotiated (5), link (2).
            1 => 0x7949 | if link { 0x24 } else { 0 },
            2 => 0x02A8,
            3 => 0x0391,
            // 1000BASE-T, both duplexes, at the partner too.
            10 => 0x3C00,
            _ => 0,
        };
        let answer = if phy != 1 {
            command | ERROR
        } else if command & READ != 0 {
            command & !0xFFFF | data
        } else {
            command
        };
        self.registers.set(at::MDIC, answer | READY);
    }

    /// Wakes the fabric for an interrupt that is to be sent later, if it does not know of one as early: `due_ns` is when
    /// the first was due before the change. Arming and disarming alone must not wake it.
    pub(super) fn keep_time(&self, due_ns: u64) {
        if self.irq.due_ns() < due_ns {
            self.notify(pending::TIMER);
        }
    }

    /// Takes a random time for an access to an interrupt register, if a test asked for that.
    fn dawdle(&self, offset: usize) {
        let limit_ns = self.slow_ns.load(Ordering::Relaxed);
        if limit_ns == 0 || !matches!(offset, at::ICR | at::IMS | at::IMC | at::EICR | at::EIMS | at::EIMC) {
            return;
        }
        let start_ns = now_ns();
        // The time of the access is chance enough.
        let until_ns = start_ns + Rng::new(start_ns).below(limit_ns + 1);
        while now_ns() < until_ns {
            std::hint::spin_loop();
        }
    }

    /// Lets a frame arrive between a driver's empty poll and its arming, if a test asked for that.
    fn race(&self) {
        let wanted = self.races.load(Ordering::Relaxed) > 0
            && self.races.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok();
        if wanted {
            let ticket = self.order(Order::Send(1));
            self.await_order(ticket, TURN_LIMIT);
        }
    }

    /// Sets DD in the descriptor at the tail, which is the driver's, if a fault asks for that. Here, inside the doorbell,
    /// the driver is not writing to it, so a driver that keeps its own account is not disturbed.
    fn lie_done(&self, q: usize, tail: u32) {
        let registers = &self.registers;
        if tail >= registers.get(at::rx(q, queue::LEN)) / 16 || !self.faults.hit_anywhere(Fault::LieDone) {
            return;
        }
        let base = |within| u64::from(registers.get(at::rx(q, within)));
        // The driver's base may be anything.
        let word = (base(queue::BAH) << 32 | base(queue::BAL)).wrapping_add(u64::from(tail) * 16 + 8);
        if let Some(dma) = self.memory.dma() {
            // 64 bytes, end of packet, done. A fault of the ring's address is counted where it happens.
            let _ = dma.store(word, 64 << 32 | 3);
        }
    }

    fn count_unknown(&self) {
        self.account.unknown_registers.fetch_add(1, Ordering::Relaxed);
    }
}

/// Whether the model knows what this register is for; others only remember what was written.
fn is_modelled(offset: usize) -> bool {
    matches!(
        offset,
        at::CTRL
            | at::EECD
            | at::EERD
            | at::CTRL_EXT
            | at::MDIC
            | 0x0028..=at::VET
            | at::RCTL
            | 0x0170
            | 0x0400..=0x0410
            | 0x1000..=0x1008
            | 0x3404
            | 0x3590
            | 0x2404
            | at::RXCSUM..=0x5008
            | at::MTA..0x5800
            | 0x5800..=at::MRQC
            | 0x581C
            | at::SWSM..=0x5B5C
            | at::RETA..0x5CA8
            | 0xA000..0xA200
            | at::RX_QUEUES..0xC400
            | at::TX_QUEUES..0xE400
    )
}
