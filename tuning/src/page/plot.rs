//! Plots as SVG within a page: its style sheet gives them their colours, so that they suit light and dark.
//!
//! Each is drawn twice, wide and narrow, and the style sheet shows the one that fits: text stays as large as the page's.

use std::fmt::Write;

use super::html::escape;

/// An axis.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis<'a> {
    /// What it shows, with its unit.
    pub(super) label: &'a str,
    /// Whether equal steps are equal ratios; then only positive values are shown.
    pub(super) log: bool,
    /// How a value on it is written.
    pub(super) show: fn(f64) -> String,
}

/// One line, or one row of bars.
#[derive(Debug, Clone)]
pub(super) struct Series {
    /// Its name in the legend.
    pub(super) name: String,
    /// Where it goes, in order.
    pub(super) points: Vec<(f64, f64)>,
}

/// How series are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// A line from point to point, a mark at each.
    Lines,
    /// A line that keeps its height until the next point.
    Steps,
    /// A bar for each point, as wide as from the step of 1, 2, 5, 10 and so on before it.
    Bars,
    /// A line from the bottom to each point.
    Stems,
}

/// A plot and its caption.
#[derive(Debug)]
pub(super) struct Plot<'a> {
    pub(super) title: &'a str,
    pub(super) x: Axis<'a>,
    pub(super) y: Axis<'a>,
    pub(super) style: Style,
    pub(super) series: &'a [Series],
}

/// Width, height, and how many labels fit on the horizontal axis.
const SIZES: [(&str, f64, f64, usize); 2] = [("wide", 900.0, 360.0, 10), ("narrow", 360.0, 300.0, 4)];
/// Room for labels: left, bottom, right and above. To the right stands half of one that is below the end of the axis.
const ROOM: (f64, f64, f64, f64) = (78.0, 48.0, 28.0, 14.0);
/// Different enough colours that the style sheet has.
const COLOURS: usize = 7;

impl Plot<'_> {
    /// The plot in a figure with its legend; a sentence when there is nothing to show.
    pub(super) fn figure(&self) -> String {
        let mut html = String::from("<figure><figcaption>");
        escape(&mut html, &self.title);
        html.push_str("</figcaption>");
        let shown = |&&(x, y): &&(f64, f64)| self.x.shows(x) && self.y.shows(y);
        let points: Vec<(f64, f64)> =
            self.series.iter().flat_map(|one| one.points.iter().filter(shown)).copied().collect();
        if points.is_empty() {
            html.push_str("<p class=\"note\">Nothing to show: no such event was seen.</p></figure>\n");
            return html;
        }
        let mut x = self.x.range(points.iter().map(|point| point.0));
        let y = self.y.range(points.iter().map(|point| point.1));
        if self.style == Style::Bars {
            x.0 /= 2.5;
        }
        for (class, width, height, labels) in SIZES {
            let scale = Scale { x, y, width, height, log: (self.x.log, self.y.log) };
            self.svg(&mut html, class, &scale, labels);
        }
        if self.series.len() > 1 {
            html.push_str("<ul class=\"legend\">");
            for (i, one) in self.series.iter().enumerate() {
                let _ = write!(
                    html,
                    "<li class=\"s{}\"><svg class=\"key\" width=\"30\" height=\"12\" aria-hidden=\"true\">",
                    i % COLOURS
                );
                html.push_str("<path class=\"line\" d=\"M0 6H30\"/>");
                if self.style == Style::Lines {
                    mark(&mut html, i, 15.0, 6.0);
                }
                html.push_str("</svg>");
                escape(&mut html, &one.name);
                html.push_str("</li>");
            }
            html.push_str("</ul>");
        }
        html.push_str("</figure>\n");
        html
    }

    fn svg(&self, html: &mut String, class: &str, scale: &Scale, labels: usize) {
        let (width, height) = (scale.width, scale.height);
        let _ = write!(
            html,
            "<svg class=\"{class}\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\"><title>"
        );
        escape(html, &self.title);
        html.push_str("</title>");
        let (left, right, top, bottom) = (ROOM.0, width - ROOM.2, ROOM.3, height - ROOM.1);
        for value in ticks(scale.x, self.x.log, labels) {
            let at = scale.at_x(value);
            let _ = write!(
                html,
                "<path class=\"grid\" d=\"M{at:.1} {top}V{bottom}\"/><text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">",
                bottom + 17.0
            );
            escape(html, &(self.x.show)(value));
            html.push_str("</text>");
        }
        for value in ticks(scale.y, self.y.log, 6) {
            let at = scale.at_y(value);
            let _ = write!(
                html,
                "<path class=\"grid\" d=\"M{left} {at:.1}H{right}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">",
                left - 6.0,
                at + 4.0
            );
            escape(html, &(self.y.show)(value));
            html.push_str("</text>");
        }
        for (i, one) in self.series.iter().enumerate() {
            let _ = write!(html, "<g class=\"s{}\">", i % COLOURS);
            self.draw(html, scale, i, &one.points);
            html.push_str("</g>");
        }
        let _ = write!(html, "<path class=\"axis\" d=\"M{left} {top}V{bottom}H{right}\"/>");
        let _ = write!(
            html,
            "<text class=\"label\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">",
            (left + right) / 2.0,
            height - 8.0
        );
        escape(html, &self.x.label);
        let _ = write!(
            html,
            "</text><text class=\"label\" transform=\"translate(14 {:.1}) rotate(-90)\" text-anchor=\"middle\">",
            (top + bottom) / 2.0
        );
        escape(html, &self.y.label);
        html.push_str("</text></svg>");
    }

    fn draw(&self, html: &mut String, scale: &Scale, index: usize, points: &[(f64, f64)]) {
        let shown: Vec<(f64, f64)> =
            points.iter().filter(|(x, y)| self.x.shows(*x) && self.y.shows(*y)).copied().collect();
        let bottom = scale.height - ROOM.1;
        let at = |&(x, y): &(f64, f64)| (scale.at_x(x), scale.at_y(y));
        match self.style {
            Style::Lines | Style::Steps => {
                html.push_str("<path class=\"line\" d=\"");
                for (i, point) in shown.iter().enumerate() {
                    let (x, y) = at(point);
                    let _ = match (i, self.style) {
                        (0, _) => write!(html, "M{x:.1} {y:.1}"),
                        (_, Style::Steps) => write!(html, "H{x:.1}V{y:.1}"),
                        _ => write!(html, "L{x:.1} {y:.1}"),
                    };
                }
                html.push_str("\"/>");
                if self.style == Style::Lines {
                    shown.iter().map(at).for_each(|(x, y)| mark(html, index, x, y));
                }
            }
            Style::Bars => {
                // Several series share the width of a step.
                let of = self.series.len() as f64;
                for (x, y) in &shown {
                    let step = if (x / 10f64.powf(x.log10().floor()) - 5.0).abs() < 0.1 { 2.5 } else { 2.0 };
                    let (from, to, top) = (scale.at_x(x / step) + 1.0, scale.at_x(*x) - 1.0, scale.at_y(*y));
                    let width = ((to - from) / of).max(1.0);
                    let from = from + width * index as f64;
                    let _ =
                        write!(html, "<path class=\"bar\" d=\"M{from:.1} {bottom}V{top:.1}h{width:.1}V{bottom}Z\"/>");
                }
            }
            Style::Stems => {
                for (x, y) in shown.iter().map(at) {
                    let _ = write!(
                        html,
                        "<path class=\"stem\" d=\"M{x:.1} {bottom}V{y:.1}\"/><circle class=\"mark\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.2\"/>"
                    );
                }
            }
        }
    }
}

/// A mark whose shape tells series apart where colours do not.
fn mark(html: &mut String, index: usize, x: f64, y: f64) {
    let _ = match index % 4 {
        0 => write!(html, "<circle class=\"mark\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\"/>"),
        1 => write!(html, "<path class=\"mark\" d=\"M{:.1} {:.1}h7v7h-7Z\"/>", x - 3.5, y - 3.5),
        2 => write!(html, "<path class=\"mark\" d=\"M{x:.1} {:.1}l4.5 8h-9Z\"/>", y - 5.0),
        _ => write!(html, "<path class=\"mark\" d=\"M{x:.1} {:.1}l5 5l-5 5l-5 -5Z\"/>", y - 5.0),
    };
}

impl Axis<'_> {
    fn shows(&self, value: f64) -> bool {
        // Beyond these no machine has a time or a count, and arithmetic on them would overflow.
        value.abs() <= 1e15 && (!self.log || value >= 1e-12)
    }

    /// What the axis spans: on one of ratios no less than a decade, on the other from zero.
    fn range(&self, values: impl Iterator<Item = f64>) -> (f64, f64) {
        let (least, greatest) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
        if !self.log {
            return (least.min(0.0), if greatest > 0.0 { greatest * 1.04 } else { 1.0 });
        }
        let (from, to) = (least / 1.3, greatest * 1.3);
        if to / from >= 10.0 { (from, to) } else { ((from * to).sqrt() / 3.17, (from * to).sqrt() * 3.17) }
    }
}

/// From values to places.
struct Scale {
    x: (f64, f64),
    y: (f64, f64),
    width: f64,
    height: f64,
    log: (bool, bool),
}

impl Scale {
    fn at_x(&self, value: f64) -> f64 {
        ROOM.0 + (self.width - ROOM.0 - ROOM.2) * part(value, self.x, self.log.0)
    }

    fn at_y(&self, value: f64) -> f64 {
        self.height - ROOM.1 - (self.height - ROOM.1 - ROOM.3) * part(value, self.y, self.log.1)
    }
}

fn part(value: f64, (from, to): (f64, f64), log: bool) -> f64 {
    let part = if log { (value / from).ln() / (to / from).ln() } else { (value - from) / (to - from) };
    part.clamp(0.0, 1.0)
}

/// Round values within a range, at most about `most` of them.
fn ticks((from, to): (f64, f64), log: bool, most: usize) -> Vec<f64> {
    if !log {
        let rough = (to - from) / most as f64;
        let decade = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|n| n * decade).find(|step| *step >= rough).unwrap_or(rough);
        let first = (from / step).ceil() as i64;
        return (first..).map(|n| n as f64 * step).take_while(|value| *value <= to).take(100).collect();
    }
    let (first, last) = (from.log10().floor() as i32, to.log10().ceil() as i32);
    let within = |values: Vec<f64>| values.into_iter().filter(|v| (from..=to).contains(v)).collect::<Vec<_>>();
    let with =
        |digits: &[f64]| within((first..=last).flat_map(|n| digits.iter().map(move |d| d * 10f64.powi(n))).collect());
    // As many as fit: with 2 and 5 between the powers of ten, or only some of those.
    [with(&[1.0, 2.0, 5.0]), with(&[1.0, 3.0]), with(&[1.0])]
        .into_iter()
        .find(|ticks| ticks.len() <= most)
        .unwrap_or_else(|| {
            let every = (last - first) as usize / most + 1;
            within((first..=last).step_by(every).map(|n| 10f64.powi(n)).collect())
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plot<'a>(style: Style, log: bool, series: &'a [Series]) -> Plot<'a> {
        let axis = |label| Axis { label, log, show: |value| format!("{value}") };
        Plot { title: "a <title>", x: axis("time (s)"), y: axis("count"), style, series }
    }

    #[test]
    fn a_plot_has_labels_marks_and_a_legend() {
        let one = |name: &str| Series { name: name.into(), points: vec![(1.0, 2.0), (100.0, 30.0)] };
        let svg = plot(Style::Lines, true, &[one("first"), one("</svg>")]).figure();
        for part in
            ["time (s)", "count", "a &lt;title&gt;", "first", "&lt;/svg&gt;", "class=\"wide\"", "class=\"narrow\""]
        {
            assert!(svg.contains(part), "no {part} in {svg}");
        }
        assert_eq!((svg.matches("</svg>").count(), svg.matches("<circle").count()), (4, 5));
        let none = Series { name: "none".into(), points: vec![(0.0, 1.0), (f64::NAN, 1.0)] };
        assert!(plot(Style::Steps, true, &[none]).figure().contains("Nothing to show"));
    }

    #[test]
    fn a_label_below_the_end_of_the_axis_is_within_the_picture() {
        let axis = Axis { label: "", log: true, show: |_| "500 ms".into() };
        let series = [Series { name: String::new(), points: vec![(1.0, 1.0), (1e5 / 1.3, 1.0)] }];
        let svg = Plot { title: "", x: axis, y: axis, style: Style::Steps, series: &series }.figure();
        // Half a label of six characters takes about 22 of the picture's units at 13 to a line.
        let places = svg.split("<text x=\"").skip(1).filter(|rest| rest.contains("middle"));
        let right = places.filter_map(|rest| rest.split('"').next()?.parse::<f64>().ok()).fold(0.0, f64::max);
        assert!(right > 860.0 && right + 22.0 <= 900.0, "{right}");
    }

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(ticks((0.0, 10.0), false, 6), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(ticks((0.9, 110.0), true, 4), [1.0, 10.0, 100.0]);
        assert_eq!(ticks((0.9, 11.0), true, 6).len(), 4);
        assert!(ticks((1.0, 1e12), true, 4).len() <= 5);
    }

    proptest! {
        #[test]
        fn whatever_is_plotted_stays_inside(points in prop::collection::vec((any::<f64>(), any::<f64>()), 0..20), log: bool) {
            let series = [Series { name: String::new(), points }];
            for style in [Style::Lines, Style::Steps, Style::Bars, Style::Stems] {
                let svg = plot(style, log, &series).figure();
                prop_assert!(!svg.contains("NaN") && !svg.contains("inf"), "{}", svg);
            }
        }
    }
}
