//! Adam on an image whose pixels are bounded.

use burn::tensor::Tensor;

const BETA_1: f64 = 0.9;

/// How it moves.
#[derive(Debug, Clone, Copy)]
pub(super) struct Adam {
    pub(super) learning_rate: f64,
    /// Decay of the second moment.
    pub(super) beta_2: f64,
    /// Bound of every pixel.
    pub(super) bound: f64,
}

/// An image `[1, C, H, W]`, without graph, and its moments.
pub(super) struct Moving {
    pub(super) at: Tensor<4>,
    first: Tensor<4>,
    second: Tensor<4>,
    steps: i32,
}

impl Moving {
    pub(super) fn new(at: Tensor<4>) -> Self {
        Self {
            first: at.zeros_like(),
            second: at.zeros_like(),
            at,
            steps: 0,
        }
    }

    pub(super) fn step(&mut self, gradient: Tensor<4>, adam: Adam) {
        let Adam { beta_2, bound, .. } = adam;
        self.steps += 1;
        self.first = self.first.clone() * BETA_1 + gradient.clone() * (1.0 - BETA_1);
        self.second = self.second.clone() * beta_2 + gradient.powi_scalar(2) * (1.0 - beta_2);
        let mean = self.first.clone() / (1.0 - BETA_1.powi(self.steps));
        let root = (self.second.clone() / (1.0 - beta_2.powi(self.steps))).sqrt() + 1e-8;
        let moved = self.at.clone() - mean / root * adam.learning_rate;
        self.at = moved.clamp(-bound, bound);
    }
}
