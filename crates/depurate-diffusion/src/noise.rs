//! Where samplers take their noise from: a seed, a recording, or nowhere.
//!
//! Seeds form a tree: the noise of an item depends on the run's seed and on the path of labels and
//! indices to the item, never on the batch size, the order or the thread that computes it.

use std::collections::VecDeque;

use burn::tensor::{Device, Tensor, TensorData};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use sha2::{Digest, Sha256};

use crate::DiffusionError;

/// Standard normal noise on demand.
pub trait NoiseSource {
    /// The next draw, `shape = [B, C, H, W]`.
    ///
    /// # Errors
    /// When the source has no draw of this shape left.
    fn normal(&mut self, shape: [usize; 4], device: &Device) -> Result<Tensor<4>, DiffusionError>;
}

/// A node of the tree of seeds.
///
/// ```
/// use depurate_diffusion::noise::SeedTree;
/// let run = SeedTree::new(7);
/// assert_eq!(run.child("terd", 0), run.child("terd", 0));
/// assert_ne!(run.child("terd", 0), run.child("terd", 1));
/// assert_ne!(run.child("terd", 0), run.child("elijah", 0));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeedTree([u8; 32]);

impl SeedTree {
    /// The root for a run's seed.
    pub fn new(seed: u64) -> Self {
        Self(
            Sha256::new()
                .chain_update(b"seed-tree")
                .chain_update(seed.to_le_bytes())
                .finalize()
                .into(),
        )
    }

    /// The node for the `index`-th thing called `label` below this one.
    pub fn child(&self, label: &str, index: u64) -> Self {
        let hash = Sha256::new()
            .chain_update(self.0)
            .chain_update((label.len() as u64).to_le_bytes()) // or ("a", "bc") could meet ("ab", "c")
            .chain_update(label)
            .chain_update(index.to_le_bytes());
        Self(hash.finalize().into())
    }

    /// The random generator of this node.
    pub fn rng(&self) -> ChaCha8Rng {
        ChaCha8Rng::from_seed(self.0)
    }

    /// Noise for the batch of items `first_item .. first_item + batch`, one independent stream per item.
    pub fn noise(&self, first_item: u64, batch: usize) -> SeededNoise {
        let items = first_item..first_item.saturating_add(batch as u64);
        SeededNoise {
            streams: items.map(|item| self.child("item", item).rng()).collect(),
        }
    }
}

/// Seeded noise with one stream per item of a batch. Made by [`SeedTree::noise`].
#[derive(Debug, Clone)]
pub struct SeededNoise {
    streams: Vec<ChaCha8Rng>,
}

impl NoiseSource for SeededNoise {
    fn normal(&mut self, shape: [usize; 4], device: &Device) -> Result<Tensor<4>, DiffusionError> {
        let [batch, channels, height, width] = shape;
        if batch != self.streams.len() {
            return Err(DiffusionError::Shape {
                what: "noise request",
                expected: format!("a batch of {}, one stream per item", self.streams.len()),
                got: shape.to_vec(),
            });
        }
        let values: Vec<f32> = self
            .streams
            .iter_mut()
            .flat_map(|stream| {
                StandardNormal
                    .sample_iter(stream)
                    .take(channels * height * width)
            })
            .collect();
        Ok(Tensor::from_data(TensorData::new(values, shape), device))
    }
}

/// Draws recorded elsewhere, replayed in order.
#[derive(Debug, Clone)]
pub struct RecordedNoise {
    draws: VecDeque<Tensor<4>>,
}

impl RecordedNoise {
    /// Replays `draws`, each `[B, C, H, W]`.
    pub fn new(draws: impl IntoIterator<Item = Tensor<4>>) -> Self {
        Self {
            draws: draws.into_iter().collect(),
        }
    }

    /// Number of draws not yet taken.
    pub fn remaining(&self) -> usize {
        self.draws.len()
    }
}

impl NoiseSource for RecordedNoise {
    fn normal(&mut self, shape: [usize; 4], device: &Device) -> Result<Tensor<4>, DiffusionError> {
        match self.draws.pop_front() {
            Some(draw) if draw.dims() == shape => Ok(draw.to_device(device)),
            Some(draw) => Err(DiffusionError::Shape {
                what: "recorded noise",
                expected: format!("{shape:?}"),
                got: draw.dims().to_vec(),
            }),
            None => Err(DiffusionError::Argument {
                what: "number of recorded noise draws left",
                got: "0".into(),
                allowed: "one per stochastic sampler step".into(),
            }),
        }
    }
}

/// For deterministic samplers: refuses every draw, so that randomness cannot slip in.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoNoise;

impl NoiseSource for NoNoise {
    fn normal(
        &mut self,
        _shape: [usize; 4],
        _device: &Device,
    ) -> Result<Tensor<4>, DiffusionError> {
        Err(DiffusionError::Argument {
            what: "noise source",
            got: "none".into(),
            allowed: "a seeded or recorded source, because this sampler is stochastic".into(),
        })
    }
}
