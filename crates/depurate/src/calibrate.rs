//! The workflow of a calibration: scores of benign models, one entry a model, resumable.

use std::path::{Path, PathBuf};

use depurate_checkpoint::Limits;
use depurate_defense::{
    Budget, Cx, DefenseError, Journal, NoJournal,
    calibration::{CALIBRATION_VERSION, Calibration, CalibrationEntry, ModelKind},
};
use depurate_diffusion::noise::SeedTree;
use serde::Deserialize;

use crate::{
    Detector, Error,
    cache::Cache,
    calibration::read_bounded,
    device::Device,
    journal::{FileJournal, JournalKey},
    scan::Watch,
    subject,
};

/// Fewer benign models than this give no calibration.
pub const LEAST_MODELS: usize = 5;
/// From this number of benign models on a false-positive rate of 5 % can be stated.
pub const ENOUGH_MODELS: usize = 20;

/// A model that its owner vouches for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BenignModel {
    /// Its directory.
    pub path: PathBuf,
    /// How it was made, in words.
    #[serde(default)]
    pub provenance: String,
}

/// How to calibrate.
#[derive(Debug, Clone)]
pub struct CalibrateSettings {
    /// What the benign models are, in words.
    pub population: String,
    /// Root of all randomness.
    pub seed: u64,
    /// Go on where an earlier run was stopped.
    pub resume: bool,
    /// Where the models run.
    pub device: Device,
    /// Bounds on what their files may ask for.
    pub limits: Limits,
    /// The command that makes this calibration.
    pub command: String,
}

/// A calibration and the journals of its models.
#[derive(Debug)]
pub struct Calibrated {
    /// The scores.
    pub calibration: Calibration,
    journals: Vec<FileJournal>,
}

impl Calibrated {
    /// To be called when the calibration is written: the journals are needed no more.
    pub fn close(self) {
        self.journals.into_iter().for_each(FileJournal::remove);
    }
}

/// Largest list of models that is read, in bytes.
const MAX_LIST_BYTES: u64 = 16 << 20;

/// Reads a list of models: one `{"path": "DIR", "provenance": "…"}` a line. Relative paths start at the list's own
/// directory.
///
/// # Errors
/// When the file cannot be read or a line is not understood.
pub fn read_list(path: &Path) -> Result<Vec<BenignModel>, Error> {
    let bytes = read_bounded(path, MAX_LIST_BYTES)?;
    let base = path.parent().unwrap_or(Path::new(""));
    let lines = bytes.split(|&byte| byte == b'\n').enumerate();
    lines
        .filter(|(_, line)| !line.trim_ascii().is_empty())
        .map(|(index, line)| {
            let refuse = |source| Error::ModelList {
                path: path.into(),
                line: index + 1,
                source,
            };
            let model: BenignModel = serde_json::from_slice(line).map_err(refuse)?;
            Ok(BenignModel {
                path: base.join(model.path),
                ..model
            })
        })
        .collect()
}

/// Scores `models` with `detector`.
///
/// # Errors
/// When there are fewer than [`LEAST_MODELS`], two are the same, one cannot be opened or scored, or the caller asked to
/// stop. What was scored until then is kept in the cache.
pub fn calibrate(
    models: &[BenignModel],
    settings: &CalibrateSettings,
    detector: &Detector,
    cache: &Cache,
    watch: Watch<'_>,
) -> Result<Calibrated, Error> {
    if models.len() < LEAST_MODELS {
        return Err(Error::TooFewModels {
            got: models.len(),
            least: LEAST_MODELS,
        });
    }
    refuse_repeats(models, settings, cache)?;
    let mut entries = Vec::new();
    let mut journals = Vec::new();
    for model in models {
        let (entry, journal) = score(model, settings, detector, cache, watch)?;
        tracing::info!(model = %model.path.display(), score = entry.score, "scored");
        entries.push(entry);
        journals.extend(journal);
    }
    let calibration = Calibration {
        version: CALIBRATION_VERSION,
        detector: detector.info.id.to_string(),
        params: detector.scoring.clone(),
        population: settings.population.clone(),
        command: settings.command.clone(),
        made_by: crate::VERSION.into(),
        entries,
    };
    Ok(Calibrated {
        calibration,
        journals,
    })
}

/// A model that counts twice would make the stated rate smaller than it is.
fn refuse_repeats(
    models: &[BenignModel],
    settings: &CalibrateSettings,
    cache: &Cache,
) -> Result<(), Error> {
    let mut seen: Vec<(String, &Path)> = Vec::new();
    for model in models {
        let checkpoint = subject::open_checkpoint(&model.path, &settings.limits)?;
        let sha256 = subject::weights_sha256(&checkpoint, &settings.limits, cache.hashes())?;
        if let Some((_, first)) = seen.iter().find(|(other, _)| *other == sha256) {
            return Err(Error::SameModel {
                first: (*first).into(),
                second: model.path.clone(),
            });
        }
        seen.push((sha256, &model.path));
    }
    Ok(())
}

fn score(
    model: &BenignModel,
    settings: &CalibrateSettings,
    detector: &Detector,
    cache: &Cache,
    watch: Watch<'_>,
) -> Result<(CalibrationEntry, Option<FileJournal>), Error> {
    let opened = subject::open(
        &model.path,
        &settings.limits,
        settings.device,
        cache.hashes(),
    )?;
    let key = JournalKey {
        model_sha256: &opened.model_sha256,
        detector: detector.info.id.as_str(),
        params: &detector.params,
        seed: settings.seed,
    };
    let journal = cache
        .dir()
        .and_then(|dir| match FileJournal::open(dir, &key, settings.resume) {
            Ok(journal) => Some(journal),
            Err(error) => {
                tracing::warn!(%error, "no journal: a killed calibration starts anew");
                None
            }
        });
    let cx = Cx {
        rng: SeedTree::new(settings.seed),
        budget: Budget::UNLIMITED,
        cancel: watch.cancel,
        progress: watch.progress,
        journal: journal
            .as_ref()
            .map_or(&NoJournal as &dyn Journal, |journal| journal),
    };
    let scored = cx.stage("calibration entry", || {
        Ok(CalibrationEntry {
            sha256: opened.weights_sha256.clone(),
            kind: ModelKind::of(&opened.pipeline),
            provenance: String::new(),
            score: detector.run.inspect(&opened.pipeline, &cx)?.score,
        })
    });
    match scored {
        Ok(entry) => Ok((
            CalibrationEntry {
                provenance: model.provenance.clone(),
                ..entry
            },
            journal,
        )),
        Err(DefenseError::Cancelled) => Err(Error::Interrupted),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_list_names_models_beside_itself_and_refuses_the_line_that_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("models.jsonl");
        let good = "{\"path\": \"a\", \"provenance\": \"seed 1\"}\n\n{\"path\": \"/b\"}\n";
        std::fs::write(&list, good).unwrap();
        let models = read_list(&list).unwrap();
        assert_eq!(
            models[0],
            BenignModel {
                path: dir.path().join("a"),
                provenance: "seed 1".into()
            }
        );
        assert_eq!(models[1].path, Path::new("/b"));
        std::fs::write(&list, format!("{good}{{\"model\": \"c\"}}\n")).unwrap();
        assert!(matches!(
            read_list(&list),
            Err(Error::ModelList { line: 4, .. })
        ));
    }
}
