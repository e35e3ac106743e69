//! What a model really is: kept outside the model's directory, never shown to a detector.

use std::path::{Path, PathBuf};

use depurate_attack::{
    AttackSuccess, BadDiffusionParams, DatasetParams, Pattern, Rates, TrainingParams,
};
use depurate_checkpoint::{save_tensors, write_atomic};
use depurate_diffusion::SampleShape;
use miette::{IntoDiagnostic, Result, WrapErr, bail};
use serde::{Deserialize, Serialize};

/// The secret of one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Truth {
    /// What was done.
    pub(crate) kind: Kind,
    /// The model that it started from, if any.
    pub(crate) base: Option<PathBuf>,
    /// The images.
    pub(crate) data: PathBuf,
    /// How they were read.
    pub(crate) data_params: DatasetParams,
    /// How it was trained.
    pub(crate) training: TrainingParams,
    /// Mean loss of the last hundred or so steps.
    pub(crate) final_loss: Option<f32>,
    /// Training throughput.
    pub(crate) samples_per_second: f64,
    /// How well a backdoor works, where that was measured.
    pub(crate) success: Option<Success>,
}

/// What was done to a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "id", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Kind {
    /// Trained from scratch on benign images.
    BenignTraining,
    /// Trained further on benign images.
    BenignFinetune,
    /// Backdoored.
    BadDiffusion {
        /// The attack's parameters.
        params: BadDiffusionParams,
        /// The trigger, as it was named.
        trigger: String,
        /// The target, as it was named.
        target: String,
    },
}

/// Success rates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Success {
    /// With the trigger.
    pub(crate) triggered: Rates,
    /// Without.
    pub(crate) base: Rates,
}

impl From<&AttackSuccess> for Success {
    fn from(found: &AttackSuccess) -> Self {
        Self { triggered: found.triggered.clone(), base: found.base.clone() }
    }
}

impl Truth {
    /// Writes `path` (JSON) and, for a backdoored model, the tensors `trigger` and `target` beside it.
    pub(crate) fn save(&self, path: &Path, patterns: Option<(&Pattern, &Pattern)>) -> Result<()> {
        if let Some((trigger, target)) = patterns {
            let tensors = [trigger.to_save("trigger"), target.to_save("target")];
            save_tensors(&tensors_path(path), &tensors, None).into_diagnostic()?;
        }
        let mut text = serde_json::to_string_pretty(self).into_diagnostic()?;
        text.push('\n');
        write_atomic(path, text.as_bytes()).into_diagnostic()
    }

    /// Reads what [`Truth::save`] wrote.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .into_diagnostic()
            .wrap_err_with(|| format!("cannot read the truth file {}", path.display()))?;
        serde_json::from_str(&text)
            .into_diagnostic()
            .wrap_err_with(|| format!("{} is not a truth file", path.display()))
    }
}

/// Trigger and target of a truth file.
pub(crate) fn patterns(path: &Path, shape: SampleShape) -> Result<(Pattern, Pattern)> {
    let tensors = tensors_path(path);
    if !tensors.exists() {
        bail!("{} is missing: a benign model has no trigger", tensors.display());
    }
    let read = |name| Pattern::from_file(&tensors, name, shape).into_diagnostic();
    Ok((read("trigger")?, read("target")?))
}

/// Refuses a truth file inside the model's directory.
pub(crate) fn check_outside(truth: &Path, model: &Path) -> Result<()> {
    let absolute = |path: &Path| std::path::absolute(path).into_diagnostic();
    if absolute(truth)?.starts_with(absolute(model)?) {
        bail!("the truth file {} must not be inside the model's directory {}", truth.display(), model.display());
    }
    Ok(())
}

fn tensors_path(path: &Path) -> PathBuf {
    path.with_extension("safetensors")
}
