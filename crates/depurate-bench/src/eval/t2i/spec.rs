//! What an evaluation of prompt detectors is about, as a file.

use std::path::{Path, PathBuf};

use miette::{IntoDiagnostic, Result, WrapErr, bail};
use serde::{Deserialize, Serialize};

use super::{results::Model, score::RunParams};
use crate::truth::check_outside;

/// What to evaluate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Spec {
    /// The sprites that captions are made from.
    pub(crate) sprites: PathBuf,
    /// The judge's folder.
    pub(crate) judge: PathBuf,
    /// Triggered prompts of a subject, and as many benign ones.
    #[serde(default = "default_count")]
    pub(crate) prompts: usize,
    /// Benign prompts of a subject for its threshold.
    #[serde(default = "default_count")]
    pub(crate) calibration: usize,
    /// Seed of the prompts.
    #[serde(default)]
    pub(crate) prompt_seed: u64,
    /// How they are run.
    #[serde(default)]
    pub(crate) run: RunParams,
    /// The backdoored models.
    pub(crate) subjects: Vec<Subject>,
}

fn default_count() -> usize {
    200
}

/// A backdoored model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Subject {
    /// Its name in results.
    pub(crate) name: String,
    /// The attack's id, as in its truth.
    pub(crate) attack: String,
    /// Its directory.
    pub(crate) model: PathBuf,
    /// Its secret.
    pub(crate) truth: PathBuf,
    /// The directory of the model that it was made from.
    pub(crate) clean: PathBuf,
}

impl Subject {
    /// The directory of one of its models.
    pub(crate) fn dir(&self, model: Model) -> &Path {
        match model {
            Model::Suspect => &self.model,
            Model::Clean => &self.clean,
        }
    }
}

impl Spec {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// When it is malformed, a name cannot be a file's or occurs twice, or a secret lies inside its model.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .into_diagnostic()
            .wrap_err_with(|| format!("cannot read the specification {}", path.display()))?;
        let spec: Self = serde_json::from_str(&text)
            .into_diagnostic()
            .wrap_err_with(|| format!("{} is no specification", path.display()))?;
        let shown = path.display();
        if spec.prompts == 0 || spec.calibration == 0 || spec.run.batch == 0 {
            bail!("{shown}: prompts, calibration and run.batch must be at least 1");
        }
        for (index, subject) in spec.subjects.iter().enumerate() {
            let name = &subject.name;
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
            if name.is_empty() || !name.chars().all(plain) {
                bail!("{shown}: the name {name:?} must be letters, digits, - and _");
            }
            if spec.subjects[..index]
                .iter()
                .any(|other| other.name == *name)
            {
                bail!("{shown}: the name {name:?} occurs twice");
            }
            check_outside(&subject.truth, &subject.model)?;
        }
        Ok(spec)
    }
}
