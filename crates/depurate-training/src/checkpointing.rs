//! The resumable state of a training run: one safetensors file, replaced in one step.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use burn::tensor::{Tensor, TensorData};
use depurate_checkpoint::{SaveTensor, save_tensors};
use sha2::{Digest, Sha256};

use crate::{TrainingError, parameters::Flat, tensor_file::TensorFile};

/// Where a run keeps its state.
#[derive(Debug, Clone)]
pub struct StateFile {
    path: PathBuf,
}

/// A run at the end of a step.
pub(crate) struct State {
    /// Steps done.
    pub(crate) step: usize,
    pub(crate) values: Flat,
    pub(crate) ema: Flat,
    /// First moments of the optimiser.
    pub(crate) first: Flat,
    /// Second moments.
    pub(crate) second: Flat,
}

impl StateFile {
    /// The state file at `path`; its directory must exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the state of the run that `run` describes.
    pub(crate) fn save(
        &self,
        run: &str,
        step: usize,
        values: &Flat,
        ema: &Flat,
        first: &Flat,
        second: &Flat,
    ) -> Result<(), TrainingError> {
        let parts = [
            ("value", values),
            ("ema", ema),
            ("first", first),
            ("second", second),
        ];
        let tensors: Vec<SaveTensor> = parts
            .into_iter()
            .flat_map(|(part, flat)| flat.iter().map(move |(name, tensor)| (part, name, tensor)))
            .map(|(part, name, tensor)| SaveTensor {
                name: format!("{part}/{name}"),
                shape: tensor.dims().to_vec(),
                data: tensor.clone().into_data().iter::<f32>().collect(),
            })
            .collect();
        let notes = HashMap::from([
            ("step".to_owned(), step.to_string()),
            ("run".to_owned(), fingerprint(run)),
        ]);
        Ok(save_tensors(&self.path, &tensors, Some(notes))?)
    }

    /// Reads the state, if there is one; every tensor must be there with the length that `like` has.
    pub(crate) fn load(&self, run: &str, like: &Flat) -> Result<Option<State>, TrainingError> {
        if !self.path.exists() {
            return Ok(None);
        }
        let file = TensorFile::read(&self.path)?;
        let notes = file.notes()?;
        if notes.get("run") != Some(&fingerprint(run)) {
            let reason = "its parameters, model or data differ".into();
            return Err(TrainingError::OtherRun {
                path: self.path.clone(),
                reason,
            });
        }
        let step = notes
            .get("step")
            .and_then(|step| step.parse().ok())
            .ok_or_else(|| self.incomplete("its step"))?;
        let part = |part: &str| -> Result<Flat, TrainingError> {
            like.iter()
                .map(|(name, tensor)| {
                    let found = file.floats_of(&format!("{part}/{name}"))?;
                    let (_, data) = found
                        .filter(|(_, data)| data.len() == tensor.dims()[0])
                        .ok_or_else(|| self.incomplete(name))?;
                    let data = TensorData::new(data, tensor.dims());
                    Ok((name.clone(), Tensor::from_data(data, &tensor.device())))
                })
                .collect()
        };
        let state = State {
            step,
            values: part("value")?,
            ema: part("ema")?,
            first: part("first")?,
            second: part("second")?,
        };
        Ok(Some(state))
    }

    fn incomplete(&self, what: &str) -> TrainingError {
        TrainingError::OtherRun {
            path: self.path.clone(),
            reason: format!("`{what}` is missing or has another size"),
        }
    }
}

fn fingerprint(run: &str) -> String {
    Sha256::digest(run.as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
