//! The suspect: opened, hashed, described, with what its files alone give away.

use std::path::Path;

use depurate_checkpoint::{AnomalyKind, Checkpoint, HashCache, Inspection, Limits, sha256_file};
use depurate_diffusion::Pipeline;
use depurate_report::{
    AlgorithmId, Component, Confidence, Evidence, Finding, FindingId, Subject, Table,
};

use crate::{Error, device::Device, journal::sha256_of};

/// A model that can be scanned.
#[derive(Debug)]
pub struct Opened {
    /// The network with its schedule.
    pub pipeline: Pipeline,
    /// sha256 of its weights.
    pub weights_sha256: String,
    /// sha256 of all that decides what it computes: weights, configuration and scheduler.
    pub model_sha256: String,
}

/// Whether the model at `path` is a pipeline or UNet that is conditioned on text.
///
/// # Errors
/// When it is no checkpoint.
pub fn is_text_to_image(path: &Path, limits: &Limits) -> Result<bool, Error> {
    Ok(Checkpoint::open(path, limits)?.is_text_conditional())
}

/// Opens a checkpoint and refuses kinds that no detector can check.
///
/// # Errors
/// When it is no checkpoint, or of a kind that is not supported yet.
pub fn open_checkpoint(path: &Path, limits: &Limits) -> Result<Checkpoint, Error> {
    let checkpoint = Checkpoint::open(path, limits)?;
    if checkpoint.is_text_conditional() {
        let class = checkpoint
            .pipeline_class()
            .or(checkpoint.unet_class())
            .unwrap_or("of unnamed class");
        return Err(Error::Unsupported {
            path: path.into(),
            what: format!("a text-to-image model ({class})"),
        });
    }
    Ok(checkpoint)
}

/// Opens, hashes and loads a model.
///
/// # Errors
/// As [`open_checkpoint`], and when its files are malformed or do not fit together.
pub fn open(
    path: &Path,
    limits: &Limits,
    device: Device,
    hashes: Option<&HashCache>,
) -> Result<Opened, Error> {
    open_on(path, limits, &device.open(), hashes)
}

/// As [`open`], with gradients in the weights.
///
/// # Errors
/// As [`open`].
pub fn open_trainable(
    path: &Path,
    limits: &Limits,
    device: Device,
    hashes: Option<&HashCache>,
) -> Result<Opened, Error> {
    open_on(path, limits, &device.open().autodiff(), hashes)
}

fn open_on(
    path: &Path,
    limits: &Limits,
    device: &depurate_diffusion::Device,
    hashes: Option<&HashCache>,
) -> Result<Opened, Error> {
    let checkpoint = open_checkpoint(path, limits)?;
    let weights_sha256 = weights_sha256(&checkpoint, limits, hashes)?;
    let text = |map: Option<&serde_json::Map<_, _>>| serde_json::to_string(&map);
    let written = |source| Error::Json {
        what: "a configuration",
        source,
    };
    let config = text(Some(checkpoint.unet_config())).map_err(written)?;
    let scheduler = text(checkpoint.scheduler_config()).map_err(written)?;
    let model_sha256 = sha256_of([
        weights_sha256.as_bytes(),
        config.as_bytes(),
        scheduler.as_bytes(),
    ]);
    let pipeline = Pipeline::from_checkpoint(&checkpoint, limits, device)?;
    Ok(Opened {
        pipeline,
        weights_sha256,
        model_sha256,
    })
}

/// sha256 of the network's weights: of the file, or for several of their hashes in order.
///
/// # Errors
/// When the weights are missing or cannot be read.
pub fn weights_sha256(
    checkpoint: &Checkpoint,
    limits: &Limits,
    hashes: Option<&HashCache>,
) -> Result<String, Error> {
    let weights = checkpoint.unet_weights(limits)?;
    let files: Result<Vec<String>, _> = weights
        .files()
        .iter()
        .map(|file| sha256_file(file, hashes))
        .collect();
    match files?.as_slice() {
        [one] => Ok(one.clone()),
        several => Ok(sha256_of(several.iter().map(String::as_bytes))),
    }
}

/// What a report says about the subject, a model of this `kind`. `path` is shown as it was given.
pub fn describe(path: &Path, contents: &Inspection, kind: &str) -> Subject {
    let unet = contents
        .components
        .iter()
        .find(|component| component.name == "unet");
    let files = contents.components.iter().flat_map(|component| {
        let weights = component.weights.iter().flat_map(|weights| &weights.files);
        weights.filter_map(|name| {
            let file = component.files.iter().find(|file| &file.path == name)?;
            Some(Component {
                name: component.name.clone(),
                file: name.clone(),
                sha256: file.sha256.clone(),
                bytes: file.bytes,
            })
        })
    });
    Subject {
        path: path.display().to_string(),
        kind: kind.into(),
        class_name: unet
            .and_then(|unet| unet.class_name.clone())
            .unwrap_or_else(|| "UNet2DModel".into()),
        parameters: contents.parameters,
        components: files.collect(),
    }
}

/// Who reports what files alone give away.
const INSPECT: AlgorithmId = AlgorithmId::from_static("inspect");
/// Rows of a table of files or tensors; the JSON of `depurate inspect` holds all.
const MOST_ROWS: usize = 20;

/// Findings that need no run of the model. They do not decide the verdict: a pickle beside the weights is common.
pub fn static_findings(contents: &Inspection) -> Vec<Finding> {
    let stray = &contents.stray;
    let files = stray
        .pickles
        .iter()
        .map(|file| (file, "pickle"))
        .chain(stray.python.iter().map(|file| (file, "code")));
    let files = files
        .map(|(file, what)| vec![file.path.clone(), what.to_owned(), file.bytes.to_string()])
        .collect();
    let anomalies = contents
        .components
        .iter()
        .flat_map(|c| c.weights.iter().flat_map(|w| &w.anomalies));
    let abnormal =
        |kind: &&AnomalyKind| matches!(kind, AnomalyKind::NotFinite | AnomalyKind::Outlier);
    let tensors = anomalies
        .filter(|anomaly| anomaly.kinds.iter().any(|kind| abnormal(&kind)))
        .map(|anomaly| {
            let stats = &anomaly.stats;
            let not_finite = (stats.nan + stats.infinite).to_string();
            vec![
                anomaly.tensor.clone(),
                not_finite,
                format!("{:.3}", stats.abs_max),
                format!("{:.0}", stats.robust_z),
            ]
        })
        .collect();
    let executable = finding(
        FindingId::EXECUTABLE_FILE,
        "these files can run code when somebody loads them; this program did not open them",
        ["file", "what", "bytes"].map(str::to_owned).to_vec(),
        files,
    );
    let abnormal = finding(
        FindingId::ABNORMAL_TENSOR,
        "these tensors do not look like those of a trained network",
        ["tensor", "not finite", "largest", "robust z"]
            .map(str::to_owned)
            .to_vec(),
        tensors,
    );
    executable.into_iter().chain(abnormal).collect()
}

fn finding(
    id: FindingId,
    summary: &str,
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
) -> Option<Finding> {
    if rows.is_empty() {
        return None;
    }
    let title = match rows.len().checked_sub(MOST_ROWS) {
        Some(more) if more > 0 => format!("the first {MOST_ROWS}, and {more} more"),
        _ => "all of them".into(),
    };
    let rows = rows.into_iter().take(MOST_ROWS).collect();
    let table = Evidence::from(Table {
        title,
        columns,
        rows,
    });
    Some(
        id.info()?
            .finding(INSPECT, Confidence::High, summary, vec![table]),
    )
}
