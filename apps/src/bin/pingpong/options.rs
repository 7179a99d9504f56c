//! The command line, and what it asks for.

use clap::Parser;
use spinwake::port::{MacAddr, Port};
use spinwake_apps::options::WorkerOptions;

use crate::client::Request;
use crate::gap::Gap;
use crate::message::{ETHERNET_LEN, MIN_LEN};

/// Measures round trips of raw Ethernet frames between two nodes: one with --serve, the other with --peer and its address.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Without --port it measures between two embedded NICs with a cable between them: no hardware, no root.\n\n\
        Two machines:   pingpong --port pci:0000:01:00.0 --serve\n                \
        pingpong --port pci:0000:01:00.0 --peer MAC --gap poisson:100us --plot latency.svg\n\n\
        Requests are sent when they are due, whether or not earlier ones were answered, and the time of a round trip counts \
        from when its request was due. One without an answer after a second is lost."
)]
pub(crate) struct Args {
    /// The port, as KIND:ADDRESS[,key=value]...
    #[arg(long, value_name = "SPEC")]
    port: Option<String>,

    /// Answer requests
    #[arg(long, requires = "port", conflicts_with_all = ["peer", "far", "size", "gap", "count", "plot"])]
    serve: bool,

    /// Send requests to the node with this Ethernet address
    #[arg(long, value_name = "MAC", requires = "port", conflicts_with = "far")]
    peer: Option<MacAddr>,

    /// Answer requests on this second port, in this same process, and send them there from the first
    #[arg(id = "far", long = "loop", value_name = "SPEC", requires = "port")]
    far: Option<String>,

    /// Bytes of each frame, without its check sequence: 60 to the port's MTU and 14
    #[arg(long, value_name = "N", default_value_t = MIN_LEN)]
    size: usize,

    /// Time between requests: fixed:10us, or poisson:100us for random gaps of that mean; 100ns to 10s
    #[arg(long, value_name = "GAP", default_value = "fixed:100us")]
    gap: Gap,

    /// Stop after this many requests
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// Draw the distribution of round trips into the SVG file PATH at the end
    #[arg(long, value_name = "PATH")]
    pub(crate) plot: Option<String>,

    #[command(flatten)]
    pub(crate) worker: WorkerOptions,
}

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Answer on one port.
    Serve { spec: String },
    /// Ask from one port.
    Ask { spec: String, peer: MacAddr },
    /// Ask from one port and answer on another.
    Both { near: String, far: String },
}

/// A command line was understood, and asks for what cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PlanError {
    #[error(
        "{port} could do three things: add --serve to answer requests, --peer MAC to send them to another node, or --loop SPEC \
         to do both between two ports"
    )]
    NoRole { port: String },
    #[error(
        "--peer {0} is no address of a single node; give the one that the other node shows when it starts with --serve"
    )]
    NoUnicast(MacAddr),
    #[error(
        "--peer {mac} is the own address of {port}; give the one that the other node shows when it starts with --serve"
    )]
    OwnAddress { mac: MacAddr, port: String },
    #[error(
        "--size {size} does not fit: {port} has an MTU of {mtu}, so frames of {MIN_LEN} to {} bytes are possible; \
         a larger MTU is asked for by mtu= in the port's spec",
        usize::from(*mtu) + ETHERNET_LEN
    )]
    Size { size: usize, port: String, mtu: u16 },
    #[error(
        "--json and --plot both name {path}, and the later one would replace the other; give each a file of its own"
    )]
    OneFile { path: String },
}

impl Args {
    /// What to do.
    pub(crate) fn plan(&self) -> Result<Plan, PlanError> {
        if let Some(path) = self.plot.as_ref().filter(|plot| self.worker.json.as_ref() == Some(plot)) {
            return Err(PlanError::OneFile { path: path.clone() });
        }
        let Some(spec) = self.port.clone() else {
            return Ok(Plan::Both { near: "soft:ping,wire=cable".into(), far: "soft:pong,wire=cable".into() });
        };
        match (self.serve, self.peer, &self.far) {
            (true, ..) => Ok(Plan::Serve { spec }),
            (_, Some(peer), _) if !peer.is_unicast() => Err(PlanError::NoUnicast(peer)),
            (_, Some(peer), _) => Ok(Plan::Ask { spec, peer }),
            (.., Some(far)) => Ok(Plan::Both { near: spec, far: far.clone() }),
            _ => Err(PlanError::NoRole { port: spec }),
        }
    }

    /// What to send to `peer` from `port`, which was opened by `spec`.
    pub(crate) fn request(&self, spec: &str, port: &dyn Port, peer: MacAddr) -> Result<Request, PlanError> {
        if peer == port.mac() {
            return Err(PlanError::OwnAddress { mac: peer, port: spec.into() });
        }
        self.fits(spec, port)?;
        Ok(Request { peer, size: self.size, gap: self.gap, count: self.count })
    }

    /// Whether frames of the size that was asked for fit `port`.
    pub(crate) fn fits(&self, spec: &str, port: &dyn Port) -> Result<(), PlanError> {
        let mtu = port.config().mtu;
        if (MIN_LEN..=usize::from(mtu) + ETHERNET_LEN).contains(&self.size) {
            return Ok(());
        }
        Err(PlanError::Size { size: self.size, port: spec.into(), mtu })
    }
}

impl Plan {
    /// The ports that it needs.
    pub(crate) fn specs(&self) -> Vec<&str> {
        match self {
            Self::Serve { spec } | Self::Ask { spec, .. } => vec![spec],
            Self::Both { near, far } => vec![near, far],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(arguments: &[&str]) -> Result<Plan, String> {
        let args = Args::try_parse_from(["pingpong"].iter().chain(arguments)).map_err(|error| error.to_string())?;
        args.plan().map_err(|error| error.to_string())
    }

    #[test]
    fn each_role_is_found_and_two_are_refused() {
        let peer = "02:00:00:00:00:01";
        assert_eq!(plan(&["--port", "soft:a", "--serve"]), Ok(Plan::Serve { spec: "soft:a".into() }));
        assert_eq!(
            plan(&["--port", "soft:a", "--peer", peer]),
            Ok(Plan::Ask { spec: "soft:a".into(), peer: peer.parse().unwrap() })
        );
        assert_eq!(
            plan(&["--port", "soft:a", "--loop", "soft:b"]),
            Ok(Plan::Both { near: "soft:a".into(), far: "soft:b".into() })
        );
        assert!(matches!(plan(&[]), Ok(Plan::Both { .. })));
        for (arguments, word) in [
            (&["--port", "soft:a"][..], "--serve"),
            (&["--serve"], "--port"),
            (&["--peer", peer], "--port"),
            (&["--port", "soft:a", "--serve", "--peer", peer], "cannot be used with"),
            (&["--port", "soft:a", "--loop", "soft:b", "--peer", peer], "cannot be used with"),
            (&["--port", "soft:a", "--serve", "--count", "3"], "cannot be used with"),
            (&["--port", "soft:a", "--peer", "ff:ff:ff:ff:ff:ff"], "no address of a single node"),
            (&["--port", "soft:a", "--peer", "router"], "six hexadecimal bytes"),
            (&["--gap", "often"], "fixed:10us"),
        ] {
            let error = plan(arguments).unwrap_err();
            assert!(error.contains(word), "{arguments:?}: {error}");
        }
    }
}
