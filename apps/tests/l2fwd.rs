//! l2fwd as its operator meets it: run as a program, without privileges, on embedded NICs.

mod exposition;
mod program;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use exposition::Exposition;
use program::{Program, text};
use serde_json::Value;

const L2FWD: Program = Program(env!("CARGO_BIN_EXE_l2fwd"));
/// A port whose wire is silent.
const SILENT: [&str; 2] = ["--port", "soft:,rate=0,queues=1"];

#[test]
fn with_no_arguments_but_seconds_it_forwards_reports_and_exits_well() {
    let output = L2FWD.run(&["--seconds", "3"]);
    let out = text(&output.stdout);
    assert!(output.status.success(), "{out}{}", text(&output.stderr));
    for word in
        ["port 0", "port 1", "worker", "0→1", "pps", "bit/s", "dropped", "busy", "forwarded", "latency", "p99.9"]
    {
        assert!(out.contains(word), "no \"{word}\" in:\n{out}");
    }
}

#[test]
fn json_on_standard_output_is_one_object_and_nothing_else() {
    let output = L2FWD.run(&["--seconds", "2", "--json", "-"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["seconds"].as_f64().unwrap() >= 2.0);
    for port in report["ports"].as_array().unwrap() {
        assert_eq!(port["spec"], "soft:");
        for key in ["rx_frames", "tx_frames", "drops"] {
            assert!(port[key].is_u64(), "{key} in {port}");
        }
        assert!(port["tx_frames"].as_u64().unwrap() > 0, "{port}");
    }
    let worker = &report["workers"][0];
    assert!(worker["core"].is_u64());
    assert!((0.0..=1.0).contains(&worker["busy_share"].as_f64().unwrap()));
    for key in ["p50", "p99", "p999", "max"] {
        assert!(report["latency_us"][key].as_f64().unwrap() > 0.0, "{key}");
    }
    assert_eq!(report["pool"]["missing"], 0);
}

#[test]
fn one_port_gets_its_own_frames_back() {
    let report = L2FWD.report(&["--seconds", "2", "--port", "soft:,rate=5000", "--mac-swap"]);
    let ports = report["ports"].as_array().unwrap();
    assert_eq!(ports.len(), 1);
    assert!(ports[0]["rx_frames"].as_u64().unwrap() > 0 && ports[0]["sunk"].as_u64().unwrap() > 0, "{report}");
    assert!(report["latency_us"]["p50"].as_f64().unwrap() > 0.0, "{report}");
    assert_eq!(report["pool"]["missing"], 0);
    let out = text(&L2FWD.run(&["--seconds", "1", "--port", "soft:,rate=5000"]).stdout);
    assert!(out.contains("0→0") && !out.contains("port 1"), "{out}");
}

#[test]
fn a_link_that_goes_and_comes_back_is_told_and_survived() {
    let flapping = "soft:,rate=5000,fault=link-flap:200ms";
    let mut running = L2FWD.start(&["--port", flapping]);
    let mut lines = running.lines();
    assert!(lines.any(|line| line.contains("port 0  link down")), "it never said that the link is down");
    assert!(lines.any(|line| line.contains("port 0  link up")), "it never said that the link is back");
    running.signal("TERM");
    assert!(lines.any(|line| line.contains("forwarded")));
    assert!(running.end().success());
}

#[test]
fn a_port_without_a_partner_is_started_all_the_same() {
    // The other end of its cable is not there.
    let output = L2FWD.run(&["--seconds", "1", "--port", "soft:,wire=nowhere"]);
    let out = text(&output.stdout);
    assert!(output.status.success() && out.contains("no link yet"), "{out}{}", text(&output.stderr));
}

#[test]
fn offloads_are_asked_for_only_where_they_can_be_finished() {
    let output = L2FWD.run(&["--seconds", "1", "--offload"]);
    let out = text(&output.stdout);
    assert!(output.status.success(), "{out}{}", text(&output.stderr));
    // Embedded cards check and fill in checksums; they do not cut frames.
    assert!(out.contains("port 1  offloads: rx_checksum, tx_checksum\n"), "{out}");
}

#[test]
fn it_ends_well_at_a_signal_and_says_what_it_forwarded() {
    for signal in ["INT", "TERM"] {
        let mut running = L2FWD.start(&[]);
        let mut lines = running.lines();
        // The first line with a rate: it forwards.
        assert!(lines.any(|line| line.contains("0→1")));
        running.signal(signal);
        assert!(lines.any(|line| line.contains("forwarded")), "no summary after SIG{signal}");
        let status = running.end();
        assert!(status.success(), "{status}");
    }
}

#[test]
fn swapped_and_rewritten_addresses_arrive() {
    for option in ["--mac-swap", "--mac-rewrite"] {
        let output = L2FWD.run(&["--seconds", "1", "--json", "-", option]);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        // The sinks check each frame: one that was spoiled would not be counted as seen.
        assert!(report["ports"][0]["sunk"].as_u64().unwrap() > 0, "{option}: {report}");
    }
}

#[test]
fn perf_counts_or_says_that_it_cannot() {
    let report = L2FWD.report(&["--seconds", "1", "--perf", "--wait", "interrupt"]);
    let perf = &report["workers"][0]["perf"];
    let named = |list: &str| perf[list].as_array().unwrap().len();
    assert_eq!(named("counts") + named("missing"), 7, "{perf}");
    // Each sleep is one. Who may not see them is told so, not that there were none.
    let switches = perf["counts"].as_array().unwrap().iter().find(|count| count["name"] == "context switches");
    assert!(switches.is_none_or(|switches| switches["count"].as_u64() > Some(0)), "{report}");
}

#[test]
fn what_it_cannot_do_gets_one_error_and_exit_code_2() {
    let cases: [(&[&str], &str); 18] = [
        (&["--port", "soft:", "--port", "soft:", "--port", "soft:"], "give two, or one"),
        (&["--port", "soft:a", "--port", "soft:a"], "soft:a"),
        (&["--port", "soft:,quues=2", "--port", "soft:"], "quues"),
        (&["--port", "sfot:", "--port", "soft:"], "sfot"),
        (&["--port", "soft:,queues=17", "--port", "soft:"], "1 to 16"),
        (&["--port", "soft:,mtu=10000", "--port", "soft:"], "68 to 9216"),
        (&["--port", "pci:", "--port", "soft:"], "address"),
        (&["--port", "pci:0000:7f:1f.7", "--port", "soft:"], "0000:7f:1f.7"),
        (&["--core", "4095"], "4095"),
        (&["--json", "/nonexistent/report"], "/nonexistent/report"),
        (&["--wait", "fast"], "poll, interrupt and adaptive"),
        (&["--wait", "poll:wake=2us"], "only adaptive does"),
        (&["--wait", "adaptive:wake=20"], "1us to 1s"),
        (&["--wait", "adaptive:cpu=10"], "0.1% to 100%"),
        (&["--metrics", "9464"], "127.0.0.1:9464, or unix:/path"),
        (&["--metrics", "127.0.0.1:http"], "0 to 65535"),
        (&["--metrics", "192.0.2.1:9464"], "address of this machine"),
        (&["--metrics", "unix:/nonexistent/metrics.sock"], "unix:/nonexistent/metrics.sock"),
    ];
    L2FWD.refuses(&cases, &["--seconds", "1"]);
}

#[test]
fn every_policy_forwards_and_tells_how_it_waited() {
    for policy in ["poll", "interrupt", "adaptive", "adaptive:wake=500us", "adaptive:cpu=50%"] {
        let output = L2FWD.run(
            &[&["--seconds", "1", "--json", "-", "--wait", policy, "--port", "soft:,rate=1000"][..], &SILENT].concat(),
        );
        assert!(output.status.success(), "{policy}: {}", text(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(report["ports"][1]["tx_frames"].as_u64().unwrap() > 0, "{policy}: {report}");
        let worker = &report["workers"][0];
        assert_eq!(worker["wait"], policy);
        let share = |name: &str| worker[name].as_f64().unwrap_or_else(|| panic!("{policy}: no {name} in {worker}"));
        let shares = ["busy_share", "poll_share", "sleep_share"].map(share);
        assert!(shares.iter().all(|share| (0.0..=1.0).contains(share)), "{policy}: {shares:?}");
        assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{policy}: {shares:?}");
        // Two clocks, so a little more than all is possible.
        assert!((0.0..1.05).contains(&share("cpu_share")), "{policy}: {worker}");
        for key in ["parks", "spurious", "rescues", "regret"] {
            assert!(worker[key].is_u64(), "{policy}: {key} in {worker}");
        }
        let sources: Vec<_> = worker["wakes"].as_array().unwrap().iter().map(|wake| &wake["how"]).collect();
        assert!(sources.iter().any(|how| *how == "by MSI-X"), "{policy}: {worker}");
        if policy == "poll" {
            assert_eq!((share("sleep_share"), &worker["parks"], &worker["wake_us"]), (0.0, &0.into(), &Value::Null));
        } else {
            for key in ["samples", "p50", "p90", "p99", "p999", "max"] {
                assert!(worker["gap_us"][key].as_f64().unwrap() > 0.0, "{policy}: {key} in {worker}");
            }
        }
        if policy == "interrupt" {
            assert!(worker["parks"].as_u64().unwrap() > 0, "{worker}");
        }
    }
}

#[test]
fn a_target_that_no_sleep_can_keep_is_named() {
    let output = L2FWD.run(&["--seconds", "1", "--wait", "adaptive:wake=1us"]);
    let out = text(&output.stdout);
    // Once among the notes at the start, once in the summary.
    assert_eq!(out.matches("wake=1us cannot be kept by sleeping, so this worker polls").count(), 2, "{out}");
}

#[test]
fn lost_interrupts_are_said_loudly_with_what_to_do() {
    let lossy = ["--seconds", "2", "--wait", "interrupt", "--port", "soft:,rate=1000,queues=1,fault=irq-lost:50%"];
    let output = L2FWD.run(&[&lossy[..], &SILENT].concat());
    let out = text(&output.stdout);
    for words in ["RESCUE", "WARNING wake-ups were lost", "--wait poll", "irq=msi"] {
        assert!(out.contains(words), "no \"{words}\" in:\n{out}");
    }
}

/// Processor time of all threads of a process, by the kernel's account (Documentation/scheduler/sched-stats.rst: nanoseconds
/// on a processor come first).
fn cpu_time(pid: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let spent = tasks.map(|task| {
        let schedstat = fs::read_to_string(task.expect("a thread").path().join("schedstat")).expect("its account");
        schedstat.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).expect("nanoseconds")
    });
    Duration::from_nanos(spent.sum())
}

/// The share of a core that a whole silent process uses.
fn idle_share(policy: &str) -> f64 {
    let arguments = [&["--wait", policy][..], &SILENT, &SILENT].concat();
    let mut running = L2FWD.start(&arguments);
    let mut lines = running.lines();
    // Its start is behind it.
    assert!(lines.any(|line| line.contains("parks/s")));
    let (began, before) = (Instant::now(), cpu_time(running.pid()));
    thread::sleep(Duration::from_secs(3));
    let spent = cpu_time(running.pid()) - before;
    let share = spent.as_secs_f64() / began.elapsed().as_secs_f64();
    println!("{policy}: {:.2}% of a core while idle", 100.0 * share);
    share
}

#[test]
fn an_idle_adaptive_process_leaves_the_machine_alone_and_a_polling_one_does_not() {
    let (adaptive, poll) = (idle_share("adaptive"), idle_share("poll"));
    assert!(adaptive < 0.05, "adaptive uses {adaptive}");
    // How much a polling worker gets is for those with whom it shares the core to decide.
    assert!(poll > 4.0 * adaptive, "poll uses {poll}, adaptive {adaptive}");
}

#[test]
fn an_idle_worker_sleeps_nearly_all_the_time_and_ends_promptly_when_asked() {
    let json = tempfile::NamedTempFile::new().unwrap();
    let path = json.path().to_str().unwrap();
    let mut running = L2FWD.start(&[&["--wait", "interrupt", "--json", path][..], &SILENT, &SILENT].concat());
    let mut lines = running.lines();
    assert!(lines.any(|line| line.contains("parks/s")));
    running.signal("TERM");
    let asked = Instant::now();
    assert!(running.end().success());
    assert!(asked.elapsed() < Duration::from_secs(10), "it took {:?}", asked.elapsed());
    let report: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    // By time, not by work done: what else runs on this core delays its few steps between two sleeps, and that is all.
    assert!(report["workers"][0]["sleep_share"].as_f64().unwrap() > 0.5, "{report}");
}

/// What is served at a stream, once it is complete.
fn scrape(mut stream: impl Read + Write) -> String {
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    body.into()
}

#[test]
fn metrics_can_be_scraped_over_tcp_and_a_unix_socket_while_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("l2fwd.sock");
    let unix = format!("unix:{}", socket.display());
    let mut running = L2FWD
        .start(&[&["--metrics", "127.0.0.1:0", "--metrics", &unix, "--port", "soft:,rate=1000"][..], &SILENT].concat());
    let mut lines = running.lines();
    let address =
        lines.find_map(|line| Some(line.strip_prefix("metrics http://")?.strip_suffix("/metrics")?.to_owned()));
    let address = address.expect("it says where the metrics are");
    // Ports are looked at each second.
    assert!(lines.any(|line| line.contains("parks/s")));

    let worker = [("worker", "l2fwd")];
    for body in [scrape(TcpStream::connect(&address).unwrap()), scrape(UnixStream::connect(&socket).unwrap())] {
        let metrics = Exposition::parse(&body);
        for name in ["frames", "drops", "parks", "spurious", "rescues", "regrets", "cpu_seconds"] {
            assert!(metrics.value(&format!("spinwake_worker_{name}_total"), &worker).is_some(), "{name}:\n{body}");
        }
        for name in ["wake_seconds", "gap_seconds"] {
            assert!(metrics.value(&format!("spinwake_worker_{name}_count"), &worker).is_some(), "{name}:\n{body}");
        }
        for state in ["busy", "poll", "relax", "arm", "sleep"] {
            let labels = [("worker", "l2fwd"), ("state", state)];
            assert!(metrics.value("spinwake_worker_seconds_total", &labels).is_some(), "{state}:\n{body}");
        }
        for source in ["requests", "soft0 rx 0", "soft1 rx 0"] {
            let labels = [("worker", "l2fwd"), ("source", source)];
            assert!(metrics.value("spinwake_worker_wakes_total", &labels).is_some(), "{source}:\n{body}");
        }
        let received = metrics.value("spinwake_port_rx_frames_total", &[("port", "soft:,rate=1000")]);
        assert!(received.is_some_and(|frames| frames > 0.0), "{body}");
        let sent = [("port", "soft:,rate=0,queues=1"), ("queue", "0")];
        assert!(metrics.value("spinwake_queue_tx_frames_total", &sent).is_some_and(|frames| frames > 0.0), "{body}");
    }
    running.signal("TERM");
    assert!(lines.any(|line| line.contains("forwarded")));
    assert!(running.end().success());
    assert!(!socket.exists(), "its socket is left behind");
}

#[test]
fn an_address_that_is_taken_is_refused_before_any_port_is_opened() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = L2FWD.run(&["--seconds", "1", "--metrics", &address]);
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{err}");
    assert!(err.contains(&format!("{address}: another program is listening there")), "{err}");
    // Opening ports and choosing a core would have led to warnings and lines.
    assert_eq!((err.lines().count(), output.stdout.len()), (1, 0), "{err}");
}
