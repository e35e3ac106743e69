//! # SAU in the weights: self-distillation where a trigger acts
//!
//! The edit of [`super::sau_latent`] needs the clean picture at hand. Here the model is taught to draw it: with the trigger in the
//! prompt it shall answer as the suspect does to the clean prompt at the places that the trigger changes, and as before elsewhere.
//!
//! ## Paper
//! Our reconstruction, so that a repaired checkpoint exists; the idea of where to act is that of Jha et al., "Backdoor defense in
//! diffusion models via spatial attention unlearning", arXiv:2504.18563, which changes no weights. None of the weights below is
//! published.
//!
//! ## Notation
//! | code | meaning | shape |
//! |---|---|---|
//! | `D`, `A` | where the trigger acts, and the attention to it: [`super::Footprint`] | `[h, w]` |
//! | `m` | the mask, 0 to 1 | `[h, w]` |
//! | `p~`, `p`, `q` | a triggered prompt, its clean one, prompts to keep; `z`, `t` a latent and its timestep | |
//! | `e`, `e_B` | what student and suspect predict | `[B, C, h, w]` |
//! | `A_l(k)` | the student's attention to the trigger's position `k` in layer `l`, mean over heads | `[h, w]` |
//!
//! ```text
//! m = min(sigma(12 (D - 0.5)) + 0.5 sigma(12 (A - 0.3)), 1);  1 everywhere if its mean is above 0.6      (1)
//! L = mean m (e(p~) - e_B(p))^2                                                                         (2)
//!   + outside mean (1 - m) (e(p~) - e_B(p~))^2                                                          (3)
//!   + keep r mean (e(q) - e_B(q))^2                                                                     (4)
//!   + attention mean_(l, k) m A_l(k)                                                                    (5)
//! ```
//!
//! `r` is that of [`super::skd_cag`]. With `m = 1` it is the plain self-distillation of [`super::skd_cag`] and (5): a trigger that changes the whole picture has no place.
//!
//! ## Needs
//! The trigger, and prompts. No images.
//!
//! ## Deviations
//! All of it is ours, see above.
//!
//! ## Fails when
//! as [`super::skd_cag`]; and where the trigger's place differs from prompt to prompt, since the mask is one.
//!
//! ## Cost
//! A step is forward and backward of `2 B` samples and three forward passes of the suspect of `B`; before them, pairs of drawings for
//! the mask.

use burn::tensor::{Tensor, activation::sigmoid};
use depurate_diffusion::{NoTap, noise::SeedTree, unet2d_condition::UNet2DCondition};
use depurate_report::Paper;
use depurate_training::StateFile;
use serde::{Deserialize, Serialize};

use super::{
    Footprint, MapNorm, MapTap, TextEnough, TextPatient, TextRepaired, Trained, Unlearning,
    footprint::spread,
    material::{Drawn, Material},
    sau_latent::{ATTENTION, SECONDARY, STEEP},
    skd_cag::kept_weight,
    unlearning::{Lesson, unlearn},
};
use crate::{Cx, DefenseError};

/// The repair's id.
pub const ID: &str = "sau-weights";
/// Where it comes from.
pub const PAPER: Paper = Paper {
    implements: "its idea in the weights: eq. (1) to (5) of the module's documentation, ours",
    ..super::sau_latent::PAPER
};
/// Threshold of `D` in (1).
const CHANGE: f64 = 0.5;
/// A mask of a larger mean is of the whole picture.
const WHOLE: f64 = 0.6;

/// Parameters of the loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SauWeightsParams {
    /// Weight of (3), 0 or more.
    pub outside: f64,
    /// Weight of (4) where the trigger changes as much as a plain word, 0 or more.
    pub keep: f64,
    /// Weight of (5), 0 or more.
    pub attention: f64,
    /// Pairs of pictures for the mask, at least 1.
    pub pairs: usize,
    /// How they are drawn: deterministic steps and guidance.
    pub drawing: (usize, f64),
    /// The training.
    pub unlearning: Unlearning,
}

impl Default for SauWeightsParams {
    fn default() -> Self {
        Self {
            outside: 0.1,
            keep: 2.0,
            attention: 0.1,
            pairs: 32,
            drawing: (25, 4.0),
            unlearning: Unlearning {
                trained: Trained::CrossAttention,
                ..Unlearning::default()
            },
        }
    }
}

impl SauWeightsParams {
    /// Checks the ranges.
    ///
    /// # Errors
    /// The first parameter that is out of range.
    pub fn check(&self) -> Result<(), DefenseError> {
        for (field, value) in [
            ("outside", self.outside),
            ("keep", self.keep),
            ("attention", self.attention),
        ] {
            if !(value >= 0.0 && value.is_finite()) {
                return Err(DefenseError::Params {
                    field,
                    value: value.to_string(),
                    allowed: "0 or more",
                });
            }
        }
        if self.pairs == 0 {
            return Err(DefenseError::Params {
                field: "pairs",
                value: "0".into(),
                allowed: "at least 1",
            });
        }
        Ok(())
    }
}

/// `m` of (1), `[h, w]`.
pub fn mask(footprint: &Footprint) -> Tensor<2> {
    let soft = |x: &Tensor<2>, at: f64| sigmoid((x.clone() - at) * STEEP);
    let (change, attention) = (&footprint.change, &footprint.attention);
    let m = (soft(change, CHANGE) + soft(attention, ATTENTION) * SECONDARY).clamp(0.0, 1.0); // eq. (1)
    if m.clone().mean().into_scalar::<f32>() > WHOLE as f32 {
        m.ones_like()
    } else {
        m
    }
}

/// The loss around the frozen suspect.
#[derive(Debug)]
pub struct SauWeights<'a> {
    material: &'a Material,
    params: &'a SauWeightsParams,
    /// `m`.
    mask: Tensor<2>,
    /// `keep r`.
    keep: f64,
    seed: SeedTree,
}

/// The values of (2) to (5), each `[1]`.
#[derive(Debug, Clone)]
pub struct Terms {
    /// (2).
    pub inside: Tensor<1>,
    /// (3), before its weight.
    pub outside: Tensor<1>,
    /// (4), before its weight.
    pub keep: Tensor<1>,
    /// (5), before its weight.
    pub attention: Tensor<1>,
}

impl<'a> SauWeights<'a> {
    /// For the prompts of `material` and a mask `[h, w]` of the latents' size.
    ///
    /// # Errors
    /// When a parameter is out of range or the mask is of another size.
    pub fn new(
        material: &'a Material,
        params: &'a SauWeightsParams,
        mask: Tensor<2>,
        seed: u64,
    ) -> Result<Self, DefenseError> {
        params.check()?;
        let shape = material.teacher.latent_shape();
        if mask.dims() != [shape.height, shape.width] {
            return Err(DefenseError::Params {
                field: "mask",
                value: format!("{:?}", mask.dims()),
                allowed: "the latents' height and width",
            });
        }
        let seed = SeedTree::new(seed).child(ID, 0);
        Ok(Self {
            material,
            params,
            mask,
            keep: kept_weight(params.keep, material, &seed)?,
            seed,
        })
    }

    /// The terms at `step` for `student`.
    ///
    /// # Errors
    /// When the networks cannot be run.
    pub fn terms(&self, student: &UNet2DCondition, step: usize) -> Result<Terms, DefenseError> {
        let material = self.material;
        let seed = self.seed.child("step", step as u64);
        let count = self.params.unlearning.batch;
        let drawn = material.draw(count, &seed)?;
        let Drawn { indices, t, z } = &drawn;
        let teacher = material.teacher.unet();
        let suspect = |states: &Tensor<3>| {
            teacher
                .forward(z.clone(), t, states.clone(), None, &mut NoTap)
                .map(Tensor::<4>::from_inner)
        };
        let mut tap = MapTap {
            wanted: self.params.attention > 0.0,
            ..MapTap::default()
        };
        let triggered = material.triggered.states(indices);
        let states = Tensor::from_inner(triggered.clone());
        let got = student.forward(Tensor::from_inner(z.clone()), t, states, None, &mut tap)?;
        let m = Tensor::<4>::from_inner(spread(&self.mask, got.dims()));
        let clean = suspect(&material.clean.states(indices))?;
        let inside = ((got.clone() - clean).square() * m.clone()).mean(); // eq. (2)
        let zero = || inside.zeros_like();
        let outside = if self.params.outside > 0.0 {
            let old = suspect(&triggered)?;
            ((got - old).square() * (m.neg() + 1.0)).mean() // eq. (3)
        } else {
            zero()
        };
        let keep = if self.params.keep > 0.0 {
            material.kept(student, count, &seed)? // eq. (4)
        } else {
            zero()
        };
        let [height, width] = self.mask.dims();
        let rows = material.trigger_rows(indices);
        let maps = Some(rows)
            .filter(|rows| !rows.is_empty())
            .and_then(|rows| tap.maps.normalised(&rows, (height, width), MapNorm::None));
        let attention = maps.map_or_else(zero, |maps| {
            let mask: Tensor<2> = self.mask.clone().reshape([1, height * width]);
            let mask = Tensor::<2>::from_inner(mask).expand(maps.dims());
            (maps * mask).mean() / tap.maps.layers() as f64 // eq. (5)
        });
        Ok(Terms {
            inside,
            outside,
            keep,
            attention,
        })
    }
}

impl Lesson<UNet2DCondition> for SauWeights<'_> {
    fn loss(&self, student: &UNet2DCondition, step: usize) -> Result<Tensor<1>, DefenseError> {
        let terms = self.terms(student, step)?;
        let params = self.params;
        Ok(terms.inside
            + terms.outside * params.outside
            + terms.keep * self.keep
            + terms.attention * params.attention)
    }

    fn evaluations(&self) -> u64 {
        let of = |weight: f64, count: u64| if weight > 0.0 { count } else { 0 };
        let each = 4 + of(self.params.outside, 1) + of(self.params.keep, 4);
        each * self.params.unlearning.batch as u64
    }

    fn describe(&self) -> String {
        let trigger = self.material.trigger.describe();
        let Material { shown, prompts, .. } = self.material;
        format!(
            "{ID} | {:?} | {trigger} | {shown:?} | {prompts:?}",
            self.params
        )
    }
}

/// Repairs the denoiser of `patient`, whose own `material` is.
///
/// # Errors
/// As [`SauWeights::new`], and when the training fails, the budget is spent or the caller asked to stop; a
/// `state` file then lets the same call go on.
pub fn sau_weights(
    (patient, material): (&TextPatient<'_>, &Material),
    params: &SauWeightsParams,
    state: Option<&StateFile>,
    cx: &Cx<'_>,
    enough: TextEnough<'_>,
) -> Result<TextRepaired, DefenseError> {
    params.check()?;
    let seed = SeedTree::new(patient.seed).child(ID, 0);
    let footprint = Footprint::of(material, params.pairs, params.drawing, &seed, cx)?;
    let lesson = SauWeights::new(material, params, mask(&footprint), patient.seed)?;
    unlearn(
        patient.suspect.unet().clone(),
        &lesson,
        (&params.unlearning, patient.seed),
        &|unet| patient.suspect.with_unet(unet),
        state,
        cx,
        enough,
    )
}
