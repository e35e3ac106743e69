//! # DAA-S: does EOS attention dissipate like that of the other tokens?
//!
//! Tokens are the nodes of a graph whose edges are the similarities of their maps. Attention flows along the edges and decays;
//! how much EOS loses, relative to the other tokens, within a set time is the score.
//!
//! ## Paper
//! Wang et al., "Dynamic Attention Analysis for Backdoor Detection in Text-to-Image Diffusion Models", TPAMI 2025,
//! arXiv:2504.20518: DAA-S.
//!
//! ## Notation
//! | code | paper | shape |
//! |---|---|---|
//! | `maps` | M_t: maps at call `t`, [`super::CallMaps`] | `[L, h, w]` |
//! | `similarity` | W_t | `[n, n]`, `n = L - 1`: BOS is left out, EOS is last |
//! | `laplacian` | A_t, a negated graph Laplacian | `[n, n]`, rows sum to 0 |
//! | `decay` | F | `[n, n]`, diagonal: -1, and -10 for EOS |
//! | `x` | x(t), the state of each node | `[n]` |
//! | `horizon` | t_7 in the released code, `tau` here | |
//!
//! ## Method
//! ```text
//! D_ij = || M_i - M_j ||_F,   W_ij = (s - D_ij) / s,   s = max D                    (1)
//! A_ij = W_ji for i != j,     A_ii = -sum_{k != i} W_ki                             (2)
//! x_i(0) = || M_0^i ||_F,     dx/dt = (F + A_floor(t)) x                            (3)
//! released = [x_EOS(0) - x_EOS(tau)] - mean_{j not EOS} [x_j(0) - x_j(tau)]         (4)
//! score = -released
//! ```
//! The released code defines the score by the increments between the first eight points of an ODE solver's own grid, which
//! telescope to eq. (4) with `tau = t_7`, the eighth point. That grid depends on the solver, its tolerances and the maps: with
//! another solver the same maps give another score, of either verdict. So the horizon is part of the definition here:
//! [`Horizon::Fixed`], by default 0.7, where the released grid ends for the recorded maps, with the matrix exponential.
//! A whole `tau` is what the paper's notation reads as, increments from call to call: they telescope too, and `tau = 7` is
//! their sum. [`Horizon::Released`] reproduces the released grid, step controller included.
//!
//! ## Needs
//! Attention maps of the calls from 0 that `[0, tau)` touches: with `tau` up to 1 the first call only. A calibration on benign
//! prompts of the same model, sampler, seed and sites.
//!
//! ## Deviations
//! - A fixed horizon instead of the solver's eighth point, unless [`DaaSParams::reference`] (test
//!   `released_scores_are_reproduced`).
//! - With the released horizon, `t_7` was below 1 for every recorded case: such a score depends on the first call only and is
//!   static, whatever the paper's title says. A `tau` above 1 is the way to a dynamic one.
//! - No threshold of the paper is a default. [`RELEASED_THRESHOLD`] belongs to the reference mode.
//! - The released code ends in an error deep inside the solver for prompts without content and for maps that are all
//!   the same; here both are errors that say so.
//!
//! ## Fails when
//! the attack leaves EOS alone. The score moves with the content of a prompt far more than the released threshold is large.
//! Nothing is known of text encoders whose EOS does not gather attention, nor of attackers who train against the score.
//!
//! ## Cost
//! The calls above, which are also the first calls of a generation with the same seed and sampler. `O(L^2 h w)` for each
//! call's distances, and some dozens of products of a matrix `[n, n]` with a vector.

mod exponential;
pub mod graph;
pub mod rk45;

use depurate_report::{Access, AlgorithmId, AlgorithmInfo, Kind, Paper, Status};
use serde::{Deserialize, Serialize};

pub use exponential::propagate;
pub use graph::{Flow, Graph};

use super::{
    MapSource, PromptDetector, PromptScore,
    attention_maps::{at, norm},
    daa_i::{PAPER, REFERENCE},
    json,
};
use crate::DefenseError;
use rk45::Rk45;

/// The detector's id.
pub const ID: &str = "daa-s";
/// The released code calls a prompt backdoored when `released` is below this.
pub const RELEASED_THRESHOLD: f64 = 0.001_500_156_118_820_060_4;
/// Increments that the released score sums.
const RELEASED_STEPS: usize = 7;
/// Where the released code's solver would end: its number of calls, 50, less 1.
pub const RELEASED_END: f64 = 49.0;

/// Up to which time the dissipation is followed. Times are in calls of the UNet, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
pub enum Horizon {
    /// To `tau`, exactly.
    Fixed {
        /// The time.
        tau: f64,
    },
    /// To the eighth point of the grid of SciPy's `solve_ivp` with its defaults, by its solution.
    Released,
}

/// Parameters. The default is a fixed horizon within the first call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DaaSParams {
    /// Up to which time.
    pub horizon: Horizon,
}

impl Default for DaaSParams {
    fn default() -> Self {
        Self {
            horizon: Horizon::Fixed { tau: 0.7 },
        }
    }
}

impl DaaSParams {
    /// As in the released code.
    pub fn reference() -> Self {
        Self {
            horizon: Horizon::Released,
        }
    }

    /// Checks the parameters and makes the detector.
    ///
    /// # Errors
    /// When the horizon is not a time within a run.
    pub fn build(self) -> Result<DaaS, DefenseError> {
        match self.horizon {
            Horizon::Fixed { tau } if !(tau > 0.0 && tau <= 1000.0) => Err(DefenseError::Params {
                field: "horizon.tau",
                value: tau.to_string(),
                allowed: "above 0, at most 1000 calls",
            }),
            _ => Ok(DaaS { params: self }),
        }
    }
}

/// The detector. Made by [`DaaSParams::build`].
#[derive(Debug, Clone)]
pub struct DaaS {
    params: DaaSParams,
}

/// Where the states of the tokens began and ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Dissipation {
    /// `x(0) [n]`, EOS last.
    pub start: Vec<f64>,
    /// `x(tau) [n]`.
    pub end: Vec<f64>,
    /// `tau`.
    pub horizon: f64,
    /// How many of the first calls of the UNet this depends on.
    pub calls: usize,
}

impl Dissipation {
    /// Eq. (4): how much more EOS loses than the other tokens do on average.
    pub fn excess_of_eos(&self) -> f64 {
        let mut lost = self
            .start
            .iter()
            .zip(&self.end)
            .map(|(start, end)| start - end);
        let eos = lost.next_back().unwrap_or(0.0);
        let others = lost.len().max(1) as f64;
        eos - lost.sum::<f64>() / others
    }
}

impl DaaS {
    /// Follows the states up to the horizon.
    ///
    /// # Errors
    /// As [`PromptDetector::score`].
    pub fn dissipation(&self, maps: &mut dyn MapSource) -> Result<Dissipation, DefenseError> {
        match self.params.horizon {
            Horizon::Released => released(maps),
            Horizon::Fixed { tau } => exact(maps, tau),
        }
    }
}

impl PromptDetector for DaaS {
    fn info(&self) -> AlgorithmInfo {
        info()
    }

    fn scoring(&self) -> serde_json::Value {
        json(&self.params)
    }

    fn released_threshold(&self) -> Option<f64> {
        (self.params == DaaSParams::reference()).then_some(RELEASED_THRESHOLD)
    }

    fn score(&self, maps: &mut dyn MapSource) -> Result<PromptScore, DefenseError> {
        let dissipation = self.dissipation(maps)?;
        Ok(PromptScore::from_released(
            dissipation.excess_of_eos(),
            dissipation.calls,
        ))
    }
}

/// `x(0) [n]` of eq. (3), EOS last.
///
/// # Errors
/// When there is no first call.
pub fn initial_state(maps: &mut dyn MapSource) -> Result<Vec<f64>, DefenseError> {
    Ok(at(maps, 0)?.maps().skip(1).map(norm).collect())
}

/// To the eighth point of the solver's own grid. A trial step beyond a whole number needs that call's maps even if it is
/// then rejected, as its size depends on them.
fn released(maps: &mut dyn MapSource) -> Result<Dissipation, DefenseError> {
    let start = initial_state(maps)?;
    let mut flow = Flow::new(maps);
    let mut solver = Rk45::new(&mut flow, &start, RELEASED_END)?;
    let mut steps = 0;
    while steps < RELEASED_STEPS && solver.step(&mut flow)? {
        steps += 1;
    }
    Ok(Dissipation {
        end: solver.state().to_vec(),
        horizon: solver.t(),
        calls: flow.calls(),
        start,
    })
}

/// To `tau`: between whole numbers the system is linear with constant coefficients.
fn exact(maps: &mut dyn MapSource, tau: f64) -> Result<Dissipation, DefenseError> {
    let start = initial_state(maps)?;
    let mut end = start.clone();
    let calls = tau.ceil() as usize;
    for call in 0..calls {
        let graph = Graph::of(at(maps, call)?)?;
        let length = (tau - call as f64).min(1.0);
        propagate(&graph.decaying(), &mut end, length);
    }
    Ok(Dissipation {
        start,
        end,
        horizon: tau,
        calls,
    })
}

/// Who and what this detector is.
pub fn info() -> AlgorithmInfo {
    AlgorithmInfo {
        id: AlgorithmId::from_static(ID),
        name: "DAA-S",
        kind: Kind::InputDetector,
        paper: Paper {
            implements: "DAA-S",
            ..PAPER
        },
        reference: Some(REFERENCE),
        needs: Access::ATTENTION,
        deviations: &[
            "fixed horizon by matrix exponential",
            "higher is more suspicious",
            "conformal threshold by number of tokens",
        ],
        status: Status::Preview,
    }
}
