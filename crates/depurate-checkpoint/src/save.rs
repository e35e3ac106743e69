//! Saves models as diffusers writes them.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::path::Path;

use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype as StoredDtype, View};
use serde_json::Value;

use crate::atomic::{TEMPORARY_PREFIX, ordinary_mode, parent, sync_dir};
use crate::{CheckpointError, Result, write_atomic};

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

/// Collects the tensors of a component when they are to be written.
type Tensors<'a> = Box<dyn Fn() -> Vec<SaveTensor> + 'a>;

/// A component of a pipeline to be saved: what stands in the directory of its name.
pub struct SaveComponent<'a> {
    name: &'a str,
    files: Vec<(String, Vec<u8>)>,
    weights: Option<(&'a str, Tensors<'a>)>,
}

impl<'a> SaveComponent<'a> {
    /// A component without files; `name` is that of its directory.
    pub fn new(name: &'a str) -> Self {
        Self {
            name,
            files: Vec::new(),
            weights: None,
        }
    }

    /// With one more file.
    pub fn file(mut self, name: &str, bytes: Vec<u8>) -> Self {
        self.files.push((name.to_owned(), bytes));
        self
    }

    /// With a JSON file.
    pub fn json(self, name: &str, value: &Value) -> Self {
        self.file(name, json_text(value).into_bytes())
    }

    /// With weights as `{stem}.safetensors`. They are asked for when they are written, and dropped before the next component
    /// is: a copy of one component at a time is in memory.
    pub fn weights(mut self, stem: &'a str, tensors: impl Fn() -> Vec<SaveTensor> + 'a) -> Self {
        self.weights = Some((stem, Box::new(tensors)));
        self
    }
}

/// Writes a pipeline directory that diffusers loads: `model_index.json`, and a directory for each component.
///
/// All is written to a directory beside `dir` and renamed when it is complete and on the disk.
///
/// # Errors
/// `dir` exists, a name is not that of a file or directory, a tensor's data does not fit its shape or (for F16) its type, or
/// the directory cannot be written; there is then nothing under the name `dir`.
pub fn save_pipeline(
    dir: &Path,
    model_index: &Value,
    components: &[SaveComponent<'_>],
    dtype: SaveDtype,
) -> Result<()> {
    if dir.symlink_metadata().is_ok() {
        return Err(CheckpointError::Exists { path: dir.into() });
    }
    let error = |e| CheckpointError::io("write", dir, e);
    let beside = parent(dir);
    std::fs::create_dir_all(beside).map_err(error)?;
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY_PREFIX);
    if let Some(mode) = ordinary_mode(0o777) {
        builder.permissions(mode);
    }
    let temporary = builder.tempdir_in(beside).map_err(error)?;
    for component in components {
        save_component(component, temporary.path(), dir, dtype)?;
    }
    let index = json_text(model_index);
    write_atomic(&temporary.path().join("model_index.json"), index.as_bytes())?;
    std::fs::rename(temporary.path(), dir).map_err(error)?;
    // Renamed away: there is nothing left under the temporary name to remove.
    let _ = temporary.keep();
    sync_dir(beside).map_err(error)
}

/// Writes a component into `root`, which will be called `dir`.
fn save_component(
    component: &SaveComponent<'_>,
    root: &Path,
    dir: &Path,
    dtype: SaveDtype,
) -> Result<()> {
    let (folder, shown) = (root.join(component.name), dir.join(component.name));
    let plain = |name: &str| Path::new(name).file_name() == Some(name.as_ref());
    let mut names = component.files.iter().map(|(name, _)| name.as_str());
    if !plain(component.name) || !names.all(plain) {
        let invalid = io::Error::from(io::ErrorKind::InvalidFilename);
        return Err(CheckpointError::io("write", &shown, invalid));
    }
    std::fs::create_dir(&folder).map_err(|e| CheckpointError::io("write", &shown, e))?;
    for (name, bytes) in &component.files {
        write_atomic(&folder.join(name), bytes)?;
    }
    if let Some((stem, tensors)) = &component.weights {
        let name = format!("{stem}.safetensors");
        let shown = shown.join(&name);
        write_weights(&folder.join(&name), &shown, &tensors(), dtype)?;
        as_open_as_its_folder(&folder, &name)
            .map_err(|e| CheckpointError::io("write", &shown, e))?;
    }
    sync_dir(&folder).map_err(|e| CheckpointError::io("write", &shown, e))
}

/// The library makes its files private; others are as the user's umask says, which the folder's mode shows.
fn as_open_as_its_folder(folder: &Path, name: &str) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(folder)?.permissions().mode() & 0o666;
        std::fs::set_permissions(folder.join(name), std::fs::Permissions::from_mode(mode))?;
    }
    #[cfg(not(unix))]
    {
        let _ = (folder, name);
    }
    Ok(())
}

/// Writes a safetensors file tensor by tensor; `shown` is only named in errors.
fn write_weights(
    path: &Path,
    shown: &Path,
    tensors: &[SaveTensor],
    dtype: SaveDtype,
) -> Result<()> {
    check(shown, tensors, dtype)?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let io = |e| CheckpointError::io("write", shown, e);
    safetensors::serialize_to_file(encoded(tensors, dtype), Some(metadata), path).map_err(
        |source| match source {
            SafeTensorError::IoError(error) => io(error),
            source => CheckpointError::Header {
                path: shown.into(),
                source,
            },
        },
    )?;
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(io)
}

/// Writes one safetensors file in F32, replacing what was there in one step.
///
/// # Errors
/// As [`save_tensors_as`].
pub fn save_tensors(
    path: &Path,
    tensors: &[SaveTensor],
    metadata: Option<HashMap<String, String>>,
) -> Result<()> {
    save_tensors_as(path, tensors, SaveDtype::F32, metadata)
}

/// Writes one safetensors file, replacing what was there in one step.
///
/// # Errors
/// A tensor's data does not fit its shape or (for F16) its type, a name stands twice, or the file cannot be written; `path` is
/// then as it was.
pub fn save_tensors_as(
    path: &Path,
    tensors: &[SaveTensor],
    dtype: SaveDtype,
    metadata: Option<HashMap<String, String>>,
) -> Result<()> {
    write_atomic(path, &serialize(path, tensors, dtype, metadata)?)
}

fn json_text(value: &Value) -> String {
    format!("{value:#}\n")
}

/// The bytes of a safetensors file; `path` is only named in errors.
fn serialize(
    path: &Path,
    tensors: &[SaveTensor],
    dtype: SaveDtype,
    metadata: Option<HashMap<String, String>>,
) -> Result<Vec<u8>> {
    check(path, tensors, dtype)?;
    safetensors::serialize(encoded(tensors, dtype), metadata).map_err(|source| {
        CheckpointError::Header {
            path: path.into(),
            source,
        }
    })
}

/// Refuses tensors that cannot be stored; `path` is only named in errors.
fn check(path: &Path, tensors: &[SaveTensor], dtype: SaveDtype) -> Result<()> {
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
    Ok(())
}

fn encoded(tensors: &[SaveTensor], dtype: SaveDtype) -> impl Iterator<Item = (&str, Encoded<'_>)> {
    let encode = move |tensor| Encoded { tensor, dtype };
    tensors.iter().map(move |t| (t.name.as_str(), encode(t)))
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
