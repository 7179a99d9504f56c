//! What waiting costs in real time: response times and processor time of the wait policies, under traffic of several
//! kinds, beside each other.
//!
//!     cargo bench -p spinwake-bench --bench wakeup [-- --quick | --markdown --plots]
//!
//! ```text
//! generator ──▶ receive ring ──▶ worker ──▶ transmit ring ──▶ sink      the worker on one core,
//!                    └── visible ── response ── doorbell ──┘            all the rest on another
//! ```
//!
//! Policies take turns in short slices, round after round, so that what else the machine does meets all of them alike. A
//! response time runs from the moment when a frame became visible to the driver to the doorbell that sent it back: however
//! late the thread is that plays the device, that is not in it. Processor time is the kernel's account of the worker's
//! thread. Then adaptive's p99 is compared with polling's in many short windows, and each target is watched for a minute.

mod options;
mod plots;
mod rig;
mod table;
mod tails;
mod turns;
mod watch;

use std::error::Error;

use options::Options;
use rig::Rig;

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::read();
    let mut rig = Rig::new(options.fifo)?;
    let (core, other) = rig.cores();
    eprintln!("the worker is on core {core}, the device's thread and this one on core {other}");
    let cases = turns::measure(&mut rig, &options)?;
    if options.plots {
        plots::draw(&cases)?;
    }
    tails::measure(&mut rig, &options)?;
    watch::measure(&mut rig, &options)
}
