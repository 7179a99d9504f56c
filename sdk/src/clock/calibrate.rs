//! How fast a counter runs, measured against a clock that is known to be right.

use std::time::Duration;

/// Shortest of the windows that are compared with each other.
const WINDOW_MIN: Duration = Duration::from_millis(10);
/// Longest; three of each length from the shortest on are under a second together.
const WINDOW_MAX: Duration = Duration::from_millis(160);
/// How far apart three measurements of one frequency may be, in millionths.
const REPEATABLE_PPM: u64 = 50;
/// How far a stated frequency may be from a measured one, in millionths: crystals are better than 100, and a wrong
/// crystal or ratio is off by thousands.
const STATED_PPM: u64 = 1000;
/// A counter outside of this does not tick like any processor's.
const PLAUSIBLE_HZ: std::ops::RangeInclusive<u64> = 10_000_000..=100_000_000_000;

/// One moment on both clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    /// The counter, to within half of `blur`.
    pub(super) ticks: u64,
    /// The clock.
    pub(super) ns: u64,
    /// Ticks that passed while both were read.
    pub(super) blur: u64,
}

/// The counter to measure and the clock to measure it with.
pub(super) trait Clocks {
    /// Reads both as nearly at once as can be.
    fn moment(&mut self) -> Moment;
    /// Lets about `time` pass.
    fn pause(&mut self, time: Duration);
}

/// The counter's frequency, when three measurements in a row agree about it. Tries longer windows until they do.
pub(super) fn measure(clocks: &mut impl Clocks) -> Option<u64> {
    let mut window = WINDOW_MIN;
    while window <= WINDOW_MAX {
        let moments: [Moment; 4] = std::array::from_fn(|i| {
            if i > 0 {
                clocks.pause(window);
            }
            clocks.moment()
        });
        let rates: Option<Vec<u64>> = moments.windows(2).map(|pair| rate(pair[0], pair[1])).collect();
        let overall = rate(moments[0], moments[3]);
        if let (Some(rates), Some(hz)) = (rates, overall)
            && rates.iter().all(|&rate| within(rate, hz, REPEATABLE_PPM))
        {
            return Some(hz);
        }
        window *= 2;
    }
    None
}

/// Whether the counter runs at about `hz`, as one short measurement tells.
pub(super) fn agrees(clocks: &mut impl Clocks, hz: u64) -> bool {
    let start = clocks.moment();
    clocks.pause(WINDOW_MIN);
    let end = clocks.moment();
    // A blurred measurement may still deny a frequency, but must not confirm one.
    let blur = start.blur.saturating_add(end.blur);
    let sharp = blur <= end.ticks.wrapping_sub(start.ticks) / (1_000_000 / STATED_PPM);
    sharp && rate(start, end).is_some_and(|measured| within(measured, hz, STATED_PPM))
}

fn rate(from: Moment, to: Moment) -> Option<u64> {
    let ticks = u128::from(to.ticks.checked_sub(from.ticks)?);
    let ns = u128::from(to.ns.checked_sub(from.ns)?);
    let hz = (ticks * 1_000_000_000 + ns / 2).checked_div(ns)?;
    u64::try_from(hz).ok().filter(|hz| PLAUSIBLE_HZ.contains(hz))
}

fn within(a: u64, b: u64, ppm: u64) -> bool {
    u128::from(a.abs_diff(b)) * 1_000_000 <= u128::from(b) * u128::from(ppm)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A counter of `hz` whose rate changes by `drift_ppm` from one window to the next, read with `blur_ns`.
    #[derive(Debug)]
    pub(in crate::clock) struct Fake {
        hz: u64,
        pub(in crate::clock) drift_ppm: u64,
        blur_ns: u64,
        ticks: u64,
        ns: u64,
        pauses: u64,
    }

    impl Fake {
        pub(in crate::clock) fn steady(hz: u64) -> Self {
            Self { hz, drift_ppm: 0, blur_ns: 0, ticks: 1 << 40, ns: 5, pauses: 0 }
        }
    }

    impl Clocks for Fake {
        fn moment(&mut self) -> Moment {
            let blur = (u128::from(self.hz) * u128::from(self.blur_ns) / 1_000_000_000) as u64;
            Moment { ticks: self.ticks, ns: self.ns, blur }
        }

        fn pause(&mut self, time: Duration) {
            let ns = time.as_nanos() as u64;
            let hz = self.hz + self.hz * (self.pauses % 2) * self.drift_ppm / 1_000_000;
            self.ns += ns;
            self.ticks += (u128::from(hz) * u128::from(ns) / 1_000_000_000) as u64;
            self.pauses += 1;
        }
    }

    #[test]
    fn a_steady_counter_is_measured_exactly() {
        for hz in [24_000_000, 1_000_000_000, 2_596_134_000, 5_700_000_000] {
            assert!(within(measure(&mut Fake::steady(hz)).unwrap(), hz, 1));
        }
    }

    #[test]
    fn a_counter_that_stops_turns_back_or_changes_its_mind_is_refused() {
        assert_eq!(measure(&mut Fake::steady(0)), None);
        assert_eq!(measure(&mut Fake { drift_ppm: 200, ..Fake::steady(3_000_000_000) }), None);
        let earlier = Moment { ticks: 10, ns: 10, blur: 0 };
        assert_eq!(rate(earlier, Moment { ticks: 9, ..earlier }), None);
        assert_eq!(rate(earlier, Moment { ns: 9, ..earlier }), None);
        assert_eq!(rate(earlier, Moment { ticks: 20, ..earlier }), None);
        assert_eq!(rate(earlier, Moment { ticks: u64::MAX, ns: 11, blur: 0 }), None);
    }

    #[test]
    fn a_stated_frequency_is_believed_only_when_it_is_about_right() {
        let hz = 2_592_000_000;
        assert!(agrees(&mut Fake::steady(hz), hz + hz / 2000));
        assert!(!agrees(&mut Fake::steady(hz), 2_600_000_000));
        assert!(!agrees(&mut Fake::steady(hz), 0));
        assert!(!agrees(&mut Fake { blur_ns: 100_000, ..Fake::steady(hz) }, hz));
    }
}
