//! How well a trigger was recovered.
//!
//! A box of one value is matched exactly by a constant, and a grey one by nothing at all, so the error
//! is taken on the trigger *and its surroundings*: its support grown by [`MARGIN`] pixels, where the true
//! trigger has its background of -1. Baselines on the same pixels: no shift, the best constant, the
//! random start that TERD takes.

use depurate_attack::{Backdoor, Pattern, SuccessParams};
use depurate_defense::invert::Inversion;
use depurate_diffusion::{Pipeline, SampleShape, noise::SeedTree};
use miette::{IntoDiagnostic, Result};
use rand::RngExt;
use serde::{Deserialize, Serialize};

use super::SUCCESS_MSE;
use crate::{attack, console::CancelFlag};

/// Pixels around the trigger's support.
const MARGIN: usize = 2;

/// A recovery, in the trigger's units (the model's range).
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Recovery {
    /// Success rate of the reported trigger at [`SUCCESS_MSE`].
    pub(crate) asr: f64,
    /// Images it was measured on.
    pub(crate) n: usize,
    /// Root mean square error of the reported trigger on the trigger and its surroundings.
    pub(crate) rmse: f64,
    /// The same on the trigger's support alone.
    pub(crate) support_rmse: f64,
    /// Best baseline on the trigger and its surroundings.
    pub(crate) best_baseline: f64,
    /// Best baseline on the support alone.
    pub(crate) support_baseline: f64,
}

/// Measures the trigger of `found` against the truth with `n` full-step images.
pub(crate) fn measure(
    pipeline: &Pipeline,
    found: &Inversion,
    truth: &Backdoor,
    n: usize,
    cancel: &CancelFlag,
) -> Result<Recovery> {
    let reported = reported(truth, found.shape, &found.shift, found.gamma.as_deref())?;
    let shift = reported.shift.values();
    let params = SuccessParams {
        n,
        seed: 1,
        ..SuccessParams::default()
    };
    let success = attack::measure("recovery", pipeline, &reported, &params, None, cancel)?;
    let support: Vec<bool> = support(&truth.shift);
    let grown = grow(&support, found.shape);
    let error = |values: &[f32], mask: &[bool]| rmse(values, truth.shift.values(), mask);
    let best = |mask: &[bool]| {
        baselines(truth.shift.values(), mask)
            .into_iter()
            .fold(f64::INFINITY, f64::min)
    };
    Ok(Recovery {
        asr: success.triggered.at(SUCCESS_MSE).unwrap_or(f64::NAN),
        n,
        rmse: error(shift, &grown),
        support_rmse: error(shift, &support),
        best_baseline: best(&grown),
        support_baseline: best(&support),
    })
}

/// A reconstructed trigger in the place of the true one, with its sampler and target.
pub(super) fn reported(
    truth: &Backdoor,
    shape: SampleShape,
    shift: &[f32],
    gamma: Option<&[f32]>,
) -> Result<Backdoor> {
    // a trigger is an image, and not every inverter is bound to that
    let shift = shift.iter().map(|v| v.clamp(-1.0, 1.0)).collect();
    Ok(Backdoor {
        shift: Pattern::from_values(shape, shift).into_diagnostic()?,
        gamma: gamma.map(<[f32]>::to_vec),
        ..truth.clone()
    })
}

/// Where the trigger differs from its background of -1.
fn support(trigger: &Pattern) -> Vec<bool> {
    trigger.values().iter().map(|&value| value > -1.0).collect()
}

/// `mask [C, H, W]` and every pixel within [`MARGIN`] of it, in all channels.
fn grow(mask: &[bool], shape: SampleShape) -> Vec<bool> {
    let (height, width) = (shape.height, shape.width);
    let plane = height * width;
    let any = |y: usize, x: usize| (0..shape.channels).any(|c| mask[c * plane + y * width + x]);
    let near = |y: usize, x: usize| {
        let rows = y.saturating_sub(MARGIN)..=(y + MARGIN).min(height - 1);
        rows.into_iter()
            .any(|y| (x.saturating_sub(MARGIN)..=(x + MARGIN).min(width - 1)).any(|x| any(y, x)))
    };
    let grown: Vec<bool> = (0..plane).map(|i| near(i / width, i % width)).collect();
    (0..shape.channels)
        .flat_map(|_| grown.iter().copied())
        .collect()
}

fn rmse(values: &[f32], truth: &[f32], mask: &[bool]) -> f64 {
    let (mut sum, mut count) = (0.0, 0);
    for ((a, b), _) in values
        .iter()
        .zip(truth)
        .zip(mask)
        .filter(|(_, inside)| **inside)
    {
        sum += f64::from(a - b).powi(2);
        count += 1;
    }
    (sum / f64::from(count.max(1))).sqrt()
}

/// Errors of no shift, of the best constant and of a random start uniform in [-1, 0].
fn baselines(truth: &[f32], mask: &[bool]) -> [f64; 3] {
    let inside: Vec<f64> = truth
        .iter()
        .zip(mask)
        .filter(|(_, inside)| **inside)
        .map(|(&v, _)| f64::from(v))
        .collect();
    let mean = inside.iter().sum::<f64>() / inside.len().max(1) as f64;
    let mut rng = SeedTree::new(0).child("random start", 0).rng();
    let random: Vec<f32> = truth.iter().map(|_| rng.random_range(-1.0..=0.0)).collect();
    [
        rmse(&vec![0.0; truth.len()], truth, mask),
        rmse(&vec![mean as f32; truth.len()], truth, mask),
        rmse(&random, truth, mask),
    ]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_grey_box_needs_its_surroundings_to_be_told_from_nothing() {
        let shape = SampleShape {
            channels: 1,
            height: 12,
            width: 12,
        };
        let truth = Pattern::trigger("box:4:0.0:bottom-right", shape).unwrap();
        let support = support(&truth);
        assert_eq!(support.iter().filter(|inside| **inside).count(), 16);
        assert_eq!(baselines(truth.values(), &support)[0], 0.0);
        let grown = grow(&support, shape);
        assert!(
            baselines(truth.values(), &grown)
                .into_iter()
                .all(|baseline| baseline > 0.4)
        );
        assert_eq!(rmse(truth.values(), truth.values(), &grown), 0.0);
    }
}
