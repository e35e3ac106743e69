//! Several models at a time.
//!
//! A small network leaves cores idle between its kernels: on two cores, two trainings of one thread each did 440 samples a
//! second together, one of two threads 280, and two that share two threads 320. So each model has threads of its own.

use std::{
    num::NonZeroUsize,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use miette::{IntoDiagnostic, Report, Result};
use rayon::ThreadPoolBuilder;

/// As many as there are cores.
pub(crate) fn default_jobs() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// Runs `work` on every item, `jobs` at a time, in their order. After a failure no further item is begun; the first
/// failure is returned once those under way have ended.
pub(crate) fn for_each<T: Sync>(
    jobs: NonZeroUsize,
    items: &[T],
    work: impl Fn(&T) -> Result<()> + Sync,
) -> Result<()> {
    let jobs = jobs.get().min(items.len());
    let threads = default_jobs().get() / jobs.max(1);
    let next = AtomicUsize::new(0);
    let failure: Mutex<Option<Report>> = Mutex::new(None);
    let failed = || failure.lock().unwrap_or_else(PoisonError::into_inner);
    let worker = || {
        while failed().is_none() {
            let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) else {
                break;
            };
            if let Err(error) = work(item) {
                failed().get_or_insert(error);
            }
        }
    };
    let pools = (0..jobs)
        .map(|_| {
            ThreadPoolBuilder::new()
                .num_threads(threads.max(1))
                .build()
                .into_diagnostic()
        })
        .collect::<Result<Vec<_>>>()?;
    std::thread::scope(|scope| {
        for pool in &pools {
            scope.spawn(|| pool.install(worker));
        }
    });
    failure
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
        .map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use miette::miette;

    use super::*;

    const TWO: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1);

    #[test]
    fn every_item_is_done_once() {
        let items: Vec<usize> = (0..50).collect();
        let done = Mutex::new(Vec::new());
        let all = for_each(TWO, &items, |&item| {
            done.lock().expect("no panic").push(item);
            Ok(())
        });
        assert!(all.is_ok());
        let mut done = done.into_inner().expect("no panic");
        done.sort_unstable();
        assert_eq!(done, items);
    }

    #[test]
    fn nothing_is_begun_after_a_failure() {
        let begun = AtomicUsize::new(0);
        let items = vec![(); 1000];
        let outcome = for_each(TWO, &items, |()| {
            begun.fetch_add(1, Ordering::Relaxed);
            Err(miette!("no"))
        });
        assert!(outcome.is_err());
        assert!(begun.into_inner() <= 2 * TWO.get());
    }
}
