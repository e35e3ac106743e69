//! # Elijah, model level: do images become alike under what Elijah inverts?
//!
//! Elijah's inversion for each of its two rules; the shift under which more images are alike is judged.
//!
//! ## Paper
//! An et al., "Elijah: eliminating backdoors injected in diffusion models via distribution shift", AAAI 2024, arXiv:2312.00050:
//! detection.
//!
//! ## Notation
//! | code | meaning |
//! |---|---|
//! | `share` `S(r)` | share of the largest set of mutually similar images: [`crate::invert::diff_cleanse`] |
//! | `inconsistency` `F(r)` | mean over noise levels of the network's error against "`r` leads to the set's image" |
//! | `q_i` | control shifts of the norm of `r`, with its scale and sampler: permuted, flipped, constant, smooth random |
//!
//! ## Method
//! [`crate::invert::elijah`] for the stochastic and for the deterministic rule; the shift that fits better goes on, is looked at again
//! with other noises, and so are no shift and the controls (`alike.rs`):
//!
//! ```text
//! alike      = log10( S(r) / max(S(0), median_i S(q_i)) )
//! consistent = log10( (min(F(0), median_i F(q_i)) + 0.001) / (F(r) + 0.001) )
//! score      = min(alike, consistent)
//! ```
//!
//! ## Needs
//! Gradients of the network in its input. A calibration: scores of benign models.
//!
//! ## Deviations
//! - The paper looks at the images' mean distance from each other and at their total variation, with a forest or a threshold fitted on
//!   models of both kinds. Here they are held against controls of equal norm, as for [`super::diff_cleanse`]: a fitted forest says
//!   nothing about models that it has not met.
//! - Images are drawn in shifted coordinates, in a few network calls, where the paper takes the attacked sampler in full.
//! - A quick scan inverts with a smaller bank and fewer steps than the published recipe; [`ElijahModelParams::published`] is that.
//!
//! ## Fails when
//! the inversion does: see [`crate::invert::elijah`]. Triggers that come with a scale of the noise are not looked for.
//!
//! ## Cost
//! That of the two inversions, and looks at 16 images.

use depurate_diffusion::Pipeline;
use depurate_report::{Access, AlgorithmId, AlgorithmInfo, Kind, Status};
use serde::{Deserialize, Serialize};

use super::{Curve, Inspection, ModelDetector, alike};
use crate::{
    Cx, DefenseError,
    hypothesis::Hypothesis,
    invert::{
        Inverter,
        diff_cleanse::look::{Look, Looking},
        elijah::{self, ElijahParams},
    },
    probe::Probe,
};

pub use super::alike::LEAST_EFFECT;

/// The detector's id.
pub const ID: &str = "elijah-model";

/// How images are drawn.
const LOOKING: Looking = Looking {
    images: 16,
    steps: 12,
    similar: 1e-2,
};

/// Parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ElijahModelParams {
    /// The inversions, at least one.
    pub inversions: Vec<ElijahParams>,
}

impl ElijahModelParams {
    /// Both published recipes, each from three starts.
    pub fn published() -> Self {
        Self {
            inversions: vec![ElijahParams::default(), ElijahParams::deterministic()],
        }
    }

    /// About a tenth of the cost.
    pub fn quick() -> Self {
        let smaller = |params: ElijahParams| ElijahParams {
            noises: 32,
            iterations: params.iterations.min(60),
            restarts: 2,
            ..params
        };
        Self {
            inversions: Self::published()
                .inversions
                .into_iter()
                .map(smaller)
                .collect(),
        }
    }
}

/// Checks the inverters' parameters and makes the detector.
///
/// # Errors
/// When a parameter is out of its range.
pub fn build(params: ElijahModelParams) -> Result<Box<dyn ModelDetector>, DefenseError> {
    if params.inversions.is_empty() {
        return Err(DefenseError::Params {
            field: "inversions",
            value: "none".into(),
            allowed: "at least one",
        });
    }
    let inverters = params
        .inversions
        .into_iter()
        .map(|params| Ok((params.evaluations(), params.build()?)))
        .collect::<Result<_, DefenseError>>()?;
    Ok(Box::new(ElijahModel { inverters }))
}

struct ElijahModel {
    /// With the cost of each.
    inverters: Vec<(u64, Box<dyn Inverter>)>,
}

impl ModelDetector for ElijahModel {
    fn inspect(&self, model: &Pipeline, cx: &Cx<'_>) -> Result<Inspection, DefenseError> {
        let frozen = model.frozen();
        let probe = Probe::new(&frozen, cx);
        let mut best = None;
        for (_, inverter) in &self.inverters {
            let inversion = inverter.invert(model, cx)?;
            let hypothesis = Hypothesis::plain(inversion.firing, inversion.shift.clone());
            let seed = cx.rng.child(ID, 0);
            let look = LOOKING.look(&probe, &hypothesis, None, &seed)?;
            let better = |(_, _, other): &(_, _, Look)| look.misfit() < other.misfit();
            if best.as_ref().is_none_or(better) {
                best = Some((inversion, hypothesis, look));
            }
        }
        let Some((inversion, hypothesis, look)) = best else {
            return Err(DefenseError::Cancelled); // `build` refuses a detector without inversions
        };
        let judged = alike::judge(ID, &probe, LOOKING, &hypothesis, &look.target, cx)?;
        let inverted: u64 = self.inverters.iter().map(|(cost, _)| cost).sum();
        let trace = inversion
            .trace
            .iter()
            .map(|&(i, v)| (i as f64, v))
            .collect();
        Ok(Inspection {
            score: judged.score,
            score_meaning: alike::SCORE_MEANING.into(),
            comparisons: judged.comparisons,
            target: judged.target,
            curves: vec![Curve {
                title: "Trigger inversion".into(),
                x_label: "step".into(),
                y_label: inversion.objective_meaning.clone(),
                series: vec![("best start".into(), trace)],
            }],
            samples: judged.samples,
            evaluations: inverted + probe.evaluations(),
            tested: vec![
                "shifts that are answered with a fixed part of themselves at almost pure noise (BadDiffusion, VillanDiffusion)".into(),
            ],
            not_tested: vec!["scales of the initial noise (TrojDiff's gamma)".into()],
            inversion,
        })
    }
}

/// Who and what this detector is.
pub fn info() -> AlgorithmInfo {
    AlgorithmInfo {
        id: AlgorithmId::from_static(ID),
        name: "Elijah, model level",
        kind: Kind::ModelDetector,
        paper: depurate_report::Paper {
            implements: "trigger inversion and detection",
            ..elijah::PAPER
        },
        reference: None,
        needs: Access::SCORE_FN.union(Access::GRADIENTS),
        deviations: &[
            "share and consistency of images compared with control shifts, no fitted forest",
            "images in shifted coordinates",
        ],
        status: Status::Preview,
    }
}
