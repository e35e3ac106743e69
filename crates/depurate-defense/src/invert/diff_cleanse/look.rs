//! The images that a hypothesis leads to, and how alike they are.

use depurate_diffusion::noise::SeedTree;
use serde::{Deserialize, Serialize};

use crate::{
    DefenseError,
    hypothesis::{
        Hypothesis,
        similarity::{closest_pair, largest_cluster, mean_of, spread},
    },
    probe::{Probe, values},
};

/// What a suspect does under a hypothesis.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Look {
    /// `[count, C, H, W]`, in the model's range.
    pub(crate) images: Vec<f32>,
    /// The largest set of mutually similar images.
    pub(crate) cluster: Vec<usize>,
    /// Its share of the images.
    pub(crate) share: f64,
    /// Its mean, or the midpoint of the two closest images where no two are similar, or what was expected, `[C, H, W]`.
    pub(crate) target: Vec<f32>,
    /// Median over the images of the mean squared distance to `target`, in [0, 1] units.
    pub(crate) spread: f64,
    /// Error of the network against "`target` under this shift": [`Hypothesis::inconsistency`].
    pub(crate) inconsistency: f64,
}

/// How a hypothesis is looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Looking {
    /// Images, at least 2.
    pub(crate) images: usize,
    /// Network calls an image.
    pub(crate) steps: usize,
    /// Largest distance of similar images, mean squared in [0, 1] units.
    pub(crate) similar: f64,
}

/// Added to the spread and to the inconsistency before they are multiplied: what a perfect backdoor leaves of either.
const FLOOR: f64 = 1e-3;

impl Look {
    /// `V F^2`, how badly "this shift leads to one image" fits; lower is better. Large shifts make images of any model alike,
    /// but consistent with the network they are under a trigger alone: hence the square.
    pub(crate) fn misfit(&self) -> f64 {
        (self.spread + FLOOR) * (self.inconsistency + FLOOR).powi(2)
    }
}

impl Looking {
    /// Images of `hypothesis` in the model's range `[count, C, H, W]`; the noises depend on `seed` alone.
    pub(crate) fn images(
        &self,
        probe: &Probe<'_>,
        hypothesis: &Hypothesis,
        seed: &SeedTree,
    ) -> Result<Vec<f32>, DefenseError> {
        let eps = probe.noise(&seed.child("start", 0), self.images)?;
        let images = hypothesis.sample(probe, eps, self.steps)?;
        Ok(values(images.clamp(-1.0, 1.0)))
    }

    /// What the suspect does under `hypothesis`. The image `expected [C, H, W]` is taken for the target if it is the more
    /// consistent one.
    pub(crate) fn look(
        &self,
        probe: &Probe<'_>,
        hypothesis: &Hypothesis,
        expected: Option<&[f32]>,
        seed: &SeedTree,
    ) -> Result<Look, DefenseError> {
        let images = self.images(probe, hypothesis, seed)?;
        let len = hypothesis.shift.len();
        let cluster = largest_cluster(&images, len, self.similar);
        let mut target = representative(&images, len, &cluster);
        let mut inconsistency = self.inconsistency(probe, hypothesis, &target, seed)?;
        if let Some(other) = expected {
            let of_other = self.inconsistency(probe, hypothesis, other, seed)?;
            if of_other < inconsistency {
                (target, inconsistency) = (other.to_vec(), of_other);
            }
        }
        Ok(Look {
            share: cluster.len() as f64 / self.images as f64,
            spread: spread(&images, &target),
            cluster,
            target,
            inconsistency,
            images,
        })
    }

    fn inconsistency(
        &self,
        probe: &Probe<'_>,
        hypothesis: &Hypothesis,
        target: &[f32],
        seed: &SeedTree,
    ) -> Result<f64, DefenseError> {
        let levels = seed.child("levels", 0);
        hypothesis.inconsistency(probe, target, self.images.div_ceil(2), &levels)
    }
}

/// The image that a cluster stands for.
pub(super) fn representative(images: &[f32], len: usize, cluster: &[usize]) -> Vec<f32> {
    if cluster.len() < 2 {
        closest_pair(images, len)
    } else {
        mean_of(images, len, cluster)
    }
}
