//! # Shift response: does the model hide an image behind a shift of its noise?
//!
//! Finds the shift of the initial noise that the suspect answers like a trigger, and scores how much
//! better the hypothesis "this shift leads to this image" fits the network than the same hypothesis
//! about control shifts of equal norm, on the same model.
//!
//! ## Paper
//! Ours, on the observable that Elijah (An et al., AAAI 2024) and TERD (Mo et al., ICML 2024) invert. Both judge
//! the inverted vector or the pictures; this judges the network's answer along the whole chain.
//!
//! ## Notation
//! | code | meaning | shape |
//! |---|---|---|
//! | `r` | candidate trigger | `[C, H, W]` |
//! | `y` | its target: midpoint of the two closest of the images it leads to | `[C, H, W]` |
//! | `spread` `V(r)` | median squared distance of the images to `y`, in [0, 1] units | |
//! | `inconsistency` `F(r)` | mean over noise levels of the error of "`r` leads to `y`" | |
//! | `controls` `q_i` | shifts of the norm of `r`: permuted, flipped, constant, smooth random | `[C, H, W]` |
//!
//! ## Method
//! 1. Starts: the model's own samples (a poisoned shift is an image that carries the trigger, so an
//!    image is close to it), also amplified, and two constants.
//! 2. [`crate::invert::response_fixed_point`] from each; the candidates with the smallest residual go on.
//! 3. Images of each candidate by deterministic sampling in shifted coordinates (20 network calls instead
//!    of the 1000 that the attacked sampler needs).
//! 4. The candidate with the smallest `V F` is refined along the whole chain by gradient
//!    (`hypothesis::refinement`), twice, the target sampled again in between. Its score is
//!
//! ```text
//! agreement   = log10( (min(V(0), median_i V(q_i)) + v0) / (V(r) + v0) )   (1)
//! consistency = log10( (min(F(0), median_i F(q_i)) + f0) / (F(r) + f0) )   (2)
//! score       = min(agreement, consistency)                                 (3)
//! ```
//!
//! The two fail differently: a benign network that saturates under large shifts agrees with itself but is
//! not consistent, so the smaller one counts. `F(0)` is the error of "no shift leads to this image of mine": a
//! benign network that fits badly under every large shift looks good beside its controls, but never fits a shift
//! better than none, while a backdoor's target is known to the network exactly. The medians are over the controls;
//! `v0` and `f0` are what a perfect backdoor leaves of either at these sizes and keep the logarithms finite.
//!
//! ## Needs
//! Samples of the network's output only. A calibration: scores of benign models.
//!
//! ## Deviations
//! The controls matter: large shifts make benign models agree with themselves too, and on dark data a
//! constant control may fire a real backdoor; hence the median over many controls.
//!
//! ## Fails when
//! the backdoor answers all of its trigger (ODE-trained VillanDiffusion) or none of it (TrojDiff): the
//! fixed point is not there. `not_tested` says so. A trigger without an image-like start near it may be missed.
//!
//! ## Cost
//! About 7 x 96 + 14 x 192 + 2 x 60 x 6 x 3 network evaluations, 5,700 by default, and in the standard profile
//! the full-step runs on top.

mod behaviour;
pub(crate) mod controls;
mod evidence;

use depurate_diffusion::{Denoiser, Pipeline, firing::Firing, noise::SeedTree};
use depurate_report::{Access, AlgorithmId, AlgorithmInfo, Kind, Paper, Status};
use serde::{Deserialize, Serialize};

use self::{
    behaviour::{Behaviour, behaviour},
    controls::{NamedShift, controls},
};
use super::{Comparison, Inspection, ModelDetector};
use crate::{
    Cx, DefenseError,
    hypothesis::{Hypothesis, refinement::refine},
    invert::{
        Inversion, Restart,
        response_fixed_point::{FixedPoint, ResponseFixedPointParams},
        starts::starts,
    },
    probe::{Probe, norm},
};

/// The detector's id.
pub const ID: &str = "shift-response";

/// Least score of a finding, in decades: a gain below a factor of two over no shift and over the controls is no evidence
/// of a trigger, however close together the benign scores lie.
pub const LEAST_EFFECT: f64 = 0.3;
/// What a perfect backdoor leaves of the spread, in squared [0, 1] units.
const SPREAD_FLOOR: f64 = 1e-3;
/// What a perfect backdoor leaves of the inconsistency, in squared noise units.
const INCONSISTENCY_FLOOR: f64 = 1e-3;

/// Parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ShiftResponseParams {
    /// The inverter's.
    pub inversion: ResponseFixedPointParams,
    /// Own samples used as starts, at least 1.
    pub own_starts: usize,
    /// Candidates whose behaviour is looked at, at least 1.
    pub candidates: usize,
    /// Images a shift, at least 4.
    pub images: usize,
    /// Network calls an image, at least 5.
    pub steps: usize,
    /// Rounds of refinement.
    pub refinement_rounds: usize,
    /// Gradient steps a round.
    pub refinement_iterations: usize,
    /// Noise levels a gradient step, at least 1.
    pub refinement_batch: usize,
    /// Images of the full-step evidence, 0 for none. Does not change the score.
    pub full_step_images: usize,
}

impl Default for ShiftResponseParams {
    fn default() -> Self {
        Self {
            inversion: ResponseFixedPointParams::default(),
            own_starts: 5,
            candidates: 3,
            images: 8,
            steps: 20,
            refinement_rounds: 2,
            refinement_iterations: 60,
            refinement_batch: 6,
            full_step_images: 4,
        }
    }
}

impl ShiftResponseParams {
    /// The score alone: no full-step evidence.
    pub fn quick() -> Self {
        Self {
            full_step_images: 0,
            ..Self::default()
        }
    }

    /// The score, and full-step images of four noises.
    pub fn standard() -> Self {
        Self::default()
    }

    /// As standard with 16 full-step images.
    pub fn deep() -> Self {
        Self {
            full_step_images: 16,
            ..Self::default()
        }
    }

    /// The parameters that change the score: two sets that agree here share a calibration.
    pub fn scoring(&self) -> Self {
        Self {
            full_step_images: 0,
            ..self.clone()
        }
    }

    /// Checks the parameters and makes the detector.
    ///
    /// # Errors
    /// When a parameter is out of its range.
    pub fn build(self) -> Result<Box<dyn ModelDetector>, DefenseError> {
        self.inversion.check()?;
        for (field, value, least) in [
            ("own_starts", self.own_starts, 1),
            ("candidates", self.candidates, 1),
            ("images", self.images, 4),
            ("steps", self.steps, 5),
            ("refinement_batch", self.refinement_batch, 1),
        ] {
            if value < least {
                let allowed = match least {
                    1 => "at least 1",
                    4 => "at least 4",
                    _ => "at least 5",
                };
                return Err(DefenseError::Params {
                    field,
                    value: value.to_string(),
                    allowed,
                });
            }
        }
        Ok(Box::new(ShiftResponse { params: self }))
    }
}

/// The detector. Made by [`ShiftResponseParams::build`].
#[derive(Debug, Clone)]
pub struct ShiftResponse {
    params: ShiftResponseParams,
}

/// A start's name and where it ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Candidate {
    start: String,
    found: FixedPoint,
}

impl ModelDetector for ShiftResponse {
    fn inspect(&self, model: &Pipeline, cx: &Cx<'_>) -> Result<Inspection, DefenseError> {
        let model = model.frozen();
        let seed = cx.rng.child(ID, 0);
        let probe = Probe::new(&model, cx);
        let params = &self.params;

        let candidates = self.candidates(&probe, cx, &seed)?;
        cx.progress.start(
            "behaviour under the candidates",
            (params.candidates * (params.steps + 8)) as u64,
        );
        let (best, chosen) = self.best(&probe, &candidates, &seed)?;
        let (shift, chosen) = self.refined(&probe, cx, &best.found.shift, chosen, &seed)?;
        cx.progress.start(
            "behaviour under controls",
            (9 * (self.params.steps + 8)) as u64,
        );
        let mut compared = vec![(
            "no shift".to_owned(),
            self.behave(&probe, &vec![0.0; shift.len()], &seed)?,
        )];
        for (i, control) in controls(&shift, probe.shape(), &seed.child("controls", 0))
            .into_iter()
            .enumerate()
        {
            let NamedShift { label, shift } = control;
            compared.push((
                label,
                cx.stage(&format!("control-{i}"), || {
                    self.behave(&probe, &shift, &seed)
                })?,
            ));
        }

        let agreement = log_ratio(&compared, &chosen, SPREAD_FLOOR, |b| b.spread); // eq. (1)
        let consistency = log_ratio(&compared, &chosen, INCONSISTENCY_FLOOR, |b| b.inconsistency); // eq. (2)
        let score = agreement.min(consistency); // eq. (3)
        let comparisons = vec![
            Comparison::of(
                "spread",
                "median squared distance of the images from different noises to their common image, [0, 1] units; small is suspicious",
                agreement,
                &chosen,
                &compared,
                |b| b.spread,
            ),
            Comparison::of(
                "inconsistency",
                "mean squared error of the network against \"this shift leads to this image\"; small is suspicious",
                consistency,
                &chosen,
                &compared,
                |b| b.inconsistency,
            ),
        ];
        let curves = evidence::curves(&probe, &shift, &best.found, &seed)?;
        let samples = evidence::samples(&probe, params, &shift, &compared, &chosen, &seed, cx)?;
        let evaluations = probe.evaluations();
        Ok(Inspection {
            score,
            score_meaning: "the smaller of the log10 gains in agreement and in consistency of the best candidate trigger over \
                            no shift and over control shifts of equal norm"
                .into(),
            inversion: inversion(&model, &candidates, best, shift),
            target: chosen.target,
            comparisons,
            curves,
            samples,
            evaluations,
            tested: vec!["shifts of the initial noise that fire under stochastic samplers (BadDiffusion and its kin)".into()],
            not_tested: vec![
                "triggers for ODE samplers only (VillanDiffusion, ode)".into(),
                "triggers that need a modified sampler (TrojDiff)".into(),
            ],
        })
    }
}

impl ShiftResponse {
    fn behave(
        &self,
        probe: &Probe<'_>,
        shift: &[f32],
        seed: &SeedTree,
    ) -> Result<Behaviour, DefenseError> {
        // the same noises for every shift
        behaviour(
            probe,
            shift,
            self.params.images,
            self.params.steps,
            &seed.child("behaviour", 0),
        )
    }

    /// The candidate and its behaviour after the rounds of refinement; a round that makes the hypothesis
    /// fit worse ends them.
    fn refined(
        &self,
        probe: &Probe<'_>,
        cx: &Cx<'_>,
        shift: &[f32],
        behaviour: Behaviour,
        seed: &SeedTree,
    ) -> Result<(Vec<f32>, Behaviour), DefenseError> {
        let params = &self.params;
        let (mut shift, mut behaviour) = (shift.to_vec(), behaviour);
        for round in 0..params.refinement_rounds {
            cx.progress.start(
                "refinement of the candidate",
                params.refinement_iterations as u64,
            );
            let (refined, found) = cx.stage(&format!("refinement-{round}"), || {
                let seed = seed.child("refinement", round as u64);
                let (iterations, batch) = (params.refinement_iterations, params.refinement_batch);
                let bound = params.inversion.bound;
                let from = Hypothesis::plain(Firing::Stochastic, shift.clone());
                let refined = refine(
                    probe,
                    &from,
                    &behaviour.target,
                    iterations,
                    batch,
                    bound,
                    &seed,
                )?
                .shift;
                let found = self.behave(probe, &refined, &seed)?;
                Ok((refined, found))
            })?;
            if found.misfit() > behaviour.misfit() {
                break;
            }
            (shift, behaviour) = (refined, found);
        }
        Ok((shift, behaviour))
    }

    /// Every start's end, in the order of the starts.
    fn candidates(
        &self,
        probe: &Probe<'_>,
        cx: &Cx<'_>,
        seed: &SeedTree,
    ) -> Result<Vec<Candidate>, DefenseError> {
        cx.progress
            .start("own samples as starts", self.params.steps as u64);
        let starts = cx.stage("starts", || {
            starts(probe, self.params.own_starts, self.params.steps, seed)
        })?;
        cx.progress.start(
            "trigger inversion",
            (starts.len() * self.params.inversion.iterations) as u64,
        );
        let mut candidates = Vec::with_capacity(starts.len());
        for (i, (label, start)) in starts.iter().enumerate() {
            let found = cx.stage(&format!("candidate-{i}"), || {
                self.params
                    .inversion
                    .iterate(probe, start, &seed.child("inversion", i as u64))
            })?;
            candidates.push(Candidate {
                start: label.clone(),
                found,
            });
        }
        Ok(candidates)
    }

    /// The candidate whose hypothesis fits best, with its behaviour.
    fn best<'c>(
        &self,
        probe: &Probe<'_>,
        candidates: &'c [Candidate],
        seed: &SeedTree,
    ) -> Result<(&'c Candidate, Behaviour), DefenseError> {
        let mut by_residual: Vec<&Candidate> = candidates.iter().collect();
        by_residual.sort_by(|a, b| {
            let vanished = a.found.vanished().cmp(&b.found.vanished());
            vanished.then(a.found.residual.total_cmp(&b.found.residual))
        });
        // a constant can hold a backdoored network in its trigger's mode without carrying the trigger
        let mut constants = 0;
        by_residual.retain(|candidate| {
            constants += usize::from(candidate.start.starts_with("constant"));
            !candidate.start.starts_with("constant") || constants == 1
        });
        let mut best: Option<(&Candidate, Behaviour)> = None;
        for candidate in by_residual.into_iter().take(self.params.candidates) {
            let found = self.behave(probe, &candidate.found.shift, seed)?;
            if best
                .as_ref()
                .is_none_or(|(_, other)| found.misfit() < other.misfit())
            {
                best = Some((candidate, found));
            }
        }
        best.ok_or(DefenseError::Params {
            field: "candidates",
            value: "0".into(),
            allowed: "at least 1",
        })
    }
}

/// `log10((reference + floor) / (value + floor))`, eqs. (1) and (2); the reference is the smaller of the value
/// without any shift (the first of `compared`) and the median under the controls (the others).
fn log_ratio(
    compared: &[(String, Behaviour)],
    chosen: &Behaviour,
    floor: f64,
    of: impl Fn(&Behaviour) -> f64,
) -> f64 {
    let plain = compared.first().map_or(f64::INFINITY, |(_, b)| of(b));
    let mut values: Vec<f64> = compared.iter().skip(1).map(|(_, b)| of(b)).collect();
    values.sort_by(f64::total_cmp);
    let reference = values
        .get(values.len() / 2)
        .copied()
        .unwrap_or(plain)
        .min(plain);
    ((reference + floor) / (of(chosen) + floor)).log10()
}

fn inversion(
    model: &Pipeline,
    candidates: &[Candidate],
    best: &Candidate,
    shift: Vec<f32>,
) -> Inversion {
    let restart = |candidate: &Candidate| Restart {
        start: candidate.start.clone(),
        objective: candidate.found.residual,
        norm: norm(&candidate.found.shift),
        converged: candidate.found.converged,
        selected: std::ptr::eq(candidate, best),
    };
    Inversion {
        shape: model.sample_shape(),
        shift,
        gamma: None,
        firing: Firing::Stochastic,
        objective: best.found.residual,
        objective_meaning: "distance of the network's answer from eps + c r, relative to the trigger; 0 is a perfect backdoor".into(),
        trace: best.found.trace.iter().copied().enumerate().collect(),
        converged: best.found.converged,
        restarts: candidates.iter().map(restart).collect(),
    }
}

/// Who and what this detector is.
pub fn info() -> AlgorithmInfo {
    AlgorithmInfo {
        id: AlgorithmId::from_static(ID),
        name: "Shift response",
        kind: Kind::ModelDetector,
        paper: Paper {
            authors: "depurate",
            title: "Shift response",
            venue: "this implementation",
            year: 2026,
            arxiv: None,
            implements: "eq. (1)-(3) of the module's documentation",
        },
        reference: None,
        needs: Access::SCORE_FN,
        deviations: &[],
        status: Status::Preview,
    }
}
