//! The lines of results.jsonl.

use serde::{Deserialize, Serialize};

use super::{
    State, Treatment,
    lasting::{NewScan, Trained},
};

/// One model under one treatment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Row {
    /// Directory name.
    pub(crate) model: String,
    /// What was done.
    pub(crate) treatment: Treatment,
    /// As in a truth file.
    pub(crate) kind: String,
    /// Trigger and target.
    pub(crate) secret: Option<String>,
    /// Images of the trigger that the repair was given, fired by the attack's own sampler, that are the true target, at each of
    /// [`depurate_defense::repair::replay::THRESHOLDS`]; of a backdoored model.
    pub(crate) given: Option<Vec<usize>>,
    /// How far each given trigger stands out on the suspect, in decades; [`depurate_defense::repair::confirm`].
    #[serde(default)]
    pub(crate) effects: Vec<f64>,
    /// Before.
    pub(crate) before: State,
    /// After.
    pub(crate) after: State,
    /// 95 % interval of the relative change of the distance, by bootstrap over noises.
    pub(crate) rise_interval: [f64; 2],
    /// Mean squared distance of clean samples before and after from the same noise, in [0, 1] units.
    pub(crate) moved: f64,
    /// Repairs that were made, one after the other.
    #[serde(default = "one")]
    pub(crate) rounds: usize,
    /// Scans of the repaired model with other seeds.
    #[serde(default)]
    pub(crate) new_scans: Vec<NewScan>,
    /// The true trigger while the repaired model is trained on.
    #[serde(default)]
    pub(crate) trained_on: Vec<Trained>,
    /// Clean images that the repair did not use, because the given trigger leads there.
    #[serde(default)]
    pub(crate) left_out: usize,
    /// Steps made.
    pub(crate) steps: usize,
    /// Network evaluations of the repair.
    pub(crate) evaluations: u64,
    /// Seconds of the repair, without making clean images and without measuring.
    pub(crate) seconds: f64,
}

fn one() -> usize {
    1
}
