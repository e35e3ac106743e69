//! What repairs of a text-to-image model learn from: the suspect itself, prompts with and without the trigger, and latents.

use std::ops::Range;

use burn::tensor::{Tensor, TensorData};
use depurate_diffusion::{
    NoTap,
    clip_tokenizer::Tokens,
    noise::{NoNoise, NoiseSource, SeedTree},
    sampler::{Chain, Clip, Ddim},
    text_to_image::TextToImage,
    unet2d_condition::UNet2DCondition,
};
use rand::{Rng, RngExt, seq::SliceRandom};
use serde::{Deserialize, Serialize};

use super::{TextTrigger, stand_ins};
use crate::{Cx, DefenseError};

/// Prompts near the trigger that are kept, at most.
const NEAR: usize = 96;
/// Batches that a trigger's effect is measured by.
const EFFECT_BATCHES: u64 = 4;
/// The smallest and the largest effect that counts.
const EFFECT: Range<f64> = 0.1..10.0;
/// Prompts that pass a network together where nothing is learnt.
pub(super) const BATCH: usize = 16;

/// The latents that a repair shows to student and teacher.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Latents {
    /// Pure noise whatever the timestep, as published: no sample of the model below the highest timesteps.
    Noise,
    /// What the suspect draws for the clean prompts, with noise added as the schedule says.
    Own {
        /// Deterministic steps of a drawing.
        steps: usize,
        /// Guidance of a drawing.
        guidance: f64,
    },
    /// The same, and as many drawn for the triggered prompts: a chain that has begun to show the target is led back, too.
    Both {
        /// Deterministic steps of a drawing.
        steps: usize,
        /// Guidance of a drawing.
        guidance: f64,
    },
}

impl Default for Latents {
    fn default() -> Self {
        Self::Own {
            steps: 25,
            guidance: 4.0,
        }
    }
}

/// A suspect that is repaired of a text trigger.
#[derive(Clone, Copy)]
pub struct TextPatient<'a> {
    /// On an autodiff device.
    pub suspect: &'a TextToImage,
    /// What is unlearnt.
    pub trigger: &'a TextTrigger,
    /// Clean prompts; those without a place for the trigger are used for keeping alone.
    pub prompts: &'a [String],
    /// Prompts that must draw as before above all, such as ask for what the trigger leads to; none if nobody knows them.
    pub legitimate: &'a [String],
    /// Root of the repair's randomness.
    pub seed: u64,
}

impl TextPatient<'_> {
    /// The prompts that have a place for the trigger, at least one.
    fn all_fitting(&self) -> Result<Vec<String>, DefenseError> {
        let fits = |prompt: &&String| self.trigger.put(prompt).is_some();
        let all: Vec<String> = self.prompts.iter().filter(fits).cloned().collect();
        if all.is_empty() {
            return Err(DefenseError::Params {
                field: "prompts",
                value: format!("{} of them", self.prompts.len()),
                allowed: "some that have a place for the trigger",
            });
        }
        Ok(all)
    }

    /// What is near a phrase: some of the `fitting` prompts with one of its words alone in its place, or, one in three, with plain words
    /// there. Nothing is near a trigger that means nothing.
    fn near(&self, fitting: &[String]) -> Vec<String> {
        if !matches!(self.trigger, TextTrigger::Phrase { .. }) {
            return Vec::new();
        }
        let some = fitting.iter().take(NEAR).enumerate();
        let near = some.filter_map(|(i, prompt)| {
            match i % 3 {
                2 => None,
                _ => self.trigger.put_a_word(prompt, i),
            }
            .or_else(|| self.trigger.put_instead(prompt, i))
        });
        near.collect()
    }

    /// `count` of them; some come again where there are fewer.
    pub(super) fn fitting(&self, count: usize) -> Result<Vec<String>, DefenseError> {
        let all = self.all_fitting()?;
        Ok(all.into_iter().cycle().take(count).collect())
    }
}

/// The suspect, frozen, and the prompts as it takes them.
#[derive(Debug)]
pub struct Material {
    pub(super) teacher: TextToImage,
    pub(super) trigger: TextTrigger,
    /// Prompts that have a place for the trigger.
    pub(super) prompts: Vec<String>,
    /// Where each of them is in `kept`.
    among_kept: Vec<usize>,
    pub(super) clean: Encoded,
    pub(super) triggered: Encoded,
    /// Prompts that shall stay as they are: all clean ones, behind them those near the trigger, the legitimate ones, and last the empty
    /// one.
    pub(super) kept: Encoded,
    /// Where the clean ones, those near the trigger and the legitimate ones are in `kept`.
    parts: [Range<usize>; 3],
    /// What `latents` are.
    pub(super) shown: Latents,
    /// One for each of `kept` but the empty one, `[K, C, h, w]`, and behind them one for each triggered prompt, if those are shown.
    latents: Option<Tensor<4>>,
}

/// Prompts as tokens and states.
#[derive(Debug)]
pub(super) struct Encoded {
    pub(super) tokens: Vec<Tokens>,
    /// `[N, C, T]`.
    states: Tensor<3>,
}

impl Encoded {
    pub(super) fn of(model: &TextToImage, prompts: &[String]) -> Result<Self, DefenseError> {
        let (mut tokens, mut states) = (Vec::new(), Vec::new());
        for some in prompts.chunks(BATCH) {
            let texts: Vec<&str> = some.iter().map(String::as_str).collect();
            let encoded = model.encode(&texts)?;
            tokens.extend(encoded.tokens);
            states.push(encoded.states);
        }
        let states = Tensor::cat(states, 0);
        Ok(Self { tokens, states })
    }

    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// States of the prompts `indices`, `[B, C, T]`.
    pub(super) fn states(&self, indices: &[usize]) -> Tensor<3> {
        chosen(&self.states, indices)
    }
}

pub(super) fn chosen<const D: usize>(all: &Tensor<D>, indices: &[usize]) -> Tensor<D> {
    let at: Vec<i64> = indices.iter().map(|&i| i as i64).collect();
    let at = Tensor::from_data(TensorData::new(at, [indices.len()]), &all.device());
    all.clone().select(0, at)
}

/// What one step shows.
pub(super) struct Drawn {
    /// Of the prompts.
    pub(super) indices: Vec<usize>,
    pub(super) t: Vec<usize>,
    /// `[B, C, h, w]`.
    pub(super) z: Tensor<4>,
}

impl Material {
    /// Encodes the prompts and has the suspect draw the latents that are `shown` for them.
    ///
    /// # Errors
    /// When no prompt has a place for the trigger, the tokenizer drops it or cuts a prompt off, the model cannot be run, the budget
    /// is spent or the caller asked to stop.
    pub fn new(
        patient: &TextPatient<'_>,
        shown: Latents,
        cx: &Cx<'_>,
    ) -> Result<Self, DefenseError> {
        let teacher = patient.suspect.frozen();
        let prompts = patient.all_fitting()?;
        let with = |prompt: &String| patient.trigger.put(prompt);
        let among_kept = (0..patient.prompts.len())
            .filter(|&i| with(&patient.prompts[i]).is_some())
            .collect();
        let triggered: Vec<String> = prompts.iter().filter_map(with).collect();
        let near = patient.near(&prompts);
        let empty = [String::new()];
        let kept = [patient.prompts, &near, patient.legitimate, &empty].concat();
        let clean_to = patient.prompts.len();
        let near_to = clean_to + near.len();
        let parts = [0..clean_to, clean_to..near_to, near_to..kept.len() - 1];
        let (clean, triggered) = (
            Encoded::of(&teacher, &prompts)?,
            Encoded::of(&teacher, &triggered)?,
        );
        if clean.tokens == triggered.tokens {
            return Err(DefenseError::Params {
                field: "trigger",
                value: patient.trigger.describe(),
                allowed: "text that the tokenizer does not drop",
            });
        }
        let kept = Encoded::of(&teacher, &kept)?;
        let seed = SeedTree::new(patient.seed).child("own latents", 0);
        let own = |of: &Encoded, count, how| {
            let all: Vec<usize> = (0..count).collect();
            drawn(&teacher, (of, &all), how, &seed, cx)
        };
        let of_clean = |how| own(&kept, kept.len() - 1, how);
        let latents = match shown {
            Latents::Noise => None,
            Latents::Own { steps, guidance } => Some(of_clean((steps, guidance))?),
            Latents::Both { steps, guidance } => {
                let how = (steps, guidance);
                let both = vec![of_clean(how)?, own(&triggered, prompts.len(), how)?];
                Some(Tensor::cat(both, 0))
            }
        };
        Ok(Self {
            kept,
            among_kept,
            parts,
            trigger: patient.trigger.clone(),
            teacher,
            prompts,
            clean,
            triggered,
            shown,
            latents,
        })
    }

    /// States of the clean prompts `indices`, position by position as the triggered ones shall read, `[B, C, T]`:
    /// [`super::stand_ins`].
    pub(super) fn wanted_states(&self, indices: &[usize]) -> Tensor<3> {
        let rows = indices.iter().map(|&i| {
            let at = stand_ins(&self.triggered.tokens[i], &self.clean.tokens[i]);
            let states = self.clean.states(&[i]).swap_dims(1, 2);
            let [_, tokens, channels] = states.dims();
            let states: Tensor<2> = states.reshape([tokens, channels]);
            let rows = chosen(&states, &at);
            rows.reshape([1, tokens, channels]).swap_dims(1, 2)
        });
        Tensor::cat(rows.collect(), 0)
    }

    /// `count` prompts that have a place for the trigger, none twice before all are there.
    pub(super) fn some_prompts(&self, count: usize, rng: &mut impl Rng) -> Vec<usize> {
        let mut all: Vec<usize> = (0..self.prompts.len()).collect();
        all.shuffle(rng);
        all.into_iter().cycle().take(count).collect()
    }

    /// `count` prompts to keep: the empty one, on which guidance rests, and clean ones, those near the trigger and legitimate ones in turn.
    pub(super) fn some_kept(&self, count: usize, rng: &mut impl Rng) -> Vec<usize> {
        let parts: Vec<&Range<usize>> = self.parts.iter().filter(|part| !part.is_empty()).collect();
        let others = parts.iter().cycle().take(count.saturating_sub(1));
        let mut kept: Vec<usize> = others
            .map(|part| rng.random_range((*part).clone()))
            .collect();
        kept.push(self.kept.len() - 1);
        kept
    }

    /// `count` prompts with timesteps and latents, decided by `seed`.
    pub(super) fn draw(&self, count: usize, seed: &SeedTree) -> Result<Drawn, DefenseError> {
        let mut rng = seed.child("samples", 0).rng();
        let indices = self.some_prompts(count, &mut rng);
        let t = self.some_timesteps(count, &mut rng);
        let clean = self.kept.len() - 1;
        let of: Vec<usize> = match &self.latents {
            Some(latents) if latents.dims()[0] > clean => {
                let either = |&i: &usize| match rng.random() {
                    true => clean + i,
                    false => self.among_kept[i],
                };
                indices.iter().map(either).collect()
            }
            _ => indices.iter().map(|&i| self.among_kept[i]).collect(),
        };
        let z = self.noisy(&of, &t, &seed.child("noise", 0))?;
        Ok(Drawn { indices, t, z })
    }

    /// How much more the trigger changes the suspect's answers than plain words in its place do: the ratio of the mean squared changes,
    /// within [`EFFECT`].
    ///
    /// # Errors
    /// When the model cannot be run.
    pub fn effect(&self, seed: &SeedTree) -> Result<f64, DefenseError> {
        let (mut trigger, mut word) = (0.0, 0.0);
        for batch in 0..EFFECT_BATCHES {
            let Drawn { indices, t, z } = self.draw(BATCH, &seed.child("effect", batch))?;
            let with_word = indices.iter().enumerate().map(|(row, &i)| {
                let prompt = &self.prompts[i];
                let put = self.trigger.put_instead(prompt, row);
                put.unwrap_or_else(|| prompt.clone())
            });
            let with_word = Encoded::of(&self.teacher, &with_word.collect::<Vec<_>>())?;
            let answer = |states: Tensor<3>| {
                let unet = self.teacher.unet();
                unet.forward(z.clone(), &t, states, None, &mut NoTap)
            };
            let clean = answer(self.clean.states(&indices))?;
            let change = |states: Tensor<3>| -> Result<f64, DefenseError> {
                let change = (answer(states)? - clean.clone()).square().mean();
                Ok(f64::from(change.into_scalar::<f32>()))
            };
            trigger += change(self.triggered.states(&indices))?;
            word += change(with_word.states)?;
        }
        Ok((trigger / word.max(f64::MIN_POSITIVE)).clamp(EFFECT.start, EFFECT.end))
    }

    /// A drawing; every second one is of a triggered prompt where those are shown.
    fn any_latent(&self, rng: &mut impl Rng) -> usize {
        let of_clean = self.kept.len() - 1;
        let all = self.latents.as_ref().map_or(0, |latents| latents.dims()[0]);
        match rng.random() {
            true if all > of_clean => rng.random_range(of_clean..all),
            _ => rng.random_range(0..of_clean),
        }
    }

    fn some_timesteps(&self, count: usize, rng: &mut impl Rng) -> Vec<usize> {
        let all = self.teacher.schedule().len();
        (0..count).map(|_| rng.random_range(0..all)).collect()
    }

    /// The latents `of` with noise of `t`, or pure noise where none are shown, `[B, C, h, w]`.
    fn noisy(&self, of: &[usize], t: &[usize], seed: &SeedTree) -> Result<Tensor<4>, DefenseError> {
        let shape = self.teacher.latent_shape().batched(of.len());
        let mut source = seed.noise(0, of.len());
        let eps = source.normal(shape, &self.teacher.device())?;
        Ok(match &self.latents {
            None => eps,
            Some(latents) => {
                let schedule = self.teacher.schedule();
                schedule.add_noise(chosen(latents, of), eps, t)?
            }
        })
    }

    /// `mean (e(z, t, T(q)) - e_B(z, t, T(q)))^2` over `count` prompts `q` to keep, `[1]`: `z` is what the suspect draws for
    /// them or, every second time, for any other, triggered ones included.
    pub(super) fn kept(
        &self,
        student: &UNet2DCondition,
        count: usize,
        seed: &SeedTree,
    ) -> Result<Tensor<1>, DefenseError> {
        let mut rng = seed.child("kept", 0).rng();
        let kept = self.some_kept(count, &mut rng);
        let t = self.some_timesteps(count, &mut rng);
        let empty = self.kept.len() - 1;
        let shown = |&q: &usize| match rng.random() {
            true if q < empty => q,
            _ => self.any_latent(&mut rng),
        };
        let of: Vec<usize> = kept.iter().map(shown).collect();
        let z = self.noisy(&of, &t, &seed.child("noise of kept", 0))?;
        let states = self.kept.states(&kept);
        let teacher = self.teacher.unet();
        let wanted = teacher.forward(z.clone(), &t, states.clone(), None, &mut NoTap)?;
        let (z, states) = (Tensor::from_inner(z), Tensor::from_inner(states));
        let got = student.forward(z, &t, states, None, &mut NoTap)?;
        Ok((got - Tensor::from_inner(wanted)).square().mean())
    }
}

/// The timestep in the middle of the part `k` of `parts` equal ones of `steps`.
pub(super) fn middle(k: usize, parts: usize, steps: usize) -> usize {
    (2 * k + 1) * steps / (2 * parts)
}

/// Latents `[B, C, h, w]` that `model` draws for the prompts `of`, deterministically; noise `i` is that of `seed`.
pub(super) fn drawn(
    model: &TextToImage,
    (prompts, indices): (&Encoded, &[usize]),
    (steps, guidance): (usize, f64),
    seed: &SeedTree,
    cx: &Cx<'_>,
) -> Result<Tensor<4>, DefenseError> {
    let sampler = Ddim::from_config(model.scheduler(), steps, 0.0, Clip::None)?;
    let nothing = model.encode(&[""])?.states;
    let total = indices.len().div_ceil(BATCH) * steps;
    cx.progress.start("drawing", total as u64);
    let mut latents = Vec::new();
    for (i, some) in indices.chunks(BATCH).enumerate() {
        let denoiser = model.guided(prompts.states(some), nothing.clone(), guidance)?;
        let mut source = seed.noise((i * BATCH) as u64, some.len());
        let noise = source.normal(model.latent_shape().batched(some.len()), &model.device())?;
        let mut chain = Chain::new(&denoiser, &sampler, noise);
        while chain.remaining() > 0 {
            chain.advance(&mut NoNoise, &mut NoTap)?;
            cx.step()?;
        }
        latents.push(chain.x_t().clone());
    }
    Ok(Tensor::cat(latents, 0))
}
