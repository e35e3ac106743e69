//! The differences of the cross-attention's keys and values: how few directions, and whether all layers share them.

use depurate_checkpoint::{ModelPart, ModelWeights};
use nalgebra::DMatrix;

use super::drift::{Drift, TensorDrift};
use super::spectrum::{Spectrum, gram};
use crate::{Cx, DefenseError};

/// Numbers of directions at which shares of the energy are given.
pub const RANKS: [usize; 4] = [1, 2, 4, 8];

/// What was done to the projections `attn2.to_k` and `attn2.to_v` of a UNet.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyValueEdit {
    /// Every changed projection with the spectrum of its difference.
    pub layers: Vec<(TensorDrift, Spectrum)>,
    /// How many projections the model has.
    pub projections: usize,
    /// Whether nothing else of the model is changed.
    pub alone: bool,
    /// Mean over layers of eq. (2) at [`RANKS`].
    pub own: [f64; 4],
    /// Eq. (5) at [`RANKS`]: as `own` where all layers share their directions.
    pub common: [f64; 4],
}

/// Whether a parameter is a projection of the text in a cross-attention.
fn is_key_or_value(tensor: &TensorDrift) -> bool {
    tensor.part == ModelPart::Unet
        && tensor.shape.len() == 2
        && (tensor.name.ends_with(".attn2.to_k.weight")
            || tensor.name.ends_with(".attn2.to_v.weight"))
}

/// Looks at the changed projections; `None` if there are none.
///
/// # Errors
/// When a tensor cannot be read, the time is spent or the caller asked to stop.
pub fn key_value_edit(
    model: &ModelWeights,
    base: &ModelWeights,
    drift: &Drift,
    cx: &Cx<'_>,
) -> Result<Option<KeyValueEdit>, DefenseError> {
    let mut layers = Vec::new();
    let mut mean: Option<DMatrix<f64>> = None;
    let mut averaged = 0.0;
    for tensor in drift.changed().filter(|tensor| is_key_or_value(tensor)) {
        cx.step()?;
        let mut difference = model.unet.read_f32(&tensor.name)?;
        let before = base.unet.read_f32(&tensor.base_name)?;
        for (value, before) in difference.iter_mut().zip(before) {
            *value -= before;
        }
        let columns = tensor.shape[1];
        let gram = gram(&difference, columns);
        let spectrum = Spectrum::of_gram(&gram);
        // Not finite weights have no spectrum; they are reported as such elsewhere.
        if !spectrum.energy.is_finite() || spectrum.energy <= 0.0 {
            continue;
        }
        let share = gram / spectrum.energy;
        match &mut mean {
            None => mean = Some(share),
            // All layers of a UNet read one text; one of another width shares no directions.
            Some(sum) if sum.nrows() == columns => *sum += share,
            Some(_) => {}
        }
        averaged += 1.0;
        layers.push((tensor.clone(), spectrum));
    }
    let Some(mean) = mean else {
        return Ok(None);
    };
    let common = Spectrum::of_gram(&(mean / averaged)); // eq. (4)
    let own = RANKS.map(|r| {
        let shares = layers.iter().map(|(_, spectrum)| spectrum.energy_share(r));
        shares.sum::<f64>() / layers.len() as f64
    });
    Ok(Some(KeyValueEdit {
        projections: drift.tensors.iter().filter(|t| is_key_or_value(t)).count(),
        alone: drift.is_comparable() && drift.changed().all(is_key_or_value),
        common: RANKS.map(|r| common.energy_share(r)), // eq. (5)
        own,
        layers,
    }))
}
