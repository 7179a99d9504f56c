//! What a machine does to a polled-mode driver, and how to change it: checks, settings that can be taken back, devices,
//! and measurements.
//!
//! A command is a module with its arguments (`Args`), a function that runs it, and what it tells (a [`output::Report`]).

pub mod host;
pub mod output;
pub mod placement;
pub mod units;
pub mod warnings;

pub mod effects;

pub mod bind;
pub mod check;
pub mod devices;
pub mod hugepages;

pub mod change;
pub mod journal;
pub mod profile;

pub mod apply;
pub mod boot;
pub mod revert;

pub mod jitter;
pub mod page;
pub mod wake;

pub mod manual;
