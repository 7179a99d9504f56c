//! `permit`: lets a user or a group drive a device without root.

use std::fmt::{self, Write as _};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use serde::Serialize;
use spinwake::pci::{Bdf, PciDevice};

use super::account::{Account, NoAccount};
use super::memlock::Memlock;
use super::{Group, group_node, is_user_space};
use crate::effects::{CallError, Effects, hint};
use crate::host::Host;
use crate::output::Report;

/// Lets a user or a group drive a device, without root
#[derive(Debug, Clone, clap::Args)]
#[command(group = clap::ArgGroup::new("who").required(true).args(["user", "group", "revoke"]))]
pub struct Args {
    /// Its address, as in 0000:01:00.0
    #[arg(value_name = "BDF")]
    pub device: Bdf,

    /// This user, by name or number
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,

    /// The members of this group, by name or number
    #[arg(long, value_name = "NAME")]
    pub group: Option<String>,

    /// Nobody but root any longer, now and after the next start
    #[arg(long)]
    pub revoke: bool,

    /// Also after the next start: by an udev rule, and by a file of pam_limits for the memory
    #[arg(long, conflicts_with = "revoke")]
    pub persist: bool,

    /// How much memory may be locked for DMA, in MiB, or unlimited
    #[arg(long, value_name = "MIB", default_value = "512")]
    pub memlock: Memlock,
}

/// The permission could not be given.
#[derive(Debug, thiserror::Error)]
pub enum PermitError {
    /// No such device.
    #[error("there is no PCI device {bdf}; `spinwake-tune devices --all` lists them")]
    Missing {
        /// The address.
        bdf: Bdf,
    },
    /// Programs cannot have it.
    #[error("{bdf} is with {driver}, so there is nothing to permit yet; run `spinwake-tune bind {bdf}` first")]
    NotBound {
        /// The address.
        bdf: Bdf,
        /// Who has it.
        driver: String,
    },
    /// Without an IOMMU nobody but root may have it.
    #[error("{bdf} is in no IOMMU group, and without an IOMMU between it and memory nobody but root may have it")]
    NoIommu {
        /// The address.
        bdf: Bdf,
    },
    /// No such user or group.
    #[error(transparent)]
    NoAccount(#[from] NoAccount),
    /// A file could not be changed.
    #[error("{path}: {source}{}", hint(source))]
    File {
        /// The file.
        path: String,
        /// The meaning of errno.
        source: io::Error,
    },
    /// udev does not know the new rule yet.
    #[error("the rule {path} is changed, and udev could not be told ({source}); that holds from the next start")]
    Udev {
        /// The rule.
        path: String,
        /// What was tried.
        source: CallError,
    },
}

/// Who may drive a device now.
#[derive(Debug, Serialize)]
pub struct PermitReport {
    /// Its address.
    pub bdf: String,
    /// Who was permitted: `user ann`, `group net`, or nobody.
    pub who: Option<String>,
    /// The file that programs open; `None` when the device is not for programs, so that there is none.
    pub node: Option<String>,
    /// Owner, group and mode of it before.
    pub before: Option<Owners>,
    /// Owner, group and mode of it now.
    pub now: Option<Owners>,
    /// Its IOMMU group, all of which is permitted.
    pub group: Option<Group>,
    /// Files that were written for the next start.
    pub written: Vec<String>,
    /// Files that were removed.
    pub removed: Vec<String>,
    /// Memory that may be locked, in bytes; `None` is no limit.
    pub memlock_bytes: Option<u64>,
    #[serde(skip)]
    advice: String,
}

/// Whose a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Owners {
    /// Number of the user.
    pub user: u32,
    /// Number of the group.
    pub group: u32,
    /// Permission bits.
    pub mode: u32,
}

impl fmt::Display for Owners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "user {}, group {}, mode {:04o}", self.user, self.group, self.mode)
    }
}

/// Gives permission, or takes it away.
///
/// # Errors
///
/// When the device is not bound to vfio-pci, the user is unknown, or a file cannot be changed.
pub fn run(args: &Args, host: &Host) -> Result<PermitReport, PermitError> {
    permit(args, host, host)
}

pub(super) fn permit(args: &Args, host: &Host, effects: &dyn Effects) -> Result<PermitReport, PermitError> {
    let bdf = args.device;
    let rule = format!("/etc/udev/rules.d/60-spinwake-permit-{bdf}.rules");
    let device = host.sysfs().device(bdf);
    let is_bound = device.as_ref().and_then(PciDevice::driver).is_some_and(|driver| is_user_space(&driver));
    if args.revoke && !is_bound && host.has(&rule) {
        return forget(args, host, effects, rule);
    }
    let device = device.ok_or(PermitError::Missing { bdf })?;
    let group = Group::of(&device).ok_or(PermitError::NoIommu { bdf })?;
    let user = args.user.as_deref().map(|name| Account::user(host, name)).transpose()?;
    let team = args.group.as_deref().map(|name| Account::group(host, name)).transpose()?;
    match device.driver() {
        Some(driver) if is_user_space(&driver) => {}
        driver => {
            let driver = driver.unwrap_or_else(|| "no driver".into());
            return Err(PermitError::NotBound { bdf, driver });
        }
    }

    let node = group_node(group.number);
    let fail = |path: &str| {
        let path = path.to_owned();
        move |source| PermitError::File { path, source }
    };
    let file = fs::metadata(host.path(&node)).map_err(fail(&node))?;
    let before = Owners { user: file.uid(), group: file.gid(), mode: file.mode() & 0o7777 };
    let now = match (&user, &team) {
        // Who may already, still may.
        (Some(user), _) => Owners { user: user.id, mode: before.mode | 0o600, ..before },
        (None, Some(team)) => Owners { group: team.id, mode: before.mode | 0o660, ..before },
        (None, None) => Owners { user: 0, group: 0, mode: 0o600 },
    };
    let who = user.as_ref().map(|user| format!("user {user}"));
    let who = who.or_else(|| team.as_ref().map(|team| format!("group {team}")));

    let (mut written, mut removed) = (Vec::new(), Vec::new());
    if args.revoke && effects.remove(&rule).map_err(fail(&rule))? {
        removed.push(rule.clone());
    }
    effects.give(&node, Some(now.user), Some(now.group), now.mode).map_err(fail(&node))?;
    if let (true, Some(account)) = (args.persist, user.as_ref().or(team.as_ref())) {
        effects.save(&rule, &rule_text(bdf, now, who.as_deref().unwrap_or_default())).map_err(fail(&rule))?;
        written.push(rule.clone());
        let kind = if user.is_some() { "user" } else { "group" };
        let limits = format!("/etc/security/limits.d/60-spinwake-{kind}-{}.conf", account.name);
        effects.save(&limits, &args.memlock.limits_file(account)).map_err(fail(&limits))?;
        written.push(limits);
    }
    if !(written.is_empty() && removed.is_empty()) {
        reload(host, effects, rule)?;
    }
    let advice = if args.revoke { String::new() } else { advice(args, bdf, host, user.as_ref().or(team.as_ref())) };
    Ok(PermitReport {
        bdf: bdf.to_string(),
        who,
        node: Some(node),
        before: Some(before),
        now: Some(now),
        group: Some(group),
        written,
        removed,
        memlock_bytes: args.memlock.bytes(),
        advice,
    })
}

/// Takes away a permission for later, of a device that no program can have now or that is not there.
fn forget(args: &Args, host: &Host, effects: &dyn Effects, rule: String) -> Result<PermitReport, PermitError> {
    effects.remove(&rule).map_err(|source| PermitError::File { path: rule.clone(), source })?;
    reload(host, effects, rule.clone())?;
    Ok(PermitReport {
        bdf: args.device.to_string(),
        who: None,
        node: None,
        before: None,
        now: None,
        group: None,
        written: Vec::new(),
        removed: vec![rule],
        memlock_bytes: args.memlock.bytes(),
        advice: String::new(),
    })
}

/// Lets a running udev read its rules again.
fn reload(host: &Host, effects: &dyn Effects, path: String) -> Result<(), PermitError> {
    match host.is_this() {
        true => effects.call("udevadm", &["control", "--reload"]).map_err(|source| PermitError::Udev { path, source }),
        false => Ok(()),
    }
}

/// The udev rule that gives the node of the device's group its owners whenever it appears: its number is not the same
/// after each start, so the rule asks for the group's devices (`%k` is the number).
fn rule_text(bdf: Bdf, owners: Owners, who: &str) -> String {
    format!(
        "# Made by spinwake-tune: {bdf} for {who}.\n\
         SUBSYSTEM==\"vfio\", KERNEL==\"[0-9]*\", TEST==\"/sys/kernel/iommu_groups/%k/devices/{bdf}\", \
         OWNER=\"{}\", GROUP=\"{}\", MODE=\"{:04o}\"\n",
        owners.user, owners.group, owners.mode
    )
}

/// What else a program needs that has no root.
fn advice(args: &Args, bdf: Bdf, host: &Host, account: Option<&Account>) -> String {
    let mut text = format!(
        "\n  A program's memory for DMA counts as locked, and each may lock {} at most as asked here (--memlock). \
         64 MiB carry l2fwd with two ports of four queues each.",
        args.memlock
    );
    let _ = match args.persist {
        true => write!(
            text,
            "\n  That holds from the next login on. For a systemd service: LimitMEMLOCK={}",
            args.memlock.prlimit()
        ),
        false => write!(
            text,
            "\n  What is set now, `ulimit -l` tells there, in KiB. To raise it, as root, in a shell with number PID: \
             `prlimit --pid PID --memlock={0}:{0}`; before a program starts: `ulimit -l {1}`; in a systemd service: \
             LimitMEMLOCK={0}; at each login: --persist",
            args.memlock.prlimit(),
            args.memlock.ulimit()
        ),
    };
    if !args.persist {
        let who = account.map(|account| account.name.as_str()).unwrap_or_default();
        let option = if args.user.is_some() { "user" } else { "group" };
        let _ = write!(
            text,
            "\n  Until {bdf} is given back or the machine starts anew; for longer: `spinwake-tune permit {bdf} --{option} \
             {who} --persist`"
        );
    }
    // The kernel makes it with mode 0666, because it gives access to nothing by itself.
    let container = fs::metadata(host.path("/dev/vfio/vfio")).ok();
    if container.is_some_and(|file| file.mode() & 0o006 != 0o006) {
        text.push_str(
            "\n  /dev/vfio/vfio is not open to everybody, as it is by default, and programs need it, too: `chmod 0666 \
             /dev/vfio/vfio`",
        );
    }
    text
}

impl Report for PermitReport {}

impl fmt::Display for PermitReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bdf = &self.bdf;
        let who = self.who.as_deref().unwrap_or("only root");
        match (&self.node, self.now, self.before) {
            (Some(node), Some(now), Some(before)) => {
                write!(f, "{who} may drive {bdf}: {node} is {now} now (was {before})")?;
            }
            _ => write!(f, "nobody may drive {bdf} as it is, and only root when it is bound to vfio-pci again")?,
        }
        if let Some(group) = self.group.as_ref().filter(|group| !group.others.is_empty() && self.who.is_some()) {
            write!(f, "\n  and with it all of its {group}")?;
        }
        self.written.iter().try_for_each(|path| write!(f, "\n  written: {path}"))?;
        self.removed.iter().try_for_each(|path| write!(f, "\n  removed: {path}"))?;
        f.write_str(&self.advice)
    }
}
