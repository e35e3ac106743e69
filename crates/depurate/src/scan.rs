//! The workflow of a scan: open, hash, load, run the detector under budget and journal, hold its score against a
//! calibration, report.

mod second_opinion;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use depurate_checkpoint::{Layers, Limits, inspect};
use depurate_defense::{
    Budget, CancelToken, Cx, DefenseError, Journal, NoJournal, Progress,
    calibration::ModelKind,
    detect::model_level::Inspection,
    invert::{Inversion, Restart, response_fixed_point::FixedPoint},
};
use depurate_diffusion::{Denoiser, SampleShape, firing::Firing, noise::SeedTree};
use depurate_report::{Evidence, Note, Report, Table};

use crate::{
    Detector, DetectorName, Error, Profile,
    cache::Cache,
    calibration,
    device::Device,
    evidence,
    journal::{FileJournal, JournalKey},
    report_builder::{self, Frame},
    static_scan,
    subject::{self, Opened},
    triggers::{self, Provenance, TriggerFile},
    verdict::{Outcome, judge, judge_score},
};

/// How to scan.
#[derive(Debug, Clone)]
pub struct ScanSettings {
    /// How thorough.
    pub profile: Profile,
    /// Root of all randomness.
    pub seed: u64,
    /// Wall-clock time that the scan of one model may take.
    pub budget: Option<Duration>,
    /// Go on where an earlier run of the same scan was stopped.
    pub resume: bool,
    /// The false-positive rate asked for, in (0, 1).
    pub target_fpr: f64,
    /// Detectors that look too; what they see is evidence without an error rate.
    pub beside: Vec<DetectorName>,
    /// A calibration in place of the built-in one.
    pub calibration: Option<PathBuf>,
    /// The model that a text-to-image suspect was made from: a pipeline directory or a single-file checkpoint.
    pub base: Option<PathBuf>,
    /// What to lay over a text-to-image suspect before it is looked at.
    pub layers: Layers,
    /// Where the model runs.
    pub device: Device,
    /// Bounds on what its files may ask for.
    pub limits: Limits,
    /// Where the trigger and the journal go. Without it the trigger is not kept and the journal is in the cache.
    pub report_dir: Option<PathBuf>,
    /// The command that repeats the scan.
    pub command: String,
}

/// Who may stop a scan, and who watches it.
#[derive(Clone, Copy)]
pub struct Watch<'a> {
    /// Asked at every step.
    pub cancel: &'a CancelToken,
    /// Told about every step.
    pub progress: &'a dyn Progress,
}

/// How a scan ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With a score.
    Scored,
    /// Without one: the time was spent, or the detector could not run.
    Unchecked,
    /// The caller asked to stop.
    Interrupted,
}

/// A scan's result.
#[derive(Debug)]
pub struct Scan {
    /// What was found.
    pub report: Report,
    /// How it ended.
    pub end: End,
    journal: Option<FileJournal>,
}

impl Scan {
    /// A scan that keeps no stages.
    pub(crate) fn without_journal(report: Report, end: End) -> Self {
        Self {
            report,
            end,
            journal: None,
        }
    }

    /// To be called when the report is written: a scan that ended with a score needs its journal no more.
    pub fn close(self) {
        if let (End::Scored, Some(journal)) = (self.end, self.journal) {
            journal.remove();
        }
    }
}

/// Scans one model. Of a text-to-image model only the files are looked at ([`static_scan`]), and `detector` does not run.
///
/// # Errors
/// When the model cannot be opened or is of a kind that no detector can check, a base or layer is given with a model that
/// conditions on no text, the calibration does not fit the profile, or the trigger cannot be written. A detector that fails is
/// no error: the report says so and is inconclusive.
pub fn scan(
    path: &Path,
    settings: &ScanSettings,
    detector: &Detector,
    cache: &Cache,
    watch: Watch<'_>,
) -> Result<Scan, Error> {
    if subject::is_text_to_image(path, &settings.limits)? {
        return static_scan::scan(path, settings, cache, watch);
    }
    if settings.base.is_some() || !settings.layers.is_empty() {
        return Err(Error::Usage {
            problem: format!("{} is not a text-to-image model", path.display()),
            mend: "--base, --unet, --lora, --embedding and --delta are for text-to-image models: leave them out",
        });
    }
    let (started, clock) = (SystemTime::now(), Instant::now());
    let budget = settings.budget.map_or(Budget::UNLIMITED, Budget::lasting);
    let calibration = calibration::find(detector, settings.calibration.as_deref())?;
    let opened = subject::open(path, &settings.limits, settings.device, cache.hashes())?;
    let contents = inspect(path, &settings.limits, cache.hashes())?;
    let journal = open_journal(settings, detector, &opened, cache);
    let cx = Cx {
        rng: SeedTree::new(settings.seed),
        budget,
        cancel: watch.cancel,
        progress: watch.progress,
        journal: journal
            .as_ref()
            .map_or(&NoJournal as &dyn Journal, |journal| journal),
    };
    let found = detector.run.inspect(&opened.pipeline, &cx);
    let frame = Frame {
        subject: subject::describe(path, &contents, "unconditional pixel diffusion"),
        static_findings: subject::static_findings(&contents),
        detector: &detector.info,
        profile: settings.profile,
        seed: settings.seed,
        command: &settings.command,
        device: settings.device,
        started,
        elapsed: clock.elapsed(),
        calibration: calibration.as_ref(),
    };
    let writer = TriggerWriter {
        settings,
        detector,
        opened: &opened,
    };
    let (report, end) = match found {
        Ok(found) => {
            let mut report = report_score(frame, &found, &writer)?;
            second_opinion::add(&mut report, settings, &opened, &cx)?;
            report.environment.elapsed_s = clock.elapsed().as_secs_f64();
            (report, End::Scored)
        }
        Err(error) => {
            let stages = journal
                .as_ref()
                .map(FileJournal::stages)
                .unwrap_or_default();
            report_stop(frame, &error, &stages, &writer)?
        }
    };
    Ok(Scan {
        report,
        end,
        journal,
    })
}

/// The journal below the report's folder, else below the cache; none if neither can be written to.
fn open_journal(
    settings: &ScanSettings,
    detector: &Detector,
    opened: &Opened,
    cache: &Cache,
) -> Option<FileJournal> {
    let root = settings.report_dir.as_deref().or(cache.dir())?;
    let key = JournalKey {
        model_sha256: &opened.model_sha256,
        detector: detector.info.id.as_str(),
        params: &detector.params,
        seed: settings.seed,
    };
    match FileJournal::open(root, &key, settings.resume) {
        Ok(journal) => Some(journal),
        Err(error) => {
            tracing::warn!(%error, root = %root.display(), "no journal: a killed scan starts anew");
            None
        }
    }
}

/// Everything that a trigger's file needs besides the trigger.
struct TriggerWriter<'a> {
    settings: &'a ScanSettings,
    detector: &'a Detector,
    opened: &'a Opened,
}

impl TriggerWriter<'_> {
    fn write(
        &self,
        inversion: &Inversion,
        found: Option<&Inspection>,
        file: &str,
    ) -> Result<TriggerFile, Error> {
        let samples = found.map_or(&[][..], |found| &found.samples);
        let provenance = Provenance {
            model_sha256: &self.opened.model_sha256,
            seed: self.settings.seed,
            firing: inversion.firing,
            samplers: samples.iter().map(|samples| &samples.sampler).collect(),
            detector: self.detector.info.id.as_str(),
            depurate: crate::VERSION,
        };
        let target = found.map(|found| found.target.as_slice());
        triggers::write(
            inversion,
            target,
            &provenance,
            self.settings.report_dir.as_deref(),
            file,
        )
    }
}

fn report_score(
    frame: Frame<'_>,
    found: &Inspection,
    writer: &TriggerWriter<'_>,
) -> Result<Report, Error> {
    let judgement = judge_score(
        found.score,
        writer.detector,
        frame.calibration.map(|loaded| &loaded.calibration),
        &ModelKind::of(&writer.opened.pipeline),
        writer.settings.target_fpr,
    )?;
    let trigger_file = writer.write(&found.inversion, Some(found), triggers::FILE)?;
    report_builder::scored(frame, found, &trigger_file, judgement)
}

fn report_stop(
    frame: Frame<'_>,
    error: &DefenseError,
    stages: &[(String, Vec<u8>)],
    writer: &TriggerWriter<'_>,
) -> Result<(Report, End), Error> {
    let (end, reason) = match error {
        DefenseError::Cancelled | DefenseError::Diffusion(depurate_diffusion::DiffusionError::Cancelled) => {
            (End::Interrupted, "The scan was interrupted before it had a score; the same command goes on.".to_owned())
        }
        DefenseError::BudgetSpent => (
            End::Unchecked,
            "The time budget was spent before there was a score; the same command with a larger --budget goes on."
                .to_owned(),
        ),
        other => (End::Unchecked, format!("The detector could not run: {other}.")),
    };
    let stopped = end == End::Interrupted || matches!(error, DefenseError::BudgetSpent);
    let judgement = judge(&Outcome::Unscored { reason })?;
    let partial = partial_evidence(stages, writer)?;
    Ok((
        report_builder::unscored(frame, partial, judgement, stopped),
        end,
    ))
}

/// What finished stages show: the last trigger candidate among them, and which there are.
fn partial_evidence(
    stages: &[(String, Vec<u8>)],
    writer: &TriggerWriter<'_>,
) -> Result<Vec<Evidence>, Error> {
    let shape = writer.opened.pipeline.sample_shape();
    let mut evidence = Vec::new();
    let candidates = stages
        .iter()
        .filter_map(|(name, bytes)| candidate(name, bytes, shape));
    if let Some(best) = candidates.min_by(|a, b| a.objective.total_cmp(&b.objective)) {
        evidence.push(evidence::trigger(
            &best,
            &writer.write(&best, None, triggers::FILE)?,
        )?);
        let text =
            "A candidate that was not verified: whether the model answers to it was not tested.";
        evidence.push(Note { text: text.into() }.into());
    }
    if !stages.is_empty() {
        let rows = stages
            .iter()
            .map(|(name, bytes)| vec![name.clone(), bytes.len().to_string()])
            .collect();
        let columns = vec!["stage".to_owned(), "bytes kept".to_owned()];
        evidence.push(
            Table {
                title: "stages finished before the stop".into(),
                columns,
                rows,
            }
            .into(),
        );
    }
    Ok(evidence)
}

/// The trigger candidate that a finished stage holds, if it holds one.
fn candidate(stage: &str, bytes: &[u8], shape: SampleShape) -> Option<Inversion> {
    let found: FixedPoint = serde_json::from_slice(bytes).ok()?;
    if found.shift.len() != shape.len() {
        tracing::debug!(stage, "a candidate of another shape is not shown");
        return None;
    }
    let norm = found
        .shift
        .iter()
        .map(|&v| f64::from(v).powi(2))
        .sum::<f64>()
        .sqrt();
    let (start, converged) = (stage.to_owned(), found.converged);
    Some(Inversion {
        shape,
        gamma: None,
        firing: Firing::Stochastic,
        objective: found.residual,
        objective_meaning: "residual of the fixed point; 0 is a perfect backdoor".into(),
        trace: found.trace.iter().copied().enumerate().collect(),
        converged,
        restarts: vec![Restart {
            start,
            objective: found.residual,
            norm,
            converged,
            selected: true,
        }],
        shift: found.shift,
    })
}
