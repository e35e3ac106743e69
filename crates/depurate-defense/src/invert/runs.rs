//! Descents on a shift from several starts, of which the best is reported.

use depurate_diffusion::{SampleShape, firing::Firing, noise::SeedTree};
use rand::RngExt;
use serde::{Deserialize, Serialize};

use super::{Inversion, Restart};
use crate::{Cx, DefenseError, probe::norm};

/// One restart's end.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Run {
    /// What its start is called.
    pub(super) start: String,
    /// `[C, H, W]`.
    pub(super) shift: Vec<f32>,
    /// `[C, H, W]`, where it was inverted.
    pub(super) gamma: Option<Vec<f32>>,
    /// Final objective; lower is better.
    pub(super) objective: f64,
    /// Objective by step.
    pub(super) trace: Vec<(usize, f64)>,
    /// Whether it settled.
    pub(super) converged: bool,
}

/// Makes `restarts` runs, at least 1, each a stage of the inverter `id` with a seed of its own.
pub(super) fn runs(
    id: &str,
    restarts: usize,
    cx: &Cx<'_>,
    run: impl Fn(usize, &SeedTree) -> Result<Run, DefenseError>,
) -> Result<Vec<Run>, DefenseError> {
    let seed = cx.rng.child(id, 0);
    (0..restarts)
        .map(|restart| {
            let seed = seed.child("restart", restart as u64);
            cx.stage(&format!("{id}-{restart}"), || run(restart, &seed))
        })
        .collect()
}

/// The inversion of least objective among `runs`, which are not none; `meaning` says what the objective is.
pub(super) fn best(
    mut runs: Vec<Run>,
    shape: SampleShape,
    firing: Firing,
    meaning: &str,
) -> Inversion {
    let best = (0..runs.len())
        .min_by(|&i, &j| runs[i].objective.total_cmp(&runs[j].objective))
        .unwrap_or_default();
    let restarts = runs
        .iter()
        .enumerate()
        .map(|(i, run)| Restart {
            start: run.start.clone(),
            objective: run.objective,
            norm: norm(&run.shift),
            converged: run.converged,
            selected: i == best,
        })
        .collect();
    let run = runs.swap_remove(best);
    Inversion {
        shape,
        shift: run.shift,
        gamma: run.gamma,
        firing,
        objective: run.objective,
        objective_meaning: meaning.to_owned(),
        trace: run.trace,
        converged: run.converged,
        restarts,
    }
}

/// The starts, in turn: uniform as TERD's and Elijah's code start for BadDiffusion, its negative (Elijah for TrojDiff), and
/// over the whole range (Elijah for VillanDiffusion). With what it is called; `[C, H, W]`.
pub(super) fn start(shape: SampleShape, restart: usize, seed: &SeedTree) -> (String, Vec<f32>) {
    let mut rng = seed.child("start", 0).rng();
    let (label, range) = match restart % 3 {
        0 => ("uniform in [-1, 0]", -1.0..=0.0),
        1 => ("uniform in [0, 1]", 0.0..=1.0),
        _ => ("uniform in [-1, 1]", -1.0..=1.0f32),
    };
    (
        label.to_owned(),
        (0..shape.len())
            .map(|_| rng.random_range(range.clone()))
            .collect(),
    )
}
