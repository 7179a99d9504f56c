//! What the figures mean, in plain words, and what mends it.

use super::blame::Blame;
use super::gaps::Gaps;

/// More timer interrupts a second than this are a tick that did not stop.
const TICK_PER_SECOND: f64 = 5.0;

/// What the kernel was told at boot of a core.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Told {
    /// To leave it alone.
    pub(super) isolated: bool,
    /// To stop its tick.
    pub(super) tickless: bool,
}

/// What took the core and how to mend it, the worst first; one sentence each.
pub(super) fn advice(core: usize, told: Told, gaps: &Gaps, blame: &Blame) -> Vec<String> {
    let mut advice = Vec::new();
    let boot = format!("`spinwake-tune apply low-latency --cores {core} --boot` and a reboot");
    let now = format!("`spinwake-tune apply low-latency --cores {core}`");
    if gaps.count == 0 {
        advice.push(format!("core {core} was never away: nothing to mend"));
        return advice;
    }
    if !blame.tasks.is_empty() || blame.preempted.is_some_and(|n| n > 0) {
        let mut names: Vec<&str> = Vec::new();
        for task in &blame.tasks {
            if names.len() < 3 && !names.contains(&task.name.as_str()) {
                names.push(&task.name);
            }
        }
        let who = if names.is_empty() { "other threads".into() } else { names.join(", ") };
        advice.push(if told.isolated {
            format!(
                "other threads ran on core {core} ({who}) though it is isolated: they were put there, or serve the core itself; \
                 {now} moves what can be moved"
            )
        } else {
            format!("other threads ran on core {core} ({who}): isolate it with {boot}; until then {now} moves what can be moved")
        });
    }
    let ticks = blame.interrupts.iter().find(|event| event.id == "LOC").map_or(0.0, |event| gaps.rate(event.count));
    if ticks > TICK_PER_SECOND {
        advice.push(if told.tickless {
            format!(
                "the timer interrupts core {core} {ticks:.0} times a second though its tick may stop (nohz_full): it does so while \
                 nothing but one thread wants to run there"
            )
        } else {
            format!("the timer interrupts core {core} {ticks:.0} times a second: nohz_full stops it, with {boot}")
        });
    }
    // Those with a number are devices; names are the processors' own.
    let devices = blame.interrupts.iter().filter(|event| event.id.bytes().all(|b| b.is_ascii_digit()));
    let devices: Vec<&str> =
        devices.map(|event| event.what.rsplit(' ').next().unwrap_or(&event.what)).take(3).collect();
    if !devices.is_empty() {
        advice.push(format!("devices interrupt core {core} ({}): {now} moves them to other cores", devices.join(", ")));
    }
    let between =
        ["RES", "CAL", "TLB"].map(|id| blame.interrupts.iter().find(|event| event.id == id).map_or(0, |e| e.count));
    if gaps.rate(between.iter().sum()) > 1.0 {
        let isolate = if told.isolated { "" } else { "isolate it, and " };
        advice.push(format!(
            "other cores interrupt core {core} {:.0} times a second (rescheduling, function calls, TLB): {isolate}let no \
             thread of the measured program's process map memory while it runs",
            gaps.rate(between.iter().sum())
        ));
    }
    if blame.steal_ns.is_some_and(|ns| ns > 0) {
        advice.push(
            "the hypervisor gave the core to somebody else: on the host, pin this virtual core to a core of its own"
                .into(),
        );
    }
    let explained: u64 = blame.interrupts.iter().chain(&blame.softirqs).map(|event| event.count).sum::<u64>()
        + blame.tasks.iter().map(|task| task.times).sum::<u64>();
    if gaps.count > 2 * explained + 10 {
        advice.push(format!(
            "{} of {} gaps have no cause that the kernel counts: a hypervisor that does not tell, or firmware (SMI); `--trace` with \
             the hwlat tracer can tell which, as root",
            gaps.count - explained,
            gaps.count
        ));
    }
    if advice.is_empty() {
        advice
            .push("nothing here stands out; `--trace` tells what happened in each of the longest gaps, as root".into());
    }
    advice
}

#[cfg(test)]
mod tests {
    use super::super::blame::{Event, Ran};
    use super::*;

    fn gaps(count: u64) -> Gaps {
        Gaps { measured_ns: 1_000_000_000, count, ..Gaps::default() }
    }

    fn event(id: &str, what: &str, count: u64) -> Event {
        Event { id: id.into(), what: what.into(), count }
    }

    #[test]
    fn each_cause_has_its_remedy() {
        let blame = Blame {
            interrupts: vec![
                event("LOC", "Local timer interrupts", 250),
                event("24", "PCI-MSIX 0-edge eth0-rx", 40),
                event("RES", "", 9),
            ],
            tasks: [(5, "kworker/1:1"), (6, "sh"), (7, "sh")]
                .map(|(tid, name)| Ran { tid, name: name.into(), times: 1, ran_ns: 9 })
                .into(),
            steal_ns: Some(10),
            ..Blame::default()
        };
        let text = advice(1, Told::default(), &gaps(300), &blame).join("\n");
        for part in [
            "nohz_full",
            "eth0-rx",
            "(kworker/1:1, sh)",
            "hypervisor gave",
            "other cores interrupt",
            "--cores 1 --boot",
        ] {
            assert!(text.contains(part), "no {part} in {text}");
        }
        assert!(!text.contains("no cause"), "{text}");
        // What was done is not advised once more.
        let text = advice(1, Told { isolated: true, tickless: true }, &gaps(300), &blame).join("\n");
        assert!(!text.contains("--boot") && !text.contains("isolate it") && text.contains("though it is"), "{text}");
    }

    #[test]
    fn gaps_without_a_cause_are_said_to_have_none() {
        assert!(advice(0, Told::default(), &gaps(1_000), &Blame::default())[0].contains("hwlat"));
        assert!(advice(0, Told::default(), &gaps(0), &Blame::default())[0].contains("nothing to mend"));
        assert_eq!(advice(0, Told::default(), &gaps(3), &Blame::default()).len(), 1);
    }
}
