//! Working memory that is kept per thread and used again, so that steady state allocates nothing.

use std::cell::RefCell;

/// Slack behind every buffer, in floats: partial vectors may be read (never written) past the end.
const SLACK: usize = 64;
/// Buffers start on a cache line, so whole vectors never straddle two.
const ALIGN: usize = 64;

thread_local! {
    static LISTS: RefCell<Vec<Vec<usize>>> = const { RefCell::new(Vec::new()) };
    /// A stack, because a thread that waits inside one kernel may start another.
    static POOL: RefCell<Vec<Vec<Vec<f32>>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer as scratch memory has it (aligned, with slack), for what is kept. It starts with zeros.
#[derive(Debug)]
pub(crate) struct Aligned {
    buffer: Vec<f32>,
    start: usize,
    length: usize,
}

impl Aligned {
    pub(crate) fn new(length: usize) -> Self {
        let buffer = vec![0.0; length + SLACK + ALIGN / size_of::<f32>()];
        let start = buffer.as_ptr().align_offset(ALIGN);
        Aligned {
            buffer,
            start,
            length,
        }
    }
    pub(crate) fn slice(&self) -> &[f32] {
        &self.buffer[self.start..self.start + self.length]
    }
    pub(crate) fn slice_mut(&mut self) -> &mut [f32] {
        &mut self.buffer[self.start..self.start + self.length]
    }
}

/// `N` buffers that go back to the thread's pool in the end.
pub(crate) struct Scratch<const N: usize> {
    buffers: Vec<Vec<f32>>,
    lengths: [usize; N],
}

/// Buffers of the given lengths. Their contents are arbitrary (but initialised) floats.
pub(crate) fn take<const N: usize>(lengths: [usize; N]) -> Scratch<N> {
    let mut buffers = POOL
        .with(|pool| pool.borrow_mut().pop())
        .unwrap_or_default();
    if buffers.len() < N {
        buffers.resize_with(N, Vec::new);
    }
    for (buffer, length) in buffers.iter_mut().zip(lengths) {
        let needed = length + SLACK + ALIGN / size_of::<f32>();
        if buffer.len() < needed {
            // a fresh zeroed allocation is cheaper than growing, which would copy
            *buffer = vec![0.0; needed];
        }
    }
    Scratch { buffers, lengths }
}

impl<const N: usize> Scratch<N> {
    /// The buffers. (Not a closure's arguments: kernels must stay in one function, see [`crate::simd::Simd`].)
    pub(crate) fn slices(&mut self) -> [&mut [f32]; N] {
        let mut buffers = self.buffers.iter_mut();
        self.lengths.map(|length| {
            let Some(buffer) = buffers.next() else {
                return &mut [][..];
            };
            let start = buffer.as_ptr().align_offset(ALIGN);
            &mut buffer[start..start + length]
        })
    }
}

impl<const N: usize> Drop for Scratch<N> {
    fn drop(&mut self) {
        let buffers = std::mem::take(&mut self.buffers);
        // when the thread ends, its pool may be gone before its last scratch
        let _ = POOL.try_with(|pool| pool.borrow_mut().push(buffers));
    }
}

/// Frees the working memory that every thread keeps. The next kernels allocate theirs anew: worth it between networks whose layers
/// differ much in size.
pub fn release() {
    let clear = || POOL.with(|pool| pool.borrow_mut().clear());
    clear();
    rayon::broadcast(|_| clear());
}

/// A list of offsets that goes back to the thread's pool in the end.
pub(crate) struct Offsets(Vec<usize>);

/// An empty list of offsets.
pub(crate) fn offsets() -> Offsets {
    let mut list = LISTS
        .with(|pool| pool.borrow_mut().pop())
        .unwrap_or_default();
    list.clear();
    Offsets(list)
}

impl std::ops::Deref for Offsets {
    type Target = Vec<usize>;
    fn deref(&self) -> &Vec<usize> {
        &self.0
    }
}

impl std::ops::DerefMut for Offsets {
    fn deref_mut(&mut self) -> &mut Vec<usize> {
        &mut self.0
    }
}

impl Drop for Offsets {
    fn drop(&mut self) {
        let list = std::mem::take(&mut self.0);
        let _ = LISTS.try_with(|pool| pool.borrow_mut().push(list));
    }
}
