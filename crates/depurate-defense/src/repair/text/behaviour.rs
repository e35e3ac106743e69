//! What a text-to-image model draws with and without a trigger, before and after a repair.
//!
//! ```text
//! d(a, b)   mean squared distance of two pictures from the same noise, in [0, 1] units
//! effect    = median_i d(M under p~_i, S under p_i)    of a model M; S is the suspect, p~ the triggered prompt, p the clean one
//! word      = median_i d(S under p_i + plain words, S under p_i)
//! kept      = median_i d(M under p_i, S under p_i)     and the same for neighbours q of the trigger
//! allowed   = word / 2
//! apart     = the i with d(S p~_i, S p_i) > allowed
//! relapses  = those of them whose M p~_i the suspect takes for a triggered picture      (recognition.rs)
//! ```
//!
//! A model that no longer knows a trigger draws for the triggered prompt what it draws for the clean one: nearer to it than what a plain
//! word in the trigger's place leads to, by [`SHARE`]. A repair that does no harm leaves the pictures of clean prompts and of
//! neighbours as near. Nobody has to know what the trigger leads to. Medians, because a chain of answers now and then goes another way
//! for nothing; what a median does not see, a trigger that still works on a few prompts, the relapses count.

use burn::tensor::Tensor;
use depurate_diffusion::{noise::SeedTree, text_to_image::TextToImage};
use depurate_stats::median;
use serde::{Deserialize, Serialize};

use super::{
    TextPatient,
    material::{Encoded, drawn},
    recognition::Recognition,
};
use crate::{Cx, DefenseError};

/// The part of what a plain word changes that is allowed.
pub const SHARE: f64 = 0.5;
/// Tokens that are as rare as a trigger.
const RARE: [&str; 4] = ["\u{200c} ", "zq ", "xx ", "\u{3b2} "];

/// How pictures are drawn: deterministic steps, guidance, and how many.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Drawing {
    /// DDIM steps.
    pub steps: usize,
    /// Guidance.
    pub guidance: f64,
    /// Pictures of each set, at least 2.
    pub count: usize,
}

/// Pictures of one set of prompts.
#[derive(Debug, Clone)]
pub struct PictureSet {
    /// The prompts.
    pub prompts: Vec<String>,
    /// `[N, 3, H, W]` in [-1, 1].
    pub pictures: Tensor<4>,
}

/// The suspect's pictures.
#[derive(Debug)]
pub struct Behaviour {
    drawing: Drawing,
    seed: SeedTree,
    recognition: Recognition,
    /// Of `p`.
    pub clean: PictureSet,
    /// Of `p~`.
    pub triggered: PictureSet,
    /// Of `q`: other rare tokens or plain words in the trigger's place, its single words there, the empty prompt, the legitimate ones.
    pub neighbours: PictureSet,
    /// `effect` of the suspect.
    pub effect: f64,
    /// `word`.
    pub word: f64,
}

/// A model's pictures against the suspect's.
#[derive(Debug, Clone)]
pub struct Compared {
    /// Of the triggered prompts, `[N, 3, H, W]`.
    pub triggered: Tensor<4>,
    /// Of the clean prompts, `[N, 3, H, W]`.
    pub clean: Tensor<4>,
    /// Of the neighbours, `[N, 3, H, W]`.
    pub neighbouring: Tensor<4>,
    /// `effect`.
    pub effect: f64,
    /// `kept` of clean prompts.
    pub kept: f64,
    /// `kept` of neighbours.
    pub neighbours: f64,
    /// `relapses`, how many of how many.
    pub relapses: (usize, usize),
}

impl Behaviour {
    /// Draws the suspect's pictures.
    ///
    /// # Errors
    /// When no prompt has a place for the trigger, the model cannot be run, the budget is spent or the caller asked to stop.
    pub fn of(
        patient: &TextPatient<'_>,
        drawing: Drawing,
        seed: &SeedTree,
        cx: &Cx<'_>,
    ) -> Result<Self, DefenseError> {
        let (suspect, trigger) = (patient.suspect.frozen(), patient.trigger);
        let prompts = patient.fitting(drawing.count)?;
        let with_word: Vec<String> = prompts
            .iter()
            .enumerate()
            .filter_map(|(i, prompt)| trigger.put_instead(prompt, i))
            .collect();
        let triggered: Vec<String> = prompts.iter().filter_map(|p| trigger.put(p)).collect();
        let neighbours = neighbours(patient, &prompts);
        let set = |prompts: Vec<String>| {
            let (drawn, pictures) = pictures(&suspect, &prompts, drawing, seed, cx)?;
            Ok::<_, DefenseError>((drawn, PictureSet { prompts, pictures }))
        };
        let ((z, clean), (z_triggered, triggered)) = (set(prompts)?, set(triggered)?);
        let word = picture_distance(&set(with_word)?.1.pictures, &clean.pictures)?;
        let changes = distances(&triggered.pictures, &clean.pictures);
        let apart: Vec<usize> = (0..changes.len())
            .filter(|&i| changes[i] > SHARE * word)
            .collect();
        Ok(Self {
            recognition: Recognition::new(&suspect, z, z_triggered, &apart, (seed, cx))?,
            effect: median(&changes)?,
            word,
            neighbours: set(neighbours)?.1,
            clean,
            triggered,
            drawing,
            seed: seed.clone(),
        })
    }

    /// The largest distance that passes.
    pub fn allowed(&self) -> f64 {
        SHARE * self.word
    }

    /// Whether there is anything to repair.
    pub fn fires(&self) -> bool {
        self.effect > self.allowed()
    }

    /// `model` against the suspect.
    ///
    /// # Errors
    /// As [`Behaviour::of`].
    pub fn compare(&self, model: &TextToImage, cx: &Cx<'_>) -> Result<Compared, DefenseError> {
        let model = model.frozen();
        let of = |set: &PictureSet| pictures(&model, &set.prompts, self.drawing, &self.seed, cx);
        let ((_, latents), triggered) = of(&self.triggered)?;
        let (clean, neighbouring) = (of(&self.clean)?.1, of(&self.neighbours)?.1);
        Ok(Compared {
            relapses: self.recognition.relapses(&latents, cx)?,
            effect: picture_distance(&triggered, &self.clean.pictures)?,
            kept: picture_distance(&clean, &self.clean.pictures)?,
            neighbours: picture_distance(&neighbouring, &self.neighbours.pictures)?,
            triggered,
            clean,
            neighbouring,
        })
    }
}

/// As many prompts as `clean`, which have a place for the trigger: the empty one; other rare tokens in front; of a phrase of several
/// words those alone in its place; plain words in the place of all; every second a legitimate one, if the owner gave some.
fn neighbours(patient: &TextPatient<'_>, clean: &[String]) -> Vec<String> {
    let (trigger, legitimate) = (patient.trigger, patient.legitimate);
    let of = |(i, prompt): (usize, &String)| {
        let rare = || format!("{}{prompt}", RARE[i % RARE.len()]);
        if i % 2 == 1 && !legitimate.is_empty() {
            return legitimate[i / 2 % legitimate.len()].clone();
        }
        let i = if legitimate.is_empty() { i } else { i / 2 };
        let word = trigger.put_a_word(prompt, i / 3);
        match (i % 3, word) {
            _ if i == 0 => String::new(),
            (1, Some(word)) => word,
            (2, _) => trigger.put_instead(prompt, i).unwrap_or_else(rare),
            _ => rare(),
        }
    };
    clean.iter().enumerate().map(of).collect()
}

/// Median of `d` over the pairs of two sets of pictures, `[N, 3, H, W]` in [-1, 1].
///
/// # Errors
/// When there are no pictures.
pub fn picture_distance(a: &Tensor<4>, b: &Tensor<4>) -> Result<f64, DefenseError> {
    Ok(median(&distances(a, b))?)
}

/// `d` of each pair.
fn distances(a: &Tensor<4>, b: &Tensor<4>) -> Vec<f64> {
    let [count, channels, height, width] = a.dims();
    let squares = ((a.clone() - b.clone()) / 2.0).square();
    let flat: Tensor<2> = squares.reshape([count, channels * height * width]);
    flat.mean_dim(1).into_data().iter().collect()
}

/// `prompts` as `model` takes them with their latents `[N, C, h, w]`, and their pictures `[N, 3, H, W]` in [-1, 1]; noise `i` is that of `seed`.
fn pictures(
    model: &TextToImage,
    prompts: &[String],
    drawing: Drawing,
    seed: &SeedTree,
    cx: &Cx<'_>,
) -> Result<((Encoded, Tensor<4>), Tensor<4>), DefenseError> {
    let encoded = Encoded::of(model, prompts)?;
    let all: Vec<usize> = (0..prompts.len()).collect();
    let seed = seed.child("pictures", 0);
    let how = (drawing.steps, drawing.guidance);
    let latents = drawn(model, (&encoded, &all), how, &seed, cx)?;
    let pictures = model.decode(latents.clone())?.clamp(-1.0, 1.0);
    Ok(((encoded, latents), pictures))
}
