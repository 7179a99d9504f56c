//! The igb driver on two controllers that are cabled to each other, both driven by it.
//!
//! Tests named `guest_` want QEMU's igb behind an IOMMU: they run when SPINWAKE_TEST_TIER lists `guest`, one at a time,
//! because they share the two devices.
#![expect(clippy::unwrap_used, reason = "the helpers of tests, too, fail by panicking")]

mod packet;
mod rig;
mod scenarios;
mod waking;

use rig::guest;
use spinwake::irq::IrqKind;

#[test]
fn guest_frames_of_every_size_arrive_as_sent() {
    guest(scenarios::every_size);
}

#[test]
fn guest_chains_carry_jumbo_frames() {
    guest(scenarios::jumbo);
}

#[test]
fn guest_vlan_tags_are_put_in_and_taken_out() {
    guest(scenarios::vlan_offload);
}

#[test]
fn guest_checksums_are_filled_in_and_checked() {
    guest(scenarios::checksums);
}

#[test]
fn guest_flows_spread_over_four_queues() {
    guest(scenarios::rss);
}

#[test]
fn guest_filters_let_in_what_was_asked_for() {
    guest(scenarios::filters);
}

#[test]
fn guest_impossible_frames_are_refused_and_hurt_no_other() {
    guest(scenarios::refusals);
}

#[test]
fn guest_statistics_equal_what_was_sent() {
    guest(scenarios::statistics);
}

#[test]
fn guest_a_dry_pool_loses_no_buffer() {
    guest(scenarios::dry_pool);
}

#[test]
fn guest_stop_and_start_a_hundred_times() {
    guest(|rig| scenarios::restart(rig, 100));
}

#[test]
fn guest_queues_may_outlive_their_port() {
    guest(scenarios::outlive);
}

#[test]
fn guest_link_changes_fire_the_link_vector() {
    guest(waking::link_vector);
}

#[test]
fn guest_msix_wakes_a_blocked_wait() {
    guest(|rig| waking::frames_wake(rig, IrqKind::Msix));
}

#[test]
fn guest_msi_wakes_a_blocked_wait() {
    guest(|rig| waking::frames_wake(rig, IrqKind::Msi));
}

#[test]
fn guest_intx_wakes_a_blocked_wait() {
    guest(|rig| waking::frames_wake(rig, IrqKind::Intx));
}

#[test]
fn guest_each_queue_wakes_by_its_own_vector() {
    guest(waking::vector_each);
}
