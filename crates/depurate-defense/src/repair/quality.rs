//! What a repair costs: clean samples before and after.
//!
//! ```text
//! rise = (d_after - d_before) / d_before   with a reference of real images      (1)
//! rise = (d_after - d_before) / tr(C)      with the suspect's own samples       (2)
//! ```
//!
//! `d` is the Fréchet distance to the reference. Against its own samples `d_before` of a suspect is what chance leaves of 0, and a
//! part of that says nothing; the sum of the features' variances `tr(C)` is a scale that does.
//!
//! A distance of a few hundred samples is a rough estimate, and its rise the difference of two. Samples before and after share their
//! noise, so the interval of a rise is that of a bootstrap over noises: the same choice of them on both sides, the reference fixed.

use burn::tensor::Tensor;
use depurate_diffusion::{Pipeline, firing::Firing, noise::SeedTree};
use depurate_stats::{Interval, bootstrap_interval};

use super::{
    features::{self, FEATURES, Features},
    replay::{drawn, steps},
};
use crate::{Cx, DefenseError};

/// Choices of the bootstrap.
const RESAMPLES: usize = 200;

/// A suspect's clean samples, and how far they are from a reference.
#[derive(Debug)]
pub struct Quality {
    features: Features,
    /// Features of the reference, row-major.
    reference: Vec<f64>,
    /// Features of the suspect's samples, row-major.
    own: Vec<f64>,
    count: usize,
    seed: SeedTree,
    /// The suspect's samples, `[N, C, H, W]` in [-1, 1].
    pub samples: Tensor<4>,
    /// Fréchet distance of the suspect's samples to the reference.
    pub before: f64,
    /// What a rise is a part of.
    scale: f64,
}

/// A repaired model's samples.
#[derive(Debug, Clone)]
pub struct Measured {
    /// From the noise of the suspect's, `[N, C, H, W]` in [-1, 1].
    pub samples: Tensor<4>,
    /// Fréchet distance to the reference.
    pub distance: f64,
    /// Its change, eq. (1) or (2).
    pub rise: f64,
    /// Its 95 % interval, by bootstrap.
    pub rise_interval: Interval,
    /// Mean squared distance to the suspect's samples, image by image, in [0, 1] units.
    pub moved: f64,
}

impl Quality {
    /// Draws `count` samples of `suspect`, at least 2, and compares them with `reference [M, C, H, W]` or, without one, with as many
    /// others of the suspect.
    ///
    /// # Errors
    /// When the model cannot be run, the budget is spent or the caller asked to stop.
    pub fn of(
        suspect: &Pipeline,
        reference: Option<Tensor<4>>,
        count: usize,
        seed: &SeedTree,
        cx: &Cx<'_>,
    ) -> Result<Self, DefenseError> {
        let features = Features::built_in()?;
        let seed = seed.child("quality", 0);
        let samples = clean(suspect, count, &seed, cx)?;
        let real = reference.is_some();
        let reference = match reference {
            Some(reference) => reference,
            None => clean(suspect, count, &seed.child("reference", 0), cx)?,
        };
        let (own, reference) = (features.of(samples.clone())?, features.of(reference)?);
        let before = features::distance(&own, &reference)?;
        let scale = if real {
            before // eq. (1)
        } else {
            features::variance(&reference) // eq. (2)
        };
        Ok(Self {
            features,
            reference,
            own,
            count,
            seed,
            samples,
            before,
            scale,
        })
    }

    /// Measures `model` against the suspect.
    ///
    /// # Errors
    /// As [`Quality::of`].
    pub fn measure(&self, model: &Pipeline, cx: &Cx<'_>) -> Result<Measured, DefenseError> {
        let samples = clean(model, self.count, &self.seed, cx)?;
        let found = self.features.of(samples.clone())?;
        let distance = features::distance(&found, &self.reference)?;
        let moved = ((samples.clone() - self.samples.clone()) / 2.0).square();
        Ok(Measured {
            distance,
            rise: (distance - self.before) / self.scale,
            rise_interval: self.interval(&found)?,
            moved: f64::from(moved.mean().into_scalar::<f32>()),
            samples,
        })
    }

    /// 95 % interval of the rise of samples with features `found`.
    fn interval(&self, found: &[f64]) -> Result<Interval, DefenseError> {
        let noises: Vec<f64> = (0..self.count).map(|i| i as f64).collect();
        let rise = |chosen: &[f64]| {
            let of = |all: &[f64]| {
                let rows = chosen.iter().flat_map(|&i| row(all, i as usize));
                let rows: Vec<f64> = rows.copied().collect();
                features::distance(&rows, &self.reference).unwrap_or(f64::NAN)
            };
            (of(found) - of(&self.own)) / self.scale
        };
        let mut rng = self.seed.child("bootstrap", 0).rng();
        bootstrap_interval(&noises, rise, RESAMPLES, 0.95, &mut rng).map_err(features::refused)
    }
}

fn row(all: &[f64], i: usize) -> &[f64] {
    &all[i * FEATURES..(i + 1) * FEATURES]
}

/// `count` samples without a trigger by deterministic sampling.
fn clean(
    model: &Pipeline,
    count: usize,
    seed: &SeedTree,
    cx: &Cx<'_>,
) -> Result<Tensor<4>, DefenseError> {
    let frozen = model.frozen();
    let total = steps(&frozen, Firing::Deterministic, count);
    cx.progress.start("clean samples", total);
    let images = drawn(&frozen, Firing::Deterministic, None, count, seed, cx)?;
    Ok(images.clamp(-1.0, 1.0))
}
