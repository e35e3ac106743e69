//! One screened prompt as a self-contained HTML file, and a curve as an SVG file.

use minijinja::value::Serde;
use serde::Serialize;

use crate::html::{Ids, Piece, environment, pieces};
use crate::number::{number, percent};
use crate::plot::{self, Lines};
use crate::{Evidence, Png, ReportError, ResponseCurve, Verdict};

/// What a page about a screened prompt shows. Every string may be hostile.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptPage {
    /// What the screening concludes.
    pub verdict: Verdict,
    /// The prompt, with characters that cannot be seen spelt out.
    pub prompt: String,
    /// Why that verdict.
    pub why: String,
    /// What each check says.
    pub checks: Vec<CheckSummary>,
    /// What the error rate is, in words.
    pub rate: String,
    /// How many calls were made, in words.
    pub calls: String,
    /// Tables and curves.
    pub evidence: Vec<Evidence>,
    /// Pictures of maps.
    pub pictures: Vec<Picture>,
    /// How the model was run: name and value.
    pub facts: Vec<(String, String)>,
    /// The result as JSON.
    pub json: String,
    /// Name and version of the program.
    pub made_by: String,
}

/// What one check says about a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckSummary {
    /// Its id.
    pub detector: String,
    /// What it concludes.
    pub verdict: Verdict,
    /// Its score, if it gives one.
    pub score: Option<f64>,
    /// The threshold, if there is one.
    pub threshold: Option<f64>,
    /// The false-positive rate that the threshold is stated with.
    pub stated_fpr: Option<f64>,
    /// The conformal p-value of the score.
    pub p_value: Option<f64>,
    /// Why.
    pub reason: String,
}

/// A picture with its words.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    /// Its title.
    pub title: String,
    /// What to see in it.
    pub caption: String,
    /// The picture; a PNG may be animated.
    pub png: Png,
}

/// Numbers as people read them.
#[derive(Serialize)]
struct CheckView<'a> {
    detector: &'a str,
    verdict: &'static str,
    flagged: bool,
    score: Option<String>,
    threshold: Option<String>,
    above: bool,
    stated: Option<String>,
    p_value: Option<String>,
    reason: &'a str,
}

impl<'a> CheckView<'a> {
    fn of(check: &'a CheckSummary) -> Self {
        Self {
            detector: &check.detector,
            verdict: check.verdict.phrase(),
            flagged: check.verdict.reaches(Verdict::Suspicious),
            score: check.score.map(number),
            threshold: check.threshold.map(number),
            above: check.score > check.threshold,
            stated: check.stated_fpr.map(percent),
            p_value: check.p_value.map(number),
            reason: &check.reason,
        }
    }
}

#[derive(Serialize)]
struct PictureView<'a> {
    title: &'a str,
    caption: &'a str,
    png: &'a Png,
}

#[derive(Serialize)]
struct PageView<'a> {
    style: &'static str,
    class: &'static str,
    verdict: &'static str,
    prompt: &'a str,
    why: &'a str,
    checks: Vec<CheckView<'a>>,
    rate: &'a str,
    calls: &'a str,
    evidence: Vec<Piece<'a>>,
    pictures: Vec<PictureView<'a>>,
    facts: &'a [(String, String)],
    json: &'a str,
    made_by: &'a str,
}

/// The page as one HTML file that loads nothing and needs no JavaScript. Every string is escaped.
///
/// # Errors
/// If a template fails, which no page should cause.
pub fn render_prompt_html(page: &PromptPage) -> Result<String, ReportError> {
    let env = environment()?;
    let pictures = page.pictures.iter().map(|picture| PictureView {
        title: &picture.title,
        caption: &picture.caption,
        png: &picture.png,
    });
    let view = PageView {
        style: include_str!("templates/style.css"),
        class: page.verdict.as_str(),
        verdict: page.verdict.phrase(),
        prompt: &page.prompt,
        why: &page.why,
        checks: page.checks.iter().map(CheckView::of).collect(),
        rate: &page.rate,
        calls: &page.calls,
        evidence: pieces(&page.evidence, &mut Ids::default()),
        pictures: pictures.collect(),
        facts: &page.facts,
        json: &page.json,
        made_by: &page.made_by,
    };
    Ok(env.get_template("prompt.html")?.render(Serde(view))?)
}

#[derive(Serialize)]
struct CurveView<'a> {
    curve: &'a ResponseCurve,
    plot: Lines,
}

/// Curves with their band as an SVG file of its own; `None` if no point is finite.
///
/// # Errors
/// If the template fails, which no curve should cause.
pub fn render_curve_svg(curve: &ResponseCurve) -> Result<Option<String>, ReportError> {
    let Some(plot) = plot::curves(curve) else {
        return Ok(None);
    };
    let env = environment()?;
    let view = CurveView { curve, plot };
    let svg = env.get_template("curve.svg")?.render(Serde(view))?;
    Ok(Some(svg))
}
