//! What is laid over stored tensors: replacements, differences, low-rank products, further rows.
//!
//! ```text
//! replace:   W' = R
//! add:       W' = W + s D
//! low rank:  W' = W + s U V,   U [m, r], V [r, n]
//! append:    W' = [W; R]       further rows
//! ```
//!
//! A change is checked against the tensor's shape when it is laid on, and computed when the tensor is read; nothing is written.
//! Memory: what is read, and the factors of the change at work.

use std::ops::Range;
use std::sync::Arc;

use super::{Stored, Weights};
use crate::mmap::FileBytes;
use crate::{CheckpointError, Dtype, Result, TensorInfo};

/// One tensor that becomes part of another set of weights under a new name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pick {
    /// Name in the file.
    pub from: String,
    /// Name to give.
    pub name: String,
    /// Shape to give; the elements must be as many as `third` leaves.
    pub shape: Vec<usize>,
    /// Only this third of the rows, for projections that are stored as one.
    pub third: Option<usize>,
}

/// A low-rank product that is added to a tensor.
#[derive(Debug, Clone, Copy)]
pub struct LowRank<'a> {
    /// The weights that hold both factors.
    pub factors: &'a Weights,
    /// The tensor `U [m, r]` or `[m, r, 1, 1]`.
    pub up: &'a str,
    /// The tensor `V [r, n]` or `[r, c, h, w]` with `c h w = n`.
    pub down: &'a str,
    /// What the product is multiplied by.
    pub scale: f32,
}

/// Bytes of a float tensor.
#[derive(Debug, Clone)]
pub(super) struct Values {
    dtype: Dtype,
    bytes: Arc<FileBytes>,
    range: Range<usize>,
}

impl Values {
    fn read(&self) -> Vec<f32> {
        let mut values = Vec::new();
        let bytes = &self.bytes.as_slice()[self.range.clone()];
        self.dtype.for_each_f32(bytes, |v| values.push(v));
        values
    }
}

#[derive(Debug, Clone)]
pub(super) enum Change {
    Add {
        term: Values,
        scale: f32,
    },
    LowRank {
        up: Values,
        down: Values,
        rank: usize,
        scale: f32,
    },
    Append {
        rows: Values,
    },
}

impl Change {
    /// Changes the values of a tensor that has the shape that it was checked against.
    pub(super) fn apply(&self, values: &mut Vec<f32>) {
        match self {
            Self::Add { term, scale } => {
                for (value, term) in values.iter_mut().zip(term.read()) {
                    *value += scale * term;
                }
            }
            Self::LowRank {
                up,
                down,
                rank,
                scale,
            } => {
                let (up, down) = (up.read(), down.read());
                let columns = down.len() / rank;
                for (row, weights) in values.chunks_mut(columns).zip(up.chunks(*rank)) {
                    for (weight, direction) in weights.iter().zip(down.chunks(columns)) {
                        let weight = scale * weight;
                        for (value, along) in row.iter_mut().zip(direction) {
                            *value += weight * along;
                        }
                    }
                }
            }
            Self::Append { rows } => values.extend(rows.read()),
        }
    }
}

impl Weights {
    /// Puts a tensor of `other` in the place of `name`; the shapes must be equal, up to trailing ones.
    ///
    /// # Errors
    /// One of the tensors is missing, the new one is not of a float type, or its shape differs.
    pub fn replace(&mut self, name: &str, other: &Weights, from: &str) -> Result<()> {
        let wanted = self.float(name)?.info.shape.clone();
        let mut stored = other.float(from)?.clone();
        if without_ones(&stored.info.shape) != without_ones(&wanted) {
            return Err(misfit(&stored.info, name, &wanted));
        }
        stored.info.name = name.into();
        stored.info.shape = wanted;
        self.note_file(&stored.info.file.clone());
        self.tensors.insert(name.into(), stored);
        Ok(())
    }

    /// Adds `scale` times a tensor of `other` to `name`; the shapes must be equal, up to trailing ones.
    ///
    /// # Errors
    /// As [`Weights::replace`].
    pub fn add(&mut self, name: &str, other: &Weights, from: &str, scale: f32) -> Result<()> {
        let wanted = self.float(name)?.info.shape.clone();
        let term = other.float(from)?;
        if without_ones(&term.info.shape) != without_ones(&wanted) {
            return Err(misfit(&term.info, name, &wanted));
        }
        let (term, file) = (term.values()?, term.info.file.clone());
        self.change(name, Change::Add { term, scale }, &file);
        Ok(())
    }

    /// Adds a low-rank product to `name`, whose first dimension is `m` and the product of the others `n`.
    ///
    /// # Errors
    /// A tensor is missing or not of a float type, or the shapes do not multiply to that of `name`.
    pub fn add_low_rank(&mut self, name: &str, product: LowRank<'_>) -> Result<()> {
        let wanted = self.float(name)?.info.shape.clone();
        let (up, down) = (
            product.factors.float(product.up)?,
            product.factors.float(product.down)?,
        );
        let rank = rank(&up.info, &down.info, name, &wanted)?;
        let (up, down, file) = (up.values()?, down.values()?, up.info.file.clone());
        let scale = product.scale;
        let change = Change::LowRank {
            up,
            down,
            rank,
            scale,
        };
        self.change(name, change, &file);
        Ok(())
    }

    /// Appends the rows `[n, C]` (or the one row `[C]`) of a tensor of `other` to the table `name [N, C]`, and says which rows
    /// they are.
    ///
    /// # Errors
    /// One of the tensors is missing or not of a float type, or the widths differ.
    pub fn append_rows(&mut self, name: &str, other: &Weights, from: &str) -> Result<Range<usize>> {
        let wanted = self.float(name)?.info.shape.clone();
        let rows = other.float(from)?;
        let count = match (wanted.as_slice(), rows.info.shape.as_slice()) {
            ([_, width], [got]) if got == width => 1,
            ([_, width], [count, got]) if got == width => *count,
            _ => return Err(misfit(&rows.info, name, &wanted)),
        };
        let first = wanted[0];
        // The bound of the header on a tensor's elements holds for the enlarged one, too.
        let end = first
            .checked_add(count)
            .filter(|end| end.checked_mul(wanted[1]).is_some())
            .ok_or_else(|| misfit(&rows.info, name, &wanted))?;
        let (rows, file) = (rows.values()?, rows.info.file.clone());
        self.change(name, Change::Append { rows }, &file);
        if let Some(stored) = self.tensors.get_mut(name) {
            stored.info.shape[0] = end;
        }
        Ok(first..end)
    }

    /// The tensors of this file that `picks` names, under their new names and shapes. Bytes are shared.
    pub(crate) fn pick(&self, picks: &[Pick]) -> Result<Self> {
        let mut picked = Self::empty(self.variant.clone());
        picked.files = self.files.clone();
        for pick in picks {
            let mut stored = self.stored(&pick.from)?.clone();
            let elements = pick.shape.iter().copied().try_fold(1, usize::checked_mul);
            let parts = if pick.third.is_some() { 3 } else { 1 };
            let whole = elements.and_then(|part: usize| part.checked_mul(parts));
            if whole != Some(stored.info.elements()) {
                return Err(misfit(&stored.info, &pick.name, &pick.shape));
            }
            if let Some(third) = pick.third {
                let length = stored.range.len() / 3;
                let start = stored.range.start + length * third.min(2);
                stored.range = start..start + length;
            }
            stored.info.name = pick.name.clone();
            stored.info.shape = pick.shape.clone();
            if picked.tensors.insert(pick.name.clone(), stored).is_some() {
                return Err(CheckpointError::DuplicateTensor {
                    path: self.files.first().cloned().unwrap_or_default(),
                    tensor: pick.name.clone(),
                });
            }
        }
        Ok(picked)
    }

    fn change(&mut self, name: &str, change: Change, file: &std::path::Path) {
        if let Some(stored) = self.tensors.get_mut(name) {
            stored.changes.push(change);
        }
        self.note_file(file);
    }

    fn note_file(&mut self, file: &std::path::Path) {
        if !self.files.iter().any(|known| known == file) {
            self.files.push(file.into());
        }
    }
}

impl Stored {
    /// The bytes of a tensor that nothing is laid over.
    fn values(&self) -> Result<Values> {
        if !self.changes.is_empty() {
            return Err(CheckpointError::Layered {
                path: self.info.file.clone(),
                tensor: self.info.name.clone(),
            });
        }
        Ok(Values {
            dtype: self.info.dtype,
            bytes: self.bytes.clone(),
            range: self.range.clone(),
        })
    }
}

/// The rank of a product of two factors, if it has the shape `wanted`.
pub(crate) fn rank(
    up: &TensorInfo,
    down: &TensorInfo,
    name: &str,
    wanted: &[usize],
) -> Result<usize> {
    let ([rows, inner @ ..], [rank, fall @ ..]) = (wanted, down.shape.as_slice()) else {
        return Err(misfit(down, name, wanted));
    };
    if *rank == 0 || inner.is_empty() || without_ones(fall) != without_ones(inner) {
        return Err(misfit(down, name, wanted));
    }
    match up.shape.as_slice() {
        [m, r] | [m, r, 1, 1] if m == rows && r == rank => Ok(*rank),
        _ => Err(misfit(up, name, wanted)),
    }
}

/// A shape without the ones at its end, which tell a 1x1 convolution from a matrix and nothing else.
fn without_ones(shape: &[usize]) -> &[usize] {
    let end = shape.iter().rposition(|&n| n != 1).map_or(0, |at| at + 1);
    &shape[..end.max(1).min(shape.len())]
}

fn misfit(got: &TensorInfo, name: &str, wanted: &[usize]) -> CheckpointError {
    CheckpointError::Misfit {
        path: got.file.clone(),
        tensor: got.name.clone(),
        got: got.shape.clone().into(),
        target: name.into(),
        wanted: wanted.into(),
    }
}
