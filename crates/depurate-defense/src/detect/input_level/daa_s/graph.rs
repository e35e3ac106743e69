//! The graph of a prompt's tokens at one call, and the system of equations that it makes.

use super::super::{
    CallMaps, MapSource,
    attention_maps::{at, distance},
};
use super::rk45::System;
use crate::DefenseError;

/// Decay rate of every node but EOS: the diagonal of F.
pub const DECAY: f64 = -1.0;
/// Decay rate of EOS.
pub const EOS_DECAY: f64 = -10.0;

/// Similarity of the tokens without BOS at one call; EOS is the last node.
#[derive(Debug, Clone, PartialEq)]
pub struct Graph {
    nodes: usize,
    similarity: Vec<f64>,
}

impl Graph {
    /// Eq. (1).
    ///
    /// # Errors
    /// When all maps are identical: then there is no scale to measure similarity with.
    pub fn of(maps: &CallMaps) -> Result<Self, DefenseError> {
        let nodes = maps.tokens() - 1;
        let mut similarity = vec![0.0; nodes * nodes];
        let mut scale = 0.0f64;
        for (i, a) in maps.maps().skip(1).enumerate() {
            for (j, b) in maps.maps().skip(1).enumerate().take(i) {
                let distance = distance(a, b);
                similarity[i * nodes + j] = distance;
                similarity[j * nodes + i] = distance;
                scale = scale.max(distance);
            }
        }
        // also refuses distances so small that their quotients would not be finite
        if !scale.is_normal() {
            return Err(DefenseError::IdenticalMaps);
        }
        for entry in &mut similarity {
            *entry = (scale - *entry) / scale; // eq. (1); 1 on the diagonal
        }
        Ok(Self { nodes, similarity })
    }

    /// `n`.
    pub fn nodes(&self) -> usize {
        self.nodes
    }

    /// W, `[n, n]`: symmetric, 1 on the diagonal, 0 for the pair that is farthest apart.
    pub fn similarity(&self) -> &[f64] {
        &self.similarity
    }

    /// A of eq. (2), `[n, n]`: symmetric, rows sum to 0.
    pub fn laplacian(&self) -> Vec<f64> {
        let mut a = self.similarity.clone(); // W is symmetric: W_ji = W_ij
        for (i, row) in a.chunks_exact_mut(self.nodes).enumerate() {
            let all: f64 = row.iter().sum();
            row[i] = -(all - row[i]); // eq. (2)
        }
        a
    }

    /// F + A of eq. (3), `[n, n]`: symmetric and negative definite.
    pub fn decaying(&self) -> Vec<f64> {
        let mut system = self.laplacian();
        for (i, row) in system.chunks_exact_mut(self.nodes).enumerate() {
            row[i] += if i + 1 == self.nodes {
                EOS_DECAY
            } else {
                DECAY
            };
        }
        system
    }
}

/// `matrix [n, n]` times `x [n]`.
pub(super) fn product(matrix: &[f64], x: &[f64], out: &mut [f64]) {
    for (row, out) in matrix.chunks_exact(x.len()).zip(out) {
        *out = row.iter().zip(x).map(|(m, x)| m * x).sum();
    }
}

/// The system of eq. (3): its coefficients are those of call `floor(t)`, which is made when the solver first gets there.
pub struct Flow<'a> {
    maps: &'a mut dyn MapSource,
    /// F + A of each call that was needed so far.
    matrices: Vec<Option<Vec<f64>>>,
}

impl<'a> Flow<'a> {
    /// Of the prompt whose maps `maps` gives.
    pub fn new(maps: &'a mut dyn MapSource) -> Self {
        Self {
            maps,
            matrices: Vec::new(),
        }
    }

    /// How many of the first calls were needed so far; the state at 0 needs the first.
    pub fn calls(&self) -> usize {
        self.matrices.len().max(1)
    }
}

impl System for Flow<'_> {
    fn rate(&mut self, t: f64, x: &[f64], rate: &mut [f64]) -> Result<(), DefenseError> {
        let call = t.max(0.0) as usize;
        if !matches!(self.matrices.get(call), Some(Some(_))) {
            let matrix = Graph::of(at(self.maps, call)?)?.decaying();
            if call >= self.matrices.len() {
                self.matrices.resize(call + 1, None);
            }
            self.matrices[call] = Some(matrix);
        }
        if let Some(Some(matrix)) = self.matrices.get(call) {
            product(matrix, x, rate); // eq. (3)
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn graph(values: &[f32]) -> Result<Graph, DefenseError> {
        Graph::of(&CallMaps::new(values.len(), (1, 1), values.to_vec())?)
    }

    #[test]
    fn similarity_falls_with_distance_and_bos_is_no_node() {
        let graph = graph(&[100.0, 1.0, 2.0, 5.0]).unwrap();
        assert_eq!(graph.nodes(), 3);
        assert_eq!(
            graph.similarity(),
            [1.0, 0.75, 0.0, 0.75, 1.0, 0.25, 0.0, 0.25, 1.0]
        );
        assert_eq!(
            graph.laplacian(),
            [-0.75, 0.75, 0.0, 0.75, -1.0, 0.25, 0.0, 0.25, -0.25]
        );
        assert_eq!(graph.decaying()[8], -10.25);
    }

    #[test]
    fn one_token_of_content_is_not_tied_to_eos() {
        let graph = graph(&[0.0, 1.0, 3.0]).unwrap();
        assert_eq!(graph.decaying(), [-1.0, 0.0, 0.0, -10.0]);
    }

    #[test]
    fn identical_maps_have_no_similarity() {
        assert!(matches!(
            graph(&[0.5, 0.25, 0.25, 0.25]),
            Err(DefenseError::IdenticalMaps)
        ));
    }
}
