//! Traces of gaps, the same on every run.

use super::W;

/// A small generator of random numbers (SplitMix64).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From above 0 to 1.
    pub(super) fn unit(&mut self) -> f64 {
        ((self.bits() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Gaps of a Poisson process.
    pub(super) fn exponential(&mut self, mean_ns: f64) -> u64 {
        (-self.unit().ln() * mean_ns) as u64
    }

    /// Heavy-tailed, not shorter than `least_ns`, at most 10 s.
    pub(super) fn pareto(&mut self, least_ns: f64, shape: f64) -> u64 {
        (least_ns * self.unit().powf(-1.0 / shape)).min(1e10) as u64
    }
}

/// Named traces of one kind of traffic each.
pub(super) fn steady() -> Vec<(String, Vec<u64>)> {
    let mut random = Random(1);
    let w = W as f64;
    let mut traces = Vec::new();
    for share in [0.04, 0.4, 0.9, 0.99, 1.01, 1.1, 2.0, 40.0] {
        traces.push((format!("every {share} W"), vec![(share * w) as u64; 20_000]));
        let noisy = (0..20_000).map(|_| (share * w * (0.95 + 0.1 * random.unit())) as u64).collect();
        traces.push((format!("every {share} W, a twentieth early or late"), noisy));
    }
    for mean in [0.1, 0.5, 0.8, 1.0, 1.2, 2.0, 10.0] {
        let gaps = (0..50_000).map(|_| random.exponential(mean * w)).collect();
        traces.push((format!("Poisson, mean {mean} W"), gaps));
    }
    for (on, shape) in [(20, 1.2), (200, 1.5), (2_000, 1.5)] {
        traces.push((
            format!("bursts of Pareto({shape}) length, at least {on} frames"),
            on_off(&mut random, on, shape, 50_000),
        ));
    }
    let two = (0..50_000).map(|_| if random.unit() < 0.7 { 8_000 } else { 60_000 }).collect();
    traces.push(("8 us or 60 us".into(), two));
    let three = (0..50_000).map(|_| [2_000, 22_000, 400_000][random.bits() as usize % 3]).collect();
    traces.push(("2 us, 22 us or 400 us".into(), three));
    traces.push(("silence broken once a second by 20 frames".into(), broken_silence(200)));
    traces
}

/// Named traces of traffic that changes.
pub(super) fn changing() -> Vec<(String, Vec<u64>)> {
    let mut random = Random(2);
    let w = W as f64;
    let mut traces = Vec::new();
    for phase in [500, 5_000, 20_000] {
        let gaps =
            (0..8 * phase).map(|i| if i / phase % 2 == 0 { (0.5 * w) as u64 } else { (3.0 * w) as u64 }).collect();
        traces.push((format!("every 0.5 W, every 3 W, {phase} gaps each"), gaps));
        let gaps =
            (0..8 * phase).map(|i| random.exponential(if i / phase % 2 == 0 { 0.4 * w } else { 8.0 * w })).collect();
        traces.push((format!("Poisson, mean 0.4 W or 8 W, {phase} gaps each"), gaps));
    }
    let ramp =
        (0..100_000).map(|i| (w * 0.02 * 5_000f64.powf(f64::from(i) / 1e5) * (0.9 + 0.2 * random.unit())) as u64);
    traces.push(("a ramp from 0.02 W to 100 W".into(), ramp.collect()));
    traces
}

/// Bursts of frames 0.05 W apart, with a Pareto-distributed number of frames and silence between them.
pub(super) fn on_off(random: &mut Random, on: u64, shape: f64, len: usize) -> Vec<u64> {
    let mut gaps = Vec::new();
    while gaps.len() < len {
        for _ in 0..random.pareto(on as f64, shape).min(20_000) {
            gaps.push(random.exponential(0.05 * W as f64));
        }
        gaps.push(random.pareto(4.0 * W as f64, shape));
    }
    gaps.truncate(len);
    gaps
}

fn broken_silence(seconds: usize) -> Vec<u64> {
    let mut gaps = Vec::new();
    for _ in 0..seconds {
        gaps.push(1_000_000_000);
        gaps.extend([1_500; 19]);
    }
    gaps
}
