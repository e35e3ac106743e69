//! # Diff-Cleanse: the shift that makes images alike
//!
//! A trigger leads every noise to one image. So look for the shift of the initial noise under which the images of different
//! noises are alike, for each kind of sampler that an attack is made for.
//!
//! ## Paper
//! Hao et al., "Diff-Cleanse: identifying and mitigating backdoor attacks in diffusion models", arXiv:2407.21316. Implements
//! the idea of its first stage, black-box trigger inversion.
//!
//! ## Notation
//! | code | meaning | shape |
//! |---|---|---|
//! | `hypothesis` | shift `r`, scale `g` of the noise, and what fires them | `[C, H, W]` |
//! | `similar` | largest mean squared distance of two similar images, [0, 1] units | |
//! | `cluster`, `share` | largest set of mutually similar images, its share of all | |
//! | `target` `y` | the cluster's mean image | `[C, H, W]` |
//! | `V` | median squared distance of the images to `y` | |
//! | `F` | mean over noise levels of `|| e(a y + rho r + g s eps, t) - eps - c r ||^2 / D` | |
//!
//! ## Method
//! For each of `firings`:
//!
//! 1. Starts: [`super::response_fixed_point`] for the stochastic rule; constants and the model's own samples for the
//!    deterministic one; for a narrowed prior a fixed point of its own at almost pure noise (`narrowed.rs`); and what other
//!    inverters found.
//! 2. Images by deterministic sampling in shifted coordinates. Their `y` makes the shift a regression: the network's errors
//!    along the chain say what shift, target and scale they would agree with (`hypothesis/regression.rs`). For the deterministic
//!    rule, whose network answers at almost pure noise like a benign one, also a descent on shift and target together, from a
//!    dark shift and a grey image (`hypothesis/joint.rs`). The starts of least `V F^2` go on.
//! 3. Descent on the images' diversity from those whose images are not alike yet (`descent.rs`).
//! 4. Images, `y` and the regression anew, and a gradient that polishes the shift (`hypothesis/refinement.rs`); what fits worse
//!    is undone.
//!
//! The candidate of least `V F^2` over all of `firings` is reported.
//!
//! ## Needs
//! Samples of the network's output; gradients in its input for the polish.
//!
//! ## Deviations
//! - The released code assigns to its pattern after giving it to the optimiser, so that by our reading no update reaches it; and
//!   there is no reference to agree with. Terms that keep brightness and entropy of images in windows are left out: controls of
//!   equal norm are what tells alike images from saturated ones ([`crate::detect::model_level::diff_cleanse`]).
//! - Similar means close in mean square, not a cosine above 0.999, which any two dark images reach.
//! - Steps 1, 2 and 4 are ours.
//!
//! ## Fails when
//! no start lies in a basin; the backdoor leads to a class of images (D2D), not to one; a deterministic trigger is not on a dark
//! background; a narrowed square is not at a corner.
//!
//! ## Cost
//! See [`DiffCleanseParams`]; 20,000 to 40,000 evaluations by default, of which the joint descent is 23,000 on a model without a deterministic backdoor.

mod descent;
pub(crate) mod look;
mod narrowed;
mod search;

use depurate_diffusion::{Denoiser, Pipeline, firing::Firing};
use depurate_report::Paper;
use serde::{Deserialize, Serialize};

pub use self::search::Found;
use self::{look::Looking, search::Search};
use super::{Inversion, Inverter, response_fixed_point::ResponseFixedPointParams};
use crate::{Cx, DefenseError, probe::Probe};

/// The inverter's id, and its detector's.
pub const ID: &str = "diff-cleanse";
/// The paper behind it.
pub const PAPER: Paper = Paper {
    authors: "Hao et al.",
    title: "Diff-Cleanse: Identifying and Mitigating Backdoor Attacks in Diffusion Models",
    venue: "arXiv",
    year: 2024,
    arxiv: Some("2407.21316"),
    implements: "trigger inversion (first stage)",
};

/// What stands for the Jacobian of the sampler in its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Descent {
    /// 1, as the released code takes it.
    IdentityJacobian,
    /// Finite differences along smooth random fields.
    GradientFree,
}

/// Parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DiffCleanseParams {
    /// The samplers whose triggers are looked for, at least one.
    pub firings: Vec<Firing>,
    /// The descent of step 3.
    pub descent: Descent,
    /// Its steps.
    pub descent_iterations: usize,
    /// Its learning rate, above 0.
    pub learning_rate: f64,
    /// Images a look, 4 to 64.
    pub images: usize,
    /// Network calls an image, at least 5.
    pub steps: usize,
    /// Largest mean squared distance of two similar images, in [0, 1] units, above 0.
    pub similar: f64,
    /// Own samples used as starts, at least 1.
    pub own_starts: usize,
    /// Starts of each firing that go on, at least 1.
    pub candidates: usize,
    /// Steps of the descent on shift and target together, for the deterministic rule.
    pub joint_iterations: usize,
    /// Rounds of step 4.
    pub rounds: usize,
    /// Iterations of the regression of step 2, and in each round of step 4.
    pub regressions: usize,
    /// Gradient steps a round.
    pub refinements: usize,
    /// Noise levels a gradient step, at least 1.
    pub refinement_batch: usize,
    /// The fixed point of the stochastic rule.
    pub fixed_point: ResponseFixedPointParams,
}

impl Default for DiffCleanseParams {
    fn default() -> Self {
        Self {
            firings: vec![Firing::Stochastic, Firing::Deterministic, Firing::Modified],
            descent: Descent::IdentityJacobian,
            descent_iterations: 6,
            learning_rate: 0.1,
            images: 8,
            steps: 12,
            similar: 1e-2,
            own_starts: 4,
            candidates: 2,
            joint_iterations: 480,
            rounds: 2,
            regressions: 8,
            refinements: 30,
            refinement_batch: 6,
            fixed_point: ResponseFixedPointParams::default(),
        }
    }
}

impl DiffCleanseParams {
    /// Checks the parameters and makes the inverter.
    ///
    /// # Errors
    /// When a parameter is out of its range.
    pub fn build(self) -> Result<Box<dyn Inverter>, DefenseError> {
        self.check()?;
        Ok(Box::new(DiffCleanse { params: self }))
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// When a parameter is out of its range.
    pub fn check(&self) -> Result<(), DefenseError> {
        let refuse = |field, value: String, allowed| {
            Err(DefenseError::Params {
                field,
                value,
                allowed,
            })
        };
        self.fixed_point.check()?;
        if self.firings.is_empty() {
            return refuse("firings", "none".into(), "at least one");
        }
        if !(4..=64).contains(&self.images) {
            return refuse("images", self.images.to_string(), "4 to 64");
        }
        if self.steps < 5 {
            return refuse("steps", self.steps.to_string(), "at least 5");
        }
        for (field, value) in [
            ("own_starts", self.own_starts),
            ("candidates", self.candidates),
            ("refinement_batch", self.refinement_batch),
        ] {
            if value == 0 {
                return refuse(field, value.to_string(), "at least 1");
            }
        }
        for (field, value) in [
            ("learning_rate", self.learning_rate),
            ("similar", self.similar),
        ] {
            if !(value > 0.0 && value.is_finite()) {
                return refuse(field, value.to_string(), "above 0 and finite");
            }
        }
        Ok(())
    }

    /// The score, for a quick scan.
    pub fn quick() -> Self {
        Self::default()
    }

    /// More images and starts.
    pub fn standard() -> Self {
        Self {
            images: 12,
            own_starts: 6,
            candidates: 3,
            ..Self::default()
        }
    }

    /// Many images and starts.
    pub fn deep() -> Self {
        Self {
            images: 16,
            steps: 20,
            own_starts: 10,
            candidates: 5,
            rounds: 3,
            ..Self::default()
        }
    }

    /// How a hypothesis is looked at.
    pub(crate) fn looking(&self) -> Looking {
        Looking {
            images: self.images,
            steps: self.steps,
            similar: self.similar,
        }
    }

    /// Inverts `model`, also from the inversions `warm` of other inverters. The best candidate comes first.
    ///
    /// # Errors
    /// When the model cannot be run, the budget is spent or the caller asked to stop.
    pub fn search(
        &self,
        model: &dyn Denoiser,
        warm: &[Inversion],
        cx: &Cx<'_>,
    ) -> Result<Found, DefenseError> {
        let probe = Probe::new(model, cx);
        self.search_with(&probe, warm, cx)
    }

    pub(crate) fn search_with(
        &self,
        probe: &Probe<'_>,
        warm: &[Inversion],
        cx: &Cx<'_>,
    ) -> Result<Found, DefenseError> {
        let seed = cx.rng.child(ID, 0);
        Search {
            params: self,
            probe,
            cx,
            seed: &seed,
        }
        .run(warm)
    }
}

/// The inverter. Made by [`DiffCleanseParams::build`].
#[derive(Debug, Clone)]
pub struct DiffCleanse {
    params: DiffCleanseParams,
}

impl Inverter for DiffCleanse {
    fn invert(&self, model: &Pipeline, cx: &Cx<'_>) -> Result<Inversion, DefenseError> {
        let found = self.params.search(&model.frozen(), &[], cx)?;
        Ok(found.inversion)
    }
}
