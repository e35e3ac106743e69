//! Winograd weights that are made once, for small layers whose weights do not change.
//!
//! They are four times as large as the weights. While they fit into the second-level cache, having them saves a tenth of a
//! pass with one thread and up to a third with two, because nobody waits for the others to have made them; beyond, reading
//! them from memory costs more than making them again (docs/performance.md).

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use burn_flex::FlexTensor;
use depurate_kernels::conv3x3::{self, Transformed};

/// Bytes that one direction of a layer may keep: up to 64 channels on both sides.
const LARGEST: usize = 640 << 10;
/// Bytes that all layers of the process may keep together; those that come first do.
const BUDGET: usize = 64 << 20;

static KEPT: AtomicUsize = AtomicUsize::new(0);

/// What a layer keeps of its weights. Clones share it.
#[derive(Clone, Default)]
pub struct KeptWeights(Arc<Mutex<Option<Kept>>>);

struct Kept {
    /// The weights that it was made of. Having them here, nobody changes them in place, and their address stays theirs.
    weights: FlexTensor,
    transformed: Arc<Transformed>,
    bytes: usize,
}

impl Drop for Kept {
    fn drop(&mut self) {
        KEPT.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl KeptWeights {
    /// What is kept of `weights [c_out, c_in, 3, 3]`, which are contiguous; none if they do not use it or do not fit.
    pub(super) fn of(
        &self,
        weights: &FlexTensor,
        (c_in, c_out): (usize, usize),
    ) -> Option<Arc<Transformed>> {
        let bytes = 2 * Transformed::bytes(c_in, c_out); // both directions
        if !conv3x3::is_winograd(c_in, c_out) || bytes > 2 * LARGEST {
            return None;
        }
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = slot.as_ref()
            && Arc::ptr_eq(&kept.weights.data_arc(), &weights.data_arc())
            && kept.weights.layout() == weights.layout()
        {
            return Some(Arc::clone(&kept.transformed));
        }
        *slot = None;
        let room = |kept: usize| (kept + bytes <= BUDGET).then_some(kept + bytes);
        KEPT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room)
            .ok()?;
        let transformed = Arc::new(Transformed::default());
        *slot = Some(Kept {
            weights: weights.clone(),
            transformed: Arc::clone(&transformed),
            bytes,
        });
        Some(transformed)
    }
}

impl fmt::Debug for KeptWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeptWeights")
    }
}
