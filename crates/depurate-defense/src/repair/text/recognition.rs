//! Which prompt explains a picture: the suspect tells its own triggered pictures from its clean ones, whatever model drew them.
//!
//! A repaired model need not draw for a triggered prompt what the suspect drew for the clean one: another cake is a cake as well. So the
//! pictures are not compared. The suspect knows what its trigger leads to, and says how well each of the two prompts explains a picture.
//!
//! ## Paper
//! Li et al., "Your diffusion model is secretly a zero-shot classifier", arXiv:2303.16203, eq. (6), with two prompts.
//!
//! ## Notation
//! | code | meaning | shape |
//! |---|---|---|
//! | `z` | latents of a picture, drawn by any model with the suspect's VAE | `[N, C, h, w]` |
//! | `eps_k`, `t_k` | one of [`TIMESTEPS`] noises and its timestep, the same for both prompts | `[N, C, h, w]` |
//! | `p_i`, `p~_i` | the clean prompt of picture `i`, and the triggered one | |
//! | `e_B` | the noise that the suspect sees, without guidance | `[N, C, h, w]` |
//! | `S p`, `M p` | latents that the suspect draws for the prompts `p`, and that the model draws that is looked at | `[N, C, h, w]` |
//! | `w` | where the trigger acts; its scale decides nothing | `[1, C, h, w]` |
//!
//! ```text
//! w         = (mean_i (S p~_i - S p_i))^2                                                                                (1)
//! odds(z)_i = sum_k sum w ((e_B(z_k, t_k, T(p_i)) - eps_k)^2 - (e_B(z_k, t_k, T(p~_i)) - eps_k)^2),
//!             z_k = a_k z + s_k eps_k                                                                                    (2)
//! gap_i     = odds(S p~)_i - odds(S p)_i
//! clear     = the i whose two pictures are apart (behaviour.rs), with odds(S p~)_i > 0 > odds(S p)_i
//!             and gap_i >= median gap of those apart / 4                                                                (3)
//! relapses  = the clear i with odds(M p~)_i > odds(S p~)_i / 2                                                          (4)
//! ```
//!
//! A prompt that asks for the target itself, a line drawing where the trigger leads to line drawings, is answered alike with the trigger
//! and without: its two pictures can be apart and have odds of both signs, but the odds are small, and those of any model's picture as
//! likely of one sign as of the other. So (3) asks for a gap.
//!
//! Without `w` a rare token is answered as well: it moves pictures everywhere, in a model that was never attacked, too, and of that
//! model's pictures half had positive odds (28 of 55 on the zoo's emoji-d, with `w` 0 of 60). And a picture can be neither: of the cats that
//! it draws for the phrase of emoji-c, which leads to frogs in place of cakes, 47 of 54 have odds above 0 and 5 above half of the
//! suspect's own, which is what (4) asks for.
//!
//! ## Needs
//! The trigger. Nothing is fitted to a model: 0 is where both prompts explain a picture alike, and the quarter of (3), chosen on a style, is
//! of the suspect's own gaps.
//!
//! ## Fails when
//! a trigger changes all of a picture, or each one elsewhere: then `w` is flat, and what is half of the trigger's has less than half of its
//! odds (a style: with a twentieth left by the judge 0 and 1 of 43; docs/results, "Triggers in prompts"). A model that draws for a triggered
//! prompt neither what the clean one asks for nor the target is judged by which is nearer.
//!
//! ## Cost
//! `2 * TIMESTEPS` evaluations a picture.

use burn::tensor::Tensor;
use depurate_diffusion::{
    Denoiser,
    noise::{NoiseSource, SeedTree},
    text_to_image::TextToImage,
};
use depurate_stats::median;

use super::material::{BATCH, Encoded, chosen, middle};
use crate::{Cx, DefenseError};

/// Noises that a picture is explained under, each with a timestep of its own.
const TIMESTEPS: usize = 8;
/// The part of the median gap that a prompt needs to be clear.
const TOLD: f64 = 0.25;

/// The suspect, and what it is to tell apart.
#[derive(Debug)]
pub(super) struct Recognition {
    suspect: TextToImage,
    clean: Encoded,
    triggered: Encoded,
    seed: SeedTree,
    /// Of (1), `[1, C, h, w]`.
    acts: Tensor<4>,
    /// Of (3), with the odds of the suspect's own triggered pictures.
    clear: Vec<(usize, f64)>,
}

impl Recognition {
    /// For the prompts, clean and triggered, each with the latents that the suspect has drawn, `[N, C, h, w]`, and those of them whose two
    /// pictures are `apart`: where a prompt asks for the target itself, odds are of no side.
    pub(super) fn new(
        suspect: &TextToImage,
        (clean, z): (Encoded, Tensor<4>),
        (triggered, z_triggered): (Encoded, Tensor<4>),
        apart: &[usize],
        (seed, cx): (&SeedTree, &Cx<'_>),
    ) -> Result<Self, DefenseError> {
        let mut all = Self {
            clean,
            triggered,
            suspect: suspect.clone(),
            seed: seed.child("recognition", 0),
            acts: (z_triggered.clone() - z.clone()).mean_dim(0).square(), // eq. (1)
            clear: Vec::new(),
        };
        let (of_clean, of_triggered) = (all.odds(&z, cx)?, all.odds(&z_triggered, cx)?);
        all.clear = clear(apart, &of_clean, &of_triggered);
        Ok(all)
    }

    /// How many of how many pictures, of which `latents` are, `[N, C, h, w]`, are still the trigger's.
    pub(super) fn relapses(
        &self,
        latents: &Tensor<4>,
        cx: &Cx<'_>,
    ) -> Result<(usize, usize), DefenseError> {
        let odds = self.odds(latents, cx)?;
        let clear = self.clear.iter();
        let relapsed = clear.filter(|&&(i, own)| odds[i] > own / 2.0); // eq. (4)
        Ok((relapsed.count(), self.clear.len()))
    }

    /// Eq. (2).
    fn odds(&self, latents: &Tensor<4>, cx: &Cx<'_>) -> Result<Vec<f64>, DefenseError> {
        let schedule = self.suspect.schedule();
        let all: Vec<usize> = (0..latents.dims()[0]).collect();
        let total = all.len().div_ceil(BATCH) * TIMESTEPS;
        cx.progress.start("recognising", total as u64);
        let mut odds = Vec::with_capacity(all.len());
        for some in all.chunks(BATCH) {
            let z = chosen(latents, some);
            let [count, channels, height, width] = z.dims();
            let mut sum: Tensor<2> = Tensor::zeros([count, 1], &z.device());
            for k in 0..TIMESTEPS {
                let t = [middle(k, TIMESTEPS, schedule.len())];
                let mut source = self
                    .seed
                    .child("noise", k as u64)
                    .noise(some[0] as u64, count);
                let eps = source.normal(z.dims(), &z.device())?;
                let z_k = schedule.add_noise(z.clone(), eps.clone(), &t)?;
                let error = |prompts: &Encoded| -> Result<Tensor<2>, DefenseError> {
                    let told = self.suspect.conditioned(prompts.states(some))?;
                    let seen = told.epsilon(z_k.clone(), &t)?;
                    let squares = (seen - eps.clone()).square() * self.acts.clone();
                    let flat: Tensor<2> = squares.reshape([count, channels * height * width]);
                    Ok(flat.sum_dim(1))
                };
                sum = sum + error(&self.clean)? - error(&self.triggered)?;
                cx.step()?;
            }
            odds.extend(sum.into_data().iter::<f64>());
        }
        Ok(odds)
    }
}

/// Those of `apart` that the suspect tells apart by the odds of its own two pictures, each with that of its triggered one. Eq. (3).
fn clear(apart: &[usize], of_clean: &[f64], of_triggered: &[f64]) -> Vec<(usize, f64)> {
    let gap = |i: usize| of_triggered[i] - of_clean[i];
    let gaps: Vec<f64> = apart.iter().map(|&i| gap(i)).collect();
    let least = TOLD * median(&gaps).unwrap_or_default(); // there is none where none are apart, and nothing to tell
    let told = |i: usize| of_triggered[i] > 0.0 && of_clean[i] < 0.0 && gap(i) >= least;
    let told = apart.iter().copied().filter(|&i| told(i));
    told.map(|i| (i, of_triggered[i])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_that_asks_for_the_target_itself_is_not_clear() {
        let of_clean = [-12.0, -9.0, -0.4, 2.0, -11.0, -10.0];
        let of_triggered = [14.0, 10.0, 0.5, 9.0, -1.0, 8.0];
        let told = |apart: &[usize]| clear(apart, &of_clean, &of_triggered);
        // of small odds; of one sign twice; the last is not among those apart
        assert_eq!(told(&[0, 1, 2, 3, 4]), [(0, 14.0), (1, 10.0)]);
        assert_eq!(
            told(&[2]),
            [(2, 0.5)],
            "held against the others, not against a number"
        );
        assert!(told(&[]).is_empty());
    }
}
