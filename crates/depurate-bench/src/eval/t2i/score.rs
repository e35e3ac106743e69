//! Scores of prompts on one model, by every method, from one run of the sampler.
//!
//! This part is given a pipeline and texts. It knows no labels, no attack and no truth file.

use std::{collections::BTreeMap, ops::ControlFlow, time::Instant};

use depurate_defense::detect::input_level::{
    CallMaps, MapCollector, PromptDetector, SiteSelection, TokenMaps,
    daa_i::DaaIParams,
    daa_s::{DaaSParams, Horizon},
    evolution::Evolution,
    unicode,
};
use depurate_diffusion::{
    Device, DiffusionError, NoTap, Tensor,
    noise::{NoiseSource, SeedTree, SeededNoise},
    sampler::{Chain, Sampler, from_config},
    text_to_image::TextToImage,
};
use depurate_report::Confidence;
use miette::{IntoDiagnostic, Result, bail};
use serde::{Deserialize, Serialize};

/// Time up to which the corrected DAA-S on whole calls follows its system.
const WHOLE_CALLS: f64 = 7.0;
/// Calls that some method needs.
const LEAST_CALLS: usize = 7;

/// How prompts are run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RunParams {
    /// Steps of the checkpoint's own sampler; of the calls that they take, as many are scored.
    pub(crate) steps: usize,
    /// Guidance.
    pub(crate) guidance: f64,
    /// Seed of the noise, which is the same for every prompt.
    pub(crate) seed: u64,
    /// Prompts that are run at once.
    pub(crate) batch: usize,
}

impl Default for RunParams {
    fn default() -> Self {
        Self {
            steps: 50,
            guidance: 7.5,
            seed: 42,
            batch: 8,
        }
    }
}

/// A way to score a prompt.
pub(crate) struct Method {
    /// Its id in results.
    pub(crate) id: &'static str,
    /// What it is.
    pub(crate) what: &'static str,
    how: How,
}

enum How {
    Detector(Box<dyn PromptDetector>),
    Length,
    FirstCall,
    Unicode,
}

impl Method {
    /// The score above which the released code calls a prompt backdoored.
    pub(crate) fn released_threshold(&self) -> Option<f64> {
        match &self.how {
            // below the released constant, in the released orientation
            How::Detector(detector) => detector.released_threshold().map(|constant| -constant),
            _ => None,
        }
    }

    fn score(&self, text: &str, maps: &TokenMaps) -> Result<f64> {
        Ok(match &self.how {
            How::Detector(detector) => {
                let scored = detector.score(&mut maps.clone()).into_diagnostic()?;
                scored.score
            }
            How::Length => maps.calls().first().map_or(0, CallMaps::tokens) as f64,
            How::FirstCall => {
                let evolution = Evolution::of(maps.calls().get(..1).unwrap_or_default());
                let first = |shares: &[f64]| shares.first().copied().unwrap_or(f64::NAN);
                first(&evolution.content_share) - first(&evolution.eos_share)
            }
            How::Unicode => {
                let found = unicode::check(text).into_iter();
                let weight = |confidence| match confidence {
                    Confidence::Low => 1.0,
                    Confidence::Medium => 2.0,
                    Confidence::High => 3.0,
                };
                found
                    .map(|finding| weight(finding.confidence))
                    .fold(0.0, f64::max)
            }
        })
    }
}

/// Every method, in the order of the table. Higher is more suspicious in all of them; orientations were fixed beforehand.
pub(crate) fn methods() -> Result<Vec<Method>> {
    let daa_i = |params: DaaIParams| -> Result<How> {
        Ok(How::Detector(Box::new(params.build().into_diagnostic()?)))
    };
    let daa_s = |params: DaaSParams| -> Result<How> {
        Ok(How::Detector(Box::new(params.build().into_diagnostic()?)))
    };
    let whole = DaaSParams {
        horizon: Horizon::Fixed { tau: WHOLE_CALLS },
    };
    let method = |id, what, how| Method { id, what, how };
    Ok(vec![
        method(
            "daa-i reference",
            "DAA-I as released",
            daa_i(DaaIParams::reference())?,
        ),
        method(
            "daa-i",
            "DAA-I, mean over the tokens summed",
            daa_i(DaaIParams::default())?,
        ),
        method(
            "daa-s reference",
            "DAA-S as released, the solver's own grid",
            daa_s(DaaSParams::reference())?,
        ),
        method(
            "daa-s",
            "DAA-S, fixed horizon 0.7",
            daa_s(DaaSParams::default())?,
        ),
        method("daa-s calls", "DAA-S, whole calls 0 to 7", daa_s(whole)?),
        method("length", "baseline: number of tokens", How::Length),
        method(
            "first call",
            "baseline: mean share of the content less that of EOS at call 0, oriented as DAA-S is",
            How::FirstCall,
        ),
        method(
            "unicode",
            "baseline: highest confidence of a finding about characters, 0 to 3",
            How::Unicode,
        ),
    ])
}

/// What was measured of one prompt.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Scored {
    /// Tokens, BOS and EOS included.
    pub(crate) tokens: usize,
    /// Scores by method; a method that has none is in `problems`.
    pub(crate) scores: BTreeMap<String, f64>,
    /// Why a method has no score.
    pub(crate) problems: BTreeMap<String, String>,
    /// How much more EOS's map changes than those of the content, from each call to the next.
    pub(crate) change: Vec<f64>,
    /// Wall-clock seconds, its share of the batch.
    pub(crate) seconds: f64,
}

/// Runs and scores prompts on one model.
pub(crate) struct Scorer<'a> {
    pipeline: &'a TextToImage,
    params: &'a RunParams,
    sampler: Box<dyn Sampler>,
    methods: &'a [Method],
}

impl<'a> Scorer<'a> {
    /// For a model.
    ///
    /// # Errors
    /// When the sampler cannot make the steps, or they are too few.
    pub(crate) fn new(
        pipeline: &'a TextToImage,
        params: &'a RunParams,
        methods: &'a [Method],
    ) -> Result<Self> {
        if params.steps < LEAST_CALLS {
            bail!("{} steps: at least {LEAST_CALLS} are scored", params.steps);
        }
        let sampler = from_config(pipeline.scheduler(), params.steps).into_diagnostic()?;
        Ok(Self {
            pipeline,
            params,
            sampler,
            methods,
        })
    }

    /// Timesteps of all calls.
    pub(crate) fn timesteps(&self) -> &[usize] {
        self.sampler.timesteps()
    }

    /// Scores `texts` in one batch, and gives their pictures `[N, 3, H, W]`, cut to [-1, 1]. `each_call` may stop the run.
    ///
    /// # Errors
    /// When a prompt cannot be run, or the run is stopped.
    pub(crate) fn score(
        &self,
        texts: &[&str],
        each_call: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<(Vec<Scored>, Tensor<4>)> {
        let start = Instant::now();
        let (pipeline, n) = (self.pipeline, texts.len());
        let nothing = pipeline.encode(&[""]).into_diagnostic()?.states;
        let encoded = pipeline.encode(texts).into_diagnostic()?;
        let tokens: Vec<usize> = encoded.tokens.iter().map(|t| t.untruncated).collect();
        let denoiser = pipeline
            .guided(encoded.states, nothing, self.params.guidance)
            .into_diagnostic()?;
        let first = if denoiser.is_guided() { n } else { 0 };
        let mut collector =
            MapCollector::new(SiteSelection::default(), first..first + n, tokens.clone())
                .into_diagnostic()?;
        let mut noise = SharedNoise(
            SeedTree::new(self.params.seed)
                .child("prompt", 0)
                .noise(0, 1),
        );
        let shape = pipeline.latent_shape().batched(n);
        let x_t = noise.normal(shape, &pipeline.device()).into_diagnostic()?;
        let mut chain = Chain::new(&denoiser, self.sampler.as_ref(), x_t);
        let mut calls: Vec<Vec<CallMaps>> = vec![Vec::new(); n];
        while chain.remaining() > 0 {
            if each_call().is_break() {
                bail!("stopped");
            }
            let is_scored = calls
                .first()
                .is_some_and(|made| made.len() < self.params.steps);
            if !is_scored {
                chain.advance(&mut noise, &mut NoTap).into_diagnostic()?;
                continue;
            }
            chain
                .advance(&mut noise, &mut collector)
                .into_diagnostic()?;
            let maps = collector.take().into_diagnostic()?;
            for (calls, maps) in calls.iter_mut().zip(maps) {
                calls.push(maps);
            }
        }
        let pictures = pipeline.decode(chain.x_t().clone()).into_diagnostic()?;
        let mut scored = Vec::with_capacity(n);
        for ((text, tokens), calls) in texts.iter().zip(tokens).zip(calls) {
            let change = Evolution::of(&calls).relative_change;
            let maps = TokenMaps::new(calls).into_diagnostic()?;
            let (mut scores, mut problems) = (BTreeMap::new(), BTreeMap::new());
            for method in self.methods {
                match method.score(text, &maps) {
                    Ok(score) => scores.insert(method.id.to_owned(), score).map(drop),
                    Err(error) => problems
                        .insert(method.id.to_owned(), error.to_string())
                        .map(drop),
                };
            }
            scored.push(Scored {
                tokens,
                scores,
                problems,
                change,
                seconds: 0.0,
            });
        }
        let seconds = start.elapsed().as_secs_f64() / n.max(1) as f64;
        for one in &mut scored {
            one.seconds = seconds;
        }
        Ok((scored, pictures.clamp(-1.0, 1.0)))
    }
}

/// The same noise for every prompt of a batch, so that a score does not depend on the prompts beside it.
struct SharedNoise(SeededNoise);

impl NoiseSource for SharedNoise {
    fn normal(&mut self, shape: [usize; 4], device: &Device) -> Result<Tensor<4>, DiffusionError> {
        let [batch, channels, height, width] = shape;
        let one = self.0.normal([1, channels, height, width], device)?;
        Ok(Tensor::cat(vec![one; batch], 0))
    }
}
