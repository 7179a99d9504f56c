//! The link: is it up, how fast, and what it takes to bring it up.

use std::time::Duration;

use spinwake::mmio::NotReached;
use spinwake::port::Link;

use super::nic::Nic;
use super::regs::{self, ctrl, mdic, phy, status};

/// For the PHY to answer one access.
const MDIO_LIMIT: Duration = Duration::from_millis(20);

/// The PHY did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
enum PhyError {
    #[error("MDIC did not become ready: {0}")]
    Slow(#[from] NotReached),
    #[error("MDIC reports an error for PHY register {0}")]
    Refused(u32),
}

/// The link as the device sees it now; down for a device that does not answer.
pub(super) fn read(nic: &Nic) -> Link {
    let Some(value) = nic.status() else { return Link::Down };
    if value & status::LU == 0 {
        return Link::Down;
    }
    let mbps = match (value >> status::SPEED_SHIFT) & status::SPEED_MASK {
        0 => 10,
        1 => 100,
        _ => 1000,
    };
    Link::Up { mbps, full_duplex: value & status::FD != 0 }
}

/// Lets the link come up by autonegotiation. Returns at once; it takes a second or two on copper.
///
/// Pause frames stay off: a stalled sender is latency that nobody sees.
pub(super) fn bring_up(nic: &Nic) {
    let clear = ctrl::FRCSPD | ctrl::FRCDPLX | ctrl::RFCE | ctrl::TFCE | ctrl::GIO_MASTER_DISABLE;
    nic.bar.modify(regs::CTRL, clear, ctrl::SLU);
    if let Err(error) = negotiate(nic) {
        log::warn!("{}: its PHY does not answer ({error}); the link may stay down", nic.name());
    }
}

fn negotiate(nic: &Nic) -> Result<(), PhyError> {
    let control = phy_read(nic, phy::PCTRL)?;
    // Link is latched low: the second read tells how it is now.
    phy_read(nic, phy::PSTATUS)?;
    let state = phy_read(nic, phy::PSTATUS)?;
    // A PHY keeps its link over a reset of the MAC, which is no reason to take it down. QEMU's igb starts with link up
    // and autonegotiation incomplete in the PHY, and with STATUS.LU clear until autonegotiation is restarted.
    let done = phy::LINK | phy::AN_COMPLETE;
    if state & done == done && control & (phy::AN_ENABLE | phy::POWER_DOWN) == phy::AN_ENABLE {
        return Ok(());
    }
    phy_write(nic, phy::PCTRL, control & !phy::POWER_DOWN | phy::AN_ENABLE | phy::RESTART_AN)
}

fn phy_read(nic: &Nic, register: u32) -> Result<u16, PhyError> {
    Ok((mdio(nic, register, mdic::OP_READ)? & mdic::DATA_MASK) as u16)
}

fn phy_write(nic: &Nic, register: u32, value: u16) -> Result<(), PhyError> {
    mdio(nic, register, mdic::OP_WRITE | u32::from(value)).map(|_| ())
}

fn mdio(nic: &Nic, register: u32, command: u32) -> Result<u32, PhyError> {
    nic.bar.write(regs::MDIC, command | register << mdic::REGADD_SHIFT | phy::ADDRESS << mdic::PHYADD_SHIFT);
    let answer = nic.bar.wait_for(regs::MDIC, MDIO_LIMIT, |v| v & mdic::R != 0)?;
    if answer & mdic::E == 0 { Ok(answer) } else { Err(PhyError::Refused(register)) }
}
