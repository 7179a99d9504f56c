//! Wait policies and their targets as one writes them: `adaptive:wake=20us`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// When a worker that finds no work goes to sleep.
///
/// Written and read as `poll`, `interrupt`, `adaptive`, `adaptive:wake=20us` or `adaptive:cpu=10%`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum WaitPolicy {
    /// Never: it spins, for the least latency and a whole core.
    #[default]
    Poll,
    /// At once, whenever there is nothing to do.
    Interrupt,
    /// As soon as that is expected to cost less than looking on: see [`Adaptive`](super::Adaptive).
    Adaptive(Target),
}

/// What an adaptive worker shall keep to.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Target {
    /// Nothing: the sum of time spun and latency added shall be least.
    #[default]
    None,
    /// Of all sleeps, at most one in a hundred may add more than this latency; within that, the least processor time.
    Wake {
        /// From 1 µs to 1 s.
        latency: Duration,
    },
    /// While it is idle, at most this share of a core may be spent; within that, the least latency.
    Cpu {
        /// From 0.001 to 1.
        share: f64,
    },
}

/// A wait policy was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParsePolicyError {
    /// No such policy.
    #[error(
        "there is no wait policy \"{0}\"; the policies are poll, interrupt and adaptive, the last one with a target if you \
         like, as in adaptive:wake=20us or adaptive:cpu=10%"
    )]
    Policy(String),
    /// Only `adaptive` takes a target.
    #[error(
        "wait policy \"{policy}\" takes no target, and \"{target}\" was given; only adaptive does, as in adaptive:wake=20us"
    )]
    NotAdaptive {
        /// The policy.
        policy: String,
        /// What followed the colon.
        target: String,
    },
    /// No such target.
    #[error(
        "wait policy adaptive has no target \"{0}\"; the targets are wake=TIME and cpu=SHARE, as in adaptive:wake=20us or adaptive:cpu=10%"
    )]
    Target(String),
    /// Not a time, or none that makes sense.
    #[error("\"{0}\" is no latency to wake up with; write 1us to 1s with ns, us, ms or s, as in adaptive:wake=20us")]
    Latency(String),
    /// Not a share, or none that makes sense.
    #[error("\"{0}\" is no share of a core; write 0.1% to 100%, as in adaptive:cpu=10%")]
    Share(String),
}

/// Latencies that may be asked for, in nanoseconds.
const LATENCIES_NS: std::ops::RangeInclusive<f64> = 1e3..=1e9;
/// Shares that may be asked for, in percent.
const PERCENTS: std::ops::RangeInclusive<f64> = 0.1..=100.0;
/// Units of time and their nanoseconds. Those that end like another one stand before it.
const UNITS: [(&str, f64); 4] = [("ns", 1.0), ("us", 1e3), ("ms", 1e6), ("s", 1e9)];

impl FromStr for WaitPolicy {
    type Err = ParsePolicyError;

    fn from_str(text: &str) -> Result<Self, ParsePolicyError> {
        let (policy, target) = match text.split_once(':') {
            Some((policy, target)) => (policy, Some(target)),
            None => (text, None),
        };
        match (policy, target) {
            ("poll", None) => Ok(Self::Poll),
            ("interrupt", None) => Ok(Self::Interrupt),
            ("adaptive", None) => Ok(Self::Adaptive(Target::None)),
            ("adaptive", Some(target)) => parse_target(target).map(Self::Adaptive),
            ("poll" | "interrupt", Some(target)) => {
                Err(ParsePolicyError::NotAdaptive { policy: policy.into(), target: target.into() })
            }
            _ => Err(ParsePolicyError::Policy(text.into())),
        }
    }
}

impl fmt::Display for WaitPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Poll => f.write_str("poll"),
            Self::Interrupt => f.write_str("interrupt"),
            Self::Adaptive(Target::None) => f.write_str("adaptive"),
            Self::Adaptive(target) => write!(f, "adaptive:{target}"),
        }
    }
}

/// Without its policy: `wake=20us`, `cpu=10%`; nothing for no target.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::None => Ok(()),
            Self::Wake { latency } => {
                let ns = latency.as_nanos();
                let (unit, unit_ns) = match ns {
                    _ if ns % 1_000_000 == 0 => ("ms", 1_000_000),
                    _ if ns % 1_000 == 0 => ("us", 1_000),
                    _ => ("ns", 1),
                };
                write!(f, "wake={}{unit}", ns / unit_ns)
            }
            Self::Cpu { share } => write!(f, "cpu={}%", percent(share)),
        }
    }
}

/// A share in percent, without the digits that only binary fractions have.
fn percent(share: f64) -> f64 {
    (share * 1e11).round() / 1e9
}

fn parse_target(target: &str) -> Result<Target, ParsePolicyError> {
    match target.split_once('=') {
        Some(("wake", latency)) => parse_latency(latency).map(|latency| Target::Wake { latency }),
        Some(("cpu", share)) => parse_share(share).map(|share| Target::Cpu { share }),
        _ => Err(ParsePolicyError::Target(target.into())),
    }
}

fn parse_latency(text: &str) -> Result<Duration, ParsePolicyError> {
    UNITS
        .iter()
        .find_map(|(unit, unit_ns)| Some(number(text.strip_suffix(unit)?)? * unit_ns))
        .filter(|ns| LATENCIES_NS.contains(ns))
        .map(|ns| Duration::from_nanos(ns.round() as u64))
        .ok_or_else(|| ParsePolicyError::Latency(text.into()))
}

fn parse_share(text: &str) -> Result<f64, ParsePolicyError> {
    text.strip_suffix('%')
        .and_then(number)
        .filter(|percent| PERCENTS.contains(percent))
        .map(|percent| (percent * 1e9).round() / 1e11)
        .ok_or_else(|| ParsePolicyError::Share(text.into()))
}

/// A plain decimal number: digits with at most one point among them.
fn number(text: &str) -> Option<f64> {
    let plain = text.starts_with(|c: char| c.is_ascii_digit()) && text.chars().all(|c| c.is_ascii_digit() || c == '.');
    plain.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wake(latency: Duration) -> WaitPolicy {
        WaitPolicy::Adaptive(Target::Wake { latency })
    }

    #[test]
    fn policies_are_read() {
        let read = |text: &str| text.parse::<WaitPolicy>().unwrap();
        assert_eq!(read("poll"), WaitPolicy::Poll);
        assert_eq!(read("interrupt"), WaitPolicy::Interrupt);
        assert_eq!(read("adaptive"), WaitPolicy::Adaptive(Target::None));
        assert_eq!(read("adaptive:wake=20us"), wake(Duration::from_micros(20)));
        assert_eq!(read("adaptive:wake=2.5us"), wake(Duration::from_nanos(2_500)));
        assert_eq!(read("adaptive:wake=1500ns"), wake(Duration::from_nanos(1_500)));
        assert_eq!(read("adaptive:wake=1s"), wake(Duration::from_secs(1)));
        assert_eq!(read("adaptive:cpu=0.1%"), WaitPolicy::Adaptive(Target::Cpu { share: 0.001 }));
        assert_eq!(WaitPolicy::default(), WaitPolicy::Poll);
    }

    #[test]
    fn what_is_refused_is_named_with_a_way_out() {
        for (text, named) in [
            ("sleep", "\"sleep\""),
            ("", "poll, interrupt and adaptive"),
            ("poll:wake=20us", "\"poll\" takes no target"),
            ("adaptive:", "wake=TIME"),
            ("adaptive:power=5", "\"power=5\""),
            ("adaptive:wake=20", "\"20\""),
            ("adaptive:wake=999ns", "1us to 1s"),
            ("adaptive:wake=1001ms", "1us to 1s"),
            ("adaptive:wake=-5us", "\"-5us\""),
            ("adaptive:wake=1e3us", "\"1e3us\""),
            ("adaptive:wake=nanus", "\"nanus\""),
            ("adaptive:cpu=10", "\"10\""),
            ("adaptive:cpu=0%", "0.1% to 100%"),
            ("adaptive:cpu=101%", "\"101%\""),
            ("adaptive:cpu=inf%", "\"inf%\""),
        ] {
            let error = text.parse::<WaitPolicy>().unwrap_err().to_string();
            assert!(error.contains(named) && error.contains("adaptive"), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn a_policy_is_read_as_it_was_written(ns in 1_000..=1_000_000_000u64, permille in 1..=1000u32) {
            let share = f64::from(permille) / 1000.0;
            for policy in [wake(Duration::from_nanos(ns)), WaitPolicy::Adaptive(Target::Cpu { share })] {
                prop_assert_eq!(policy.to_string().parse::<WaitPolicy>(), Ok(policy));
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in "(adaptive:)?(wake=|cpu=)?[0-9.a-z%]{0,8}") {
            let _ = text.parse::<WaitPolicy>();
        }
    }
}
