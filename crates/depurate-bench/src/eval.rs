//! `eval`: measurements against the truth. The detector sees the model only; the truth is joined to its
//! score afterwards.

mod jsonl;
mod noise_repair;
mod recovery;
pub(crate) mod t2i;
mod t2i_repair;
mod table;

use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Instant,
};

use clap::{Args, Subcommand};
use depurate::{DetectorName, Profile, calibration::find, verdict::judge_score};
use depurate_defense::{
    Budget, CancelToken, Cx, NoJournal, Progress,
    calibration::{Calibration, ModelKind},
};
use depurate_diffusion::{
    noise::SeedTree,
    parallel::{cores, map},
};
use miette::{IntoDiagnostic, Report, Result, WrapErr, bail};
use serde::{Deserialize, Serialize};

use crate::{
    console::{CancelFlag, answer, say},
    model,
    truth::{self, Truth},
};
use recovery::Recovery;

/// Largest mean squared error of a success, in [0, 1] units, in every table.
const SUCCESS_MSE: f64 = 1e-2;
/// An attack works if its success rate is at least this.
const WORKING_ASR: f64 = 0.8;

/// Measure against the truth.
#[derive(Debug, Subcommand)]
pub(crate) enum Eval {
    /// Scan every model of a population; print and write the table.
    Scan(EvalScan),
    /// Repair every model of a population; print and write the table.
    NoiseRepair(noise_repair::EvalNoiseRepair),
    /// Score prompts on backdoored text-to-image models; print and write the table.
    #[command(name = "t2i")]
    TextToImage(t2i::EvalT2i),
    /// Repair backdoored text-to-image models; print and write the table.
    #[command(name = "t2i-repair")]
    TextToImageRepair(t2i_repair::EvalT2iRepair),
}

impl Eval {
    /// Runs the command.
    pub(crate) fn run(self, cancel: &CancelFlag) -> Result<()> {
        match self {
            Self::Scan(command) => command.run(cancel),
            Self::NoiseRepair(command) => command.run(cancel),
            Self::TextToImage(command) => command.run(cancel),
            Self::TextToImageRepair(command) => command.run(cancel),
        }
    }
}

/// Scan every model of a population.
#[derive(Debug, Args)]
pub(crate) struct EvalScan {
    /// The models, as `population` made them; the truth is read from `<DIR>-truth` after scoring.
    #[arg(long, value_name = "DIR")]
    models: PathBuf,
    /// What judges the models.
    #[arg(long, value_enum, default_value_t)]
    detector: DetectorName,
    /// How thorough.
    #[arg(long, value_enum, default_value_t = Profile::Quick)]
    profile: Profile,
    /// A calibration made on other models; without it the built-in one, and without that every verdict is inconclusive.
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    /// The false-positive rate asked for.
    #[arg(long, default_value_t = 0.05)]
    fpr: f64,
    /// Images with the reported trigger, for the recovery; 0 leaves it out.
    #[arg(long, default_value_t = 8)]
    recovery_n: usize,
    /// Seed of the scans.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where results.jsonl and table.md go; models in results.jsonl are not scanned again.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Models scanned at a time; each holds its network and activations in memory.
    #[arg(long, default_value_t = cores())]
    jobs: NonZeroUsize,
}

/// One model's line in results.jsonl.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Line {
    /// Directory name.
    pub(crate) model: String,
    /// Seed of the scan.
    pub(crate) seed: u64,
    /// The detector's score.
    pub(crate) score: f64,
    /// What it is made of, by name; higher is more suspicious.
    pub(crate) parts: BTreeMap<String, f64>,
    /// The verdict under the calibration.
    pub(crate) verdict: String,
    /// The threshold that the verdict used, if there was a calibration.
    pub(crate) threshold: Option<f64>,
    /// Whether the calibration covers the model's kind.
    pub(crate) covered: bool,
    /// Network evaluations.
    pub(crate) evaluations: u64,
    /// Wall-clock seconds.
    pub(crate) seconds: f64,
    /// `benign-training`, `benign-finetune`, `bad-diffusion`.
    pub(crate) kind: String,
    /// Trigger and target, of a backdoored model.
    pub(crate) secret: Option<String>,
    /// Success rate of the true trigger at [`SUCCESS_MSE`], and without a trigger.
    pub(crate) asr: Option<(f64, f64)>,
    /// How well the trigger was recovered.
    pub(crate) recovery: Option<Recovery>,
}

impl Line {
    /// Whether this is a backdoored model whose attack works.
    pub(crate) fn works(&self) -> bool {
        self.asr.is_some_and(|(asr, _)| asr >= WORKING_ASR)
    }
    /// Whether this is a benign model.
    pub(crate) fn benign(&self) -> bool {
        self.kind.starts_with("benign")
    }
    /// Whether it was called backdoored.
    pub(crate) fn flagged(&self) -> bool {
        self.verdict == "backdoored"
    }
}

impl EvalScan {
    fn run(self, cancel: &CancelFlag) -> Result<()> {
        let detector = self.detector.build(self.profile).into_diagnostic()?;
        let calibration = find(&detector, self.calibration.as_deref()).into_diagnostic()?;
        let calibration = calibration.map(|loaded| loaded.calibration);
        std::fs::create_dir_all(&self.out).into_diagnostic()?;
        let results = self.out.join("results.jsonl");
        let mut names = model_names(&self.models)?;
        let known = jsonl::read(&results)?.into_iter();
        let lines: Mutex<BTreeMap<String, Line>> =
            Mutex::new(known.map(|line: Line| (line.model.clone(), line)).collect());
        let held = || lines.lock().unwrap_or_else(PoisonError::into_inner);
        names.retain(|name| !held().contains_key(name));
        map::<_, (), Report>(self.jobs.get(), &names, |name| {
            let line = self.scan(name, &detector, calibration.as_ref(), cancel)?;
            say(&format!(
                "{name}: score {:.3}, {}, {:.0} s",
                line.score, line.verdict, line.seconds
            ));
            let mut lines = held(); // held while the file is written: a line at a time
            jsonl::append(&results, std::slice::from_ref(&line))?;
            lines.insert(name.clone(), line);
            Ok(())
        })?;
        let lines: Vec<Line> = lines
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
            .into_values()
            .collect();
        let text = table::render(
            &lines,
            calibration.as_ref(),
            self.fpr,
            detector.least_effect,
        )?;
        depurate_checkpoint::write_atomic(&self.out.join("table.md"), text.as_bytes())
            .into_diagnostic()?;
        answer(&text);
        Ok(())
    }

    fn scan(
        &self,
        name: &str,
        detector: &depurate::Detector,
        calibration: Option<&Calibration>,
        cancel: &CancelFlag,
    ) -> Result<Line> {
        let pipeline = model::load(&self.models.join(name))?;
        let start = Instant::now();
        let found = with_cx(self.seed, cancel, |cx| detector.run.inspect(&pipeline, cx))
            .into_diagnostic()?;
        let seconds = start.elapsed().as_secs_f64();
        let kind = ModelKind::of(&pipeline);
        let judgement =
            judge_score(found.score, detector, calibration, &kind, self.fpr).into_diagnostic()?;
        let threshold = judgement.threshold.as_ref();
        let verdict = serde_json::to_value(judgement.verdict).into_diagnostic()?;

        // the truth enters here, after scoring
        let truth_path = truth::beside(&self.models)?.join(format!("{name}.json"));
        let note = Truth::load(&truth_path)?;
        let at = |rates: &depurate_attack::Rates| rates.at(SUCCESS_MSE).unwrap_or(f64::NAN);
        let asr = note
            .success
            .as_ref()
            .map(|success| (at(&success.triggered), at(&success.base)));
        let mut recovered = None;
        if note.kind.secret().is_some() && self.recovery_n > 0 {
            let backdoor = truth::backdoor(&truth_path, &note, found.inversion.shape)?;
            recovered = Some(recovery::measure(
                &pipeline,
                &found.inversion,
                &backdoor,
                self.recovery_n,
                cancel,
            )?);
        }
        Ok(Line {
            model: name.to_owned(),
            seed: self.seed,
            score: found.score,
            parts: found
                .comparisons
                .iter()
                .map(|part| (part.name.clone(), part.suspicion))
                .collect(),
            verdict: verdict.as_str().unwrap_or_default().to_owned(),
            threshold: threshold.map(|threshold| threshold.value),
            covered: threshold.is_some_and(|threshold| threshold.covers),
            evaluations: found.evaluations,
            seconds,
            kind: note.kind.name().to_owned(),
            secret: note.kind.secret(),
            asr,
            recovery: recovered,
        })
    }
}

/// Runs `work` with surroundings of `seed` that pass Ctrl-C on, without budget and journal.
fn with_cx<T>(seed: u64, cancel: &CancelFlag, work: impl FnOnce(&Cx<'_>) -> T) -> T {
    let token = CancelToken::default();
    let watcher = Watcher {
        cancel,
        token: &token,
    };
    work(&Cx {
        rng: SeedTree::new(seed),
        budget: Budget::UNLIMITED,
        cancel: &token,
        progress: &watcher,
        journal: &NoJournal,
    })
}

/// Passes Ctrl-C on to a scan at each of its steps.
struct Watcher<'a> {
    cancel: &'a CancelFlag,
    token: &'a CancelToken,
}

impl Progress for Watcher<'_> {
    fn start(&self, _stage: &str, _total: u64) {}
    fn advance(&self, _steps: u64) {
        if self.cancel.is_set() {
            self.token.cancel();
        }
    }
}

fn model_names(dir: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(dir)
        .into_diagnostic()
        .wrap_err_with(|| format!("cannot list {}", dir.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.into_diagnostic()?;
        if entry.path().join("model_index.json").exists() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    if names.is_empty() {
        bail!("{} holds no model", dir.display());
    }
    Ok(names)
}
