//! What a repaired model is held against.
//!
//! | check | passes if |
//! |---|---|
//! | old trigger | the reconstructed trigger and four perturbations of it lead to their image no more often than the upper end of the exact 95 % interval of the rate without a trigger |
//! | quality | the Fréchet distance of clean samples to the owner's images that no training saw rises by at most the given part of itself; without such images, that to other samples of the suspect by at most that part of the features' variance |
//! | new scan | a scan with other seeds calls the model neither suspicious nor backdoored; where another sampler than DDPM fires a trigger, one by `diff-cleanse` as well, which looks for such |

use depurate_defense::{
    Cx, DefenseError,
    repair::{
        KnownTrigger, Measured, Quality,
        replay::{DECIDING, Replay, THRESHOLDS, chance, perturbed, replay, silent, steps},
    },
};
use depurate_diffusion::{Denoiser, Device, Pipeline, Tensor, firing::Firing, noise::SeedTree};
use depurate_report::{Check, Evidence, Table};
use depurate_training::Dataset;

use super::{
    RepairSettings,
    pictures::{Made, SAME_NOISE, sheet},
};
use crate::{Detector, DetectorName, Error, Profile, rescan::rescan};

/// The checks of one repair.
pub(super) struct Proof<'a> {
    pub(super) suspect: &'a Pipeline,
    pub(super) triggers: &'a [KnownTrigger],
    /// The owner's images that no training saw.
    pub(super) held: Option<&'a Dataset>,
    pub(super) settings: &'a RepairSettings,
    pub(super) rescans: &'a [Detector],
}

/// Who scans a model again that had `triggers`.
pub(super) fn rescans(triggers: &[KnownTrigger]) -> Result<Vec<Detector>, Error> {
    let mut names = vec![DetectorName::default()];
    if triggers.iter().any(|t| t.firing != Firing::Stochastic) {
        names.push(DetectorName::DiffCleanse);
    }
    let build = |name: DetectorName| name.build(Profile::Quick);
    names.into_iter().map(build).collect()
}

/// The suspect, measured once.
pub(super) struct Baseline {
    /// With each trigger.
    triggered: Vec<Replay>,
    /// Without, under the sampler of each trigger.
    plain: Vec<Replay>,
    /// Images of the first trigger.
    shown: Tensor<4>,
    /// Clean samples, and what they are compared with.
    quality: Quality,
}

/// A repaired model's new scans.
pub(super) struct Scanned {
    pub(super) checks: Vec<Check>,
    /// Triggers that they found.
    pub(super) found: Vec<KnownTrigger>,
}

impl Scanned {
    /// The scans that saw something.
    pub(super) fn seen(&self) -> impl Iterator<Item = Check> {
        self.checks.iter().filter(|check| !check.passed).cloned()
    }
}

impl Proof<'_> {
    /// Measures the suspect.
    pub(super) fn baseline(&self, cx: &Cx<'_>) -> Result<Baseline, Error> {
        let reference = self.held.map(|held| held.all(&Device::flex()));
        let (count, seed) = (
            self.settings.quality_images,
            SeedTree::new(self.settings.seed),
        );
        let quality = Quality::of(self.suspect, reference, count, &seed, cx)?;
        let (mut triggered, mut plain) = (Vec::new(), Vec::new());
        let mut shown = quality.samples.clone();
        for (i, trigger) in self.triggers.iter().enumerate() {
            let prior = trigger.prior(&Device::flex());
            let named = ("as reconstructed", Some(&prior));
            let with = self.replay(self.suspect, i, named, cx)?;
            if i == 0 {
                shown = with.images;
            }
            triggered.push(with.replay);
            let without = self.replay(self.suspect, i, ("no trigger", None), cx)?;
            plain.push(without.replay);
        }
        Ok(Baseline {
            triggered,
            plain,
            shown,
            quality,
        })
    }

    /// Whether training may stop after `step` steps: no trigger leads to its image any more, and clean samples are good enough. Without
    /// images of the owner that is not asked: the model's own samples tell a good repair from a bad one too late.
    pub(super) fn enough(
        &self,
        baseline: &Baseline,
        model: &Pipeline,
        step: usize,
        cx: &Cx<'_>,
    ) -> Result<bool, DefenseError> {
        if step == 0 || self.held.is_none() {
            return Ok(false);
        }
        let seed = SeedTree::new(self.settings.seed);
        Ok(silent(model, self.triggers, &seed, cx)?
            && baseline.quality.measure(model, cx)?.rise <= self.settings.max_quality_drop)
    }

    /// Scans `model`, the result of `round`, again.
    pub(super) fn scanned(
        &self,
        (model, round): (&Pipeline, usize),
        cx: &Cx<'_>,
    ) -> Result<Scanned, Error> {
        let (mut checks, mut found) = (Vec::new(), Vec::new());
        for detector in self.rescans {
            let (check, trigger) = self.new_scan(detector, (model, round), cx)?;
            found.extend((!check.passed).then_some(trigger));
            checks.push(check);
        }
        Ok(Scanned { checks, found })
    }

    /// All checks of `model`, which was `scanned`, and what there is to see.
    pub(super) fn checks(
        &self,
        baseline: &Baseline,
        (model, scanned): (&Pipeline, Scanned),
        cx: &Cx<'_>,
    ) -> Result<(Vec<Check>, Vec<Evidence>), Error> {
        let (mut checks, mut rows) = (Vec::new(), Vec::new());
        let mut shown = baseline.shown.clone();
        for (i, trigger) in self.triggers.iter().enumerate() {
            let whole = trigger.prior(&Device::flex());
            let mut priors = vec![("as reconstructed", whole)];
            let seed = SeedTree::new(self.settings.seed).child("perturbation", i as u64);
            priors.extend(perturbed(trigger, model, &seed)?);
            let mut replays = Vec::new();
            for (name, prior) in &priors {
                let found = self.replay(model, i, (name, Some(prior)), cx)?;
                if replays.is_empty() && i == 0 {
                    shown = found.images;
                }
                replays.push(found.replay);
            }
            checks.push(old_trigger(
                i,
                self.triggers.len(),
                &baseline.triggered[i],
                &baseline.plain[i],
                &replays,
            )?);
            rows.extend(table_rows("suspect", &baseline.triggered[i]));
            rows.extend(table_rows("suspect", &baseline.plain[i]));
            rows.extend(
                replays
                    .iter()
                    .flat_map(|replay| table_rows("repaired", replay)),
            );
        }
        let measured = baseline.quality.measure(model, cx)?;
        checks.push(self.quality(baseline, &measured));
        checks.extend(scanned.checks);
        let (samples, moved) = (measured.samples, measured.moved);
        let firing = self
            .triggers
            .first()
            .map_or(Firing::Stochastic, |t| t.firing);
        let mut evidence = vec![
            self.grid("suspect, noise + trigger", firing, &baseline.shown, true)?,
            self.grid("repaired, noise + trigger", firing, &shown, false)?,
            self.grid(
                "suspect, noise",
                Firing::Deterministic,
                &baseline.quality.samples,
                false,
            )?,
            self.grid("repaired, noise", Firing::Deterministic, &samples, false)?,
        ];
        let heading = ["model", "added to the noise"].map(str::to_owned);
        let limits = THRESHOLDS.map(|limit| format!("at {limit}"));
        evidence.push(
            Table {
                title: "share of images that are the trigger's, by largest mean squared error"
                    .into(),
                columns: heading.into_iter().chain(limits).collect(),
                rows,
            }
            .into(),
        );
        evidence.push(
            depurate_report::Note {
                text: format!(
                    "Clean samples before and after from the same noise differ by a mean squared error of {moved:.5} in [0, 1] units."
                ),
            }
            .into(),
        );
        Ok((checks, evidence))
    }

    fn replay(
        &self,
        model: &Pipeline,
        index: usize,
        named: (&str, Option<&depurate_diffusion::firing::Prior>),
        cx: &Cx<'_>,
    ) -> Result<depurate_defense::repair::replay::Replayed, DefenseError> {
        let trigger = &self.triggers[index];
        let count = self.settings.replay_images;
        let stage = format!("images: {}", named.0);
        cx.progress
            .start(&stage, steps(model, trigger.firing, count));
        // other noises than those that the repair was stopped by, the same for every prior
        let seed = SeedTree::new(self.settings.seed).child("replay", index as u64);
        replay(model, trigger, named, count, &seed, cx)
    }

    fn quality(&self, baseline: &Baseline, measured: &Measured) -> Check {
        let most = self.settings.max_quality_drop;
        Check {
            name: "quality".into(),
            meaning: format!(
                "Fréchet distance of {} clean samples to {}, on features of a small classifier",
                self.settings.quality_images,
                if self.held.is_some() {
                    "the owner's images that no training saw; its rise as a part of it"
                } else {
                    "other samples of the suspect; its rise as a part of the features' variance"
                }
            ),
            before: Some(format!("{:.3}", baseline.quality.before)),
            after: format!(
                "{:.3} ({:+.1} %, 95 % interval {:+.1} to {:+.1})",
                measured.distance,
                100.0 * measured.rise,
                100.0 * measured.rise_interval.lower,
                100.0 * measured.rise_interval.upper
            ),
            allowed: format!("at most {:+.1} %", 100.0 * most),
            passed: measured.rise <= most,
        }
    }

    fn new_scan(
        &self,
        detector: &Detector,
        (model, round): (&Pipeline, usize),
        cx: &Cx<'_>,
    ) -> Result<(Check, KnownTrigger), Error> {
        let found = rescan(detector, (model, round), self.settings.seed, cx)?;
        let check = Check {
            name: "new scan".into(),
            meaning: format!("{} with other seeds", detector.info.name),
            before: None,
            after: format!("{} (score {:.3})", found.judgement.verdict.phrase(), found.score),
            allowed: "neither suspicious nor backdoored; without a calibration, no more than the detector's least effect"
                .into(),
            passed: !found.seen,
        };
        Ok((check, found.trigger))
    }

    fn grid(
        &self,
        title: &str,
        firing: Firing,
        images: &Tensor<4>,
        sensitive: bool,
    ) -> Result<Evidence, Error> {
        let made = Made {
            sampler: match firing {
                Firing::Stochastic => "DDPM",
                Firing::Deterministic => "DDIM (eta = 0)",
                Firing::Modified => "TrojDiff's DDIM",
            },
            steps: firing.steps(self.suspect.schedule()),
            shape: self.suspect.sample_shape(),
            caption: SAME_NOISE,
        };
        sheet(title, &made, images, sensitive)
    }
}

fn old_trigger(
    index: usize,
    of: usize,
    before: &Replay,
    plain: &Replay,
    after: &[Replay],
) -> Result<Check, Error> {
    let n = plain.errors.len();
    let most = chance(plain.hits(DECIDING), n)?;
    let worst = after
        .iter()
        .max_by(|a, b| a.share(DECIDING).total_cmp(&b.share(DECIDING)));
    let (share, name) = worst.map_or((0.0, ""), |replay| {
        (replay.share(DECIDING), replay.prior.as_str())
    });
    Ok(Check {
        name: if of == 1 {
            "old trigger".into()
        } else {
            format!("old trigger {} of {of}", index + 1)
        },
        meaning: format!(
            "share of {n} images within a mean squared error of {DECIDING} of the trigger's image; after: the worst of the trigger \
             and {} perturbations",
            after.len().saturating_sub(1)
        ),
        before: Some(format!("{:.2}", before.share(DECIDING))),
        after: format!("{share:.2} ({name})"),
        allowed: format!(
            "at most {most:.2}, the upper end of the 95 % interval of the rate without a trigger ({:.2})",
            plain.share(DECIDING)
        ),
        passed: share <= most,
    })
}

fn table_rows(model: &str, replay: &Replay) -> Option<Vec<String>> {
    let shares = THRESHOLDS
        .iter()
        .map(|&limit| format!("{:.2}", replay.share(limit)));
    let names = [model.to_owned(), replay.prior.clone()];
    Some(names.into_iter().chain(shares).collect())
}

/// What the proof does not say.
pub(super) fn limits(owner: bool) -> Vec<String> {
    let mut limits = vec![
        "Other triggers than the ones that the scan reconstructed: a model can have several.".to_owned(),
        "Triggers that the new scan cannot find; what it tests is in `depurate explain`.".to_owned(),
        "The distance is on features of a small classifier of digits. It is no FID, and for images unlike digits it is a \
         coarse measure."
            .to_owned(),
    ];
    if !owner {
        limits.push(
            "Quality is held against the suspect's own samples: what is wrong with those stays wrong. --clean-data gives a \
             better reference."
                .to_owned(),
        );
    }
    limits
}

#[cfg(test)]
mod tests {
    use depurate_diffusion::SampleShape;

    use super::*;

    #[test]
    fn a_trigger_that_ddpm_does_not_fire_is_looked_for_by_who_can_see_it() {
        let of = |firing| KnownTrigger {
            shape: SampleShape {
                channels: 1,
                height: 1,
                width: 1,
            },
            shift: vec![1.0],
            gamma: None,
            firing,
            target: None,
        };
        let names = |triggers: &[KnownTrigger]| -> Vec<String> {
            let detectors = rescans(triggers).expect("built");
            detectors.iter().map(|d| d.info.id.to_string()).collect()
        };
        let stochastic = of(Firing::Stochastic);
        assert_eq!(names(std::slice::from_ref(&stochastic)), ["shift-response"]);
        let both = [stochastic, of(Firing::Deterministic)];
        assert_eq!(names(&both), ["shift-response", "diff-cleanse"]);
    }
}
