//! Opening ports, and telling the operator of them and of their worker.

use std::error::Error;

use spinwake::cpu::Chosen;
use spinwake::frame::{Pool, PoolConfig, PoolError};
use spinwake::port::{Capabilities, Link, Port, PortConfig};
use spinwake::wait::WaitPolicy;

use crate::metrics::{MetricsAddress, MetricsServer};
use crate::output::Output;

/// Opens the port that `spec` names, configured as its keys say and then as `change` does.
///
/// # Errors
///
/// When it cannot be opened or cannot do what `change` asks.
pub fn open(spec: &str, change: impl FnOnce(&mut PortConfig, &Capabilities)) -> Result<Box<dyn Port>, Box<dyn Error>> {
    let mut port = spinwake_pmd::open(spec)?;
    let mut config = port.config().clone();
    change(&mut config, port.capabilities());
    port.configure(config)?;
    Ok(port)
}

/// A pool for a worker that serves `ports`: enough frames to fill every ring, and as many again as it can hold in its hands.
///
/// # Errors
///
/// When there is no memory for it.
pub fn pool_for(ports: &[Box<dyn Port>], node: Option<usize>, require_hugepages: bool) -> Result<Pool, PoolError> {
    let rings = ports.iter().map(|port| {
        let config = port.config();
        usize::from(config.rx_queues) * usize::from(config.rx_ring_len)
            + usize::from(config.tx_queues) * usize::from(config.tx_ring_len)
    });
    Pool::new(&PoolConfig { frames: rings.sum::<usize>() + 1024, node, require_hugepages })
}

/// Says what port `number` is.
pub fn introduce_port(output: &Output, number: usize, spec: &str, port: &dyn Port) {
    let config = port.config();
    let irq = port.irq_kind().map_or_else(String::new, |kind| format!(", {kind}"));
    let queues = if config.rx_queues == 1 { "queue" } else { "queues" };
    let (driver, mac, count, mtu) = (port.driver(), port.mac(), config.rx_queues, config.mtu);
    let link = match port.link() {
        Link::Down => "no link yet".into(),
        up => up.to_string(),
    };
    output.say(format_args!("port {number}  {spec}  driver {driver}, {mac}, {link}, {count} {queues}, MTU {mtu}{irq}"));
}

/// Says where a worker runs and how it waits.
pub fn introduce_worker(output: &Output, core: &Chosen, wait: WaitPolicy, notes: &[String]) {
    let isolated = if core.isolated == Some(true) { "isolated" } else { "shared with the system" };
    output.say(format_args!("worker  core {} ({isolated}), wait policy {wait}", core.core));
    for note in notes {
        output.say(format_args!("wait    {note}"));
    }
}

/// Says where metrics are served.
pub fn introduce_servers(output: &Output, servers: &[MetricsServer]) {
    for server in servers {
        match server.address() {
            MetricsAddress::Tcp(address) => output.say(format_args!("metrics http://{address}/metrics")),
            address @ MetricsAddress::Unix(_) => output.say(format_args!("metrics {address}")),
        }
    }
}
