//! The virtio driver on two network devices that are cabled to each other, both driven by it.
//!
//! The scenarios want QEMU's virtio-net-pci behind an IOMMU: they run when SPINWAKE_TEST_TIER lists `guest`, one at a time,
//! because they share the devices. There are pairs: a rich one, with packed rings and all that QEMU has, and a poor one
//! with split rings, without a control queue, event index, indirect descriptors or mergeable buffers, and with two vectors.
//! A third, where the host has taps, has several queues, and the host's kernel between its ends, which finishes checksums and
//! cuts large frames for who does not take them as they are.
#![expect(clippy::unwrap_used, reason = "the helpers of tests, too, fail by panicking")]

mod monitor;
mod offloads;
#[path = "../igb/packet.rs"]
mod packet;
mod rig;
mod scenarios;

use rig::{PACKED, POOR, SPLIT};

#[test]
fn guest_frames_of_every_size_arrive_in_split_rings() {
    rig::guest(SPLIT, scenarios::every_size);
}

#[test]
fn guest_frames_of_every_size_arrive_in_packed_rings() {
    rig::guest(PACKED, scenarios::every_size);
}

#[test]
fn guest_frames_of_every_size_arrive_with_the_least_that_a_device_may_have() {
    rig::guest(POOR, scenarios::every_size);
}

#[test]
fn guest_chains_carry_jumbo_frames_in_split_rings() {
    rig::guest(SPLIT, scenarios::jumbo);
}

#[test]
fn guest_chains_carry_jumbo_frames_in_packed_rings() {
    rig::guest(PACKED, scenarios::jumbo);
}

#[test]
fn guest_filters_let_in_what_was_asked_for() {
    rig::guest(PACKED, scenarios::filters);
}

#[test]
fn guest_a_vlan_filter_lets_in_its_vlans_only() {
    rig::guest(SPLIT, scenarios::vlan_filter);
}

#[test]
fn guest_stop_and_start_a_thousand_times_with_packed_rings() {
    rig::guest(PACKED, |rig| scenarios::restart(rig, 1000));
}

#[test]
fn guest_stop_and_start_with_split_rings() {
    rig::guest(SPLIT, |rig| scenarios::restart(rig, 100));
}

#[test]
fn guest_stop_and_start_a_device_that_resets_no_queue_alone() {
    rig::guest(POOR, |rig| scenarios::restart(rig, 100));
}

#[test]
fn guest_queues_may_outlive_their_port() {
    rig::guest(PACKED, scenarios::outlive);
}

#[test]
fn guest_msix_wakes_by_edges_in_split_rings() {
    rig::guest(&[SPLIT, ",irq=msix"].concat(), scenarios::edges_wake);
}

#[test]
fn guest_msix_wakes_by_edges_in_packed_rings() {
    rig::guest(&[PACKED, ",irq=msix"].concat(), scenarios::edges_wake);
}

#[test]
fn guest_a_shared_msix_vector_wakes_by_edges() {
    rig::guest(&[POOR, ",irq=msix"].concat(), scenarios::edges_wake);
}

#[test]
fn guest_intx_wakes_by_edges_in_split_rings() {
    rig::guest(&[SPLIT, ",irq=intx"].concat(), scenarios::edges_wake);
}

#[test]
fn guest_intx_wakes_by_edges_in_packed_rings() {
    rig::guest(&[PACKED, ",irq=intx"].concat(), scenarios::edges_wake);
}

#[test]
fn guest_intx_wakes_by_edges_without_an_event_index() {
    rig::guest(&[POOR, ",irq=intx"].concat(), scenarios::edges_wake);
}

#[test]
fn guest_completions_wake_by_edges() {
    rig::guest(PACKED, scenarios::completions_wake);
}

#[test]
fn guest_what_a_device_cannot_do_is_refused() {
    rig::guest(POOR, scenarios::refusals);
}

#[test]
fn guest_a_link_that_goes_and_comes_is_told_in_split_rings() {
    rig::guest(SPLIT, scenarios::link_change);
}

#[test]
fn guest_a_link_that_goes_and_comes_is_told_in_packed_rings() {
    rig::guest(PACKED, scenarios::link_change);
}

#[test]
fn guest_flows_come_to_the_queue_that_they_left_by() {
    rig::guest_taps(&[PACKED, ",queues=2"].concat(), |rig| scenarios::several_queues(&rig.turned()));
    rig::guest_taps(&[SPLIT, ",queues=2"].concat(), |rig| scenarios::several_queues(&rig.turned()));
}

#[test]
fn guest_flows_spread_over_several_queues_by_a_hash() {
    rig::guest_taps(&[PACKED, ",queues=2"].concat(), scenarios::several_queues);
    rig::guest_taps(&[SPLIT, ",queues=4"].concat(), scenarios::several_queues);
}

#[test]
fn guest_all_queue_pairs_carry_frames() {
    rig::guest_taps(&[PACKED, ",queues=4"].concat(), scenarios::every_size);
}

#[test]
fn guest_the_kernel_finishes_checksums() {
    rig::guest_taps(PACKED, offloads::checksums_are_finished);
    rig::guest_taps(SPLIT, offloads::checksums_are_finished);
}

#[test]
fn guest_unfinished_checksums_are_passed_on() {
    rig::guest_taps(PACKED, offloads::checksums_are_passed_on);
    rig::guest_taps(SPLIT, offloads::checksums_are_passed_on);
}

#[test]
fn guest_the_kernel_cuts_large_frames() {
    rig::guest_taps(PACKED, offloads::large_frames_are_cut);
    rig::guest_taps(SPLIT, offloads::large_frames_are_cut);
}

#[test]
fn guest_large_frames_are_passed_on_whole() {
    rig::guest_taps(PACKED, offloads::large_frames_are_passed_on);
    rig::guest_taps(SPLIT, offloads::large_frames_are_passed_on);
}
