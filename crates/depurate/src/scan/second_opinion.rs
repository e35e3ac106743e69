//! Detectors beside the one that judges: what they reconstruct is evidence, for other kinds of triggers too.
//!
//! They have no calibration, so their scores carry no error rate. A score above the detector's least effect makes the verdict
//! `suspicious` at most, and says so.

use depurate_defense::{Cx, detect::model_level::Inspection};
use depurate_report::{Confidence, Evidence, FindingId, Note, Report, Skipped, Tested, Verdict};

use super::{ScanSettings, TriggerWriter};
use crate::{DetectorName, Error, Profile, evidence, subject::Opened};

/// Runs the detectors of `settings.beside` and adds what they see to `report`.
pub(super) fn add(
    report: &mut Report,
    settings: &ScanSettings,
    opened: &Opened,
    cx: &Cx<'_>,
) -> Result<(), Error> {
    for name in &settings.beside {
        let detector = name.build(Profile::Quick)?;
        match detector.run.inspect(&opened.pipeline, cx) {
            Ok(found) => {
                let writer = TriggerWriter {
                    settings,
                    detector: &detector,
                    opened,
                };
                let shown = shown(&found, &writer, *name, settings.seed)?;
                let seen = found.score > detector.least_effect;
                conclude(report, &detector, &found, shown, seen);
            }
            // what was judged stands; the report says what is missing
            Err(error) => report.skipped.push(Skipped {
                detector: detector.info.id.clone(),
                reason: error.to_string(),
            }),
        }
    }
    Ok(())
}

fn shown(
    found: &Inspection,
    writer: &TriggerWriter<'_>,
    name: DetectorName,
    seed: u64,
) -> Result<Vec<Evidence>, Error> {
    let file = format!("triggers-{}.safetensors", name.as_str());
    let file = writer.write(&found.inversion, Some(found), &file)?;
    let mut shown = vec![evidence::trigger(&found.inversion, &file)?];
    shown.extend(evidence::grids(found, seed)?);
    shown.extend(evidence::comparisons(found));
    shown.push(
        Note {
            text: format!(
                "{}: score {:.3}, without calibration. {} network evaluations of one image.",
                name.as_str(),
                found.score,
                found.evaluations
            ),
        }
        .into(),
    );
    Ok(shown)
}

fn conclude(
    report: &mut Report,
    detector: &crate::Detector,
    found: &Inspection,
    shown: Vec<Evidence>,
    seen: bool,
) {
    let id = &detector.info.id;
    report.tested.extend(found.tested.iter().map(|what| Tested {
        what: what.clone(),
        how: format!("{}, as a second opinion", detector.info.name),
    }));
    // what the second opinion looked for is not left untested
    let covered: Vec<&str> = match id.as_str() {
        depurate_defense::invert::diff_cleanse::ID => vec!["VillanDiffusion", "TrojDiff"],
        _ => Vec::new(),
    };
    report
        .not_tested
        .retain(|text| !covered.iter().any(|kind| text.contains(kind)));
    let info = FindingId::NOISE_TRIGGER.info().filter(|_| seen);
    let Some(info) = info else {
        report.evidence.extend(shown);
        return;
    };
    let summary = format!(
        "A second detector, {}, reconstructed a shift of the noise under which images become alike as under no control \
         of equal size. It has no calibration, so that no error rate can be stated.",
        detector.info.name
    );
    report
        .findings
        .push(info.finding(id.clone(), Confidence::Low, &summary, shown));
    if !report.verdict.reaches(Verdict::Suspicious) {
        report.verdict = Verdict::Suspicious;
        report.why = format!(
            "{id} scores {:.3}, above {:.2}, the least effect that counts; it has no calibration, so that no error rate can be \
             stated. {}",
            found.score, detector.least_effect, report.why
        );
    }
}
