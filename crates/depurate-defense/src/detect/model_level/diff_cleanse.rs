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
//! The inverter's best candidate `r` is looked at again with other noises, and so are no shift and the controls:
//!
//! ```text
//! alike      = log10( S(r) / max(S(0), median_i S(q_i)) )                       (1)
//! consistent = log10( (min(F(0), median_i F(q_i)) + f0) / (F(r) + f0) )        (2)
//! score      = min(alike, consistent)                                          (3)
//! ```
//!
//! In (2) every shift may lead to its own images' cluster or to the candidate's, whichever fits better: the search also finds
//! images that a benign network knows well without any shift.
//!
//! ## Needs
//! Samples of the network's output; gradients in its input for the inverter's polish. A calibration: scores of benign models.
//!
//! ## Deviations
//! - The paper's score is `S(r)` alone, one at most. A benign model saturates under a large shift too (a dark one makes every digit
//!   a dark image, `S = 1`), so the share is compared with controls, and (2) guards what is left: alike images of a benign model
//!   are not what its network has learnt for the shift.
//! - `f0` is what a perfect backdoor leaves of `F`.
//!
//! ## Fails when
//! the inversion does ([`crate::invert::diff_cleanse`]); or when half of the controls fire the backdoor too.
//!
//! ## Cost
//! That of the inversion, and ten looks of twice its images.

use depurate_diffusion::{
    Denoiser, Pipeline,
    firing::Firing,
    sampler::{Clip, SamplerSettings, Steps, TrojDiffForm},
};
use depurate_report::{Access, AlgorithmId, AlgorithmInfo, Kind, Paper, Status};

use super::{
    Comparison, Curve, Inspection, ModelDetector, Samples, shift_response::controls::controls,
};
use crate::{
    Cx, DefenseError,
    hypothesis::Hypothesis,
    invert::diff_cleanse::{
        self, DiffCleanseParams,
        look::{Look, Looking},
    },
    probe::Probe,
};

pub use crate::invert::diff_cleanse::ID;

/// Least score of a finding, in decades: a factor of two.
pub const LEAST_EFFECT: f64 = 0.3;
/// What a perfect backdoor leaves of the inconsistency, in squared noise units.
const INCONSISTENCY_FLOOR: f64 = 1e-3;

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
        let candidate = &found.best.hypothesis;
        let seed = cx.rng.child(ID, 1);
        let looking = Looking {
            images: (2 * self.params.images).min(64),
            ..self.params.looking()
        };
        // the same noises for every shift, and none that the search saw; every shift may lead to its own image or to the
        // candidate's, whichever the network agrees with: an image that it knows anyway is no evidence for the shift
        let look = |hypothesis: &Hypothesis| {
            let seed = seed.child("look", 0);
            looking.look(&probe, hypothesis, Some(&found.target), &seed)
        };
        cx.progress.start("images under controls", 0);
        let chosen = cx.stage("diff-cleanse-judged", || look(candidate))?;
        let none = Hypothesis::plain(candidate.firing, vec![0.0; candidate.shift.len()]);
        let mut compared = vec![(
            "no shift".to_owned(),
            cx.stage("diff-cleanse-none", || look(&none))?,
        )];
        let shifts = controls(&candidate.shift, probe.shape(), &seed.child("controls", 0));
        for (i, control) in shifts.into_iter().enumerate() {
            let hypothesis = candidate.with_shift(control.shift);
            let stage = format!("diff-cleanse-control-{i}");
            compared.push((control.label, cx.stage(&stage, || look(&hypothesis))?));
        }

        let reference_share = of_none(&compared, |l| l.share).max(median(&compared, |l| l.share));
        let alike = (chosen.share / reference_share).log10(); // eq. (1)
        let reference =
            of_none(&compared, |l| l.inconsistency).min(median(&compared, |l| l.inconsistency));
        let consistent = ((reference + INCONSISTENCY_FLOOR)
            / (chosen.inconsistency + INCONSISTENCY_FLOOR))
            .log10(); // eq. (2)
        let mut samples = vec![self.samples(
            "noise + inverted trigger",
            candidate.firing,
            &chosen,
            &probe,
        )];
        for (label, look) in &compared {
            let label = format!("noise + control: {label}");
            samples.push(self.samples(&label, candidate.firing, look, &probe));
        }
        let trace = found.inversion.trace.iter().map(|&(i, v)| (i as f64, v));
        let curves = vec![Curve {
            title: "Trigger inversion".into(),
            x_label: "step".into(),
            y_label: "diversity of the images, then misfit along the chain".into(),
            series: vec![("best candidate".into(), trace.collect())],
        }];
        let (tested, not_tested) = self.coverage();
        Ok(Inspection {
            score: alike.min(consistent), // eq. (3)
            score_meaning: "the smaller of the log10 gains of the best candidate trigger in the share of alike images and in \
                            consistency, over no shift and over control shifts of equal norm"
                .into(),
            comparisons: vec![
                Comparison::of(
                    "share",
                    "share of the images in the largest set of mutually similar ones; large is suspicious",
                    alike,
                    &chosen,
                    &compared,
                    |look| look.share,
                ),
                Comparison::of(
                    "inconsistency",
                    "mean squared error of the network against \"this shift leads to this image\"; small is suspicious",
                    consistent,
                    &chosen,
                    &compared,
                    |look| look.inconsistency,
                ),
            ],
            target: chosen.target.clone(),
            inversion: found.inversion,
            curves,
            samples,
            evaluations: probe.evaluations(),
            tested,
            not_tested,
        })
    }

    fn samples(&self, label: &str, firing: Firing, look: &Look, probe: &Probe<'_>) -> Samples {
        let shape = probe.shape();
        let steps = Steps {
            count: self.params.steps,
            first: probe.schedule().len() - 1,
            last: 0,
        };
        Samples {
            label: format!("{label}, in shifted coordinates"),
            sampler: match firing {
                Firing::Modified => SamplerSettings::TrojDiff {
                    steps,
                    form: TrojDiffForm::Ddim { eta: 0.0 },
                },
                _ => SamplerSettings::Ddim {
                    steps,
                    eta: 0.0,
                    clip: Clip::Range(1.5),
                    use_clipped_model_output: true,
                },
            },
            shape,
            count: look.images.len() / shape.len(),
            pixels: look.images.clone(),
        }
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

/// The statistic without any shift: the first of `compared`.
fn of_none(compared: &[(String, Look)], of: impl Fn(&Look) -> f64) -> f64 {
    compared.first().map_or(f64::NAN, |(_, look)| of(look))
}

/// Its median under the controls, the others.
fn median(compared: &[(String, Look)], of: impl Fn(&Look) -> f64) -> f64 {
    let mut values: Vec<f64> = compared.iter().skip(1).map(|(_, look)| of(look)).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
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
