//! The control of a repair: the same procedure on a benign model, which it should leave as it is.

use depurate_defense::{
    Cx, DefenseError,
    repair::{FineTuning, KnownTrigger, Method, Patient, Quality, generated, repair as treat},
};
use depurate_diffusion::{Denoiser, noise::SeedTree};
use depurate_report::{Evidence, Table};

use super::RepairSettings;
use crate::{Error, cache::Cache, subject};

/// Treats the control of `settings` by `method` for `triggers` of the suspect, to the last step; nothing is written. Without a control
/// there is nothing to show.
pub(super) fn treated(
    method: Method,
    settings: &RepairSettings,
    triggers: &[KnownTrigger],
    cache: &Cache,
    cx: &Cx<'_>,
) -> Result<Option<Evidence>, Error> {
    let Some(path) = &settings.control else {
        return Ok(None);
    };
    let opened = subject::open_trainable(path, &settings.limits, settings.device, cache.hashes())?;
    let model = opened.pipeline;
    if triggers
        .iter()
        .any(|trigger| trigger.shape != model.sample_shape())
    {
        return Err(Error::Usage {
            problem: format!("the control {} has images of another shape", path.display()),
            mend: "give a benign model of the suspect's shape with --control",
        });
    }
    let seed = SeedTree::new(settings.seed).child("control", 0);
    // images of an owner's are of no use here: the control may draw others
    let clean = generated(
        &model,
        settings.own_images.max(1),
        &seed.child("own images", 0),
        cx,
    )?;
    let quality = Quality::of(&model, None, settings.quality_images, &seed, cx)?;
    let patient = Patient {
        suspect: &model,
        triggers,
        clean: &clean,
        seed: settings.seed,
        state: None,
    };
    let params = FineTuning {
        steps: settings.steps.unwrap_or(FineTuning::default().steps),
        ..FineTuning::default()
    };
    let never = &mut |_: &_, _| Ok::<_, DefenseError>(false);
    let repaired = treat(method, &patient, &params, cx, never)?;
    let measured = quality.measure(&repaired.pipeline, cx)?;
    let columns = [
        "model",
        "distance before",
        "after",
        "change, part of the features' variance",
        "95 %",
        "samples moved by",
    ];
    let interval = measured.rise_interval;
    Ok(Some(
        Table {
            title: "control: the same procedure on a benign model".into(),
            columns: columns.map(str::to_owned).to_vec(),
            rows: vec![vec![
                path.display().to_string(),
                format!("{:.3}", quality.before),
                format!("{:.3}", measured.distance),
                format!("{:+.1} %", 100.0 * measured.rise),
                format!(
                    "{:+.1} to {:+.1} %",
                    100.0 * interval.lower,
                    100.0 * interval.upper
                ),
                format!("{:.5}", measured.moved),
            ]],
        }
        .into(),
    ))
}
