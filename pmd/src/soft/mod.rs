//! The embedded NIC.
