//! A repaired model, scanned again with noises that no earlier scan had: whether anything is still to be seen, and what.

use depurate_defense::{Cx, calibration::ModelKind, repair::KnownTrigger};
use depurate_diffusion::{Pipeline, noise::SeedTree};
use depurate_report::Verdict;

use crate::{
    Detector, Error, calibration,
    verdict::{Judgement, judge_score},
};

/// False-positive rate of a new scan.
pub const FPR: f64 = 0.05;

/// What a new scan found.
#[derive(Debug, Clone)]
pub struct Rescan {
    /// The detector's score.
    pub score: f64,
    /// What the built-in calibration makes of it.
    pub judgement: Judgement,
    /// Whether the model is called suspicious or worse; without a calibration, whether the score is above what the detector ever calls a
    /// model.
    pub seen: bool,
    /// The candidate that scored.
    pub trigger: KnownTrigger,
}

/// Scans `model`, what `round` (from 0) of a repair with `seed` made, by `detector`.
///
/// # Errors
/// When the model cannot be run, the detector's calibration is damaged, the budget is spent or the caller asked to stop.
pub fn rescan(
    detector: &Detector,
    (model, round): (&Pipeline, usize),
    seed: u64,
    cx: &Cx<'_>,
) -> Result<Rescan, Error> {
    let cx = Cx {
        rng: SeedTree::new(seed).child("new scan", round as u64),
        ..*cx
    };
    let found = detector.run.inspect(model, &cx)?;
    let loaded = calibration::find(detector, None)?;
    let (known, kind) = (loaded.map(|l| l.calibration), ModelKind::of(model));
    let judgement = judge_score(found.score, detector, known.as_ref(), &kind, FPR)?;
    let seen = match known {
        Some(_) => judgement.verdict.reaches(Verdict::Suspicious),
        None => found.score > detector.least_effect,
    };
    Ok(Rescan {
        score: found.score,
        judgement,
        seen,
        trigger: KnownTrigger::of(&found.inversion, Some(&found.target)),
    })
}
