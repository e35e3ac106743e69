//! Working memory that is kept per thread and used again, so that steady state allocates nothing.

use std::cell::RefCell;

/// Slack behind every buffer, in floats: partial vectors may be read (never written) past the end.
const SLACK: usize = 64;
/// Buffers start on a cache line, so whole vectors never straddle two.
const ALIGN: usize = 64;

thread_local! {
    /// A stack, because a thread that waits inside one kernel may start another.
    static POOL: RefCell<Vec<Vec<Vec<f32>>>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with `N` buffers of the given lengths. Their contents are arbitrary (but initialised) floats.
pub(crate) fn with<R, const N: usize>(
    lengths: [usize; N],
    f: impl FnOnce([&mut [f32]; N]) -> R,
) -> R {
    let mut set = POOL.with(|pool| pool.borrow_mut().pop()).unwrap_or_default();
    if set.len() < N {
        set.resize_with(N, Vec::new);
    }
    let mut buffers = set.iter_mut();
    let slices = lengths.map(|length| {
        let Some(buffer) = buffers.next() else { return &mut [][..] };
        let needed = length + SLACK + ALIGN / size_of::<f32>();
        if buffer.len() < needed {
            // a fresh zeroed allocation is cheaper than growing, which would copy
            *buffer = vec![0.0; needed];
        }
        let start = buffer.as_ptr().align_offset(ALIGN);
        &mut buffer[start..start + length]
    });
    let result = f(slices);
    POOL.with(|pool| pool.borrow_mut().push(set));
    result
}
