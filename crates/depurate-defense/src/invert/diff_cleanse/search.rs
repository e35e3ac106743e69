//! From starts to the best candidate.

use std::ops::Range;

use depurate_diffusion::{firing::Firing, noise::SeedTree};
use serde::{Deserialize, Serialize};

use super::{
    DiffCleanseParams,
    descent::{self, descend},
    look::Look,
    narrowed::narrowed,
};
use crate::{
    Cx, DefenseError,
    hypothesis::{
        Hypothesis,
        joint::{self, descend_jointly},
        refinement::refine,
        regression::{self, LevelsUsed, regress},
    },
    invert::{Inversion, Restart, starts::starts},
    probe::{Probe, norm},
};

/// Every pixel of a shift is bound by this: triggers are images.
const BOUND: f64 = 1.0;
/// Levels a round of the regression, and antithetic pairs a level.
const LEVELS: usize = 8;
const PAIRS: usize = 1;
/// The same where every pixel's scale is asked for, and its rounds.
const PIXEL_LEVELS: usize = 12;
const PIXEL_PAIRS: usize = 4;
const PIXEL_ROUNDS: usize = 3;

/// Where the joint descent starts its target, a grey value, and the noise levels that it uses, as `a`. The noisy ones matter:
/// without them it ends where shift and target are consistent with each other and are not the attack's.
const JOINT: [(f32, Range<f64>); 2] = [(0.0, 0.07..0.9), (0.1, 0.1..0.9)];
/// The shift that it starts at: most triggers are drawn on a dark background.
const DARK: f32 = -1.0;
const JOINT_BATCH: usize = 8;
const JOINT_RATE: f64 = 0.05;

/// What a search ended at.
#[derive(Debug, Clone)]
pub struct Found {
    /// The best candidate.
    pub inversion: Inversion,
    /// The image that it leads to, `[C, H, W]`.
    pub target: Vec<f32>,
    /// Share of its images in the largest set of mutually similar ones.
    pub share: f64,
    pub(crate) best: Candidate,
}

/// A hypothesis and what the suspect does under it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Candidate {
    pub(crate) start: String,
    pub(crate) hypothesis: Hypothesis,
    pub(crate) look: Look,
    /// Diversity of the images by step of the descent, then misfit by round of the polish.
    trace: Vec<f64>,
}

pub(super) struct Search<'a, 'b> {
    pub(super) params: &'a DiffCleanseParams,
    pub(super) probe: &'a Probe<'b>,
    pub(super) cx: &'a Cx<'b>,
    pub(super) seed: &'a SeedTree,
}

impl Search<'_, '_> {
    pub(super) fn run(&self, warm: &[Inversion]) -> Result<Found, DefenseError> {
        let own = self.cx.stage("diff-cleanse-starts", || {
            starts(
                self.probe,
                self.params.own_starts,
                self.params.steps,
                self.seed,
            )
        })?;
        let mut ended: Vec<Candidate> = Vec::new();
        for &firing in &self.params.firings {
            self.cx.progress.start("Diff-Cleanse", 0);
            let stage = format!("diff-cleanse-{}", label(firing));
            ended.extend(self.cx.stage(&stage, || self.of(firing, &own, warm))?);
        }
        ended.sort_by(|a, b| a.look.misfit().total_cmp(&b.look.misfit()));
        let restarts = ended.iter().enumerate().map(|(i, candidate)| Restart {
            start: candidate.start.clone(),
            objective: candidate.look.misfit(),
            norm: norm(&candidate.hypothesis.shift),
            converged: candidate.look.share >= 0.5,
            selected: i == 0,
        });
        let restarts = restarts.collect();
        let best = ended.into_iter().next().ok_or(DefenseError::Params {
            field: "firings",
            value: "none".into(),
            allowed: "at least one",
        })?;
        let inversion = Inversion {
            shape: self.probe.shape(),
            shift: best.hypothesis.shift.clone(),
            gamma: best.hypothesis.gamma.clone(),
            firing: best.hypothesis.firing,
            objective: best.look.misfit(),
            objective_meaning: "spread of the images times squared inconsistency along the chain; 0 is a perfect backdoor".into(),
            trace: best.trace.iter().copied().enumerate().collect(),
            converged: best.look.share >= 0.5,
            restarts,
        };
        Ok(Found {
            inversion,
            target: best.look.target.clone(),
            share: best.look.share,
            best,
        })
    }

    /// The candidates of one firing, polished.
    fn of(
        &self,
        firing: Firing,
        own: &[(String, Vec<f32>)],
        warm: &[Inversion],
    ) -> Result<Vec<Candidate>, DefenseError> {
        let mut started = self.started(firing, own)?;
        started.extend(warm.iter().filter(|w| w.firing == firing).map(|w| {
            let hypothesis = Hypothesis {
                firing,
                shift: w.shift.clone(),
                gamma: w.gamma.clone(),
            };
            ("another inverter's".to_owned(), hypothesis)
        }));
        let mut candidates = Vec::with_capacity(started.len());
        for (i, (start, hypothesis)) in started.into_iter().enumerate() {
            let look = self.look(&hypothesis, None)?;
            let candidate = Candidate {
                start: format!("{}, {start}", label(firing)),
                hypothesis,
                look,
                trace: Vec::new(),
            };
            note("start", &candidate);
            let seed = self.seed.child(label(firing), i as u64);
            let candidate = self.target_first(candidate, &seed.child("first", 0))?;
            note("regressed", &candidate);
            candidates.push((candidate, seed));
        }
        if firing == Firing::Deterministic && self.params.joint_iterations > 0 {
            for (i, (target, levels)) in JOINT.into_iter().enumerate() {
                let seed = self.seed.child("joint", i as u64);
                candidates.push((self.joint(firing, target, levels, &seed)?, seed));
            }
        }
        candidates.sort_by(|(a, _), (b, _)| a.look.misfit().total_cmp(&b.look.misfit()));
        candidates.truncate(self.params.candidates);
        candidates
            .into_iter()
            .map(|(candidate, seed)| self.polished(self.descended(candidate, &seed)?, &seed))
            .collect()
    }

    fn look(
        &self,
        hypothesis: &Hypothesis,
        expected: Option<&[f32]>,
    ) -> Result<Look, DefenseError> {
        let seed = self.seed.child("look", 0);
        self.params
            .looking()
            .look(self.probe, hypothesis, expected, &seed)
    }

    /// Named hypotheses to start from.
    fn started(
        &self,
        firing: Firing,
        own: &[(String, Vec<f32>)],
    ) -> Result<Vec<(String, Hypothesis)>, DefenseError> {
        let mut found = Vec::new();
        for (i, (name, start)) in own.iter().enumerate() {
            let seed = self.seed.child("start", i as u64);
            match firing {
                Firing::Stochastic => {
                    let end = self.params.fixed_point.iterate(self.probe, start, &seed)?;
                    if !end.vanished() {
                        found.push((name.clone(), Hypothesis::plain(firing, end.shift)));
                    }
                }
                Firing::Deterministic => {
                    found.push((name.clone(), Hypothesis::plain(firing, start.clone())));
                }
                Firing::Modified => {}
            }
        }
        if firing == Firing::Modified {
            found = narrowed(self.probe, own, &self.seed.child("start", 0))?;
        }
        if found.is_empty() {
            // nothing held: the hypothesis of no shift at all
            let none = vec![0.0; self.probe.shape().len()];
            found.push(("none".to_owned(), Hypothesis::plain(firing, none)));
        }
        Ok(found)
    }

    /// Where the descent on shift and target together ends, from a dark shift and a grey target.
    fn joint(
        &self,
        firing: Firing,
        target: f32,
        levels: Range<f64>,
        seed: &SeedTree,
    ) -> Result<Candidate, DefenseError> {
        let len = self.probe.shape().len();
        let settings = joint::Settings {
            iterations: self.params.joint_iterations,
            holding: self.params.joint_iterations / 24,
            batch: JOINT_BATCH,
            levels,
            learning_rate: JOINT_RATE,
            bound: BOUND,
        };
        let start = Hypothesis::plain(firing, vec![DARK; len]);
        let grey = vec![target; len];
        let (hypothesis, target) = descend_jointly(self.probe, &start, &grey, &settings, seed)?;
        let look = self.look(&hypothesis, Some(&target))?;
        let candidate = Candidate {
            start: format!("{}, dark and grey {:.1}", label(firing), grey[0]),
            hypothesis,
            look,
            trace: Vec::new(),
        };
        note("joint", &candidate);
        self.regressed(candidate, &seed.child("regression", 0))
    }

    /// After the descent on diversity, if its images were not alike before and it made them so.
    fn descended(&self, candidate: Candidate, seed: &SeedTree) -> Result<Candidate, DefenseError> {
        let params = self.params;
        if params.descent_iterations == 0 || candidate.look.share > 0.5 {
            return Ok(candidate);
        }
        let settings = descent::Settings {
            descent: params.descent,
            iterations: params.descent_iterations,
            learning_rate: params.learning_rate,
            bound: BOUND,
        };
        let from = candidate.hypothesis.clone();
        let (hypothesis, trace) = descend(self.probe, from, &params.looking(), &settings, seed)?;
        let look = self.look(&hypothesis, None)?;
        let moved = Candidate {
            start: candidate.start.clone(),
            hypothesis,
            look,
            trace,
        };
        note("descended", &moved);
        let moved = self.regressed(moved, &seed.child("descended", 0))?;
        note("regressed", &moved);
        Ok(better(candidate, moved))
    }

    /// After a regression along the chain, if the hypothesis fits better then.
    fn regressed(&self, candidate: Candidate, seed: &SeedTree) -> Result<Candidate, DefenseError> {
        let settings = regression::Settings {
            iterations: self.params.regressions,
            levels: LEVELS,
            pairs: PAIRS,
            bound: BOUND,
            levels_used: LevelsUsed::All,
            scale_by_pixel: false,
        };
        self.moved(candidate, &settings, seed)
    }

    /// As [`Self::regressed`], but the target is looked for first: where the images are not its images yet, a sample made with
    /// theirs leaves the backdoor's mode at the cleaner levels.
    fn target_first(
        &self,
        candidate: Candidate,
        seed: &SeedTree,
    ) -> Result<Candidate, DefenseError> {
        let mut settings = regression::Settings {
            iterations: self.params.regressions.div_ceil(2),
            levels: LEVELS,
            pairs: PAIRS,
            bound: BOUND,
            levels_used: LevelsUsed::NoisyForTarget,
            scale_by_pixel: false,
        };
        let (from, target) = (candidate.hypothesis.clone(), candidate.look.target.clone());
        let first = seed.child("target", 0);
        let (from, target) = regress(self.probe, from, target, &settings, &first)?;
        settings.levels_used = LevelsUsed::Widening;
        settings.iterations = 2 * self.params.regressions;
        let (hypothesis, target) = regress(self.probe, from, target, &settings, seed)?;
        let look = self.look(&hypothesis, Some(&target))?;
        let moved = Candidate {
            start: candidate.start.clone(),
            hypothesis,
            look,
            trace: candidate.trace.clone(),
        };
        note("by the target", &moved);
        Ok(better(candidate, moved))
    }

    fn moved(
        &self,
        candidate: Candidate,
        settings: &regression::Settings,
        seed: &SeedTree,
    ) -> Result<Candidate, DefenseError> {
        let (from, target) = (candidate.hypothesis.clone(), candidate.look.target.clone());
        let (hypothesis, target) = regress(self.probe, from, target, settings, seed)?;
        let look = self.look(&hypothesis, Some(&target))?;
        let moved = Candidate {
            start: candidate.start.clone(),
            hypothesis,
            look,
            trace: candidate.trace.clone(),
        };
        Ok(better(candidate, moved))
    }

    /// After the rounds of regression and gradient along the chain.
    fn polished(
        &self,
        mut candidate: Candidate,
        seed: &SeedTree,
    ) -> Result<Candidate, DefenseError> {
        let params = self.params;
        for round in 0..params.rounds {
            let seed = seed.child("polish", round as u64);
            candidate = self.regressed(candidate, &seed)?;
            note("regressed", &candidate);
            if candidate.hypothesis.firing == Firing::Modified {
                let settings = regression::Settings {
                    iterations: PIXEL_ROUNDS,
                    levels: PIXEL_LEVELS,
                    pairs: PIXEL_PAIRS,
                    bound: BOUND,
                    levels_used: LevelsUsed::All,
                    scale_by_pixel: true,
                };
                candidate = self.moved(candidate, &settings, &seed.child("by pixel", 0))?;
                note("by pixel", &candidate);
            }
            if params.refinements > 0 {
                let hypothesis = refine(
                    self.probe,
                    &candidate.hypothesis,
                    &candidate.look.target,
                    params.refinements,
                    params.refinement_batch,
                    BOUND,
                    &seed,
                )?;
                self.probe
                    .also_backwards(params.refinements * params.refinement_batch);
                let look = self.look(&hypothesis, Some(&candidate.look.target))?;
                let moved = Candidate {
                    hypothesis,
                    look,
                    ..candidate.clone()
                };
                candidate = better(candidate, moved);
                note("refined", &candidate);
            }
            candidate.trace.push(candidate.look.misfit());
        }
        Ok(candidate)
    }
}

fn note(what: &str, found: &Candidate) {
    let Look {
        share,
        spread,
        inconsistency,
        ..
    } = found.look;
    let scale = found
        .hypothesis
        .gamma
        .as_ref()
        .map(|g| (g.first(), g.last()));
    let norm = norm(&found.hypothesis.shift);
    let start = &found.start;
    tracing::debug!(start, what, share, spread, inconsistency, norm, ?scale);
}

/// The one that fits better.
fn better(a: Candidate, b: Candidate) -> Candidate {
    if b.look.misfit() < a.look.misfit() {
        b
    } else {
        a
    }
}

/// A firing's name in labels.
pub(crate) fn label(firing: Firing) -> &'static str {
    match firing {
        Firing::Stochastic => "stochastic",
        Firing::Deterministic => "deterministic",
        Firing::Modified => "modified",
    }
}
