//! What trigger, target and noise scale would make the network's answers consistent: a regression along the chain.
//!
//! A network that is in the mode of a backdoor `(R, Y, G)` answers a sample that was made for the hypothesis `(r, y, g)`,
//! `x = a y + rho r + g s eps`, with `e = (x - a Y - rho R) / (G s) + c R`, so that its error under the hypothesis is
//!
//! ```text
//! e - eps - c r = (g / G - 1) eps + a (y - Y) / (G s) + (rho / (G s) - c) (r - R)          (1)
//! ```
//!
//! At each level the mean over antithetic noises keeps the last two terms, which differ in how they grow with the level: two
//! unknowns a pixel, of which a weighted least squares over levels finds `y - Y` and `r - R`. The slope in `eps` gives `G`. No
//! gradient is needed, and one formula serves every rule. Repeating it, and moving a part of the way, is a fixed-point
//! iteration whose fixed points are consistent hypotheses.

use std::{collections::BTreeMap, ops::Range};

use depurate_diffusion::{firing::Firing, noise::SeedTree};
use rand::RngExt;

use super::Hypothesis;
use crate::{
    DefenseError,
    probe::{Probe, batch_mean, values},
};

/// Ends of the noise levels used, as `a`: at the noisy end a target leaves no trace, at the clean end a trigger none.
const LEVELS: Range<f64> = 0.03..0.9;
/// Clean end at first, where the hypothesis may be far off: a sample made with a wrong target or shift leaves the backdoor's mode
/// at the cleaner levels, and with it (1).
const NOISY: f64 = 0.3;
/// Part of the way to the regression's answer that an iteration goes.
const DAMPING: f64 = 0.7;
/// Added to the normal equations: what the answers do not determine stays where it is.
const RIDGE: f64 = 0.02;
/// Smallest and largest noise scale of a hypothesis.
pub(crate) const SCALES: (f64, f64) = (0.02, 1.0);

/// The levels that a regression uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LevelsUsed {
    /// All.
    All,
    /// The noisy ones, for the target alone; shift and scale stay.
    NoisyForTarget,
    /// The noisy ones at first, all at last.
    Widening,
}

/// How a hypothesis is moved.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    /// Rounds.
    pub(crate) iterations: usize,
    /// Levels a round, at least 2.
    pub(crate) levels: usize,
    /// Antithetic pairs of noises a level, at least 1.
    pub(crate) pairs: usize,
    /// Bound of every pixel of shift and target.
    pub(crate) bound: f64,
    /// What of the levels is used.
    pub(crate) levels_used: LevelsUsed,
    /// Whether every pixel has a noise scale of its own; else those that have one scale keep one.
    pub(crate) scale_by_pixel: bool,
}

/// Moves `hypothesis` and `target [C, H, W]` towards consistency.
pub(crate) fn regress(
    probe: &Probe<'_>,
    mut hypothesis: Hypothesis,
    mut target: Vec<f32>,
    settings: &Settings,
    seed: &SeedTree,
) -> Result<(Hypothesis, Vec<f32>), DefenseError> {
    for iteration in 0..settings.iterations {
        let seed = seed.child("regression", iteration as u64);
        let part = (iteration + 1) as f64 / settings.iterations as f64;
        let end = match settings.levels_used {
            LevelsUsed::All => LEVELS.end,
            LevelsUsed::NoisyForTarget => NOISY,
            LevelsUsed::Widening => NOISY + part * (LEVELS.end - NOISY),
        };
        let target_alone = settings.levels_used == LevelsUsed::NoisyForTarget;
        let found = Answers::collect(probe, &hypothesis, &target, settings, end, &seed)?;
        if hypothesis.firing == Firing::Modified && !target_alone {
            hypothesis.gamma = Some(found.scale(settings.scale_by_pixel));
        }
        let bound = settings.bound as f32;
        for (p, [target_off, shift_off]) in found.offsets(target_alone).into_iter().enumerate() {
            let moved = |from: f32, off: f64| (from - (DAMPING * off) as f32).clamp(-bound, bound);
            target[p] = moved(target[p], target_off);
            hypothesis.shift[p] = moved(hypothesis.shift[p], shift_off);
        }
    }
    Ok((hypothesis, target))
}

/// What the network answered, pixel by pixel.
struct Answers {
    /// Scale `g` of the hypothesis, `[C, H, W]`.
    scale: Vec<f64>,
    /// By level: `a / s`, `rho / s`, `c` and the mean error.
    levels: Vec<(f64, f64, f64, Vec<f64>)>,
    /// Sum over levels and noises of `eps e` and of `eps eps`.
    slope: Vec<(f64, f64)>,
}

impl Answers {
    fn collect(
        probe: &Probe<'_>,
        hypothesis: &Hypothesis,
        target: &[f32],
        settings: &Settings,
        end: f64,
        seed: &SeedTree,
    ) -> Result<Self, DefenseError> {
        let schedule = probe.schedule();
        let len = target.len();
        let (r, y) = (probe.image(&hypothesis.shift), probe.image(target));
        let mut rng = seed.child("levels", 0).rng();
        let mut found = Self {
            scale: hypothesis.gamma.as_ref().map_or_else(
                || vec![1.0; len],
                |g| g.iter().map(|&g| f64::from(g)).collect(),
            ),
            levels: Vec::with_capacity(settings.levels),
            slope: vec![(0.0, 0.0); len],
        };
        let width = (end - LEVELS.start) / settings.levels as f64;
        for level in 0..settings.levels {
            let a = LEVELS.start + width * (level as f64 + rng.random_range(0.0..1.0));
            let t = schedule.t_for_alpha_bar(a * a).min(schedule.len() - 1);
            let (a, s) = (schedule.a(t), schedule.s(t));
            let (rho, c) = (
                hypothesis.rho(schedule, t),
                hypothesis.coefficient(schedule, t),
            );
            let eps = probe.antithetic_noise(&seed.child("noise", level as u64), settings.pairs)?;
            let x_t = y.clone() * a + r.clone() * rho + hypothesis.scaled(probe, eps.clone()) * s;
            let e = values(probe.epsilon(x_t, t)? - r.clone() * c);
            let eps = values(eps);
            for (e, eps) in e.chunks_exact(len).zip(eps.chunks_exact(len)) {
                for ((slope, &e), &eps) in found.slope.iter_mut().zip(e).zip(eps) {
                    slope.0 += f64::from(e) * f64::from(eps);
                    slope.1 += f64::from(eps).powi(2);
                }
            }
            // antithetic noises have mean 0
            found.levels.push((a / s, rho / s, c, batch_mean(&e, len)));
        }
        Ok(found)
    }

    /// The scale that the slope tells, `[C, H, W]`.
    fn scale(&self, by_pixel: bool) -> Vec<f32> {
        let of = |g: f64, (product, square): (f64, f64)| {
            let slope = product / square.max(1e-12);
            (g / slope.max(1e-3)).clamp(SCALES.0, SCALES.1) as f32
        };
        if by_pixel {
            let pixels = self.scale.iter().zip(&self.slope);
            return pixels.map(|(&g, &slope)| of(g, slope)).collect();
        }
        let mut of_one_scale: BTreeMap<u64, (f64, f64)> = BTreeMap::new();
        for (g, slope) in self.scale.iter().zip(&self.slope) {
            let sums = of_one_scale.entry(g.to_bits()).or_default();
            *sums = (sums.0 + slope.0, sums.1 + slope.1);
        }
        let sums = |g: f64| of_one_scale.get(&g.to_bits()).copied().unwrap_or_default();
        self.scale.iter().map(|&g| of(g, sums(g))).collect()
    }

    /// `y - Y` and `r - R` by pixel: the weighted least squares of (1); the second is 0 where the `target_alone` is asked for.
    fn offsets(&self, target_alone: bool) -> Vec<[f64; 2]> {
        let pixel = |(p, &g): (usize, &f64)| {
            let (mut uu, mut uv, mut vv, mut ue, mut ve) = (RIDGE, 0.0, RIDGE, 0.0, 0.0);
            for (a, rho, c, error) in &self.levels {
                let (u, v) = (a / g, rho / g - c);
                // a level of little noise has a large factor and a large error of the network's own
                let weight = 1.0 / (1.0 + u * u);
                uu += weight * u * u;
                uv += weight * u * v;
                vv += weight * v * v;
                ue += weight * u * error[p];
                ve += weight * v * error[p];
            }
            if target_alone {
                return [ue / uu, 0.0];
            }
            let determinant = (uu * vv - uv * uv).max(1e-12);
            [
                (vv * ue - uv * ve) / determinant,
                (uu * ve - uv * ue) / determinant,
            ]
        };
        self.scale.iter().enumerate().map(pixel).collect()
    }
}
