//! l2fwd
fn main() {}
