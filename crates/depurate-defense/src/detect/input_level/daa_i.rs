//! # DAA-I: does EOS attention change like that of the other tokens?
//!
//! Between calls of the UNet the map of every token changes. The paper finds that under a trigger the map of EOS changes less,
//! relative to the other tokens' maps, early in sampling; DAA-I sums that difference over a few changes.
//!
//! ## Paper
//! Wang et al., "Dynamic Attention Analysis for Backdoor Detection in Text-to-Image Diffusion Models", TPAMI 2025,
//! arXiv:2504.20518: DAA-I.
//!
//! ## Notation
//! | code | paper | shape |
//! |---|---|---|
//! | `before`, `after` | M_t, M_{t+1}: maps at two calls, [`CallMaps`] | `[L, h, w]` |
//! | `t` | index of a call, 0 is the first, at almost pure noise | |
//! | `Change::eos` | e_t: change of the last token's map | |
//! | `Change::content` | m_t: mean change of the tokens between BOS and EOS | |
//!
//! ## Method
//! ```text
//! d_t^l = || M_{t+1}^l - M_t^l ||_F                                  (1)
//! e_t   = d_t^{L-1},   m_t = sum_{l=1}^{L-2} d_t^l / D               (2)
//! released = sum_{t=first}^{last} (e_t - m_t),   score = -released   (3)
//! ```
//! `D` is `L - 2`, the number of tokens summed ([`ContentMean::Content`]), or `L` as in the released code
//! ([`ContentMean::Released`]). The paper's score is small under a trigger; here its sign is flipped.
//!
//! ## Needs
//! Attention maps of calls `0..=last + 1`: six with the default changes 3 and 4. A calibration on benign prompts of the same
//! model, sampler, seed and sites.
//!
//! ## Deviations
//! - The released code divides a sum over `L - 2` tokens by `L`, which makes short prompts look benign by a factor of
//!   `(L - 2) / L`; the paper as its notebook restates it sums from BOS to EOS and divides by `L - 1`. The default divides by
//!   the number of tokens summed; [`DaaIParams::reference`] reproduces the released code (test
//!   `released_scores_are_reproduced`).
//! - The window is the detection script's, changes 3 and 4; the authors' notebook has 2, 3 and 4.
//! - No threshold of the paper is a default. [`RELEASED_THRESHOLD`] belongs to the reference mode.
//! - Maps that are the same for all tokens are an error; the released code scores them 0.
//! - Norms are in double precision.
//!
//! ## Fails when
//! the attack leaves EOS alone, or the sampler has fewer than six calls. The score moves with the content of a prompt more
//! than the released threshold is large, hence the calibration by number of tokens. Nothing is known of text encoders
//! whose EOS does not gather attention, nor of attackers who train against the score.
//!
//! ## Cost
//! Six calls of the UNet, which are also the first calls of a generation with the same seed and sampler; then
//! `O(L h w)` for each change.

use depurate_report::{Access, AlgorithmId, AlgorithmInfo, Kind, Paper, ReferenceCode, Status};
use serde::{Deserialize, Serialize};

use super::{CallMaps, MapSource, PromptDetector, PromptScore, attention_maps::distance, json};
use crate::DefenseError;

/// The detector's id.
pub const ID: &str = "daa-i";
/// The paper.
pub const PAPER: Paper = Paper {
    authors: "Wang et al.",
    title: "Dynamic Attention Analysis for Backdoor Detection in Text-to-Image Diffusion Models",
    venue: "TPAMI",
    year: 2025,
    arxiv: Some("2504.20518"),
    implements: "",
};
/// The authors' code.
pub const REFERENCE: ReferenceCode = ReferenceCode {
    repository: "Robin-WZQ/DAA",
    commit: "4cd2400a08afb2918e18528c3301f88791b7ced6",
    licence: "MIT",
};
/// The released code calls a prompt backdoored when `released` is below this.
pub const RELEASED_THRESHOLD: f64 = 0.000_489_037_214_720_156;
/// Most calls that a window may reach.
const MOST_CALLS: usize = 1000;

/// What the sum over the content tokens is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContentMean {
    /// Their number, `L - 2`.
    Content,
    /// `L`, as in the released code.
    Released,
}

/// Parameters. The default is the corrected mean over the released window.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DaaIParams {
    /// What the mean of eq. (2) divides by.
    pub mean: ContentMean,
    /// First change of the sum: change `t` is from call `t` to call `t + 1`.
    pub first: usize,
    /// Last change of the sum, included.
    pub last: usize,
}

impl Default for DaaIParams {
    fn default() -> Self {
        Self {
            mean: ContentMean::Content,
            first: 3,
            last: 4,
        }
    }
}

impl DaaIParams {
    /// As in the released code.
    pub fn reference() -> Self {
        Self {
            mean: ContentMean::Released,
            ..Self::default()
        }
    }

    /// Checks the parameters and makes the detector.
    ///
    /// # Errors
    /// When the window is empty or reaches too far.
    pub fn build(self) -> Result<DaaI, DefenseError> {
        if self.first > self.last || self.last >= MOST_CALLS {
            return Err(DefenseError::Params {
                field: "last",
                value: self.last.to_string(),
                allowed: "from `first` to 999",
            });
        }
        Ok(DaaI { params: self })
    }
}

/// How much the maps of EOS and of the content change from one call to the next.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// `e_t`.
    pub eos: f64,
    /// `m_t`.
    pub content: f64,
}

impl Change {
    /// From the maps at two calls.
    pub fn between(before: &CallMaps, after: &CallMaps, mean: ContentMean) -> Self {
        let tokens = before.tokens();
        let mut changes = before
            .maps()
            .zip(after.maps())
            .map(|(before, after)| distance(before, after)); // eq. (1)
        let eos = changes.next_back().unwrap_or(0.0);
        let content: f64 = changes.skip(1).sum();
        let divisor = match mean {
            ContentMean::Content => tokens - 2,
            ContentMean::Released => tokens,
        };
        let content = content / divisor as f64; // eq. (2)
        Self { eos, content }
    }
}

/// The detector. Made by [`DaaIParams::build`].
#[derive(Debug, Clone)]
pub struct DaaI {
    params: DaaIParams,
}

impl PromptDetector for DaaI {
    fn info(&self) -> AlgorithmInfo {
        info()
    }

    fn scoring(&self) -> serde_json::Value {
        json(&self.params)
    }

    fn released_threshold(&self) -> Option<f64> {
        (self.params == DaaIParams::reference()).then_some(RELEASED_THRESHOLD)
    }

    fn score(&self, maps: &mut dyn MapSource) -> Result<PromptScore, DefenseError> {
        let &DaaIParams { mean, first, last } = &self.params;
        let calls = last + 2;
        let made = maps.first(calls)?;
        let window = made.get(first..calls).ok_or(DefenseError::NoSuchCall {
            call: last + 1,
            calls: made.len(),
        })?;
        if window.iter().all(CallMaps::are_identical) {
            return Err(DefenseError::IdenticalMaps);
        }
        let changes = window
            .windows(2)
            .map(|pair| Change::between(&pair[0], &pair[1], mean));
        let released = changes.map(|change| change.eos - change.content).sum(); // eq. (3)
        Ok(PromptScore::from_released(released, calls))
    }
}

/// Who and what this detector is.
pub fn info() -> AlgorithmInfo {
    AlgorithmInfo {
        id: AlgorithmId::from_static(ID),
        name: "DAA-I",
        kind: Kind::InputDetector,
        paper: Paper {
            implements: "DAA-I",
            ..PAPER
        },
        reference: Some(REFERENCE),
        needs: Access::ATTENTION,
        deviations: &[
            "mean over the tokens summed",
            "higher is more suspicious",
            "conformal threshold by number of tokens",
        ],
        status: Status::Preview,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::detect::input_level::{LazyMaps, TokenMaps};

    /// Maps of one pixel each: token `l` at call `t` is `f(l, t)`.
    fn pixel(tokens: usize, calls: usize, f: impl Fn(usize, usize) -> f32) -> TokenMaps {
        let values: Vec<f32> = (0..calls)
            .flat_map(|t| (0..tokens).map(move |l| (l, t)))
            .map(|(l, t)| f(l, t))
            .collect();
        TokenMaps::from_values(tokens, (1, 1), &values).unwrap()
    }

    #[test]
    fn eos_that_moves_less_than_the_content_is_suspicious() {
        // content moves by 0.5 a call, EOS by 0.125, BOS by 8
        let mut maps = pixel(4, 6, |l, t| [8.0, 0.5, 0.5, 0.125][l] * t as f32);
        let score = DaaIParams::default().build().unwrap().score(&mut maps);
        let score = score.unwrap();
        assert_eq!(score.score, 2.0 * (0.5 - 0.125));
        assert_eq!((score.released, score.calls), (-score.score, 6));
        // the released mean divides two tokens' changes by 4
        let reference = DaaIParams::reference().build().unwrap();
        assert_eq!(
            reference.score(&mut maps).unwrap().score,
            2.0 * (0.25 - 0.125)
        );
    }

    #[test]
    fn six_calls_are_made_and_a_shorter_sampler_is_refused() {
        let frames = pixel(3, 6, |l, t| (l * t) as f32);
        let mut lazy = LazyMaps::new(|t| Ok(frames.calls()[t].clone()));
        let detector = DaaIParams::default().build().unwrap();
        detector.score(&mut lazy).unwrap();
        assert_eq!(lazy.calls_made(), 6);
        let mut short = pixel(3, 5, |l, t| (l * t) as f32);
        assert!(matches!(
            detector.score(&mut short),
            Err(DefenseError::NoSuchCall { call: 5, calls: 5 })
        ));
    }

    #[test]
    fn only_the_reference_has_a_released_threshold_and_windows_are_checked() {
        let built = |params: DaaIParams| params.build().unwrap().released_threshold();
        assert_eq!(built(DaaIParams::reference()), Some(RELEASED_THRESHOLD));
        assert_eq!(built(DaaIParams::default()), None);
        let other = DaaIParams {
            first: 2,
            ..DaaIParams::reference()
        };
        assert_eq!(built(other.clone()), None);
        assert!(
            DaaIParams { first: 5, ..other }
                .build()
                .unwrap_err()
                .to_string()
                .contains("last")
        );
        assert!(serde_json::from_str::<DaaIParams>(r#"{"window": 3}"#).is_err());
    }
}
