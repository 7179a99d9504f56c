//! What this process has open: each group once, each device once, one container for all where the kernel allows.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::OpenError;
use super::check::Candidate;
use super::container::Container;
use super::group::Group;
use crate::pci::Bdf;

static REGISTRY: Mutex<Registry> =
    Mutex::new(Registry { groups: Vec::new(), containers: Vec::new(), devices: Vec::new() });

/// Keeps nothing alive itself: leases do.
struct Registry {
    groups: Vec<Weak<Group>>,
    containers: Vec<Weak<Container>>,
    devices: Vec<Bdf>,
}

/// The right to one device, and the hold on its group.
///
/// A group is opened and closed under the registry's lock, so that nobody finds one half closed.
#[derive(Debug)]
pub(super) struct Lease {
    bdf: Bdf,
    /// Always there until `drop`.
    group: Option<Arc<Group>>,
    container: Arc<Container>,
}

impl Lease {
    /// Leases the candidate, opening its group if no other device of this process has.
    pub(super) fn take(candidate: &Candidate<'_>) -> Result<Self, OpenError> {
        let bdf = candidate.bdf();
        let mut registry = registry();
        if registry.devices.contains(&bdf) {
            return Err(OpenError::AlreadyOpen { bdf });
        }
        registry.groups.retain(|group| group.strong_count() > 0);
        registry.containers.retain(|container| container.strong_count() > 0);
        let number = candidate.group.number;
        let known = registry.groups.iter().filter_map(Weak::upgrade).find(|group| group.number() == number);
        let group = match known {
            Some(group) => group,
            None => {
                let containers: Vec<_> =
                    registry.containers.iter().filter_map(Weak::upgrade).filter(|c| c.is_live()).collect();
                let group = Arc::new(Group::open(candidate, &containers)?);
                registry.groups.push(Arc::downgrade(&group));
                if !containers.iter().any(|c| Arc::ptr_eq(c, group.container())) {
                    registry.containers.push(Arc::downgrade(group.container()));
                }
                group
            }
        };
        registry.devices.push(bdf);
        Ok(Self { bdf, container: group.container().clone(), group: Some(group) })
    }

    /// The opened group.
    pub(super) fn group(&self) -> Option<&Group> {
        self.group.as_deref()
    }

    pub(super) fn container(&self) -> &Arc<Container> {
        &self.container
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut registry = registry();
        registry.devices.retain(|&other| other != self.bdf);
        // Under the lock: see the type's doc.
        self.group = None;
    }
}

fn registry() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}
