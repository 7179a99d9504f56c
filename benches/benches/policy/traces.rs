//! Traffic: what comes when.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::Path;

use pcap_parser::{Block, PcapBlockOwned, PcapError};

use super::replay::Gaps;

/// Named traffic.
#[derive(Debug)]
pub(crate) struct Trace {
    pub(crate) name: String,
    /// Whether it is the same kind of traffic from beginning to end; `None` where nobody knows.
    pub(crate) steady: Option<bool>,
    pub(crate) gaps: Gaps,
}

/// Gaps of most traces.
const GAPS: usize = 100_000;

/// All made-up traffic, on a machine where a sleep costs `sleep_ns`.
pub(crate) fn all(sleep_ns: u64) -> Vec<Trace> {
    let w = sleep_ns as f64;
    let mut random = Random(42);
    let mut traces = Vec::new();
    let mut add = |name: &str, steady, gaps| {
        traces.push(Trace { name: name.into(), steady: Some(steady), gaps: Gaps::Fixed(gaps) })
    };
    for mean in [0.2, 0.8, 1.2, 5.0] {
        add(&format!("every {mean} W"), true, vec![(mean * w) as u64; GAPS]);
    }
    for mean in [0.1, 0.5, 1.0, 2.0, 10.0] {
        add(&format!("Poisson, mean {mean} W"), true, poisson(&mut random, mean * w, GAPS));
    }
    add("Pareto on/off", true, on_off(&mut random, w));
    add("20 frames once a second", true, broken_silence());
    let ramp = |i: usize| w * 0.02 * 5_000f64.powf(i as f64 / GAPS as f64);
    add("ramp, 0.02 W to 100 W", false, (0..GAPS).map(|i| random.exponential(ramp(i))).collect());
    let phase = GAPS / 10;
    let periodic = |i: usize| if (i / phase).is_multiple_of(2) { 0.6 * w } else { 4.0 * w };
    add("every 0.6 W / every 4 W", false, (0..GAPS).map(|i| periodic(i) as u64).collect());
    let quick = GAPS / 200;
    let mixed = |i: usize| if (i / quick).is_multiple_of(2) { 0.3 * w } else { 8.0 * w };
    add("Poisson 0.3 W / 8 W", false, (0..GAPS).map(|i| random.exponential(mixed(i))).collect());
    traces.push(Trace { name: "adversary".into(), steady: None, gaps: Gaps::Adversary(GAPS) });
    traces
}

/// A Poisson process.
pub(crate) fn poisson(random: &mut Random, mean_ns: f64, count: usize) -> Vec<u64> {
    (0..count).map(|_| random.exponential(mean_ns)).collect()
}

/// Bursts of frames 0.05 W apart, with heavy-tailed numbers of frames and silences between them.
fn on_off(random: &mut Random, w: f64) -> Vec<u64> {
    let mut gaps = Vec::new();
    while gaps.len() < GAPS {
        for _ in 0..random.pareto(50.0, 1.3).min(1e4) as usize {
            gaps.push(random.exponential(0.05 * w));
        }
        gaps.push(random.pareto(4.0 * w, 1.3).min(1e9) as u64);
    }
    gaps.truncate(GAPS);
    gaps
}

/// A second of silence, then 20 frames.
fn broken_silence() -> Vec<u64> {
    (0..300).flat_map(|_| std::iter::once(1_000_000_000).chain([1_500; 19])).collect()
}

/// Time between frames of a capture (pcap or pcapng).
///
/// # Errors
///
/// When it cannot be read, or holds fewer than two frames.
pub(crate) fn captured(path: &Path) -> Result<Trace, CaptureError> {
    let failed = |why: String| CaptureError { path: path.display().to_string(), why };
    let times_ns = arrivals_ns(path).map_err(failed)?;
    if times_ns.len() < 2 {
        return Err(failed("it holds fewer than two frames".into()));
    }
    // Frames of several cores may stand in the file a little out of order.
    let gaps = times_ns.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).collect();
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    Ok(Trace { name: format!("captured: {name}"), steady: None, gaps: Gaps::Fixed(gaps) })
}

/// A capture was not understood.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {why}; give a pcap or pcapng file with --pcap")]
pub(crate) struct CaptureError {
    path: String,
    why: String,
}

fn arrivals_ns(path: &Path) -> Result<Vec<u64>, String> {
    let file = File::open(path).map_err(|error: io::Error| error.to_string())?;
    let mut reader = pcap_parser::create_reader(1 << 16, BufReader::new(file)).map_err(|error| error.to_string())?;
    let mut times_ns = Vec::new();
    // Of a legacy file: nanoseconds of its fractions. Of pcapng: units a second and offset in seconds, for each interface.
    let mut fraction_ns = 1_000;
    let mut interfaces: Vec<(u64, i64)> = Vec::new();
    loop {
        let consumed = match reader.next() {
            Ok((consumed, block)) => {
                match block {
                    PcapBlockOwned::LegacyHeader(header) => {
                        fraction_ns = if header.is_nanosecond_precision() { 1 } else { 1_000 };
                    }
                    PcapBlockOwned::Legacy(frame) => {
                        times_ns.push(u64::from(frame.ts_sec) * 1_000_000_000 + u64::from(frame.ts_usec) * fraction_ns);
                    }
                    PcapBlockOwned::NG(Block::SectionHeader(_)) => interfaces.clear(),
                    PcapBlockOwned::NG(Block::InterfaceDescription(interface)) => {
                        let units = interface.ts_resolution().ok_or("an interface's time resolution makes no sense")?;
                        interfaces.push((units, interface.if_tsoffset));
                    }
                    PcapBlockOwned::NG(Block::EnhancedPacket(frame)) => {
                        let (units, offset) = *interfaces
                            .get(frame.if_id as usize)
                            .ok_or("a frame names an interface that does not exist")?;
                        let (seconds, fraction) = frame.decode_ts(offset as u64, units);
                        times_ns
                            .push(u64::from(seconds) * 1_000_000_000 + u64::from(fraction) * (1_000_000_000 / units));
                    }
                    PcapBlockOwned::NG(_) => {}
                }
                consumed
            }
            Err(PcapError::Eof) => return Ok(times_ns),
            Err(PcapError::Incomplete(_)) => {
                reader.refill().map_err(|error| error.to_string())?;
                continue;
            }
            Err(error) => return Err(error.to_string()),
        };
        reader.consume(consumed);
    }
}

/// A small generator of random numbers (SplitMix64): the same on every run.
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// From above 0 to 1.
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (((z ^ (z >> 31)) >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    fn exponential(&mut self, mean_ns: f64) -> u64 {
        (-self.unit().ln() * mean_ns) as u64
    }

    fn pareto(&mut self, least: f64, shape: f64) -> f64 {
        least * self.unit().powf(-1.0 / shape)
    }
}
