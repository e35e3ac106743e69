//! # SKD-CAG: self-knowledge distillation with cross-attention guidance
//!
//! The suspect teaches itself: with the trigger in the prompt the student shall answer as the suspect does to the clean prompt, and
//! attend to its words as there.
//!
//! ## Paper
//! Jha, Aravindan, Salaway, Bhide and Yaldiz, "Sealing the backdoor: unlearning adversarial text triggers in diffusion models using
//! knowledge distillation", arXiv:2508.18235.
//!
//! ## Notation
//! | code | meaning | shape |
//! |---|---|---|
//! | `z`, `t` | a latent and its timestep, the same for both | `[B, C, h, w]` |
//! | `T(p)`, `T(p~)` | states of a clean prompt and of the triggered one; the text encoder is frozen | `[B, C, T]` |
//! | `e`, `e_B` | what student and suspect predict | `[B, C, h, w]` |
//! | `w_t` | weight of a timestep, [`TimeWeights`] | |
//! | `L_attn` | the attention term, eq. (3) of [`super::attention_loss`] | |
//!
//! ```text
//! L_pred = mean (e(z, t, T(p~)) - e_B(z, t, T(p)))^2                     (1)
//! L_keep = mean (e(z', t', T(q)) - e_B(z', t', T(q)))^2                  (2)
//! L      = alpha w_t L_attn + (1 - alpha) L_pred + keep r L_keep         (3)
//! r      = E (e_B(T(p~)) - e_B(T(p)))^2 / E (e_B(T(p')) - e_B(T(p)))^2   (4)
//! ```
//!
//! `r` is how much more the trigger changes the suspect's answers than plain words in its place do, `p'`: what is kept shall weigh as much
//! beside a patch in a corner as beside a style.
//!
//! `q` are clean prompts and, as many each, prompts near a phrase (plain words in its place, its own words there) and legitimate ones
//! (what the owner names, and what the trigger leads to: [`super::leads_to()`]); once in a batch the empty one, on which guidance rests. `z'`
//! is what the suspect draws for `q` itself, and every second time for any other, triggered ones included: a chain that has begun to
//! show the target is led back by clean prompts, too.
//!
//! ## Needs
//! The trigger, and prompts. No images: latents are noise, as published, or the suspect's own drawings ([`super::Latents`]).
//!
//! ## Deviations
//! - The released code detaches the maps, so that its attention term has no gradient, and compares the student with itself. Here the
//!   term works; `attn_grad: false` takes its gradient away again, as a control.
//! - (2) is ours, `keep: 0` leaves it out; why 2 is in docs/decisions/007, and so is why it weighs by `r`. So are latents that the model draws itself, and that a part of the network can be trained.
//! - Released weights of timesteps are `T / t`, the paper's are `t / T`; both are there, none is the default of either.
//! - The average of the weights is one: the released decay is one half by a slip.
//! - Alignment of the trigger's and the other positions is by tokens, not by a fixed number of them in front.
//!
//! ## Fails when
//! the backdoor is in the text encoder: `T(p~)` then holds nothing of `p` to draw from, and (1) takes the target's own prompt away from
//! those who ask for it. See [`super::encoder_distillation`].
//!
//! ## Cost
//! A step is forward and backward of `2 B` samples and two forward passes of the suspect of `B`; with the attention term the maps are
//! formed.

use burn::tensor::{Tensor, TensorData};
use depurate_diffusion::{
    clip_tokenizer::Tokens, noise::SeedTree, unet2d_condition::UNet2DCondition,
};
use depurate_report::Paper;
use depurate_training::StateFile;
use rand::{Rng, RngExt, seq::IndexedRandom};
use serde::{Deserialize, Serialize};

use super::{
    MapNorm, MapTap, Positions, TextEnough, TextPatient, TextRepaired, Unlearning, aligned,
    attention_loss,
    material::{Drawn, Material},
    trigger::WORDS,
    unlearning::{Lesson, unlearn},
};
use crate::{Cx, DefenseError};

/// The repair's id.
pub const ID: &str = "skd-cag";
/// That of the same without its attention term, `alpha` 0.
pub const PLAIN_ID: &str = "skd";
/// Where it comes from.
pub const PAPER: Paper = Paper {
    authors: "Jha, Aravindan, Salaway, Bhide, Yaldiz",
    title: "Sealing the Backdoor: Unlearning Adversarial Text Triggers In Diffusion Models Using Knowledge Distillation",
    venue: "arXiv",
    year: 2025,
    arxiv: Some("2508.18235"),
    implements: "the loss as described, with a gradient in its attention term",
};
/// What the attention to a trigger's positions is held against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReferenceMap {
    /// Uniform noise, another map each step: the trigger shall look nowhere in particular.
    #[default]
    Noise,
    /// Zeros.
    Black,
    /// The suspect's attention to random words in the trigger's place; it answers to them in (1), too.
    Words,
}

/// `w_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimeWeights {
    /// 1.
    #[default]
    Equal,
    /// `t / T`, as in the paper.
    Noisy,
    /// `T / t` from `t = 1`, as in the released code.
    Clean,
}

/// Parameters of the loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SkdCagParams {
    /// Share of the attention term, from 0 (plain self-distillation) to 1.
    pub alpha: f64,
    /// What the trigger's maps become.
    pub reference: ReferenceMap,
    /// How maps are normalised.
    pub norm: MapNorm,
    /// Weights of timesteps in the attention term.
    pub weights: TimeWeights,
    /// Whether the attention term has a gradient; the released one has none.
    pub attn_grad: bool,
    /// Weight of (2) where the trigger changes as much as a plain word, 0 or more.
    pub keep: f64,
    /// The training.
    pub unlearning: Unlearning,
}

impl Default for SkdCagParams {
    fn default() -> Self {
        Self {
            alpha: 0.5,
            reference: ReferenceMap::Noise,
            norm: MapNorm::MinMax,
            weights: TimeWeights::Equal,
            attn_grad: true,
            keep: 2.0,
            unlearning: Unlearning::default(),
        }
    }
}

impl SkdCagParams {
    /// Checks the ranges.
    ///
    /// # Errors
    /// The first parameter that is out of range.
    pub fn check(&self) -> Result<(), DefenseError> {
        let refuse = |field, value: f64, allowed| {
            Err(DefenseError::Params {
                field,
                value: value.to_string(),
                allowed,
            })
        };
        if !(0.0..=1.0).contains(&self.alpha) {
            return refuse("alpha", self.alpha, "0 to 1");
        }
        if !(self.keep >= 0.0 && self.keep.is_finite()) {
            return refuse("keep", self.keep, "0 or more");
        }
        Ok(())
    }
}

/// The loss around the frozen suspect.
#[derive(Debug)]
pub struct SkdCag<'a> {
    material: &'a Material,
    params: &'a SkdCagParams,
    /// `keep r`.
    keep: f64,
    seed: SeedTree,
}

/// The values of the terms of (3), each `[1]`.
#[derive(Debug, Clone)]
pub struct Terms {
    /// `w_t L_attn`; 0 where no position is compared or `alpha` is 0.
    pub attention: Tensor<1>,
    /// `L_pred`.
    pub prediction: Tensor<1>,
    /// `L_keep`.
    pub keep: Tensor<1>,
}

impl<'a> SkdCag<'a> {
    /// For the prompts of `material`.
    ///
    /// # Errors
    /// When a parameter is out of range.
    pub fn new(
        material: &'a Material,
        params: &'a SkdCagParams,
        seed: u64,
    ) -> Result<Self, DefenseError> {
        params.check()?;
        let seed = SeedTree::new(seed).child(ID, 0);
        Ok(Self {
            material,
            params,
            keep: kept_weight(params.keep, material, &seed)?,
            seed,
        })
    }

    /// The terms of (3) at `step` for `student`.
    ///
    /// # Errors
    /// When the networks cannot be run.
    pub fn terms(&self, student: &UNet2DCondition, step: usize) -> Result<Terms, DefenseError> {
        let (material, params) = (self.material, self.params);
        let seed = self.seed.child("step", step as u64);
        let count = params.unlearning.batch;
        let drawn = material.draw(count, &seed)?;
        let Drawn { indices, t, z } = &drawn;
        let mut rng = seed.child("choices", 0).rng();
        let attends = params.alpha > 0.0;
        let tap = || MapTap {
            wanted: attends,
            ..MapTap::default()
        };
        let (mut teacher_maps, mut student_maps) = (tap(), tap());

        let clean = self.clean_prompts(indices, &mut rng)?;
        let teacher = material.teacher.unet();
        let states = clean.states.clone();
        let wanted = teacher.forward(z.clone(), t, states, None, &mut teacher_maps)?;
        let on_graph = |x: Tensor<4>| Tensor::<4>::from_inner(x);
        let states = Tensor::from_inner(material.triggered.states(indices));
        let got = student.forward(on_graph(z.clone()), t, states, None, &mut student_maps)?;
        let prediction = (got - on_graph(wanted)).square().mean(); // eq. (1)
        let nothing = || prediction.zeros_like();

        let keep = if params.keep > 0.0 {
            material.kept(student, count, &seed)? // eq. (2)
        } else {
            nothing()
        };

        let attention = attends
            .then(|| {
                let positions: Vec<Positions> = indices
                    .iter()
                    .enumerate()
                    .map(|(row, &i)| Positions {
                        stand_ins: clean.stand_ins.get(row).cloned().unwrap_or_default(),
                        ..aligned(&material.triggered.tokens[i], &clean.tokens[row])
                    })
                    .collect();
                let weights: Vec<f64> = t.iter().map(|&t| self.weight(t)).collect();
                let size = student_maps.maps.largest_side();
                let words = params.reference == ReferenceMap::Words;
                let reference = (!words).then(|| self.map(size, &mut rng));
                attention_loss(
                    &student_maps.maps,
                    &teacher_maps.maps,
                    &positions,
                    reference.as_ref(),
                    (size, params.norm),
                    &weights,
                )
            })
            .flatten();
        let attention = match attention {
            Some(loss) if params.attn_grad => loss,
            Some(loss) => Tensor::from_inner(loss.inner()),
            None => nothing(),
        };
        Ok(Terms {
            attention,
            prediction,
            keep,
        })
    }

    /// What the suspect is asked instead of the triggered prompts.
    fn clean_prompts(&self, indices: &[usize], rng: &mut impl Rng) -> Result<Clean, DefenseError> {
        let material = self.material;
        let clean = &material.clean;
        if self.params.reference != ReferenceMap::Words || self.params.alpha == 0.0 {
            return Ok(Clean {
                tokens: indices.iter().map(|&i| clean.tokens[i].clone()).collect(),
                states: clean.states(indices),
                stand_ins: Vec::new(),
            });
        }
        let count = material.trigger.text().split_whitespace().count().max(1);
        let prompts: Vec<String> = indices
            .iter()
            .map(|&i| {
                let words = (0..count).filter_map(|_| WORDS.choose(rng).copied());
                let words: Vec<&str> = words.collect();
                format!("{} {}", words.join(" "), material.prompts[i])
            })
            .collect();
        let texts: Vec<&str> = prompts.iter().map(String::as_str).collect();
        let encoded = material.teacher.encode(&texts)?;
        let pairs = encoded.tokens.iter().zip(indices);
        Ok(Clean {
            stand_ins: pairs
                .map(|(with, &i)| aligned(with, &clean.tokens[i]).trigger)
                .collect(),
            tokens: encoded.tokens,
            states: encoded.states,
        })
    }

    fn weight(&self, t: usize) -> f64 {
        let all = self.material.teacher.schedule().len() as f64;
        match self.params.weights {
            TimeWeights::Equal => 1.0,
            TimeWeights::Noisy => t as f64 / all,
            TimeWeights::Clean => all / t.max(1) as f64,
        }
    }

    /// `R`, `[size size]`.
    fn map(&self, size: usize, rng: &mut impl Rng) -> Tensor<1> {
        let noise = self.params.reference == ReferenceMap::Noise;
        let values = (0..size * size).map(|_| if noise { rng.random::<f32>() } else { 0.0 });
        let data = TensorData::new(values.collect::<Vec<f32>>(), [size * size]);
        Tensor::from_inner(Tensor::from_data(data, &self.material.teacher.device()))
    }
}

/// The weight of what is kept: `keep` times `r` of (4).
pub(super) fn kept_weight(
    keep: f64,
    material: &Material,
    seed: &SeedTree,
) -> Result<f64, DefenseError> {
    Ok(match keep {
        0.0 => 0.0,
        keep => keep * material.effect(seed)?, // eq. (4)
    })
}

struct Clean {
    tokens: Vec<Tokens>,
    states: Tensor<3>,
    /// Positions of the words in the trigger's place, for each prompt.
    stand_ins: Vec<Vec<usize>>,
}

impl Lesson<UNet2DCondition> for SkdCag<'_> {
    fn loss(&self, student: &UNet2DCondition, step: usize) -> Result<Tensor<1>, DefenseError> {
        let Terms {
            attention,
            prediction,
            keep,
        } = self.terms(student, step)?;
        let alpha = self.params.alpha;
        Ok(attention * alpha + prediction * (1.0 - alpha) + keep * self.keep) // eq. (3)
    }

    fn evaluations(&self) -> u64 {
        let blocks = if self.params.keep > 0.0 { 2 } else { 1 };
        4 * blocks * self.params.unlearning.batch as u64
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
/// As [`SkdCag::new`], and when the training fails, the budget is spent or the caller asked to stop; a `state`
/// file then lets the same call go on.
pub fn skd_cag(
    (patient, material): (&TextPatient<'_>, &Material),
    params: &SkdCagParams,
    state: Option<&StateFile>,
    cx: &Cx<'_>,
    enough: TextEnough<'_>,
) -> Result<TextRepaired, DefenseError> {
    let lesson = SkdCag::new(material, params, patient.seed)?;
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
