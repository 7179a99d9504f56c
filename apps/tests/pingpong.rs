//! pingpong as its operator meets it: run as a program, without privileges, between embedded NICs.

mod program;

use std::fs;
use std::thread;
use std::time::Duration;

use program::{Program, text};
use serde_json::Value;

const PINGPONG: Program = Program(env!("CARGO_BIN_EXE_pingpong"));
const NEAR: [&str; 2] = ["--port", "soft:near,wire=w"];
const FAR: [&str; 2] = ["--loop", "soft:far,wire=w"];

/// The report of a run between two ports, with `far` at the answering end.
fn between(far: &str, arguments: &[&str]) -> Value {
    PINGPONG.report(&[&NEAR[..], &["--loop", far], arguments].concat())
}

fn count(report: &Value, what: &str) -> u64 {
    report["client"][what].as_u64().unwrap_or_else(|| panic!("no {what} in {report}"))
}

/// Every request was answered or lost, and what was lost has a reason: a card whose worker others kept from its core drops
/// frames, and says so; a server that was kept from it has more answers than its ring takes.
fn accounted(report: &Value) {
    let [sent, answered, lost, late] = ["sent", "answered", "lost", "late"].map(|what| count(report, what));
    let drops =
        report["ports"].as_array().expect("ports").iter().filter_map(|port| port["drops"].as_u64()).sum::<u64>();
    let refused = report["server"]["refused"].as_u64().expect("a server");
    assert!(answered > 0 && sent == answered + lost && lost <= drops + late + refused, "{report}");
}

#[test]
fn with_no_arguments_but_seconds_it_measures_and_exits_well() {
    let output = PINGPONG.run(&["--seconds", "3"]);
    let out = text(&output.stdout);
    assert!(output.status.success(), "{out}{}", text(&output.stderr));
    for word in
        ["port 0", "port 1", "asking", "/s", "p50", "lost", "busy", "round trips of 60 bytes", "p99.99", "lag", "there"]
    {
        assert!(out.contains(word), "no \"{word}\" in:\n{out}");
    }
}

#[test]
fn every_request_is_accounted_for_and_both_sides_tell_their_share() {
    let report = between(FAR[1], &["--seconds", "3", "--gap", "poisson:200us"]);
    accounted(&report);
    assert!(count(&report, "sent") > 1000, "{report}");
    for what in ["spoiled", "reordered", "duplicated", "foreign"] {
        assert_eq!(count(&report, what), 0, "{what}: {report}");
    }
    for times in ["round_trip_us", "lag_us"] {
        let of = |key: &str| report["client"][times][key].as_f64().unwrap();
        let ascending = [of("p50"), of("p90"), of("p99"), of("p999"), of("p9999"), of("max")];
        assert!(ascending.is_sorted() && ascending[5] > 0.0, "{times}: {ascending:?}");
    }
    for share in ["cpu_share", "peer_cpu_share"] {
        assert!((0.0..=1.05).contains(&report["client"][share].as_f64().unwrap()), "{share}: {report}");
    }
    for pool in report["pools"].as_array().unwrap() {
        assert_eq!(pool["missing"], 0);
    }
    assert_eq!((report["ports"].as_array().unwrap().len(), report["workers"].as_array().unwrap().len()), (2, 2));
}

#[test]
fn every_policy_measures_at_every_size_and_stops_after_its_count() {
    for (policy, size) in [("poll", "60"), ("interrupt", "1514"), ("adaptive", "9014"), ("adaptive:cpu=50%", "2049")] {
        let ports = ["--port", "soft:near,wire=w,mtu=9000", "--loop", "soft:far,wire=w,mtu=9000"];
        let asked = ["--count", "200", "--gap", "fixed:1ms", "--wait", policy, "--size", size];
        let report = PINGPONG.report(&[&ports[..], &asked].concat());
        accounted(&report);
        assert_eq!(count(&report, "sent"), 200, "{policy}: {report}");
        assert_eq!(report["client"]["size_bytes"].to_string(), size);
    }
}

#[test]
fn what_the_wire_does_to_frames_is_told_by_name() {
    let at_gap = ["--count", "2000", "--gap", "fixed:500us"];
    let report = between("soft:far,wire=w,fault=drop:20%", &at_gap);
    let [sent, answered, lost] = ["sent", "answered", "lost"].map(|what| count(&report, what));
    assert!(sent == 2000 && lost > 100 && answered + lost == sent, "{report}");

    let report =
        PINGPONG.report(&[&["--port", "soft:near,wire=w,fault=dup:20%+reorder:10%"], &FAR[..], &at_gap].concat());
    assert!(count(&report, "duplicated") > 100 && count(&report, "reordered") > 20, "{report}");
    assert_eq!(count(&report, "answered") + count(&report, "lost"), 2000, "{report}");

    // Answered after the deadline: lost, and told as late.
    let report = between("soft:far,wire=w,fault=delay:1200ms:50%", &["--seconds", "3", "--gap", "fixed:2ms"]);
    let [sent, answered, lost] = ["sent", "answered", "lost"].map(|what| count(&report, what));
    assert!(lost > 100 && answered + lost == sent && count(&report, "late") > 0, "{report}");
}

#[test]
fn lag_is_told_of_requests_that_left_not_of_those_that_found_a_full_ring() {
    let stalled = ["--port", "soft:near,wire=w,tx_ring=64,fault=stall:200ms"];
    let output =
        PINGPONG.run(&[&stalled[..], &FAR, &["--seconds", "2", "--gap", "fixed:20us", "--json", "-"]].concat());
    // Whether a busy machine answers any of them in time is not asked here.
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(count(&report, "refused") > 0, "{report}");
    assert_eq!(report["client"]["lag_us"]["samples"], count(&report, "sent"), "{report}");
}

#[test]
fn a_standstill_shows_in_every_request_that_was_due_meanwhile() {
    let json = tempfile::NamedTempFile::new().unwrap();
    let path = json.path().to_str().unwrap();
    let arguments = [&NEAR[..], &FAR, &["--seconds", "4", "--gap", "fixed:2ms", "--json", path]].concat();
    let mut running = PINGPONG.start(&arguments);
    let mut lines = running.lines();
    assert!(lines.any(|line| line.contains("p50")), "it never begins");
    running.signal("STOP");
    thread::sleep(Duration::from_millis(500));
    running.signal("CONT");
    assert!(lines.any(|line| line.contains("round trips of")), "no summary");
    assert!(running.end().success());
    let report: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    // An eighth of all requests were due then. One that waited for answers would have one bad one.
    let p99_us = report["client"]["round_trip_us"]["p99"].as_f64().unwrap();
    assert!(p99_us > 300_000.0, "{report}");
    // It was the client that stood still, so requests left late, and it says so.
    assert!(report["client"]["lag_us"]["p99"].as_f64().unwrap() > 300_000.0, "{report}");
}

#[test]
fn a_server_answers_nobody_but_those_who_ask() {
    let report = PINGPONG.report(&["--port", "soft:,rate=2000", "--serve", "--seconds", "2"]);
    let server = &report["server"];
    let of = |what: &str| server[what].as_u64().unwrap();
    assert!(report["client"].is_null() && of("answered") == 0, "{report}");
    assert!(of("foreign") + of("misaddressed") + of("spoiled") > 100, "{report}");
    assert_eq!(report["ports"][0]["tx_frames"], 0);
}

#[test]
fn nobody_there_is_a_failure_that_says_what_to_look_at() {
    let alone = ["--port", "soft:,rate=0", "--peer", "02:00:00:00:00:77", "--count", "5", "--gap", "fixed:1ms"];
    let output = PINGPONG.run(&alone);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{out}{err}");
    assert!(err.contains("none of 5 requests was answered") && err.contains("02:00:00:00:00:77"), "{err}");
    assert!(out.contains("lost 5"), "{out}");
    // Two ports of this process that are not connected.
    let apart = ["--port", "soft:a,rate=0", "--loop", "soft:b,rate=0", "--count", "5", "--gap", "fixed:1ms"];
    let output = PINGPONG.run(&apart);
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(err.contains("is soft:a,rate=0 connected to soft:b,rate=0?") && err.contains("wire="), "{err}");
}

#[test]
fn a_server_says_where_it_is_and_ends_well_at_a_signal() {
    for signal in ["INT", "TERM"] {
        let mut running = PINGPONG.start(&["--port", "soft:,rate=0", "--serve"]);
        let mut lines = running.lines();
        assert!(lines.any(|line| line.contains("serving at 02:") && line.contains("--peer 02:")));
        running.signal(signal);
        assert!(lines.any(|line| line.contains("answered 0 requests")), "no summary after SIG{signal}");
        assert!(running.end().success());
    }
}

#[test]
fn whoever_ends_it_before_there_is_a_link_has_asked_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.json");
    // The other end of its cable is not there.
    let ports = ["--port", "soft:,wire=nowhere", "--peer", "02:00:00:00:00:77"];
    for more in [&[][..], &["--count", "5"]] {
        let mut running = PINGPONG.start(&[&ports[..], &["--json", path.to_str().unwrap()], more].concat());
        let mut lines = running.lines();
        assert!(lines.any(|line| line.contains("waiting for a link")));
        running.signal("INT");
        assert!(lines.any(|line| line.contains("0 round trips")), "no summary");
        assert!(running.end().success());
        let report: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!((count(&report, "sent"), count(&report, "refused")), (0, 0), "{report}");
    }
}

#[test]
fn the_plot_is_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("latency.svg");
    between(FAR[1], &["--count", "500", "--gap", "poisson:1ms", "--plot", path.to_str().unwrap()]);
    let svg = fs::read_to_string(path).unwrap();
    for word in ["<svg", "</svg>", "round trip", "send lag", "time, µs"] {
        assert!(svg.contains(word), "no {word}");
    }
}

#[test]
fn what_it_cannot_do_gets_one_error_and_exit_code_2() {
    let peer = "02:00:00:00:00:77";
    let cases: [(&[&str], &str); 18] = [
        (&["--port", "soft:"], "--serve to answer requests"),
        (&["--serve"], "--port"),
        (&["--peer", peer], "--port"),
        (&["--port", "soft:", "--serve", "--peer", peer], "cannot be used with"),
        (&["--port", "soft:", "--serve", "--size", "100"], "cannot be used with"),
        (&["--port", "soft:", "--peer", "02:00"], "six hexadecimal bytes"),
        (&["--port", "soft:", "--peer", "01:00:5e:00:00:01"], "no address of a single node"),
        (&["--port", "soft:a", "--loop", "soft:a"], "same port, soft:a"),
        (&["--port", "sfot:", "--serve"], "sfot"),
        (&["--size", "59"], "60 to 1514 bytes"),
        (&["--size", "1515"], "mtu="),
        (
            &["--port", "soft:a,wire=w,mtu=9000", "--loop", "soft:b,wire=w", "--size", "9000"],
            "soft:b,wire=w has an MTU of 1500",
        ),
        (&["--gap", "10us"], "fixed:10us"),
        (&["--gap", "fixed:1ns"], "100ns to 10s"),
        (&["--count", "0"], "0"),
        (&["--plot", "/nonexistent/plot.svg"], "/nonexistent/plot.svg"),
        (&["--plot", "/nonexistent/same", "--json", "/nonexistent/same"], "a file of its own"),
        (&["--core", "4095"], "4095"),
    ];
    PINGPONG.refuses(&cases, &["--seconds", "1"]);
}
