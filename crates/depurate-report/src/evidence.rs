//! Evidence: what a detector saw, as plain data that a report can show.

use serde::{Deserialize, Serialize};

use crate::{Png, Threshold, float};

/// One piece of evidence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Evidence {
    /// A trigger reconstructed from the model.
    InvertedTrigger(Box<InvertedTrigger>),
    /// Images that the model generated, on one sheet.
    ImageGrid(ImageGrid),
    /// A number on the distribution of the same number over benign subjects.
    Statistic(Box<Statistic>),
    /// Curves, with the band in which benign subjects lie.
    ResponseCurve(ResponseCurve),
    /// A small table.
    Table(Table),
    /// A remark.
    Note(Note),
}

impl From<InvertedTrigger> for Evidence {
    fn from(trigger: InvertedTrigger) -> Self {
        Self::InvertedTrigger(Box::new(trigger))
    }
}

impl From<ImageGrid> for Evidence {
    fn from(grid: ImageGrid) -> Self {
        Self::ImageGrid(grid)
    }
}

impl From<Statistic> for Evidence {
    fn from(statistic: Statistic) -> Self {
        Self::Statistic(Box::new(statistic))
    }
}

impl From<ResponseCurve> for Evidence {
    fn from(curve: ResponseCurve) -> Self {
        Self::ResponseCurve(curve)
    }
}

impl From<Table> for Evidence {
    fn from(table: Table) -> Self {
        Self::Table(table)
    }
}

impl From<Note> for Evidence {
    fn from(note: Note) -> Self {
        Self::Note(note)
    }
}

/// A trigger reconstructed from the model by inversion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InvertedTrigger {
    /// The safetensors file that holds the trigger, relative to the report's folder.
    pub file: String,
    /// The tensor's name in that file.
    pub tensor: String,
    /// sha256 of the file, lower-case hexadecimal.
    pub sha256: String,
    /// The tensor's shape, `[channels, height, width]`.
    pub shape: Vec<usize>,
    /// Its size, in the unit that `norm_meaning` says.
    #[serde(deserialize_with = "float::scalar")]
    pub norm: f64,
    /// What `norm` measures: "root mean square over pixels, in standard deviations of the noise".
    pub norm_meaning: String,
    /// The trigger at its own resolution.
    pub image: Png,
    /// The trigger enlarged by whole pixels.
    pub magnified: Png,
    /// Which values the colours of the two images show: "-1.2 (black) to 1.3 (white)".
    pub scale: String,
    /// How the trigger's values are distributed.
    pub histogram: Histogram,
    /// The noise scale gamma under the trigger, where the inversion fits one.
    #[serde(default)]
    pub gamma: Option<Summary>,
    /// Every restart of the optimisation.
    #[serde(default)]
    pub restarts: Vec<RestartSummary>,
    /// The objective of the selected restart as (iteration, value).
    #[serde(default, deserialize_with = "float::trace")]
    pub objective_trace: Vec<(u64, f64)>,
}

/// Images that the model generated from known seeds, on one sheet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageGrid {
    /// "noise + trigger"
    pub title: String,
    /// What to see in it.
    pub caption: String,
    /// "DDPM", "DDIM (eta = 0)"
    pub sampler: String,
    /// Sampling steps.
    pub steps: usize,
    /// The range `[-clip, clip]` to which predicted images were clipped; `None` = not clipped.
    #[serde(default)]
    pub clip: Option<f64>,
    /// The seeds of the initial noises, in reading order.
    pub seeds: Vec<u64>,
    /// The sheet.
    pub png: Png,
    /// Blur it until the reader asks: a generated target can be anything.
    pub sensitive: bool,
}

/// A number, the same number over benign subjects, and over controls of the same subject.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Statistic {
    /// "agreement ratio"
    pub name: String,
    /// What it measures and why a backdoor raises it.
    pub meaning: String,
    /// Its value for the subject; higher = more suspicious.
    #[serde(deserialize_with = "float::scalar")]
    pub value: f64,
    /// The calibrated threshold, where there is one.
    #[serde(default)]
    pub threshold: Option<Threshold>,
    /// Its values for the benign subjects of the calibration.
    #[serde(default, deserialize_with = "float::list")]
    pub benign: Vec<f64>,
    /// Its values for controls of the subject itself, such as shuffled triggers of equal norm.
    #[serde(default, deserialize_with = "float::list")]
    pub controls: Vec<f64>,
}

/// Curves over one axis.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResponseCurve {
    /// "response to the inverted shift"
    pub title: String,
    /// What to see in it.
    pub caption: String,
    /// "timestep t (t = 1000 is pure noise)"
    pub x_label: String,
    /// "response / shift"
    pub y_label: String,
    /// The curves.
    pub series: Vec<Series>,
    /// Where benign subjects lie.
    #[serde(default)]
    pub band: Option<Band>,
}

/// One curve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// Its name in the legend.
    pub label: String,
    /// `(x, y)`, in order of x.
    #[serde(deserialize_with = "float::points")]
    pub points: Vec<(f64, f64)>,
}

/// A band around curves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Band {
    /// Its name in the legend: "20 benign models, 5 % to 95 %".
    pub label: String,
    /// `(x, low, high)`, in order of x.
    #[serde(deserialize_with = "float::bands")]
    pub points: Vec<(f64, f64, f64)>,
}

/// A small table; cells are text, already rounded for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Its title.
    pub title: String,
    /// Column headings.
    pub columns: Vec<String>,
    /// Rows of as many cells as there are columns.
    pub rows: Vec<Vec<String>>,
}

/// A remark.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The remark.
    pub text: String,
}

/// Counts of values between edges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// Edges in ascending order, one more than `counts`.
    pub edges: Vec<f64>,
    /// How many values lie in `[edges[i], edges[i + 1])`; the last bin is closed.
    pub counts: Vec<u64>,
}

impl Histogram {
    /// Counts the finite ones of `values` in `bins` (at least 1) bins of equal width between their
    /// minimum and maximum. No finite value: no bins.
    #[must_use]
    pub fn of(values: &[f64], bins: usize) -> Self {
        let finite = || values.iter().copied().filter(|v| v.is_finite());
        let low = finite().fold(f64::INFINITY, f64::min);
        let high = finite().fold(f64::NEG_INFINITY, f64::max);
        if low > high {
            return Self {
                edges: Vec::new(),
                counts: Vec::new(),
            };
        }
        // equal values still need a bin of some width
        let (low, high) = if low == high {
            let half = (low.abs() * 1e-3).max(1e-9);
            (low - half, high + half)
        } else {
            (low, high)
        };
        Self::between(values, low, high, bins)
    }

    /// Counts those of `values` that lie in `[low, high]` in `bins` (at least 1) bins of equal
    /// width.
    #[must_use]
    pub fn between(values: &[f64], low: f64, high: f64, bins: usize) -> Self {
        let bins = bins.max(1);
        let width = (high - low) / bins as f64;
        let mut counts = vec![0; bins];
        for &v in values.iter().filter(|&&v| v >= low && v <= high) {
            let bin = ((v - low) / width) as usize;
            counts[bin.min(bins - 1)] += 1;
        }
        let edges = (0..=bins).map(|i| low + width * i as f64).collect();
        Self { edges, counts }
    }
}

/// The range of some values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The least.
    #[serde(deserialize_with = "float::scalar")]
    pub min: f64,
    /// The mean.
    #[serde(deserialize_with = "float::scalar")]
    pub mean: f64,
    /// The greatest.
    #[serde(deserialize_with = "float::scalar")]
    pub max: f64,
}

/// One restart of an optimisation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RestartSummary {
    /// "ddim, seed 3"
    pub label: String,
    /// Its last objective; lower = better fit.
    #[serde(deserialize_with = "float::scalar")]
    pub objective: f64,
    /// Did it converge?
    pub converged: bool,
    /// Is its result the one that is reported?
    pub selected: bool,
}
