//! Which samples of a batch are poisoned.

use burn::tensor::{Tensor, TensorData};
use depurate_training::Draw;
use rand::RngExt;

use crate::AttackError;

/// 1 for poisoned samples of `images [B, C, H, W]` and 0 for others, `[B, 1, 1, 1]`; `trigger [1, C, H, W]` must fit the images.
pub(crate) fn marks(
    images: &Tensor<4>,
    trigger: &Tensor<4>,
    poisoned: &[bool],
) -> Result<Tensor<4>, AttackError> {
    if poisoned.len() != images.dims()[0] || images.dims()[1..] != trigger.dims()[1..] {
        return Err(AttackError::Params {
            what: "batch of images",
            got: format!("{:?} with {} marks", images.dims(), poisoned.len()),
            allowed: "the trigger's shape and one mark an image",
        });
    }
    let marks: Vec<f32> = poisoned.iter().map(|&p| f32::from(u8::from(p))).collect();
    let marks = TensorData::new(marks, [poisoned.len(), 1, 1, 1]);
    Ok(Tensor::from_data(marks, &images.device()))
}

/// Samples of a draw that are poisoned where each is with chance `share`.
pub(crate) fn by_chance(draw: &Draw, share: f64) -> Vec<bool> {
    let mut rng = draw.seed.child("poisoned", 0).rng();
    draw.indices
        .iter()
        .map(|_| rng.random::<f64>() < share)
        .collect()
}
