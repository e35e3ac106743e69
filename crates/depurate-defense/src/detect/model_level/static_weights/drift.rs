//! How far every tensor is from the base's.

use std::collections::BTreeMap;

use depurate_checkpoint::{ModelPart, ModelWeights, Weights, rename_deprecated_attention};
use serde::Serialize;

use crate::{Cx, DefenseError};

/// One tensor that both models have.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorDrift {
    /// The network.
    pub part: ModelPart,
    /// The parameter, as the suspect stores it.
    pub name: String,
    /// As the base stores it.
    pub base_name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Whether any value differs, beyond the rounding of the coarser type.
    pub changed: bool,
    /// Eq. (1); infinite where the base's tensor is zero and the suspect's is not.
    pub relative: f64,
}

/// A model against its base.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Drift {
    /// Every float tensor that both have with one shape.
    pub tensors: Vec<TensorDrift>,
    /// Tensors of the suspect that the base lacks or has with another shape.
    pub only_here: Vec<(ModelPart, String)>,
    /// Tensors of the base that the suspect lacks.
    pub only_base: Vec<(ModelPart, String)>,
}

impl Drift {
    /// The tensors that differ.
    pub fn changed(&self) -> impl Iterator<Item = &TensorDrift> {
        self.tensors.iter().filter(|tensor| tensor.changed)
    }

    /// `(changed, all)` tensors of a network.
    pub fn counts(&self, part: ModelPart) -> (usize, usize) {
        let of = self.tensors.iter().filter(|tensor| tensor.part == part);
        (of.clone().filter(|t| t.changed).count(), of.count())
    }

    /// Whether both models have the same tensors in the same shapes.
    pub fn is_comparable(&self) -> bool {
        self.only_here.is_empty() && self.only_base.is_empty()
    }
}

/// Compares `model` with `base`, tensor by tensor.
///
/// # Errors
/// When a tensor cannot be read, the time is spent or the caller asked to stop.
pub fn drift(
    model: &ModelWeights,
    base: &ModelWeights,
    cx: &Cx<'_>,
) -> Result<Drift, DefenseError> {
    let mut drift = Drift::default();
    for part in ModelPart::ALL {
        let here = model
            .get(part)
            .map(|w| by_name(part, w))
            .unwrap_or_default();
        let mut there = base.get(part).map(|w| by_name(part, w)).unwrap_or_default();
        for (canonical, name) in here {
            let base_name = there.remove(&canonical);
            let weights = model.get(part).zip(base.get(part));
            let Some((base_name, (here, there))) = base_name.zip(weights) else {
                drift.only_here.push((part, name));
                continue;
            };
            match compare(part, (here, &name), (there, &base_name), cx)? {
                Some(tensor) => drift.tensors.push(tensor),
                None => drift.only_here.push((part, name)),
            }
        }
        drift
            .only_base
            .extend(there.into_values().map(|name| (part, name)));
    }
    Ok(drift)
}

/// The float tensors of a network by the name that they have today.
fn by_name(part: ModelPart, weights: &Weights) -> BTreeMap<String, String> {
    let floats = weights.infos().filter(|info| info.dtype.is_float());
    floats
        .map(|info| {
            let name = info.name.clone();
            let canonical = match part {
                ModelPart::TextEncoder if !name.starts_with("text_model.") => {
                    format!("text_model.{name}")
                }
                ModelPart::Vae => {
                    rename_deprecated_attention(&name).unwrap_or_else(|| name.clone())
                }
                _ => name.clone(),
            };
            (canonical, name)
        })
        .collect()
}

fn compare(
    part: ModelPart,
    (here, name): (&Weights, &str),
    (there, base_name): (&Weights, &str),
    cx: &Cx<'_>,
) -> Result<Option<TensorDrift>, DefenseError> {
    cx.step()?;
    let (Some(info), Some(base_info)) = (here.get(name), there.get(base_name)) else {
        return Ok(None);
    };
    let same = |a: &[usize], b: &[usize]| {
        a.iter()
            .filter(|n| **n != 1)
            .eq(b.iter().filter(|n| **n != 1))
    };
    if !same(&info.shape, &base_info.shape) {
        return Ok(None);
    }
    let (values, base) = (here.read_f32(name)?, there.read_f32(base_name)?);
    let differ = info.dtype != base_info.dtype;
    let rounded = |v: f32| {
        if differ {
            base_info.dtype.rounded(info.dtype.rounded(v))
        } else {
            v
        }
    };
    let (mut changed, mut difference, mut norm) = (false, 0.0, 0.0);
    for (&a, &b) in values.iter().zip(&base) {
        let (a, b) = (rounded(a), rounded(b));
        changed |= a != b && !(a.is_nan() && b.is_nan());
        difference += (f64::from(a) - f64::from(b)).powi(2);
        norm += f64::from(b).powi(2);
    }
    Ok(Some(TensorDrift {
        part,
        name: name.into(),
        base_name: base_name.into(),
        shape: info.shape.clone(),
        changed,
        // eq. (1)
        relative: if changed {
            (difference / norm).sqrt()
        } else {
            0.0
        },
    }))
}
