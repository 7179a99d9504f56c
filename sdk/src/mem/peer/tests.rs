use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::*;
use crate::sys::mem::Memfd;

/// Memory of `pages` pages whose byte `i` is `tag(i)`.
fn memfd(pages: u64) -> Memfd {
    let memfd = Memfd::new(c"peer", (pages * PAGE) as usize, None).unwrap();
    let region = PeerRegion::map(0, 0, pages * PAGE, memfd.as_fd(), 0).unwrap();
    let bytes: Vec<u8> = (0..pages * PAGE).map(tag).collect();
    assert_eq!(PeerMemory::new(vec![region]).unwrap().at(0, bytes.len()).unwrap().write_from(&bytes), bytes.len());
    memfd
}

fn tag(at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

/// Regions as a peer may describe them: gap before it, bytes, offset in the file.
fn layout() -> impl Strategy<Value = Vec<(u64, u64, u64)>> {
    prop::collection::vec((prop_oneof![Just(0u64), 0u64..9000], 1u64..9000, 0u64..5000), 1..6)
}

proptest! {
    #[test]
    fn an_address_is_where_a_naive_model_has_it(
        layout in layout(),
        start in prop_oneof![Just(0u64), any::<u32>().prop_map(u64::from), Just(u64::MAX - 120_000)],
        asked in prop::collection::vec((0u64..100_000, 0usize..12_000), 1..60),
    ) {
        let memfd = memfd(4);
        let (mut guest, mut regions, mut model) = (start, Vec::new(), Vec::new());
        for (gap, len, offset) in layout {
            guest += gap;
            let user = guest ^ 1 << 63;
            regions.push(PeerRegion::map(guest, user, len, memfd.as_fd(), offset).unwrap());
            model.push((u128::from(guest), u128::from(len), offset));
            guest += len;
        }
        regions.reverse();
        let memory = Arc::new(PeerMemory::new(regions).unwrap());
        let view = PeerView::new(memory.clone());
        for (distance, len) in asked {
            let at = start.wrapping_add(distance);
            // All in one region, and with how many bytes before its end.
            let home = model.iter().find(|r| u128::from(at) >= r.0 && u128::from(at) < r.0 + r.1);
            let left = home.map(|r| (r.0 + r.1 - u128::from(at)) as usize);
            let expected = home.filter(|_| left.is_some_and(|left| len <= left)).map(|r| {
                let from = u128::from(r.2) + u128::from(at) - r.0;
                (0..len as u64).map(|i| tag(from as u64 + i)).collect::<Vec<u8>>()
            });
            let read = |slice: PeerSlice<'_>| {
                let mut bytes = vec![0; slice.len()];
                assert_eq!(slice.read_into(&mut bytes), bytes.len());
                bytes
            };
            prop_assert_eq!(memory.at(at, len).map(read), expected.clone());
            prop_assert_eq!(view.at(at, len).map(read), expected);
            prop_assert_eq!(view.up_to(at, len).map(PeerSlice::len), left.map(|left| left.min(len)));
            let area = memory.area_at_user(at ^ 1 << 63, len);
            prop_assert_eq!(area.map(|area| area.len()), memory.at(at, len).map(PeerSlice::len));
        }
    }

    #[test]
    fn copies_touch_exactly_their_bytes(len in 0usize..700, at in 0usize..80) {
        let memfd = memfd(1);
        let memory = PeerMemory::new(vec![PeerRegion::map(0, 0, PAGE, memfd.as_fd(), 0).unwrap()]).unwrap();
        let all = memory.at(0, PAGE as usize).unwrap();
        let mut out = vec![0xaa; len + 2];
        prop_assert_eq!(all.skip(at).first(len).read_into(&mut out[1..]), len);
        prop_assert_eq!((out[0], out[len + 1]), (0xaa, 0xaa));
        prop_assert!((0..len).all(|i| out[i + 1] == tag((at + i) as u64)));
        let new: Vec<u8> = (0..len).map(|i| !tag((at + i) as u64)).collect();
        prop_assert_eq!(all.skip(at).write_from(&new), len);
        let mut now = vec![0; PAGE as usize];
        all.read_into(&mut now);
        for (i, byte) in now.iter().enumerate() {
            let changed = (at..at + len).contains(&i);
            prop_assert_eq!(*byte, if changed { !tag(i as u64) } else { tag(i as u64) }, "byte {}", i);
        }
    }

    #[test]
    fn twelve_bytes_settle_wherever_they_are(at in 0usize..100, bytes in any::<[u8; 12]>()) {
        let memfd = memfd(1);
        let memory = PeerMemory::new(vec![PeerRegion::map(0, 0, PAGE, memfd.as_fd(), 0).unwrap()]).unwrap();
        let slice = memory.at(at as u64, 12).unwrap();
        let differs = slice.read_12() != Some(bytes);
        prop_assert_eq!(slice.settle_12(bytes), Some(differs));
        prop_assert_eq!(slice.read_12(), Some(bytes));
        prop_assert_eq!(slice.settle_12(bytes), Some(false));
        prop_assert_eq!(slice.first(11).settle_12(bytes), None);
        prop_assert_eq!(slice.first(11).read_12(), None);
    }
}

#[test]
fn impossible_regions_are_refused_by_name() {
    let memfd = memfd(2);
    let map = |guest, user, len, offset| PeerRegion::map(guest, user, len, memfd.as_fd(), offset);
    for (guest, user, len, offset) in
        [(0, 0, 0, 0), (u64::MAX, 0, 2, 0), (0, u64::MAX, 2, 0), (0, 0, 2, u64::MAX), (0, 0, u64::MAX, 0)]
    {
        assert!(
            matches!(map(guest, user, len, offset), Err(PeerError::Length { .. })),
            "{guest} {user} {len} {offset}"
        );
    }
    assert!(matches!(map(0, 0, 2 * PAGE, 1), Err(PeerError::Short { end: 0x2001, size: 0x2000, .. })));
    assert!(matches!(map(0, 0, 1, 1 << 40), Err(PeerError::Short { .. })));
    let null = File::open("/dev/null").unwrap();
    assert!(matches!(PeerRegion::map(0, 0, 1, null.as_fd(), 0), Err(PeerError::Short { size: 0, .. })));
    let read_only = tempfile::tempfile().unwrap();
    read_only.set_len(PAGE).unwrap();
    let read_only = File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&read_only))).unwrap();
    assert!(matches!(PeerRegion::map(0, 0, 1, read_only.as_fd(), 0), Err(PeerError::Call { call: "mmap", .. })));
}

#[test]
fn regions_over_each_other_are_refused() {
    let memfd = memfd(2);
    let map = |guest, user| PeerRegion::map(guest, user, PAGE, memfd.as_fd(), 0).unwrap();
    assert!(matches!(PeerMemory::new(vec![map(0, 0), map(PAGE - 1, 1 << 40)]), Err(PeerError::Overlap { .. })));
    assert!(matches!(PeerMemory::new(vec![map(0, 0), map(1 << 40, PAGE - 1)]), Err(PeerError::Overlap { .. })));
    assert!(PeerMemory::new(vec![map(0, PAGE), map(PAGE, 0)]).is_ok());
}

#[test]
fn a_sealed_file_cannot_shrink_and_another_can() {
    let sealed = memfd(1);
    assert!(!PeerRegion::map(0, 0, 1, sealed.as_fd(), 0).unwrap().can_shrink());
    let file = tempfile::tempfile().unwrap();
    file.set_len(PAGE).unwrap();
    assert!(PeerRegion::map(0, 0, 1, file.as_fd(), 0).unwrap().can_shrink());
}

#[test]
fn a_ring_outlives_the_table_that_it_was_found_in() {
    let memfd = memfd(1);
    let memory = Arc::new(PeerMemory::new(vec![PeerRegion::map(0x1000, 0, PAGE, memfd.as_fd(), 0).unwrap()]).unwrap());
    let area = memory.area_at_guest(0x1010, 32).unwrap();
    drop(memory);
    area.u64s(8, 3)[2].store(7, Ordering::Relaxed);
    assert_eq!((area.u32s(24, 2)[0].load(Ordering::Relaxed), area.u16s(24, 1)[0].load(Ordering::Relaxed)), (7, 7));
    assert!(area.is_aligned(16) && !area.is_aligned(32));
}

#[test]
#[should_panic(expected = "beyond the end")]
fn words_beyond_a_ring_are_refused() {
    let memfd = memfd(1);
    let memory = Arc::new(PeerMemory::new(vec![PeerRegion::map(0, 0, PAGE, memfd.as_fd(), 0).unwrap()]).unwrap());
    memory.area_at_guest(0, 32).unwrap().u64s(8, 4);
}

#[test]
fn a_copy_holds_still_while_the_peer_writes() {
    let memfd = memfd(1);
    let memory = PeerMemory::new(vec![PeerRegion::map(0, 0, PAGE, memfd.as_fd(), 0).unwrap()]).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let slice = memory.at(0, 256).unwrap();
            let mut round = 0u8;
            while !done.load(Ordering::Relaxed) {
                slice.write_from(&[round; 256]);
                round = round.wrapping_add(1);
            }
        });
        for len in (1..=256).cycle().take(50_000) {
            let mut copy = [0; 256];
            memory.at(0, len).unwrap().read_into(&mut copy[..len]);
            let again = std::hint::black_box(&copy).to_owned();
            assert_eq!(copy, again);
        }
        done.store(true, Ordering::Relaxed);
    });
}
