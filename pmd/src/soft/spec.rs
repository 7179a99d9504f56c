//! The keys of `soft:` port specs.

use std::ops::RangeInclusive;

use spinwake::irq::IrqKind;
use spinwake::port::{PortSpec, SpecError};

use super::fault::FaultPlan;
use super::layout::QUEUES;

/// How fast a generator sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rate {
    /// Not at all, but for frames that a test asks for.
    Silent,
    /// This many frames a second, as far as the machine keeps up.
    PerSecond(u32),
    /// As many as the receive ring takes.
    Max,
}

/// How a generator spaces its frames. None of this changes the mean rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Gap {
    /// All gaps are the same.
    #[default]
    Even,
    /// Exponential gaps: frames come independently of each other.
    Poisson,
    /// This many frames (one at least) back to back, as fast as the model goes, then an exponential gap.
    Burst(u16),
    /// On and off: sixteen frames at ten times the mean rate, then a gap from a Pareto distribution of shape 1.5, cut off
    /// at a second (at ten times the mean gap where that is longer): most are short, and what they add up to is in a few
    /// long ones.
    Pareto,
}

/// What a port's cable leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wire {
    /// The built-in generator and sink.
    Generator,
    /// Back to the port.
    Loop,
    /// The other soft port that names this wire.
    Cable(String),
}

/// A parsed `soft:` spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SoftSpec {
    /// Empty for a name of our choice.
    pub(super) name: String,
    pub(super) queues: u16,
    pub(super) rate: Rate,
    pub(super) gap: Gap,
    /// Frame bytes without the check sequence.
    pub(super) size: RangeInclusive<u16>,
    pub(super) wire: Wire,
    /// The best kind of interrupt that the device has; INTx it always has.
    pub(super) irq: IrqKind,
    pub(super) faults: FaultPlan,
    pub(super) seed: u64,
}

/// What a spec may say.
pub const KEYS: [&str; 8] = ["queues", "rate", "gap", "size", "wire", "irq", "fault", "seed"];
/// What a machine with two cores serves without loss, unless it has much else to do.
const DEFAULT_RATE: u32 = 50_000;
const SIZES: RangeInclusive<u16> = 60..=9216;

impl SoftSpec {
    pub(super) fn parse(spec: &PortSpec) -> Result<Self, SpecError> {
        spec.only_keys(&KEYS)?;
        let queues_possible = "1 to 16";
        let queues = spec.key::<u16>("queues", queues_possible)?.unwrap_or(4);
        if !(1..=QUEUES as u16).contains(&queues) {
            return Err(spec.bad_value("queues", queues_possible));
        }
        let wire = match spec.text("wire") {
            None => Wire::Generator,
            Some("loop") => Wire::Loop,
            Some(name) => Wire::Cable(name.into()),
        };
        let rate_possible = "frames a second, 0 for silence, or max";
        let rate = match spec.text("rate") {
            None if wire == Wire::Generator => Rate::PerSecond(DEFAULT_RATE),
            None | Some("0") => Rate::Silent,
            Some("max") => Rate::Max,
            // `key` finds the text and parses it, so there is a number; zero in other spellings is silence too.
            Some(_) => match spec.key::<u32>("rate", rate_possible)?.unwrap_or(0) {
                0 => Rate::Silent,
                n if n <= 100_000_000 => Rate::PerSecond(n),
                _ => return Err(spec.bad_value("rate", rate_possible)),
            },
        };
        let gap = parse_gap(spec, rate)?;
        let size_possible = "bytes from 60 to 9216, or two of them as in 60-1514";
        let size = match spec.text("size") {
            None => 60..=60,
            Some(text) => parse_size(text).ok_or_else(|| spec.bad_value("size", size_possible))?,
        };
        let irq = match spec.text("irq") {
            None | Some("msix") => IrqKind::Msix,
            Some("msi") => IrqKind::Msi,
            Some("intx") => IrqKind::Intx,
            Some(_) => return Err(spec.bad_value("irq", "msix, msi or intx")),
        };
        let faults = match spec.text("fault") {
            None => FaultPlan::default(),
            Some(text) => FaultPlan::parse(text).ok_or_else(|| spec.bad_value("fault", FaultPlan::POSSIBLE))?,
        };
        let seed = spec.key("seed", "a number")?.unwrap_or(1);
        Ok(Self { name: spec.address().into(), queues, rate, gap, size, wire, irq, faults, seed })
    }
}

fn parse_gap(spec: &PortSpec, rate: Rate) -> Result<Gap, SpecError> {
    let Some(text) = spec.text("gap") else { return Ok(Gap::Even) };
    let gap = match (text, text.strip_prefix("burst:")) {
        ("even", _) => Some(Gap::Even),
        ("poisson", _) => Some(Gap::Poisson),
        ("pareto", _) => Some(Gap::Pareto),
        (_, Some(frames)) => frames.parse().ok().filter(|n| *n > 0).map(Gap::Burst),
        _ => None,
    };
    let gap = gap.ok_or_else(|| spec.bad_value("gap", "even, poisson, pareto or burst:N with 1 to 65535 frames"))?;
    if rate == Rate::Max && gap != Gap::Even {
        return Err(
            spec.bad_value("gap", "nothing but even with rate=max, which leaves no gaps; give a number as rate")
        );
    }
    Ok(gap)
}

fn parse_size(text: &str) -> Option<RangeInclusive<u16>> {
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    let (low, high) = (low.parse().ok()?, high.parse().ok()?);
    (SIZES.contains(&low) && SIZES.contains(&high) && low <= high).then_some(low..=high)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(spec: &str) -> Result<SoftSpec, SpecError> {
        SoftSpec::parse(&spec.parse().unwrap())
    }

    #[test]
    fn the_defaults() {
        let spec = parse("soft:").unwrap();
        assert_eq!((spec.queues, spec.rate, spec.size), (4, Rate::PerSecond(DEFAULT_RATE), 60..=60));
        assert_eq!(parse("soft:,wire=a").unwrap().rate, Rate::Silent);
        assert_eq!(parse("soft:,wire=loop").unwrap().wire, Wire::Loop);
    }

    #[test]
    fn gaps_are_read() {
        let gap = |text: &str| parse(&format!("soft:,rate=1000,gap={text}")).map(|spec| spec.gap);
        assert_eq!(parse("soft:").unwrap().gap, Gap::Even);
        for (text, expected) in [
            ("even", Gap::Even),
            ("poisson", Gap::Poisson),
            ("pareto", Gap::Pareto),
            ("burst:1", Gap::Burst(1)),
            ("burst:65535", Gap::Burst(65535)),
        ] {
            assert_eq!(gap(text).unwrap(), expected);
        }
        for text in ["odd", "burst", "burst:", "burst:0", "burst:65536", "burst:-1", "poisson:2"] {
            let error = gap(text).unwrap_err().to_string();
            assert!(error.contains(&format!("gap={text} is not possible; gap takes even, poisson")), "{error}");
        }
        let error = parse("soft:,rate=max,gap=poisson").unwrap_err().to_string();
        assert!(error.contains("with rate=max"), "{error}");
    }

    #[test]
    fn every_key_is_read() {
        let spec =
            parse("soft:left,queues=16,rate=max,gap=even,size=60-1514,wire=w,irq=intx,fault=drop:1%,seed=7").unwrap();
        assert_eq!((spec.name.as_str(), spec.queues, spec.rate, spec.seed), ("left", 16, Rate::Max, 7));
        assert_eq!((spec.size, spec.wire, spec.irq), (60..=1514, Wire::Cable("w".into()), IrqKind::Intx));
    }

    #[test]
    fn what_is_not_possible_is_refused_by_name() {
        for (spec, key) in [
            ("soft:,queues=0", "queues=0"),
            ("soft:,queues=17", "queues=17"),
            ("soft:,rate=fast", "rate=fast"),
            ("soft:,rate=-1", "rate=-1"),
            ("soft:,size=59", "size=59"),
            ("soft:,size=9217", "size=9217"),
            ("soft:,size=100-60", "size=100-60"),
            ("soft:,irq=smi", "irq=smi"),
            ("soft:,fault=fire", "fault=fire"),
            ("soft:,seed=x", "seed=x"),
            ("soft:,quues=1", "quues"),
        ] {
            let error = parse(spec).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
    }
}
