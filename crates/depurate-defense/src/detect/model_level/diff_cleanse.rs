//! # Diff-Cleanse, model level: do images become alike under a shift?
//!
//! Under a backdoor's trigger most images are one image. The share of the largest mutually similar set of images is held against
//! that under control shifts of equal norm, for each kind of sampler that an attack is made for.
//!
//! ## Paper
//! Hao et al., "Diff-Cleanse: identifying and mitigating backdoor attacks in diffusion models", arXiv:2407.21316: detection.
//!
//! ## Notation
//! | code | meaning |
//! |---|---|
//! | `share` `S(r)` | share of the largest set of mutually similar images: [`crate::invert::diff_cleanse`] |
//! | `inconsistency` `F(r)` | mean over noise levels of the network's error against "`r` leads to the set's image" |
//! | `q_i` | control shifts of the norm of `r`, with its scale and sampler: permuted, flipped, constant, smooth random |
//!
//! ## Method
//! The inverter's best candidate is looked at again with other noises, and so are no shift and the controls (`alike.rs`):
//!
//! ```text
//! alike      = log10( S(r) / max(S(0), median_i S(q_i)) )
//! consistent = log10( (min(F(0), median_i F(q_i)) + 0.001) / (F(r) + 0.001) )
//! score      = min(alike, consistent)
//! ```
//!
//! ## Needs
//! Samples of the network's output; gradients in its input for the inverter's polish. A calibration: scores of benign models.
//!
//! ## Deviations
//! - The paper's score is `S(r)` alone, one at most. A benign model saturates under a large shift too (a dark one makes every digit
//!   a dark image, `S = 1`), so the share is compared with controls, and consistency guards what is left: alike images of a benign
//!   model are not what its network has learnt for the shift.
//!
//! ## Fails when
//! the inversion does ([`crate::invert::diff_cleanse`]); or when half of the controls fire the backdoor too.
//!
//! ## Cost
//! That of the inversion, and ten looks of twice its images.

use depurate_diffusion::{Denoiser, Pipeline, firing::Firing};
use depurate_report::{Access, AlgorithmId, AlgorithmInfo, Kind, Paper, Status};

use super::{Curve, Inspection, ModelDetector, alike};
use crate::{
    Cx, DefenseError,
    invert::diff_cleanse::{self, DiffCleanseParams, look::Looking},
    probe::Probe,
};

pub use super::alike::LEAST_EFFECT;
pub use crate::invert::diff_cleanse::ID;

/// Checks the inverter's parameters and makes the detector.
///
/// # Errors
/// When a parameter is out of its range.
pub fn build(params: DiffCleanseParams) -> Result<Box<dyn ModelDetector>, DefenseError> {
    params.check()?;
    Ok(Box::new(DiffCleanse { params }))
}

/// The detector. Made by [`build`].
#[derive(Debug, Clone)]
pub struct DiffCleanse {
    params: DiffCleanseParams,
}

impl ModelDetector for DiffCleanse {
    fn inspect(&self, model: &Pipeline, cx: &Cx<'_>) -> Result<Inspection, DefenseError> {
        self.inspect_denoiser(&model.frozen(), cx)
    }
}

impl DiffCleanse {
    /// Made for tests on other denoisers than pipelines; as [`build`] otherwise.
    ///
    /// # Errors
    /// When a parameter is out of its range.
    pub fn new(params: DiffCleanseParams) -> Result<Self, DefenseError> {
        params.check()?;
        Ok(Self { params })
    }

    /// [`ModelDetector::inspect`] of any denoiser.
    ///
    /// # Errors
    /// When the model cannot be run, the budget is spent or the caller asked to stop.
    pub fn inspect_denoiser(
        &self,
        model: &dyn Denoiser,
        cx: &Cx<'_>,
    ) -> Result<Inspection, DefenseError> {
        let probe = Probe::new(model, cx);
        let found = self.params.search_with(&probe, &[], cx)?;
        let looking = Looking {
            images: (2 * self.params.images).min(64),
            ..self.params.looking()
        };
        let judged = alike::judge(
            ID,
            &probe,
            looking,
            &found.best.hypothesis,
            &found.target,
            cx,
        )?;
        let trace = found.inversion.trace.iter().map(|&(i, v)| (i as f64, v));
        let curves = vec![Curve {
            title: "Trigger inversion".into(),
            x_label: "step".into(),
            y_label: "diversity of the images, then misfit along the chain".into(),
            series: vec![("best candidate".into(), trace.collect())],
        }];
        let (tested, not_tested) = self.coverage();
        Ok(Inspection {
            score: judged.score,
            score_meaning: alike::SCORE_MEANING.into(),
            comparisons: judged.comparisons,
            target: judged.target,
            inversion: found.inversion,
            curves,
            samples: judged.samples,
            evaluations: probe.evaluations(),
            tested,
            not_tested,
        })
    }

    /// What is looked for, and what is left out.
    fn coverage(&self) -> (Vec<String>, Vec<String>) {
        let kinds = [
            (
                Firing::Stochastic,
                "shifts that fire under stochastic samplers (BadDiffusion and its kin)",
            ),
            (
                Firing::Deterministic,
                "shifts that fire under ODE samplers (VillanDiffusion, ode)",
            ),
            (
                Firing::Modified,
                "shifts and scales of the noise that fire under a sampler that is told them (TrojDiff), blended over the image or \
                 in a square at a corner",
            ),
        ];
        let (tested, mut not_tested): (Vec<_>, Vec<_>) = kinds
            .into_iter()
            .partition(|(firing, _)| self.params.firings.contains(firing));
        not_tested.push((
            Firing::Modified,
            "triggers that lead to a class of images instead of one image",
        ));
        let texts = |kinds: Vec<(Firing, &str)>| {
            kinds.into_iter().map(|(_, text)| text.to_owned()).collect()
        };
        (texts(tested), texts(not_tested))
    }
}

/// Who and what this detector is.
pub fn info() -> AlgorithmInfo {
    AlgorithmInfo {
        id: AlgorithmId::from_static(ID),
        name: "Diff-Cleanse",
        kind: Kind::ModelDetector,
        paper: Paper {
            implements: "trigger inversion and detection (first stage)",
            ..diff_cleanse::PAPER
        },
        reference: None,
        needs: Access::SCORE_FN.union(Access::GRADIENTS),
        deviations: &[
            "share and consistency compared with control shifts",
            "regression along the chain",
            "similar in mean square",
        ],
        status: Status::Preview,
    }
}
