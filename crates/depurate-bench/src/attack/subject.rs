//! The text-to-image model that an attack starts from, and what becomes of it.

use std::path::PathBuf;

use clap::Args;
use depurate_attack::delta;
use depurate_checkpoint::{Limits, SaveDtype, save_tensors_as};
use depurate_diffusion::{Device, text_to_image::TextToImage};
use miette::{IntoDiagnostic, Result, WrapErr, bail};

use crate::{
    console::say,
    job,
    truth::{check_outside, text::TextTruth},
};

/// From which directory to which.
#[derive(Debug, Args)]
pub(crate) struct Subject {
    /// The text-to-image model to start from.
    #[arg(long, value_name = "DIR")]
    pub(crate) base: PathBuf,
    /// The model's directory, which must not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Where the secret goes (JSON), outside DIR.
    #[arg(long, value_name = "FILE")]
    truth: PathBuf,
    /// Also write the changed tensors alone, in half precision, as COMPONENT.NAME.
    #[arg(long, value_name = "FILE")]
    delta_out: Option<PathBuf>,
    /// Save weights as half precision.
    #[arg(long)]
    half: bool,
}

impl Subject {
    /// Checks the paths and reads the model.
    pub(crate) fn load(&self, device: &Device) -> Result<TextToImage> {
        check_outside(&self.truth, &self.out)?;
        if self.out.exists() {
            bail!(
                "{} exists: choose a new directory or remove it",
                self.out.display()
            );
        }
        TextToImage::load(&self.base, &Limits::default(), device)
            .into_diagnostic()
            .wrap_err_with(|| format!("cannot load the model {}", self.base.display()))
    }

    /// Where the resumable state of a run is.
    pub(crate) fn state(&self, resume: bool) -> Result<PathBuf> {
        job::usable_state(&self.out, resume)
    }

    /// Writes the model `after` and its secret.
    pub(crate) fn save(
        &self,
        before: &TextToImage,
        after: &TextToImage,
        note: &TextTruth,
    ) -> Result<()> {
        let dtype = if self.half {
            SaveDtype::F16
        } else {
            SaveDtype::F32
        };
        let changed = delta(before, after);
        after.save(&self.out, dtype).into_diagnostic()?;
        let values: usize = changed.iter().map(|tensor| tensor.data.len()).sum();
        say(&format!(
            "{}: {} tensors with {values} values changed",
            self.out.display(),
            changed.len()
        ));
        if let Some(path) = &self.delta_out {
            save_tensors_as(path, &changed, SaveDtype::F16, None).into_diagnostic()?;
        }
        note.save(&self.truth)
    }
}
