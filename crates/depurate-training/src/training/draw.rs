//! What a training step is dealt: images, noise and timesteps, decided by the seed and the step's number.

use burn::tensor::{Device, Tensor};
use depurate_diffusion::{
    noise::{NoiseSource, SeedTree},
    schedule::NoiseSchedule,
};
use rand::{RngExt, seq::SliceRandom};

use super::TrainingParams;
use crate::{Dataset, TrainingError};

/// What a step was dealt.
#[derive(Debug, Clone)]
pub struct Draw {
    /// The training step, from 0.
    pub step: usize,
    /// Index of each image in the data set.
    pub indices: Vec<usize>,
    /// The images, `[B, C, H, W]` in [-1, 1].
    pub images: Tensor<4>,
    /// Standard normal noise, `[B, C, H, W]`.
    pub eps: Tensor<4>,
    /// Training timestep of each sample, uniform in `0 .. T`.
    pub t: Vec<usize>,
    /// For anything else that the objective draws in this step.
    pub seed: SeedTree,
}

/// Deals the step `step`.
pub(super) fn draw(
    data: &Dataset,
    params: &TrainingParams,
    schedule: &NoiseSchedule,
    order: &mut Order,
    seed: &SeedTree,
    step: usize,
    device: &Device,
) -> Result<Draw, TrainingError> {
    let seed = seed.child("step", step as u64);
    let mut rng = seed.child("samples", 0).rng();
    let indices = order.batch(step, params.batch);
    let t = (0..params.batch)
        .map(|_| rng.random_range(0..schedule.len()))
        .collect();
    let flip: Vec<bool> = (0..params.batch)
        .map(|_| params.horizontal_flip && rng.random())
        .collect();
    let images = data.batch(&indices, &flip, device);
    // One stream for the whole batch: the batch is part of the run's definition.
    let eps = seed.noise(0, 1).normal(
        [
            1,
            params.batch * data.shape().channels,
            data.shape().height,
            data.shape().width,
        ],
        device,
    )?;
    let eps = eps.reshape(data.shape().batched(params.batch));
    Ok(Draw {
        step,
        indices,
        images,
        eps,
        t,
        seed,
    })
}

/// The order of images or captions: one permutation an epoch.
pub struct Order {
    seed: SeedTree,
    count: usize,
    epoch: Option<usize>,
    permutation: Vec<usize>,
}

impl Order {
    /// Permutations of `count` items, drawn from `seed`.
    pub fn new(count: usize, seed: SeedTree) -> Self {
        Self {
            seed,
            count,
            epoch: None,
            permutation: (0..count).collect(),
        }
    }

    /// Indices of the step `step`'s batch.
    pub fn batch(&mut self, step: usize, batch: usize) -> Vec<usize> {
        (step * batch..(step + 1) * batch)
            .map(|position| self.at(position))
            .collect()
    }

    fn at(&mut self, position: usize) -> usize {
        let epoch = position / self.count;
        if self.epoch != Some(epoch) {
            self.permutation = (0..self.count).collect();
            self.permutation
                .shuffle(&mut self.seed.child("epoch", epoch as u64).rng());
            self.epoch = Some(epoch);
        }
        self.permutation[position % self.count]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_sees_every_image_once_and_does_not_depend_on_the_history() {
        let mut order = Order::new(10, SeedTree::new(3));
        let all: Vec<usize> = (0..5).flat_map(|step| order.batch(step, 4)).collect();
        let mut first: Vec<usize> = all[..10].to_vec();
        first.sort_unstable();
        assert_eq!(first, (0..10).collect::<Vec<_>>());
        assert_ne!(all[..10], all[10..20]);
        assert_eq!(Order::new(10, SeedTree::new(3)).batch(3, 4), all[12..16]);
    }
}
