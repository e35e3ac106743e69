//! The premise's curves as a picture.

use std::fmt::Write as _;

use miette::{IntoDiagnostic, Result};

use super::{
    measures::Estimate,
    premise::{Curve, Differences, WINDOWS},
};

/// Sizes of a panel, in pixels.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 84.0;
const RIGHT: f64 = 620.0;
const TOP: f64 = 34.0;
const BASE: f64 = 184.0;
/// Height of a line of text.
const LINE: f64 = 12.0;

type Side = fn(&Differences) -> Option<Estimate>;
/// Which difference, its colour and what it is called.
const SIDES: [(Side, &str, &str); 2] = [
    (|at| at.to_benign, "#c0392b", "triggered less benign"),
    (|at| at.to_clean, "#2c6fbb", "backdoored less clean model"),
];

/// An SVG with a panel a curve: the differences at each call with their intervals, and the windows shaded.
pub(crate) fn svg(curves: &[Curve]) -> Result<String> {
    let height = HEIGHT * curves.len().max(1) as f64;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    for (index, curve) in curves.iter().enumerate() {
        writeln!(
            text,
            "<g transform=\"translate(0 {})\">",
            HEIGHT * index as f64
        )
        .into_diagnostic()?;
        panel(&mut text, curve)?;
        text.push_str("</g>\n");
    }
    text.push_str("</svg>\n");
    Ok(text)
}

fn panel(text: &mut String, curve: &Curve) -> Result<()> {
    let estimates = |side: Side| curve.changes.iter().filter_map(side);
    let ends = SIDES
        .iter()
        .flat_map(|(side, ..)| estimates(*side))
        .flat_map(|e| [e.lower, e.upper]);
    let (mut low, mut high) = (0.0_f64, 0.0_f64);
    for end in ends {
        (low, high) = (low.min(end), high.max(end));
    }
    let span = (high - low).max(f64::MIN_POSITIVE);
    let last = curve.changes.len().saturating_sub(1).max(1) as f64;
    let x = |t: f64| LEFT + (RIGHT - LEFT) * t / last;
    let y = |value: f64| BASE - (BASE - TOP) * (value - low) / span;
    let zero = y(0.0);
    for (first, last) in WINDOWS {
        let (from, to) = (x(first as f64 - 0.4), x(last as f64 + 0.4));
        writeln!(
            text,
            "<rect x=\"{from:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{}\" fill=\"#000\" fill-opacity=\"0.06\"/>",
            to - from,
            BASE - TOP
        )
        .into_diagnostic()?;
    }
    writeln!(
        text,
        "<text x=\"{LEFT}\" y=\"16\" font-weight=\"bold\">{}: change of EOS less mean change of the content</text>\n\
         <line x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{zero:.1}\" y2=\"{zero:.1}\" stroke=\"#555\"/>",
        curve.name,
    )
    .into_diagnostic()?;
    // a label that would lie over that of 0 is left out
    let apart = |value: &f64| *value == 0.0 || (y(*value) - zero).abs() >= LINE;
    for value in [low, 0.0, high].into_iter().filter(apart) {
        writeln!(
            text,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{value:.1e}</text>",
            LEFT - 6.0,
            y(value) + 4.0
        )
        .into_diagnostic()?;
    }
    for t in (0..curve.changes.len()).step_by(6) {
        writeln!(
            text,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{t}</text>",
            x(t as f64),
            BASE + 14.0
        )
        .into_diagnostic()?;
    }
    for (index, (side, colour, name)) in SIDES.into_iter().enumerate() {
        let points: Vec<(f64, Estimate)> = curve
            .changes
            .iter()
            .enumerate()
            .filter_map(|(t, at)| Some((x(t as f64), side(at)?)))
            .collect();
        let path = |points: &mut dyn Iterator<Item = (f64, f64)>| {
            let pairs: Vec<String> = points.map(|(x, v)| format!("{x:.1},{:.1}", y(v))).collect();
            pairs.join(" ")
        };
        let upper = points.iter().map(|(x, e)| (*x, e.upper));
        let lower = points.iter().rev().map(|(x, e)| (*x, e.lower));
        let band = path(&mut upper.chain(lower));
        let line = path(&mut points.iter().map(|(x, e)| (*x, e.value)));
        writeln!(
            text,
            "<polygon points=\"{band}\" fill=\"{colour}\" fill-opacity=\"0.2\"/>\n\
             <polyline points=\"{line}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>\n\
             <text x=\"{}\" y=\"{}\" fill=\"{colour}\">{name}</text>",
            LEFT + 200.0 * index as f64,
            BASE + 30.0
        )
        .into_diagnostic()?;
    }
    Ok(())
}
