//! Detectors that judge one input: an initial noise, or a prompt by the attention that it draws.
//!
//! A detector of prompts asks a [`MapSource`] for the maps of the first calls of the UNet, and for no more than its score
//! uses. A *call* is one run of the UNet on a batch, the guidance pair included.

pub mod attention_maps;
pub mod daa_i;
pub mod daa_s;
pub mod evolution;
pub mod map_collector;
pub mod prompt_run;
pub mod terd_input;
pub mod unicode;

pub use attention_maps::{CallMaps, LazyMaps, MapSource, TokenMaps};
pub use map_collector::{MapCollector, SiteSelection};
pub use prompt_run::{PromptRun, RunOptions};

use depurate_report::AlgorithmInfo;
use serde::{Deserialize, Serialize};

use crate::DefenseError;

/// The score of one prompt.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PromptScore {
    /// Higher is more suspicious.
    pub score: f64,
    /// The same number as the paper and the released code write it, where lower is more suspicious.
    pub released: f64,
    /// How many of the first calls of the UNet the score depends on.
    pub calls: usize,
}

impl PromptScore {
    /// The one place where the published orientation is flipped.
    fn from_released(released: f64, calls: usize) -> Self {
        Self {
            score: -released,
            released,
            calls,
        }
    }
}

/// Scores one prompt by its attention maps.
pub trait PromptDetector: Send + Sync {
    /// Who it is.
    fn info(&self) -> AlgorithmInfo;

    /// The parameters that change the score, as JSON; a calibration belongs to them.
    fn scoring(&self) -> serde_json::Value;

    /// The constant that the released code compares [`PromptScore::released`] with: below it the prompt counts as
    /// backdoored. It was chosen on six attacks on Stable Diffusion 1.4 and states no error rate. `None` for scores that the
    /// released code does not compute.
    fn released_threshold(&self) -> Option<f64>;

    /// Scores the prompt whose maps `maps` gives, asking for no call that the score does not use.
    ///
    /// # Errors
    /// When a call is missing or fails, or when the maps leave the score undefined.
    fn score(&self, maps: &mut dyn MapSource) -> Result<PromptScore, DefenseError>;
}

pub(crate) fn json<T: Serialize>(params: &T) -> serde_json::Value {
    serde_json::to_value(params).unwrap_or(serde_json::Value::Null)
}
