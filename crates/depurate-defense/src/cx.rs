//! What every algorithm is given besides its subject: randomness, time, a way to be stopped, a way
//! to say how far it is. Nothing of this is global.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use depurate_diffusion::noise::SeedTree;
use serde::{Serialize, de::DeserializeOwned};

use crate::DefenseError;

/// Set by a signal handler or another thread to stop an algorithm at its next step.
#[derive(Debug, Default)]
pub struct CancelToken(AtomicBool);

impl CancelToken {
    /// Asks for a stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
    /// Whether a stop was asked for.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Wall-clock time that an algorithm may still take.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    deadline: Option<Instant>,
}

impl Budget {
    /// No limit.
    pub const UNLIMITED: Self = Self { deadline: None };

    /// `duration` from now.
    pub fn lasting(duration: Duration) -> Self {
        Self {
            deadline: Instant::now().checked_add(duration),
        }
    }
    /// Whether the time is spent.
    pub fn is_spent(&self) -> bool {
        self.deadline
            .is_some_and(|deadline| Instant::now() >= deadline)
    }
}

/// Receives how far an algorithm is.
pub trait Progress: Sync {
    /// A stage with `total` steps begins.
    fn start(&self, stage: &str, total: u64);
    /// `steps` more are done.
    fn advance(&self, steps: u64);
}

/// Progress that nobody watches.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn start(&self, _stage: &str, _total: u64) {}
    fn advance(&self, _steps: u64) {}
}

/// Where a long algorithm leaves its finished stages, so that a killed run can go on.
///
/// A journal belongs to one model, one set of parameters and one seed; whoever opens it sees to that.
pub trait Journal: Sync {
    /// The result of `stage`, if an earlier run finished it.
    fn load(&self, stage: &str) -> Option<Vec<u8>>;
    /// Keeps the result of `stage`. Failing to keep it costs time on resumption, nothing else.
    fn save(&self, stage: &str, result: &[u8]);
}

/// A journal that forgets.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoJournal;

impl Journal for NoJournal {
    fn load(&self, _stage: &str) -> Option<Vec<u8>> {
        None
    }
    fn save(&self, _stage: &str, _result: &[u8]) {}
}

/// An algorithm's surroundings.
pub struct Cx<'a> {
    /// Root of all randomness: a result depends on the seed, the algorithm and the item only.
    pub rng: SeedTree,
    /// Time left.
    pub budget: Budget,
    /// Asked at every step.
    pub cancel: &'a CancelToken,
    /// Told about every step.
    pub progress: &'a dyn Progress,
    /// Finished stages of an interrupted run.
    pub journal: &'a dyn Journal,
}

impl Cx<'_> {
    /// Called once a step: an error when the caller asked to stop or the time is spent.
    ///
    /// # Errors
    /// [`DefenseError::Cancelled`] or [`DefenseError::BudgetSpent`].
    pub fn step(&self) -> Result<(), DefenseError> {
        self.steps(1)
    }

    /// [`Cx::step`] of several steps at once.
    ///
    /// # Errors
    /// As [`Cx::step`].
    pub fn steps(&self, steps: u64) -> Result<(), DefenseError> {
        if self.cancel.is_cancelled() {
            return Err(DefenseError::Cancelled);
        }
        if self.budget.is_spent() {
            return Err(DefenseError::BudgetSpent);
        }
        self.progress.advance(steps);
        Ok(())
    }

    /// The result of `stage`: from the journal if it is there, else computed and kept.
    ///
    /// # Errors
    /// Whatever `compute` returns.
    pub fn stage<T: Serialize + DeserializeOwned>(
        &self,
        stage: &str,
        compute: impl FnOnce() -> Result<T, DefenseError>,
    ) -> Result<T, DefenseError> {
        let kept = self
            .journal
            .load(stage)
            .and_then(|bytes| serde_json::from_slice(&bytes).ok());
        if let Some(result) = kept {
            tracing::debug!(stage, "taken from the journal");
            return Ok(result);
        }
        let result = compute()?;
        if let Ok(bytes) = serde_json::to_vec(&result) {
            self.journal.save(stage, &bytes);
        }
        Ok(result)
    }
}
