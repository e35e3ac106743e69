//! What a repair costs: clean samples before and after.
//!
//! ```text
//! rise = (d_after - d_before) / d_before   with a reference of real images      (1)
//! rise = (d_after - d_before) / tr(C)      with the suspect's own samples       (2)
//! ```
//!
//! `d` is the Fréchet distance to the reference. Against its own samples `d_before` of a suspect is what chance leaves of 0, and a
//! part of that says nothing; the sum of the features' variances `tr(C)` is a scale that does.

use burn::tensor::Tensor;
use depurate_diffusion::{Pipeline, firing::Firing, noise::SeedTree};

use super::{
    features::Features,
    replay::{drawn, steps},
};
use crate::{Cx, DefenseError};

/// A suspect's clean samples, and how far they are from a reference.
#[derive(Debug)]
pub struct Quality {
    features: Features,
    reference: Tensor<4>,
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
        let before = features.distance(samples.clone(), reference.clone())?;
        let scale = if real {
            before // eq. (1)
        } else {
            features.variance(reference.clone())? // eq. (2)
        };
        Ok(Self {
            features,
            reference,
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
        let distance = self
            .features
            .distance(samples.clone(), self.reference.clone())?;
        let moved = ((samples.clone() - self.samples.clone()) / 2.0).square();
        Ok(Measured {
            distance,
            rise: (distance - self.before) / self.scale,
            moved: f64::from(moved.mean().into_scalar::<f32>()),
            samples,
        })
    }
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
