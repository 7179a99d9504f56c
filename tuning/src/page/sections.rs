//! The parts of the page, one function each.

use super::html::Html;
use super::plot::{Axis, Plot, Series, Style};
use crate::check::{Item, Remedy, State};
use crate::jitter::{Comparison, Gaps, JitterReport};
use crate::units::{Ns, grouped, share};
use crate::wake::{Cell, WakeReport, Way};

/// Rows of the tables of events.
const ROWS: usize = 15;

/// What `check` found.
pub(super) fn check(html: &mut Html, items: &[Item]) {
    html.raw("<h2 id=\"check\">What the check found</h2>\n");
    const STATES: [(State, &str, &str); 4] = [
        (State::Broken, "broken", "li class=\"broken\""),
        (State::Costs, "costs you", "li class=\"costs\""),
        (State::Unknown, "unknown", "li class=\"unknown\""),
        (State::Good, "good", "li class=\"good\""),
    ];
    let of = |state: State| items.iter().filter(move |item| item.state == state);
    let counts = STATES.map(|(state, name, _)| format!("{} {name}", of(state).count()));
    html.element("p", format!("{}. The worst come first.", counts.join(", "))).raw("<ul class=\"items\">\n");
    for (state, name, tag) in STATES {
        for item in of(state) {
            html.raw("<").raw(tag).raw("><p>");
            html.element("span class=\"state\"", name).element("b", &item.id).raw("</p>");
            html.element("p", &item.found);
            if !item.cost.is_empty() {
                html.element("p", format!("Cost: {}", item.cost));
            }
            match &item.remedy {
                Remedy::Nothing => {}
                Remedy::Run(command) => {
                    html.raw("<p>Remedy: ").element("code", command).raw("</p>");
                }
                Remedy::Do(what) => {
                    html.raw("<p>Remedy: ");
                    sentence(html, what);
                    html.raw("</p>");
                }
            }
            if item.reboot {
                html.element("p class=\"note\"", "This needs a reboot.");
            }
            html.raw("</li>\n");
        }
    }
    html.raw("</ul>\n");
}

/// What was measured of a core, and before and after where there is both.
pub(super) fn jitter(html: &mut Html, report: &JitterReport, before: Option<&JitterReport>) {
    let gaps = &report.gaps;
    html.raw("<h2 id=\"jitter\">")
        .text(format!("What took core {} from a spinning thread", report.core))
        .raw("</h2>\n");
    html.element(
        "p",
        format!(
            "A thread spun on core {} for {} and took down each gap longer than {}: each moment in which it did not get on.",
            report.core,
            time(gaps.measured_ns as f64),
            time(gaps.threshold_ns as f64)
        ),
    );
    tiles(
        html,
        &[
            (grouped(gaps.count), "gaps"),
            (format!("{:.1}", gaps.per_second()), "gaps a second"),
            (share(gaps.lost_share()), "of the time lost"),
            (time(gaps.p50_ns as f64), "p50 of a gap"),
            (time(gaps.p99_ns as f64), "p99 of a gap"),
            (time(gaps.p999_ns as f64), "p99.9 of a gap"),
            (time(gaps.max_ns as f64), "the longest gap"),
        ],
    );
    sentences(html, &report.advice);
    if let (Some(before), Some(against)) = (before, &report.against) {
        comparison(html, report, before, against);
    }
    jitter_plots(html, gaps, before.map(|before| &before.gaps));
    if !gaps.worst.is_empty() {
        let traced = gaps.worst.iter().any(|gap| !gap.during.is_empty());
        let rows: Vec<Vec<String>> = gaps
            .worst
            .iter()
            .map(|gap| vec![time(gap.gap_ns as f64), format!("{:.6} s", gap.at_ns as f64 / 1e9), gap.during.join(", ")])
            .map(|mut row| {
                row.truncate(if traced { 3 } else { 2 });
                row
            })
            .collect();
        let heading = ["length", "began at", "what the kernel saw"];
        html.element("h3", "The longest gaps").table(&heading[..if traced { 3 } else { 2 }], "nn", &rows);
    }
    blame(html, report);
}

fn comparison(html: &mut Html, report: &JitterReport, before: &JitterReport, against: &Comparison) {
    html.raw("<h3 id=\"compare\">Before and after</h3>\n");
    let row = |row: &crate::jitter::Row| {
        let ratio = row.ratio.map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}"));
        vec![row.what.clone(), micro(row.unit.show(row.before)), micro(row.unit.show(row.after)), ratio]
    };
    let rows: Vec<Vec<String>> = against.rows.iter().map(row).collect();
    html.table(&["", "before", "now", "now to before"], " nnn", &rows).list(&against.caveats);
    let mut changed = Vec::new();
    for (name, old, new) in [
        ("Kernel before", &before.kernel, &report.kernel),
        ("Its command line", &before.command_line, &report.command_line),
    ] {
        if old != new {
            changed.push((name.to_owned(), old.clone()));
        }
    }
    if changed.is_empty() {
        html.element("p class=\"note\"", "The kernel and its command line are the same as before.");
    } else {
        html.pairs(&changed);
    }
}

fn jitter_plots(html: &mut Html, gaps: &Gaps, before: Option<&Gaps>) {
    let length = Axis { label: "length of a gap (time, logarithmic)", log: true, show: time };
    let of = |make: &dyn Fn(&Gaps) -> Vec<(f64, f64)>| {
        let now = Series { name: "now".into(), points: make(gaps) };
        let mut series = vec![now];
        series.extend(before.map(|before| Series { name: "before".into(), points: make(before) }));
        series
    };
    let rate = Axis { label: "gaps (per second, logarithmic)", log: true, show: count };
    let histogram = of(&|gaps| gaps.lengths().into_iter().map(|(below, n)| (below as f64, gaps.rate(n))).collect());
    let title = "How often there are gaps of which length";
    html.raw(&Plot { title, x: length, y: rate, style: Style::Bars, series: &histogram }.figure());
    let longer = of(&longer_than);
    let title = "How often there are gaps longer than a given time";
    html.raw(&Plot { title, x: length, y: rate, style: Style::Steps, series: &longer }.figure());
    let x = Axis { label: "time since the start (s)", log: false, show: count };
    let y = Axis { label: "longest gap (time, logarithmic)", log: true, show: time };
    let course = of(&|gaps| {
        let slice_s = gaps.measured_ns as f64 / 1e9 / gaps.slices_ns.len().max(1) as f64;
        gaps.slices_ns.iter().enumerate().map(|(i, &ns)| ((i as f64 + 0.5) * slice_s, ns as f64)).collect()
    });
    let title = "The longest gap in each hundredth of the time";
    html.raw(&Plot { title, x, y, style: Style::Stems, series: &course }.figure());
}

/// For each length that occurred, how many gaps a second were at least about as long.
fn longer_than(gaps: &Gaps) -> Vec<(f64, f64)> {
    let mut left = gaps.count;
    let points = gaps.histogram.iter().map(|bucket| {
        let point = (bucket.up_to_ns as f64, gaps.rate(left));
        left = left.saturating_sub(bucket.count);
        point
    });
    points.collect()
}

fn blame(html: &mut Html, report: &JitterReport) {
    let blame = &report.blame;
    html.element("h3", "What the kernel counted on the core meanwhile");
    let known = |value: Option<u64>, show: &dyn Fn(u64) -> String| value.map_or_else(|| "unknown".into(), show);
    html.pairs(&[
        ("The thread was preempted".into(), known(blame.preempted, &|n| format!("{} times", grouped(n)))),
        ("It waited for the core".into(), known(blame.waited_ns, &|ns| time(ns as f64))),
        ("The hypervisor took".into(), known(blame.steal_ns, &|ns| time(ns as f64))),
    ]);
    for (title, events) in [("interrupt", &blame.interrupts), ("softirq", &blame.softirqs)] {
        if !events.is_empty() {
            let row = |event: &crate::jitter::Event| {
                let per_second = format!("{:.1}", report.gaps.rate(event.count));
                vec![event.id.clone(), grouped(event.count), per_second, event.what.clone()]
            };
            // Softirqs have a name, and nothing is told about them.
            let columns = if events.iter().all(|event| event.what.is_empty()) { 3 } else { 4 };
            let rows = events.iter().take(ROWS).map(row).map(|mut row| {
                row.truncate(columns);
                row
            });
            html.table(&[title, "times", "a second", "what"][..columns], " nn", &rows.collect::<Vec<_>>());
        }
    }
    if !blame.tasks.is_empty() {
        let row = |task: &crate::jitter::Ran| vec![task.name.clone(), grouped(task.times), time(task.ran_ns as f64)];
        let rows: Vec<Vec<String>> = blame.tasks.iter().take(ROWS).map(row).collect();
        html.table(&["other thread", "times", "ran for"], " nn", &rows);
    }
    if !blame.traced.is_empty() {
        html.element("h3", "What the kernel's tracers saw")
            .list(blame.traced.iter().map(|traced| micro(traced.to_string())));
    }
    if !blame.unknown.is_empty() {
        html.element("p class=\"note\"", "Unknown:").list(&blame.unknown);
    }
}

/// What sleeping costs.
pub(super) fn wake(html: &mut Html, report: &WakeReport) {
    html.raw("<h2 id=\"wake\">").text(format!("What sleeping costs on core {}", report.core)).raw("</h2>\n");
    html.raw("<p>Recommended: ").element("code", format!("--wait {}", report.advice.policy)).raw("</p>\n");
    sentences(html, &report.advice.reasons);
    for other in &report.advice.alternatives {
        html.raw("<p>Or ")
            .element("code", format!("--wait {}", other.policy))
            .text(format!(", if {}", micro(other.when.clone())))
            .raw("</p>\n");
    }
    wake_plots(html, &report.cells);
    html.element("h3", "All figures");
    html.element("p class=\"note\"", "Of fewer than 100 sleeps, p99 is the longest.");
    cells(html, &report.cells);
    html.list(report.absent.iter().map(|what| format!("Not here: {what}")));
    if let Some(device) = &report.device {
        html.element("h3", format!("Interrupts of {} ({})", device.bdf, device.kind));
        let by = if device.by_device {
            "The device itself raised them."
        } else {
            "The kernel triggered them in the device's place: without the device and the interrupt controller."
        };
        html.element("p", by);
        cells(html, &device.cells);
    }
}

fn wake_plots(html: &mut Html, all: &[Cell]) {
    let x = Axis { label: "time asleep before the wake-up (logarithmic)", log: true, show: time };
    let y = Axis { label: "added latency (time, logarithmic)", log: true, show: time };
    let mut ways: Vec<Way> = Vec::new();
    for cell in all {
        if !ways.contains(&cell.way) {
            ways.push(cell.way);
        }
    }
    let cpu = Axis { label: "processor time (logarithmic)", log: true, show: time };
    let mut plot = |title: &str, y: Axis<'_>, figure: fn(&Cell) -> u64| {
        let of = |way: Way| all.iter().filter(move |cell| cell.way == way);
        let points = |way: Way| of(way).map(|cell| (cell.idle_ns as f64, figure(cell) as f64)).collect();
        let series: Vec<Series> =
            ways.iter().map(|&way| Series { name: way.to_string(), points: points(way) }).collect();
        html.raw(&Plot { title, x, y, style: Style::Lines, series: &series }.figure());
    };
    plot("What a sleep adds to latency: the median", y, |cell| cell.p50_ns);
    plot("What a sleep adds to latency: 99 of 100 sleeps stay below", y, |cell| cell.p99_ns);
    plot("Processor time of one sleep", cpu, |cell| cell.cpu_ns);
}

fn cells(html: &mut Html, cells: &[Cell]) {
    let row = |cell: &Cell| {
        let mut row = vec![cell.way.to_string(), time(cell.idle_ns as f64), grouped(cell.sleeps)];
        row.extend([cell.p50_ns, cell.p99_ns, cell.max_ns, cell.cpu_ns].map(|ns| time(ns as f64)));
        row
    };
    let rows: Vec<Vec<String>> = cells.iter().map(row).collect();
    html.table(&["way", "asleep", "sleeps", "p50", "p99", "longest", "processor time"], " nnnnnn", &rows);
}

fn tiles(html: &mut Html, tiles: &[(String, &str)]) {
    html.raw("<div class=\"tiles\">");
    for (value, what) in tiles {
        html.raw("<div>").element("b", value).element("span", what).raw("</div>");
    }
    html.raw("</div>\n");
}

/// Sentences in which commands stand between backticks.
fn sentences(html: &mut Html, sentences: &[String]) {
    html.raw("<ul>");
    for sentence in sentences {
        html.raw("<li>");
        self::sentence(html, sentence);
        html.raw("</li>");
    }
    html.raw("</ul>\n");
}

fn sentence(html: &mut Html, sentence: &str) {
    for (i, part) in sentence.split('`').enumerate() {
        if i % 2 == 1 {
            html.element("code", part);
        } else {
            html.text(micro(part.to_owned()));
        }
    }
}

/// A time in nanoseconds, with its unit.
fn time(ns: f64) -> String {
    // A place on an axis may lie between whole nanoseconds.
    if ns > 0.0 && ns < 1.0 { format!("{ns:.1} ns") } else { micro(Ns(ns.round() as u64).to_string()) }
}

/// A page has the letter that terminals may lack.
fn micro(text: String) -> String {
    let mut parts = text.split(" us");
    let mut told = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        // Only after a number, and as a word: not in "may use".
        let unit = told.ends_with(|c: char| c.is_ascii_digit()) && !part.starts_with(|c: char| c.is_alphanumeric());
        told.push_str(if unit { " µs" } else { " us" });
        told.push_str(part);
    }
    told
}

fn count(value: f64) -> String {
    match value.abs() {
        size if size >= 1e4 => format!("{value:.0e}"),
        size if size >= 10.0 || size == 0.0 => format!("{value:.0}"),
        _ => format!("{}", (value * 1e4).round() / 1e4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_sorted_by_state_and_a_remedy_is_shown_as_what_it_is() {
        let mut html = Html::default();
        let item = |id: &str, state| Item {
            id: id.into(),
            state,
            found: "<b>found</b>".into(),
            cost: String::new(),
            remedy: Remedy::Do("turn <it> off by `off <it>`".into()),
            reboot: false,
        };
        let run = Remedy::Run("mend <it>".into());
        let broken = Item { remedy: run, cost: "a tick".into(), reboot: true, ..item("a.broken", State::Broken) };
        check(&mut html, &[item("a.good", State::Good), broken, item("an.odd", State::Unknown)]);
        let text = html.into_text();
        assert!(text.find("a.broken") < text.find("an.odd") && text.find("an.odd") < text.find("a.good"), "{text}");
        assert!(text.contains("1 broken, 0 costs you, 1 unknown, 1 good") && text.contains("&lt;b&gt;found"), "{text}");
        for (part, times) in [
            ("Remedy: <code>mend &lt;it&gt;</code>", 1),
            ("Remedy: turn &lt;it&gt; off by <code>off &lt;it&gt;</code></p>", 2),
            ("Cost: a tick", 1),
            ("needs a reboot", 1),
            ("Cost: ", 1),
        ] {
            assert_eq!(text.matches(part).count(), times, "{part} in {text}");
        }
    }

    #[test]
    fn only_units_get_the_letter_of_units() {
        assert_eq!(micro("1.5 us, may use 2 us; 3 used 4 us".into()), "1.5 µs, may use 2 µs; 3 used 4 µs");
        let mut html = Html::default();
        sentences(&mut html, &["try `a <b>` for 5 us".into()]);
        assert_eq!(html.into_text(), "<ul><li>try <code>a &lt;b&gt;</code> for 5 µs</li></ul>\n");
    }

    #[test]
    fn no_time_at_all_is_none() {
        assert_eq!([0.0, 0.25, 1.4, 1_500.0].map(time), ["0 ns", "0.2 ns", "1 ns", "1.5 µs"]);
    }

    #[test]
    fn the_curve_of_longer_gaps_starts_with_all_of_them() {
        let bucket = |up_to_ns, count| crate::jitter::Bucket { up_to_ns, count };
        let gaps = Gaps {
            measured_ns: 1_000_000_000,
            count: 6,
            histogram: vec![bucket(10, 3), bucket(20, 2), bucket(90, 1)],
            ..Gaps::default()
        };
        assert_eq!(longer_than(&gaps), [(10.0, 6.0), (20.0, 3.0), (90.0, 1.0)]);
    }
}
