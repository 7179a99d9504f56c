//! Which frames come in: addresses, groups and VLANs, as far as the device lets itself be told (virtio 1.2, 5.1.6.5.1 to 3).

use spinwake::port::MacAddr;

use super::ctrl::{Command, CommandError, Control};
use crate::virtio::features::Features;

/// Groups that are listed; with more of them, all groups are received. Devices take what they like of the list.
pub(super) const EXACT_GROUPS: usize = 64;

/// What is wanted; a device is told all of it at each start.
#[derive(Debug, Default)]
pub(super) struct Filters {
    pub(super) promiscuous: bool,
    pub(super) groups: Vec<MacAddr>,
    /// `None` receives all.
    pub(super) vlans: Option<Vec<u16>>,
}

/// The control queue of a started port, where it has one, and what was agreed on.
#[derive(Debug)]
pub(super) struct Told<'a> {
    pub(super) features: Features,
    pub(super) control: Option<&'a mut Control>,
}

impl Told<'_> {
    /// Runs `command`, which needs `feature`.
    fn tell(&mut self, feature: Features, command: &Command<'_>) -> Result<(), CommandError> {
        match &mut self.control {
            Some(control) if self.features.has(feature) => control.run(command),
            _ => Err(CommandError::Missing { what: command.what() }),
        }
    }
}

impl Filters {
    /// Features that it takes to tell the device. A device that agrees to filter VLANs lets none in until it is told of
    /// each, so that is asked of it only if there is a filter.
    pub(super) fn features(&self) -> Features {
        Features::CTRL_RX.with(Features::CTRL_VLAN.when(self.vlans.is_some()))
    }

    /// Tells a device that has just been started everything.
    pub(super) fn write(&self, told: &mut Told<'_>) -> Result<(), CommandError> {
        if told.features.has(Features::CTRL_RX) {
            self.write_promiscuous(told)?;
            self.write_groups(told)?;
        }
        match &self.vlans {
            Some(vlans) => vlans.iter().try_for_each(|&id| told.tell(Features::CTRL_VLAN, &Command::VlanAdd(id))),
            None => Ok(()),
        }
    }

    pub(super) fn write_promiscuous(&self, told: &mut Told<'_>) -> Result<(), CommandError> {
        told.tell(Features::CTRL_RX, &Command::Promiscuous(self.promiscuous))
    }

    pub(super) fn write_groups(&self, told: &mut Told<'_>) -> Result<(), CommandError> {
        let all = self.groups.len() > EXACT_GROUPS;
        told.tell(Features::CTRL_RX, &Command::AllMulticast(all))?;
        told.tell(Features::CTRL_RX, &Command::Groups(if all { &[] } else { &self.groups }))
    }

    /// Tells the device what differs from `before`.
    pub(super) fn write_vlans(&self, before: &[u16], told: &mut Told<'_>) -> Result<(), CommandError> {
        let now = self.vlans.as_deref().unwrap_or_default();
        for &id in now.iter().filter(|id| !before.contains(id)) {
            told.tell(Features::CTRL_VLAN, &Command::VlanAdd(id))?;
        }
        for &id in before.iter().filter(|id| !now.contains(id)) {
            told.tell(Features::CTRL_VLAN, &Command::VlanRemove(id))?;
        }
        Ok(())
    }
}
