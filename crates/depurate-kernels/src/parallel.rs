//! Splitting work over rayon's threads.

use rayon::prelude::*;

/// Elements of cheap work below which waking another thread costs more than it saves.
pub(crate) const LEAST: usize = 16 * 1024;

/// Runs `f(0), …, f(tasks - 1)`, in parallel if there is more than one task and thread.
pub(crate) fn for_each(tasks: usize, f: impl Fn(usize) + Send + Sync) {
    if tasks <= 1 || rayon::current_num_threads() == 1 {
        (0..tasks).for_each(f);
    } else {
        (0..tasks).into_par_iter().for_each(&f);
    }
}

/// How many tasks of equal size to cut `items` into: none smaller than `least`, and some more than there are threads,
/// so that an unlucky thread does not hold up the others.
pub(crate) fn tasks(items: usize, least: usize) -> usize {
    let threads = rayon::current_num_threads();
    let most = if threads == 1 { 1 } else { threads * 4 };
    (items / least.max(1)).clamp(1, most).min(items.max(1))
}

/// The `part`-th of `parts` nearly equal consecutive ranges of `0..items`.
pub(crate) fn range(items: usize, parts: usize, part: usize) -> std::ops::Range<usize> {
    items * part / parts..items * (part + 1) / parts
}

/// A pointer that tasks share; every task touches its own elements behind it (or only reads).
#[derive(Clone, Copy)]
pub(crate) struct Shared(*mut f32);

// SAFETY: the pointer itself is plain data; disjointness of writes is argued where it is used.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    pub(crate) fn write(slice: &mut [f32]) -> Self {
        Shared(slice.as_mut_ptr())
    }
    /// The same memory from `offset` on.
    ///
    /// # Safety
    /// `offset` lies in the slice that it was made of.
    pub(crate) unsafe fn part(self, offset: usize) -> Self {
        // SAFETY: as the caller promises.
        Shared(unsafe { self.0.add(offset) })
    }
    /// The element at `offset`.
    ///
    /// # Safety
    /// `offset` lies in (or one past) the slice that it was made of.
    #[inline(always)]
    pub(crate) unsafe fn at(self, offset: usize) -> *mut f32 {
        // SAFETY: as the caller promises.
        unsafe { self.0.add(offset) }
    }
}
