//! What the device counts. Its counters are cleared by reading, so what was read is kept here.

use spinwake::mmio::{Bar, Rc, Reg};
use spinwake::port::PortStats;

use super::regs;

/// Bytes of frame check sequence, which the device counts and we do not.
const FCS: u64 = 4;

/// Everything read so far.
#[derive(Debug, Default)]
pub(super) struct Totals {
    rx_frames: u64,
    rx_octets: u64,
    rx_missed: u64,
    rx_errors: u64,
    tx_frames: u64,
    tx_octets: u64,
}

impl Totals {
    /// Adds what the device has counted since the last time. Its frame counters hold 32 bits, which at full rate fill up in
    /// 48 minutes: ask more often than that.
    pub(super) fn update(&mut self, bar: &Bar, queues: usize) {
        let read = |reg: Reg<Rc>| u64::from(bar.read(reg));
        // Reading the high half clears both, so the low half comes first.
        let octets = |low: Reg<Rc>, high: Reg<Rc>| read(low) | read(high) << 32;
        self.rx_frames += read(regs::GPRC);
        self.rx_octets += octets(regs::GORCL, regs::GORCH);
        self.tx_frames += read(regs::GPTC);
        self.tx_octets += octets(regs::GOTCL, regs::GOTCH);
        self.rx_missed += read(regs::MPC);
        for queue in 0..queues {
            self.rx_missed += u64::from(bar.read(regs::rqdpc(queue)));
            bar.write(regs::rqdpc(queue), 0);
        }
        // Undersized frames (RUC) are part of RLEC on hardware; QEMU's igb counts in RUC what it pads and delivers.
        let broken = [regs::CRCERRS, regs::ALGNERRC, regs::RLEC, regs::RFC, regs::RJC];
        self.rx_errors += broken.into_iter().map(read).sum::<u64>();
    }

    /// The sums, without the queues' own counters.
    pub(super) fn sums(&self) -> PortStats {
        PortStats {
            rx_frames: self.rx_frames,
            rx_bytes: self.rx_octets.saturating_sub(FCS * self.rx_frames),
            rx_missed: self.rx_missed,
            rx_errors: self.rx_errors,
            tx_frames: self.tx_frames,
            tx_bytes: self.tx_octets.saturating_sub(FCS * self.tx_frames),
            ..PortStats::default()
        }
    }
}

/// Clears every counter of the device.
pub(super) fn clear(bar: &Bar, queues: usize) {
    for offset in regs::STATISTICS.step_by(4) {
        bar.read(Reg::<Rc>::at(offset));
    }
    Totals::default().update(bar, queues);
}
