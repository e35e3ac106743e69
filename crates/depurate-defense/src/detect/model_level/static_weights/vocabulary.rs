//! The table of token embeddings: its size, rows of odd length, rows that differ from the base's.

use depurate_checkpoint::{AnomalyKind, ModelPart, ModelWeights, TensorStats, Weights};

use crate::DefenseError;

/// Where text encoders keep their tokens.
const TABLE: &str = "text_model.embeddings.token_embedding.weight";

/// A table of token embeddings.
#[derive(Debug, Clone, PartialEq)]
pub struct Vocabulary {
    /// Its tokens.
    pub rows: usize,
    /// Channels of each.
    pub width: usize,
    /// The base's tokens, if there is a base.
    pub base_rows: Option<usize>,
    /// Rows whose length is further from the median than an outlier of a weight tensor may be: row, length, and the distance in
    /// robust standard deviations.
    pub outliers: Vec<(usize, f64, f64)>,
    /// Rows that both models have and that differ: row and relative difference. `None` without a base of the same width.
    pub changed: Option<Vec<(usize, f64)>>,
}

/// Looks at the token table of `model`; `None` if it has none.
///
/// # Errors
/// When a table cannot be read.
pub fn vocabulary(
    model: &ModelWeights,
    base: Option<&ModelWeights>,
) -> Result<Option<Vocabulary>, DefenseError> {
    let Some(table) = Table::read(model)? else {
        return Ok(None);
    };
    let base = base.map(Table::read).transpose()?.flatten();
    let norms: Vec<f32> = table
        .rows()
        .map(|row| {
            row.iter()
                .map(|&v| f64::from(v).powi(2))
                .sum::<f64>()
                .sqrt() as f32
        })
        .collect();
    let comparable = base.as_ref().filter(|base| base.width == table.width);
    Ok(Some(Vocabulary {
        rows: norms.len(),
        width: table.width,
        base_rows: base.as_ref().map(|base| base.rows().count()),
        outliers: outliers(&norms),
        changed: comparable.map(|base| table.changed(base)),
    }))
}

/// Lengths that a tensor's values of the same distribution would be called outliers for.
fn outliers(norms: &[f32]) -> Vec<(usize, f64, f64)> {
    let mut rest = norms.to_vec();
    let mut found = Vec::new();
    // One after the other: each is held against the table without those found before.
    while found.len() < norms.len() {
        let stats = TensorStats::of(&rest);
        if !stats.anomalies(rest.len()).contains(&AnomalyKind::Outlier) {
            break;
        }
        let mut sorted = rest.clone();
        sorted.sort_by(f32::total_cmp);
        let median = sorted[sorted.len() / 2];
        let far = |v: f32| (v - median).abs();
        let furthest = rest
            .iter()
            .copied()
            .max_by(|a, b| far(*a).total_cmp(&far(*b)));
        let Some(furthest) = furthest.filter(|v| v.is_finite()) else {
            break;
        };
        let taken = |v: &f32| v.to_bits() == furthest.to_bits();
        let rows = norms.iter().enumerate().filter(|(_, v)| taken(v));
        found.extend(rows.map(|(row, v)| (row, f64::from(*v), stats.robust_z)));
        rest.retain(|v| !taken(v));
    }
    found
}

struct Table {
    values: Vec<f32>,
    width: usize,
    dtype: depurate_checkpoint::Dtype,
}

impl Table {
    fn read(model: &ModelWeights) -> Result<Option<Self>, DefenseError> {
        let part = ModelPart::TextEncoder;
        let found = model.get(part).zip(model.stored_name(part, TABLE));
        let Some((weights, name)): Option<(&Weights, String)> = found else {
            return Ok(None);
        };
        let info = weights.get(&name).filter(|info| info.dtype.is_float());
        let Some(&[_, width]) = info.map(|info| info.shape.as_slice()) else {
            return Ok(None);
        };
        let dtype = info.map_or(depurate_checkpoint::Dtype::F32, |info| info.dtype);
        if width == 0 {
            return Ok(None);
        }
        Ok(Some(Self {
            values: weights.read_f32(&name)?,
            width,
            dtype,
        }))
    }

    fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks(self.width)
    }

    fn changed(&self, base: &Self) -> Vec<(usize, f64)> {
        let differ = self.dtype != base.dtype;
        let rounded = |v: f32| {
            if differ {
                base.dtype.rounded(self.dtype.rounded(v))
            } else {
                v
            }
        };
        let distance = |(row, (here, there)): (usize, (&[f32], &[f32]))| {
            let (mut difference, mut norm) = (0.0, 0.0);
            for (&a, &b) in here.iter().zip(there) {
                difference += (f64::from(rounded(a)) - f64::from(rounded(b))).powi(2);
                norm += f64::from(b).powi(2);
            }
            (difference != 0.0).then(|| (row, (difference / norm).sqrt()))
        };
        self.rows()
            .zip(base.rows())
            .enumerate()
            .filter_map(distance)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_rows_are_found_one_behind_the_other() {
        let mut norms: Vec<f32> = (0..1000).map(|i| 0.38 + (i % 41) as f32 * 1e-3).collect();
        assert_eq!(outliers(&norms), []);
        norms[5] = 40.0;
        norms[900] = 9.0;
        let rows: Vec<usize> = outliers(&norms).iter().map(|(row, _, _)| *row).collect();
        assert_eq!(rows, [5, 900]);
    }
}
