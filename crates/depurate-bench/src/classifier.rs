//! `classifier`: the network whose features compare sets of images.

use std::path::PathBuf;

use clap::Args;
use depurate_checkpoint::{SaveDtype, save_tensors_as};
use depurate_diffusion::{Device, SampleShape, image_tower::ImageTowerConfig};
use depurate_training::{
    Dataset, DatasetParams, Split, StateFile, TrainingError,
    classifier::{accuracy, classifier},
    tensor_file::TensorFile,
};
use miette::{IntoDiagnostic, Result, bail};

use crate::{
    console::{CancelFlag, Progress, say},
    train::Schedule,
};

/// Train a small classifier of labelled images.
#[derive(Debug, Args)]
pub(crate) struct Classifier {
    /// A safetensors file with `images`, `labels` and `split`.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Side of the images in pixels.
    #[arg(long, default_value_t = 28)]
    size: usize,
    /// Channels of each level; the last is the number of features.
    #[arg(long, value_delimiter = ',', default_value = "16,32,32")]
    widths: Vec<usize>,
    #[command(flatten)]
    schedule: Schedule,
    /// The weights, half precision.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

impl Classifier {
    /// Runs the command.
    pub(crate) fn run(self, cancel: &CancelFlag) -> Result<()> {
        if self.out.exists() {
            bail!(
                "{} exists: choose a new file or remove it",
                self.out.display()
            );
        }
        let config = ImageTowerConfig {
            channels: 1,
            widths: self.widths.clone(),
            groups: 8,
            outputs: 10,
        };
        let device = Device::flex().autodiff();
        let (data, labels) = self.read(Split::Train)?;
        let state_path = self.out.with_extension("state");
        let state = StateFile::new(&state_path);
        let params = self.schedule.params();
        let progress = Progress::new("classifier", params.steps as u64, cancel);
        let trained = classifier(
            &config,
            &data,
            &labels,
            &params,
            &device,
            Some(&state),
            &progress,
        );
        progress.finish();
        let tower = trained.into_diagnostic()?.module;
        let (test, labels) = self.read(Split::Test)?;
        let right = accuracy(&tower, &test, &labels, &device).into_diagnostic()?;
        say(&format!(
            "accuracy {right:.4} on {} test images",
            test.len()
        ));
        save_tensors_as(&self.out, &tower.to_tensors(), SaveDtype::F16, None).into_diagnostic()?;
        // the weights are safe; a state that stays behind only costs space
        let _ = std::fs::remove_file(state_path);
        Ok(())
    }

    fn read(&self, split: Split) -> Result<(Dataset, Vec<u8>)> {
        let shape = SampleShape {
            channels: 1,
            height: self.size,
            width: self.size,
        };
        let params = DatasetParams {
            split,
            ..DatasetParams::default()
        };
        let data = Dataset::read(&self.data, shape, &params).into_diagnostic()?;
        let file = TensorFile::read(&self.data).into_diagnostic()?;
        let bytes = |name: &str| -> Result<Vec<u8>> {
            let found = file.bytes_of(name).into_diagnostic()?;
            let missing = || TrainingError::Data {
                path: self.data.clone(),
                reason: format!("has no bytes `{name}`"),
            };
            Ok(found.ok_or_else(missing).into_diagnostic()?.1)
        };
        let wanted = u8::from(split == Split::Test);
        let labels = bytes("labels")?.into_iter().zip(bytes("split")?);
        Ok((
            data,
            labels
                .filter_map(|(label, split)| (split == wanted).then_some(label))
                .collect(),
        ))
    }
}
