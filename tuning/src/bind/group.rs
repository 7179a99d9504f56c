//! The other devices of an IOMMU group, and what becomes of them.

use std::fmt;

use serde::Serialize;
use spinwake::pci::{GroupMember, PciDevice};

use super::is_user_space;

/// The IOMMU group of a device: what can only be handed out together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Group {
    /// Its number.
    pub number: u32,
    /// Whether programs can have it: no member is driven by the kernel.
    pub viable: bool,
    /// Its other devices.
    pub others: Vec<Other>,
}

/// Another device of the group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Other {
    /// Its address, or its name on another bus.
    pub name: String,
    /// Who drives it.
    pub driver: Option<String>,
    /// Whether it keeps the group from programs.
    pub blocks: bool,
    /// What becomes of it.
    pub becomes: String,
}

impl Group {
    /// The group of a device; `None` without an IOMMU.
    pub fn of(device: &PciDevice) -> Option<Self> {
        let group = device.iommu_group().filter(|group| group.isolated)?;
        let own = device.bdf().to_string();
        let others: Vec<_> = group.others(&own).map(Other::of).collect();
        Some(Self { number: group.number, viable: !others.iter().any(|other| other.blocks), others })
    }
}

impl Other {
    fn of(member: &GroupMember) -> Self {
        let name = &member.name;
        let becomes = match &member.driver {
            Some(driver) if member.blocks() => format!(
                "stays with {driver}, and as long as it does no program can have any of them: `spinwake-tune bind {name}`"
            ),
            Some(driver) if is_user_space(driver) => {
                format!("is with {driver}: whoever has one of them has the other, too")
            }
            Some(driver) => format!("stays with {driver}, which may"),
            None => "stays without a driver; a program that has the group can reach it".into(),
        };
        Self { name: name.clone(), driver: member.driver.clone(), blocks: member.blocks(), becomes }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IOMMU group {}: ", self.number)?;
        if self.others.is_empty() {
            return f.write_str("it is alone there");
        }
        f.write_str(match self.viable {
            true => "it can only be had together with",
            false => "NOT USABLE YET, because of its other devices",
        })?;
        self.others.iter().try_for_each(|other| write!(f, "\n    {} {}", other.name, other.becomes))
    }
}
