//! Choosing the core for a worker.

use std::fmt;
use std::str::FromStr;

use super::set::CpuSet;
use super::topology::{Core, Topology};

/// Which core a worker is to run on: `auto`, or a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum CoreChoice {
    /// The quietest free one.
    #[default]
    Auto,
    /// This one.
    Core(usize),
}

/// A text is no [`CoreChoice`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no core: write `auto` or a core's number, as in `--core 3`")]
pub struct ParseCoreChoiceError(String);

impl FromStr for CoreChoice {
    type Err = ParseCoreChoiceError;

    fn from_str(text: &str) -> Result<Self, ParseCoreChoiceError> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = digits.then(|| text.parse().ok()).flatten();
        number.map(Self::Core).ok_or_else(|| ParseCoreChoiceError(text.to_owned()))
    }
}

impl fmt::Display for CoreChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Core(id) => write!(f, "{id}"),
        }
    }
}

/// Why a core cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CoreError {
    /// There is no such core.
    #[error("core {core} does not exist; this machine has cores {present}")]
    Missing {
        /// The one asked for.
        core: usize,
        /// Those there are.
        present: CpuSet,
    },
    /// It is switched off.
    #[error(
        "core {core} is offline; online are {online}. Choose one of them, or switch it on: \
         echo 1 > /sys/devices/system/cpu/cpu{core}/online"
    )]
    Offline {
        /// The one asked for.
        core: usize,
        /// Those that are on.
        online: CpuSet,
    },
    /// The process may not run there.
    #[error(
        "core {core} is not allowed for this process, only {}: its cgroup (cpuset.cpus) or its affinity (taskset, \
         CPUAffinity=) limits it. Choose one of these, or widen the limit",
        named(allowed)
    )]
    NotAllowed {
        /// The one asked for.
        core: usize,
        /// Those that are allowed.
        allowed: CpuSet,
    },
    /// Another worker has it.
    #[error("core {core} has a worker already (taken are {taken}); give each worker a core of its own")]
    Taken {
        /// The one asked for.
        core: usize,
        /// Those with workers.
        taken: CpuSet,
    },
    /// None is left to choose from.
    #[error(
        "no core is left for another worker: this process may use {}, and {} taken. Start fewer workers, or let it use \
         more cores (its cgroup's cpuset.cpus, taskset)",
        named(allowed),
        if taken.is_empty() { "none is".to_owned() } else { format!("{taken} are") }
    )]
    NoneLeft {
        /// Those that are online and allowed.
        allowed: CpuSet,
        /// Those with workers.
        taken: CpuSet,
    },
}

/// A core chosen for a worker, and how good it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// The core.
    pub core: usize,
    /// Whether the scheduler leaves it alone; `None` when the kernel does not say.
    pub isolated: Option<bool>,
    /// Whether its timer tick stops while the worker runs; `None` when the kernel does not say.
    pub nohz_full: Option<bool>,
    /// Its NUMA node, where known.
    pub node: Option<usize>,
    /// The node it should have been near.
    pub wanted_node: Option<usize>,
    /// Cores with workers that share its execution units.
    pub busy_siblings: CpuSet,
}

impl Chosen {
    /// What running on this core costs that a better one would not, and how to get a better one: a plain sentence
    /// each, none for a quiet core.
    pub fn warnings(&self) -> Vec<String> {
        let Self { core, .. } = *self;
        let mut warnings = Vec::new();
        if self.isolated != Some(true) {
            let state = if self.isolated.is_none() { "not known to be isolated" } else { "not isolated" };
            let remedy = if core == 0 {
                // The kernel keeps its boot processor for housekeeping, whatever the parameters say.
                "Use another core: core 0 is where the kernel does its own work".to_owned()
            } else {
                format!(
                    "To give it a core of its own, boot with isolcpus={core} nohz_full={core} rcu_nocbs={core}, or put it \
                     into a cpuset partition of kind \"isolated\" (cgroup v2, cpuset.cpus.partition)"
                )
            };
            warnings.push(format!(
                "core {core} is {state}: other tasks and timer ticks will interrupt the worker, for tens of microseconds \
                 to milliseconds at a time. {remedy}"
            ));
        } else if self.nohz_full != Some(true) {
            warnings.push(format!(
                "core {core} is isolated, but its timer still ticks: that interrupts the worker 100 to 1000 times a second \
                 for a few microseconds. To stop it, boot a kernel built with CONFIG_NO_HZ_FULL with nohz_full={core} \
                 rcu_nocbs={core}"
            ));
        }
        if let (Some(wanted), Some(node)) = (self.wanted_node, self.node)
            && wanted != node
        {
            warnings.push(format!(
                "core {core} is on NUMA node {node}, the device on node {wanted}: each access of one to the other's memory \
                 crosses between the nodes. Use a core of node {wanted}"
            ));
        }
        if !self.busy_siblings.is_empty() {
            warnings.push(format!(
                "core {core} shares its execution units with core {}, which has a worker: each slows the other. Use cores \
                 that are not SMT siblings",
                self.busy_siblings
            ));
        }
        warnings
    }
}

/// Chooses a core for a worker whose device is on NUMA node `near_node`, while the cores in `taken` have workers.
///
/// `auto` takes of the cores that are online, allowed and free the one that is, most important first: isolated; on
/// that node; without a worker on an SMT sibling; free of the timer tick; neither core 0 nor its sibling, where
/// housekeeping and interrupts usually are; the lowest.
///
/// # Errors
///
/// When the core asked for does not exist, is offline, not allowed or taken, or when `auto` finds none left.
pub fn choose(
    topology: &Topology,
    choice: CoreChoice,
    near_node: Option<usize>,
    taken: &CpuSet,
) -> Result<Chosen, CoreError> {
    let usable = usable(topology);
    let core = match choice {
        CoreChoice::Core(id) => check(topology, id, taken)?,
        CoreChoice::Auto => topology
            .cores()
            .iter()
            .filter(|core| usable.contains(core.id) && !taken.contains(core.id))
            .min_by_key(|core| demerits(topology, core, near_node, taken))
            .ok_or_else(|| CoreError::NoneLeft { allowed: usable.clone(), taken: taken.clone() })?,
    };
    Ok(Chosen {
        core: core.id,
        isolated: topology.isolated().map(|set| set.contains(core.id)),
        nohz_full: topology.nohz_full().map(|set| set.contains(core.id)),
        node: core.node,
        wanted_node: near_node,
        busy_siblings: busy_siblings(core, taken),
    })
}

/// Cores that are online and allowed, as far as the kernel says; what it does not say is found out by pinning.
fn usable(topology: &Topology) -> CpuSet {
    [topology.online(), topology.allowed()]
        .into_iter()
        .flatten()
        .fold(topology.present(), |left, set| left.intersection(set))
}

fn check<'a>(topology: &'a Topology, id: usize, taken: &CpuSet) -> Result<&'a Core, CoreError> {
    let core = topology.core(id).ok_or_else(|| CoreError::Missing { core: id, present: topology.present() })?;
    if let Some(online) = topology.online().filter(|online| !online.contains(id)) {
        return Err(CoreError::Offline { core: id, online: online.clone() });
    }
    if topology.allowed().is_some_and(|allowed| !allowed.contains(id)) {
        return Err(CoreError::NotAllowed { core: id, allowed: usable(topology) });
    }
    if taken.contains(id) {
        return Err(CoreError::Taken { core: id, taken: taken.clone() });
    }
    Ok(core)
}

/// What speaks against a core, most important first: the least is best.
fn demerits(topology: &Topology, core: &Core, near_node: Option<usize>, taken: &CpuSet) -> impl Ord + use<> {
    let within = |set: Option<&CpuSet>| set.is_some_and(|set| set.contains(core.id));
    let housekeeping = core.siblings.as_ref().is_some_and(|siblings| siblings.contains(0));
    (
        !within(topology.isolated()),
        near_node.is_some() && core.node != near_node,
        !busy_siblings(core, taken).is_empty(),
        !within(topology.nohz_full()),
        core.id == 0,
        housekeeping,
        core.id,
    )
}

fn busy_siblings(core: &Core, taken: &CpuSet) -> CpuSet {
    let mut busy = core.siblings.as_ref().map(|siblings| siblings.intersection(taken)).unwrap_or_default();
    busy.remove(core.id);
    busy
}

fn named(set: &CpuSet) -> String {
    if set.is_empty() { "no core".to_owned() } else { set.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::fake::Tree;

    fn set(text: &str) -> CpuSet {
        text.parse().unwrap()
    }

    fn auto(tree: &Tree, node: Option<usize>, taken: &str) -> usize {
        choose(&tree.read(), CoreChoice::Auto, node, &set(taken)).unwrap().core
    }

    fn refusal(tree: &Tree, core: usize, taken: &str) -> CoreError {
        choose(&tree.read(), CoreChoice::Core(core), None, &set(taken)).unwrap_err()
    }

    #[test]
    fn a_choice_is_auto_or_a_number() {
        assert_eq!("auto".parse(), Ok(CoreChoice::Auto));
        assert_eq!("1030".parse(), Ok(CoreChoice::Core(1030)));
        for text in ["", "Auto", "-1", "+1", "1.0", "99999999999999999999999", "0-3", " 1"] {
            let error = text.parse::<CoreChoice>().unwrap_err().to_string();
            assert!(error.contains(&format!("\"{text}\"")) && error.contains("`auto`"), "{error}");
        }
        for choice in [CoreChoice::Auto, CoreChoice::Core(7)] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
    }

    #[test]
    fn isolated_and_near_comes_first() {
        let tree = Tree::two_packages();
        tree.list("isolated", "1,3,5,7").list("nohz_full", "7").affinity("0,2,4,6");
        assert_eq!(auto(&tree, Some(1), ""), 7, "isolated, near, without a tick");
        assert_eq!(auto(&tree, Some(0), ""), 1);
        assert_eq!(auto(&tree, Some(1), "7"), 3, "isolated and near is worth more than a free sibling");
        assert_eq!(auto(&tree, Some(1), "3,7"), 1, "isolated is worth more than near");
        assert_eq!(auto(&tree, Some(1), "1,3,5,7"), 2, "near, with a free sibling");
        assert_eq!(auto(&tree, None, ""), 7);
    }

    #[test]
    fn of_ordinary_cores_it_takes_one_with_a_free_sibling_away_from_core_0() {
        let tree = Tree::two_packages();
        assert_eq!(auto(&tree, None, ""), 1);
        assert_eq!(auto(&tree, None, "1"), 2);
        assert_eq!(auto(&tree, None, "1-2"), 3);
        assert_eq!(auto(&tree, None, "1-3"), 4, "the sibling of core 0 before core 0");
        assert_eq!(auto(&tree, None, "1-4"), 5, "core 0's sibling is busy as theirs are, so core 0 comes last");
        assert_eq!(auto(&tree, None, "1-7"), 0, "core 0 when there is no other");
        assert_eq!(auto(&tree, Some(0), ""), 1);
        assert_eq!(auto(&tree, Some(7), ""), 1, "no core is near a node that is not there");
    }

    #[test]
    fn it_never_takes_what_is_offline_forbidden_or_taken() {
        let tree = Tree::two_packages();
        tree.list("online", "0-2,4-7").affinity("2-3,6");
        assert_eq!(auto(&tree, Some(0), ""), 2);
        assert_eq!(auto(&tree, None, "2"), 6);
        let error = choose(&tree.read(), CoreChoice::Auto, None, &set("2,6")).unwrap_err();
        assert_eq!(error, CoreError::NoneLeft { allowed: set("2,6"), taken: set("2,6") });
        assert!(error.to_string().contains("may use 2,6, and 2,6 are taken"), "{error}");
        let error = choose(&Topology::default(), CoreChoice::Auto, None, &CpuSet::new()).unwrap_err();
        assert!(error.to_string().contains("may use no core, and none is taken"), "{error}");
    }

    #[test]
    fn a_core_that_cannot_be_had_is_refused_with_the_reason() {
        let tree = Tree::two_packages();
        tree.list("online", "0-4,6-7").affinity("0-1,6");
        let missing = refusal(&tree, 4096, "");
        assert_eq!(missing, CoreError::Missing { core: 4096, present: set("0-7") });
        assert!(missing.to_string().contains("cores 0-7"), "{missing}");
        let offline = refusal(&tree, 5, "");
        assert_eq!(offline, CoreError::Offline { core: 5, online: set("0-4,6-7") });
        assert!(offline.to_string().contains("/cpu5/online"), "{offline}");
        let forbidden = refusal(&tree, 3, "");
        assert_eq!(forbidden, CoreError::NotAllowed { core: 3, allowed: set("0-1,6") });
        let text = forbidden.to_string();
        assert!(text.contains("only 0-1,6") && text.contains("cpuset.cpus") && text.contains("taskset"), "{text}");
        assert_eq!(refusal(&tree, 6, "1,6"), CoreError::Taken { core: 6, taken: set("1,6") });
    }

    #[test]
    fn what_a_core_costs_is_said_in_sentences() {
        let tree = Tree::two_packages();
        tree.list("isolated", "2-3").list("nohz_full", "3");
        let warnings = |core, node, taken: &str| {
            choose(&tree.read(), CoreChoice::Core(core), node, &set(taken)).unwrap().warnings()
        };
        assert!(warnings(3, Some(1), "").is_empty());
        assert!(warnings(3, None, "").is_empty());
        let ordinary = warnings(1, None, "").concat();
        assert!(ordinary.contains("is not isolated") && ordinary.contains("isolcpus=1 nohz_full=1"), "{ordinary}");
        let ticking = warnings(2, None, "").concat();
        assert!(ticking.contains("timer still ticks") && !ticking.contains("not isolated"), "{ticking}");
        let [far, shared] = <[String; 2]>::try_from(warnings(3, Some(0), "7")).unwrap();
        assert!(far.contains("node 1") && far.contains("on node 0"), "{far}");
        assert!(shared.contains("with core 7, which has a worker"), "{shared}");
        let housekeeping = warnings(0, None, "").concat();
        assert!(housekeeping.contains("Use another core") && !housekeeping.contains("isolcpus"), "{housekeeping}");
        tree.remove("sys/devices/system/cpu/isolated");
        let chosen = choose(&tree.read(), CoreChoice::Core(1), None, &CpuSet::new()).unwrap();
        assert_eq!(chosen.isolated, None);
        assert!(chosen.warnings().concat().contains("not known to be isolated"));
    }

    #[test]
    fn on_this_machine_auto_finds_a_core_that_can_be_pinned_to() {
        let topology = Topology::read();
        let chosen = choose(&topology, CoreChoice::Auto, None, &CpuSet::new()).unwrap();
        std::thread::spawn(move || crate::cpu::pin_current_thread(chosen.core).unwrap()).join().unwrap();
        let all = choose(&topology, CoreChoice::Auto, None, &topology.present()).unwrap_err();
        assert!(matches!(all, CoreError::NoneLeft { .. }), "{all}");
    }
}
