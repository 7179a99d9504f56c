//! The igb driver on two controllers that are cabled to each other, both driven by it.
//!
//! Each scenario runs twice. Tests named `soft_` use the embedded NIC and need nothing. Those named `guest_` want QEMU's igb
//! behind an IOMMU: they run when SPINWAKE_TEST_TIER lists `guest`, one at a time, because they share the two devices.
#![expect(clippy::unwrap_used, reason = "the helpers of tests, too, fail by panicking")]

mod completions;
mod moderation;
#[expect(dead_code, reason = "virtio's tests use all of it")]
mod packet;
mod rig;
mod scenarios;
mod waking;

use std::time::Duration;

use spinwake::irq::IrqKind;

#[test]
fn soft_frames_of_every_size_arrive_as_sent() {
    rig::soft(scenarios::every_size);
}

#[test]
fn guest_frames_of_every_size_arrive_as_sent() {
    rig::guest(scenarios::every_size);
}

#[test]
fn soft_chains_carry_jumbo_frames() {
    rig::soft(scenarios::jumbo);
}

#[test]
fn guest_chains_carry_jumbo_frames() {
    rig::guest(scenarios::jumbo);
}

#[test]
fn soft_vlan_tags_are_put_in_and_taken_out() {
    rig::soft(scenarios::vlan_offload);
}

#[test]
fn guest_vlan_tags_are_put_in_and_taken_out() {
    rig::guest(scenarios::vlan_offload);
}

#[test]
fn soft_checksums_are_filled_in_and_checked() {
    rig::soft(scenarios::checksums);
}

#[test]
fn guest_checksums_are_filled_in_and_checked() {
    rig::guest(scenarios::checksums);
}

#[test]
fn soft_flows_spread_over_four_queues() {
    rig::soft(scenarios::rss);
}

#[test]
fn guest_flows_spread_over_four_queues() {
    rig::guest(scenarios::rss);
}

#[test]
fn soft_filters_let_in_what_was_asked_for() {
    rig::soft(scenarios::filters);
}

#[test]
fn guest_filters_let_in_what_was_asked_for() {
    rig::guest(scenarios::filters);
}

#[test]
fn soft_impossible_frames_are_refused_and_hurt_no_other() {
    rig::soft(scenarios::refusals);
}

#[test]
fn guest_impossible_frames_are_refused_and_hurt_no_other() {
    rig::guest(scenarios::refusals);
}

#[test]
fn soft_statistics_equal_what_was_sent() {
    rig::soft(scenarios::statistics);
}

#[test]
fn guest_statistics_equal_what_was_sent() {
    rig::guest(scenarios::statistics);
}

#[test]
fn soft_a_dry_pool_loses_no_buffer() {
    rig::soft(scenarios::dry_pool);
}

#[test]
fn guest_a_dry_pool_loses_no_buffer() {
    rig::guest(scenarios::dry_pool);
}

#[test]
fn soft_stop_and_start_a_hundred_times() {
    rig::soft(|rig| scenarios::restart(rig, 100));
}

#[test]
fn guest_stop_and_start_a_hundred_times() {
    rig::guest(|rig| scenarios::restart(rig, 100));
}

#[test]
fn soft_queues_may_outlive_their_port() {
    rig::soft(scenarios::outlive);
}

#[test]
fn guest_queues_may_outlive_their_port() {
    rig::guest(scenarios::outlive);
}

#[test]
fn soft_link_changes_fire_the_link_vector() {
    rig::soft(waking::link_vector);
}

#[test]
fn guest_link_changes_fire_the_link_vector() {
    rig::guest(waking::link_vector);
}

#[test]
fn soft_msix_wakes_a_blocked_wait() {
    rig::soft(|rig| waking::frames_wake(rig, IrqKind::Msix));
}

#[test]
fn guest_msix_wakes_a_blocked_wait() {
    rig::guest(|rig| waking::frames_wake(rig, IrqKind::Msix));
}

#[test]
fn soft_msi_wakes_a_blocked_wait() {
    rig::soft(|rig| waking::frames_wake(rig, IrqKind::Msi));
}

#[test]
fn guest_msi_wakes_a_blocked_wait() {
    rig::guest(|rig| waking::frames_wake(rig, IrqKind::Msi));
}

#[test]
fn soft_intx_wakes_a_blocked_wait() {
    rig::soft(|rig| waking::frames_wake(rig, IrqKind::Intx));
}

#[test]
fn guest_intx_wakes_a_blocked_wait() {
    rig::guest(|rig| waking::frames_wake(rig, IrqKind::Intx));
}

#[test]
fn soft_each_queue_wakes_by_its_own_vector() {
    rig::soft(waking::vector_each);
}

#[test]
fn guest_each_queue_wakes_by_its_own_vector() {
    rig::guest(waking::vector_each);
}

#[test]
fn soft_msix_wakes_by_edges() {
    rig::soft(|rig| waking::edges_wake(rig, IrqKind::Msix));
}

#[test]
fn guest_msix_wakes_by_edges() {
    rig::guest(|rig| waking::edges_wake(rig, IrqKind::Msix));
}

#[test]
fn soft_msi_wakes_by_edges() {
    rig::soft(|rig| waking::edges_wake(rig, IrqKind::Msi));
}

#[test]
fn guest_msi_wakes_by_edges() {
    rig::guest(|rig| waking::edges_wake(rig, IrqKind::Msi));
}

#[test]
fn soft_intx_wakes_by_edges() {
    rig::soft(|rig| waking::edges_wake(rig, IrqKind::Intx));
}

#[test]
fn guest_intx_wakes_by_edges() {
    rig::guest(|rig| waking::edges_wake(rig, IrqKind::Intx));
}

#[test]
fn soft_completions_wake_by_msix() {
    rig::soft(|rig| completions::completions_wake(rig, IrqKind::Msix));
}

#[test]
fn guest_completions_wake_by_msix() {
    rig::guest(|rig| completions::completions_wake(rig, IrqKind::Msix));
}

#[test]
fn soft_room_in_a_full_ring_wakes_by_msix() {
    rig::soft(|rig| completions::room_wakes(rig, IrqKind::Msix, 300));
}

#[test]
fn guest_room_in_a_full_ring_wakes_by_msix() {
    rig::guest(|rig| completions::room_wakes(rig, IrqKind::Msix, 0));
}

#[test]
fn soft_a_shared_msix_vector_wakes_for_both_directions() {
    rig::soft(|rig| completions::shared_vector_wakes(rig, IrqKind::Msix));
}

#[test]
fn guest_a_shared_msix_vector_wakes_for_both_directions() {
    rig::guest(|rig| completions::shared_vector_wakes(rig, IrqKind::Msix));
}

#[test]
fn soft_a_shared_msi_vector_wakes_for_both_directions() {
    rig::soft(|rig| completions::shared_vector_wakes(rig, IrqKind::Msi));
}

#[test]
fn guest_a_shared_msi_vector_wakes_for_both_directions() {
    rig::guest(|rig| completions::shared_vector_wakes(rig, IrqKind::Msi));
}

#[test]
fn soft_a_shared_intx_vector_wakes_for_both_directions() {
    rig::soft(|rig| completions::shared_vector_wakes(rig, IrqKind::Intx));
}

#[test]
fn guest_a_shared_intx_vector_wakes_for_both_directions() {
    rig::guest(|rig| completions::shared_vector_wakes(rig, IrqKind::Intx));
}

#[test]
fn soft_moderation_keeps_msix_wakes_apart() {
    rig::soft(|rig| moderation::keeps_its_distance(rig, IrqKind::Msix, Duration::from_millis(2), 1));
}

#[test]
fn soft_completions_wake_by_msi() {
    rig::soft(|rig| completions::completions_wake(rig, IrqKind::Msi));
}

#[test]
fn guest_completions_wake_by_msi() {
    rig::guest(|rig| completions::completions_wake(rig, IrqKind::Msi));
}

#[test]
fn soft_room_in_a_full_ring_wakes_by_msi() {
    rig::soft(|rig| completions::room_wakes(rig, IrqKind::Msi, 300));
}

#[test]
fn guest_room_in_a_full_ring_wakes_by_msi() {
    rig::guest(|rig| completions::room_wakes(rig, IrqKind::Msi, 0));
}

#[test]
fn soft_moderation_keeps_msi_wakes_apart() {
    rig::soft(|rig| moderation::keeps_its_distance(rig, IrqKind::Msi, Duration::from_millis(2), 1));
}

#[test]
fn soft_completions_wake_by_intx() {
    rig::soft(|rig| completions::completions_wake(rig, IrqKind::Intx));
}

#[test]
fn guest_completions_wake_by_intx() {
    rig::guest(|rig| completions::completions_wake(rig, IrqKind::Intx));
}

#[test]
fn soft_room_in_a_full_ring_wakes_by_intx() {
    rig::soft(|rig| completions::room_wakes(rig, IrqKind::Intx, 300));
}

#[test]
fn guest_room_in_a_full_ring_wakes_by_intx() {
    rig::guest(|rig| completions::room_wakes(rig, IrqKind::Intx, 0));
}

#[test]
fn soft_moderation_keeps_intx_wakes_apart() {
    rig::soft(|rig| moderation::keeps_its_distance(rig, IrqKind::Intx, Duration::from_millis(2), 1));
}

/// QEMU's igb holds back MSI-X only. The longest interval, because emulation alone keeps frames apart.
#[test]
fn guest_moderation_keeps_msix_wakes_apart() {
    rig::guest(|rig| moderation::keeps_its_distance(rig, IrqKind::Msix, Duration::from_micros(8191), 2));
}

#[test]
fn soft_moderation_tells_what_is_done() {
    rig::soft(moderation::what_is_done_is_told);
}

#[test]
fn guest_moderation_tells_what_is_done() {
    rig::guest(moderation::what_is_done_is_told);
}
