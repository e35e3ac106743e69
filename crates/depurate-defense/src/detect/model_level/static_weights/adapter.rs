//! What a LoRA changes, and along how many directions.

use depurate_checkpoint::{Lora, LoraPair, ModelWeights};

use super::spectrum::product_singular_values;
use crate::{Cx, DefenseError};

/// One adapted parameter.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterLayer {
    /// What it changes, and how.
    pub pair: LoraPair,
    /// Eq. (6), times the pair's own scale: singular values of the change, in descending order.
    pub singular_values: Vec<f64>,
    /// The change's size relative to the parameter that it changes.
    pub relative: f64,
}

impl AdapterLayer {
    /// Eq. (3) of the change.
    pub fn effective_rank(&self) -> f64 {
        let squares = || self.singular_values.iter().map(|s| s * s);
        let fourth: f64 = squares().map(|s| s * s).sum();
        if fourth > 0.0 {
            squares().sum::<f64>().powi(2) / fourth
        } else {
            0.0
        }
    }
}

/// Looks at every adapted parameter of `lora`, at strength 1, against the model that it was opened for.
///
/// # Errors
/// When a tensor cannot be read, the time is spent or the caller asked to stop.
pub fn adapter_layers(
    lora: &Lora,
    model: &ModelWeights,
    cx: &Cx<'_>,
) -> Result<Vec<AdapterLayer>, DefenseError> {
    let mut layers = Vec::with_capacity(lora.pairs().len());
    for pair in lora.pairs() {
        cx.step()?;
        let factors = lora.factors(pair)?;
        let scale = f64::from(pair.scale).abs();
        let mut values = product_singular_values(&factors.up, &factors.down, pair.rank);
        values.iter_mut().for_each(|value| *value *= scale);
        let size = |squares: f64| squares.sqrt();
        let change = size(values.iter().map(|v| v * v).sum());
        let weight = match model.get(pair.part) {
            Some(weights) => weights.read_f32(&pair.parameter)?,
            None => Vec::new(),
        };
        let weight = size(weight.iter().map(|&v| f64::from(v).powi(2)).sum());
        layers.push(AdapterLayer {
            pair: pair.clone(),
            singular_values: values,
            relative: change / weight,
        });
    }
    Ok(layers)
}
