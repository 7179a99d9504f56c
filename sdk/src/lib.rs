//! Spinwake: low-latency polled-mode drivers on Linux, in user space.
//!
//! ```text
//! device ──DMA──▶ descriptor ring ──▶ Frame ──▶ Burst ──▶ application
//!    ▲                                                        │
//!    └──DMA── descriptor ring ◀── Frame ◀── Burst ◀───────────┘
//!                     Pool of hugepage buffers under both
//! ```
//!
//! Modules stand in dependency order: each uses only those above it.

pub mod sys;

pub mod clock;
pub mod telemetry;

pub mod cpu;

pub mod mem;
pub mod pci;

pub mod mmio;

pub mod irq;

pub mod device;

pub mod vfio;

pub mod dma;

pub mod frame;

pub mod wait;

pub mod ring;

pub mod port;

pub mod worker;
