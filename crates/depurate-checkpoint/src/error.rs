//! What can go wrong with a checkpoint, where, and how to mend it.

use std::io;
use std::path::{Path, PathBuf};

use crate::{ApplyReport, Dtype, ModelPart};

/// The result of every fallible function here.
pub type Result<T, E = CheckpointError> = std::result::Result<T, E>;

/// Why a checkpoint could not be read or written. Each variant names the path, the tensor where there is one, and the mend.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The operating system refused.
    #[error("cannot {action} {}: {}", path.display(), io_mend(source))]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's own error.
        source: io::Error,
    },
    /// A pipe, device or directory where a file is wanted.
    #[error("{} is not a regular file: give the path of a file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// A file where a directory is wanted.
    #[error("{} is not a directory: give the directory that holds model_index.json or config.json", path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// Something is larger than the limits allow.
    #[error("{what} of {} is too large: {got}, the limit is {limit}; if you trust the file, raise `{option}`", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// What is too large.
        what: &'static str,
        /// The size or number found (or stated by the file).
        got: u64,
        /// The largest one allowed.
        limit: u64,
        /// The field of [`Limits`](crate::Limits) that sets it.
        option: &'static str,
    },
    /// Neither a pipeline nor a UNet directory.
    #[error("{} holds neither model_index.json nor config.json: give a diffusers pipeline directory or a UNet directory", path.display())]
    NotACheckpoint {
        /// The directory.
        path: PathBuf,
    },
    /// A pipeline of another family.
    #[error("pipeline {class_name} in {} has no component `unet`: only UNet pipelines can be read", path.display())]
    NoUnet {
        /// The pipeline directory.
        path: PathBuf,
        /// `_class_name` of the pipeline.
        class_name: String,
    },
    /// A pipeline without a component that it needs.
    #[error("{} has no component `{component}`: complete model_index.json, or take the whole pipeline", path.display())]
    NoComponent {
        /// The directory.
        path: PathBuf,
        /// The component.
        component: &'static str,
    },
    /// Only pickles hold the weights.
    #[error("{} holds its weights only as pickle ({}): pickle files can run code when they are loaded; convert to safetensors", path.display(), names(files))]
    Pickle {
        /// The directory or file.
        path: PathBuf,
        /// Names of the pickles.
        files: Vec<String>,
    },
    /// No weights at all.
    #[error("{} holds no {stem}.safetensors and no {stem}.safetensors.index.json: complete the download", path.display())]
    NoWeights {
        /// The directory.
        path: PathBuf,
        /// The start of the file names looked for, with the variant if one was asked for.
        stem: String,
    },
    /// Several sets of weights, of which loaders choose differently.
    #[error("{} holds several sets of weights ({}), and loaders differ in which they take: remove all but one or name a variant", path.display(), names(found))]
    AmbiguousWeights {
        /// The directory.
        path: PathBuf,
        /// The files that compete.
        found: Vec<String>,
    },
    /// Not JSON, or JSON that names a key twice or holds too many values.
    #[error("{} is not usable JSON: download it again or repair it", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why parsing stopped.
        source: serde_json::Error,
    },
    /// A JSON field is absent or of another type.
    #[error("field `{}` of {} must be {expected}: repair the file or take the original", field.escape_debug(), path.display())]
    JsonField {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
        /// What it must be.
        expected: &'static str,
    },
    /// The file ends before its header does.
    #[error("{} is cut short: it states a header of {header_bytes} bytes and has {file_bytes} bytes in all; download it again", path.display())]
    Truncated {
        /// The safetensors file.
        path: PathBuf,
        /// Length of the header as stated (0 where the file is too short to state one).
        header_bytes: u64,
        /// Length of the file.
        file_bytes: u64,
    },
    /// The header of a safetensors file is not JSON of the right form.
    #[error("the header of {} is corrupted: download it again", path.display())]
    HeaderJson {
        /// The safetensors file.
        path: PathBuf,
        /// Where and why parsing stopped.
        source: serde_json::Error,
    },
    /// The header contradicts itself or the file: overlapping or out-of-order tensors, overflowing shapes, unclaimed bytes.
    #[error("the header of {} does not fit its data: download it again", path.display())]
    Header {
        /// The safetensors file.
        path: PathBuf,
        /// Which rule of the format is broken, and the tensor where the format's reader names it.
        source: safetensors::SafeTensorError,
    },
    /// One name stands twice, in one file or in two shards.
    #[error("tensor `{tensor}` of {} is stored twice: which one counts depends on the reader; save the model again", path.display())]
    DuplicateTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor's bytes lie outside the file.
    #[error("tensor `{tensor}` of {} is said to end at byte {end} of {data_bytes}: the file is cut short or forged; download it again", path.display())]
    OutOfRange {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The end of the tensor as stated, from the end of the header.
        end: u64,
        /// Bytes after the header.
        data_bytes: u64,
    },
    /// An index names a shard that is not a plain safetensors file name.
    #[error("index {} names the shard `{}`: a shard must be a .safetensors file beside its index; save the model again", path.display(), shard.escape_debug())]
    ShardName {
        /// The index.
        path: PathBuf,
        /// The name.
        shard: String,
    },
    /// Index and shards disagree about where a tensor is.
    #[error("index {} and shard {shard} disagree about tensor `{}`: save the model again", path.display(), tensor.escape_debug())]
    IndexMismatch {
        /// The index.
        path: PathBuf,
        /// The shard.
        shard: String,
        /// The tensor that only one of them knows.
        tensor: String,
    },
    /// A tensor was asked for that is not there.
    #[error("{} has no tensor `{tensor}`: list the names with `inspect`", path.display())]
    UnknownTensor {
        /// The first weight file.
        path: PathBuf,
        /// The name.
        tensor: String,
    },
    /// A tensor that is not of a float type was to be read as one.
    #[error("tensor `{tensor}` of {} has elements of type {dtype}: weights must be F64, F32, F16 or BF16", path.display())]
    NotFloat {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: Dtype,
    },
    /// A weight is not a number.
    #[error("tensor `{tensor}` of {} holds {nan} NaN and {infinite} infinite values: the model cannot run; take an intact copy", path.display())]
    NonFinite {
        /// The file.
        path: PathBuf,
        /// The first such tensor.
        tensor: String,
        /// NaN elements.
        nan: usize,
        /// Infinite elements.
        infinite: usize,
    },
    /// The tensors of a file are not those that the network expects.
    #[error("the tensors in {} are not those that its configuration asks for: {report}; check that weights and config.json belong together", path.display())]
    Apply {
        /// The weights.
        path: PathBuf,
        /// What was missing, unexpected or of another shape.
        report: Box<ApplyReport>,
    },
    /// A tensor that is to be laid over another has another shape.
    #[error("tensor `{tensor}` of {} has shape {got:?} and does not fit `{target}` of shape {wanted:?}: it was made for another model", path.display())]
    Misfit {
        /// The file of the tensor.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape.
        got: Box<[usize]>,
        /// The tensor that it is to be laid over.
        target: String,
        /// The shape of that one.
        wanted: Box<[usize]>,
    },
    /// A change made of tensors that are themselves changed.
    #[error("tensor `{tensor}` of {} is changed itself and cannot change another: lay the files on one after the other", path.display())]
    Layered {
        /// The file of the tensor.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A file of a known layout that is not supported.
    #[error("{} is {what}: {mend}", path.display())]
    UnsupportedLayout {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
        /// What to do instead.
        mend: &'static str,
    },
    /// Keys that are not part of the layout that a file seems to have, or that name nothing in the model.
    #[error("{} holds keys that are not understood as {what} of this model: {}; check that the file belongs to it", path.display(), names(keys))]
    UnknownKeys {
        /// The file.
        path: PathBuf,
        /// What the file is read as.
        what: &'static str,
        /// The keys.
        keys: Vec<String>,
    },
    /// A key without the one that belongs to it.
    #[error("{} holds `{key}` without `{missing}`: the file is incomplete, download it again", path.display())]
    Unpaired {
        /// The file.
        path: PathBuf,
        /// The key that is there.
        key: String,
        /// The key that is not.
        missing: String,
    },
    /// A file changes a component that the model does not have.
    #[error("{} changes the {part}, which this model does not have: check that the file belongs to it", path.display())]
    NoPart {
        /// The file.
        path: PathBuf,
        /// The component.
        part: ModelPart,
    },
    /// A number that a file states is out of its range.
    #[error("`{field}` of {} is {got}, allowed: {allowed}", path.display())]
    OutOfBounds {
        /// The file.
        path: PathBuf,
        /// The field or tensor.
        field: String,
        /// Its value, as text.
        got: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// The place to save to is taken.
    #[error("{} exists: choose a new directory or remove it", path.display())]
    Exists {
        /// The directory.
        path: PathBuf,
    },
    /// A tensor to be saved has another number of elements than its shape says, or a name that cannot be stored.
    #[error("tensor `{tensor}` for {} cannot be saved: shape {shape:?} with {elements} elements (names must be unique and not `__metadata__`)", path.display())]
    Unsaveable {
        /// The file to write.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Its elements.
        elements: usize,
    },
    /// A weight is too large for half precision.
    #[error("tensor `{tensor}` for {} holds {value}, which half precision cannot: save as f32", path.display())]
    HalfOverflow {
        /// The file to write.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The first such value.
        value: f32,
    },
}

impl CheckpointError {
    /// Wraps an error of the operating system.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            action,
            path: path.into(),
            source,
        }
    }
}

/// The mend that fits a system error; the error itself follows as the source.
fn io_mend(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "it does not exist; check the path",
        io::ErrorKind::PermissionDenied => "permission denied; change its mode or owner",
        io::ErrorKind::StorageFull => "the disk is full; free some space and try again",
        io::ErrorKind::QuotaExceeded => "the disk quota is used up; free some space and try again",
        io::ErrorKind::ReadOnlyFilesystem => "the file system is read-only; write to another place",
        io::ErrorKind::NotADirectory => "a part of the path is not a directory; check the path",
        io::ErrorKind::IsADirectory => "it is a directory; give the path of a file",
        io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty => {
            "it exists; choose a new name or remove it"
        }
        _ => "the system reported an error; see its message and try again",
    }
}

/// `a, b, c and 5 more`, safe to print.
pub(crate) fn names(all: &[String]) -> String {
    const SHOWN: usize = 10;
    let shown = all
        .iter()
        .take(SHOWN)
        .map(|n| n.escape_debug().to_string())
        .collect::<Vec<_>>()
        .join(", ");
    match all.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
