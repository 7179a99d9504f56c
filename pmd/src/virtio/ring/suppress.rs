//! Who wants to be told of what, and the fences that keep either side from missing it.
//!
//! ```text
//! driver:  publish buffers ──▶ full fence ──▶ does the device want a notification?
//! device:  ask for one     ──▶ full fence ──▶ are there buffers? ── no ──▶ sleep
//!
//! device:  publish used    ──▶ full fence ──▶ does the driver want an interrupt?
//! driver:  arm             ──▶ full fence (the wait engine's) ──▶ is anything used? ── no ──▶ sleep
//! ```
//!
//! With both fences at least one of two sees what the other did: the sleeper its work, or the other the request. With flags
//! a side wants all or nothing; with EVENT_IDX it names the position of which it wants to be told (VIRTIO 1.2, 2.7.7,
//! 2.7.10 and 2.8.10).

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

#[cfg(not(loom))]
use std::sync::atomic::fence;

#[cfg(loom)]
use model::fence;

/// Split rings: VIRTQ_USED_F_NO_NOTIFY and VIRTQ_AVAIL_F_NO_INTERRUPT.
pub(super) const NONE: u16 = 1;

/// Packed rings: RING_EVENT_FLAGS_DISABLE and _DESC, in the upper half of the structure. ENABLE is zero.
pub(super) const DISABLE: u32 = 1 << 16;
const DESC: u32 = 2 << 16;
const FLAGS: u32 = 3 << 16;
/// The wrap counter beside the position.
const WRAP: u32 = 1 << 15;

/// A cell that both sides access: the real thing, or what loom's model checker can follow.
pub(super) trait Shared<T> {
    fn load(&self, order: Ordering) -> T;
    fn store(&self, value: T, order: Ordering);
}

macro_rules! shared {
    ($($cell:ty: $value:ty),*) => {$(
        impl Shared<$value> for $cell {
            #[inline(always)]
            fn load(&self, order: Ordering) -> $value {
                self.load(order)
            }

            #[inline(always)]
            fn store(&self, value: $value, order: Ordering) {
                self.store(value, order);
            }
        }
    )*};
}

shared!(AtomicU16: u16, AtomicU32: u32, AtomicU64: u64);

/// Whether the step from position `old` to `new` passes `event`.
#[inline(always)]
pub(super) const fn passes(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// Makes the buffers of a split ring up to position `new`, `old` before, visible to the device by the index in `index`.
/// Returns whether it wants to be told, which stands in `asks`: the event with `event_idx`, else the flags.
#[inline(always)]
pub(super) fn publish_split<A: Shared<u16>>(index: &A, old: u16, new: u16, asks: &A, event_idx: bool) -> bool {
    index.store(new, Ordering::Release);
    fence(Ordering::SeqCst);
    let wish = asks.load(Ordering::Relaxed);
    if event_idx { passes(wish, old, new) } else { wish & NONE == 0 }
}

/// Makes descriptors of a packed ring of `len` up to position `new` visible to the device, by `word` in `head`, the first of
/// them; those from `oldest` on are in its hands then. Returns whether it wants to be told, which stands in `asks`.
#[inline(always)]
pub(super) fn publish_packed<H: Shared<u64>, A: Shared<u32>>(
    head: &H,
    word: u64,
    asks: &A,
    (oldest, new): (usize, usize),
    len: usize,
) -> bool {
    head.store(word, Ordering::Release);
    fence(Ordering::SeqCst);
    wants_packed(asks.load(Ordering::Relaxed), oldest, new, len)
}

/// What an event suppression structure says about a ring of `len` that is published up to position `new`, when those from
/// `oldest` on are outstanding.
///
/// A position that is still to come is waited for; any other was asked for and has come. It may have come a while ago: QEMU's
/// virtio-net leaves its event where it was when it goes on by itself, after its network had pushed back, and then sleeps. A
/// driver that compares with its last step alone (2.8.10.1) never tells it of anything again.
#[inline(always)]
fn wants_packed(wish: u32, oldest: usize, new: usize, len: usize) -> bool {
    match wish & FLAGS {
        DISABLE => false,
        DESC => {
            // A position and its wrap counter are a position in two laps; the counter is 1 in the first.
            let event = (wish & (WRAP - 1)) as usize + if wish & WRAP == 0 { len } else { 0 };
            event.wrapping_sub(new) & (2 * len - 1) >= len - (new - oldest)
        }
        _ => true,
    }
}

/// What a driver that sleeps writes for a packed ring: to be told of the descriptor at `position`, or of every one.
#[inline]
pub(super) fn ask_packed(position: usize, len: usize, event_idx: bool) -> u32 {
    let wrap = if position & len == 0 { WRAP } else { 0 };
    if event_idx { DESC | wrap | (position & (len - 1)) as u32 } else { 0 }
}

#[cfg(loom)]
mod model;

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_step_passes_the_event_in_it_and_no_other(event: u16, old: u16, by in 1_u16..1000) {
            let expected = (0..by).any(|n| old.wrapping_add(n) == event);
            prop_assert_eq!(passes(event, old, old.wrapping_add(by)), expected);
        }

        #[test]
        fn a_packed_position_is_told_of_unless_it_is_to_come(
            shift in 1_u32..10, oldest in 0_usize..5000, by in 1_usize..512, ahead in 0_usize..1024,
        ) {
            let len = 1 << shift;
            let new = oldest + by.min(len);
            // Within two laps a position and its wrap counter are unique.
            let event = oldest + ahead % (2 * len);
            let to_come = (new..oldest + len).contains(&event);
            prop_assert_eq!(wants_packed(ask_packed(event, len, true), oldest, new, len), !to_come);
            prop_assert!(wants_packed(ask_packed(event, len, false), oldest, new, len));
            prop_assert!(!wants_packed(DISABLE, oldest, new, len));
        }

        #[test]
        fn a_device_that_went_past_its_event_is_told(shift in 1_u32..10, event in 0_usize..5000, past in 0_usize..512) {
            let len = 1 << shift;
            let oldest = event + past % len;
            for new in oldest + 1..=oldest + len {
                prop_assert!(wants_packed(ask_packed(event, len, true), oldest, new, len));
            }
        }

        #[test]
        fn no_wish_of_a_device_panics(wish: u32, shift in 1_u32..16, oldest in 0_usize..1 << 20, by in 0_usize..100) {
            let len = 1 << shift;
            wants_packed(wish, oldest, oldest + by.min(len), len);
        }
    }
}
