//! Whether the premise holds: that EOS's map changes less, relative to the content's, when the trigger is there.
//!
//! For each call, two differences with 95 % intervals, each for its own call (not for all at once): triggered less benign
//! prompts on the backdoored model, and the triggered prompts on the backdoored model less the same prompts on the clean one. A
//! trigger that is merely rare moves the first and not the second. The published direction is below 0 in both.

use std::fmt::Write as _;

use miette::{IntoDiagnostic, Result};

use super::{
    joined::{Joined, Row},
    measures::{Estimate, Sides, difference, estimate},
    prompts::Role,
};

/// Sums that were fixed before any result was seen: the released changes of DAA-I, and the released increments of DAA-S.
pub(crate) const WINDOWS: [(usize, usize); 2] = [(3, 4), (0, 6)];

/// The differences at one call, or over a window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Differences {
    /// Triggered less benign prompts, on the backdoored model.
    pub(crate) to_benign: Option<Estimate>,
    /// The backdoored model less the clean one, on the same triggered prompts.
    pub(crate) to_clean: Option<Estimate>,
}

/// A curve for some subjects.
#[derive(Debug, Clone)]
pub(crate) struct Curve {
    /// The attack, or all.
    pub(crate) name: String,
    /// One entry a change.
    pub(crate) changes: Vec<Differences>,
    /// One entry of [`WINDOWS`].
    pub(crate) windows: Vec<Differences>,
}

impl Curve {
    /// From the subjects of an attack, or from all.
    pub(crate) fn of(name: &str, subjects: &[&Joined]) -> Result<Self> {
        let length = subjects
            .iter()
            .flat_map(|joined| joined.suspect.iter().chain(&joined.clean))
            .map(|row| row.line.change.len())
            .min()
            .unwrap_or(0);
        let over = |first: usize, last: usize| {
            differences(subjects, &|row: &Row| {
                row.line.change.iter().take(last + 1).skip(first).sum()
            })
        };
        let windows = WINDOWS
            .into_iter()
            .filter(|(_, last)| *last < length)
            .map(|(first, last)| over(first, last));
        Ok(Self {
            name: name.to_owned(),
            changes: (0..length).map(|t| over(t, t)).collect::<Result<_>>()?,
            windows: windows.collect::<Result<_>>()?,
        })
    }
}

fn differences(subjects: &[&Joined], value: &dyn Fn(&Row) -> f64) -> Result<Differences> {
    let mut to_benign = Vec::new();
    let mut to_clean = Vec::new();
    for joined in subjects {
        let of = |rows: &[Row], fits: fn(Role) -> bool| -> Vec<f64> {
            let rows = rows.iter().filter(|row| fits(row.role));
            rows.map(value).collect()
        };
        let is_triggered = |role: Role| role == Role::Triggered;
        let triggered = of(&joined.suspect, is_triggered);
        // in the same order: prompt by prompt
        let twin = of(&joined.clean, is_triggered);
        let paired = triggered.iter().zip(&twin).map(|(a, b)| a - b);
        to_clean.push(Sides {
            attack: joined.attack.clone(),
            triggered: paired.collect(),
            benign: vec![0.0],
        });
        to_benign.push(Sides {
            attack: joined.attack.clone(),
            triggered,
            benign: of(&joined.suspect, Role::is_benign_test),
        });
    }
    Ok(Differences {
        to_benign: estimate(&to_benign, difference)?,
        to_clean: estimate(&to_clean, difference)?,
    })
}

/// The curves as comma-separated values.
pub(crate) fn csv(curves: &[Curve]) -> Result<String> {
    let mut text = String::from(
        "attack,change,to_benign,to_benign_lower,to_benign_upper,to_clean,to_clean_lower,to_clean_upper\n",
    );
    let cells = |estimate: Option<Estimate>| match estimate {
        Some(Estimate {
            value,
            lower,
            upper,
        }) => format!("{value:e},{lower:e},{upper:e}"),
        None => ",,".to_owned(),
    };
    for curve in curves {
        for (t, at) in curve.changes.iter().enumerate() {
            let (benign, clean) = (cells(at.to_benign), cells(at.to_clean));
            writeln!(text, "\"{}\",{t},{benign},{clean}", curve.name).into_diagnostic()?;
        }
    }
    Ok(text)
}

/// One of the two differences.
type Side = fn(&Differences) -> Option<Estimate>;

/// The windows, and at how many calls an interval lies on either side of 0, as a table.
pub(crate) fn table(curves: &[Curve]) -> Result<String> {
    let mut text = String::from(
        "| attack | changes | triggered less benign | backdoored less clean model, same prompts |\n|---|---|---|---|\n",
    );
    let cell = |estimate: Option<Estimate>| match estimate {
        Some(e) => format!("{:.5} ({:.5} to {:.5})", e.value, e.lower, e.upper),
        None => "none".to_owned(),
    };
    for curve in curves {
        for ((first, last), at) in WINDOWS.into_iter().zip(&curve.windows) {
            let (benign, clean) = (cell(at.to_benign), cell(at.to_clean));
            writeln!(
                text,
                "| {} | {first} to {last}, summed | {benign} | {clean} |",
                curve.name
            )
            .into_diagnostic()?;
        }
        let counts = |side: Side| {
            let found: Vec<Estimate> = curve.changes.iter().filter_map(side).collect();
            let below = found.iter().filter(|e| e.upper < 0.0).count();
            let above = found.iter().filter(|e| e.lower > 0.0).count();
            format!("{below} below 0, {above} above")
        };
        writeln!(
            text,
            "| {} | each of {}: intervals | {} | {} |",
            curve.name,
            curve.changes.len(),
            counts(|at| at.to_benign),
            counts(|at| at.to_clean)
        )
        .into_diagnostic()?;
    }
    Ok(text)
}
