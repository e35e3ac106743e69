//! Pictures of prompts, as measurements take them: deterministic steps, one noise an item.

use std::ops::ControlFlow;

use burn::tensor::Tensor;
use depurate_diffusion::{
    noise::{NoNoise, NoiseSource, SeedTree},
    sampler::{Clip, Ddim, sample},
    text_to_image::TextToImage,
};
use serde::{Deserialize, Serialize};

use crate::AttackError;

/// How pictures are made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GenerationParams {
    /// Deterministic DDIM steps.
    pub steps: usize,
    /// Guidance; 1 is none.
    pub guidance: f64,
    /// Seed of the noise: item `i` starts from the same noise whatever the prompts and the batch.
    pub seed: u64,
    /// Pictures that are made at once.
    pub batch: usize,
}

impl Default for GenerationParams {
    fn default() -> Self {
        Self {
            steps: 25,
            guidance: 3.0,
            seed: 0,
            batch: 16,
        }
    }
}

/// Pictures `[N, 3, H, W]`, cut to [-1, 1], of `prompts`. `each_step` is told the share that is done and may stop the run.
///
/// # Errors
/// When there is no prompt, a parameter is out of range, or the run is stopped.
pub fn generate(
    pipeline: &TextToImage,
    prompts: &[String],
    params: &GenerationParams,
    each_step: &mut dyn FnMut(f64) -> ControlFlow<()>,
) -> Result<Tensor<4>, AttackError> {
    let latents = generate_latents(pipeline, prompts, params, each_step)?;
    let batches = latents.split(params.batch.max(1), 0).into_iter();
    let pictures: Result<Vec<_>, _> = batches.map(|some| pipeline.decode(some)).collect();
    Ok(Tensor::cat(pictures?, 0).clamp(-1.0, 1.0))
}

/// What [`generate`] decodes, `[N, C, h, w]`.
///
/// # Errors
/// As [`generate`].
pub fn generate_latents(
    pipeline: &TextToImage,
    prompts: &[String],
    params: &GenerationParams,
    each_step: &mut dyn FnMut(f64) -> ControlFlow<()>,
) -> Result<Tensor<4>, AttackError> {
    let batch = params.batch.max(1);
    let sampler = Ddim::from_config(pipeline.scheduler(), params.steps, 0.0, Clip::None)?;
    let nothing = pipeline.encode(&[""])?.states;
    let seed = SeedTree::new(params.seed).child("pictures", 0);
    let steps = (prompts.len().div_ceil(batch) * params.steps) as f64;
    let mut all = vec![];
    for (index, some) in prompts.chunks(batch).enumerate() {
        let texts: Vec<&str> = some.iter().map(String::as_str).collect();
        let states = pipeline.encode(&texts)?.states;
        let denoiser = pipeline.guided(states, nothing.clone(), params.guidance)?;
        let shape = pipeline.latent_shape().batched(some.len());
        let first = (index * batch) as u64;
        let x_t = seed
            .noise(first, some.len())
            .normal(shape, &pipeline.device())?;
        let latents = sample(&denoiser, &sampler, x_t, &mut NoNoise, &mut |at, _| {
            each_step((index * params.steps + at.done) as f64 / steps)
        })?;
        all.push(latents);
    }
    if all.is_empty() {
        return Err(AttackError::Params {
            what: "number of prompts",
            got: "0".into(),
            allowed: "1 or more",
        });
    }
    Ok(Tensor::cat(all, 0))
}
