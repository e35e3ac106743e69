//! What a model really is: kept outside the model's directory, never shown to a detector.

pub(crate) mod text;

use std::path::{Path, PathBuf};

use depurate_attack::{
    AttackSuccess, BadDiffusionParams, DatasetParams, Pattern, Rates, TrainingParams,
};
use depurate_checkpoint::{save_tensors, write_atomic};
use depurate_diffusion::SampleShape;
use miette::{IntoDiagnostic, Result, WrapErr, bail};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

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

impl Kind {
    /// Its id.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::BenignTraining => "benign-training",
            Self::BenignFinetune => "benign-finetune",
            Self::BadDiffusion { .. } => "bad-diffusion",
        }
    }

    /// Trigger, target and poison rate in one line, of a backdoored model.
    pub(crate) fn secret(&self) -> Option<String> {
        match self {
            Self::BadDiffusion {
                params,
                trigger,
                target,
            } => Some(format!("{trigger} → {target}, p = {}", params.poison_rate)),
            _ => None,
        }
    }
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
        Self {
            triggered: found.triggered.clone(),
            base: found.base.clone(),
        }
    }
}

impl Truth {
    /// Writes `path` (JSON) and, for a backdoored model, the tensors `trigger` and `target` beside it.
    pub(crate) fn save(&self, path: &Path, patterns: Option<(&Pattern, &Pattern)>) -> Result<()> {
        if let Some((trigger, target)) = patterns {
            let tensors = [trigger.to_save("trigger"), target.to_save("target")];
            save_tensors(&tensors_path(path), &tensors, None).into_diagnostic()?;
        }
        write_json(path, self)
    }

    /// Reads what [`Truth::save`] wrote.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        read_json(path, "a truth file")
    }
}

fn write_json(path: &Path, truth: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(truth).into_diagnostic()?;
    text.push('\n');
    write_atomic(path, text.as_bytes()).into_diagnostic()
}

/// Reads a truth file of the kind that `what` names.
fn read_json<T: DeserializeOwned>(path: &Path, what: &str) -> Result<T> {
    let text = std::fs::read_to_string(path)
        .into_diagnostic()
        .wrap_err_with(|| format!("cannot read the truth file {}", path.display()))?;
    serde_json::from_str(&text)
        .into_diagnostic()
        .wrap_err_with(|| format!("{} is not {what}", path.display()))
}

/// Trigger and target of a truth file.
pub(crate) fn patterns(path: &Path, shape: SampleShape) -> Result<(Pattern, Pattern)> {
    let tensors = tensors_path(path);
    if !tensors.exists() {
        bail!(
            "{} is missing: a benign model has no trigger",
            tensors.display()
        );
    }
    let read = |name| Pattern::from_file(&tensors, name, shape).into_diagnostic();
    Ok((read("trigger")?, read("target")?))
}

/// The folder of a population's secrets: `<models>-truth`.
pub(crate) fn beside(models: &Path) -> Result<PathBuf> {
    let Some(name) = models.file_name() else {
        bail!("{} has no name", models.display())
    };
    let mut name = name.to_os_string();
    name.push("-truth");
    Ok(models.with_file_name(name))
}

/// Refuses a truth file inside the model's directory.
pub(crate) fn check_outside(truth: &Path, model: &Path) -> Result<()> {
    let absolute = |path: &Path| std::path::absolute(path).into_diagnostic();
    if absolute(truth)?.starts_with(absolute(model)?) {
        bail!(
            "the truth file {} must not be inside the model's directory {}",
            truth.display(),
            model.display()
        );
    }
    Ok(())
}

fn tensors_path(path: &Path) -> PathBuf {
    path.with_extension("safetensors")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_truth_file_may_not_be_inside_the_model() {
        assert!(
            check_outside(
                Path::new("models/m000/truth.json"),
                Path::new("models/m000")
            )
            .is_err()
        );
        assert!(check_outside(Path::new("models/truth.json"), Path::new("models/m000")).is_ok());
    }

    #[test]
    fn survives_the_disk() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("m000.json");
        let shape = SampleShape {
            channels: 1,
            height: 16,
            width: 16,
        };
        let trigger = Pattern::trigger("box:4", shape).expect("valid");
        let target = Pattern::target("hat", shape).expect("valid");
        let truth = Truth {
            kind: Kind::BadDiffusion {
                params: BadDiffusionParams::default(),
                trigger: "box:4".into(),
                target: "hat".into(),
            },
            base: None,
            data: "digits".into(),
            data_params: DatasetParams::default(),
            training: TrainingParams::default(),
            final_loss: Some(0.5),
            samples_per_second: 100.0,
            success: None,
        };
        truth.save(&path, Some((&trigger, &target))).expect("saved");
        assert_eq!(Truth::load(&path).expect("read"), truth);
        assert_eq!(patterns(&path, shape).expect("read"), (trigger, target));
    }
}
