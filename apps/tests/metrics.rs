//! Metrics as a scraper meets them: over real sockets, beside clients that mean no good.

mod exposition;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use exposition::Exposition;
use spinwake::port::{PortStats, QueueStats};
use spinwake::telemetry::LiveHistogram;
use spinwake_apps::metrics::{Metrics, MetricsAddress, MetricsServer, ServeError, WorkerSample};

/// How long anything may take before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(30);

const ANY_PORT: &str = "127.0.0.1:0";

/// The name of a port that tries everything a label may hold.
const NASTY: &str = "pcap:in \"a\\b\".pcapng,\nname={x=\"1\"} 2 # EOF, ünï";

fn serve(address: &str, metrics: &Metrics) -> MetricsServer {
    MetricsServer::start(&address.parse().expect("an address"), metrics).expect("a free address")
}

fn tcp_address(server: &MetricsServer) -> SocketAddr {
    match server.address() {
        MetricsAddress::Tcp(address) => *address,
        unix @ MetricsAddress::Unix(_) => panic!("{unix} is no TCP address"),
    }
}

fn connect(server: &MetricsServer) -> TcpStream {
    let stream = TcpStream::connect(tcp_address(server)).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// The whole answer to `request`.
fn ask(mut stream: impl Read + Write, request: &str) -> String {
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    answer
}

fn get(stream: impl Read + Write, path: &str) -> String {
    ask(stream, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: test\r\n\r\n"))
}

/// The body of an answer that must be the metrics.
fn metrics_in(answer: &str) -> &str {
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(
        head.contains("\r\nContent-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"),
        "{head}"
    );
    assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())), "{head}");
    body
}

/// Metrics with all there can be in them.
fn full() -> Metrics {
    let metrics = Metrics::new();
    let wake = Arc::new(LiveHistogram::new());
    for ns in [900, 3_000, 50_000, 2_000_000_000] {
        wake.record(ns);
    }
    metrics.add_worker("l2fwd", move || WorkerSample {
        frames: 12,
        drops: 9,
        cpu: Some(Duration::from_millis(1_500)),
        states: vec![("busy", Duration::from_micros(250)), ("sleep", Duration::from_secs(3))],
        parks: 7,
        wakes: vec![(NASTY.into(), 4), ("timer".into(), 1), ("timer".into(), 1)],
        spurious: 2,
        rescues: 1,
        regrets: 3,
        wake_ns: wake.snapshot(),
        ..WorkerSample::default()
    });
    metrics.add_worker("l2fwd", WorkerSample::default);
    let queue = QueueStats { rx_frames: 5, tx_full: 6, ..QueueStats::default() };
    let stats = PortStats { rx_frames: 8, rx_bytes: 512, queues: vec![queue; 2], ..PortStats::default() };
    metrics.add_port(NASTY).update(stats);
    metrics.add_port("soft:");
    metrics
}

#[test]
fn a_scraper_reads_all_there_is() {
    let server = serve(ANY_PORT, &full());
    let answer = get(connect(&server), "/metrics");
    let metrics = Exposition::parse(metrics_in(&answer));
    for (name, labels, value) in [
        ("spinwake_worker_frames_total", &[("worker", "l2fwd")][..], 12.0),
        ("spinwake_worker_frames_total", &[("worker", "l2fwd #2")], 0.0),
        ("spinwake_worker_drops_total", &[("worker", "l2fwd")], 9.0),
        ("spinwake_worker_parks_total", &[("worker", "l2fwd")], 7.0),
        ("spinwake_worker_spurious_total", &[("worker", "l2fwd")], 2.0),
        ("spinwake_worker_rescues_total", &[("worker", "l2fwd")], 1.0),
        ("spinwake_worker_regrets_total", &[("worker", "l2fwd")], 3.0),
        ("spinwake_worker_cpu_seconds_total", &[("worker", "l2fwd")], 1.5),
        ("spinwake_worker_seconds_total", &[("worker", "l2fwd"), ("state", "busy")], 0.00025),
        ("spinwake_worker_seconds_total", &[("worker", "l2fwd"), ("state", "sleep")], 3.0),
        ("spinwake_worker_wakes_total", &[("worker", "l2fwd"), ("source", NASTY)], 4.0),
        ("spinwake_worker_wakes_total", &[("worker", "l2fwd"), ("source", "timer")], 2.0),
        ("spinwake_worker_wake_seconds_count", &[("worker", "l2fwd")], 4.0),
        ("spinwake_worker_wake_seconds_sum", &[("worker", "l2fwd")], 2.0000539),
        ("spinwake_worker_wake_seconds_bucket", &[("worker", "l2fwd"), ("le", "0.000001024")], 1.0),
        ("spinwake_worker_wake_seconds_bucket", &[("worker", "l2fwd"), ("le", "1.073741824")], 3.0),
        ("spinwake_worker_wake_seconds_bucket", &[("worker", "l2fwd"), ("le", "+Inf")], 4.0),
        ("spinwake_worker_gap_seconds_count", &[("worker", "l2fwd #2")], 0.0),
        ("spinwake_port_rx_frames_total", &[("port", NASTY)], 8.0),
        ("spinwake_port_rx_bytes_total", &[("port", NASTY)], 512.0),
        ("spinwake_port_tx_frames_total", &[("port", "soft:")], 0.0),
        ("spinwake_queue_rx_frames_total", &[("port", NASTY), ("queue", "1")], 5.0),
        ("spinwake_queue_tx_full_total", &[("port", NASTY), ("queue", "0")], 6.0),
    ] {
        assert_eq!(metrics.value(name, labels), Some(value), "{name} {labels:?} in\n{answer}");
    }
    assert_eq!(metrics.value("spinwake_worker_cpu_seconds_total", &[("worker", "l2fwd #2")]), None);
}

#[test]
fn what_a_scraper_might_misread_does_not_pass_for_metrics() {
    let head = "# HELP a x\n# TYPE a counter\n";
    Exposition::parse(&format!("{head}a_total{{b=\"c\"}} 1\n# EOF\n"));
    for bad in [
        "a_total 1\n",
        "a_total 1\n\n# EOF\n",
        "a 1\n# EOF\n",
        "a_total x\n# EOF\n",
        "a_total 1\na_total 1\n# EOF\n",
        "a_total{b=\"c\"d\"} 1\n# EOF\n",
        "a_total{b=\"c\nd\"} 1\n# EOF\n",
        "a_total{b=\"c\\d\"} 1\n# EOF\n",
        "a_total{b=\"c\",b=\"d\"} 1\n# EOF\n",
        "# TYPE h histogram\nh_count 1\nh_sum 1\nh_bucket{le=\"1.0\"} 1\n# EOF\n",
        "# TYPE h histogram\nh_count 1\nh_sum 1\nh_bucket{le=\"1.0\"} 2\nh_bucket{le=\"+Inf\"} 1\n# EOF\n",
    ] {
        let text = format!("{head}{bad}");
        assert!(std::panic::catch_unwind(|| Exposition::parse(&text)).is_err(), "{text}");
    }
}

#[test]
fn what_changes_is_seen_and_nothing_to_tell_is_well_formed_too() {
    let metrics = Metrics::new();
    let server = serve(ANY_PORT, &metrics);
    assert_eq!(metrics_in(&get(connect(&server), "/metrics")), "# EOF\n");
    let parks = Arc::new(AtomicU64::new(1));
    let counter = parks.clone();
    metrics.add_worker("w", move || WorkerSample { parks: counter.load(Ordering::Relaxed), ..WorkerSample::default() });
    for expected in [1, 2] {
        parks.store(expected, Ordering::Relaxed);
        let start = Instant::now();
        loop {
            let answer = get(connect(&server), "/metrics");
            let exposition = Exposition::parse(metrics_in(&answer));
            if exposition.value("spinwake_worker_parks_total", &[("worker", "w")]) == Some(expected as f64) {
                break;
            }
            assert!(start.elapsed() < PATIENCE, "never {expected}: {answer}");
        }
    }
}

#[test]
fn only_one_page_has_metrics() {
    let server = serve(ANY_PORT, &full());
    let starts = |request: &str, status: &str| {
        let answer = ask(connect(&server), request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {answer}");
        assert!(!answer.contains("spinwake_"), "{request}: {answer}");
        answer
    };
    assert!(starts("GET / HTTP/1.1\r\n\r\n", "200").contains("/metrics"));
    starts("GET /metrics2 HTTP/1.1\r\n\r\n", "404");
    starts("POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "405");
    starts("\u{1}\u{2}\r\n\r\n", "400");
    starts(&format!("GET /metrics HTTP/1.1\r\nX: {}\r\n", "x".repeat(20_000)), "431");
}

#[test]
fn a_unix_socket_serves_and_is_gone_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics \"1\".sock");
    let address = format!("unix:{}", path.display());
    for _ in 0..2 {
        let server = serve(&address, &full());
        assert_eq!(server.address().to_string(), address);
        Exposition::parse(metrics_in(&get(UnixStream::connect(&path).unwrap(), "/metrics")));
        drop(server);
        assert!(!path.exists());
    }
}

#[test]
fn what_is_at_a_path_is_replaced_only_if_nobody_listens_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.sock");
    let start = || MetricsServer::start(&MetricsAddress::Unix(path.clone()), &Metrics::new());
    let refusal = || start().unwrap_err().to_string();

    fs::write(&path, "precious").unwrap();
    assert!(refusal().contains(&format!("unix:{}: that path exists and is no socket", path.display())));
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    fs::remove_file(&path).unwrap();

    let live = UnixListener::bind(&path).unwrap();
    assert!(refusal().contains("another program is listening"));
    drop(live);

    // It left its file behind.
    assert!(path.exists());
    let server = start().unwrap();
    assert!(matches!(start(), Err(ServeError::InUse { .. })));
    get(UnixStream::connect(&path).unwrap(), "/metrics");

    // Somebody else's socket in its place is left alone.
    fs::remove_file(&path).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    drop(server);
    assert!(path.exists());
    drop(other);

    let error = MetricsServer::start(&"unix:/nowhere/at/all".parse().unwrap(), &Metrics::new()).unwrap_err();
    assert!(error.to_string().contains("unix:/nowhere/at/all: No such file"), "{error}");
}

#[test]
fn a_port_that_is_taken_is_refused_by_name() {
    let taken = TcpListener::bind(ANY_PORT).unwrap();
    let address = taken.local_addr().unwrap();
    let error = MetricsServer::start(&MetricsAddress::Tcp(address), &Metrics::new()).unwrap_err().to_string();
    assert!(error.contains(&format!("{address}: another program is listening")), "{error}");
    // An address for documentation (RFC 5737), which is nobody's.
    let error = MetricsServer::start(&"192.0.2.1:9464".parse().unwrap(), &Metrics::new()).unwrap_err().to_string();
    assert!(error.contains("192.0.2.1:9464") && error.contains("address of this machine"), "{error}");
}

#[test]
fn hundreds_of_silent_clients_hold_up_nobody_and_hold_no_descriptors() {
    let server = serve(ANY_PORT, &full());
    // Few enough for the 1,024 descriptors of a process, this one being both ends and running other tests as well.
    let mut silent = Vec::new();
    for number in 0..400 {
        let mut stream = connect(&server);
        match number % 4 {
            0 => stream.write_all(b"GET /met").unwrap(),
            1 => stream.write_all(b"\xff\x00\xfe").unwrap(),
            // Asks, and never reads the answer.
            2 => stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap(),
            _ => {}
        }
        silent.push(stream);
    }
    for _ in 0..20 {
        Exposition::parse(metrics_in(&get(connect(&server), "/metrics")));
    }
    let served = silent.iter_mut().map(is_open).filter(|&open| open).count();
    assert!(served <= 64, "{served} clients are still being served");
    let start = Instant::now();
    drop(server);
    assert!(start.elapsed() < PATIENCE);
}

/// Whether the other end has not closed it.
fn is_open(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).expect("a socket");
    let mut answer = Vec::new();
    matches!(stream.read_to_end(&mut answer), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

#[test]
fn who_takes_too_long_is_cut_off() {
    let server = serve(ANY_PORT, &full());
    let mut slow = connect(&server);
    let start = Instant::now();
    // A byte now and then keeps it busy, and gives it no more time.
    while slow.write_all(b"x").is_ok() {
        assert!(start.elapsed() < PATIENCE, "it may go on for ever");
        thread::sleep(Duration::from_millis(20));
    }
    // One who sends and sends after the answer is cut off, too.
    let mut endless = connect(&server);
    endless.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let start = Instant::now();
    while endless.write_all(&[b'x'; 4096]).is_ok() {
        assert!(start.elapsed() < PATIENCE, "it may go on for ever");
    }
}

#[test]
fn hasty_clients_do_not_make_the_counters_be_read_more_often() {
    let metrics = Metrics::new();
    let reads = Arc::new(AtomicU64::new(0));
    let counter = reads.clone();
    metrics.add_worker("w", move || {
        counter.fetch_add(1, Ordering::Relaxed);
        WorkerSample::default()
    });
    let server = serve(ANY_PORT, &metrics);
    let start = Instant::now();
    (0..200).for_each(|_| drop(get(connect(&server), "/metrics")));
    let most = start.elapsed().as_millis() as u64 / 20 + 1;
    assert!(
        (1..=most).contains(&reads.load(Ordering::Relaxed)),
        "{} reads in {most} times 20 ms",
        reads.load(Ordering::Relaxed)
    );
}
