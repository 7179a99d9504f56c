//! What a machine offers a polled-mode driver: which devices there are, who drives them, and how they change hands.

pub mod bind;
pub mod devices;
