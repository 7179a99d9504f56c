//! Which slots of a transmit ring are in flight, and to whom they belong.

/// The slots between the oldest one in flight and the next one to write. A frame takes as many slots as it has descriptors in
/// the ring; the first one's number is its id. What the device finishes early stays until all before it are done.
#[derive(Debug)]
pub(in super::super) struct Window {
    /// Positions of the oldest slot in flight, and of the next one to write.
    oldest: usize,
    next: usize,
    mask: usize,
    /// Frames in flight.
    frames: usize,
    /// Slots that the frame takes which begins there; none where one goes on. One wherever nothing is in flight.
    spans: Box<[u16]>,
    /// Frames of more than one slot.
    chains: usize,
    /// Frames that are done while an older one is not.
    done: Box<[bool]>,
    early: usize,
}

impl Window {
    /// A window on a ring of `len` slots, all free.
    pub(in super::super) fn new(len: usize) -> Self {
        Self {
            oldest: 0,
            next: 0,
            mask: len - 1,
            frames: 0,
            spans: vec![1; len].into(),
            chains: 0,
            done: vec![false; len].into(),
            early: 0,
        }
    }

    /// Slots that may be written.
    #[inline(always)]
    pub(super) fn free(&self) -> usize {
        self.mask + 1 - self.in_flight()
    }

    /// Slots in flight.
    #[inline(always)]
    pub(super) fn in_flight(&self) -> usize {
        self.next - self.oldest
    }

    /// The position of the oldest slot in flight.
    #[inline(always)]
    pub(in super::super) fn oldest(&self) -> usize {
        self.oldest
    }

    /// The position of the next slot to write.
    #[inline(always)]
    pub(super) fn next(&self) -> usize {
        self.next
    }

    /// Frames that the device has not finished.
    #[inline(always)]
    pub(in super::super) fn outstanding(&self) -> usize {
        self.frames - self.early
    }

    /// Whether each frame takes one slot, and none is done early.
    #[inline(always)]
    pub(in super::super) fn is_orderly(&self) -> bool {
        self.chains | self.early == 0
    }

    /// Whether some frame is done early.
    #[inline(always)]
    pub(in super::super) fn has_early(&self) -> bool {
        self.early > 0
    }

    /// `n` frames of one slot each have been written.
    #[inline(always)]
    pub(super) fn push(&mut self, n: usize) {
        self.next += n;
        self.frames += n;
    }

    /// A frame of `slots` has been written; there are that many free.
    pub(super) fn push_chain(&mut self, slots: usize) {
        for i in 1..slots {
            self.spans[(self.next + i) & self.mask] = 0;
        }
        self.spans[self.next & self.mask] = slots as u16;
        self.chains += usize::from(slots > 1);
        self.next += slots;
        self.frames += 1;
    }

    /// The `n` oldest frames are done, all of which are there.
    #[inline(always)]
    pub(in super::super) fn retire(&mut self, n: usize) {
        if self.chains == 0 {
            self.oldest += n;
            self.frames -= n;
        } else {
            (0..n).for_each(|_| _ = self.retire_one());
        }
    }

    /// The oldest frame is done; returns its slots.
    fn retire_one(&mut self) -> usize {
        let slots = usize::from(self.spans[self.oldest & self.mask]);
        if slots > 1 {
            for i in 0..slots {
                self.spans[(self.oldest + i) & self.mask] = 1;
            }
            self.chains -= 1;
        }
        self.oldest += slots;
        self.frames -= 1;
        slots
    }

    /// All frames up to the one with this id are done; none was early. Returns how many frames and slots; `None` when no
    /// such frame is in flight.
    pub(in super::super) fn retire_through(&mut self, id: u32) -> Option<(usize, usize)> {
        let (slot, slots) = self.find(id)?;
        let before = (self.frames, self.oldest);
        if self.chains == 0 {
            self.retire(slot - self.oldest + slots);
        } else {
            while self.oldest <= slot {
                self.retire_one();
            }
        }
        Some((before.0 - self.frames, self.oldest - before.1))
    }

    /// The frame with this id is done. Returns its slots; `None` when no such frame is in flight and not done.
    pub(in super::super) fn complete(&mut self, id: u32) -> Option<usize> {
        let (slot, slots) = self.find(id)?;
        let done = &mut self.done[slot & self.mask];
        if *done {
            return None;
        }
        *done = true;
        self.early += 1;
        Some(slots)
    }

    /// Retires the oldest frames as far as they are done; returns how many.
    pub(in super::super) fn settle(&mut self) -> usize {
        let mut frames = 0;
        while self.early > 0 && std::mem::take(&mut self.done[self.oldest & self.mask]) {
            self.early -= 1;
            self.retire_one();
            frames += 1;
        }
        frames
    }

    /// The position of the frame with this id, and its slots, if it is in flight.
    fn find(&self, id: u32) -> Option<(usize, usize)> {
        let id = usize::try_from(id).ok().filter(|id| *id <= self.mask)?;
        let ahead = id.wrapping_sub(self.oldest) & self.mask;
        let slots = usize::from(self.spans[id]);
        (ahead < self.in_flight() && slots > 0).then_some((self.oldest + ahead, slots))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_retire_in_order_whatever_order_they_are_done_in() {
        let mut window = Window::new(8);
        for _ in 0..5 {
            window.push(2);
            let chain = window.next();
            window.push_chain(3);
            window.push(1);
            assert_eq!((window.free(), window.outstanding()), (2, 4));
            let ids = [window.oldest(), window.oldest() + 1, chain, chain + 3].map(|slot| (slot & 7) as u32);
            assert_eq!((window.complete(ids[2]), window.settle()), (Some(3), 0));
            assert_eq!(window.complete(ids[2]), None, "done before");
            assert_eq!(window.complete((ids[2] + 1) & 7), None, "in the middle of a chain");
            assert_eq!((window.complete(ids[0]), window.settle()), (Some(1), 1));
            assert_eq!((window.complete(ids[1]), window.settle()), (Some(1), 2));
            assert_eq!(window.complete(ids[1]), None, "not in flight");
            assert_eq!((window.outstanding(), window.has_early()), (1, false));
            assert_eq!((window.complete(ids[3]), window.settle()), (Some(1), 1));
            assert_eq!(window.free(), 8);
        }
        assert_eq!(window.complete(8), None);
        assert_eq!(window.complete(u32::MAX), None);
    }

    #[test]
    fn one_id_retires_all_before_it() {
        let mut window = Window::new(8);
        for _ in 0..5 {
            window.push(2);
            window.push_chain(4);
            window.push(1);
            let start = window.oldest();
            let id = |ahead: usize| ((start + ahead) & 7) as u32;
            assert_eq!(window.retire_through(id(3)), None, "in the middle of a chain");
            assert_eq!(window.retire_through(id(7)), None, "not in flight");
            assert_eq!(window.retire_through(id(2)), Some((3, 6)));
            assert_eq!(window.retire_through(id(6)), Some((1, 1)));
            window.push(8);
            assert_eq!(window.retire_through(id(7 + 7)), Some((8, 8)));
        }
    }
}
