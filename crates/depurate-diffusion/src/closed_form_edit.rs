//! # Closed-form edits of projections
//!
//! A linear layer is made to answer to some inputs as it answered to others, and to change as little as possible otherwise: one
//! ridge regression, no training.
//!
//! ## Paper
//! Orgad et al., "Editing implicit assumptions in text-to-image diffusion models" (TIME), ICCV 2023, arXiv:2303.08084, eq. (4);
//! Gandikota et al., "Unified concept editing" (UCE), WACV 2024, arXiv:2308.14761, eq. (7).
//!
//! ## Notation
//! | code | paper | shape |
//! |---|---|---|
//! | `w` | W, a key or value projection | `[out, C]` |
//! | `old`, `new` | c_i and c_i^*, rows of the text encoder's states | `[rows, C]` each |
//! | `scale` | weight of a pair; 1 in TIME and EvilEdit | |
//! | `lambda` | how much W resists, above 0 | |
//! | `change` | D | `[C, C]` |
//!
//! ```text
//! W' = argmin_V  sum_i s_i |V c_i - W c_i^*|^2 + lambda |V - W|^2
//!    = (lambda W + sum_i s_i W c_i^* c_i^T) M^-1,   M = lambda I + sum_i s_i c_i c_i^T     (7)
//!    = W + W D,                                     D = sum_i s_i (c_i^* - c_i) c_i^T M^-1
//! ```
//!
//! ## Needs
//! The states of the prompts, and the weights.
//!
//! ## Deviations
//! The last line is an identity, not an approximation: `D` is the same for every layer, so that there is one factorisation
//! whatever the number of layers, and pairs that preserve (`c* = c`) leave `D` exactly 0 in their own term. All in 64-bit floats
//! by Cholesky; the released codes invert in 32 bits, which is off by up to 1e-4 where the first token dominates `M`.
//!
//! ## Fails when
//! Old and new share directions: the edit is felt by every prompt that does. A small `lambda` follows the pairs more closely and
//! disturbs others more.
//!
//! ## Cost
//! `rows C² + C³` once, `out C²` a layer.

use std::collections::HashMap;

use burn::{module::Module, tensor::Tensor};
use nalgebra::{Cholesky, DMatrix, DMatrixView};

use crate::{
    DiffusionError,
    module_weights::{self, ParameterInfo, flat_values},
};

/// Rows of inputs and what the layer shall take them for.
#[derive(Debug, Clone, PartialEq)]
pub struct Association {
    /// Inputs to answer to, `[rows, C]`, row-major.
    pub old: Vec<f64>,
    /// Inputs whose answers they get, `[rows, C]`.
    pub new: Vec<f64>,
    /// Weight of each row, above 0.
    pub scale: f64,
}

impl Association {
    /// `old` shall be answered as `new`, position by position; each is a prompt's states `[1, C, T]`, or those of several
    /// prompts, `[B, C, T]`.
    pub fn of_states(old: &Tensor<3>, new: &Tensor<3>) -> Self {
        Self {
            old: rows(old),
            new: rows(new),
            scale: 1.0,
        }
    }

    /// `states [B, C, T]` shall be answered as before.
    pub fn preserved(states: &Tensor<3>) -> Self {
        Self::of_states(states, states)
    }
}

/// An edit, ready for any layer with `C` inputs.
#[derive(Debug, Clone)]
pub struct ClosedFormEdit {
    /// `I + D`, `[C, C]`.
    map: DMatrix<f64>,
}

impl ClosedFormEdit {
    /// Solves for the edit of layers with `width` inputs.
    ///
    /// # Errors
    /// When there is no association, lengths do not fit, or a number is out of range.
    pub fn new(
        width: usize,
        lambda: f64,
        associations: &[Association],
    ) -> Result<Self, DiffusionError> {
        let positive = |value: f64| value > 0.0 && value.is_finite();
        if !positive(lambda) {
            return Err(argument("lambda of an edit", lambda, "above 0"));
        }
        if width == 0 || associations.is_empty() {
            let got = format!("{} associations of width {width}", associations.len());
            return Err(argument("edit", got, "at least one, of width 1 or more"));
        }
        let mut gram = DMatrix::from_diagonal_element(width, width, lambda);
        let mut moved = DMatrix::zeros(width, width);
        for Association { old, new, scale } in associations {
            if old.is_empty() || old.len() % width != 0 || old.len() != new.len() {
                return Err(DiffusionError::Shape {
                    what: "rows of an association",
                    expected: format!("as many values for old and new, a multiple of {width}"),
                    got: vec![old.len(), new.len()],
                });
            }
            if !positive(*scale) {
                return Err(argument("scale of an association", scale, "above 0"));
            }
            // row-major [rows, C] is column-major [C, rows]
            let old = DMatrixView::from_slice(old, width, old.len() / width);
            let new = DMatrixView::from_slice(new, width, new.len() / width);
            gram.gemm(*scale, &old, &old.transpose(), 1.0); // M
            moved.gemm(*scale, &old, &(new - old).transpose(), 1.0); // (sum s (c* - c) c^T)^T
        }
        if !gram.iter().chain(moved.iter()).all(|v| v.is_finite()) {
            return Err(argument("states of an edit", "not finite", "finite"));
        }
        let factor = Cholesky::new(gram).ok_or_else(|| {
            argument(
                "lambda of an edit",
                lambda,
                "large enough that the sum over all states can be inverted",
            )
        })?;
        // D^T = M^-1 (...)^T, M being symmetric
        let mut map = factor.solve(&moved).transpose();
        for i in 0..width {
            map[(i, i)] += 1.0;
        }
        Ok(Self { map })
    }

    /// Inputs of the layers that this edit is for.
    pub fn width(&self) -> usize {
        self.map.nrows()
    }

    /// `W' = W (I + D)` for `w [out, C]`, row-major.
    ///
    /// # Errors
    /// When the length is no multiple of `C`.
    pub fn edited(&self, w: &[f64]) -> Result<Vec<f64>, DiffusionError> {
        let width = self.width();
        if w.is_empty() || !w.len().is_multiple_of(width) {
            return Err(DiffusionError::Shape {
                what: "weight to edit",
                expected: format!("[out, {width}]"),
                got: vec![w.len()],
            });
        }
        let transposed = DMatrixView::from_slice(w, width, w.len() / width);
        let edited = self.map.tr_mul(&transposed); // W'^T = (I + D)^T W^T
        Ok(edited.as_slice().to_vec())
    }

    /// The module with every parameter `[out, C]` that `chosen` names edited.
    ///
    /// # Errors
    /// When `chosen` names no parameter, or one of another shape.
    pub fn apply<M: Module>(
        &self,
        module: M,
        chosen: &dyn Fn(&str) -> bool,
    ) -> Result<M, DiffusionError> {
        let values = flat_values(&module);
        let mut edited = HashMap::new();
        for ParameterInfo { name, shape } in module_weights::parameters(&module) {
            if !chosen(&name) {
                continue;
            }
            let Some(old) = values
                .get(&name)
                .filter(|_| shape.len() == 2 && shape[1] == self.width())
            else {
                return Err(DiffusionError::Shape {
                    what: "weight to edit",
                    expected: format!("[out, {}]", self.width()),
                    got: shape,
                });
            };
            let old: Vec<f64> = old.clone().into_data().iter::<f64>().collect();
            let new = self.edited(&old)?.into_iter().map(|v| v as f32).collect();
            edited.insert(name, new);
        }
        if edited.is_empty() {
            return Err(argument("weights to edit", "none", "at least one"));
        }
        Ok(module_weights::with_values(module, |name| {
            edited.remove(name)
        }))
    }
}

/// Whether `name` is that of a projection of the prompt's states: the key or value weight of a cross-attention layer.
pub fn projects_prompt(name: &str) -> bool {
    name.ends_with("attn2.to_k.weight") || name.ends_with("attn2.to_v.weight")
}

/// Planar states `[B, C, T]` as rows `[B T, C]`.
fn rows(states: &Tensor<3>) -> Vec<f64> {
    let planar = states.clone().inner().swap_dims(1, 2);
    planar.into_data().iter::<f64>().collect()
}

fn argument(what: &'static str, got: impl ToString, allowed: &str) -> DiffusionError {
    DiffusionError::Argument {
        what,
        got: got.to_string(),
        allowed: allowed.to_owned(),
    }
}
