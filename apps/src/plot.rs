//! Plots as SVG files: lines over two axes, and bars.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

/// An axis.
#[derive(Debug, Clone, Copy)]
pub struct Axis<'a> {
    /// What it shows, with its unit.
    pub label: &'a str,
    /// Whether equal steps are equal ratios. Only positive values can be shown then.
    pub log: bool,
}

/// What stands around a plot.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    /// Above it.
    pub title: &'a str,
    /// From left to right. Bars have names there instead.
    pub x: Axis<'a>,
    /// From bottom to top.
    pub y: Axis<'a>,
}

/// One line of a plot.
#[derive(Debug, Clone)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// In the order in which they are joined. Those that their axes cannot show are left out.
    pub points: Vec<(f64, f64)>,
}

/// A plot was not drawn.
#[derive(Debug, thiserror::Error)]
pub enum PlotError {
    /// No point that can be shown.
    #[error("\"{0}\" has nothing to plot: no finite points, or none above zero on an axis of ratios")]
    Nothing(String),
    /// What the drawing library says went wrong.
    #[error("the plot could not be drawn: {0}")]
    Draw(String),
    /// The file could not be written.
    #[error("{path}: the plot could not be written ({source}); does its folder exist?")]
    Write {
        /// The file.
        path: PathBuf,
        /// The meaning of errno.
        source: io::Error,
    },
}

const SIZE: (u32, u32) = (960, 540);

/// Colours that differ for most eyes (Okabe and Ito's), and then again.
const COLOURS: [RGBColor; 8] = [
    RGBColor(213, 94, 0),
    RGBColor(0, 114, 178),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(100, 100, 100),
    RGBColor(0, 0, 0),
];

/// Draws lines into the file `path`, the first of them on top.
///
/// # Errors
///
/// When there is no point to show, or the file cannot be written.
pub fn lines(path: &Path, frame: Frame<'_>, series: &[Series]) -> Result<(), PlotError> {
    write(path, &lines_svg(frame, series)?)
}

/// Draws lines, the first of them on top, and returns them as the text of an SVG file.
///
/// # Errors
///
/// When there is no point to show.
pub fn lines_svg(frame: Frame<'_>, series: &[Series]) -> Result<String, PlotError> {
    let shown: Vec<Series> = series
        .iter()
        .map(|one| Series {
            name: one.name.clone(),
            points: one.points.iter().copied().filter(|(x, y)| frame.x.shows(*x) && frame.y.shows(*y)).collect(),
        })
        .collect();
    let points = || shown.iter().flat_map(|one| one.points.iter());
    let nothing = || PlotError::Nothing(frame.title.into());
    let x = frame.x.range(points().map(|point| point.0)).ok_or_else(nothing)?;
    let y = frame.y.range(points().map(|point| point.1)).ok_or_else(nothing)?;
    let mut svg = String::new();
    match (frame.x.log, frame.y.log) {
        (false, false) => draw_lines(&mut svg, frame, &shown, x, y),
        (true, false) => draw_lines(&mut svg, frame, &shown, x.log_scale(), y),
        (false, true) => draw_lines(&mut svg, frame, &shown, x, y.log_scale()),
        (true, true) => draw_lines(&mut svg, frame, &shown, x.log_scale(), y.log_scale()),
    }
    .map_err(PlotError::Draw)?;
    Ok(svg)
}

/// Draws one bar for each name into the file `path`.
///
/// # Errors
///
/// As for [`lines`].
pub fn bars(path: &Path, frame: Frame<'_>, named: &[(String, f64)]) -> Result<(), PlotError> {
    let shown: Vec<(String, f64)> = named.iter().filter(|(_, value)| frame.y.shows(*value)).cloned().collect();
    let y = frame.y.range(shown.iter().map(|bar| bar.1)).ok_or_else(|| PlotError::Nothing(frame.title.into()))?;
    // With room for the values above the bars.
    let mut svg = String::new();
    if frame.y.log {
        draw_bars(&mut svg, frame, &shown, y.start, (y.start..1.5 * y.end).log_scale())
    } else {
        draw_bars(&mut svg, frame, &shown, 0.0, 0.0..1.05 * y.end)
    }
    .map_err(PlotError::Draw)?;
    write(path, &svg)
}

fn write(path: &Path, svg: &str) -> Result<(), PlotError> {
    fs::write(path, svg).map_err(|source| PlotError::Write { path: path.into(), source })
}

impl Axis<'_> {
    fn shows(&self, value: f64) -> bool {
        value.is_finite() && (!self.log || value > 0.0)
    }

    /// What the axis must span, with a little room.
    fn range(&self, values: impl Iterator<Item = f64>) -> Option<Range<f64>> {
        let (least, greatest) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
        if least > greatest {
            return None;
        }
        if self.log {
            return Some(least / 1.15..greatest * 1.15);
        }
        let room = 0.05 * (greatest - least).max(greatest.abs() * 1e-3).max(f64::MIN_POSITIVE);
        // From zero, unless that would hide what the plot is about.
        let from = if least >= 0.0 && least < 0.5 * greatest { 0.0 } else { least - room };
        Some(from..greatest + room)
    }
}

fn draw_lines<X, Y>(
    svg: &mut String,
    frame: Frame<'_>,
    series: &[Series],
    x: impl AsRangedCoord<Value = f64, CoordDescType = X>,
    y: impl AsRangedCoord<Value = f64, CoordDescType = Y>,
) -> Result<(), String>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE).map_err(text)?;
    let (plot, legend) = root.split_horizontally(SIZE.0 - 190);
    let mut chart = ChartBuilder::on(&plot)
        .caption(frame.title, ("sans-serif", 22))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(x, y)
        .map_err(text)?;
    chart
        .configure_mesh()
        .x_desc(frame.x.label)
        .y_desc(frame.y.label)
        .light_line_style(WHITE)
        .label_style(("sans-serif", 16))
        .axis_desc_style(("sans-serif", 19))
        .x_label_formatter(&|value| number(*value))
        .y_label_formatter(&|value| number(*value))
        .draw()
        .map_err(text)?;
    // The first one last, so that it lies on top.
    for (i, one) in series.iter().enumerate().rev() {
        let style = style(i);
        chart.draw_series(LineSeries::new(one.points.iter().copied(), style)).map_err(text)?;
        // Beside the plot, not on it: lines are long and many.
        let at = 60 + 22 * i as i32;
        legend.draw(&PathElement::new([(4, at), (30, at)], style)).map_err(text)?;
        legend.draw(&Text::new(one.name.clone(), (36, at - 7), ("sans-serif", 17))).map_err(text)?;
    }
    root.present().map_err(text)
}

fn draw_bars<Y>(
    svg: &mut String,
    frame: Frame<'_>,
    named: &[(String, f64)],
    from: f64,
    y: impl AsRangedCoord<Value = f64, CoordDescType = Y>,
) -> Result<(), String>
where
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE).map_err(text)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(frame.title, ("sans-serif", 22))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..named.len() as f64, y)
        .map_err(text)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .x_desc("")
        .y_desc(frame.y.label)
        .light_line_style(WHITE)
        .label_style(("sans-serif", 16))
        .axis_desc_style(("sans-serif", 19))
        .y_label_formatter(&|value| number(*value))
        .draw()
        .map_err(text)?;
    for (i, (name, value)) in named.iter().enumerate() {
        let (left, right) = (i as f64 + 0.15, i as f64 + 0.85);
        let bar = Rectangle::new([(left, from), (right, *value)], COLOURS[1].filled());
        chart.draw_series([bar]).map_err(text)?;
        let (x, top) = chart.backend_coord(&(i as f64 + 0.5, *value));
        let (_, bottom) = chart.backend_coord(&(i as f64 + 0.5, from));
        let centred = ("sans-serif", 16).into_text_style(&root).pos(text_anchor());
        root.draw(&Text::new(number(*value), (x, top - 9), centred.clone())).map_err(text)?;
        // Names in two rows, so that long ones find room.
        root.draw(&Text::new(name.clone(), (x, bottom + 14 + 16 * (i as i32 % 2)), centred)).map_err(text)?;
    }
    root.present().map_err(text)
}

fn text_anchor() -> plotters::style::text_anchor::Pos {
    use plotters::style::text_anchor::{HPos, Pos, VPos};
    Pos::new(HPos::Center, VPos::Center)
}

/// Wide lines first; thin ones once colours repeat.
fn style(i: usize) -> ShapeStyle {
    let width = if i < COLOURS.len() { 3 } else { 1 };
    COLOURS[i % COLOURS.len()].stroke_width(width)
}

/// A value with as many digits as it needs.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        size if !(1e-3..1e6).contains(&size) => format!("{value:.0e}"),
        size if size >= 10.0 => format!("{value:.0}"),
        size if size >= 1.0 => format!("{}", (value * 100.0).round() / 100.0),
        _ => format!("{}", (value * 1e4).round() / 1e4),
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(log: bool) -> Frame<'static> {
        let axis = Axis { label: "time, us", log };
        Frame { title: "a title", x: axis, y: axis }
    }

    #[test]
    fn what_is_drawn_has_names_and_units() {
        let folder = std::env::temp_dir().join(format!("spinwake-plot-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let series = [Series { name: "first".into(), points: vec![(1.0, 2.0), (10.0, 200.0), (0.0, f64::NAN)] }];
        for log in [false, true] {
            let path = folder.join(format!("{log}.svg"));
            lines(&path, frame(log), &series).unwrap();
            let svg = std::fs::read_to_string(&path).unwrap();
            assert!(svg.contains("first") && svg.contains("time, us") && svg.contains("a title"), "{svg}");
            bars(&path, frame(log), &[("one".into(), 1.5), ("two".into(), 20.0)]).unwrap();
            let svg = std::fs::read_to_string(&path).unwrap();
            assert!(svg.contains("one") && svg.contains("1.5"), "{svg}");
        }
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn nothing_to_plot_is_an_error() {
        let none = [Series { name: "none".into(), points: vec![(0.0, 0.0)] }];
        assert!(matches!(lines(Path::new("unused"), frame(true), &none), Err(PlotError::Nothing(_))));
        let written = bars(Path::new("/no/such/folder/a.svg"), frame(false), &[("one".into(), 1.0)]);
        assert!(matches!(written, Err(PlotError::Write { .. })));
    }
}
