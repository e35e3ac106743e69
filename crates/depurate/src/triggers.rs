//! The reconstructed trigger as a file that a third party can check.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use depurate_checkpoint::{Limits, SaveTensor, Weights, save_tensors, sha256_file};
use depurate_defense::invert::Inversion;
use depurate_diffusion::{SampleShape, firing::Firing, sampler::SamplerSettings};
use serde::{Deserialize, Serialize};

use crate::Error;

/// The name of the judging detector's file in a report's folder.
pub const FILE: &str = "triggers.safetensors";
/// Shift of the initial noise, `[C, H, W]`.
pub const SHIFT: &str = "trigger.shift";
/// Standard deviation of the initial noise under the trigger, `[C, H, W]`; absent where it is 1.
pub const GAMMA: &str = "trigger.gamma";
/// The image that the trigger leads to, `[C, H, W]`; absent where the scan stopped before.
pub const TARGET: &str = "target";

/// How a trigger was reached, written into its file.
#[derive(Debug, Clone, Serialize)]
pub struct Provenance<'a> {
    /// sha256 of the model that it belongs to.
    pub model_sha256: &'a str,
    /// The scan's seed.
    pub seed: u64,
    /// The sampler under which it works.
    pub firing: Firing,
    /// Samplers that it was tried with.
    pub samplers: Vec<&'a SamplerSettings>,
    /// Who reconstructed it.
    pub detector: &'a str,
    /// The version of this program.
    pub depurate: &'static str,
}

/// Where a trigger lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TriggerFile {
    /// The file, relative to the report's folder.
    pub file: String,
    /// Its sha256.
    pub sha256: String,
}

/// Writes a trigger into `report_dir` as `file`. Without a folder nothing is kept, and the hash is that of the file which the
/// same scan with a folder writes.
///
/// # Errors
/// When the tensors do not fit their shape or the file cannot be written.
pub fn write(
    inversion: &Inversion,
    target: Option<&[f32]>,
    provenance: &Provenance<'_>,
    report_dir: Option<&Path>,
    file: &str,
) -> Result<TriggerFile, Error> {
    let shape = inversion.shape;
    let tensor = |name: &str, data: &[f32]| SaveTensor {
        name: name.into(),
        shape: vec![shape.channels, shape.height, shape.width],
        data: data.to_vec(),
    };
    let mut tensors = vec![tensor(SHIFT, &inversion.shift)];
    tensors.extend(inversion.gamma.as_deref().map(|gamma| tensor(GAMMA, gamma)));
    tensors.extend(target.map(|target| tensor(TARGET, target)));
    let json = serde_json::to_string(provenance).map_err(|source| Error::Json {
        what: "a provenance",
        source,
    })?;
    // one entry, because the order of several is not fixed and the same scan shall give the same bytes
    let metadata = HashMap::from([("provenance".to_owned(), json)]);
    let save = |path: PathBuf| -> Result<String, Error> {
        save_tensors(&path, &tensors, Some(metadata))?;
        Ok(sha256_file(&path, None)?)
    };
    match report_dir {
        Some(dir) => Ok(TriggerFile {
            file: file.into(),
            sha256: save(dir.join(file))?,
        }),
        None => {
            let dir = tempfile::tempdir()
                .map_err(Error::io("make a directory in", std::env::temp_dir()))?;
            let sha256 = save(dir.path().join(file))?;
            Ok(TriggerFile {
                file: format!("{file} (written with --report-dir)"),
                sha256,
            })
        }
    }
}

/// A trigger read from a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Trigger {
    /// Shift of the initial noise, `[C, H, W]`.
    pub shift: Vec<f32>,
    /// Standard deviation of the initial noise, `[C, H, W]`.
    pub gamma: Option<Vec<f32>>,
    /// The image that it leads to, `[C, H, W]`.
    pub target: Option<Vec<f32>>,
    /// The sampler under which it works; ancestral where the file does not say.
    pub firing: Firing,
    /// sha256 of the model that it belongs to, where the file says.
    pub model_sha256: Option<String>,
}

/// What is read of a provenance: older versions wrote less.
#[derive(Debug, Default, Deserialize)]
struct Origin {
    #[serde(default)]
    firing: Option<Firing>,
    #[serde(default)]
    model_sha256: Option<String>,
}

/// Reads the trigger that [`write`] wrote, for a model with samples of `shape`.
///
/// # Errors
/// When the file is malformed, holds no trigger or one of another shape, or holds values that are not finite.
pub fn read(path: &Path, shape: SampleShape, limits: &Limits) -> Result<Trigger, Error> {
    let weights = Weights::open_file(path, limits)?;
    weights.check_finite()?;
    let expected = [shape.channels, shape.height, shape.width];
    let tensor = |name: &str| -> Result<Vec<f32>, Error> {
        match weights.get(name) {
            Some(info) if info.shape != expected => Err(Error::TriggerShape {
                path: path.into(),
                tensor: name.into(),
                got: info.shape.clone(),
                expected,
            }),
            _ => Ok(weights.read_f32(name)?),
        }
    };
    let optional = |name: &str| weights.get(name).map(|_| tensor(name)).transpose();
    let origin: Origin = weights
        .metadata("provenance")
        .and_then(|json| serde_json::from_str(json).ok())
        .unwrap_or_default();
    Ok(Trigger {
        shift: tensor(SHIFT)?,
        gamma: optional(GAMMA)?,
        target: optional(TARGET)?,
        firing: origin.firing.unwrap_or(Firing::Stochastic),
        model_sha256: origin.model_sha256,
    })
}
