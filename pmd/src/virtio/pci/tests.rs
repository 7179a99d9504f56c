//! The driver on a model of the registers: what it refuses, what it sets up, and that it lets go of nothing too early.

use std::sync::{Arc, Mutex};

use spinwake::device::Device;
use spinwake::dma::Domain;
use spinwake::frame::{Burst, Pool, PoolConfig};
use spinwake::irq::{IrqKind, Vector};
use spinwake::port::{Link, Offloads, Port, PortConfig, PortError, RxCounters, RxQueue};
use spinwake::wait::{Source, Wake};

use super::capability::Layout;
use super::model::{Cap, GOOD_CAPS, Model};
use super::nic::{Nic, Retired};
use super::transport::Transport;
use super::{Options, VirtioPort};
use crate::virtio::features::Features;
use crate::virtio::queue::{DriverRx, RingHealth};

const BASE: Features = Features::VERSION_1.with(Features::ACCESS_PLATFORM);
const USUAL: Features =
    BASE.with(Features::MAC).with(Features::STATUS).with(Features::MTU).with(Features::MRG_RXBUF).with(Features::MQ);

fn open(model: Arc<Model>) -> Result<VirtioPort, PortError> {
    VirtioPort::open(model, &Domain::new(), Options { irq: None, packed: true })
}

fn refusal<T: std::fmt::Debug>(result: Result<T, PortError>) -> String {
    result.unwrap_err().to_string()
}

fn layout(caps: &[Cap], multiplier: u32) -> Result<Layout, PortError> {
    Layout::find(&Model::with(USUAL, 1, caps, multiplier))
}

/// The good capabilities, with one changed.
fn but(which: usize, cap: Cap) -> Vec<Cap> {
    let mut caps = GOOD_CAPS.to_vec();
    caps[which] = cap;
    caps
}

#[test]
fn structures_are_found_where_the_device_says() {
    let found = layout(&GOOD_CAPS, 4).unwrap();
    assert_eq!((found.common.len(), found.notify_multiplier), (0x1000, 4));
    // Reserved types and BARs are passed over, and so is a first place that cannot be used.
    let more = [(99, 4, 0, 0), (1, 6, 0, 0x1000), (1, 2, 0, 0x1000), (4, 4, 0x3ff0, 0x1000)];
    let caps: Vec<_> = more.into_iter().chain(GOOD_CAPS).collect();
    layout(&caps, 0).unwrap();
}

#[test]
fn a_device_with_the_legacy_interface_only_is_refused_with_the_way_out() {
    let text = refusal(layout(&[], 4));
    assert!(text.contains("model: it offers virtio's legacy interface only") && text.contains("disable-modern=off"));
}

#[test]
fn a_structure_that_leaves_its_bar_is_refused_by_name() {
    for (caps, multiplier, parts) in [
        (but(0, (1, 4, 0, 0x37)), 4, ["common configuration", "0x37 bytes, and 0x38 are needed"]),
        (but(0, (1, 4, 2, 0x1000)), 4, ["common configuration", "begins at 0x2, which is no multiple of 4"]),
        (but(1, (3, 4, 0x4000, 1)), 4, ["ISR status", "leave BAR 4 of 0x4000 bytes"]),
        (but(2, (4, 4, 0xffff_fffc, u32::MAX)), 4, ["device configuration", "leave BAR 4"]),
        (but(2, (4, 4, 0x2000, 7)), 4, ["device configuration", "0x8 are needed"]),
        (but(3, (2, 1, 0x3000, 0x1000)), 4, ["notification", "model has no BAR 1"]),
        (GOOD_CAPS.to_vec(), 3, ["notification", "multiplier is 3, not an even power of two"]),
        (GOOD_CAPS.to_vec(), 1, ["notification", "multiplier is 1"]),
        (
            GOOD_CAPS[1..].iter().copied().chain([(1, 7, 0, 0x1000)]).collect(),
            4,
            ["common configuration", "no capability"],
        ),
    ] {
        let text = refusal(layout(&caps, multiplier));
        assert!(parts.iter().all(|part| text.contains(part)), "{parts:?} in {text}");
    }
}

#[test]
fn what_a_device_lacks_is_named() {
    let refused = |offered, pairs| refusal(open(Arc::new(Model::new(offered, pairs))));
    let text = refused(Features::VERSION_1, 1);
    assert!(text.contains("does not offer ACCESS_PLATFORM; it offers VERSION_1") && text.contains("iommu_platform=on"));
    assert!(refused(Features::ACCESS_PLATFORM, 1).contains("does not offer VERSION_1"));
}

#[test]
fn nonsense_about_itself_is_refused() {
    let said = |change: fn(&mut Model)| {
        let mut model = Model::new(USUAL, 1);
        change(&mut model);
        refusal(open(Arc::new(model)))
    };
    assert!(said(|model| model.state().config[0] = 1).contains("01:54:00:00:00:07, which is no station's"));
    assert!(said(|model| model.state().config[10..12].copy_from_slice(&[10, 0])).contains("its MTU is 10"));
    assert!(said(|model| model.state().gone = true).contains("does not answer"));
    assert!(said(|model| model.state().stuck = true).contains("its reset did not happen"));
}

#[test]
fn capabilities_follow_what_is_offered() {
    let offered =
        USUAL.with(Features::CTRL_VQ).with(Features::CSUM).with(Features::HOST_TSO4).with(Features::HOST_TSO6);
    let port = open(Arc::new(Model::new(offered, 4))).unwrap();
    let can = port.capabilities();
    assert_eq!((can.max_rx_queues, can.max_mtu, can.rx_ring_len.clone()), (4, 9000, 32..=256));
    assert!(can.offloads.tx_checksum && can.offloads.tcp_segmentation && !can.offloads.rx_checksum);
    assert_eq!((port.config().rx_ring_len, port.config().mtu), (256, 1500));
    assert_eq!(port.mac().to_string(), "52:54:00:00:00:07");
    // Several pairs need a control queue, and long frames need chains.
    let port = open(Arc::new(Model::new(BASE.with(Features::MQ), 4))).unwrap();
    assert_eq!((port.capabilities().max_rx_queues, port.capabilities().max_mtu), (1, 2030));
    assert!(port.mac().is_unicast());
}

#[test]
fn queues_go_in_pairs() {
    let mut port = open(Arc::new(Model::new(USUAL.with(Features::CTRL_VQ), 4))).unwrap();
    let config = PortConfig { rx_queues: 2, ..port.config().clone() };
    let text = port.configure(config).unwrap_err().to_string();
    assert!(text.contains("tx_queues=1 is not possible; it takes as many as there are rx_queues, 2"), "{text}");
}

#[test]
fn the_link_is_what_the_device_says() {
    let model = Arc::new(Model::new(USUAL.with(Features::SPEED_DUPLEX), 1));
    let port = open(model.clone()).unwrap();
    assert_eq!(port.link(), Link::Up { mbps: 25_000, full_duplex: true });
    model.state().config[12..17].copy_from_slice(&[0xff; 5]);
    assert_eq!(port.link(), Link::Up { mbps: 0, full_duplex: true });
    model.state().config[6] = 0;
    assert_eq!(port.link(), Link::Down);
    model.state().config[6] = 1;
    model.state().status = 0x47;
    assert_eq!(port.link(), Link::Down, "it wants to be reset");
    model.state().status = 0;
    assert_ne!(port.link(), Link::Down);
    model.state().gone = true;
    assert_eq!(port.link(), Link::Down);
}

#[test]
fn a_configuration_that_changes_while_it_is_read_is_read_again() {
    let model = Model::new(USUAL, 1);
    let transport = Transport::open(&model).unwrap();
    model.state().restless = 40;
    let said = super::config::NetConfig::read(&transport);
    assert_eq!((said.mac.to_string().as_str(), said.mtu), ("52:54:00:00:00:07", 9000));
}

#[test]
fn features_that_the_device_takes_back_are_refused() {
    let model = Model::new(USUAL, 1);
    let transport = Transport::open(&model).unwrap();
    transport.accept(USUAL.bits()).unwrap();
    assert_eq!(model.state().accepted, USUAL.bits());
    model.state().refuses_features = true;
    assert!(refusal(transport.accept(USUAL.bits())).contains("refuses the features"));
    assert_eq!(model.state().status & 128, 128, "the device is told of the failure");
}

/// A queue that notes what becomes of it.
#[derive(Debug)]
struct Fake {
    notes: Arc<Mutex<Vec<&'static str>>>,
    counters: Arc<RxCounters>,
    health: Arc<RingHealth>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.notes.lock().unwrap().push("dropped");
    }
}

impl Source for Fake {
    fn label(&self) -> String {
        "fake".into()
    }
    fn pending(&self) -> bool {
        false
    }
    fn wake(&self) -> Wake {
        Wake::Never("it is none".into())
    }
}

impl RxQueue for Fake {
    fn rx_burst(&mut self, _: &mut Pool, _: &mut Burst) -> usize {
        0
    }
    fn vector(&self) -> Option<&Arc<Vector>> {
        None
    }
    fn counters(&self) -> &Arc<RxCounters> {
        &self.counters
    }
}

impl DriverRx for Fake {
    fn reset(&mut self) -> usize {
        self.notes.lock().unwrap().push("reset");
        0
    }
    fn abandon(&mut self) {
        self.notes.lock().unwrap().push("abandoned");
    }
    fn health(&self) -> &Arc<RingHealth> {
        &self.health
    }
}

/// What became of a queue that is retired after `before`, and then of all in the device.
fn retired(before: impl FnOnce(&Model, &Nic)) -> (Vec<&'static str>, Vec<&'static str>, usize) {
    let model = Arc::new(Model::new(USUAL, 1));
    let nic = Nic::open(model.clone() as Arc<dyn Device>, &Domain::new()).unwrap();
    before(&model, &nic);
    let notes = Arc::new(Mutex::new(Vec::new()));
    let fake = Fake { notes: notes.clone(), counters: Arc::default(), health: Arc::default() };
    nic.retire(1, Retired::Rx(Box::new(fake)));
    let first = notes.lock().unwrap().clone();
    nic.quiesce();
    drop(nic);
    let resets = model.state().queues[1].resets;
    let last = notes.lock().unwrap().clone();
    (first, last, resets)
}

#[test]
fn a_queue_is_freed_only_when_the_device_has_let_go_of_it() {
    let (none, gone) = (Vec::new(), vec!["reset", "dropped"]);
    assert_eq!(retired(|_, _| {}), (gone.clone(), gone.clone(), 0), "the device was never given it");
    assert_eq!(retired(|_, nic| nic.give_queues(false)), (none.clone(), gone.clone(), 0), "after the device's reset");
    assert_eq!(retired(|_, nic| nic.give_queues(true)).0, gone, "its own reset is enough");
    let lost = retired(|model, nic| {
        nic.give_queues(false);
        model.state().status = 7;
        model.state().stuck = true;
    });
    assert_eq!(lost, (none, vec!["abandoned"], 0), "a device that cannot be stopped keeps it for good");
}

#[test]
fn a_thousand_starts_and_stops_leave_nothing_behind() {
    let model = Arc::new(Model::new(USUAL.with(Features::RING_PACKED).with(Features::EVENT_IDX), 1));
    let mut port = open(model.clone()).unwrap();
    let before = std::fs::read_dir("/proc/self/fd").unwrap().count();
    for cycle in 0..1000 {
        let queues = port.start().unwrap();
        {
            let state = model.state();
            assert_eq!(state.status, 15);
            assert!(state.master && state.queues[0].enabled && state.queues[1].enabled && !state.queues[2].enabled);
            assert_eq!((state.queues[0].vector, state.queues[1].vector, state.config_vector), (0, 1, 2));
        }
        assert!(matches!(port.stop(), Err(PortError::QueuesAlive { alive: 2, .. })));
        if cycle % 2 == 0 {
            assert!(matches!(port.start(), Err(PortError::Started { .. })));
        }
        drop(queues);
        port.stop().unwrap();
        assert_eq!(model.state().status, 0);
        assert!(!model.state().master);
    }
    assert!(std::fs::read_dir("/proc/self/fd").unwrap().count() < before + 50, "descriptors are left");
}

#[test]
fn a_start_that_fails_leaves_the_device_quiet_and_can_be_tried_again() {
    let model = Arc::new(Model::new(USUAL, 1));
    let mut port = open(model.clone()).unwrap();
    model.state().refuses_vectors = true;
    assert!(refusal(port.start()).contains("it has no vector 0 for queue 0; try irq=intx"));
    assert!(model.is_quiet());
    model.state().refuses_vectors = false;
    model.state().doorbells_at = 0x8000;
    assert!(refusal(port.start()).contains("the doorbell of queue 0, at 0x20000, is outside"));
    model.state().doorbells_at = 0;
    drop(port.start().unwrap());
    port.stop().unwrap();
}

#[test]
fn fewer_vectors_are_shared_and_intx_has_none() {
    let model = Arc::new(Model::new(USUAL, 1));
    let mut port = open(model.clone()).unwrap();
    model.state().vectors = 2;
    let queues = port.start().unwrap();
    assert_eq!(model.state().queues[1].vector, 0);
    assert!(port.link_vector().is_some());
    drop(queues);
    port.stop().unwrap();
    model.state().vectors = 0;
    let queues = port.start().unwrap();
    assert_eq!((model.state().queues[0].vector, port.irq_kind()), (0xffff, Some(IrqKind::Intx)));
    assert!(port.link_vector().is_none());
    drop(queues);
}

#[test]
fn queues_may_outlive_their_port() {
    let model = Arc::new(Model::new(USUAL, 1));
    let mut port = open(model.clone()).unwrap();
    let queues = port.start().unwrap();
    drop(port);
    assert!(model.is_quiet());
    drop(queues);
}

#[test]
fn a_frame_beyond_the_mtu_is_refused_by_a_port_that_cuts_those_that_ask_for_it() {
    let offered = USUAL.with(Features::CSUM).with(Features::HOST_TSO4).with(Features::HOST_TSO6);
    let (model, domain) = (Arc::new(Model::new(offered, 1)), Domain::new());
    let mut port = VirtioPort::open(model, &domain, Options { irq: None, packed: true }).unwrap();
    let offloads = Offloads { tx_checksum: true, tcp_segmentation: true, ..Offloads::default() };
    port.configure(PortConfig { offloads, ..port.config().clone() }).unwrap();
    let mut tx = port.start().unwrap().tx.remove(0);
    let mut pool = Pool::new_in(&domain, &PoolConfig { frames: 8, ..PoolConfig::default() }).unwrap();
    for (len, refused) in [(1518, 0), (1519, 1)] {
        let mut frame = pool.take().unwrap();
        frame.set_len(len);
        assert_eq!(tx.tx_burst(&mut pool, &mut std::iter::once(frame).collect()), 1);
        assert_eq!(tx.counters().refused.get(), refused, "{len} bytes");
    }
}
