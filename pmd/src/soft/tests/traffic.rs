//! Frames through the model, with nothing going wrong.

use super::super::layout::{self as at, ctrl, mrqc, queue, rctl, rxcsum, stat};
use super::super::packet::{self, Headers};
use super::super::{Fault, Gap, Rate, open};
use super::driver::{Driver, RING};
use super::{nic, wait};

/// A UDP packet to `to`, with good checksums.
fn udp(to: [u8; 6], payload: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend_from_slice(&to);
    frame.extend_from_slice(&[2, 0, 0, 0, 0, 1, 8, 0]);
    let (ip_len, udp_len) = ((28 + payload) as u16, (8 + payload) as u16);
    frame.extend_from_slice(&[0x45, 0, ip_len.to_be_bytes()[0], ip_len.to_be_bytes()[1], 0, 0, 0, 0, 64, 17, 0, 0]);
    frame.extend_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2, 0, 7, 0, 9]);
    frame.extend_from_slice(&udp_len.to_be_bytes());
    frame.extend_from_slice(&[0, 0]);
    frame.extend((0..payload).map(|i| i as u8));
    let sum = !packet::fold(packet::sum(&frame[14..34]));
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    let ip = Headers::of(&frame).ip.unwrap();
    let sum = !packet::fold(ip.pseudo_sum(&frame) + packet::sum(&frame[34..]));
    frame[40..42].copy_from_slice(&sum.to_be_bytes());
    frame
}

fn tagged(frame: &[u8], tag: u16) -> Vec<u8> {
    [&frame[..12], &[0x81, 0], &tag.to_be_bytes(), &frame[12..]].concat()
}

#[test]
fn generated_frames_come_in_and_are_recognised_when_they_go_out() {
    let mut driver = Driver::start(nic("soft:,rate=20000,size=60-1500"), 1);
    for _ in 0..500 {
        let got = driver.expect(0);
        assert_eq!(got.data[..6], driver.control().mac().0);
        driver.send(0, &got.data);
    }
    let reporter = driver.nic.reporter().unwrap();
    wait(|| reporter.report().received == 500);
    let report = reporter.report();
    assert_eq!((report.corrupt, report.duplicates), (0, 0));
    assert_eq!(report.latency_ns.len(), 500);
    assert!(report.sent >= 500);
    assert_eq!(driver.control().counts(), Default::default());
    assert!(driver.get(stat::GPRC) >= 500);
    assert_eq!(driver.get(stat::GPTC), 500);
}

#[test]
fn the_drivers_time_is_told_apart_from_the_rest() {
    let mut driver = Driver::start(nic("soft:,rate=0"), 1);
    let reporter = driver.nic.reporter().unwrap();
    let pause = std::time::Duration::from_millis(3);
    driver.control().send(1);
    let data = driver.expect(0).data;
    std::thread::sleep(pause);
    driver.send(0, &data);
    wait(|| reporter.report().received == 1);
    let report = reporter.report();
    let (latency_ns, response_ns) = (report.latency_ns.max(), report.response_ns.max());
    assert!(response_ns >= pause.as_nanos() as u64, "the driver took {response_ns} ns");
    // One part in a thousand is what a histogram may add.
    assert!(response_ns <= latency_ns + latency_ns / 500, "{response_ns} of {latency_ns} ns");
}

#[test]
fn a_frame_that_is_late_on_its_wire_is_not_the_drivers_fault() {
    let mut driver = Driver::start(nic("soft:,rate=0"), 1);
    let reporter = driver.nic.reporter().unwrap();
    let late = std::time::Duration::from_millis(50);
    driver.control().set_delay(Fault::Delay, late..=late);
    driver.control().inject(Fault::Delay, 1);
    driver.control().send(1);
    let mut best_ns = u64::MAX;
    for _ in 0..20 {
        let data = driver.expect(0).data;
        driver.send(0, &data);
        wait(|| reporter.report().response_ns.len() == reporter.report().received);
        let report = reporter.report();
        assert!(report.latency_ns.max() >= late.as_nanos() as u64);
        best_ns = best_ns.min(report.response_ns.min());
        if best_ns < late.as_nanos() as u64 / 2 {
            return;
        }
        driver.control().inject(Fault::Delay, 1);
        driver.control().send(1);
    }
    panic!("the wire's delay is in the driver's time: {best_ns} ns at best");
}

#[test]
fn rate_and_gaps_change_at_run_time() {
    let mut driver = Driver::start(nic("soft:,rate=0,gap=poisson"), 1);
    let control = driver.control();
    for (rate, gap) in [(20_000, Gap::Burst(10)), (50_000, Gap::Poisson), (20_000, Gap::Pareto)] {
        control.set_traffic(Rate::PerSecond(rate), gap);
        (0..200).for_each(|_| drop(driver.expect(0)));
    }
    control.set_rate(Rate::Silent);
    assert!(control.settle(super::LONG));
    while driver.receive(0).is_some() {}
    assert!(control.settle(super::LONG));
    assert!(driver.receive(0).is_none());
}

#[test]
fn a_frame_that_is_sent_twice_or_changed_is_noticed() {
    let mut driver = Driver::start(nic("soft:,rate=0"), 1);
    driver.control().send(1);
    let mut data = driver.expect(0).data;
    driver.send(0, &data);
    driver.send(0, &data);
    data[50] ^= 1;
    driver.send(0, &data);
    let reporter = driver.nic.reporter().unwrap();
    wait(|| reporter.report().corrupt == 1);
    assert_eq!((reporter.report().received, reporter.report().duplicates), (1, 1));
}

#[test]
fn a_silent_generator_sends_what_it_is_asked_for_and_no_more() {
    let mut driver = Driver::start(nic("soft:,rate=0"), 1);
    driver.control().send(3);
    for _ in 0..3 {
        driver.expect(0);
    }
    assert!(driver.control().settle(super::LONG));
    assert!(driver.receive(0).is_none());
    assert_eq!(driver.nic.reporter().unwrap().report().sent, 3);
}

#[test]
fn at_rate_max_it_fills_the_ring_and_waits_for_more_room() {
    let mut driver = Driver::start(nic("soft:,rate=max"), 1);
    let reporter = driver.nic.reporter().unwrap();
    wait(|| reporter.report().sent >= RING as u64 - 1);
    for _ in 0..20 * RING {
        driver.expect(0);
    }
    assert_eq!(driver.get(stat::MPC), 0, "nothing is sent that has no room");
    driver.control().set_rate(Rate::Silent);
}

#[test]
fn a_full_ring_makes_the_packet_buffer_fill_and_then_frames_are_missed() {
    let mut driver = Driver::start(nic("soft:,rate=0,size=1514"), 1);
    driver.control().send(200);
    assert!(driver.control().settle(super::LONG));
    // The ring took all but one of its descriptors' worth, the buffer 64 KiB.
    let missed = driver.get(stat::MPC);
    assert_eq!(missed, 200 - (RING as u32 - 1) - (64 << 10) / (1514 + 16));
    assert_eq!(driver.get(stat::RNBC), 1);
    for _ in 0..200 - missed {
        driver.expect(0);
    }
    assert!(driver.receive(0).is_none());
}

#[test]
fn filters_let_in_what_they_shall() {
    let mut driver = Driver::start(nic("soft:,rate=0"), 1);
    let control = driver.control();
    let filtered = |driver: &mut Driver, frame: &[u8]| {
        let before = control.counts().filtered;
        control.send_frame(frame);
        assert!(control.settle(super::LONG));
        let refused = control.counts().filtered > before;
        assert_eq!(driver.receive(0).is_none(), refused);
        refused
    };
    let (own, other) = (control.mac().0, [2, 9, 9, 9, 9, 9]);
    let group = [0x01, 0, 0x5e, 0, 0, 0x42];
    assert!(!filtered(&mut driver, &udp(own, 100)));
    assert!(!filtered(&mut driver, &udp([0xFF; 6], 100)));
    assert!(filtered(&mut driver, &udp(other, 100)));
    assert!(filtered(&mut driver, &udp(group, 100)));
    // Bits 47:36 of the group's address (MO is zero).
    let hash = (0x42 << 8) >> 4 & 0xFFF;
    driver.set(at::MTA + 4 * (hash / 32), 1 << (hash % 32));
    assert!(!filtered(&mut driver, &udp(group, 100)));
    driver.set(at::RA + 8, u32::from_le_bytes([2, 9, 9, 9]));
    driver.set(at::RA + 12, 0x0909 | at::RAH_AV);
    assert!(!filtered(&mut driver, &udp(other, 100)));
    driver.set(at::RCTL, driver.get(at::RCTL) | rctl::UPE | rctl::VFE);
    assert!(!filtered(&mut driver, &udp([4; 6], 100)));
    assert!(filtered(&mut driver, &tagged(&udp(own, 100), 0x2007)));
    driver.set(at::VFTA, 1 << 7);
    assert!(!filtered(&mut driver, &tagged(&udp(own, 100), 0x2007)));
}

#[test]
fn tags_are_taken_out_and_put_in() {
    let mut driver = Driver::start(nic("soft:,rate=0"), 1);
    let control = driver.control();
    control.capture();
    let frame = udp(control.mac().0, 100);
    driver.set(at::CTRL, ctrl::SLU | ctrl::VME);
    control.send_frame(&tagged(&frame, 0x2007));
    let got = driver.expect(0);
    assert_eq!(got.data, frame);
    assert_eq!((got.high >> 48, got.high & 8), (0x2007, 8));
    driver.send_with(0, &frame, 1 << 30, 0, Some((0x2007 << 16, 0)));
    wait(|| control.captured().first() == Some(&tagged(&frame, 0x2007)));
}

#[test]
fn checksums_are_judged_and_filled_in() {
    let mut driver = Driver::start(nic("soft:,rate=0"), 1);
    let control = driver.control();
    control.capture();
    let frame = udp(control.mac().0, 100);
    let mut verdict = |change: usize| {
        let mut frame = frame.clone();
        frame[change] ^= 1;
        control.send_frame(&frame);
        driver.expect(0).high & 0xE000_0070
    };
    assert_eq!(verdict(6), 0x70, "both good: the change is in the source address");
    assert_eq!(verdict(22), 0x4000_0070, "the hop count: IP header bad");
    assert_eq!(verdict(60), 0x2000_0070, "the payload: UDP bad");

    // The driver's part: the pseudo header's sum in the UDP field, zero in the IP field.
    let mut bare = frame.clone();
    bare[24..26].fill(0);
    let ip = Headers::of(&bare).ip.unwrap();
    let pseudo = packet::fold(ip.pseudo_sum(&bare));
    bare[40..42].copy_from_slice(&pseudo.to_be_bytes());
    driver.send_with(0, &bare, 0, 0x300, Some((14 << 9 | 20, 1 << 10)));
    let mut sent = Vec::new();
    wait(|| {
        sent = control.captured();
        !sent.is_empty()
    });
    assert_eq!(sent[0], frame);
}

#[test]
fn long_frames_are_split_over_buffers_and_too_long_ones_refused() {
    let mut driver = Driver::start(nic("soft:,rate=0"), 1);
    driver.set(at::RLPML, 5004);
    driver.control().send_frame(&udp(driver.control().mac().0, 5000 - 42));
    let pieces: Vec<_> = (0..3).map(|_| driver.expect(0)).collect();
    assert_eq!(pieces.iter().map(|p| p.data.len()).collect::<Vec<_>>(), [2048, 2048, 904]);
    assert_eq!(pieces.iter().map(|p| p.high & 3).collect::<Vec<_>>(), [1, 1, 3]);
    driver.control().send_frame(&udp(driver.control().mac().0, 5001 - 42));
    wait(|| driver.get(stat::ROC) == 1);
    assert!(driver.receive(0).is_none());
}

#[test]
fn rss_spreads_flows_over_queues() {
    let mut driver = Driver::start(nic("soft:,rate=0"), 4);
    for i in 0..32 {
        driver.set(at::RETA + 4 * i, 0x0302_0100);
    }
    for i in 0..10 {
        driver.set(at::RSSRK + 4 * i, 0x6d5a_56da_u32.rotate_left(3 * i as u32));
    }
    driver.set(at::RXCSUM, rxcsum::PCSD);
    driver.set(at::MRQC, mrqc::RSS | mrqc::IPV4 | mrqc::UDP_IPV4);
    driver.control().send(128);
    let mut counts = [0; 4];
    wait(|| {
        for (q, count) in counts.iter_mut().enumerate() {
            for got in std::iter::from_fn(|| driver.receive(q)) {
                // UDP over IPv4, hashed with its ports; the hash chooses the queue.
                assert_eq!((got.low & 0x1FFFF, got.low >> 32 & 3), (0x217, q as u64));
                *count += 1;
            }
        }
        counts.iter().sum::<usize>() == 128
    });
    assert!(counts.iter().all(|n| *n >= 8), "{counts:?}");
}

#[test]
fn two_ports_on_a_wire_are_cabled_and_a_third_is_refused() {
    let a = nic("soft:,wire=between-two");
    assert!(a.reporter().is_none());
    let mut a = Driver::start(a, 1);
    assert_eq!(a.get(at::STATUS) & at::status::LU, 0, "nobody at the other end");
    let mut b = Driver::start(nic("soft:,wire=between-two"), 1);
    wait(|| a.get(at::STATUS) & b.get(at::STATUS) & at::status::LU != 0);
    let error = open(&"soft:,wire=between-two".parse().unwrap()).unwrap_err().to_string();
    assert!(error.contains("\"between-two\""), "{error}");
    for n in 0..200 {
        a.send(0, &udp(b.control().mac().0, n));
        assert_eq!(b.expect(0).data.len(), (42 + n).max(60));
        b.send(0, &udp(a.control().mac().0, n));
        a.expect(0);
    }
    drop(b);
    wait(|| a.get(at::STATUS) & at::status::LU == 0);
    drop(a);
    drop((nic("soft:,wire=between-two"), nic("soft:,wire=between-two")));
}

#[test]
fn a_loop_brings_frames_back() {
    let mut driver = Driver::start(nic("soft:,wire=loop"), 1);
    wait(|| driver.get(at::STATUS) & at::status::LU != 0);
    let frame = udp(driver.control().mac().0, 200);
    driver.send(0, &frame);
    assert_eq!(driver.expect(0).data, frame);
}

#[test]
fn a_reset_takes_everything_back_and_ends_by_itself() {
    let mut driver = Driver::start(nic("soft:,rate=1000"), 1);
    driver.expect(0);
    driver.set(at::CTRL, ctrl::RST);
    wait(|| driver.get(at::CTRL) & ctrl::RST == 0);
    assert_eq!((driver.get(at::RCTL), driver.get(at::rx(0, queue::BAL))), (0, 0));
    assert_eq!(driver.get(at::STATUS) & at::status::LU, 0, "SLU is off");
    driver.set(at::RCTL, rctl::EN);
    driver.device.reset().unwrap();
    assert_eq!(driver.get(at::RCTL), 0);
}

#[test]
fn a_disabled_queue_is_out_of_its_ring() {
    let mut driver = Driver::start(nic("soft:,rate=max"), 1);
    driver.expect(0);
    driver.set(at::rx(0, queue::DCTL), 0);
    wait(|| driver.get(at::rx(0, queue::DCTL)) & at::DCTL_ENABLE == 0);
    let head = driver.get(at::rx(0, queue::HEAD));
    while driver.receive(0).is_some() {}
    assert!(driver.control().settle(super::LONG));
    assert_eq!(driver.get(at::rx(0, queue::HEAD)), head);
}

#[test]
fn no_more_queues_than_the_spec_says() {
    let driver = Driver::start(nic("soft:,rate=0,queues=2"), 2);
    driver.set(at::rx(2, queue::DCTL), at::DCTL_ENABLE);
    assert!(driver.control().settle(super::LONG));
    assert_eq!(driver.get(at::rx(2, queue::DCTL)) & at::DCTL_ENABLE, 0);
}
