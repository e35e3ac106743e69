//! The tensors of one checkpoint component: one file, or shards with an index.

mod overlay;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::locate::{Located, locate};
use crate::mmap::FileBytes;
use crate::{CheckpointError, Dtype, Limits, Result, ShardIndex, header::read_header};
use overlay::Change;
pub use overlay::LowRank;
pub(crate) use overlay::{Pick, rank};

/// What a file says about one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name as stored, for example `down_blocks.0.resnets.0.conv1.weight`.
    pub name: String,
    /// Type of the elements.
    pub dtype: Dtype,
    /// Dimensions, outermost first. Their product does not overflow.
    pub shape: Vec<usize>,
    /// The file that holds it.
    pub file: PathBuf,
}

impl TensorInfo {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Elements of a tensor that are not numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NonFinite {
    /// NaN elements.
    pub nan: usize,
    /// Elements that are plus or minus infinity.
    pub infinite: usize,
}

/// The tensors of one safetensors file, or of the shards of an index. Files are memory mapped: a tensor costs memory when it
/// is read.
///
/// Other files can be laid over them ([`Weights::replace`], [`Weights::add`], [`Weights::add_low_rank`],
/// [`Weights::append_rows`]); what is read is then the effective weight. Clones share the mapped bytes.
#[derive(Debug, Clone)]
pub struct Weights {
    files: Vec<PathBuf>,
    tensors: BTreeMap<String, Stored>,
    variant: Option<String>,
    metadata: BTreeMap<String, String>,
}

/// Where a tensor lies, and what is laid over it.
#[derive(Debug, Clone)]
struct Stored {
    info: TensorInfo,
    bytes: Arc<FileBytes>,
    range: Range<usize>,
    changes: Vec<Change>,
}

impl Weights {
    /// Opens one safetensors file.
    ///
    /// # Errors
    /// The file is missing, too large, a pickle by its name, or its header is corrupted, contradicts the file or is beyond the
    /// limits.
    pub fn open_file(path: &Path, limits: &Limits) -> Result<Self> {
        if crate::locate::is_pickle_name(path) {
            return Err(CheckpointError::Pickle {
                path: path.into(),
                files: path
                    .file_name()
                    .map(|n| n.to_string_lossy().into())
                    .into_iter()
                    .collect(),
            });
        }
        let bytes = FileBytes::map(path, limits)?;
        let mut weights = Self::empty(None);
        weights.add_file(path, bytes, limits)?;
        Ok(weights)
    }

    /// Reads a whole safetensors file from memory; `name` stands for its path in errors and infos.
    ///
    /// # Errors
    /// As [`Weights::open_file`], without those of the file system.
    pub fn from_bytes(name: &Path, bytes: Vec<u8>, limits: &Limits) -> Result<Self> {
        let mut weights = Self::empty(None);
        weights.add_file(name, FileBytes::Owned(bytes), limits)?;
        Ok(weights)
    }

    /// Finds and opens the weights in a component's directory: `{stem}.safetensors` or `{stem}.safetensors.index.json`, or
    /// those of a variant such as `fp16` (`{stem}.fp16.safetensors`). If no variant is asked for and there is only one of a
    /// variant, that one is taken; [`Weights::variant`] says so.
    ///
    /// # Errors
    /// Nothing there, only pickles, several sets between which loaders choose differently, an index that leads out of the
    /// directory or disagrees with its shards, or any error of [`Weights::open_file`].
    pub fn open_dir(
        dir: &Path,
        stem: &str,
        variant: Option<&str>,
        limits: &Limits,
    ) -> Result<Self> {
        let (located, variant) = locate(dir, stem, variant)?;
        match located {
            Located::Single(path) => {
                let mut weights = Self::open_file(&path, limits)?;
                weights.variant = variant;
                Ok(weights)
            }
            Located::Index(path) => Self::open_shards(&path, variant, limits),
        }
    }

    fn open_shards(index_path: &Path, variant: Option<String>, limits: &Limits) -> Result<Self> {
        let index = ShardIndex::read(index_path, limits)?;
        let dir = index_path.parent().unwrap_or(Path::new(""));
        let mut weights = Self::empty(variant);
        for shard in index.shards() {
            let path = dir.join(shard);
            weights.add_file(&path, FileBytes::map(&path, limits)?, limits)?;
        }
        // Every tensor where the index says, and no tensor of which the index says nothing: other loaders take all that a
        // shard holds, so a scan by the index alone would see another model than they run.
        let mismatch = |tensor: &str, shard: &str| CheckpointError::IndexMismatch {
            path: index_path.into(),
            shard: shard.into(),
            tensor: tensor.into(),
        };
        for (tensor, shard) in index.weight_map() {
            match weights.tensors.get(tensor) {
                Some(stored) if stored.info.file == dir.join(shard) => {}
                _ => return Err(mismatch(tensor, shard)),
            }
        }
        for (tensor, stored) in &weights.tensors {
            if !index.weight_map().contains_key(tensor) {
                let shard = stored.info.file.file_name().unwrap_or_default();
                return Err(mismatch(tensor, &shard.to_string_lossy()));
            }
        }
        Ok(weights)
    }

    fn empty(variant: Option<String>) -> Self {
        Self {
            files: Vec::new(),
            tensors: BTreeMap::new(),
            variant,
            metadata: BTreeMap::new(),
        }
    }

    fn add_file(&mut self, path: &Path, bytes: FileBytes, limits: &Limits) -> Result<()> {
        let bytes = Arc::new(bytes);
        let header = read_header(path, bytes.as_slice(), limits)?;
        if self.files.is_empty() {
            self.metadata = header.metadata;
        }
        for entry in header.entries {
            let info = TensorInfo {
                name: entry.name.clone(),
                dtype: entry.dtype,
                shape: entry.shape,
                file: path.into(),
            };
            let stored = Stored {
                info,
                bytes: bytes.clone(),
                range: entry.bytes,
                changes: Vec::new(),
            };
            if self.tensors.insert(entry.name.clone(), stored).is_some() {
                return Err(CheckpointError::DuplicateTensor {
                    path: path.into(),
                    tensor: entry.name,
                });
            }
        }
        if self.tensors.len() > limits.tensors {
            return Err(CheckpointError::TooLarge {
                path: path.into(),
                what: "the number of tensors",
                got: self.tensors.len() as u64,
                limit: limits.tensors as u64,
                option: "tensors",
            });
        }
        self.files.push(path.into());
        Ok(())
    }

    /// All tensors, sorted by name.
    pub fn infos(&self) -> impl Iterator<Item = &TensorInfo> {
        self.tensors.values().map(|stored| &stored.info)
    }

    /// One tensor's entry.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name).map(|stored| &stored.info)
    }

    /// The values of a tensor of float type, row-major, as `f32` (F64 is rounded, the others are exact), with what is laid over
    /// it. NaN and infinite values are handed out as they are: see [`Weights::check_finite`].
    ///
    /// # Errors
    /// No such tensor, or not of a float type.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let stored = self.float(name)?;
        let own: usize = stored.own_elements();
        let mut values = Vec::with_capacity(stored.info.elements().max(own));
        stored.for_each_own(|v| values.push(v));
        for change in &stored.changes {
            change.apply(&mut values);
        }
        Ok(values)
    }

    /// Counts the NaN and infinite values that [`Weights::read_f32`] would give for a tensor.
    ///
    /// # Errors
    /// As [`Weights::read_f32`].
    pub fn non_finite(&self, name: &str) -> Result<NonFinite> {
        let stored = self.float(name)?;
        let mut count = NonFinite::default();
        let mut see = |v: f32| {
            count.nan += usize::from(v.is_nan());
            count.infinite += usize::from(v.is_infinite());
        };
        if stored.changes.is_empty() {
            stored.for_each_own(see);
        } else {
            self.read_f32(name)?.into_iter().for_each(&mut see);
        }
        Ok(count)
    }

    /// Refuses weights with which no network can run. Reads every float tensor once.
    ///
    /// # Errors
    /// [`CheckpointError::NonFinite`] with the first tensor that holds a NaN or infinite value.
    pub fn check_finite(&self) -> Result<()> {
        for info in self.infos().filter(|info| info.dtype.is_float()) {
            let NonFinite { nan, infinite } = self.non_finite(&info.name)?;
            if nan + infinite > 0 {
                return Err(CheckpointError::NonFinite {
                    path: info.file.clone(),
                    tensor: info.name.clone(),
                    nan,
                    infinite,
                });
            }
        }
        Ok(())
    }

    fn stored(&self, name: &str) -> Result<&Stored> {
        self.tensors
            .get(name)
            .ok_or_else(|| CheckpointError::UnknownTensor {
                path: self.files.first().cloned().unwrap_or_default(),
                tensor: name.into(),
            })
    }

    fn float(&self, name: &str) -> Result<&Stored> {
        let stored = self.stored(name)?;
        if stored.info.dtype.is_float() {
            return Ok(stored);
        }
        Err(CheckpointError::NotFloat {
            path: stored.info.file.clone(),
            tensor: name.into(),
            dtype: stored.info.dtype,
        })
    }

    /// The safetensors files, in the order of the index; then the ones laid over them.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The variant that was taken, for example `fp16`; `None` for the plain weights.
    pub fn variant(&self) -> Option<&str> {
        self.variant.as_deref()
    }

    /// An entry of the free-form metadata of the first file.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }
}

impl Stored {
    /// Elements in the tensor's own bytes: fewer than its shape says where rows are appended.
    fn own_elements(&self) -> usize {
        let width = self.info.dtype.float_bytes().unwrap_or(1);
        self.range.len() / width
    }

    fn for_each_own(&self, f: impl FnMut(f32)) {
        let bytes = &self.bytes.as_slice()[self.range.clone()];
        self.info.dtype.for_each_f32(bytes, f);
    }
}
