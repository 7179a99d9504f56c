//! l2fwd as its operator meets it: run as a program, without privileges, on embedded NICs.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

fn l2fwd(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_l2fwd"));
    command.args(arguments).stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    l2fwd(arguments).output().expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A running program, ended when it goes out of scope.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn with_no_arguments_but_seconds_it_forwards_reports_and_exits_well() {
    let output = run(&["--seconds", "3"]);
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
    let output = run(&["--seconds", "2", "--json", "-"]);
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
fn it_ends_well_at_a_signal_and_says_what_it_forwarded() {
    for signal in ["INT", "TERM"] {
        let mut running = Running(l2fwd(&[]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
        let mut lines = BufReader::new(running.0.stdout.take().unwrap()).lines();
        // The first line with a rate: it forwards.
        assert!(lines.any(|line| line.unwrap().contains("0→1")));
        let pid = running.0.id().to_string();
        assert!(Command::new("kill").args([&format!("-{signal}"), &pid]).status().unwrap().success());
        assert!(lines.any(|line| line.unwrap().contains("forwarded")), "no summary after SIG{signal}");
        let deadline = Instant::now() + Duration::from_secs(60);
        let status = loop {
            if let Some(status) = running.0.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it still runs a minute after SIG{signal}");
            std::thread::sleep(Duration::from_millis(20));
        };
        assert!(status.success(), "{status}");
    }
}

#[test]
fn swapped_and_rewritten_addresses_arrive() {
    for option in ["--mac-swap", "--mac-rewrite"] {
        let output = run(&["--seconds", "1", "--json", "-", option]);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        // The sinks check each frame: one that was spoiled would not be counted as seen.
        assert!(report["ports"][0]["sunk"].as_u64().unwrap() > 0, "{option}: {report}");
    }
}

#[test]
fn perf_counts_or_says_that_it_cannot() {
    let output = run(&["--seconds", "1", "--json", "-", "--perf"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let perf = &report["workers"][0]["perf"];
    let named = |list: &str| perf[list].as_array().unwrap().len();
    assert_eq!(named("counts") + named("missing"), 7, "{perf}");
}

#[test]
fn what_it_cannot_do_gets_one_error_and_exit_code_2() {
    let cases: [(&[&str], &str); 10] = [
        (&["--port", "soft:"], "only one port"),
        (&["--port", "soft:a", "--port", "soft:a"], "soft:a"),
        (&["--port", "soft:,quues=2", "--port", "soft:"], "quues"),
        (&["--port", "sfot:", "--port", "soft:"], "sfot"),
        (&["--port", "soft:,queues=17", "--port", "soft:"], "1 to 16"),
        (&["--port", "soft:,mtu=10000", "--port", "soft:"], "68 to 9216"),
        (&["--port", "pci:", "--port", "soft:"], "address"),
        (&["--port", "pci:0000:7f:1f.7", "--port", "soft:"], "0000:7f:1f.7"),
        (&["--core", "4095"], "4095"),
        (&["--json", "/nonexistent/report"], "/nonexistent/report"),
    ];
    for (arguments, word) in cases {
        let output = run(&[arguments, &["--seconds", "1"]].concat());
        let err = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {err}");
        assert_eq!(err.matches("error:").count(), 1, "{arguments:?}: {err}");
        assert!(err.contains(word), "{arguments:?}: {err}");
    }
}
