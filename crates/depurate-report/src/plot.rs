//! Geometry of the plots: data in, pixel positions out. The template's macros write the SVG.

use serde::Serialize;

use crate::axis::{Scale, Tick, range, round};
use crate::evidence::{Band, Histogram, ResponseCurve, Series, Statistic};
use crate::number::number;

/// A filled bar of a histogram.
#[derive(Debug, Serialize)]
pub(crate) struct Bar {
    x: f64,
    y: f64,
    width: f64,
    height: f64,
    title: String,
}

/// A vertical line with its label.
#[derive(Debug, Serialize)]
pub(crate) struct Mark {
    x: f64,
    label: String,
    /// SVG's text-anchor: labels near the right edge end at their line.
    anchor: &'static str,
    label_x: f64,
}

/// Benign values as bars, controls as diamonds, the threshold and the subject as lines.
#[derive(Debug, Serialize)]
pub(crate) struct Distribution {
    width: f64,
    height: f64,
    left: f64,
    right: f64,
    top: f64,
    base: f64,
    bars: Vec<Bar>,
    benign: Vec<f64>,
    controls: Vec<f64>,
    x_ticks: Vec<Tick>,
    y_ticks: Vec<Tick>,
    threshold: Option<Mark>,
    subject: Option<Mark>,
    /// Where the axis is broken because the subject lies far to the right.
    cut: Option<f64>,
}

/// Bars alone.
#[derive(Debug, Serialize)]
pub(crate) struct Bars {
    width: f64,
    height: f64,
    left: f64,
    right: f64,
    base: f64,
    bars: Vec<Bar>,
    x_ticks: Vec<Tick>,
}

/// Curves with an optional band.
#[derive(Debug, Serialize)]
pub(crate) struct Lines {
    width: f64,
    height: f64,
    left: f64,
    right: f64,
    top: f64,
    base: f64,
    x_ticks: Vec<Tick>,
    y_ticks: Vec<Tick>,
    x_label: String,
    y_label: String,
    band: Option<Strip>,
    lines: Vec<Line>,
}

#[derive(Debug, Serialize)]
struct Strip {
    label: String,
    path: String,
}

#[derive(Debug, Serialize)]
struct Line {
    label: String,
    path: String,
    points: Vec<Point>,
}

#[derive(Debug, Serialize)]
struct Point {
    x: f64,
    y: f64,
    title: String,
}

/// Points get dots that say their values when pointed at, unless there are more than this.
const DOTTED: usize = 40;

/// The plot of a statistic; `None` if no value is finite.
pub(crate) fn distribution(statistic: &Statistic) -> Option<Distribution> {
    let (width, height, left, right, top, base) = (720.0, 236.0, 44.0, 704.0, 52.0, 184.0);
    let threshold = statistic.threshold.as_ref().map(|t| t.value);
    let core = || {
        let population = statistic.benign.iter().chain(&statistic.controls).copied();
        population.chain(threshold)
    };
    let known = statistic.value.is_finite().then_some(statistic.value);
    // A subject far above everything else would squeeze the benign values into one bar: the axis
    // is broken instead.
    let far = |value: f64| {
        range(core()).is_some_and(|(low, high)| value > high + 1.2 * (high - low).max(0.0))
            && core().filter(|v| v.is_finite()).count() > 1
    };
    let cut = known.filter(|&v| far(v)).map(|_| right - 110.0);
    let x = match cut {
        Some(cut) => Scale::linear(core(), 0.06, left, cut - 16.0)?,
        None => Scale::linear(core().chain(known), 0.06, left, right)?,
    };

    let histogram = match range(statistic.benign.iter().copied()) {
        Some((low, high)) if high > low => {
            let bins = (2.0 * (statistic.benign.len() as f64).sqrt()).clamp(6.0, 30.0) as usize;
            // bins as wide as if they filled the axis keep sparse tails readable
            let (axis_low, axis_high) = x.ends();
            let bins = bins.min((60.0 * (high - low) / (axis_high - axis_low)).ceil() as usize);
            Histogram::between(&statistic.benign, low, high, bins)
        }
        _ => Histogram::of(&statistic.benign, 1),
    };
    let most = histogram.counts.iter().copied().max().unwrap_or(0);
    let y = Scale::linear([0.0, most.max(1) as f64].into_iter(), 0.0, base, top)?;
    let mark = |at: f64, label: String| {
        let near_right = at > 0.6 * right;
        Mark {
            x: at,
            label,
            anchor: if near_right { "end" } else { "start" },
            label_x: if near_right { at - 6.0 } else { at + 6.0 },
        }
    };
    let shown = |values: &[f64]| {
        let finite = values.iter().copied().filter(|v| v.is_finite());
        finite.map(|v| x.at(v)).collect()
    };
    Some(Distribution {
        width,
        height,
        left,
        right,
        top,
        base,
        bars: bars(&histogram, &x, &y, base),
        benign: shown(&statistic.benign),
        controls: shown(&statistic.controls),
        x_ticks: x.ticks(6),
        y_ticks: whole(y.ticks(3)),
        threshold: threshold.map(|t| mark(x.at(t), format!("threshold {}", number(t)))),
        subject: known.map(|v| {
            let at = if cut.is_some() { right - 40.0 } else { x.at(v) };
            mark(at, format!("this model {}", number(v)))
        }),
        cut,
    })
}

/// The plot of a histogram by itself; `None` if it is empty or its edges and counts do not match.
pub(crate) fn bars_alone(histogram: &Histogram) -> Option<Bars> {
    let (width, height, left, right, top, base) = (360.0, 150.0, 12.0, 348.0, 10.0, 120.0);
    if histogram.counts.is_empty() || histogram.edges.len() != histogram.counts.len() + 1 {
        return None;
    }
    let x = Scale::linear(histogram.edges.iter().copied(), 0.02, left, right)?;
    // Most pixels of a trigger are near zero: square roots keep the rare values visible.
    let most = histogram.counts.iter().copied().max()?.max(1) as f64;
    let y = Scale::linear([0.0, most.sqrt()].into_iter(), 0.0, base, top)?;
    let rooted = |count: u64| y.at((count as f64).sqrt());
    Some(Bars {
        width,
        height,
        left,
        right,
        base,
        bars: bars_with(histogram, &x, rooted, base),
        x_ticks: x.ticks(5),
    })
}

/// The plot of curves; `None` if no point is finite.
pub(crate) fn curves(curve: &ResponseCurve) -> Option<Lines> {
    let band = curve.band.as_ref();
    let in_band = || band.into_iter().flat_map(|b| &b.points);
    let in_series = || curve.series.iter().flat_map(|s| &s.points);
    let xs = in_series().map(|p| p.0).chain(in_band().map(|p| p.0));
    let ys = in_series()
        .map(|p| p.1)
        .chain(in_band().flat_map(|p| [p.1, p.2]));
    let frame = Frame::WIDE;
    let x = Scale::linear(xs, 0.01, frame.left, frame.right)?;
    let y = Scale::linear(ys, 0.06, frame.base, frame.top)?;
    Some(frame.lines(&x, &y, &curve.series, band, &curve.x_label, &curve.y_label))
}

/// The plot of an objective over its iterations, logarithmic where it falls far.
pub(crate) fn trace(points: &[(u64, f64)]) -> Option<Lines> {
    let frame = Frame::SMALL;
    let series = Series {
        label: "objective".to_owned(),
        points: points.iter().map(|&(i, v)| (i as f64, v)).collect(),
    };
    let x = Scale::linear(
        series.points.iter().map(|p| p.0),
        0.01,
        frame.left,
        frame.right,
    )?;
    let y = Scale::log_if_wide(series.points.iter().map(|p| p.1), frame.base, frame.top)?;
    Some(frame.lines(&x, &y, &[series], None, "iteration", "objective"))
}

/// Where a chart's axes lie in its picture.
#[derive(Clone, Copy)]
struct Frame {
    width: f64,
    height: f64,
    left: f64,
    right: f64,
    top: f64,
    base: f64,
}

impl Frame {
    const WIDE: Self = Self {
        width: 720.0,
        height: 280.0,
        left: 56.0,
        right: 708.0,
        top: 12.0,
        base: 232.0,
    };
    const SMALL: Self = Self {
        width: 360.0,
        height: 150.0,
        left: 48.0,
        right: 350.0,
        top: 10.0,
        base: 112.0,
    };

    fn lines(
        self,
        x: &Scale,
        y: &Scale,
        series: &[Series],
        band: Option<&Band>,
        x_label: &str,
        y_label: &str,
    ) -> Lines {
        let wanted = if self.width > 500.0 { 6 } else { 4 };
        Lines {
            width: self.width,
            height: self.height,
            left: self.left,
            right: self.right,
            top: self.top,
            base: self.base,
            x_ticks: x.ticks(wanted),
            y_ticks: y.ticks(4),
            x_label: x_label.to_owned(),
            y_label: y_label.to_owned(),
            band: band.map(|b| Strip {
                label: b.label.clone(),
                path: strip_path(b, x, y),
            }),
            lines: series.iter().map(|s| line(s, x, y)).collect(),
        }
    }
}

/// One curve; a point that is not finite breaks it.
fn line(series: &Series, x: &Scale, y: &Scale) -> Line {
    let mut path = String::new();
    let mut pen_down = false;
    for &(px, py) in &series.points {
        if px.is_finite() && py.is_finite() {
            let command = if pen_down { 'L' } else { 'M' };
            path.push_str(&format!("{command}{} {}", x.at(px), y.at(py)));
            pen_down = true;
        } else {
            pen_down = false;
        }
    }
    let dotted = series.points.len() <= DOTTED;
    let finite = series
        .points
        .iter()
        .filter(|(px, py)| dotted && px.is_finite() && py.is_finite());
    Line {
        label: series.label.clone(),
        path,
        points: finite
            .map(|&(px, py)| Point {
                x: x.at(px),
                y: y.at(py),
                title: format!("{}, {}", number(px), number(py)),
            })
            .collect(),
    }
}

/// The outline of a band: its upper edge forwards, its lower edge back.
fn strip_path(band: &Band, x: &Scale, y: &Scale) -> String {
    let finite: Vec<_> = band
        .points
        .iter()
        .filter(|(px, low, high)| px.is_finite() && low.is_finite() && high.is_finite())
        .collect();
    let upper = finite.iter().map(|p| (p.0, p.2));
    let lower = finite.iter().rev().map(|p| (p.0, p.1));
    let mut path = String::new();
    for (i, (px, py)) in upper.chain(lower).enumerate() {
        let command = if i == 0 { 'M' } else { 'L' };
        path.push_str(&format!("{command}{} {}", x.at(px), y.at(py)));
    }
    if !path.is_empty() {
        path.push('Z');
    }
    path
}

fn bars(histogram: &Histogram, x: &Scale, y: &Scale, base: f64) -> Vec<Bar> {
    bars_with(histogram, x, |count| y.at(count as f64), base)
}

fn bars_with(histogram: &Histogram, x: &Scale, top_of: impl Fn(u64) -> f64, base: f64) -> Vec<Bar> {
    let edges = histogram.edges.windows(2);
    edges
        .zip(&histogram.counts)
        .filter(|(_, count)| **count > 0)
        .map(|(edge, &count)| {
            let (from, to) = (x.at(edge[0]), x.at(edge[1]));
            let y = top_of(count);
            Bar {
                x: round(from + 0.5),
                y,
                width: round((to - from - 1.0).max(2.0)),
                height: round(base - y),
                title: format!("{count} in {} to {}", number(edge[0]), number(edge[1])),
            }
        })
        .collect()
}

/// Counts are whole: ticks between whole numbers go.
fn whole(ticks: Vec<Tick>) -> Vec<Tick> {
    ticks
        .into_iter()
        .filter(|tick| !tick.label.contains('.'))
        .collect()
}
