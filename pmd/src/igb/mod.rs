//! The 82576 family.
