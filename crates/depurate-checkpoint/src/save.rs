//! Saves models as diffusers writes them.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::path::Path;

use safetensors::tensor::{Dtype as StoredDtype, View};
use serde_json::Value;

use crate::atomic::{TEMPORARY_PREFIX, ordinary_mode, parent, sync_dir};
use crate::{CheckpointError, Result, UNET_STEM, write_atomic};

/// A tensor to save.
#[derive(Debug, Clone, PartialEq)]
pub struct SaveTensor {
    /// Name in the file.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Values, row-major.
    pub data: Vec<f32>,
}

/// Element type of saved weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaveDtype {
    /// 32-bit floats, exact.
    F32,
    /// Half precision: half the bytes, values rounded to 11 significant bits.
    F16,
}

/// Writes a UNet pipeline directory that diffusers loads: `model_index.json`, `unet/config.json`,
/// `unet/diffusion_pytorch_model.safetensors`, `scheduler/scheduler_config.json`.
///
/// All is written to a directory beside `dir` and renamed when it is complete and on the disk.
///
/// # Errors
/// `dir` exists, a tensor's data does not fit its shape or (for F16) its type, or the directory cannot be written; there is
/// then nothing under the name `dir`.
pub fn save_pipeline(
    dir: &Path,
    model_index: &Value,
    unet_config: &Value,
    scheduler_config: &Value,
    tensors: &[SaveTensor],
    dtype: SaveDtype,
) -> Result<()> {
    if dir.symlink_metadata().is_ok() {
        return Err(CheckpointError::Exists { path: dir.into() });
    }
    let error = |e| CheckpointError::io("write", dir, e);
    let weights_name = format!("{UNET_STEM}.safetensors");
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let weights = serialize(
        &dir.join("unet").join(&weights_name),
        tensors,
        dtype,
        Some(metadata),
    )?;

    let beside = parent(dir);
    std::fs::create_dir_all(beside).map_err(error)?;
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY_PREFIX);
    if let Some(mode) = ordinary_mode(0o777) {
        builder.permissions(mode);
    }
    let temporary = builder.tempdir_in(beside).map_err(error)?;
    let (unet, scheduler) = (
        temporary.path().join("unet"),
        temporary.path().join("scheduler"),
    );
    for part in [&unet, &scheduler] {
        std::fs::create_dir(part).map_err(error)?;
    }
    write_atomic(&unet.join(weights_name), &weights)?;
    write_json(&unet.join("config.json"), unet_config)?;
    write_json(&scheduler.join("scheduler_config.json"), scheduler_config)?;
    write_json(&temporary.path().join("model_index.json"), model_index)?;
    std::fs::rename(temporary.path(), dir).map_err(error)?;
    // Renamed away: there is nothing left under the temporary name to remove.
    let _ = temporary.keep();
    sync_dir(beside).map_err(error)
}

/// Writes one safetensors file in F32, replacing what was there in one step.
///
/// # Errors
/// A tensor's data does not fit its shape, a name stands twice, or the file cannot be written; `path` is then as it was.
pub fn save_tensors(
    path: &Path,
    tensors: &[SaveTensor],
    metadata: Option<HashMap<String, String>>,
) -> Result<()> {
    write_atomic(path, &serialize(path, tensors, SaveDtype::F32, metadata)?)
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let mut text = format!("{value:#}");
    text.push('\n');
    write_atomic(path, text.as_bytes())
}

/// The bytes of a safetensors file; `path` is only named in errors.
fn serialize(
    path: &Path,
    tensors: &[SaveTensor],
    dtype: SaveDtype,
    metadata: Option<HashMap<String, String>>,
) -> Result<Vec<u8>> {
    let mut seen = HashSet::with_capacity(tensors.len());
    for tensor in tensors {
        let elements = tensor.shape.iter().copied().try_fold(1, usize::checked_mul);
        let fits = elements == Some(tensor.data.len());
        let name = tensor.name.as_str();
        if !fits || name == "__metadata__" || name.contains(char::is_control) || !seen.insert(name)
        {
            return Err(CheckpointError::Unsaveable {
                path: path.into(),
                tensor: tensor.name.clone(),
                shape: tensor.shape.clone(),
                elements: tensor.data.len(),
            });
        }
        if dtype == SaveDtype::F16 {
            check_half(path, tensor)?;
        }
    }
    let views = tensors
        .iter()
        .map(|tensor| (tensor.name.as_str(), Encoded { tensor, dtype }));
    safetensors::serialize(views, metadata).map_err(|source| CheckpointError::Header {
        path: path.into(),
        source,
    })
}

/// A finite weight must stay finite in half precision.
fn check_half(path: &Path, tensor: &SaveTensor) -> Result<()> {
    let lost = |v: &&f32| v.is_finite() && !half::f16::from_f32(**v).is_finite();
    match tensor.data.iter().find(lost) {
        None => Ok(()),
        Some(&value) => Err(CheckpointError::HalfOverflow {
            path: path.into(),
            tensor: tensor.name.clone(),
            value,
        }),
    }
}

/// A tensor as it is stored.
struct Encoded<'a> {
    tensor: &'a SaveTensor,
    dtype: SaveDtype,
}

impl View for Encoded<'_> {
    fn dtype(&self) -> StoredDtype {
        match self.dtype {
            SaveDtype::F32 => StoredDtype::F32,
            SaveDtype::F16 => StoredDtype::F16,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.tensor.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let values = self.tensor.data.iter();
        Cow::Owned(match self.dtype {
            SaveDtype::F32 => values.flat_map(|v| v.to_le_bytes()).collect(),
            SaveDtype::F16 => values
                .flat_map(|v| half::f16::from_f32(*v).to_le_bytes())
                .collect(),
        })
    }

    fn data_len(&self) -> usize {
        let element = match self.dtype {
            SaveDtype::F32 => 4,
            SaveDtype::F16 => 2,
        };
        self.tensor.data.len() * element
    }
}
