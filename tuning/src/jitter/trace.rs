//! The kernel's tracers: what they saw in the gaps, and what they measure themselves.
//!
//! ```text
//! while the thread spins   osnoise, watching only; the scheduler's and interrupts' own events where the kernel has none
//! after it                 hwlat, timerlat: each has a kernel thread of its own that takes the core
//! ```
//!
//! Everything happens in an instance of tracefs (`instances/spinwake-tune`), which other users of tracing do not notice, and which
//! is gone afterwards. What osnoise keeps for the whole machine (`osnoise/cpus`, `osnoise/options`) is put back, by a shell that
//! outlives this program where that is killed.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use spinwake::clock::{Clock, ClockSource};

use super::guard::Guard;
use crate::host::Host;
use crate::units::{Ns, grouped};

/// What tracers saw of one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traced {
    /// Which tracer.
    pub tracer: String,
    /// What it saw, as in `irq 24 eth0-rx` or `thread kworker/1:1`.
    pub what: String,
    /// How often.
    pub count: u64,
    /// The longest, in nanoseconds, where it tells.
    pub max_ns: Option<u64>,
    /// All of them, in nanoseconds, where it tells.
    pub total_ns: Option<u64>,
}

/// Where tracefs is mounted: its own place, and that of before Linux 4.1.
const MOUNTS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
const NAME: &str = "spinwake-tune";
const OPTIONS: &str = "osnoise/options";
/// Events of osnoise that tell how long each took the core (Documentation/trace/osnoise-tracer.rst).
const NOISE: [&str; 4] = ["osnoise/nmi_noise", "osnoise/irq_noise", "osnoise/softirq_noise", "osnoise/thread_noise"];
/// Events of every kernel with tracing. Those of `irq_vectors` are x86's.
const PLAIN: [&str; 9] = [
    "sched/sched_switch",
    "irq/irq_handler_entry",
    "irq/softirq_entry",
    "irq_vectors/local_timer_entry",
    "irq_vectors/reschedule_entry",
    "irq_vectors/call_function_entry",
    "irq_vectors/call_function_single_entry",
    "irq_vectors/irq_work_entry",
    "nmi/nmi_handler",
];
/// For the core that is traced: some 50,000 events.
const BUFFER_KB: &str = "4096";
/// No trace that is longer is read to its end.
const LONGEST: u64 = 64 << 20;
/// A tracer that takes the core itself runs no longer than this.
const ALONE: Duration = Duration::from_secs(5);
/// Kinds of events that are told, the most frequent first.
const MOST: usize = 40;

/// Tracing that is on. Dropped, everything is as before.
#[derive(Debug)]
pub(super) struct Tracing<'a> {
    host: &'a Host,
    /// Where tracefs is.
    mount: &'static str,
    tracer: &'static str,
    /// Files outside of the instance with what is to be written there in the end, in the order in which they were changed.
    changed: Vec<(String, String)>,
    guard: Guard,
}

impl<'a> Tracing<'a> {
    /// Traces what happens on `core` from now on.
    ///
    /// # Errors
    ///
    /// A sentence that says why it cannot.
    pub(super) fn start(host: &'a Host, core: usize) -> Result<Self, String> {
        let mut tracing = Self::open(host, core)?;
        let clock = match Clock::get().source() {
            ClockSource::Tsc { .. } => "x86-tsc",
            ClockSource::Monotonic { .. } => "mono",
        };
        tracing.set("trace_clock", clock)?;
        let noise = tracing.has("osnoise") && tracing.change(OPTIONS, "NO_OSNOISE_WORKLOAD").is_ok();
        let events: &[&str] = if noise {
            tracing.tracer = "osnoise";
            &NOISE
        } else {
            &PLAIN
        };
        let on = events.iter().filter(|event| tracing.set(&format!("events/{event}/enable"), "1").is_ok()).count();
        if on == 0 {
            return Err("tracing: this kernel has neither osnoise nor events of the scheduler and of interrupts".into());
        }
        if noise {
            tracing.set("current_tracer", "osnoise")?;
        }
        tracing.set("tracing_on", "1")?;
        Ok(tracing)
    }

    /// Stops, and tells what was seen: all of it by kind, and in each of these stretches of time, in ticks of the clock.
    pub(super) fn stop(self, stretches: &[(u64, u64)]) -> (Vec<Traced>, Vec<Vec<String>>) {
        let stopped = self.set("tracing_on", "0");
        let text = self.trace();
        if stopped.is_err() {
            log::warn!("tracing could not be stopped before it was read: its figures may be too high");
        }
        digest(&text, self.tracer, stretches)
    }

    /// Which tracers that take the core themselves this kernel has, of hwlat and timerlat.
    pub(super) fn alone(&self) -> Vec<&'static str> {
        ["hwlat", "timerlat"].into_iter().filter(|name| self.has(name)).collect()
    }

    /// Runs a tracer that takes the core itself, and tells what it measured.
    ///
    /// # Errors
    ///
    /// A sentence that says why it cannot.
    pub(super) fn run_alone(
        host: &'a Host,
        core: usize,
        tracer: &'static str,
        length: Duration,
        stop: &AtomicBool,
    ) -> Result<Vec<Traced>, String> {
        let mut tracing = Self::open(host, core)?;
        if tracer == "timerlat" {
            tracing.change("osnoise/cpus", &core.to_string())?;
        }
        tracing.set("current_tracer", tracer)?;
        tracing.set("tracing_on", "1")?;
        let until = Instant::now() + length.min(ALONE);
        while Instant::now() < until && !stop.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(50));
        }
        tracing.set("tracing_on", "0")?;
        Ok(latencies(&tracing.trace(), tracer))
    }

    fn open(host: &'a Host, core: usize) -> Result<Self, String> {
        let mount = MOUNTS
            .into_iter()
            .find(|mount| host.has(format!("{mount}/available_tracers")))
            .ok_or("tracing: no tracefs that this user may read; run as root, and `mount -t tracefs nodev /sys/kernel/tracing`")?;
        let path = host.path(format!("{mount}/instances/{NAME}"));
        let guard = Guard::new(&path)
            .map_err(|error| format!("tracing: no shell that would end it if this program is killed: {error}"))?;
        // One that a killed run left behind goes first. If it stays, it is used again.
        let _ = fs::remove_dir(&path);
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(format!("tracing: {}: {error}; run as root", path.display()));
            }
            _ => {}
        }
        let tracing = Self { host, mount, tracer: "events", changed: Vec::new(), guard };
        tracing.set("tracing_on", "0")?;
        // Of one core alone: on a machine with hundreds, as much for each would be a gigabyte.
        tracing.set(&format!("per_cpu/cpu{core}/buffer_size_kb"), BUFFER_KB)?;
        tracing.set("tracing_cpumask", &mask(core))?;
        Ok(tracing)
    }

    fn has(&self, tracer: &str) -> bool {
        let all = self.host.read(format!("{}/available_tracers", self.mount)).unwrap_or_default();
        all.split_whitespace().any(|name| name == tracer)
    }

    /// Writes a file of the instance.
    fn set(&self, name: &str, value: &str) -> Result<(), String> {
        self.write(&format!("{}/instances/{NAME}/{name}", self.mount), value)
    }

    /// Writes a file of the whole machine, which is put back in the end.
    fn change(&mut self, name: &str, value: &str) -> Result<(), String> {
        let path = format!("{}/{name}", self.mount);
        let failed = |error| format!("tracing: {path}: {error}");
        let old = self.host.try_read(&path).map_err(failed)?;
        // `osnoise/options` takes one option at a time; other files take what they showed, and a line break for nothing.
        let old = match old.split_whitespace().find(|word| word.contains("OSNOISE_WORKLOAD")) {
            Some(word) if name == OPTIONS => word.to_owned(),
            _ if name == OPTIONS => return Err(format!("tracing: {path} has no OSNOISE_WORKLOAD")),
            _ if old.is_empty() => "\n".into(),
            _ => old,
        };
        self.guard.tell(&self.host.path(&path), &old).map_err(failed)?;
        self.changed.push((path.clone(), old));
        self.write(&path, value)
    }

    fn write(&self, path: &str, value: &str) -> Result<(), String> {
        let path = self.host.path(path);
        // Never makes a file: those of tracefs are there.
        let written = OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(&path)
            .and_then(|mut file| file.write_all(value.as_bytes()));
        written.map_err(|error| format!("tracing: {} could not be set to {value}: {error}", path.display()))
    }

    fn trace(&self) -> String {
        let mut bytes = Vec::new();
        let path = self.host.path(format!("{}/instances/{NAME}/trace", self.mount));
        let read = File::open(&path).and_then(|file| file.take(LONGEST).read_to_end(&mut bytes));
        if let Err(error) = read {
            log::warn!("the trace could not be read: {}: {error}", path.display());
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Tracing<'_> {
    fn drop(&mut self) {
        let mut failed = Vec::new();
        // The tracer first: it is what the other settings are for.
        failed.extend(self.set("tracing_on", "0").err());
        failed.extend(self.set("current_tracer", "nop").err());
        for (path, old) in self.changed.iter().rev() {
            failed.extend(self.write(path, old).err());
        }
        let path = self.host.path(format!("{}/instances/{NAME}", self.mount));
        failed.extend(fs::remove_dir(&path).err().map(|error| format!("{}: {error}", path.display())));
        if self.host.is_this() {
            failed.iter().for_each(|what| log::warn!("tracing was not put back as it was: {what}"));
        }
    }
}

/// A mask with one core, in the kernel's notation: 32 bits each, the highest first.
fn mask(core: usize) -> String {
    let mut text = format!("{:x}", 1u32 << (core % 32));
    text.push_str(&",00000000".repeat(core / 32));
    text
}

/// One line of a trace.
struct Line<'a> {
    /// In ticks, or nanoseconds where it was written as seconds.
    at: u64,
    event: &'a str,
    details: &'a str,
}

/// `<idle>-0  [001] d.h1. 1234567: irq_handler_entry: irq=24 name=eth0`; the flags may be missing.
fn parse(line: &str) -> Option<Line<'_>> {
    let rest = line.split_once(" [")?.1.split_once("] ")?.1;
    let (head, rest) = rest.split_once(": ")?;
    let at = head.split_whitespace().next_back()?;
    let (event, details) = rest.split_once(": ").or_else(|| Some((rest.strip_suffix(':')?, "")))?;
    let at = match at.split_once('.') {
        None => at.parse().ok()?,
        Some((seconds, micros)) if micros.len() == 6 => {
            let (seconds, micros): (u64, u64) = (seconds.parse().ok()?, micros.parse().ok()?);
            seconds.checked_mul(1_000_000)?.checked_add(micros)?.checked_mul(1_000)?
        }
        Some(_) => return None,
    };
    Some(Line { at, event: event.trim(), details: details.trim() })
}

/// What an event means, and how long it took where it tells.
fn meaning(event: &str, details: &str) -> Option<(String, Option<u64>)> {
    let field = |name: &str| details.split_once(name).map(|(_, rest)| rest);
    let word = |name: &str| field(name)?.split_whitespace().next();
    match event {
        "sched_switch" => {
            let next = field("next_comm=")?.split_once(" next_pid=")?.0;
            disturbs(next).then(|| (format!("thread {next}"), None))
        }
        "irq_handler_entry" => Some((format!("irq {} {}", word("irq=")?, word("name=").unwrap_or("")), None)),
        "softirq_entry" => Some((format!("softirq {}", word("[action=")?.trim_end_matches(']')), None)),
        "nmi_handler" => Some(("nmi".into(), None)),
        "irq_noise" | "softirq_noise" | "thread_noise" | "nmi_noise" => {
            let (what, rest) = details.split_once(" start ").unwrap_or(("", details));
            let ns = rest.split_once("duration ")?.1.split_whitespace().next()?.parse().ok()?;
            // `local_timer:236`, `kworker/1:1:57`: the number of the interrupt or thread says little.
            let what = what.rsplit_once(':').map_or(what, |(name, _)| name).trim();
            // Told not to make work of its own, osnoise counts every thread, the measuring one with all its time.
            if event == "thread_noise" && !disturbs(what) {
                return None;
            }
            Some((format!("{} {what}", event.trim_end_matches("_noise")).trim_end().to_owned(), Some(ns)))
        }
        vector => Some((format!("irq {}", vector.strip_suffix("_entry")?), None)),
    }
}

/// Whether a thread takes the core from the measuring one: not that itself, nor what runs there when nobody else does.
fn disturbs(thread: &str) -> bool {
    thread != "jitter" && !thread.starts_with("swapper/")
}

fn digest(text: &str, tracer: &str, stretches: &[(u64, u64)]) -> (Vec<Traced>, Vec<Vec<String>>) {
    let mut all: BTreeMap<String, Traced> = BTreeMap::new();
    let mut during: Vec<BTreeMap<String, u64>> = vec![BTreeMap::new(); stretches.len()];
    for line in text.lines().filter_map(parse) {
        let Some((what, took_ns)) = meaning(line.event, line.details) else { continue };
        for (seen, _) in during.iter_mut().zip(stretches).filter(|(_, (from, to))| (*from..=*to).contains(&line.at)) {
            *seen.entry(what.clone()).or_default() += 1;
        }
        let tracer = tracer.to_owned();
        let kind = Traced { tracer, what: what.clone(), count: 0, max_ns: None, total_ns: None };
        all.entry(what).or_insert(kind).add(took_ns);
    }
    let mut all: Vec<Traced> = all.into_values().collect();
    all.sort_by_key(|kind| std::cmp::Reverse((kind.total_ns, kind.count)));
    all.truncate(MOST);
    let told = |(what, count): (String, u64)| if count == 1 { what } else { format!("{what} ({}x)", grouped(count)) };
    (all, during.into_iter().map(|seen| seen.into_iter().map(told).take(6).collect()).collect())
}

impl Traced {
    fn add(&mut self, took_ns: Option<u64>) {
        self.count += 1;
        if let Some(ns) = took_ns {
            self.max_ns = self.max_ns.max(Some(ns));
            self.total_ns = Some(self.total_ns.unwrap_or(0).saturating_add(ns));
        }
    }
}

impl std::fmt::Display for Traced {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}, {} times", self.tracer, self.what, grouped(self.count))?;
        if let Some(ns) = self.max_ns {
            write!(f, ", the longest {}", Ns(ns))?;
        }
        if let Some(ns) = self.total_ns {
            write!(f, ", {} in all", Ns(ns))?;
        }
        Ok(())
    }
}

/// What hwlat and timerlat measured (Documentation/trace/hwlat_detector.rst and timerlat-tracer.rst).
fn latencies(text: &str, tracer: &str) -> Vec<Traced> {
    let mut all: BTreeMap<String, Traced> = BTreeMap::new();
    let mut add = |what: &str, ns: u64| {
        let none = Traced { tracer: tracer.into(), what: what.into(), count: 0, max_ns: None, total_ns: None };
        all.entry(what.to_owned()).or_insert(none).add(Some(ns));
    };
    for line in text.lines() {
        if let Some((_, rest)) = line.split_once("inner/outer(us):") {
            let two = rest.split_whitespace().next().and_then(|two| two.split_once('/'));
            let longest = two.and_then(|(a, b)| Some(a.parse::<u64>().ok()?.max(b.parse().ok()?)));
            if let Some(us) = longest {
                add("hardware or firmware stopped the core", us.saturating_mul(1_000));
            }
        } else if let Some((context, rest)) = line.split_once("timer_latency")
            && let Some(ns) = rest.split_whitespace().next().and_then(|ns| ns.parse().ok())
        {
            let context = context.split_whitespace().next_back().unwrap_or("");
            add(if context == "irq" { "from a timer to its interrupt" } else { "from a timer to its thread" }, ns);
        }
    }
    all.into_values().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TRACE: &str = "\
# tracer: nop
          jitter-99  [001] d.h1. 1000100: local_timer_entry: vector=236
          jitter-99  [001] d.h1. 1000150: irq_handler_entry: irq=24 name=eth0-rx
          jitter-99  [001] d.s1. 1000160: softirq_entry: vec=3 [action=NET_RX]
          jitter-99  [001] d..2. 1000200: sched_switch: prev_comm=jitter prev_pid=99 prev_prio=120 prev_state=R ==> next_comm=kworker/1:1 x next_pid=57 next_prio=120
     kworker/1:1-57  [001] d..2. 1000300: sched_switch: prev_comm=kworker/1:1 prev_pid=57 prev_prio=120 prev_state=I ==> next_comm=jitter next_pid=99 next_prio=120
          jitter-99  [001] d..2. 1900100: sched_switch: prev_comm=jitter prev_pid=99 prev_prio=120 prev_state=S ==> next_comm=swapper/1 next_pid=0 next_prio=120
          jitter-99  [001] d.h1. 2000100: local_timer_entry: vector=236
          jitter-99  [001] d.h1. garbage: local_timer_entry: vector=236
";

    #[test]
    fn events_are_counted_by_kind_and_by_gap() {
        let (all, during) =
            digest(TRACE, "events", &[(1_000_000, 1_000_250), (3_000_000, 4_000_000), (2_000_100, 2_000_100)]);
        let count = |what: &str| all.iter().find(|kind| kind.what == what).map(|kind| kind.count);
        assert_eq!(count("irq local_timer"), Some(2));
        assert_eq!(
            (count("irq 24 eth0-rx"), count("softirq NET_RX"), count("thread kworker/1:1 x")),
            (Some(1), Some(1), Some(1))
        );
        assert_eq!((count("thread jitter"), count("thread swapper/1")), (None, None));
        assert_eq!(during[0], ["irq 24 eth0-rx", "irq local_timer", "softirq NET_RX", "thread kworker/1:1 x"]);
        assert_eq!((during[1].len(), during[2].as_slice()), (0, ["irq local_timer".to_owned()].as_slice()));
    }

    #[test]
    fn noise_has_durations() {
        let text = "\
     osnoise/1-960   [001] d.h.  5772.321948: irq_noise: local_timer:236 start 5772.321941390 duration 3471 ns
     osnoise/1-960   [001] ....  5772.322948: thread_noise: kworker/1:1:57 start 5772.322 duration 9000 ns
          jitter-99  [001] ....  5772.422948: thread_noise:   jitter:99 start 5772.322 duration 900000 ns
          <idle>-0   [001] ....  5772.522948: thread_noise: swapper/1:0 start 5772.422 duration 900000 ns
     osnoise/1-960   [001] d.h.  5773.321948: irq_noise: local_timer:236 start 5773.321941390 duration 1000 ns
";
        let (all, during) = digest(text, "osnoise", &[(5_772_321_900_000, 5_772_322_000_000)]);
        assert_eq!((all[0].what.as_str(), all[0].max_ns), ("thread kworker/1:1", Some(9_000)));
        assert_eq!((all[1].what.as_str(), all[1].count, all[1].total_ns), ("irq local_timer", 2, Some(4_471)));
        assert_eq!(during, [["irq local_timer"]]);
    }

    #[test]
    fn what_hwlat_and_timerlat_say_is_read() {
        let hwlat = " <...>-1729  [001] d...   678.473449: #1  inner/outer(us):   11/12    ts:1581527483.343962693 count:6\n <...>-1729 [001] d... 679.0: #2 inner/outer(us): x/9\n";
        let traced = latencies(hwlat, "hwlat");
        assert_eq!((traced.len(), traced[0].count, traced[0].max_ns), (1, 1, Some(12_000)));
        let timerlat = "   <idle>-0  [001] d.h1    54.029328: #1  context    irq timer_latency       932 ns\n    <...>-867 [001] ....    54.029339: #1  context thread timer_latency     11700 ns\n";
        let traced = latencies(timerlat, "timerlat");
        assert_eq!((traced.len(), traced[0].max_ns, traced[1].max_ns), (2, Some(932), Some(11_700)));
    }

    #[test]
    fn a_mask_has_one_core() {
        assert_eq!((mask(0), mask(5), mask(33)), ("1".into(), "20".into(), "2,00000000".into()));
    }

    /// A tracefs made of files, with osnoise.
    fn tree() -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        let host = Host::at(root.path());
        let mount = host.path(MOUNTS[0]);
        let instance = mount.join("instances").join(NAME);
        for folder in NOISE.map(|event| instance.join("events").join(event)).iter().chain([&mount.join("osnoise")]) {
            fs::create_dir_all(folder).unwrap();
        }
        fs::create_dir_all(instance.join("per_cpu/cpu1")).unwrap();
        for name in ["tracing_on", "per_cpu/cpu1/buffer_size_kb", "tracing_cpumask", "trace_clock", "current_tracer"] {
            fs::write(instance.join(name), "").unwrap();
        }
        for event in NOISE {
            fs::write(instance.join("events").join(event).join("enable"), "0").unwrap();
        }
        fs::write(instance.join("trace"), TRACE).unwrap();
        fs::write(mount.join("available_tracers"), "hwlat timerlat osnoise nop\n").unwrap();
        fs::write(mount.join("osnoise/options"), "NO_PANIC_ON_STOP OSNOISE_WORKLOAD\n").unwrap();
        fs::write(mount.join("osnoise/cpus"), "0-3\n").unwrap();
        (root, host)
    }

    #[test]
    fn tracing_is_started_and_put_back() {
        let (_root, host) = tree();
        let read = |name: &str| host.read(format!("{}/{name}", MOUNTS[0])).unwrap();
        let tracing = Tracing::start(&host, 1).unwrap();
        assert_eq!(read("osnoise/options"), "NO_OSNOISE_WORKLOAD");
        assert_eq!(read("instances/spinwake-tune/current_tracer"), "osnoise");
        assert_eq!(read("instances/spinwake-tune/tracing_on"), "1");
        assert_eq!(read("instances/spinwake-tune/tracing_cpumask"), "2");
        assert_eq!(tracing.alone(), ["hwlat", "timerlat"]);
        let (traced, _) = tracing.stop(&[]);
        assert!(!traced.is_empty());
        assert_eq!(read("osnoise/options"), "OSNOISE_WORKLOAD");
        assert_eq!(read("instances/spinwake-tune/current_tracer"), "nop");
        let stop = AtomicBool::new(true);
        for cpus in ["0-3", ""] {
            fs::write(host.path(format!("{}/osnoise/cpus", MOUNTS[0])), cpus).unwrap();
            Tracing::run_alone(&host, 1, "timerlat", ALONE, &stop).unwrap();
            assert_eq!(read("osnoise/cpus"), cpus);
        }
    }

    #[test]
    fn without_tracefs_there_is_a_sentence() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::at(root.path());
        assert!(Tracing::start(&host, 0).unwrap_err().contains("tracefs"));
    }

    proptest! {
        #[test]
        fn no_trace_panics(text in "[ a-z0-9=>:.\\[\\]/_\n-]{0,200}", bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for text in [text, String::from_utf8_lossy(&bytes).into_owned()] {
                let _ = (digest(&text, "events", &[(0, u64::MAX)]), latencies(&text, "hwlat"));
                for event in ["sched_switch", "irq_noise", "softirq_entry", "irq_handler_entry"] {
                    let _ = meaning(event, &text);
                }
            }
        }
    }
}
