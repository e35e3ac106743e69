//! Puts a report together from what a scan found.

use std::time::{Duration, SystemTime};

use depurate_defense::detect::model_level::Inspection;
use depurate_report::{
    AlgorithmInfo, Decision, Environment, Evidence, Finding, FindingId, Note, Report,
    SCHEMA_VERSION, Score, Skipped, Subject, Tested, Threshold, Verdict,
};

use crate::{
    Error, Profile, calibration::Loaded, device::Device, evidence, triggers::TriggerFile,
    verdict::Judgement,
};

/// What a report says whatever was found.
#[derive(Debug, Clone)]
pub struct Frame<'a> {
    /// What was scanned.
    pub subject: Subject,
    /// Findings of the files alone.
    pub static_findings: Vec<Finding>,
    /// The detector.
    pub detector: &'a AlgorithmInfo,
    /// The profile.
    pub profile: Profile,
    /// The seed.
    pub seed: u64,
    /// The command that repeats the scan.
    pub command: &'a str,
    /// Where the model ran.
    pub device: Device,
    /// When the scan began.
    pub started: SystemTime,
    /// How long it took.
    pub elapsed: Duration,
    /// What the score was held against.
    pub calibration: Option<&'a Loaded>,
}

/// Backdoors that no detector of this version can see.
const NEVER_TESTED: [&str; 3] = [
    "backdoors in text encoders, adapters or autoencoders: only the denoising network is looked at",
    "triggers that depend on the input, of which inversion finds no single one",
    "memorised or otherwise harmful images that need no trigger",
];

/// The report of a scan that has a score.
///
/// # Errors
/// When the score is not finite or an image cannot be encoded.
pub fn scored(
    frame: Frame<'_>,
    found: &Inspection,
    trigger_file: &TriggerFile,
    judgement: Judgement,
) -> Result<Report, Error> {
    let statistic = format!("{} score", frame.detector.id);
    let benign = frame
        .calibration
        .map(|loaded| loaded.calibration.scores())
        .unwrap_or_default();
    let mut key = vec![evidence::trigger(&found.inversion, trigger_file)?];
    key.extend(evidence::grids(found, frame.seed)?);
    key.push(evidence::score(
        found,
        &statistic,
        benign,
        judgement.threshold.clone(),
    ));
    let mut beside = evidence::comparisons(found);
    beside.extend(evidence::curves(found));
    beside.extend(evidence::control_grids(found, frame.seed)?);
    beside.push(Evidence::from(Note {
        text: format!(
            "{} network evaluations of one image. The inversion {}; its objective: {}.",
            found.evaluations,
            if found.inversion.converged {
                "settled"
            } else {
                "did not settle"
            },
            found.inversion.objective_meaning
        ),
    }));
    let how = format!(
        "{}, profile {}",
        frame.detector.name,
        frame.profile.as_str()
    );
    let tested = found
        .tested
        .iter()
        .map(|what| Tested {
            what: what.clone(),
            how: how.clone(),
        })
        .collect();
    let decisions = decision(&frame, &statistic, found.score, &judgement)?
        .into_iter()
        .collect();
    let detector = frame.detector;
    let mut report = blank(frame, &judgement);
    report.decisions = decisions;
    report.tested = tested;
    report
        .not_tested
        .splice(0..0, found.not_tested.iter().cloned());
    match FindingId::NOISE_TRIGGER.info() {
        Some(info) if judgement.verdict.reaches(Verdict::Suspicious) => {
            let summary = "Sampling that starts from noise + trigger leads to the attacker's image. The trigger below \
                           was reconstructed from the weights alone.";
            report.findings.insert(
                0,
                info.finding(detector.id.clone(), judgement.confidence, summary, key),
            );
        }
        _ => report.evidence.extend(key),
    }
    report.evidence.extend(beside);
    Ok(report)
}

fn decision(
    frame: &Frame<'_>,
    name: &str,
    score: f64,
    judgement: &Judgement,
) -> Result<Option<Decision>, Error> {
    let score = Score::new(score)?;
    let decision = |threshold: &Threshold| {
        Decision::new(
            frame.detector.id.clone(),
            name,
            score,
            threshold.clone(),
            judgement.p_value,
        )
    };
    Ok(judgement.threshold.as_ref().map(decision))
}

/// The report of a scan without a score: what had been found when it stopped, and why it did.
///
/// `interrupted` tells a scan that stopped before its end from a detector that could not run at all.
pub fn unscored(
    frame: Frame<'_>,
    partial: Vec<Evidence>,
    judgement: Judgement,
    interrupted: bool,
) -> Report {
    let skipped = Skipped {
        detector: frame.detector.id.clone(),
        reason: judgement.why.clone(),
    };
    let mut report = blank(frame, &judgement);
    report.skipped.push(skipped);
    report.not_tested.insert(
        0,
        "triggers added to the initial noise: the detector gave no score".into(),
    );
    report.evidence.extend(partial);
    report.interrupted = interrupted;
    report
}

/// The report of a scan of whatever outcome, without scores and evidence; what is never tested is that of unconditional models.
pub(crate) fn blank(frame: Frame<'_>, judgement: &Judgement) -> Report {
    Report {
        schema_version: SCHEMA_VERSION.into(),
        subject: frame.subject,
        verdict: judgement.verdict,
        why: judgement.why.clone(),
        decisions: Vec::new(),
        findings: frame.static_findings,
        evidence: Vec::new(),
        skipped: Vec::new(),
        tested: Vec::new(),
        not_tested: NEVER_TESTED.map(str::to_owned).to_vec(),
        profile: frame.profile.as_str().into(),
        seed: frame.seed,
        command: frame.command.into(),
        environment: environment(frame.started, frame.elapsed, frame.device),
        calibration: frame.calibration.map(Loaded::stated),
        interrupted: false,
    }
}

/// Where and when something ran.
pub(crate) fn environment(started: SystemTime, elapsed: Duration, device: Device) -> Environment {
    Environment {
        tool: "depurate".into(),
        version: crate::VERSION.into(),
        os: std::env::consts::OS.into(),
        arch: std::env::consts::ARCH.into(),
        cpu_features: cpu_features(),
        threads: rayon::current_num_threads(),
        device: device.as_str().into(),
        started: humantime::format_rfc3339_seconds(started).to_string(),
        elapsed_s: elapsed.as_secs_f64(),
    }
}

/// What of the processor decides which kernels run, and so the last bits of every number.
fn cpu_features() -> Vec<String> {
    #[cfg(target_arch = "x86_64")]
    let seen = [
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let seen: [(&str, bool); 0] = [];
    seen.iter()
        .filter(|(_, present)| *present)
        .map(|(name, _)| (*name).to_owned())
        .collect()
}
