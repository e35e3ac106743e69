//! # SAU in the latent: a trigger's place in a picture gets the clean picture back
//!
//! No weight is changed: what the model drew for a triggered prompt is mended before it is decoded, where the trigger has acted.
//!
//! ## Paper
//! Jha, Aravindan, Salaway, Bhide and Yaldiz, "Backdoor defense in diffusion models via spatial attention unlearning",
//! arXiv:2504.18563. Implements the algorithm as its authors' report and code have it.
//!
//! ## Notation
//! | code | meaning | shape |
//! |---|---|---|
//! | `h~`, `h` | final latents of the triggered prompt and of the clean one, from the same noise | `[B, C, h, w]` |
//! | `d`, `A` | the trigger's mean change, and the attention to it: [`super::Footprint`] | `[1, C, h, w]`, `[h, w]` |
//! | `s` | cosine over channels of `h~` and `d` | `[B, 1, h, w]` |
//! | `m_p`, `m_s` | primary and secondary mask | `[B, 1, h, w]` |
//!
//! ```text
//! as published:
//! m_p = sigma(12 (1[s > 0.5] - 0.5)),  m_s = sigma(12 (1[A > 0.3] - 0.5))                    (1)
//! h'  = blur( h~ (1 - m_p) (1 - m_s) + h m_p + 0.5 h m_s )      Gaussian of 0.2 over five     (2)
//! corrected:
//! m_p = sigma(12 (s - 0.5)) 1[|d| above its median],  m_s = sigma(12 (A - 0.3))              (3)
//! m   = 1 - (1 - m_p) (1 - 0.5 m_s),  h' = (1 - m) h~ + m h                                  (4)
//! ```
//!
//! ## Needs
//! The trigger, and the clean prompt's own latent from the same noise. Who has that can as well take the trigger out of the prompt:
//! as a defence this is of use where pictures of a stripped prompt are not wanted as they are.
//!
//! ## Deviations
//! None of the published form. The corrected one beside it mends what is wrong there: its masks are sigmoids of zeros and ones, so
//! that nothing is smooth; its weights add up to 1.5 where both masks are on and to 0.5 where the second alone is; its cosine has no
//! size, so that a fifth of the places with four channels passes where the trigger did nothing; its last blur does nothing.
//!
//! ## Fails when
//! the trigger changes the whole picture (a style): places are mended one by one; or when the clean latent is not there.
//!
//! ## Cost
//! A second drawing of each picture.

use burn::tensor::{Tensor, activation::sigmoid};
use depurate_report::Paper;
use serde::{Deserialize, Serialize};

use super::footprint::{Footprint, blurred, spread};
use crate::DefenseError;

/// The repair's id.
pub const ID: &str = "sau-latent";
/// Where it comes from.
pub const PAPER: Paper = Paper {
    authors: "Jha, Aravindan, Salaway, Bhide, Yaldiz",
    title: "Backdoor Defense in Diffusion Models via Spatial Attention Unlearning",
    venue: "arXiv",
    year: 2025,
    arxiv: Some("2504.18563"),
    implements: "the edit of latents, as published and corrected",
};
/// Steepness of the masks, and their thresholds.
pub(super) const STEEP: f64 = 12.0;
const COSINE: f64 = 0.5;
pub(super) const ATTENTION: f64 = 0.3;
/// Weight of the secondary mask.
pub(super) const SECONDARY: f64 = 0.5;
/// The blur of (2).
const LAST_BLUR: (usize, f64) = (2, 0.2);
/// Keeps a cosine finite.
const TINY: f64 = 1e-12;

/// How latents are blended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Blend {
    /// (3) and (4): a weighted mean of the two latents everywhere.
    #[default]
    Corrected,
    /// (1) and (2).
    Published,
}

/// Mends `triggered [B, C, h, w]`, `h~`, by `clean` of the same shape, `h`.
///
/// # Errors
/// When the shapes do not fit each other.
pub fn sau_latent(
    triggered: &Tensor<4>,
    clean: &Tensor<4>,
    footprint: &Footprint,
    blend: Blend,
) -> Result<Tensor<4>, DefenseError> {
    let shape @ [_, _, height, width] = triggered.dims();
    let fits = clean.dims() == shape
        && footprint.difference.dims()[1..] == shape[1..]
        && footprint.attention.dims() == [height, width];
    if !fits {
        return Err(DefenseError::Params {
            field: "latents",
            value: format!("{shape:?} and {:?}", clean.dims()),
            allowed: "two batches of one shape, that of the footprint",
        });
    }
    let (weight, clean_weight) = weights(triggered, footprint, blend);
    let mended = triggered.clone() * weight + clean.clone() * clean_weight; // eq. (2), (4)
    Ok(match blend {
        Blend::Published => blurred(mended, LAST_BLUR),
        Blend::Corrected => mended,
    })
}

/// What `h~` and `h` are multiplied by, `[B, C, h, w]` each.
fn weights(triggered: &Tensor<4>, footprint: &Footprint, blend: Blend) -> (Tensor<4>, Tensor<4>) {
    let shape = triggered.dims();
    let s = cosine(triggered, &footprint.difference).expand(shape);
    let attention = spread(&footprint.attention, shape);
    let soft = |x: Tensor<4>, at: f64| sigmoid((x - at) * STEEP);
    match blend {
        Blend::Published => {
            // eq. (1)
            let m_p = soft(s.greater_elem(COSINE).float(), 0.5);
            let m_s = soft(attention.greater_elem(ATTENTION).float(), 0.5);
            let weight = (m_p.clone().neg() + 1.0) * (m_s.clone().neg() + 1.0);
            (weight, m_p + m_s * SECONDARY)
        }
        Blend::Corrected => {
            // eq. (3)
            let size = footprint.difference.clone().square().sum_dim(1).sqrt();
            let moved = size.clone().greater_elem(median(size)).float();
            let m_p = soft(s, COSINE) * moved.expand(shape);
            let m_s = soft(attention, ATTENTION);
            let weight = (m_p.neg() + 1.0) * ((m_s * SECONDARY).neg() + 1.0); // 1 - m of eq. (4)
            (weight.clone(), weight.neg() + 1.0)
        }
    }
}

/// Cosine over channels, `[B, 1, h, w]`.
fn cosine(a: &Tensor<4>, b: &Tensor<4>) -> Tensor<4> {
    let dot = (a.clone() * b.clone()).sum_dim(1);
    let norm = |x: &Tensor<4>| x.clone().square().sum_dim(1).sqrt();
    dot / (norm(a) * norm(b) + TINY)
}

fn median(values: Tensor<4>) -> f64 {
    let mut all: Vec<f64> = values.into_data().iter::<f64>().collect();
    all.sort_by(f64::total_cmp);
    all.get((all.len().max(1) - 1) / 2).copied().unwrap_or(0.0)
}
