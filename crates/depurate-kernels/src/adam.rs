//! The step of Adam with decoupled weight decay.
//!
//! Kingma and Ba, arXiv:1412.6980, algorithm 1; Loshchilov and Hutter, arXiv:1711.05101, algorithm 2.

use crate::lanewise::{self, Lanewise};
use crate::simd::Simd;

/// The constants of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Factor of the gradient, which cuts its norm.
    pub gradient_scale: f32,
    /// Decay of the first moment.
    pub beta_1: f32,
    /// Decay of the second moment.
    pub beta_2: f32,
    /// `1 - beta_1^n` in step `n`, from 1.
    pub correction_1: f32,
    /// `1 - beta_2^n`.
    pub correction_2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Learning rate.
    pub learning_rate: f32,
    /// Weight decay, multiplied by the learning rate.
    pub weight_decay: f32,
}

/// One step of `values` along `gradient`; the moments are 0 before the first.
pub fn step(
    values: &mut [f32],
    gradient: &[f32],
    first: &mut [f32],
    second: &mut [f32],
    step: Step,
) {
    lanewise::run(step, [gradient], [values, first, second]);
}

impl Lanewise<1, 3> for Step {
    #[inline(always)]
    unsafe fn at<S: Simd>(self, [g]: [S::V; 1], [value, first, second]: [S::V; 3]) -> [S::V; 3] {
        // SAFETY: register arithmetic only.
        unsafe {
            let g = S::mul(g, S::splat(self.gradient_scale));
            let fresh = S::mul(g, S::splat(1.0 - self.beta_1));
            let first = S::fma(first, S::splat(self.beta_1), fresh);
            let fresh = S::mul(S::mul(g, g), S::splat(1.0 - self.beta_2));
            let second = S::fma(second, S::splat(self.beta_2), fresh);
            let root = S::sqrt(S::div(second, S::splat(self.correction_2)));
            let direction = S::div(first, S::add(root, S::splat(self.epsilon)));
            let kept = S::mul(
                value,
                S::splat(1.0 - self.learning_rate * self.weight_decay),
            );
            let length = S::splat(-self.learning_rate / self.correction_1);
            [S::fma(direction, length, kept), first, second]
        }
    }
}
