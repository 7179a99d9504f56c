//! A ring between workers as something to sleep on.

use spinwake::ring::mpmc::{Consumer, Producer, ring};

/// What a worker gets from others.
pub(crate) type Mailbox<T> = Consumer<T>;

/// How others send to it.
pub(crate) type Slot<T> = Producer<T>;

pub(crate) fn mailbox<T: Send>(label: String, capacity: usize) -> (Slot<T>, Mailbox<T>) {
    let (slot, letters) = ring(capacity).expect("a power of two");
    (slot, letters.named(label))
}
