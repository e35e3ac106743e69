//! What a checkpoint directory holds, without running any of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::stray_files::{self, StrayFiles, shown};
use crate::tensor_stats::{AnomalyKind, TensorStats};
use crate::{
    Checkpoint, CheckpointError, CheckpointKind, Component, Dtype, HashCache, Limits,
    PipelineIndex, Result, UNET_STEM, Weights, sha256_file,
};

/// Start of the file names of a transformers model's weights, for text encoders and safety checkers.
const TRANSFORMERS_STEM: &str = "model";

/// The contents of a checkpoint directory.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// The directory as given.
    pub root: String,
    /// Class of the pipeline; `None` for a bare UNet.
    pub pipeline_class: Option<String>,
    /// Whether the model is conditioned on text, see [`Checkpoint::is_text_conditional`].
    pub text_conditional: bool,
    /// The components, sorted by name.
    pub components: Vec<ComponentInspection>,
    /// Parameters of all components whose weights can be read.
    pub parameters: u64,
    /// Files that can run code when somebody else loads them.
    pub stray: StrayFiles,
}

/// One component.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ComponentInspection {
    /// Its name in the pipeline.
    pub name: String,
    /// The library of its class; `None` for a bare UNet.
    pub library: Option<String>,
    /// Its class; `None` for a bare UNet whose configuration names none.
    pub class_name: Option<String>,
    /// The files of its directory, sorted by path.
    pub files: Vec<FileInspection>,
    /// Its weights, if it has any that can be read.
    pub weights: Option<WeightsInspection>,
    /// Why its weights cannot be read.
    pub weights_error: Option<String>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileInspection {
    /// Path below the root.
    pub path: String,
    /// Length in bytes.
    pub bytes: u64,
    /// SHA-256, lower-case hexadecimal.
    pub sha256: String,
}

/// The weights that a loader takes by default.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WeightsInspection {
    /// Paths below the root.
    pub files: Vec<String>,
    /// The variant taken because there was no other.
    pub variant: Option<String>,
    /// Number of tensors.
    pub tensors: usize,
    /// Number of elements of all tensors.
    pub parameters: u64,
    /// Number of tensors of each type.
    pub dtypes: BTreeMap<Dtype, usize>,
    /// Tensors with odd values.
    pub anomalies: Vec<TensorAnomaly>,
}

/// A tensor with odd values.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorAnomaly {
    /// Its name.
    pub tensor: String,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// What is odd.
    pub kinds: Vec<AnomalyKind>,
    /// The numbers behind it.
    #[serde(flatten)]
    pub stats: TensorStats,
}

/// Inspects a pipeline directory or a bare UNet directory. Every float tensor is read once, and every file of a component is
/// hashed unless `cache` knows it.
///
/// # Errors
/// The directory is neither of the two, `model_index.json` is unusable, or a file cannot be read. Weights that cannot be read
/// are no error: the component says why.
pub fn inspect(path: &Path, limits: &Limits, cache: Option<&HashCache>) -> Result<Inspection> {
    let (pipeline_class, text_conditional, named) = open(path, limits)?;
    let mut components = Vec::new();
    for (name, class) in named {
        components.push(inspect_component(path, &name, class, limits, cache)?);
    }
    Ok(Inspection {
        root: shown(path),
        pipeline_class,
        text_conditional,
        parameters: components
            .iter()
            .flat_map(|c| &c.weights)
            .map(|w| w.parameters)
            .sum(),
        components,
        stray: stray_files::find(path)?,
    })
}

type Named = Vec<(String, (Option<String>, Option<String>))>;

/// Class, text conditioning and components. Pipelines that [`Checkpoint`] refuses, because they have no UNet or an unusable
/// configuration of it, can still be listed.
fn open(path: &Path, limits: &Limits) -> Result<(Option<String>, bool, Named)> {
    let named = |components: Vec<Component>| {
        components
            .into_iter()
            .map(|c| (c.name, (Some(c.library), Some(c.class_name))))
            .collect()
    };
    match Checkpoint::open(path, limits) {
        Ok(checkpoint) => {
            let text = checkpoint.is_text_conditional();
            let class = checkpoint.unet_class().map(str::to_owned);
            Ok(match checkpoint.kind {
                CheckpointKind::Pipeline {
                    class_name,
                    components,
                } => (Some(class_name), text, named(components)),
                CheckpointKind::BareUnet => (None, text, vec![("unet".into(), (None, class))]),
            })
        }
        Err(error) => {
            let Ok(index) = PipelineIndex::read(&path.join("model_index.json"), limits) else {
                return Err(error);
            };
            Ok((
                Some(index.class_name.clone()),
                index.has_text_part(),
                named(index.components),
            ))
        }
    }
}

fn inspect_component(
    root: &Path,
    name: &str,
    (library, class_name): (Option<String>, Option<String>),
    limits: &Limits,
    cache: Option<&HashCache>,
) -> Result<ComponentInspection> {
    let below_root = |path: &Path| shown(path.strip_prefix(root).unwrap_or(path));
    let (dir, paths) = component_files(root, name)?;
    let mut files = Vec::new();
    for path in &paths {
        let seen = std::fs::metadata(path).map_err(|e| CheckpointError::io("read", path, e))?;
        files.push(FileInspection {
            path: below_root(path),
            bytes: seen.len(),
            sha256: sha256_file(path, cache)?,
        });
    }
    let (weights, weights_error) = match open_weights(&dir, &paths, limits) {
        None => (None, None),
        Some(Ok(weights)) => (Some(inspect_weights(&weights, &below_root)?), None),
        Some(Err(error)) => (None, Some(chain(&error))),
    };
    Ok(ComponentInspection {
        name: name.into(),
        library,
        class_name,
        files,
        weights,
        weights_error,
    })
}

/// Directory and files of a component. The first published DDPM pipelines keep both components in the root; there the
/// scheduler is one file and the rest is the UNet's.
fn component_files(root: &Path, name: &str) -> Result<(PathBuf, Vec<PathBuf>)> {
    const SCHEDULER_CONFIG: &str = "scheduler_config.json";
    let own = root.join(name);
    let (dir, flat) = if own.is_dir() {
        (own, false)
    } else {
        (root.to_path_buf(), true)
    };
    let error = |e| CheckpointError::io("read", &dir, e);
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(&dir).map_err(error)? {
        let path = entry.map_err(error)?.path();
        let belongs = match name {
            _ if !flat => true,
            "unet" => !path.ends_with(SCHEDULER_CONFIG) && !path.ends_with("model_index.json"),
            "scheduler" => path.ends_with(SCHEDULER_CONFIG),
            _ => false,
        };
        if belongs && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok((dir, paths))
}

/// The weights among a component's files; `None` if there are none, as in a scheduler or a tokenizer.
fn open_weights(dir: &Path, paths: &[PathBuf], limits: &Limits) -> Option<Result<Weights>> {
    let is_weights = |p: &PathBuf| {
        p.extension().is_some_and(|e| e == "safetensors") || crate::locate::is_pickle_name(p)
    };
    paths.iter().any(is_weights).then(|| {
        let of_stem = |stem| Weights::open_dir(dir, stem, None, limits);
        of_stem(UNET_STEM).or_else(|error| match error {
            CheckpointError::NoWeights { .. } => of_stem(TRANSFORMERS_STEM),
            other => Err(other),
        })
    })
}

fn inspect_weights(
    weights: &Weights,
    below_root: &dyn Fn(&Path) -> String,
) -> Result<WeightsInspection> {
    let mut report = WeightsInspection {
        files: weights
            .files()
            .iter()
            .map(|path| below_root(path))
            .collect(),
        variant: weights.variant().map(str::to_owned),
        tensors: 0,
        parameters: 0,
        dtypes: BTreeMap::new(),
        anomalies: Vec::new(),
    };
    for info in weights.infos() {
        report.tensors += 1;
        report.parameters += info.elements() as u64;
        *report.dtypes.entry(info.dtype).or_default() += 1;
        if !info.dtype.is_float() {
            continue;
        }
        let stats = TensorStats::of(&weights.read_f32(&info.name)?);
        let kinds = stats.anomalies(info.elements());
        if !kinds.is_empty() {
            let (tensor, shape) = (info.name.clone(), info.shape.clone());
            report.anomalies.push(TensorAnomaly {
                tensor,
                shape,
                kinds,
                stats,
            });
        }
    }
    Ok(report)
}

/// An error with its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(&format!(": {next}"));
        cause = next.source();
    }
    text
}
