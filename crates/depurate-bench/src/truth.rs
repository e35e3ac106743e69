//! What a model really is: kept outside the model's directory, never shown to a detector.

pub(crate) mod text;

use std::path::{Path, PathBuf};

use depurate_attack::{
    AttackSuccess, Backdoor, BadDiffusion, BadDiffusionParams, Pattern, Rates,
    troj_diff::{TrojDiff, TrojDiffParams},
};
use depurate_checkpoint::{SaveTensor, save_tensors, write_atomic};
use depurate_diffusion::{Device, SampleShape, firing::Firing, noise::SeedTree, trigger::Family};
use depurate_training::{DatasetParams, Objective, TrainingParams};
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
    /// Backdoored for a sampler that is told the trigger.
    TrojDiff {
        /// The attack's parameters.
        params: TrojDiffParams,
        /// The trigger, as it was named.
        trigger: String,
        /// The target, as it was named.
        target: String,
    },
}

impl Kind {
    /// Trigger and target as they were named, of a backdoored model.
    fn named(&self) -> Option<(&str, &str)> {
        match self {
            Self::BadDiffusion {
                trigger, target, ..
            }
            | Self::TrojDiff {
                trigger, target, ..
            } => Some((trigger, target)),
            Self::BenignTraining | Self::BenignFinetune => None,
        }
    }

    /// The backdoor that is trained, for images of `shape`; `None` for a benign model.
    pub(crate) fn backdoor(&self, shape: SampleShape) -> Result<Option<Backdoor>> {
        let Some((trigger, target)) = self.named() else {
            return Ok(None);
        };
        let trigger = Pattern::trigger(trigger, shape).into_diagnostic()?;
        let (shift, gamma) = match self {
            Self::TrojDiff { params, .. } => {
                let (mu, gamma) = params.prior(&trigger).into_diagnostic()?;
                (mu, Some(gamma))
            }
            _ => (trigger, None),
        };
        Ok(Some(Backdoor {
            firing: self.firing(),
            shift,
            gamma,
            target: Pattern::target(target, shape).into_diagnostic()?,
        }))
    }

    /// What the training teaches, on `n_images` images of `shape`; `None` for a benign model.
    pub(crate) fn objective(
        &self,
        shape: SampleShape,
        n_images: usize,
        seed: &SeedTree,
        device: &Device,
    ) -> Result<Option<Box<dyn Objective>>> {
        let Some((trigger, target)) = self.named() else {
            return Ok(None);
        };
        let trigger = Pattern::trigger(trigger, shape).into_diagnostic()?;
        let target = Pattern::target(target, shape).into_diagnostic()?;
        Ok(match self {
            Self::BadDiffusion { params, .. } => {
                let attack = BadDiffusion::new(*params, &trigger, &target, n_images, seed, device);
                Some(Box::new(attack.into_diagnostic()?))
            }
            Self::TrojDiff { params, .. } => {
                let attack = TrojDiff::new(*params, &trigger, &target, device);
                Some(Box::new(attack.into_diagnostic()?))
            }
            Self::BenignTraining | Self::BenignFinetune => None,
        })
    }

    /// What fires the trigger; of a benign model, what its samples are drawn with.
    fn firing(&self) -> Firing {
        match self {
            Self::BadDiffusion { params, .. } if params.family == Family::Deterministic => {
                Firing::Deterministic
            }
            Self::TrojDiff { .. } => Firing::Modified,
            _ => Firing::Stochastic,
        }
    }

    /// Its id.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::BenignTraining => "benign-training",
            Self::BenignFinetune => "benign-finetune",
            Self::BadDiffusion { params, .. } if params.family == Family::Deterministic => {
                "villan-diffusion-ode"
            }
            Self::BadDiffusion { .. } => "bad-diffusion",
            Self::TrojDiff { .. } => "troj-diff",
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
            Self::TrojDiff {
                params,
                trigger,
                target,
            } => {
                let place = params
                    .patch
                    .map_or("blend".to_owned(), |side| format!("patch of {side}"));
                Some(format!(
                    "{trigger} ({place}, gamma {}) → {target}, p = {}",
                    params.gamma, params.poison_rate
                ))
            }
            Self::BenignTraining | Self::BenignFinetune => None,
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
    /// Writes `path` (JSON) and, for a backdoored model, the tensors `trigger` (the shift), `gamma` where it is not 1, and
    /// `target` beside it.
    pub(crate) fn save(&self, path: &Path, backdoor: Option<&Backdoor>) -> Result<()> {
        if let Some(backdoor) = backdoor {
            let shift = backdoor.shift.to_save("trigger");
            let gamma = backdoor.gamma.as_ref().map(|gamma| SaveTensor {
                name: "gamma".into(),
                shape: shift.shape.clone(),
                data: gamma.clone(),
            });
            let mut tensors = vec![shift, backdoor.target.to_save("target")];
            tensors.extend(gamma);
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

/// The backdoor of the truth file `path`, which `note` was read from. Its tensors are taken from beside it, not drawn again.
pub(crate) fn backdoor(path: &Path, note: &Truth, shape: SampleShape) -> Result<Backdoor> {
    let tensors = tensors_path(path);
    if !tensors.exists() {
        bail!(
            "{} is missing: a benign model has no trigger",
            tensors.display()
        );
    }
    let read = |name| Pattern::from_file(&tensors, name, shape).into_diagnostic();
    let gamma = match note.kind {
        Kind::TrojDiff { .. } => Some(read("gamma")?.values().to_vec()),
        _ => None,
    };
    Ok(Backdoor {
        firing: note.kind.firing(),
        shift: read("trigger")?,
        gamma,
        target: read("target")?,
    })
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
        let named = || ("box:4".to_owned(), "hat".to_owned());
        let (trigger, target) = named();
        let bad = Kind::BadDiffusion {
            params: BadDiffusionParams::default(),
            trigger,
            target,
        };
        let (trigger, target) = named();
        let params = TrojDiffParams {
            patch: Some(4),
            ..TrojDiffParams::default()
        };
        let troj = Kind::TrojDiff {
            params,
            trigger,
            target,
        };
        for (kind, firing) in [(bad, Firing::Stochastic), (troj, Firing::Modified)] {
            let backdoor = kind.backdoor(shape).expect("valid").expect("a backdoor");
            assert_eq!(backdoor.firing, firing);
            let truth = note(kind);
            truth.save(&path, Some(&backdoor)).expect("saved");
            assert_eq!(Truth::load(&path).expect("read"), truth);
            assert_eq!(
                super::backdoor(&path, &truth, shape).expect("read"),
                backdoor
            );
        }
    }

    fn note(kind: Kind) -> Truth {
        Truth {
            kind,
            base: None,
            data: "digits".into(),
            data_params: DatasetParams::default(),
            training: TrainingParams::default(),
            final_loss: Some(0.5),
            samples_per_second: 100.0,
            success: None,
        }
    }
}
