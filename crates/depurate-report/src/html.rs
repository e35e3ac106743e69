//! The report as one self-contained HTML file.

use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, UndefinedBehavior};
use serde::Serialize;

use crate::number::{bytes, count, duration, number, percent, percent_range};
use crate::plot::{self, Bars, Distribution, Lines};
use crate::{
    Decision, Evidence, Finding, ImageGrid, InvertedTrigger, Note, Png, Report, ReportError,
    ResponseCurve, Statistic, Table, Threshold, render_json,
};

/// The report as one HTML file that loads nothing: styles, plots and images are inside it, and it
/// needs no JavaScript. Every string of the report is escaped.
///
/// # Errors
/// If a template fails, which no report should cause.
pub fn render_html(report: &Report) -> Result<String, ReportError> {
    let env = environment()?;
    let page = env.get_template("report.html")?;
    let mut ids = Ids::default();
    let view = PageView {
        style: include_str!("templates/style.css"),
        report,
        verdict: report.verdict.phrase(),
        decisions: report.decisions.iter().map(DecisionView::of).collect(),
        findings: report
            .findings
            .iter()
            .map(|finding| FindingView::of(finding, &mut ids))
            .collect(),
        evidence: pieces(&report.evidence, &mut ids),
        total_bytes: report.subject.components.iter().map(|c| c.bytes).sum(),
        raw: raw_json(report)?,
    };
    Ok(page.render(Serde(view))?)
}

/// All templates; whatever they print is escaped.
pub(crate) fn environment() -> Result<Environment<'static>, ReportError> {
    let mut env = Environment::new();
    env.set_auto_escape_callback(|_| AutoEscape::Html);
    // a misspelt name in a template fails instead of leaving a gap
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    env.add_filter("number", number);
    env.add_filter("percent", percent);
    env.add_filter("bytes", bytes);
    env.add_filter("count", count);
    env.add_filter("duration", duration);
    env.add_template("plots.html", include_str!("templates/plots.html"))?;
    env.add_template("evidence.html", include_str!("templates/evidence.html"))?;
    env.add_template("report.html", include_str!("templates/report.html"))?;
    env.add_template("repair.html", include_str!("templates/repair.html"))?;
    env.add_template("prompt.html", include_str!("templates/prompt.html"))?;
    env.add_template("curve.svg", include_str!("templates/curve.svg"))?;
    Ok(env)
}

/// What the page's template sees.
#[derive(Serialize)]
struct PageView<'a> {
    style: &'static str,
    report: &'a Report,
    verdict: &'static str,
    decisions: Vec<DecisionView<'a>>,
    findings: Vec<FindingView<'a>>,
    evidence: Vec<Piece<'a>>,
    total_bytes: u64,
    raw: String,
}

/// Numbers for the `id` attributes that tie a label to its checkbox.
#[derive(Default)]
pub(crate) struct Ids(usize);

impl Ids {
    fn next(&mut self) -> usize {
        self.0 += 1;
        self.0
    }
}

/// A threshold in words.
#[derive(Serialize)]
pub(crate) struct ThresholdView<'a> {
    threshold: &'a Threshold,
    stated: String,
    interval: String,
}

impl<'a> ThresholdView<'a> {
    fn of(threshold: &'a Threshold) -> Self {
        Self {
            threshold,
            stated: percent(threshold.stated_fpr),
            interval: percent_range(threshold.fpr_ci95),
        }
    }
}

#[derive(Serialize)]
struct DecisionView<'a> {
    decision: &'a Decision,
    score: String,
    limit: ThresholdView<'a>,
}

impl<'a> DecisionView<'a> {
    fn of(decision: &'a Decision) -> Self {
        Self {
            decision,
            score: number(decision.score.value()),
            limit: ThresholdView::of(&decision.threshold),
        }
    }
}

#[derive(Serialize)]
struct FindingView<'a> {
    finding: &'a Finding,
    pieces: Vec<Piece<'a>>,
}

impl<'a> FindingView<'a> {
    fn of(finding: &'a Finding, ids: &mut Ids) -> Self {
        Self {
            finding,
            pieces: pieces(&finding.evidence, ids),
        }
    }
}

/// One block of evidence on the page, with the geometry of its plots.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Piece<'a> {
    Trigger {
        trigger: &'a InvertedTrigger,
        shape: String,
        norm: String,
        histogram: Option<Bars>,
        trace: Option<Lines>,
    },
    /// Grids that follow each other stand side by side, to be compared.
    Grids {
        grids: Vec<GridView<'a>>,
    },
    Statistic {
        statistic: &'a Statistic,
        value: String,
        plot: Option<Distribution>,
        limit: Option<ThresholdView<'a>>,
    },
    Curve {
        curve: &'a ResponseCurve,
        plot: Option<Lines>,
    },
    Table {
        table: &'a Table,
    },
    Note {
        note: &'a Note,
    },
}

#[derive(Serialize)]
pub(crate) struct GridView<'a> {
    id: usize,
    grid: &'a ImageGrid,
    seeds: String,
    clip: Option<String>,
}

impl<'a> GridView<'a> {
    fn of(grid: &'a ImageGrid, ids: &mut Ids) -> Self {
        Self {
            id: ids.next(),
            grid,
            seeds: seed_list(&grid.seeds),
            clip: grid.clip.map(number),
        }
    }
}

pub(crate) fn pieces<'a>(evidence: &'a [Evidence], ids: &mut Ids) -> Vec<Piece<'a>> {
    let mut pieces = Vec::new();
    for item in evidence {
        let piece = match item {
            Evidence::InvertedTrigger(trigger) => Piece::Trigger {
                shape: dimensions(&trigger.shape),
                norm: number(trigger.norm),
                histogram: plot::bars_alone(&trigger.histogram),
                trace: plot::trace(&trigger.objective_trace),
                trigger,
            },
            Evidence::ImageGrid(grid) => {
                let view = GridView::of(grid, ids);
                if let Some(Piece::Grids { grids }) = pieces.last_mut() {
                    grids.push(view);
                    continue;
                }
                Piece::Grids { grids: vec![view] }
            }
            Evidence::Statistic(statistic) => Piece::Statistic {
                value: number(statistic.value),
                plot: plot::distribution(statistic),
                limit: statistic.threshold.as_ref().map(ThresholdView::of),
                statistic,
            },
            Evidence::ResponseCurve(curve) => Piece::Curve {
                plot: plot::curves(curve),
                curve,
            },
            Evidence::Table(table) => Piece::Table { table },
            Evidence::Note(note) => Piece::Note { note },
        };
        pieces.push(piece);
    }
    pieces
}

/// "1 × 28 × 28"
fn dimensions(shape: &[usize]) -> String {
    let sizes: Vec<String> = shape.iter().map(usize::to_string).collect();
    sizes.join(" × ")
}

/// "0 to 15" for consecutive seeds, otherwise all of them.
fn seed_list(seeds: &[u64]) -> String {
    let consecutive = seeds.windows(2).all(|s| s[0].checked_add(1) == Some(s[1]));
    match seeds {
        [first, _, .., last] if consecutive => format!("{first} to {last}"),
        _ => {
            let seeds: Vec<String> = seeds.iter().map(u64::to_string).collect();
            seeds.join(", ")
        }
    }
}

/// The report's JSON, without the bytes of images that the page already shows.
fn raw_json(report: &Report) -> Result<String, ReportError> {
    let mut report = report.clone();
    let in_findings = report.findings.iter_mut().flat_map(|f| &mut f.evidence);
    for item in in_findings.chain(&mut report.evidence) {
        match item {
            Evidence::InvertedTrigger(trigger) => {
                leave_out(&mut trigger.image);
                leave_out(&mut trigger.magnified);
            }
            Evidence::ImageGrid(grid) => leave_out(&mut grid.png),
            Evidence::Statistic(_)
            | Evidence::ResponseCurve(_)
            | Evidence::Table(_)
            | Evidence::Note(_) => {}
        }
    }
    render_json(&report)
}

fn leave_out(png: &mut Png) {
    png.base64 = format!("({} characters, shown above)", png.base64.len());
}
