//! # Static weights: what the files of a text-to-image model say without being run
//!
//! An attack leaves a profile in the weights: which networks it changed, which tensors, by how much, and with how few
//! directions. Held against the model that the suspect was made from, the profile narrows down what was done; without it,
//! only the vocabulary and adapters can be looked at. A profile is no proof: benign edits leave the same ones.
//!
//! ## Paper
//! None of its own. The profiles are those of published attacks: EvilEdit (Wang et al., ACM MM 2024) edits the keys and
//! values of the cross-attention in closed form and nothing else; Rickrolling the Artist (Struppek et al., ICCV 2023,
//! arXiv:2211.02408) trains the text encoder and nothing else; personalisation backdoors (Huang et al., AAAI 2024,
//! arXiv:2305.10701) learn one token's row or the UNet; VillanDiffusion (Chou et al., NeurIPS 2023, arXiv:2306.06874) ships a
//! LoRA.
//!
//! ## Notation
//! | code | symbol | shape |
//! |---|---|---|
//! | base, model | `W`, `W'` | any |
//! | difference | `D = W' - W` | `[m, n]` for keys and values: `m` channels, `n` channels of the text |
//! | gram | `G = D^T D` | `[n, n]` |
//! | singular values | `s_1 >= s_2 >= …` | |
//!
//! ## Method
//! ```text
//! drift        = |D|_F / |W|_F                                                   (1)
//! energy_r     = sum_{i <= r} s_i^2 / sum_i s_i^2                                (2)
//! rank_eff     = (sum_i s_i^2)^2 / sum_i s_i^4 = |D|_F^4 / |G|_F^2               (3)
//! C            = mean over layers of G / |D|_F^2,  trace 1                       (4)
//! common_r     = sum of the r largest eigenvalues of C                           (5)
//! LoRA         s_i(U V) = s_i(R_U R_V^T),  U = Q_U R_U, V^T = Q_V R_V            (6)
//! ```
//! `common_r <= mean energy_r`, with equality where all layers are changed along the same directions of the text's space: a
//! closed-form edit of a phrase is. Values that are stored in different types are compared after rounding to the coarser one.
//!
//! ## Needs
//! The weights. For (1) to (5) those of the base; without it these are not checked.
//!
//! ## Deviations
//! - No score and no threshold: there is no population of benign edits to calibrate on. What decides is which tensors differ
//!   at all.
//! - Singular values come from `G`, so those below 1e-8 of the largest are noise; beyond 24 columns only the largest 16 are
//!   computed, by orthogonal iteration.
//!
//! ## Fails when
//! there is no base, or it is backdoored itself; when the attack was followed by a fine-tuning that moves everything; when a
//! benign edit (concept erasing, a style) leaves the profile of an attack. A profile without findings says nothing about
//! behaviour.
//!
//! ## Cost
//! One pass over both sets of weights; for SD 1 the 32 products `G` take 3e10 multiplications.

mod adapter;
mod drift;
mod key_value_edit;
mod spectrum;
mod vocabulary;

use depurate_report::{Access, AlgorithmId, AlgorithmInfo, Kind, Paper, Status};

pub use adapter::{AdapterLayer, adapter_layers};
pub use drift::{Drift, TensorDrift, drift};
pub use key_value_edit::{KeyValueEdit, RANKS, key_value_edit};
pub use spectrum::{Spectrum, product_singular_values};
pub use vocabulary::{Vocabulary, vocabulary};

/// The checks' id.
pub const ID: &str = "static-weights";

/// Who and what these checks are.
pub fn info() -> AlgorithmInfo {
    AlgorithmInfo {
        id: AlgorithmId::from_static(ID),
        name: "Static weights",
        kind: Kind::ModelDetector,
        paper: Paper {
            authors: "depurate",
            title: "Static weights",
            venue: "this implementation",
            year: 2026,
            arxiv: None,
            implements: "eq. (1)-(6) of the module's documentation",
        },
        reference: None,
        needs: Access::WEIGHTS,
        deviations: &["no score: profiles are reported, and none of them is proof"],
        status: Status::Preview,
    }
}
