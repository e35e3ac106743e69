//! One training run from start to a saved model, resumable.

use std::path::{Path, PathBuf};

use depurate_checkpoint::SaveDtype;
use depurate_diffusion::Pipeline;
use depurate_training::{Dataset, Objective, StateFile, Trained, TrainingParams, train};
use miette::{IntoDiagnostic, Result, WrapErr, bail};

use crate::console::{CancelFlag, Progress};

/// A run.
pub(crate) struct Job<'a> {
    /// Shown with the progress.
    pub(crate) name: &'a str,
    /// The model to start from.
    pub(crate) start: &'a Pipeline,
    /// The images.
    pub(crate) data: &'a Dataset,
    /// What is learnt.
    pub(crate) objective: &'a dyn Objective,
    /// How.
    pub(crate) params: &'a TrainingParams,
    /// Where the model goes.
    pub(crate) out: &'a Path,
    /// Whether a state that is already there is continued.
    pub(crate) resume: bool,
    /// Element type of the saved weights.
    pub(crate) dtype: SaveDtype,
}

/// What a finished run leaves besides the model.
pub(crate) struct Finished {
    /// The model with averaged weights.
    pub(crate) trained: Trained,
    /// Mean loss of the last hundred or so steps.
    pub(crate) final_loss: Option<f32>,
}

impl Job<'_> {
    /// Runs to the end and saves the model; the state file is beside `out` and removed at the end.
    pub(crate) fn run(&self, cancel: &CancelFlag) -> Result<Finished> {
        if self.out.exists() {
            bail!(
                "{} exists: choose a new directory or remove it",
                self.out.display()
            );
        }
        let path = usable_state(self.out, self.resume)?;
        let state = StateFile::new(&path);
        let progress = Progress::new(self.name, self.params.steps as u64, cancel);
        let trained = train(
            self.start,
            self.data,
            self.objective,
            self.params,
            Some(&state),
            &progress,
        );
        progress.finish();
        let trained = trained.into_diagnostic()?;
        trained
            .pipeline
            .save(self.out, self.dtype)
            .into_diagnostic()?;
        // The model is safe; a state that stays behind only costs space.
        let _ = std::fs::remove_file(&path);
        Ok(Finished {
            trained,
            final_loss: progress.loss(),
        })
    }
}

/// Where the state of the run that makes `out` is kept; its directory exists then. A state that is already there is refused
/// unless the run is to `resume`.
pub(crate) fn usable_state(out: &Path, resume: bool) -> Result<PathBuf> {
    let path = state_path(out);
    if path.exists() && !resume {
        bail!(
            "{} holds an unfinished run: continue it with --resume or remove the file",
            path.display()
        );
    }
    if let Some(parent) = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        std::fs::create_dir_all(parent)
            .into_diagnostic()
            .wrap_err_with(|| format!("cannot make the directory {}", parent.display()))?;
    }
    Ok(path)
}

/// `<out>.state.safetensors`.
fn state_path(out: &Path) -> PathBuf {
    let mut name = out.file_name().unwrap_or_default().to_os_string();
    name.push(".state.safetensors");
    out.with_file_name(name)
}
