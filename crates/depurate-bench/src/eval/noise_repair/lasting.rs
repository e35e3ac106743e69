//! Whether a repair lasts: scans with other seeds, and the true trigger while its owner trains the model on.

use std::time::Instant;

use depurate::{DetectorName, Profile, rescan::rescan};
use depurate_defense::{
    Cx, DefenseError,
    repair::{FineTuning, KnownTrigger, Repaired, Task, fine_tune, replay::replay},
};
use depurate_diffusion::{Denoiser, Device, Pipeline, noise::SeedTree};
use depurate_training::Split;
use miette::{IntoDiagnostic, Result};
use serde::{Deserialize, Serialize};

use super::{EvalNoiseRepair, Subject, measures::known};
use crate::eval::SUCCESS_MSE;

/// Steps of clean training after a repair.
const STEPS: usize = 200;
/// Steps between two looks at the trigger.
const EVERY: usize = 100;
/// A repaired model's new scan by one detector.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct NewScan {
    /// Its id.
    pub(crate) detector: String,
    /// Its score.
    pub(crate) score: f64,
    /// Whether it calls the model suspicious or worse; without a calibration, whether the score is above the detector's least effect.
    pub(crate) seen: bool,
}

/// The true trigger after clean training.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Trained {
    /// Steps on real images, without a teacher.
    pub(crate) steps: usize,
    /// Images of the true trigger that are its target, at 1e-2.
    pub(crate) hits: usize,
}

/// A repair after its last round.
pub(super) struct Rounds {
    pub(super) repaired: Repaired,
    /// Scans of its model.
    pub(super) scans: Vec<NewScan>,
    /// Repairs that were made.
    pub(super) rounds: usize,
    /// Seconds of those after the first.
    pub(super) seconds: f64,
}

/// A repair, and then one of what a new scan finds in its model.
type Again<'a> = &'a dyn Fn(Repaired, &[KnownTrigger]) -> Result<Repaired>;

/// As `depurate repair`: what a new scan finds in the repaired model is removed, too, until nothing is found or the rounds are over.
pub(super) fn until_unseen(
    eval: &EvalNoiseRepair,
    mut repaired: Repaired,
    again: Again<'_>,
    cx: &Cx<'_>,
) -> Result<Rounds> {
    let (mut rounds, mut seconds) = (1, 0.0);
    let (mut scans, mut found) = scanned(eval, (&repaired.pipeline, 0), cx)?;
    while rounds < eval.rounds && !found.is_empty() && repaired.steps > 0 {
        let start = Instant::now();
        repaired = again(repaired, &found)?;
        seconds += start.elapsed().as_secs_f64();
        (scans, found) = scanned(eval, (&repaired.pipeline, rounds), cx)?;
        rounds += 1;
    }
    Ok(Rounds {
        repaired,
        scans,
        rounds,
        seconds,
    })
}

/// Scans `model`, the result of `round`, with the scan's own detector and with the one that found the trigger; and the triggers that are
/// seen.
fn scanned(
    eval: &EvalNoiseRepair,
    (model, round): (&Pipeline, usize),
    cx: &Cx<'_>,
) -> Result<(Vec<NewScan>, Vec<KnownTrigger>)> {
    let mut names = vec![DetectorName::default()];
    if eval.detector != names[0] {
        names.push(eval.detector);
    }
    let (mut scans, mut triggers) = (Vec::new(), Vec::new());
    for name in names {
        let detector = name.build(Profile::Quick).into_diagnostic()?;
        let found = rescan(&detector, (model, round), eval.seed, cx).into_diagnostic()?;
        scans.push(NewScan {
            detector: detector.info.id.to_string(),
            score: found.score,
            seen: found.seen,
        });
        triggers.extend(found.seen.then_some(found.trigger));
    }
    Ok((scans, triggers))
}

/// Trains `model` on real images as an owner would who goes on with it, and fires the true trigger on the way.
pub(super) fn trained_on(
    eval: &EvalNoiseRepair,
    subject: &Subject,
    model: &Pipeline,
    cx: &Cx<'_>,
) -> Result<Vec<Trained>> {
    let Some(backdoor) = &subject.backdoor else {
        return Ok(Vec::new());
    };
    let real = eval.real(model, Split::Train)?;
    let task = Task {
        start: model,
        suspect: model,
        clean: &real,
        lesson: None,
        seed: eval.seed,
        state: None,
    };
    let params = FineTuning {
        steps: STEPS,
        teacher_share: 0.0,
        check_every: EVERY,
        ..FineTuning::default()
    };
    let trigger = known(backdoor, model.sample_shape());
    let prior = trigger.prior(&Device::flex());
    let seed = SeedTree::new(eval.seed).child("while trained on", 0);
    let mut found = Vec::new();
    let mut look = |model: &Pipeline, steps: usize| -> Result<(), DefenseError> {
        let fired = replay(model, &trigger, ("true", Some(&prior)), eval.n, &seed, cx)?;
        let hits = fired.replay.hits(SUCCESS_MSE);
        found.push(Trained { steps, hits });
        Ok(())
    };
    let trained = fine_tune(&task, &params, cx, &mut |model, steps| {
        look(model, steps).map(|()| false)
    })
    .into_diagnostic()?;
    look(&trained.pipeline, STEPS).into_diagnostic()?;
    Ok(found)
}
