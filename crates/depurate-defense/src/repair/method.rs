//! The repairs by name, cheapest first.

use depurate_diffusion::{Denoiser, Pipeline, channel_graph::ChannelGraph};
use depurate_training::{Dataset, StateFile};
use serde::{Deserialize, Serialize};

use super::{
    FineTuning, KnownTrigger, Repaired, Task,
    diff_cleanse_pruning::{self, DiffCleansePruningParams, RatioOf, Score},
    elijah_removal,
    elijah_removal::ElijahRemoval,
    fine_tune, shifted_denoising,
    shifted_denoising::ShiftedDenoising,
    without_leaked,
};
use crate::{Cx, DefenseError};

/// A repair, or what a repair is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// [`elijah_removal`].
    ElijahRemoval,
    /// [`shifted_denoising`].
    ShiftedDenoising,
    /// [`diff_cleanse_pruning`] with the score as the paper means it, then a fine-tune.
    DiffCleansePruning,
    /// The same with the score as released.
    ReleasedPruning,
    /// The same with channels at random: a control.
    RandomPruning,
    /// The fine-tune of the others without a lesson: a control.
    FineTuning,
}

/// Share of a network's units that pruning takes out; the paper's is 1 to 2 %.
const PRUNED: f64 = 0.02;
/// Images of which importances are taken.
const IMPORTANCE_IMAGES: usize = 16;
/// Timesteps of the last tenth at which they are.
const IMPORTANCE_TIMESTEPS: usize = 20;

impl Method {
    /// The id of the algorithm.
    pub fn id(self) -> &'static str {
        match self {
            Self::ElijahRemoval => elijah_removal::ID,
            Self::ShiftedDenoising => shifted_denoising::ID,
            Self::DiffCleansePruning => diff_cleanse_pruning::ID,
            Self::ReleasedPruning => "released-pruning",
            Self::RandomPruning => "random-pruning",
            Self::FineTuning => "fine-tuning",
        }
    }
}

/// What a repair is given.
#[derive(Clone, Copy)]
pub struct Patient<'a> {
    /// The suspect, on an autodiff device.
    pub suspect: &'a Pipeline,
    /// The triggers to remove.
    pub triggers: &'a [KnownTrigger],
    /// Clean images.
    pub clean: &'a Dataset,
    /// Root of the repair's randomness.
    pub seed: u64,
    /// Where a resumable state is kept.
    pub state: Option<&'a StateFile>,
}

/// Repairs `patient` with its clean images but those that a trigger leads to ([`without_leaked`]); `enough` is asked with the suspect and
/// then now and then with the model so far, beside the steps made, and ends the repair by `true`: where it is enough at 0, the suspect is given back as it is.
///
/// # Errors
/// As [`fine_tune`], and when a trigger is malformed.
pub fn repair(
    method: Method,
    patient: &Patient<'_>,
    params: &FineTuning,
    cx: &Cx<'_>,
    enough: &mut dyn FnMut(&Pipeline, usize) -> Result<bool, DefenseError>,
) -> Result<Repaired, DefenseError> {
    if enough(patient.suspect, 0)? {
        return Ok(Repaired::unchanged(patient.suspect));
    }
    let clean = without_leaked(patient.clean, patient.triggers)?;
    let left_out = patient.clean.len() - clean.len();
    let patient = &Patient {
        clean: &clean,
        ..*patient
    };
    let mut task = Task {
        start: patient.suspect,
        suspect: patient.suspect,
        clean: patient.clean,
        lesson: None,
        seed: patient.seed,
        state: patient.state,
    };
    let repaired = match method {
        Method::FineTuning => fine_tune(&task, params, cx, enough),
        Method::DiffCleansePruning | Method::ReleasedPruning | Method::RandomPruning => {
            let score = match method {
                Method::ReleasedPruning => Score::Released,
                Method::RandomPruning => Score::Random,
                _ => Score::Intended,
            };
            let (pruned, evaluations) = pruned(score, patient, cx)?;
            task.start = &pruned;
            fine_tune(&task, params, cx, enough).map(|repaired| Repaired {
                evaluations: repaired.evaluations + evaluations,
                ..repaired
            })
        }
        Method::ElijahRemoval => {
            let lesson = ElijahRemoval::new(patient.triggers, patient.suspect)?;
            task.lesson = Some(&lesson);
            fine_tune(&task, params, cx, enough)
        }
        Method::ShiftedDenoising => {
            let lesson = ShiftedDenoising::new(patient.triggers, patient.suspect)?;
            task.lesson = Some(&lesson);
            fine_tune(&task, params, cx, enough)
        }
    }?;
    Ok(Repaired {
        left_out,
        ..repaired
    })
}

/// `repaired` and then, by half of the steps, a repair of its model of what a new scan `found` in it, as one; the patient's state is
/// of this second training.
///
/// # Errors
/// As [`repair`].
pub fn repair_again(
    method: Method,
    (repaired, found): (Repaired, &[KnownTrigger]),
    patient: &Patient<'_>,
    params: &FineTuning,
    cx: &Cx<'_>,
) -> Result<Repaired, DefenseError> {
    let patient = Patient {
        suspect: &repaired.pipeline,
        triggers: found,
        ..*patient
    };
    let later = repair(method, &patient, &params.again(), cx, &mut |_, _| Ok(false))?;
    Ok(repaired.then(later))
}

/// The suspect without the units of highest score, a really smaller network, and what the scores cost. With several triggers the
/// first one decides.
fn pruned(
    score: Score,
    patient: &Patient<'_>,
    cx: &Cx<'_>,
) -> Result<(Pipeline, u64), DefenseError> {
    let Some(trigger) = patient.triggers.first() else {
        return Err(DefenseError::Params {
            field: "triggers",
            value: "none".into(),
            allowed: "one or more",
        });
    };
    let pruning = DiffCleansePruningParams {
        score,
        ratio: PRUNED,
        ratio_of: RatioOf::All,
        timesteps: IMPORTANCE_TIMESTEPS,
        ..DiffCleansePruningParams::default()
    }
    .build()?;
    let count = IMPORTANCE_IMAGES.min(patient.clean.len());
    let indices: Vec<usize> = (0..count).collect();
    let images = patient
        .clean
        .batch(&indices, &[], &patient.suspect.device().inner());
    let importance = pruning.importance(patient.suspect, &images, trigger, cx)?;
    let graph = ChannelGraph::of(patient.suspect.config())?;
    let removal = pruning.choose(&graph, &importance, &cx.rng.child("pruning", patient.seed))?;
    Ok((patient.suspect.pruned(&removal)?, importance.evaluations))
}
