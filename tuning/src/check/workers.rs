//! Which cores to judge.

use spinwake::cpu::{CpuSet, Topology};

use crate::placement::Placement;

/// Where the choice of cores comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// A planned placement names them.
    Planned,
    /// They are isolated.
    Isolated,
    /// None is isolated: these could be.
    Proposed,
}

/// The cores that workers run on, or would.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Workers {
    pub(super) cores: CpuSet,
    pub(super) origin: Origin,
}

impl Workers {
    /// Those of the plan; else those that are isolated; else those that would best be.
    pub(super) fn find(topology: &Topology, plan: Option<&Placement>) -> Self {
        let online = topology.online().cloned().unwrap_or_default();
        if let Some(plan) = plan {
            let cores: CpuSet = plan.workers.iter().map(|worker| worker.core).collect();
            return Self { cores: cores.intersection(&online), origin: Origin::Planned };
        }
        let isolated = topology.isolated().map(|isolated| isolated.intersection(&online)).unwrap_or_default();
        if !isolated.is_empty() {
            return Self { cores: isolated, origin: Origin::Isolated };
        }
        Self { cores: propose(topology, &online), origin: Origin::Proposed }
    }
}

/// Whole physical cores from the end, until workers have half of the machine, or one of them at least. Core 0 and its
/// sibling stay with the kernel, which boots there.
fn propose(topology: &Topology, online: &CpuSet) -> CpuSet {
    let mut proposed = CpuSet::new();
    for id in online.iter().collect::<Vec<_>>().into_iter().rev() {
        let siblings =
            topology.core(id).and_then(|core| core.siblings.clone()).unwrap_or_else(|| [id].into_iter().collect());
        let siblings = siblings.intersection(online);
        let with_these = proposed.union(&siblings);
        if !siblings.contains(0) && (proposed.is_empty() || with_these.len() * 2 <= online.len()) {
            proposed = with_these;
        }
    }
    proposed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::fake::Tree;

    #[test]
    fn half_of_the_machine_is_proposed_in_whole_cores() {
        let proposed = |tree: &Tree| Workers::find(&tree.host().topology(), None).cores.to_string();
        assert_eq!(proposed(&Tree::cores(2, 1, 1)), "1");
        assert_eq!(proposed(&Tree::cores(4, 2, 1)), "1,3");
        assert_eq!(proposed(&Tree::cores(8, 1, 1)), "4-7");
        assert_eq!(proposed(&Tree::cores(2, 2, 1)), "", "core 1 is core 0's sibling");
        assert_eq!(proposed(&Tree::cores(1, 1, 1)), "");
        assert_eq!(proposed(&Tree::cores(128, 2, 2)), "32-63,96-127");
    }
}
