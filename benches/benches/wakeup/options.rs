//! What the command line says.

use std::time::Duration;

use clap::Parser;
use spinwake::wait::WaitPolicy;
use spinwake_pmd::soft::Gap;

/// Latency and processor time of the wait policies, on a soft port in real time.
#[derive(Debug, Clone, Parser)]
#[command(name = "wakeup")]
pub(crate) struct Options {
    /// How long each policy is measured in each round, in seconds
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    pub(crate) seconds: f64,
    /// How often all policies take turns at each traffic
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
    /// Mean gaps between frames, in microseconds
    #[arg(long, value_delimiter = ',', default_values_t = [5, 10, 100, 1000], value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) gaps: Vec<u32>,
    /// How gaps are distributed: even, poisson, pareto, burst:N
    #[arg(long, value_delimiter = ',', default_value = "even,poisson,burst:16")]
    pub(crate) patterns: Vec<Pattern>,
    /// Which policies take turns; the first one is what the others are compared with
    #[arg(long, value_delimiter = ',', default_value = "poll,interrupt,adaptive,adaptive:wake=200us,adaptive:cpu=10%")]
    pub(crate) policies: Vec<WaitPolicy>,
    /// Targets that are watched for a while each, beside the table; `none` for none of them
    #[arg(long, value_delimiter = ',', default_value = "adaptive:wake=200us,adaptive:wake=5us,adaptive:cpu=10%")]
    pub(crate) targets: Vec<OrNone>,
    /// How long each target is watched at each traffic, in seconds
    #[arg(long, default_value_t = 60.0, value_parser = seconds)]
    pub(crate) watch: f64,
    /// Rounds in which adaptive's p99 is compared with polling's, window by window; 0 for none
    #[arg(long, default_value_t = 60)]
    pub(crate) tails: u32,
    /// Mean gaps at which that is done, in microseconds: shorter than a wake-up
    #[arg(long, value_delimiter = ',', default_values_t = [5, 10], value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) tail_gaps: Vec<u32>,
    /// Real-time priority of all threads, 1 to 99: for a machine that has other work. With slices of more than half a second the
    /// kernel then interrupts polling for the sake of that
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=99))]
    pub(crate) fifo: Option<u8>,
    /// Everything for moments only: to see that it works
    #[arg(long)]
    pub(crate) quick: bool,
    /// Tables for a document
    #[arg(long)]
    pub(crate) markdown: bool,
    /// Draw the plots anew
    #[arg(long)]
    pub(crate) plots: bool,
    /// What cargo adds
    #[arg(long, hide = true)]
    pub(crate) bench: bool,
}

impl Options {
    /// With the changes that `--quick` stands for.
    pub(crate) fn read() -> Self {
        let mut options = Self::parse();
        if options.quick {
            (options.seconds, options.rounds, options.watch, options.tails) = (0.3, 1, 1.0, 2);
        }
        options
    }

    pub(crate) fn slice(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}

/// How gaps are distributed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pattern(pub(crate) Gap);

impl std::str::FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let burst = || text.strip_prefix("burst:").and_then(|frames| frames.parse().ok()).filter(|frames| *frames > 0);
        match text {
            "even" => Ok(Self(Gap::Even)),
            "poisson" => Ok(Self(Gap::Poisson)),
            "pareto" => Ok(Self(Gap::Pareto)),
            _ => burst().map(|frames| Self(Gap::Burst(frames))).ok_or_else(|| {
                format!("\"{text}\" is no distribution of gaps; there are even, poisson, pareto and burst:N")
            }),
        }
    }
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Gap::Even => f.write_str("even"),
            Gap::Poisson => f.write_str("Poisson"),
            Gap::Pareto => f.write_str("Pareto"),
            Gap::Burst(frames) => write!(f, "bursts of {frames}"),
        }
    }
}

/// A policy, or the word `none`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct OrNone(pub(crate) Option<WaitPolicy>);

impl std::str::FromStr for OrNone {
    type Err = spinwake::wait::ParsePolicyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "none" { Ok(Self(None)) } else { text.parse().map(|policy| Self(Some(policy))) }
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: Option<f64> = text.parse().ok().filter(|seconds| (0.05..=86_400.0).contains(seconds));
    seconds.ok_or_else(|| format!("\"{text}\" is no time to measure; write seconds, 0.05 to 86400"))
}
