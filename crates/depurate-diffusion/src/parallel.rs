//! Several networks at work at a time, each with threads of its own.
//!
//! A small network leaves cores idle between its kernels: on two cores, two trainings of one thread each did 440 samples a
//! second together, one of two threads 280, and two that share two threads 320.

use std::{
    num::NonZeroUsize,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use rayon::{ThreadPool, ThreadPoolBuilder};

/// As many workers as there are cores.
pub fn cores() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// Does `work` with every item, `workers` at a time, which share the threads of the caller's pool out evenly, at least one each. Items
/// are begun in their order, and so are the results. After a failure no further item is begun.
///
/// # Errors
/// The first failure, once the items under way have ended.
pub fn map<T: Sync, R: Send, E: Send>(
    workers: usize,
    items: &[T],
    work: impl Fn(&T) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    let workers = workers.clamp(1, items.len().max(1));
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, R)>> = Mutex::new(Vec::new());
    let failure: Mutex<Option<E>> = Mutex::new(None);
    let worker = || {
        while locked(&failure).is_none() {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else {
                break;
            };
            match work(item) {
                Ok(result) => locked(&done).push((index, result)),
                Err(error) => {
                    locked(&failure).get_or_insert(error);
                }
            }
        }
    };
    let threads = (rayon::current_num_threads() / workers).max(1);
    let pools: Vec<ThreadPool> = match workers {
        1 => Vec::new(),
        _ => (0..workers)
            .flat_map(|_| ThreadPoolBuilder::new().num_threads(threads).build())
            .collect(),
    };
    if pools.is_empty() {
        worker(); // alone, or the system gives no more threads: where the caller is
    }
    std::thread::scope(|scope| {
        for pool in &pools {
            scope.spawn(|| pool.install(worker));
        }
    });
    if let Some(error) = inner(failure) {
        return Err(error);
    }
    let mut done = inner(done);
    done.sort_unstable_by_key(|&(index, _)| index);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn inner<T>(mutex: Mutex<T>) -> T {
    mutex.into_inner().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_done_once_and_results_are_in_order() {
        let items: Vec<usize> = (0..50).collect();
        for workers in [0, 1, 2, 100] {
            let begun = AtomicUsize::new(0);
            let twice = map(workers, &items, |&item| {
                begun.fetch_add(1, Ordering::Relaxed);
                Ok::<_, ()>(2 * item)
            });
            let expected: Vec<usize> = items.iter().map(|item| 2 * item).collect();
            assert_eq!(twice, Ok(expected));
            assert_eq!(begun.into_inner(), items.len());
        }
        assert_eq!(map(2, &[], |&(): &()| Ok::<(), ()>(())), Ok(Vec::new()));
    }

    #[test]
    fn nothing_is_begun_after_a_failure() {
        for workers in [1, 2] {
            let begun = AtomicUsize::new(0);
            let outcome = map(workers, &[(); 1000], |()| {
                begun.fetch_add(1, Ordering::Relaxed);
                Err::<(), _>("no")
            });
            assert_eq!(outcome, Err("no"));
            assert!(begun.into_inner() <= 2 * workers);
        }
    }

    #[test]
    fn workers_share_the_threads() {
        let pool = ThreadPoolBuilder::new().num_threads(4).build();
        let pool = pool.expect("four threads");
        let threads = |workers| {
            pool.install(|| {
                map(workers, &[(); 8], |()| {
                    Ok::<_, ()>(rayon::current_num_threads())
                })
            })
        };
        assert_eq!(threads(2), Ok(vec![2; 8]));
        assert_eq!(threads(8), Ok(vec![1; 8]));
        assert_eq!(threads(1), Ok(vec![4; 8]));
    }
}
