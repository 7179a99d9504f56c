//! What the kernel is booted with: parameters that a running kernel cannot be given.
//!
//! ```text
//! profile ──▶ parameters ──▶ GRUB: a file in /etc/default/grub.d, else the end of /etc/default/grub; then its menu is made
//!                        ──▶ systemd-boot: /etc/kernel/cmdline and the entries in loader/entries
//! ```
//!
//! Parameters that are there stay, but for those of the same name. Entries for rescue stay as they are, and so does GRUB's
//! recovery mode: a machine that does not boot with these parameters boots without.

mod entries;
mod grub;
mod words;

pub(crate) use entries::is_obsolete;

use crate::apply::Plan;
use crate::host::Host;
use crate::journal::Entry;
use crate::profile::{Profile, Roles};

/// The parameters that a profile wants on a machine with these cores. Those about worker cores are left out when there are
/// none.
pub fn parameters(profile: &Profile, roles: &Roles) -> Vec<String> {
    let about_workers = |parameter: &&String| parameter.contains("{workers}") || parameter.contains("{others}");
    let wanted = profile.boot.parameters.iter().filter(|one| !(roles.workers.is_empty() && about_workers(one)));
    let (workers, others) = (roles.workers.to_string(), roles.others.to_string());
    wanted.map(|one| one.replace("{workers}", &workers).replace("{others}", &others)).collect()
}

/// Whether the machine boots by something whose parameters can be changed here.
pub fn has_loader(host: &Host) -> bool {
    grub::is_there(host) || entries::are_there(host)
}

/// Adds what has the machine boot with `parameters`. `entries` are the changes not yet taken back.
pub fn plan(host: &Host, parameters: &[String], entries: &[Entry], plan: &mut Plan) {
    if parameters.is_empty() {
        plan.notes.push("the profile has no boot parameters for this machine".into());
        return;
    }
    plan.notes.push(format!("boot parameters: {}", parameters.join(" ")));
    let has_grub = grub::plan(host, parameters, entries, plan);
    let has_entries = entries::plan(host, parameters, plan);
    if !has_grub && !has_entries {
        plan.skip(
            "boot parameters",
            "neither GRUB nor systemd-boot is found here; add them to the kernel's command line",
        );
    }
}
