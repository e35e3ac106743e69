//! What is measured of a model before and after a repair.

use std::path::Path;

use depurate_attack::{Backdoor, Pattern, Rates, SuccessParams};
use depurate_defense::{
    Cx,
    repair::{
        KnownTrigger,
        features::Features,
        replay::{THRESHOLDS, drawn},
    },
};
use depurate_diffusion::{Denoiser, Device, Pipeline, Tensor, firing::Firing, noise::SeedTree};
use depurate_training::{Dataset, DatasetParams, Split};
use miette::{IntoDiagnostic, Result};
use serde::{Deserialize, Serialize};

use crate::{attack::measure, console::CancelFlag};

/// What is measured of one model, before or after.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct State {
    /// Images of the true trigger that are its target, at each of [`THRESHOLDS`].
    pub(crate) hits: Vec<usize>,
    /// The same without a trigger.
    pub(crate) base_hits: Vec<usize>,
    /// Images of each.
    pub(crate) n: usize,
    /// Mean structural similarity of the triggered images to the target.
    pub(crate) ssim: Option<f64>,
    /// Fréchet distance of clean samples to real images, on the built-in features.
    pub(crate) distance: f64,
}

/// How it is measured.
pub(super) struct Measures<'a> {
    /// Real images, their test part.
    pub(super) data: &'a Path,
    /// Images with and as many without the true trigger.
    pub(super) n: usize,
    /// Images for the Fréchet distance.
    pub(super) quality_n: usize,
    /// Seed of everything random.
    pub(super) seed: u64,
    pub(super) cancel: &'a CancelFlag,
}

impl Measures<'_> {
    /// Clean samples by DDIM, the same noise before and after.
    pub(super) fn clean_samples(&self, pipeline: &Pipeline, cx: &Cx<'_>) -> Result<Tensor<4>> {
        let seed = SeedTree::new(self.seed).child("quality", 0);
        let model = pipeline.frozen();
        let images = drawn(
            &model,
            Firing::Deterministic,
            None,
            self.quality_n,
            &seed,
            cx,
        );
        Ok(images.into_diagnostic()?.clamp(-1.0, 1.0))
    }

    /// Success of the reconstructed trigger under the attack's own sampler, as the true one's is measured.
    pub(super) fn recovered(
        &self,
        name: &str,
        pipeline: &Pipeline,
        backdoor: &Backdoor,
        trigger: &KnownTrigger,
    ) -> Result<Vec<usize>> {
        // a trigger is an image, and not every inverter is bound to that
        let shift = trigger.shift.iter().map(|v| v.clamp(-1.0, 1.0)).collect();
        let reported = Backdoor {
            shift: Pattern::from_values(trigger.shape, shift).into_diagnostic()?,
            gamma: trigger.gamma.clone(),
            ..backdoor.clone()
        };
        let params = SuccessParams {
            n: self.n,
            seed: self.seed + 1,
            thresholds: THRESHOLDS.to_vec(),
            ..SuccessParams::default()
        };
        let found = measure(name, pipeline, &reported, &params, None, self.cancel)?;
        Ok(hits(&found.triggered))
    }

    /// Success of the true trigger, and quality of `samples`.
    pub(super) fn state(
        &self,
        name: &str,
        pipeline: &Pipeline,
        backdoor: Option<&Backdoor>,
        samples: &Tensor<4>,
    ) -> Result<State> {
        let params = DatasetParams {
            split: Split::Test,
            ..DatasetParams::default()
        };
        let shape = pipeline.sample_shape();
        let real = Dataset::read(self.data, shape, &params).into_diagnostic()?;
        let all: Vec<usize> = (0..real.len()).collect();
        let real = real.batch(&all, &[], &Device::flex());
        let features = Features::built_in().into_diagnostic()?;
        let distance = features.distance(samples.clone(), real).into_diagnostic()?;
        let mut state = State {
            hits: Vec::new(),
            base_hits: Vec::new(),
            n: self.n,
            ssim: None,
            distance,
        };
        if let Some(backdoor) = backdoor {
            let params = SuccessParams {
                n: self.n,
                seed: self.seed + 1,
                thresholds: THRESHOLDS.to_vec(),
                ..SuccessParams::default()
            };
            let found = measure(name, pipeline, backdoor, &params, None, self.cancel)?;
            state.hits = hits(&found.triggered);
            state.base_hits = hits(&found.base);
            state.ssim = similarity(found.triggered_images, &backdoor.target)?;
        }
        Ok(state)
    }
}

/// Images at or below each of [`THRESHOLDS`].
fn hits(rates: &Rates) -> Vec<usize> {
    let at = |limit: &f64| rates.mse.iter().filter(|&&error| error <= *limit).count();
    THRESHOLDS.iter().map(at).collect()
}

/// Mean structural similarity of `images [N, C, H, W]` to the target; `None` where images are smaller than its window.
fn similarity(images: Tensor<4>, target: &Pattern) -> Result<Option<f64>> {
    let shape = target.shape();
    let (height, width) = (shape.height, shape.width);
    if height < 11 || width < 11 {
        return Ok(None);
    }
    let unit = |v: f32| f64::from((v.clamp(-1.0, 1.0) + 1.0) / 2.0);
    let images: Vec<f64> = images.into_data().iter::<f32>().map(unit).collect();
    let target: Vec<f64> = target.values().iter().map(|&v| unit(v)).collect();
    let plane = height * width;
    let planes = images
        .chunks_exact(plane)
        .zip(target.chunks_exact(plane).cycle());
    let values: Vec<f64> = planes
        .map(|(a, b)| depurate_stats::ssim(a, b, height, width))
        .collect::<Result<_, _>>()
        .into_diagnostic()?;
    Ok(depurate_stats::mean(&values).ok())
}
