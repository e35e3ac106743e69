//! One prompt of a text-to-image model, sampled only as far as a detector asks.
//!
//! Every prompt starts from the same noise and goes the same way: scores are comparable only if nothing but the prompt differs.
//! What is fixed is a [`RunSetting`], which a calibration records.
//!
//! ```text
//! x_T     = noise of the seed, the same for every prompt
//! call t  = one step of the sampler with guidance g; its maps are those of the prompt's half of the batch
//! ```
//!
//! A run that no detector asks for more is dropped: only the calls that were made are paid for.

use std::cell::Cell;

use burn::tensor::Tensor;
use depurate_diffusion::{
    TextToImage,
    clip_tokenizer::Tokens,
    noise::{NoiseSource, SeedTree, SeededNoise},
    sampler::{Chain, Sampler},
};

use super::{LazyMaps, MapCollector, MapSource, SiteSelection, attention_maps::check_length};
use crate::{CancelToken, DefenseError, calibration::prompts::RunSetting};

/// How prompts are run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RunOptions {
    /// Scale of classifier-free guidance; 1 is without.
    pub guidance: f64,
    /// Seed of the initial noise, and of the sampler's if it draws any.
    pub seed: u64,
    /// Which layers' maps are averaged.
    pub sites: SiteSelection,
}

/// A model and a way to run it on prompts, one at a time.
pub struct PromptRun {
    pipeline: TextToImage,
    sampler: Box<dyn Sampler>,
    options: RunOptions,
    /// States of the empty prompt, `[1, C, T]`.
    empty: Tensor<3>,
}

/// What came of looking at a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Looked<T> {
    /// What the caller made of it.
    pub value: T,
    /// Calls of the UNet that were made, those that failed included.
    pub calls: usize,
}

impl PromptRun {
    /// A way to run `pipeline`, whose gradients nobody needs, with `sampler`.
    ///
    /// # Errors
    /// When guidance is not finite or the empty prompt cannot be encoded.
    pub fn new(
        pipeline: TextToImage,
        sampler: Box<dyn Sampler>,
        options: RunOptions,
    ) -> Result<Self, DefenseError> {
        let pipeline = pipeline.frozen();
        let empty = pipeline.encode(&[""])?.states;
        // refuses the guidance before the first prompt
        pipeline.guided(empty.clone(), empty.clone(), options.guidance)?;
        Ok(Self {
            pipeline,
            sampler,
            options,
            empty,
        })
    }

    /// The model.
    pub fn pipeline(&self) -> &TextToImage {
        &self.pipeline
    }

    /// Calls of the UNet in a whole run.
    pub fn calls(&self) -> usize {
        self.sampler.timesteps().len()
    }

    /// The training timestep of each call.
    pub fn timesteps(&self) -> &[usize] {
        self.sampler.timesteps()
    }

    /// What a score depends on besides the prompt and the detector, for a calibration.
    pub fn setting(&self, model_sha256: String, tokenizer_sha256: String) -> RunSetting {
        let latent = self.pipeline.latent_shape();
        let sampler = super::json(&self.sampler.settings());
        let scheduler = serde_json::Value::Object(self.pipeline.scheduler().to_json());
        RunSetting {
            model_sha256,
            tokenizer_sha256,
            scheduler: format!("{sampler} of {scheduler}"),
            timesteps: self.timesteps().to_vec(),
            guidance: self.options.guidance,
            seed: self.options.seed,
            size: (latent.height, latent.width),
            sites: self.options.sites,
            number_type: "f32".into(),
        }
    }

    /// The tokens of a prompt that can be screened; [`Tokens::used`] of them are not padding.
    ///
    /// # Errors
    /// When the prompt has no content or is longer than the text encoder reads, or the tokenizer fails on it.
    pub fn tokens(&self, prompt: &str) -> Result<Tokens, DefenseError> {
        let tokenizer = self.pipeline.tokenizer();
        let tokens = tokenizer.encode(prompt)?;
        check_length(tokens.untruncated, tokenizer.length())?;
        Ok(tokens)
    }

    /// Lets `look` ask for the maps of a prompt with these `tokens`. A call is made when its maps are first asked for, and fails
    /// with [`DefenseError::Cancelled`] once `cancel` is set.
    ///
    /// # Errors
    /// When the prompt cannot be encoded. Errors of calls are `look`'s to hand on.
    pub fn with_maps<T>(
        &self,
        tokens: &Tokens,
        cancel: &CancelToken,
        look: impl FnOnce(&mut dyn MapSource) -> T,
    ) -> Result<Looked<T>, DefenseError> {
        let encoder = self.pipeline.text_encoder();
        let states = encoder.forward(std::slice::from_ref(&tokens.ids))?.last;
        let guidance = self.options.guidance;
        let denoiser = self.pipeline.guided(states, self.empty.clone(), guidance)?;
        // of a guided call the second sample is the prompt's
        let sample = usize::from(denoiser.is_guided());
        let samples = sample..sample + 1;
        let mut collector = MapCollector::new(self.options.sites, samples, vec![tokens.used])?;
        let (mut noise, start) = self.noise()?;
        let mut chain = Chain::new(&denoiser, self.sampler.as_ref(), start);
        let (total, calls) = (self.calls(), Cell::new(0));
        let mut failed: Option<String> = None;
        let mut maps = LazyMaps::new(|call| {
            if cancel.is_cancelled() {
                return Err(DefenseError::Cancelled);
            }
            if chain.remaining() == 0 {
                return Err(DefenseError::NoSuchCall { call, calls: total });
            }
            // a run that failed is not gone on with: its next step would be taken for the one that failed
            if let Some(reason) = &failed {
                let reason = String::clone(reason);
                return Err(DefenseError::RunFailed { reason });
            }
            calls.set(calls.get() + 1);
            let reduction = self.options.sites.reduction;
            let made = chain
                .advance(&mut noise, &mut collector)
                .map_err(DefenseError::from)
                .and_then(|_| collector.take())
                .and_then(|mut maps| maps.pop().ok_or(DefenseError::NoMaps { reduction }));
            made.inspect_err(|error| failed = Some(error.to_string()))
        });
        let value = look(&mut maps);
        Ok(Looked {
            value,
            calls: calls.get(),
        })
    }

    /// The stream of a run's noise, and its first draw: the noise to start from.
    fn noise(&self) -> Result<(SeededNoise, Tensor<4>), DefenseError> {
        let mut noise = SeedTree::new(self.options.seed)
            .child("screen", 0)
            .noise(0, 1);
        let shape = self.pipeline.latent_shape().batched(1);
        let start = noise.normal(shape, &self.pipeline.device())?;
        Ok((noise, start))
    }
}
