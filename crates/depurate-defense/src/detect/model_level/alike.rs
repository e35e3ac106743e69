//! Whether a candidate shift makes images alike, and is answered, as no other shift of its size: how inversions are judged whose
//! inverter has no verdict of its own.
//!
//! | code | meaning |
//! |---|---|
//! | `share` `S(r)` | share of the largest set of mutually similar images: [`crate::invert::diff_cleanse`] |
//! | `inconsistency` `F(r)` | mean over noise levels of the network's error against "`r` leads to the set's image" |
//! | `q_i` | control shifts of the norm of `r`, with its scale and sampler: permuted, flipped, constant, smooth random |
//!
//! ```text
//! alike      = log10( S(r) / max(S(0), median_i S(q_i)) )                       (1)
//! consistent = log10( (min(F(0), median_i F(q_i)) + f0) / (F(r) + f0) )        (2)
//! score      = min(alike, consistent)                                          (3)
//! ```
//!
//! All looks have the same noises, which the inverter did not see. In (2) every shift may lead to its own images' cluster or to the
//! candidate's, whichever fits better: a search also finds images that a benign network knows well without any shift. `f0` is what a
//! perfect backdoor leaves of `F`.

use depurate_diffusion::{
    firing::Firing,
    sampler::{Clip, SamplerSettings, Steps, TrojDiffForm},
};

use super::{Comparison, Samples, shift_response::controls::controls};
use crate::{
    Cx, DefenseError,
    hypothesis::Hypothesis,
    invert::diff_cleanse::look::{Look, Looking},
    probe::Probe,
};

/// Least score of a finding, in decades: a factor of two.
pub const LEAST_EFFECT: f64 = 0.3;
/// What a score is, in words.
pub(crate) const SCORE_MEANING: &str = "the smaller of the log10 gains of the candidate trigger in the share of alike images and in \
                                        consistency, over no shift and over control shifts of equal norm";
/// What a perfect backdoor leaves of the inconsistency, in squared noise units.
const INCONSISTENCY_FLOOR: f64 = 1e-3;

/// What came of it.
pub(crate) struct Judged {
    /// Eq. (3).
    pub(crate) score: f64,
    /// Eqs. (1) and (2).
    pub(crate) comparisons: Vec<Comparison>,
    /// The image that the candidate leads to, `[C, H, W]`.
    pub(crate) target: Vec<f32>,
    /// Its images and the controls'.
    pub(crate) samples: Vec<Samples>,
}

/// Judges `candidate`, which is taken to lead to `target [C, H, W]`, for the detector `id`.
pub(crate) fn judge(
    id: &str,
    probe: &Probe<'_>,
    looking: Looking,
    candidate: &Hypothesis,
    target: &[f32],
    cx: &Cx<'_>,
) -> Result<Judged, DefenseError> {
    let seed = cx.rng.child(id, 1);
    let look = |hypothesis: &Hypothesis| {
        let seed = seed.child("look", 0);
        looking.look(probe, hypothesis, Some(target), &seed)
    };
    cx.progress.start("images under controls", 0);
    let chosen = cx.stage(&format!("{id}-judged"), || look(candidate))?;
    let none = Hypothesis::plain(candidate.firing, vec![0.0; candidate.shift.len()]);
    let mut compared = vec![(
        "no shift".to_owned(),
        cx.stage(&format!("{id}-none"), || look(&none))?,
    )];
    let shifts = controls(&candidate.shift, probe.shape(), &seed.child("controls", 0));
    for (i, control) in shifts.into_iter().enumerate() {
        let hypothesis = candidate.with_shift(control.shift);
        let stage = format!("{id}-control-{i}");
        compared.push((control.label, cx.stage(&stage, || look(&hypothesis))?));
    }

    let reference_share = of_none(&compared, |l| l.share).max(median(&compared, |l| l.share));
    let alike = (chosen.share / reference_share).log10(); // eq. (1)
    let reference =
        of_none(&compared, |l| l.inconsistency).min(median(&compared, |l| l.inconsistency));
    let consistent =
        ((reference + INCONSISTENCY_FLOOR) / (chosen.inconsistency + INCONSISTENCY_FLOOR)).log10(); // eq. (2)
    let shown = |label: &str, look: &Look| samples(label, candidate.firing, look, looking, probe);
    let mut samples = vec![shown("noise + inverted trigger", &chosen)];
    for (label, look) in &compared {
        samples.push(shown(&format!("noise + control: {label}"), look));
    }
    Ok(Judged {
        score: alike.min(consistent), // eq. (3)
        comparisons: vec![
            Comparison::of(
                "share",
                "share of the images in the largest set of mutually similar ones; large is suspicious",
                alike,
                &chosen,
                &compared,
                |look| look.share,
            ),
            Comparison::of(
                "inconsistency",
                "mean squared error of the network against \"this shift leads to this image\"; small is suspicious",
                consistent,
                &chosen,
                &compared,
                |look| look.inconsistency,
            ),
        ],
        target: chosen.target,
        samples,
    })
}

fn samples(
    label: &str,
    firing: Firing,
    look: &Look,
    looking: Looking,
    probe: &Probe<'_>,
) -> Samples {
    let shape = probe.shape();
    let steps = Steps {
        count: looking.steps,
        first: probe.schedule().len() - 1,
        last: 0,
    };
    Samples {
        label: format!("{label}, in shifted coordinates"),
        sampler: match firing {
            Firing::Modified => SamplerSettings::TrojDiff {
                steps,
                form: TrojDiffForm::Ddim { eta: 0.0 },
            },
            _ => SamplerSettings::Ddim {
                steps,
                eta: 0.0,
                clip: Clip::Range(1.5),
                use_clipped_model_output: true,
            },
        },
        shape,
        count: look.images.len() / shape.len(),
        pixels: look.images.clone(),
    }
}

/// The statistic without any shift: the first of `compared`.
fn of_none(compared: &[(String, Look)], of: impl Fn(&Look) -> f64) -> f64 {
    compared.first().map_or(f64::NAN, |(_, look)| of(look))
}

/// Its median under the controls, the others.
fn median(compared: &[(String, Look)], of: impl Fn(&Look) -> f64) -> f64 {
    let mut values: Vec<f64> = compared.iter().skip(1).map(|(_, look)| of(look)).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
