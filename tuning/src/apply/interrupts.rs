//! Interrupts and kernel threads, off the worker cores.

use spinwake::cpu::CpuSet;

use super::plan::{Plan, Wanted, is_read_only};
use super::settings::want_mask;
use crate::change::{Change, Form, State, Target, kernel_threads};
use crate::host::Host;
use crate::profile::{Profile, Roles};

/// Adds what keeps interrupts and movable threads off worker cores, as far as the profile wants it.
pub(super) fn plan(host: &Host, profile: &Profile, roles: &Roles, plan: &mut Plan) {
    if roles.workers.is_empty() {
        plan.notes.push("there are no worker cores to keep quiet; name some with --cores, or isolate some".into());
        return;
    }
    if profile.kernel.threads_off_workers == Some(true) {
        threads(host, roles, plan);
    }
    if profile.interrupts.off_workers == Some(true) {
        let why = "interrupts that come into being later go to these cores";
        want_mask(host, plan, roles, "/proc/irq/default_smp_affinity", why);
        interrupts(host, roles, plan);
    }
    meddlers(host, plan);
}

fn interrupts(host: &Host, roles: &Roles, plan: &mut Plan) {
    let mut numbers: Vec<u32> = host.names("/proc/irq").iter().filter_map(|name| name.parse().ok()).collect();
    numbers.sort_unstable();
    for number in numbers {
        let path = &format!("/proc/irq/{number}/smp_affinity_list");
        let Some(cores) = host.value::<CpuSet>(path) else {
            plan.skip(path, "which cores it may go to is unknown");
            continue;
        };
        if cores.intersection(&roles.workers).is_empty() {
            plan.unchanged += 1;
            continue;
        }
        if is_read_only(&host.path(path)) {
            let reason = format!(
                "the kernel alone chooses its cores, now {cores}; booted with isolcpus=managed_irq it spares workers"
            );
            plan.skip(path, &reason);
            continue;
        }
        let value = &roles.without_workers(&cores).to_string();
        let why = "an interrupt takes a worker away from its work for microseconds";
        plan.want(host, &Wanted { path, form: Form::List, value, why, refusable: true });
    }
}

fn threads(host: &Host, roles: &Roles, plan: &mut Plan) {
    // The thread of an interrupt goes where the interrupt goes.
    for thread in kernel_threads(host).into_iter().filter(|thread| !thread.name.starts_with("irq/")) {
        if thread.cores.intersection(&roles.workers).is_empty() {
            plan.unchanged += 1;
            continue;
        }
        plan.changes.push(Change {
            old: State::Value(thread.cores.to_string()),
            new: State::Value(roles.without_workers(&thread.cores).to_string()),
            target: Target::Thread { id: thread.id, name: thread.name, started: thread.started },
            why: "the kernel's own threads run on these cores".into(),
            refusable: true,
            boot: false,
        });
    }
}

/// Names the programs that would change things back.
fn meddlers(host: &Host, plan: &mut Plan) {
    const MEDDLERS: [(&str, &str); 3] = [
        ("irqbalance", "it moves interrupts back; stop it, or set IRQBALANCE_BANNED_CPULIST to the worker cores"),
        ("tuned", "it has a profile of its own; stop it, or `tuned-adm off`"),
        ("power-profiles-", "it changes governor and turbo; stop power-profiles-daemon"),
    ];
    let numbered = |name: &String| name.bytes().all(|byte| byte.is_ascii_digit());
    let processes = host.names("/proc").into_iter().filter(numbered);
    let names: Vec<_> = processes.filter_map(|id| host.read(format!("/proc/{id}/comm"))).collect();
    for (name, what) in MEDDLERS.iter().filter(|(name, _)| names.iter().any(|running| running == name)) {
        plan.notes.push(format!("{name} is running: {what}"));
    }
}
