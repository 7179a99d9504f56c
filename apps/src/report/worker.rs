//! What a worker did and how it waited, for people and for programs.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use serde::Serialize;
use spinwake::cpu::Chosen;
use spinwake::wait::{SourceWakes, WaitPolicy};

use super::{PercentilesUs, Share};
use crate::perf::PerfReport;
use crate::worker::{WorkerCounts, WorkerWatch};

/// What a worker did.
#[derive(Debug, Serialize)]
pub struct WorkerReport {
    /// The core it ran on.
    pub core: usize,
    /// Whether the kernel keeps other tasks off that core.
    pub isolated: bool,
    /// How it waited: the policy as `--wait` takes it.
    pub wait: String,
    /// Why the policy's target could not be kept by choosing when to sleep, as of late, and what happened instead; `None` if it
    /// could.
    pub verdict: Option<String>,
    /// Frames that it moved.
    pub frames: u64,
    /// Its share of time with work, 0 to 1.
    pub busy_share: f64,
    /// Its share of time awake without work, 0 to 1: polling, relaxing, going to sleep and coming back.
    pub poll_share: f64,
    /// Its share of time asleep, 0 to 1.
    pub sleep_share: f64,
    /// Its thread's processor time as the kernel accounts for it, as a share of a core, 0 to 1; `None` where the kernel does
    /// not say.
    pub cpu_share: Option<f64>,
    /// Times that it slept.
    pub parks: u64,
    /// Sleeps that an interrupt ended without work.
    pub spurious: u64,
    /// Work that only the time limit of a sleep found: lost interrupts. Zero in a healthy system.
    pub rescues: u64,
    /// Sleeps that turned out to have been the wrong choice: work came sooner than a wake-up takes.
    pub regret: u64,
    /// From the moment of a wake-up to the worker's return from the kernel; `None` when none was measured. Measured where that moment is
    /// known: for signals of other threads and for time limits of sleeps. A device does not tell when it raised an interrupt, so its
    /// wake-ups are not among them.
    pub wake_us: Option<PercentilesUs>,
    /// How long idle gaps lasted, from the last work to the next; `None` when there was none.
    pub gap_us: Option<PercentilesUs>,
    /// What could wake it, and how often it did.
    pub wakes: Vec<SourceReport>,
    /// What the processor counted, if it was asked.
    pub perf: Option<PerfReport>,
}

/// One source of wake-ups.
#[derive(Debug, Clone, Serialize)]
pub struct SourceReport {
    /// Its name.
    pub source: String,
    /// How it wakes; where it cannot, why.
    pub how: String,
    /// Sleeps that it ended, and there was work. Of sources that share an interrupt, each that had work counts.
    pub wakes: u64,
}

impl WorkerReport {
    /// All that `watch` shows of a worker on `core`, after its end. `watched` is what was counted in `time` while it ran: the kernel's
    /// account of a thread ends with it.
    pub fn new(
        core: &Chosen,
        wait: WaitPolicy,
        watch: &WorkerWatch,
        (watched, time): (&WorkerCounts, Duration),
        perf: Option<PerfReport>,
    ) -> Self {
        let (counts, waits) = (watch.counts(), watch.waits());
        let [busy_share, poll_share, sleep_share] = counts.shares().unwrap_or_default();
        Self {
            core: core.core,
            isolated: core.isolated == Some(true),
            wait: wait.to_string(),
            verdict: waits.verdict(),
            frames: counts.frames,
            busy_share,
            poll_share,
            sleep_share,
            cpu_share: watched.cpu.map(|cpu| cpu.as_secs_f64() / time.as_secs_f64()),
            parks: counts.parks,
            spurious: counts.spurious,
            rescues: counts.rescues,
            regret: counts.regrets,
            wake_us: PercentilesUs::of(&waits.wake_ns.snapshot()),
            gap_us: PercentilesUs::of(&waits.gap_ns.snapshot()),
            wakes: waits.sources().iter().map(|source| SourceReport::of(source)).collect(),
            perf,
        }
    }
}

impl SourceReport {
    fn of(source: &SourceWakes) -> Self {
        Self { source: source.label.clone(), how: source.how.clone(), wakes: source.wakes.get() }
    }
}

impl fmt::Display for WorkerReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [busy, poll, sleep] = [self.busy_share, self.poll_share, self.sleep_share].map(Share);
        write!(f, "worker  core {}, {}; busy {busy}, poll {poll}, sleep {sleep} of the time", self.core, self.wait)?;
        if let Some(cpu) = self.cpu_share {
            write!(f, "; {} of a core by the kernel's account", Share(cpu))?;
        }
        if self.parks > 0 {
            self.sleeps(f)?;
        }
        if let Some(gaps) = self.gap_us {
            write!(f, "\ngaps    {gaps} without work ({} gaps)", gaps.samples)?;
        }
        if let Some(verdict) = &self.verdict {
            write!(f, "\ntarget  {verdict}")?;
        }
        if let Some(perf) = &self.perf {
            summarise_perf(f, perf, self.frames)?;
        }
        match self.rescues {
            0 => Ok(()),
            rescues => write!(
                f,
                "\nWARNING wake-ups were lost: {rescues} of {} sleeps ended by their time limit with work there, which had waited for milliseconds. \
                 Look which device's interrupts stay away (/proc/interrupts, the kernel's log), try another kind for \
                 it (irq=msi or irq=intx in its --port), and use --wait poll until they come",
                self.parks,
            ),
        }
    }
}

impl WorkerReport {
    fn sleeps(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { parks, spurious, rescues, regret, .. } = self;
        write!(f, "\nsleeps  {parks}; spurious wakes {spurious}, rescues {rescues}, regretted {regret}")?;
        let woke: Vec<_> = self.wakes.iter().filter(|source| source.wakes > 0).collect();
        for (index, source) in woke.iter().enumerate() {
            let word = if index == 0 { "\nwoken   by " } else { ", " };
            write!(f, "{word}{}: {}", source.source, source.wakes)?;
        }
        match &self.wake_us {
            Some(wake) => write!(
                f,
                "\nwake    {wake} until awake ({} by timers and threads; devices do not tell when they fire)",
                wake.samples
            ),
            None => Ok(()),
        }
    }
}

fn summarise_perf(f: &mut fmt::Formatter<'_>, perf: &PerfReport, frames: u64) -> fmt::Result {
    for perf in &perf.counts {
        write!(f, "\nperf    {} {}", perf.count, perf.name)?;
        if frames > 0 {
            write!(f, ", {:.3} per frame", perf.count as f64 / frames as f64)?;
        }
    }
    let reasons: BTreeSet<_> = perf.missing.iter().map(|(_, why)| why).collect();
    for why in reasons {
        let names: Vec<_> = perf.missing.iter().filter(|one| one.1 == *why).map(|one| one.0.as_str()).collect();
        write!(f, "\nperf    not counted here: {} ({why})", names.join(", "))?;
    }
    Ok(())
}
