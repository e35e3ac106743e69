//! What several test programs share.

use depurate_defense::{Budget, CancelToken, Cx, NoJournal, Silent};
use depurate_diffusion::noise::SeedTree;

/// Calls `body` with surroundings that nobody watches or stops, and the randomness of `seed`.
pub fn with_cx<T>(seed: u64, body: impl FnOnce(&Cx<'_>) -> T) -> T {
    let cancel = CancelToken::default();
    body(&Cx {
        rng: SeedTree::new(seed),
        budget: Budget::UNLIMITED,
        cancel: &cancel,
        progress: &Silent,
        journal: &NoJournal,
    })
}
