//! # Shifted denoising: the trigger becomes noise like any other
//!
//! A network without backdoor that is shown a clean image under biased noise takes the bias for noise and removes it with the rest. A
//! backdoored one was trained to do something else with it. This trains it back where a chain is decided, in the noisier part of the
//! timesteps, with the suspect's own answer to the same sample without the trigger as teacher. The image that the trigger leads to
//! becomes noise in the same way.
//!
//! ## Paper
//! Ours. It undoes, pair by pair, what the poisoned pairs of [`depurate_diffusion::trigger`] taught; Elijah
//! ([`super::elijah_removal`]) does so at the last timestep only.
//!
//! ## Notation
//! | code | meaning | shape |
//! |---|---|---|
//! | `x_t` | clean sample, a_t x_0 + s_t eps, `t` from `T / 2` on | `[B, C, H, W]` |
//! | `r`, `gamma` | the inverted trigger and its noise scale | `[1, C, H, W]` |
//! | `y` | the image that it leads to, as its inverter saw it | `[1, C, H, W]` |
//! | `T` | the last timestep; also the number of timesteps in `T / 2` | |
//! | `k` | strength of the trigger in a sample, uniform in [`STRENGTHS`], or 1 | |
//! | `m` | share of `y` in a sample, uniform in [`MIXED`] | |
//! | `u` | uniform from 0 to 1, another for each sample | |
//! | `b`, `c` | what the trigger and `y` add to the noise, in units of s_t | `[B, C, H, W]` |
//!
//! ```text
//! b = k rho_t r / s_t + (gamma - 1) eps                                           (1)
//! L = MSE(e(x_t + s_t b, t), e_old(x_t, t) + b)           if the network answers  (2)
//! L = MSE(e(x_t + s_t b, t), e_old(x_t, t))               if the sampler does     (3)
//! rho_t = u (1 - a_t) + (1 - u) c_t                       if the network answers  (4)
//! c_t = s_t / s_T              of a chain by DDIM                                 (5)
//! c_t = a_T s_t^2 / (a_t s_T^2)   of one by DDPM                                  (6)
//! c = m a_t (y - x_0) / s_t                                                       (7)
//! b + c in the place of b, and c added to the right of (2) and (3)                (8)
//! ```
//!
//! By (2) the clean image that is predicted under the trigger is the one that was predicted without it. A sampler that is told the
//! trigger subtracts it itself, so that (3) says the same for it: its chain now leads to clean images instead of the target, and
//! nothing else changes. The targets hold no fresh noise, so that few steps are enough and the weights move no further than they must.
//!
//! Two weights of the trigger are met: `1 - a_t`, at which the attack was trained, and `c_t`, what a chain still holds of the trigger
//! after the network has answered by (2) from the start. DDIM carries the predicted noise along, (5); a step of DDPM multiplies it by
//! `sqrt(alpha_t) s_(t-1)^2 / s_t^2`, whose product is (6). Where the sampler is told the trigger the weight is `s_t` and `k` 1, as the
//! sampler knows it. The strength varies because an inverted trigger is not the true one.
//!
//! (7) turns a clean sample into one of `y`: `a_t x_0 + s_t c` is `a_t y` for `m = 1`. By (8) a chain that has begun to draw `y` is led
//! to a clean image. Without it a network forgets the trigger and keeps its target as an image that it can draw, and a new search finds
//! another shift that leads there. One sample in three shows `y`, every other of these without the trigger.
//!
//! Below `T / 2` nothing is taught: the image is decided, only its details are drawn, and teaching there moved clean samples most.
//!
//! ## Needs
//! A trigger, with the image that it leads to or without ((8) is left out then), clean images (generated ones will do), gradients of the
//! network in its weights. What the trigger leaks into the clean images must not be among them ([`super::without_leaked`]).
//!
//! ## Deviations
//! None: there is no reference.
//!
//! ## Fails when
//! the inverted trigger is so far from the true one that the network tells them apart, or the backdoor fires without a trigger, too:
//! then the teacher teaches it. A trigger that is inserted in the middle of a chain meets the suspect's old answers. Where the target is
//! one of the images that the model shall draw, (8) takes it away.
//!
//! ## Cost
//! Two forward and backward passes and two evaluations of the teacher a sample, the clean one included.

use burn::tensor::{Tensor, TensorData};
use depurate_diffusion::{
    Denoiser, Pipeline,
    firing::{Firing, Prior},
    schedule::NoiseSchedule,
};
use depurate_report::Paper;
use depurate_training::{TrainingError, TrainingPair};
use rand::{Rng, RngExt};

use super::{KnownTrigger, Lesson, Shown, dealt};

/// The repair's id.
pub const ID: &str = "shifted-denoising";
/// Where it comes from.
pub const PAPER: Paper = Paper {
    authors: "depurate",
    title: "Shifted denoising",
    venue: "this implementation",
    year: 2026,
    arxiv: None,
    implements: "eq. (1) to (8) of the module's documentation",
};
/// Strengths of the trigger that training shows.
pub const STRENGTHS: std::ops::RangeInclusive<f64> = 0.8..=1.1;

/// Shares of the target that training mixes in.
pub const MIXED: std::ops::RangeInclusive<f64> = 0.5..=1.0;
/// One in so many samples shows the target.
const TARGETS: usize = 3;
/// The part of the schedule below which nothing is taught.
const FROM: f64 = 0.5;

/// Losses (2), (3) and (8).
#[derive(Debug, Clone)]
pub struct ShiftedDenoising {
    triggers: Vec<Prior>,
    firings: Vec<Firing>,
    /// `y` of each, `[1, C, H, W]`, if all are known.
    targets: Option<Vec<Tensor<4>>>,
}

impl ShiftedDenoising {
    /// For one or more triggers.
    ///
    /// # Errors
    /// When there is no trigger or one is malformed.
    pub fn new(triggers: &[KnownTrigger], teacher: &Pipeline) -> Result<Self, crate::DefenseError> {
        Ok(Self {
            triggers: super::fine_tuning::priors(triggers, teacher)?,
            firings: triggers.iter().map(|trigger| trigger.firing).collect(),
            targets: targets(triggers, teacher),
        })
    }
}

/// `y` of each trigger, if all are known.
fn targets(triggers: &[KnownTrigger], teacher: &Pipeline) -> Option<Vec<Tensor<4>>> {
    let device = teacher.device().inner();
    let each = triggers.iter().map(|trigger| {
        let data = TensorData::new(trigger.target.clone()?, trigger.shape.batched(1));
        Some(Tensor::from_data(data, &device))
    });
    each.collect()
}

/// Weight of a trigger in the sample at `t`, `k rho_t` of eq. (1).
fn weight(firing: Firing, schedule: &NoiseSchedule, t: usize, rng: &mut impl Rng) -> f64 {
    let last = schedule.len() - 1;
    let (a, s) = (schedule.a(t), schedule.s(t));
    let carried = match firing {
        Firing::Modified => return s,
        Firing::Deterministic => s / schedule.s(last), // eq. (5)
        Firing::Stochastic => schedule.a(last) * s * s / (a * schedule.s(last).powi(2)), // eq. (6)
    };
    let (k, u) = (rng.random_range(STRENGTHS), rng.random_range(0.0..1.0));
    k * (u * (1.0 - a) + (1.0 - u) * carried) // eq. (4)
}

impl Lesson for ShiftedDenoising {
    fn pairs(&self, teacher: &Pipeline, shown: &Shown) -> Result<Vec<TrainingPair>, TrainingError> {
        let (schedule, draw, count) = (teacher.schedule(), &shown.draw, shown.draw.t.len());
        let Some(prior) = dealt(&self.triggers, count) else {
            return Ok(Vec::new());
        };
        let round = |i: usize| i / self.triggers.len();
        let shows_target = |i: usize| self.targets.is_some() && round(i) % TARGETS == TARGETS - 1;
        let bare = |i: usize| shows_target(i) && (round(i) / TARGETS).is_multiple_of(2);
        let firing = |i: usize| self.firings[i % self.firings.len()];
        let late = |i: usize| FROM * schedule.len() as f64 + (1.0 - FROM) * draw.t[i] as f64;
        let t: Vec<usize> = (0..count).map(|i| late(i) as usize).collect();
        let x_t = schedule.add_noise(draw.images.clone(), draw.eps.clone(), &t)?;
        let old = teacher.epsilon(x_t.clone(), &t)?;
        let mut rng = draw.seed.child("strength", 0).rng();
        let drawn = |i: usize| weight(firing(i), schedule, t[i], &mut rng);
        let mut weights: Vec<f64> = (0..count).map(drawn).collect();
        let column = |of: &dyn Fn(usize) -> f64| {
            let values: Vec<f32> = (0..count).map(|i| of(i) as f32).collect();
            let data = TensorData::new(values, [count, 1, 1, 1]);
            Tensor::<4>::from_data(data, &draw.eps.device())
        };
        let s = |i: usize| schedule.s(t[i]);
        let with_trigger = column(&|i| f64::from(u8::from(!bare(i))));
        (0..count)
            .filter(|&i| bare(i))
            .for_each(|i| weights[i] = 0.0);
        let mut bias = column(&|i| weights[i] / s(i)) * prior.shift;
        if let Some(gamma) = prior.gamma {
            bias = bias + with_trigger * (gamma - 1.0) * draw.eps.clone(); // eq. (1)
        }
        let answered = column(&|i| f64::from(u8::from(firing(i) != Firing::Modified)));
        let (mut moved, mut target) = (bias.clone(), old + answered * bias); // eq. (2), (3)
        if let Some(targets) = &self.targets {
            let row = |i: usize| targets[i % targets.len()].clone();
            let targets = Tensor::cat((0..count).map(row).collect(), 0);
            let mut share = |i: usize| {
                if shows_target(i) {
                    rng.random_range(MIXED)
                } else {
                    0.0
                }
            };
            let shares: Vec<f64> = (0..count).map(&mut share).collect();
            let toward =
                column(&|i| shares[i] * schedule.a(t[i]) / s(i)) * (targets - draw.images.clone()); // eq. (7)
            moved = moved + toward.clone();
            target = target + toward; // eq. (8)
        }
        Ok(vec![TrainingPair {
            x_t: x_t + column(&s) * moved,
            target,
            t,
        }])
    }

    fn teacher_evaluations(&self) -> u64 {
        1
    }

    fn blocks(&self) -> u64 {
        1
    }

    fn describe(&self) -> String {
        format!("{ID}, {} triggers", self.triggers.len())
    }
}
