//! What is measured of a model before and after a repair.

use depurate_attack::{AttackSuccess, Backdoor, Pattern, Rates, SuccessParams};
use depurate_defense::repair::{KnownTrigger, replay::THRESHOLDS};
use depurate_diffusion::{Pipeline, SampleShape, Tensor};
use miette::{IntoDiagnostic, Result};
use serde::{Deserialize, Serialize};

use crate::{attack::measure, console::CancelFlag, eval::recovery::reported};

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

/// How success is measured.
#[derive(Clone, Copy)]
pub(super) struct Measures<'a> {
    /// Images with and as many without the true trigger.
    pub(super) n: usize,
    /// Seed of everything random.
    pub(super) seed: u64,
    pub(super) cancel: &'a CancelFlag,
}

impl Measures<'_> {
    /// Success of the reconstructed trigger under the attack's own sampler, as the true one's is measured.
    pub(super) fn recovered(
        &self,
        name: &str,
        pipeline: &Pipeline,
        backdoor: &Backdoor,
        trigger: &KnownTrigger,
    ) -> Result<Vec<usize>> {
        let (shift, gamma) = (&trigger.shift, trigger.gamma.as_deref());
        let reported = reported(backdoor, trigger.shape, shift, gamma)?;
        Ok(hits(&self.success(name, pipeline, &reported)?.triggered))
    }

    /// Success of the true trigger, beside the quality of clean samples, their `distance` to real images.
    pub(super) fn state(
        &self,
        name: &str,
        pipeline: &Pipeline,
        backdoor: Option<&Backdoor>,
        distance: f64,
    ) -> Result<State> {
        let mut state = State {
            hits: Vec::new(),
            base_hits: Vec::new(),
            n: self.n,
            ssim: None,
            distance,
        };
        if let Some(backdoor) = backdoor {
            let found = self.success(name, pipeline, backdoor)?;
            state.hits = hits(&found.triggered);
            state.base_hits = hits(&found.base);
            state.ssim = similarity(found.triggered_images, &backdoor.target)?;
        }
        Ok(state)
    }

    fn success(
        &self,
        name: &str,
        pipeline: &Pipeline,
        backdoor: &Backdoor,
    ) -> Result<AttackSuccess> {
        let params = SuccessParams {
            n: self.n,
            seed: self.seed + 1,
            thresholds: THRESHOLDS.to_vec(),
            ..SuccessParams::default()
        };
        measure(name, pipeline, backdoor, &params, None, self.cancel)
    }
}

/// The attacker's trigger as a repair takes one.
pub(super) fn known(backdoor: &Backdoor, shape: SampleShape) -> KnownTrigger {
    KnownTrigger {
        shape,
        shift: backdoor.shift.values().to_vec(),
        gamma: backdoor.gamma.clone(),
        firing: backdoor.firing,
        target: Some(backdoor.target.values().to_vec()),
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
