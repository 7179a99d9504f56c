//! The instructions: Intel SDM volume 2 (UMONITOR, UMWAIT, TPAUSE), AMD APM volume 3 (MONITORX, MWAITX).
//!
//! The operating system can shorten UMWAIT and TPAUSE (IA32_UMWAIT_CONTROL, MSR E1h) but not forbid them, but for one case:
//! they fault where RDTSC does (CR4.TSD). A hypervisor that does not support an instruction hides its CPUID bit.
#![expect(unsafe_code, reason = "instructions that Rust has no name for")]

use std::arch::{asm, x86_64};

use super::{Relax, RelaxKind, Watch};
use crate::sys::sched;

/// What the processor offers and this process may use.
pub(super) fn find() -> RelaxKind {
    if !sched::tsc_permitted() {
        return RelaxKind::Pause;
    }
    offered(&cpuid)
}

fn offered(cpuid: &dyn Fn(u32) -> x86_64::CpuidResult) -> RelaxKind {
    // Past its highest leaf a processor answers with the contents of another.
    if cpuid(0).eax >= 7 && cpuid(7).ecx & 1 << 5 != 0 {
        return RelaxKind::Umwait;
    }
    if cpuid(0x8000_0000).eax >= 0x8000_0001 && cpuid(0x8000_0001).ecx & 1 << 29 != 0 {
        return RelaxKind::Mwaitx;
    }
    RelaxKind::Pause
}

fn cpuid(leaf: u32) -> x86_64::CpuidResult {
    // Compilers differ in whether the intrinsic is unsafe; as a pointer it has one type for all of them.
    let instruction: unsafe fn(u32, u32) -> x86_64::CpuidResult = x86_64::__cpuid_count;
    // SAFETY: every x86-64 processor has CPUID, and it touches nothing but registers.
    unsafe { instruction(leaf, 0) }
}

/// From here on a write to the line ends the next wait. The instruction is ordered as a load: looks that come later in the
/// program come after it.
#[inline(always)]
pub(super) fn monitor(relax: Relax, watch: Watch<'_>) {
    match relax.kind {
        RelaxKind::Pause => {}
        // SAFETY: the processor has the instruction (`Relax`'s invariant). It faults as a load of one byte would, and that one
        // can be read (invariant of `Watch`).
        RelaxKind::Umwait => unsafe { asm!("umonitor {}", in(reg) watch.at.as_ptr(), options(nostack)) },
        // SAFETY: as above. ECX (extensions) must be zero; EDX (hints) has none.
        RelaxKind::Mwaitx => unsafe {
            asm!("monitorx", in("rax") watch.at.as_ptr(), in("ecx") 0, in("edx") 0, options(nostack));
        },
    }
}

/// Waits for a write to the line that is monitored, or the deadline.
#[inline(always)]
pub(super) fn wait_for_write(relax: Relax, deadline_ticks: u64) {
    match relax.kind {
        RelaxKind::Pause => std::hint::spin_loop(),
        // SAFETY: the processor has the instruction, and the process may use it (`Relax`'s invariant). Bit 0 of the operand asks
        // for C0.1, which wakes faster than C0.2; all other bits must be zero. EDX:EAX is the deadline.
        RelaxKind::Umwait => unsafe {
            asm!(
                "umwait {state:e}",
                state = in(reg) C0_1,
                in("edx") (deadline_ticks >> 32) as u32,
                in("eax") deadline_ticks as u32,
                options(nostack),
            );
        },
        RelaxKind::Mwaitx => {
            let Some(ticks) = deadline_ticks.checked_sub(now()).filter(|&ticks| ticks > 0) else { return };
            let ticks = ticks.min(u32::MAX.into());
            // SAFETY: the processor has the instruction (`Relax`'s invariant). ECX bit 1 turns the timer on, its other bits are
            // zero; EBX is the timer's ticks, at the rate of the TSC. RBX, which the compiler keeps to itself, is given back
            // as it was.
            unsafe {
                asm!(
                    "xchg {ticks:r}, rbx",
                    "mwaitx",
                    "xchg {ticks:r}, rbx",
                    ticks = inout(reg) ticks => _,
                    in("eax") STAY_IN_C0,
                    in("ecx") 1 << 1,
                    options(nostack),
                );
            }
        }
    }
}

/// Waits for the deadline alone.
#[inline(always)]
pub(super) fn wait(relax: Relax, deadline_ticks: u64) {
    match relax.kind {
        // SAFETY: as UMWAIT in `wait_for_write`, which it is but for the write.
        RelaxKind::Umwait => unsafe {
            asm!(
                "tpause {state:e}",
                state = in(reg) C0_1,
                in("edx") (deadline_ticks >> 32) as u32,
                in("eax") deadline_ticks as u32,
                options(nostack),
            );
        },
        // MWAITX waits for nothing unless something is monitored.
        RelaxKind::Pause | RelaxKind::Mwaitx => std::hint::spin_loop(),
    }
}

/// UMWAIT and TPAUSE, operand bit 0: the state that is left fastest.
const C0_1: u32 = 1;

/// MWAITX, EAX bits 7:4: the C-state less one, modulo 16; all ones for C0, which is left fastest.
const STAY_IN_C0: u32 = 0xf0;

#[inline(always)]
fn now() -> u64 {
    // SAFETY: every x86-64 processor has RDTSC, and this process may execute it (`find`).
    unsafe { x86_64::_rdtsc() }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    /// A processor with these highest leaves, and these bits in leaf 7 and 8000_0001h; other leaves are garbage.
    fn processor(highest: u32, waitpkg: bool, highest_ext: u32, monitorx: bool) -> RelaxKind {
        let leaf = |eax, ecx| x86_64::CpuidResult { eax, ebx: 0, ecx, edx: 0 };
        offered(&|number| match number {
            0 => leaf(highest, u32::MAX),
            7 if highest >= 7 => leaf(0, u32::from(waitpkg) << 5),
            0x8000_0000 => leaf(highest_ext, u32::MAX),
            0x8000_0001 if highest_ext > 0x8000_0000 => leaf(0, u32::from(monitorx) << 29),
            _ => leaf(u32::MAX, u32::MAX),
        })
    }

    #[test]
    fn only_what_the_processor_states_is_used() {
        assert_eq!(processor(0x20, true, 0x8000_0008, false), RelaxKind::Umwait);
        assert_eq!(processor(0x10, false, 0x8000_0021, true), RelaxKind::Mwaitx);
        assert_eq!(processor(0x10, false, 0x8000_0021, false), RelaxKind::Pause);
        assert_eq!(processor(6, true, 0x8000_0000, true), RelaxKind::Pause, "leaves that are not there");
        assert_eq!(processor(6, true, 0, true), RelaxKind::Pause, "no extended leaves");
    }

    /// Far longer than any wait that ends as it should.
    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn a_write_ends_the_wait_and_so_does_the_deadline() {
        let relax = Relax::detect();
        if relax.kind() == RelaxKind::Pause {
            eprintln!("SKIPPED: this processor offers neither UMWAIT nor MWAITX");
            return;
        }
        let word = AtomicU64::new(0);
        let idle = || word.load(Ordering::Acquire) == 0;
        let start = Instant::now();
        // A wait may end for no reason, so what is shown is that waiting in a loop ends.
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(20));
                word.store(1, Ordering::Release);
            });
            while idle() {
                assert!(start.elapsed() < LONG);
                relax.until_write(Watch::on(&word), now() + 1_000_000_000, idle);
            }
        });
        let deadline = now() + 10_000_000;
        while now() < deadline {
            relax.until_write(Watch::on(&word), deadline, || true);
            relax.until(deadline);
        }
        assert!(start.elapsed() < LONG);
    }
}
