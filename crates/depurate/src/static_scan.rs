//! The workflow of a scan of a text-to-image model: its files are read and compared, and nothing is run.
//!
//! No behaviour is tested, so the verdict is `inconclusive`, or `suspicious` where the weights have a profile of an attack.
//! Never `no_backdoor_found`: a backdoor that leaves no such profile is not seen.

use std::{
    path::Path,
    time::{Instant, SystemTime},
};

use depurate_checkpoint::{
    HashCache, Limits, Lora, ModelPart, ModelWeights, inspect, read_json, sha256_file,
};
use depurate_defense::{
    Budget, Cx, DefenseError, NoJournal,
    detect::model_level::static_weights::{
        self, AdapterLayer, adapter_layers, drift, key_value_edit, vocabulary,
    },
};
use depurate_diffusion::noise::SeedTree;
use depurate_report::{Component, Confidence, Report, Skipped, Verdict};

use crate::{
    Error,
    cache::Cache,
    report_builder::{self, Frame},
    scan::{End, Scan, ScanSettings, Watch},
    static_findings::{Adapter, FileHash, Profile, Tokenizer},
    subject,
    verdict::Judgement,
};

/// Scans the files of a text-to-image model.
///
/// # Errors
/// When a file of the model, of the base or of a layer cannot be read, or they do not fit together.
pub fn scan(
    path: &Path,
    settings: &ScanSettings,
    cache: &Cache,
    watch: Watch<'_>,
) -> Result<Scan, Error> {
    let (started, clock) = (SystemTime::now(), Instant::now());
    let budget = settings.budget.map_or(Budget::UNLIMITED, Budget::lasting);
    let cx = Cx {
        rng: SeedTree::new(settings.seed),
        budget,
        cancel: watch.cancel,
        progress: watch.progress,
        journal: &NoJournal,
    };
    let contents = inspect(path, &settings.limits, cache.hashes())?;
    let mut subject = subject::describe(path, &contents, "text-to-image latent diffusion");
    subject
        .components
        .extend(layer_files(settings, cache.hashes())?);
    let found = look(path, settings, cache.hashes(), &cx);
    let info = static_weights::info();
    let frame = Frame {
        subject,
        static_findings: subject::static_findings(&contents),
        detector: &info,
        profile: settings.profile,
        seed: settings.seed,
        command: &settings.command,
        device: settings.device,
        started,
        elapsed: clock.elapsed(),
        calibration: None,
    };
    let (report, end) = match found {
        Ok(profile) => (report(frame, &profile), End::Scored),
        Err(Error::Defense(DefenseError::Cancelled)) => {
            let why = "The scan was interrupted before the weights were looked at.";
            (stopped(frame, why), End::Interrupted)
        }
        Err(Error::Defense(DefenseError::BudgetSpent)) => {
            let why = "The time budget was spent before the weights were looked at; give a larger --budget.";
            (stopped(frame, why), End::Unchecked)
        }
        Err(error) => return Err(error),
    };
    Ok(Scan::without_journal(report, end))
}

/// Reads everything and compares.
fn look(
    path: &Path,
    settings: &ScanSettings,
    hashes: Option<&HashCache>,
    cx: &Cx<'_>,
) -> Result<Profile, Error> {
    let limits = &settings.limits;
    let mut model = ModelWeights::open(path, limits)?;
    let own_files = file_hashes(&model, hashes)?;
    let parts = ModelPart::ALL.map(|part| model.get(part).map_or(0, |w| w.infos().count()));
    cx.progress
        .start("static weights", 2 * parts.iter().sum::<usize>() as u64);
    let mut below = settings.layers.clone();
    let loras = std::mem::take(&mut below.loras);
    let embeddings = std::mem::take(&mut below.embeddings);
    below.apply(&mut model, limits)?;
    let mut adapters = Vec::new();
    for scaled in &loras {
        let lora = Lora::open(&scaled.path, &model, limits)?;
        let layers: Vec<AdapterLayer> = adapter_layers(&lora, &model, cx)?;
        adapters.push(Adapter {
            file: scaled.path.display().to_string(),
            scale: scaled.scale,
            layout: lora.layout(),
            layers,
        });
    }
    below.unet = None;
    below.deltas.clear();
    (below.loras, below.embeddings) = (loras, embeddings);
    let added = below.apply(&mut model, limits)?;
    let base = match &settings.base {
        Some(base) => Some(ModelWeights::open(base, limits)?),
        None => None,
    };
    let mut profile = Profile {
        base: settings
            .base
            .as_ref()
            .map(|base| base.display().to_string()),
        missing: ModelPart::ALL
            .into_iter()
            .filter(|part| model.get(*part).is_none())
            .collect(),
        vocabulary: vocabulary(&model, base.as_ref())?,
        tokenizer: tokenizer(path, limits)?,
        added,
        adapters,
        ..Profile::default()
    };
    if let Some(base) = &base {
        let drift = drift(&model, base, cx)?;
        profile.edit = key_value_edit(&model, base, &drift, cx)?;
        profile.drift = Some(drift);
        profile.files = compared(own_files, &file_hashes(base, hashes)?);
    }
    Ok(profile)
}

/// sha256 of every weight file, by network.
fn file_hashes(
    model: &ModelWeights,
    hashes: Option<&HashCache>,
) -> Result<Vec<(ModelPart, String)>, Error> {
    let files = ModelPart::ALL
        .into_iter()
        .filter_map(|part| Some((part, model.get(part)?)))
        .flat_map(|(part, weights)| weights.files().iter().map(move |file| (part, file)));
    files
        .map(|(part, file)| Ok((part, sha256_file(file, hashes)?)))
        .collect()
}

fn compared(own: Vec<(ModelPart, String)>, base: &[(ModelPart, String)]) -> Vec<FileHash> {
    let mut others: Vec<_> = base.iter().collect();
    let mut rows = Vec::new();
    for (part, sha256) in own {
        let twin = others.iter().position(|(of, _)| *of == part);
        let base = twin.map(|at| others.remove(at).1.clone());
        rows.push(FileHash { part, sha256, base });
    }
    rows
}

/// Tokens of the tokenizer's own files; `None` if there are none that list them.
fn tokenizer(path: &Path, limits: &Limits) -> Result<Option<Tokenizer>, Error> {
    let dir = path.join("tokenizer");
    let read = |name: &str| {
        let file = dir.join(name);
        let present = file.symlink_metadata().is_ok();
        present.then(|| read_json(&file, limits)).transpose()
    };
    let Some(vocabulary) = read("vocab.json")? else {
        return Ok(None);
    };
    let added = read("added_tokens.json")?.unwrap_or_default();
    Ok(Some(Tokenizer {
        size: vocabulary.len(),
        added: added
            .into_iter()
            .map(|(token, _)| token)
            .filter(|token| !vocabulary.contains_key(token))
            .collect(),
    }))
}

/// The files that are laid over the model, as parts of the subject.
fn layer_files(
    settings: &ScanSettings,
    hashes: Option<&HashCache>,
) -> Result<Vec<Component>, Error> {
    let layers = &settings.layers;
    let named = layers
        .unet
        .iter()
        .map(|path| ("unet", path))
        .chain(layers.deltas.iter().map(|path| ("delta", path)))
        .chain(layers.loras.iter().map(|lora| ("lora", &lora.path)))
        .chain(layers.embeddings.iter().map(|path| ("embedding", path)));
    named
        .filter(|(_, path)| path.is_file())
        .map(|(name, path)| {
            let seen = std::fs::metadata(path).map_err(Error::io("read", path))?;
            Ok(Component {
                name: name.into(),
                file: path.display().to_string(),
                sha256: sha256_file(path, hashes)?,
                bytes: seen.len(),
            })
        })
        .collect()
}

fn report(frame: Frame<'_>, profile: &Profile) -> Report {
    let findings = profile.findings();
    let suspicious: Vec<String> = findings
        .iter()
        .filter(|finding| Profile::is_suspicious(finding.id))
        .map(|finding| finding.id.to_string())
        .collect();
    let (verdict, why) = if suspicious.is_empty() {
        (
            Verdict::Inconclusive,
            "Only the files were looked at, and they do not decide: whether the model answers to a trigger was not tested."
                .to_owned(),
        )
    } else {
        (
            Verdict::Suspicious,
            format!(
                "The weights have the profile of a known attack ({}). Benign edits leave the same one, and behaviour was not \
                 tested.",
                suspicious.join(", ")
            ),
        )
    };
    let mut report = report_builder::blank(frame, &unjudged(verdict, why));
    report.findings.splice(0..0, findings);
    report.evidence = profile.evidence();
    report.tested = profile.tested();
    report.not_tested = profile.not_tested();
    report
}

fn stopped(frame: Frame<'_>, why: &str) -> Report {
    let skipped = Skipped {
        detector: frame.detector.id.clone(),
        reason: why.into(),
    };
    let judgement = unjudged(Verdict::Inconclusive, why.into());
    let mut report = report_builder::blank(frame, &judgement);
    report.skipped.push(skipped);
    report.not_tested = Profile::default().not_tested();
    report.interrupted = true;
    report
}

fn unjudged(verdict: Verdict, why: String) -> Judgement {
    Judgement {
        verdict,
        confidence: Confidence::Low,
        why,
        threshold: None,
        p_value: None,
    }
}
