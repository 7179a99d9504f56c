//! Driver for the Intel 82576 Gigabit Ethernet controller and its successors.

pub mod desc;
pub mod regs;
