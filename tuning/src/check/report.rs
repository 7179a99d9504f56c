//! What a check tells: all items, and what to do next.

use std::fmt::{self, Write};

use serde::Serialize;

use super::facts::{Facts, count, named};
use super::item::{Item, Remedy, State};
use super::workers::Origin;
use crate::output::Report;

/// The result of a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// Every item, group by group.
    pub items: Vec<Item>,
    /// What was looked at, in one line.
    #[serde(skip)]
    subject: String,
    /// The command that checks again.
    #[serde(skip)]
    pub(super) again: String,
    /// A core to measure on.
    #[serde(skip)]
    core: Option<usize>,
}

/// Columns of text; commands may be longer, so that they can be copied.
const WIDTH: usize = 110;

impl CheckReport {
    pub(super) fn new(facts: &Facts<'_>, items: Vec<Item>) -> Self {
        let release = facts
            .host
            .read("/proc/sys/kernel/osrelease")
            .map_or_else(|| "unknown".into(), |text| super::tasks::printable(&text));
        let cores =
            facts.online().map_or_else(|_| "an unknown number of cores".into(), |online| count(online.len(), "core"));
        let judged = match (facts.workers(), facts.origin()) {
            (Err(_), _) => "no core to judge for a worker".into(),
            (Ok(workers), Origin::Planned) => format!("judged for the workers planned on {}", named(workers)),
            (Ok(workers), Origin::Isolated) => format!("judged for workers on the isolated {}", named(workers)),
            (Ok(workers), Origin::Proposed) => {
                format!("judged for workers on {}, which could be isolated", named(workers))
            }
        };
        let core = facts.workers().ok().and_then(|workers| workers.iter().next());
        Self {
            items,
            subject: format!("Linux {release}, {cores}; {judged}"),
            again: "spinwake-tune check".into(),
            core,
        }
    }

    /// How many items are in that state.
    pub fn count(&self, state: State) -> usize {
        self.items.iter().filter(|item| item.state == state).count()
    }

    /// What to do next, in order: commands for root, and other things.
    fn next(&self) -> Vec<String> {
        let of = |state: State| self.items.iter().filter(move |item| item.state == state);
        let ailing = || of(State::Broken).chain(of(State::Costs));
        let mut steps = Vec::new();
        let mut add = |step: &str| {
            if !steps.iter().any(|known| known == step) {
                steps.push(step.to_owned());
            }
        };
        let at_boot = |item: &&Item| item.reboot && matches!(item.remedy, Remedy::Run(_));
        if ailing().any(|item| at_boot(&item)) {
            // What is done at run time is gone after a boot, so that comes first.
            ailing().filter(at_boot).for_each(|item| add(item.remedy.text()));
            add("reboot");
            add(&self.again);
            return steps;
        }
        for item in ailing() {
            if let Remedy::Run(command) = &item.remedy {
                add(command);
            }
        }
        if !steps.is_empty() {
            steps.push(self.again.clone());
            return steps;
        }
        if of(State::Unknown).any(|item| item.remedy != Remedy::Nothing) {
            return vec![format!("{}   # as root: it sees more", self.again)];
        }
        if ailing().any(|item| matches!(item.remedy, Remedy::Do(_))) {
            steps.push("# what stands under \"do:\" above, as far as it can be done here".into());
        }
        steps.extend(self.core.map(|core| format!("spinwake-tune jitter --core {core}   # measures what is left")));
        steps
    }
}

impl Report for CheckReport {
    fn exit_code(&self) -> u8 {
        u8::from(self.count(State::Broken) > 0)
    }
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.subject)?;
        let name_width = self.items.iter().map(|item| item.name().len()).max().unwrap_or(0);
        let mut groups: Vec<&str> = Vec::new();
        for item in &self.items {
            if !groups.contains(&item.group()) {
                groups.push(item.group());
            }
        }
        for group in groups {
            writeln!(f, "\n{}", title(group))?;
            let mut items: Vec<_> = self.items.iter().filter(|item| item.group() == group).collect();
            items.sort_by_key(|item| item.state);
            for item in items {
                show(f, item, name_width)?;
            }
        }
        let counts = [State::Broken, State::Costs, State::Unknown, State::Good].map(|state| (self.count(state), state));
        let [(broken, _), (costs, _), (unknown, _), (good, _)] = counts;
        write!(
            f,
            "\n{}: {broken} broken, {costs} cost latency, {unknown} unknown, {good} good.",
            count(self.items.len(), "item")
        )?;
        let next = self.next();
        if !next.is_empty() {
            write!(f, "\nNext, as root:")?;
        }
        next.iter().try_for_each(|step| write!(f, "\n    {step}"))
    }
}

fn show(f: &mut fmt::Formatter<'_>, item: &Item, name_width: usize) -> fmt::Result {
    let margin = 2 + 7 + 2 + name_width + 2;
    write!(f, "  {:<7}  {:<name_width$}  ", item.state, item.name())?;
    wrapped(f, &item.found, margin)?;
    if !item.cost.is_empty() {
        write!(f, "{:margin$}costs: ", "")?;
        wrapped(f, &item.cost, margin + 7)?;
    }
    let reboot = if item.reboot { "   (takes effect at the next boot)" } else { "" };
    match &item.remedy {
        Remedy::Nothing => Ok(()),
        Remedy::Run(command) => writeln!(f, "{:margin$}run:   {command}{reboot}", ""),
        Remedy::Do(what) => {
            write!(f, "{:margin$}do:    ", "")?;
            wrapped(f, &format!("{what}{reboot}"), margin + 7)
        }
    }
}

/// Writes a text whose first line starts at column `margin`, and further ones there, too.
fn wrapped(f: &mut fmt::Formatter<'_>, text: &str, margin: usize) -> fmt::Result {
    let room = WIDTH.saturating_sub(margin).max(40);
    let mut column = 0;
    for word in text.split_whitespace() {
        let width = word.chars().count();
        if column > 0 && column + 1 + width > room {
            write!(f, "\n{:margin$}", "")?;
            column = 0;
        } else if column > 0 {
            f.write_char(' ')?;
            column += 1;
        }
        f.write_str(word)?;
        column += width;
    }
    f.write_char('\n')
}

fn title(group: &str) -> &str {
    match group {
        "worker" => "Planned workers",
        "port" => "Planned ports",
        "cores" => "Cores",
        "interrupts" => "Interrupts",
        "kernel" => "Kernel",
        "power" => "Power",
        "memory" => "Memory",
        "devices" => "Devices",
        "user" => "This user",
        "machine" => "Machine",
        "container" => "Container",
        other => other,
    }
}
