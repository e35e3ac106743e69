//! # TERD, model level: how far is the inverted shift from no shift?
//!
//! A benign model's inversion should fall back towards no shift, a backdoored one's should not. The size of the inverted
//! shift, as the divergence of the triggered initial noise from the benign one, is the score.
//!
//! ## Paper
//! Mo et al., "TERD: a unified framework for safeguarding diffusion models against backdoors", ICML 2024,
//! arXiv:2409.05294: model detection.
//!
//! ## Notation
//! | code | paper | shape |
//! |---|---|---|
//! | `shift`, `gamma` | r, gamma: [`crate::invert::terd`] | `[C, H, W]` |
//! | `mean`, `variance` | M_r, V_r | |
//!
//! ## Method
//! ```text
//! KL_i = KL(N(r_i, gamma_i^2) || N(0, 1)) = -ln gamma_i + (gamma_i^2 + r_i^2 - 1) / 2   (1)
//! M_r  = mean_i KL_i,  V_r = var_i KL_i                                                 (2)
//! ```
//! The score is `M_r`; `V_r` is reported beside it. For `gamma = 1`, `M_r = || r ||^2 / (2 C H W)`.
//!
//! ## Needs
//! Gradients of the network in its input. A calibration: scores of benign models.
//!
//! ## Deviations
//! - The paper flags a model when `M_r` or `V_r` is three standard deviations above the benign mean. Here the threshold on
//!   `M_r` is conformal, so that its error rate can be stated; `V_r` alone decides nothing.
//! - The constants that the released code adds to `M_r` and `V_r` are left out: they move every model alike.
//!
//! ## Fails when
//! the inversion does: on a model whose basin no start reaches, `M_r` is that of the start, backdoored or not. The score
//! says nothing about what the model does with the shift; [`super::shift_response`] does.
//!
//! ## Cost
//! That of the inversion.

use depurate_diffusion::{
    Pipeline,
    noise::NoNoise,
    sampler::{Sampler, never_stop, sample},
};
use depurate_report::{Access, AlgorithmId, AlgorithmInfo, Kind, Status};

use super::{Comparison, Inspection, ModelDetector, Samples};
use crate::{
    Cx, DefenseError,
    invert::{
        Inversion, Inverter,
        terd::{self, TerdParams, divergence},
    },
    probe::{Probe, values},
};

/// The detector's id.
pub const ID: &str = "terd-model";
/// Images kept as evidence.
const IMAGES: usize = 4;

/// Checks the inverter's parameters and makes the detector.
///
/// # Errors
/// When a parameter is out of its range.
pub fn build(params: TerdParams) -> Result<Box<dyn ModelDetector>, DefenseError> {
    Ok(Box::new(TerdModel {
        evaluations: params.evaluations(),
        steps: params.sampler_steps,
        inverter: params.build()?,
    }))
}

struct TerdModel {
    inverter: Box<dyn Inverter>,
    evaluations: u64,
    steps: usize,
}

impl ModelDetector for TerdModel {
    fn inspect(&self, model: &Pipeline, cx: &Cx<'_>) -> Result<Inspection, DefenseError> {
        let inversion = self.inverter.invert(model, cx)?;
        let (mean, variance) = divergence(&inversion.shift, inversion.gamma.as_deref()); // eqs. (1), (2)
        let images = self.images(model, &inversion, cx)?;
        let mut not_tested = vec![
            "whether the model answers to the inverted shift: the score is its size alone".into(),
        ];
        let tested = if inversion.gamma.is_some() {
            "shifts and scales of the initial noise that leave the same error for every noise"
        } else {
            not_tested.push("scales of the initial noise (TrojDiff's gamma): kept at 1".into());
            "shifts of the initial noise that leave the same error for every noise"
        };
        let comparison = |name: &str, meaning: &str, value| Comparison {
            name: name.to_owned(),
            meaning: meaning.to_owned(),
            value,
            suspicion: value,
            controls: Vec::new(),
        };
        let evaluations = self.evaluations + (self.steps * IMAGES) as u64;
        Ok(Inspection {
            score: mean,
            score_meaning: "mean divergence M_r of the triggered initial noise from the benign one"
                .into(),
            comparisons: vec![
                comparison("M_r", "mean divergence; large is suspicious", mean),
                comparison(
                    "V_r",
                    "variance of the divergence over pixels; large is suspicious",
                    variance,
                ),
            ],
            target: images.pixels[..inversion.shift.len()].to_vec(),
            inversion,
            curves: Vec::new(),
            samples: vec![images],
            evaluations,
            tested: vec![tested.into()],
            not_tested,
        })
    }
}

impl TerdModel {
    /// What the inverter's sampler makes of triggered noise.
    fn images(
        &self,
        model: &Pipeline,
        inversion: &Inversion,
        cx: &Cx<'_>,
    ) -> Result<Samples, DefenseError> {
        let frozen = model.frozen();
        let probe = Probe::new(&frozen, cx);
        let sampler = terd::sampler(probe.schedule(), self.steps)?;
        let eps = probe.noise(&cx.rng.child(ID, 0), IMAGES)?;
        let scaled = match &inversion.gamma {
            Some(gamma) => eps * probe.image(gamma),
            None => eps,
        };
        let x_t = scaled + probe.image(&inversion.shift);
        cx.step()?;
        let images = sample(&frozen, &sampler, x_t, &mut NoNoise, &mut never_stop)?;
        Ok(Samples {
            label: "noise + inverted trigger".into(),
            sampler: sampler.settings(),
            shape: inversion.shape,
            count: IMAGES,
            pixels: values(images.clamp(-1.0, 1.0)),
        })
    }
}

/// Who and what this detector is.
pub fn info() -> AlgorithmInfo {
    AlgorithmInfo {
        id: AlgorithmId::from_static(ID),
        name: "TERD, model level",
        kind: Kind::ModelDetector,
        paper: depurate_report::Paper {
            implements: "model detection",
            ..terd::PAPER
        },
        reference: None,
        needs: Access::SCORE_FN.union(Access::GRADIENTS),
        deviations: &["conformal threshold on M_r alone"],
        status: Status::Preview,
    }
}
