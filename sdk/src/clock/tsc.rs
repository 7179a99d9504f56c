//! The time stamp counter: whether it may be trusted, what is stated about its frequency, and reading it.
//!
//! Intel SDM volume 3, "Time-Stamp Counter" and "Invariant TSC"; AMD APM volume 3, appendix E (CPUID).
#![expect(unsafe_code, reason = "rdtsc and cpuid are instructions without a safe name in every supported compiler")]

use std::arch::x86_64;
use std::fs;
use std::time::Duration;

use super::calibrate::{self, Clocks, Moment};
use super::{Frequency, NoTsc};
use crate::sys::sched;

/// Ticks, read whenever the processor gets to it.
#[inline(always)]
pub(super) fn read() -> u64 {
    // SAFETY: every x86-64 processor has RDTSC; `find` made sure that this process may execute it.
    unsafe { x86_64::_rdtsc() }
}

/// Ticks, read after every earlier load: Intel SDM volume 2, RDTSC, asks for LFENCE ahead of it.
#[inline(always)]
pub(super) fn read_ordered() -> u64 {
    // SAFETY: every x86-64 processor has SSE2.
    unsafe { x86_64::_mm_lfence() };
    read()
}

/// The frequency in Hz and where it comes from, or why the counter must not be used.
pub(super) fn find() -> Result<(u64, Frequency), NoTsc> {
    if !sched::tsc_permitted() {
        return Err(NoTsc::Forbidden);
    }
    let file = |name| fs::read_to_string(format!("/sys/devices/system/clocksource/clocksource0/{name}")).ok();
    let trust = trusted(file("current_clocksource").as_deref(), file("available_clocksource").as_deref());
    decide(&cpuid, trust, &mut RealClocks)
}

fn decide(
    cpuid: &dyn Fn(u32) -> Leaf,
    trust: Result<(), NoTsc>,
    clocks: &mut impl Clocks,
) -> Result<(u64, Frequency), NoTsc> {
    if !invariant(cpuid) {
        return Err(NoTsc::NotInvariant);
    }
    trust?;
    for (hz, frequency) in stated(cpuid) {
        if calibrate::agrees(clocks, hz) {
            return Ok((hz, frequency));
        }
    }
    calibrate::measure(clocks).map(|hz| (hz, Frequency::Measured)).ok_or(NoTsc::NotRepeatable)
}

/// What the kernel, which watches the counter on every core, thinks of it.
///
/// A source found unfit for high-resolution timers is left out of the list of available ones, but only while the tick
/// is in one-shot mode (kernel/time/clocksource.c). In periodic mode `jiffies`, unfit as well, gives that away: then
/// only the source in use is known to be good.
fn trusted(current: Option<&str>, available: Option<&str>) -> Result<(), NoTsc> {
    let lists_tsc = |text: &str| text.split_whitespace().any(|name| name == "tsc");
    let lists_unfit = |text: &str| text.split_whitespace().any(|name| name.contains("jiffies"));
    if current.is_some_and(lists_tsc) || available.is_some_and(|text| lists_tsc(text) && !lists_unfit(text)) {
        return Ok(());
    }
    Err(if current.is_none() && available.is_none() { NoTsc::TrustUnknown } else { NoTsc::Untrusted })
}

/// CPUID 8000_0007h, EDX bit 8: the rate is constant in every P-, C- and T-state.
fn invariant(cpuid: &dyn Fn(u32) -> Leaf) -> bool {
    cpuid(0x8000_0000).eax >= 0x8000_0007 && cpuid(0x8000_0007).edx & 1 << 8 != 0
}

/// The frequencies that processor and hypervisor state, best first.
///
/// Leaf 15h counts only with the crystal's frequency in ECX. Leaf 16h, which could stand in for it, states the
/// processor's base frequency in round numbers (2600 MHz where the counter runs at 2592), so measuring is better.
fn stated(cpuid: &dyn Fn(u32) -> Leaf) -> Vec<(u64, Frequency)> {
    let mut stated = Vec::new();
    // Past its highest leaf an Intel processor answers with the contents of another.
    if cpuid(0).eax >= 0x15 {
        let Leaf { eax: denominator, ebx: numerator, ecx: crystal_hz, .. } = cpuid(0x15);
        let hz = (u128::from(crystal_hz) * u128::from(numerator)).checked_div(u128::from(denominator));
        stated.extend(hz.and_then(|hz| u64::try_from(hz).ok()).map(|hz| (hz, Frequency::Cpuid15)));
    }
    // Leaf 1, ECX bit 31: there is a hypervisor. Leaf 4000_0010h was VMware's first; KVM, bhyve and others followed.
    let hypervisor = cpuid(1).ecx & 1 << 31 != 0;
    if hypervisor && (0x4000_0010..0x4001_0000).contains(&cpuid(0x4000_0000).eax) {
        stated.push((u64::from(cpuid(0x4000_0010).eax) * 1000, Frequency::Hypervisor));
    }
    stated.retain(|&(hz, _)| hz > 0);
    stated
}

#[derive(Debug, Clone, Copy, Default)]
struct Leaf {
    eax: u32,
    ebx: u32,
    ecx: u32,
    edx: u32,
}

fn cpuid(leaf: u32) -> Leaf {
    // Compilers differ in whether the intrinsic is unsafe; as a pointer it has one type for all of them.
    let instruction: unsafe fn(u32, u32) -> x86_64::CpuidResult = x86_64::__cpuid_count;
    // SAFETY: every x86-64 processor has CPUID, and it touches nothing but registers.
    let x86_64::CpuidResult { eax, ebx, ecx, edx } = unsafe { instruction(leaf, 0) };
    Leaf { eax, ebx, ecx, edx }
}

struct RealClocks;

impl Clocks for RealClocks {
    fn moment(&mut self) -> Moment {
        const TRIES: usize = 16;
        let look = || {
            let before = read_ordered();
            let ns = sched::monotonic_raw_ns();
            let blur = read_ordered().saturating_sub(before);
            Moment { ticks: before + blur / 2, ns, blur }
        };
        // The sharpest of several: an interrupt between the readings blurs some.
        (1..TRIES).map(|_| look()).fold(look(), |best, next| if next.blur < best.blur { next } else { best })
    }

    fn pause(&mut self, time: Duration) {
        std::thread::sleep(time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::calibrate::tests::Fake;

    const HZ: u64 = 2_592_000_000;

    /// A processor with an invariant counter and these further leaves; as Intel does, it answers for leaves past the
    /// highest with the contents of another.
    fn processor(leaves: &'static [(u32, Leaf)]) -> impl Fn(u32) -> Leaf {
        move |leaf| {
            let known = |n: u32| leaves.iter().find(|(id, _)| *id == n).map(|(_, leaf)| *leaf);
            known(leaf).unwrap_or(match leaf {
                0x8000_0000 => Leaf { eax: 0x8000_0008, ..Leaf::default() },
                0x8000_0007 => Leaf { edx: 1 << 8, ..Leaf::default() },
                0 => Leaf { eax: 0x14, ..Leaf::default() },
                1 => Leaf::default(),
                _ => Leaf { eax: 7, ebx: 832, ecx: 1_234_567, edx: 0 },
            })
        }
    }

    const SKYLAKE: &[(u32, Leaf)] =
        &[(0, Leaf { eax: 0x16, ebx: 0, ecx: 0, edx: 0 }), (0x15, Leaf { eax: 2, ebx: 216, ecx: 24_000_000, edx: 0 })];

    #[test]
    fn leaf_15h_is_used_where_it_is_complete_and_true() {
        let cpu = processor(SKYLAKE);
        assert_eq!(decide(&cpu, Ok(()), &mut Fake::steady(HZ)), Ok((HZ, Frequency::Cpuid15)));
        let (hz, how) = decide(&cpu, Ok(()), &mut Fake::steady(2_700_000_000)).unwrap();
        assert_eq!((hz, how), (2_700_000_000, Frequency::Measured));
    }

    #[test]
    fn incomplete_leaves_are_passed_over() {
        const LEAF_0: (u32, Leaf) = (0, Leaf { eax: 0x16, ebx: 0, ecx: 0, edx: 0 });
        for leaves in [
            &[LEAF_0, (0x15, Leaf { eax: 2, ebx: 216, ecx: 0, edx: 0 })],
            &[LEAF_0, (0x15, Leaf { eax: 0, ebx: 216, ecx: 24_000_000, edx: 0 })],
            &[LEAF_0, (0x15, Leaf { eax: 2, ebx: 0, ecx: 24_000_000, edx: 0 })],
            &[LEAF_0, (0x15, Leaf { eax: 1, ebx: u32::MAX, ecx: u32::MAX, edx: 0 })],
        ] {
            let found = decide(&processor(leaves), Ok(()), &mut Fake::steady(HZ));
            assert_eq!(found, Ok((HZ, Frequency::Measured)), "{leaves:?}");
        }
        assert!(stated(&processor(&[])).is_empty());
    }

    #[test]
    fn a_hypervisor_is_asked_only_where_there_is_one_that_answers() {
        const ON_KVM: &[(u32, Leaf)] = &[
            (1, Leaf { eax: 0, ebx: 0, ecx: 1 << 31, edx: 0 }),
            (0x4000_0000, Leaf { eax: 0x4000_0010, ebx: 0x4b4d_564b, ecx: 0x564b_4d56, edx: 0x4d }),
            (0x4000_0010, Leaf { eax: 2_592_000, ebx: 0, ecx: 0, edx: 0 }),
        ];
        assert_eq!(decide(&processor(ON_KVM), Ok(()), &mut Fake::steady(HZ)), Ok((HZ, Frequency::Hypervisor)));
        assert!(stated(&processor(&ON_KVM[1..])).is_empty(), "no hypervisor bit");
        assert!(stated(&processor(&ON_KVM[..1])).is_empty(), "a hypervisor without the leaf");
    }

    #[test]
    fn a_counter_that_may_stop_or_differ_is_refused() {
        let old = processor(&[(0x8000_0007, Leaf { eax: 0, ebx: 0, ecx: 0, edx: 0 })]);
        assert_eq!(decide(&old, Ok(()), &mut Fake::steady(HZ)), Err(NoTsc::NotInvariant));
        let ancient = processor(&[(0x8000_0000, Leaf { eax: 0x8000_0004, ebx: 0, ecx: 0, edx: 0 })]);
        assert_eq!(decide(&ancient, Ok(()), &mut Fake::steady(HZ)), Err(NoTsc::NotInvariant));
        let new = processor(&[]);
        assert_eq!(decide(&new, Err(NoTsc::Untrusted), &mut Fake::steady(HZ)), Err(NoTsc::Untrusted));
        let mut drifting = Fake::steady(HZ);
        drifting.drift_ppm = 5000;
        assert_eq!(decide(&new, Ok(()), &mut drifting), Err(NoTsc::NotRepeatable));
    }

    #[test]
    fn the_kernel_is_asked_what_it_thinks() {
        assert_eq!(trusted(Some("tsc\n"), None), Ok(()));
        assert_eq!(trusted(Some("kvm-clock\n"), Some("kvm-clock tsc acpi_pm \n")), Ok(()));
        assert_eq!(trusted(Some("hpet\n"), Some("hpet acpi_pm \n")), Err(NoTsc::Untrusted));
        assert_eq!(trusted(Some("hpet\n"), Some("hpet tsc-early \n")), Err(NoTsc::Untrusted));
        assert_eq!(trusted(Some("hpet\n"), Some("hpet acpi_pm refined-jiffies jiffies tsc \n")), Err(NoTsc::Untrusted));
        assert_eq!(trusted(None, None), Err(NoTsc::TrustUnknown));
        assert_eq!(trusted(Some(""), Some("\u{0}garbage")), Err(NoTsc::Untrusted));
    }
}
