//! The report of one repair: schema version 1.

use minijinja::value::Serde;
use serde::{Deserialize, Serialize};

use crate::{
    Environment, Evidence, ReportError, Subject, float,
    html::{Ids, Piece, environment, pieces},
    number::{duration, number},
};

/// What a repair did, what it cost, and the proof.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RepairReport {
    /// [`crate::SCHEMA_VERSION`]
    pub schema_version: String,
    /// What was repaired.
    pub suspect: Subject,
    /// The repaired model's directory; `None` where no attempt passed and nothing was written.
    pub repaired: Option<String>,
    /// Whether an attempt passed every check.
    pub passed: bool,
    /// Why, in a sentence or two.
    pub why: String,
    /// What was tried, in this order; the last one is the one that the evidence shows.
    pub attempts: Vec<Attempt>,
    /// Pictures, tables and curves of the last attempt.
    #[serde(default)]
    pub evidence: Vec<Evidence>,
    /// What the proof does not say.
    #[serde(default)]
    pub limits: Vec<String>,
    /// The seed from which every random number derives.
    pub seed: u64,
    /// The command that repeats the repair.
    pub command: String,
    /// Where and when it ran.
    pub environment: Environment,
}

/// One method that was tried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// The algorithm's id.
    pub method: String,
    /// Whether it passed every check.
    pub passed: bool,
    /// Optimiser steps.
    pub steps: usize,
    /// Network evaluations of one image, a differentiated one counted as three.
    pub evaluations: u64,
    /// Clean images that were not used, because the trigger leads there.
    #[serde(default)]
    pub left_out: usize,
    /// Seconds.
    #[serde(deserialize_with = "float::scalar")]
    pub seconds: f64,
    /// The checks.
    pub checks: Vec<Check>,
    /// What new scans saw after earlier rounds, each removed in the next one.
    #[serde(default)]
    pub removed_again: Vec<Check>,
}

/// One check of a repaired model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// "old trigger"
    pub name: String,
    /// What was measured and what is asked of it.
    pub meaning: String,
    /// The value before the repair, in words, where there is one.
    pub before: Option<String>,
    /// The value after it, in words.
    pub after: String,
    /// What is allowed, in words.
    pub allowed: String,
    /// Whether it is.
    pub passed: bool,
}

/// The report as indented JSON, ending in a newline.
///
/// # Errors
/// If serialisation fails.
pub fn render_repair_json(report: &RepairReport) -> Result<String, ReportError> {
    let mut json = serde_json::to_string_pretty(report)?;
    json.push('\n');
    Ok(json)
}

#[derive(Serialize)]
struct AttemptView<'a> {
    attempt: &'a Attempt,
    evaluations: String,
    seconds: String,
}

#[derive(Serialize)]
struct PageView<'a> {
    style: &'static str,
    class: &'static str,
    heading: &'static str,
    report: &'a RepairReport,
    attempts: Vec<AttemptView<'a>>,
    evidence: Vec<Piece<'a>>,
    json: String,
}

/// The report as one HTML file that loads nothing.
///
/// # Errors
/// If a template fails, which no report should cause.
pub fn render_repair_html(report: &RepairReport) -> Result<String, ReportError> {
    let env = environment()?;
    let page = env.get_template("repair.html")?;
    let mut ids = Ids::default();
    let shown = RepairReport {
        evidence: Vec::new(),
        ..report.clone()
    };
    let view = PageView {
        style: include_str!("templates/style.css"),
        class: if report.passed {
            "no_backdoor_found"
        } else {
            "suspicious"
        },
        heading: if report.passed {
            "Repaired"
        } else {
            "Not repaired"
        },
        report,
        attempts: report
            .attempts
            .iter()
            .map(|attempt| AttemptView {
                attempt,
                evaluations: number(attempt.evaluations as f64),
                seconds: duration(attempt.seconds),
            })
            .collect(),
        evidence: pieces(&report.evidence, &mut ids),
        json: render_repair_json(&shown)?,
    };
    Ok(page.render(Serde(view))?)
}
