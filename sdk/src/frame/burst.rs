//! A burst: frames handed on together.

use arrayvec::ArrayVec;

use super::Frame;

/// Frames in a burst, unless a program says otherwise.
pub const BURST: usize = 32;

/// Up to `N` owned frames, in order, without allocation.
pub type Burst<const N: usize = BURST> = ArrayVec<Frame, N>;
