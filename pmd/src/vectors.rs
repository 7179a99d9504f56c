//! Which vector is whose, for cards on a bus: kinds of interrupts are tried, and ways to share their vectors, until one works.
//!
//! ```text
//! MSI-X, vectors for all       rx 0 | rx 1 | .. | tx 0 | tx 1 | .. | the card's own
//! MSI-X, too few for that      rx 0 and tx 0 | rx 1 and tx 1 | .. | the card's own
//! MSI, INTx                    one for all queues; what the card itself has to say must be polled
//! ```

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use spinwake::device::{Device, DeviceError};
use spinwake::irq::{IrqKind, Vector};
use spinwake::port::PortError;

/// Which kind of queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Rx,
    Tx,
}

/// Vectors that are on.
#[derive(Debug)]
pub(crate) struct Vectors {
    pub(crate) kind: IrqKind,
    /// Those of queues, in the order of their numbers; which is whose, the plan says.
    pub(crate) queues: Vec<Arc<Vector>>,
    /// The card's own, which follows them: its link or its configuration changed.
    pub(crate) own: Option<Arc<Vector>>,
    pub(crate) plan: Plan,
}

/// Who gets which vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Plan {
    /// The first vectors are the receive queues'; queue n has number n modulo this.
    rx: usize,
    /// As many follow for the transmit queues, one each. None: they share those of the receive queues of their number.
    tx: usize,
    /// The last is the card's own.
    own: bool,
}

impl Plan {
    /// The plans to try for `rx` and `tx` queues on a device with `vectors` of kind `kind`, the best first.
    ///
    /// A transmit queue has a vector of its own where that is possible, so that nobody who waits for frames alone is woken
    /// by completions.
    fn candidates(kind: IrqKind, vectors: usize, rx: usize, tx: usize) -> Vec<Self> {
        if kind != IrqKind::Msix {
            return vec![Self { rx: 1, tx: 0, own: false }];
        }
        let mut plans = Vec::new();
        if rx + tx < vectors {
            plans.push(Self { rx, tx, own: true });
        }
        // The card gets one if there is one to spare.
        let rx = rx.min(vectors.saturating_sub(1)).max(1);
        plans.push(Self { rx, tx: 0, own: rx < vectors });
        plans
    }

    fn queues(self) -> usize {
        self.rx + self.tx
    }

    /// The number of the vector of queue `queue`.
    pub(crate) fn number(self, side: Side, queue: usize) -> usize {
        match side {
            Side::Tx if self.tx > 0 => self.rx + queue % self.tx,
            _ => queue % self.rx.max(1),
        }
    }
}

/// The kind of `kinds`, the best first, that [`turn_on`] will try first: `forced` or none.
pub(crate) fn preferred(device: &dyn Device, kinds: &[IrqKind], forced: Option<IrqKind>) -> Option<IrqKind> {
    kinds.iter().copied().find(|&kind| forced.is_none_or(|f| f == kind) && device.irq_count(kind) > 0)
}

/// Turns interrupts on for `rx` receive and `tx` transmit queues: of kind `forced` or none, or else of the best of `kinds` that
/// works, with `most` vectors at most. `None` for a device without any, whose queues can only be polled, which the log
/// then says.
///
/// # Errors
///
/// When the kind that is forced does not work.
pub(crate) fn turn_on(
    device: &dyn Device,
    kinds: &[IrqKind],
    forced: Option<IrqKind>,
    most: usize,
    (rx, tx): (usize, usize),
) -> Result<Option<Vectors>, PortError> {
    for &kind in kinds.iter().filter(|&&kind| forced.is_none_or(|f| f == kind)) {
        let count = device.irq_count(kind);
        if count == 0 {
            continue;
        }
        match turn_on_kind(device, kind, &Plan::candidates(kind, count.min(most), rx, tx)) {
            Ok(vectors) => return Ok(Some(vectors)),
            Err(error) if forced.is_some() => return Err(error.into()),
            Err(error) => log::warn!("{}: {kind} does not work: {error}", device.name()),
        }
    }
    if let Some(kind) = forced {
        let what = format!("{kind} interrupts");
        return Err(DeviceError::Missing { device: device.name().into(), what }.into());
    }
    log::warn!("{}: it has no interrupts, so its queues can only be polled", device.name());
    Ok(None)
}

fn turn_on_kind(device: &dyn Device, kind: IrqKind, plans: &[Plan]) -> Result<Vectors, DeviceError> {
    let mut plans = plans.iter().peekable();
    loop {
        let Some(&plan) = plans.next() else {
            return Err(DeviceError::Missing { device: device.name().into(), what: format!("{kind} vectors") });
        };
        match allocate(device, kind, plan) {
            Ok(vectors) => return Ok(vectors),
            // The kernel may have fewer to give than the device has.
            Err(error) if plans.peek().is_some() => log::debug!("{}: {error}; sharing vectors", device.name()),
            Err(error) => return Err(error),
        }
    }
}

/// Makes the vectors and connects them.
fn allocate(device: &dyn Device, kind: IrqKind, plan: Plan) -> Result<Vectors, DeviceError> {
    let mut queues = (0..plan.queues() + usize::from(plan.own))
        .map(|_| Vector::new().map(Arc::new))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| DeviceError::Call {
            device: device.name().into(),
            call: "eventfd",
            source,
            hint: "; raise the limit on open files (ulimit -n)".into(),
        })?;
    let fds: Vec<BorrowedFd<'_>> = queues.iter().map(|vector| vector.as_fd()).collect();
    device.irq_enable(kind, &fds)?;
    let own = if plan.own { queues.pop() } else { None };
    Ok(Vectors { kind, queues, own, plan })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transmit_queues_have_vectors_of_their_own_where_there_are_enough() {
        let plan = |vectors, rx, tx| Plan::candidates(IrqKind::Msix, vectors, rx, tx)[0];
        assert_eq!(plan(25, 12, 12), Plan { rx: 12, tx: 12, own: true });
        assert_eq!(plan(25, 12, 13), Plan { rx: 12, tx: 0, own: true });
        assert_eq!(plan(5, 4, 4), Plan { rx: 4, tx: 0, own: true });
        assert_eq!(plan(3, 4, 4), Plan { rx: 2, tx: 0, own: true });
        assert_eq!(plan(1, 1, 1), Plan { rx: 1, tx: 0, own: false });
        assert_eq!(plan(3, 1, 1), Plan { rx: 1, tx: 1, own: true });
        assert_eq!(plan(9, 4, 4), Plan { rx: 4, tx: 4, own: true });
        assert_eq!(plan(8, 4, 4), Plan { rx: 4, tx: 0, own: true });
        assert_eq!(Plan::candidates(IrqKind::Msix, 25, 2, 2).len(), 2, "sharing is the way out");
        assert_eq!(Plan::candidates(IrqKind::Msix, 9, 2, 2).len(), 2, "sharing is the way out");
        assert_eq!(Plan::candidates(IrqKind::Msi, 1, 4, 4), [Plan { rx: 1, tx: 0, own: false }]);
        assert_eq!(Plan::candidates(IrqKind::Intx, 1, 4, 4), [Plan { rx: 1, tx: 0, own: false }]);
    }

    #[test]
    fn every_queue_has_a_vector_and_no_two_share_one_without_need() {
        let own = Plan { rx: 3, tx: 2, own: true };
        assert_eq!([0, 1, 2].map(|queue| own.number(Side::Rx, queue)), [0, 1, 2]);
        assert_eq!([0, 1].map(|queue| own.number(Side::Tx, queue)), [3, 4]);
        let own = Plan { rx: 2, tx: 2, own: true };
        assert_eq!([0, 1].map(|queue| own.number(Side::Rx, queue)), [0, 1]);
        assert_eq!([0, 1].map(|queue| own.number(Side::Tx, queue)), [2, 3]);
        let shared = Plan { rx: 2, tx: 0, own: true };
        assert_eq!([0, 1, 2].map(|queue| shared.number(Side::Tx, queue)), [0, 1, 0]);
    }
}
