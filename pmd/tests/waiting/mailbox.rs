//! A ring between workers as something to sleep on.

use std::sync::Arc;

use spinwake::ring::mpmc::{Consumer, Producer, ring};
use spinwake::wait::{Source, Wake, Waker};

/// What a worker gets from others.
#[derive(Debug)]
pub(crate) struct Mailbox<T> {
    label: String,
    letters: Consumer<T>,
    waker: Arc<Waker>,
}

/// How others send to it.
#[derive(Debug)]
pub(crate) struct Slot<T> {
    letters: Producer<T>,
    waker: Arc<Waker>,
}

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Self {
        Self { letters: self.letters.clone(), waker: self.waker.clone() }
    }
}

pub(crate) fn mailbox<T: Send>(label: String, capacity: usize) -> (Slot<T>, Mailbox<T>) {
    let (producer, consumer) = ring(capacity).unwrap();
    let waker = Arc::new(Waker::new().unwrap());
    (Slot { letters: producer, waker: waker.clone() }, Mailbox { label, letters: consumer, waker })
}

impl<T: Send> Slot<T> {
    /// Sends `letter`; returns it when the mailbox is full.
    pub(crate) fn send(&mut self, letter: T) -> Result<(), T> {
        self.letters.push(letter)?;
        self.waker.wake();
        Ok(())
    }
}

impl<T: Send> Mailbox<T> {
    pub(crate) fn take(&mut self) -> Option<T> {
        self.letters.pop()
    }
}

impl<T: Send> Source for Mailbox<T> {
    fn label(&self) -> String {
        self.label.clone()
    }

    fn pending(&self) -> bool {
        self.letters.pending()
    }

    fn arm(&mut self) {
        self.waker.arm();
    }

    fn disarm(&mut self) {
        self.waker.disarm();
    }

    fn wake(&self) -> Wake {
        Wake::Waker(self.waker.clone())
    }
}
