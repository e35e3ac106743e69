//! Detectors that judge a whole model.

pub(crate) mod alike;
pub mod diff_cleanse;
pub mod elijah_model;
pub mod shift_response;
pub mod static_weights;
pub mod terd_model;

use depurate_diffusion::{Pipeline, SampleShape, sampler::SamplerSettings};
use serde::{Deserialize, Serialize};

use crate::{Cx, DefenseError, invert::Inversion};

/// Looks for a backdoor in a model and returns a score with its evidence.
pub trait ModelDetector: Send + Sync {
    /// Inspects `model`; the model is not changed.
    ///
    /// # Errors
    /// When the model cannot be run, the budget is spent or the caller asked to stop.
    fn inspect(&self, model: &Pipeline, cx: &Cx<'_>) -> Result<Inspection, DefenseError>;
}

/// Images made by the suspect, kept as evidence.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Samples {
    /// What was added to the initial noise: `noise`, `noise + inverted trigger`, `noise + control: …`.
    pub label: String,
    /// How they were made.
    pub sampler: SamplerSettings,
    /// Shape of one image.
    pub shape: SampleShape,
    /// Number of images.
    pub count: usize,
    /// `[count, C, H, W]` in the model's range.
    pub pixels: Vec<f32>,
}

/// A statistic under the inverted trigger and under one of the controls of equal norm.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Control {
    /// What the control is, for example `permuted pixels`.
    pub label: String,
    /// The statistic under it.
    pub value: f64,
}

/// One number that separates, with what it is compared with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Comparison {
    /// Short name.
    pub name: String,
    /// What it means and which direction is suspicious.
    pub meaning: String,
    /// Under the inverted trigger.
    pub value: f64,
    /// How suspicious the value is; higher is more.
    pub suspicion: f64,
    /// Under control shifts of equal norm, on the same model.
    pub controls: Vec<Control>,
}

impl Comparison {
    /// A statistic of what was `chosen` and of what it was `compared` with, by label.
    pub(crate) fn of<T>(
        name: &str,
        meaning: &str,
        suspicion: f64,
        chosen: &T,
        compared: &[(String, T)],
        value: impl Fn(&T) -> f64,
    ) -> Self {
        Self {
            name: name.to_owned(),
            meaning: meaning.to_owned(),
            value: value(chosen),
            suspicion,
            controls: compared
                .iter()
                .map(|(label, other)| Control {
                    label: label.clone(),
                    value: value(other),
                })
                .collect(),
        }
    }
}

/// A curve shown as evidence.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Curve {
    /// Title.
    pub title: String,
    /// Horizontal axis.
    pub x_label: String,
    /// Vertical axis.
    pub y_label: String,
    /// Named lines of `(x, y)`.
    pub series: Vec<(String, Vec<(f64, f64)>)>,
}

/// What a model detector found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Inspection {
    /// Higher is more suspicious.
    pub score: f64,
    /// What the score is, in one sentence.
    pub score_meaning: String,
    /// The best candidate trigger.
    pub inversion: Inversion,
    /// The image that the candidate trigger leads to, `[C, H, W]` in the model's range.
    pub target: Vec<f32>,
    /// The parts of the score and other statistics.
    pub comparisons: Vec<Comparison>,
    /// Curves.
    pub curves: Vec<Curve>,
    /// Images without trigger, with it, and with controls; image `i` of each starts from the same noise.
    pub samples: Vec<Samples>,
    /// Network evaluations of one image spent.
    pub evaluations: u64,
    /// What was looked for.
    pub tested: Vec<String>,
    /// What was left out, and why.
    pub not_tested: Vec<String>,
}
