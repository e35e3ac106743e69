//! The lines of results.jsonl.

use std::{io::Write as _, path::Path};

use miette::{IntoDiagnostic, Result, WrapErr};
use serde::{Deserialize, Serialize};

use super::{State, Treatment};

/// One model under one treatment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Row {
    /// Directory name.
    pub(crate) model: String,
    /// What was done.
    pub(crate) treatment: Treatment,
    /// As in a truth file.
    pub(crate) kind: String,
    /// Trigger and target.
    pub(crate) secret: Option<String>,
    /// Images of the trigger that the repair was given, fired by the attack's own sampler, that are the true target, at each of
    /// [`depurate_defense::repair::replay::THRESHOLDS`]; of a backdoored model.
    pub(crate) given: Option<Vec<usize>>,
    /// Before.
    pub(crate) before: State,
    /// After.
    pub(crate) after: State,
    /// Mean squared distance of clean samples before and after from the same noise, in [0, 1] units.
    pub(crate) moved: f64,
    /// Steps made.
    pub(crate) steps: usize,
    /// Network evaluations of the repair.
    pub(crate) evaluations: u64,
    /// Seconds of the repair, without making clean images and without measuring.
    pub(crate) seconds: f64,
}

/// Every line that is there; none without a file.
pub(super) fn read_rows(path: &Path) -> Result<Vec<Row>> {
    let Ok(text) = std::fs::read_to_string(path) else {
        return Ok(Vec::new());
    };
    text.lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| serde_json::from_str(line).into_diagnostic())
        .collect::<Result<_>>()
        .wrap_err_with(|| format!("{} holds a line that is no result", path.display()))
}

/// Adds a line.
pub(super) fn append(path: &Path, row: &Row) -> Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .into_diagnostic()?;
    let text = serde_json::to_string(row).into_diagnostic()?;
    writeln!(file, "{text}").into_diagnostic()
}
