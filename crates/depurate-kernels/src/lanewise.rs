//! Passes that treat every element for itself: a function of vectors is all that they write.

use crate::isa::{self, Kernel};
use crate::parallel::{self, Shared};
use crate::shape::check;
use crate::simd::Simd;

/// A function of `IN` read-only operands and of what was in `OUT` others, which gives what they hold afterwards.
pub(crate) trait Lanewise<const IN: usize, const OUT: usize>: Copy + Send + Sync {
    /// # Safety
    /// As for [`Simd`]: register arithmetic only.
    unsafe fn at<S: Simd>(self, x: [S::V; IN], before: [S::V; OUT]) -> [S::V; OUT];
}

/// Applies `f` to all elements. All slices have the length of the first output.
#[track_caller]
pub(crate) fn run<const IN: usize, const OUT: usize, F: Lanewise<IN, OUT>>(
    f: F,
    inputs: [&[f32]; IN],
    outputs: [&mut [f32]; OUT],
) {
    let length = outputs.first().map_or(0, |first| first.len());
    for input in &inputs {
        check("an input", input, length);
    }
    for output in &outputs {
        check("an output", output, length);
    }
    let isa = isa::current();
    let tasks = parallel::tasks(length, parallel::LEAST);
    let outputs = outputs.map(Shared::write);
    parallel::for_each(tasks, |task| {
        isa.run(Range {
            f,
            inputs,
            outputs,
            range: parallel::range(length, tasks, task),
        });
    });
}

/// Some elements. Tasks write disjoint elements of the outputs.
struct Range<'a, const IN: usize, const OUT: usize, F> {
    f: F,
    inputs: [&'a [f32]; IN],
    outputs: [Shared; OUT],
    range: std::ops::Range<usize>,
}

impl<const IN: usize, const OUT: usize, F: Lanewise<IN, OUT>> Kernel for Range<'_, IN, OUT, F> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the range exists in all slices and is this task's in the outputs.
        unsafe {
            let zero = S::splat(0.0);
            let (mut x, mut y) = ([zero; IN], [zero; OUT]);
            let mut i = self.range.start;
            while i + S::LANES <= self.range.end {
                for j in 0..IN {
                    x[j] = S::load(self.inputs[j].as_ptr().add(i));
                }
                for j in 0..OUT {
                    y[j] = S::load(self.outputs[j].at(i));
                }
                let y = self.f.at::<S>(x, y);
                for j in 0..OUT {
                    S::store(self.outputs[j].at(i), y[j]);
                }
                i += S::LANES;
            }
            let left = self.range.end - i;
            if left > 0 {
                for j in 0..IN {
                    x[j] = S::load_partial(self.inputs[j].as_ptr().add(i), left, zero);
                }
                for j in 0..OUT {
                    y[j] = S::load_partial(self.outputs[j].at(i), left, zero);
                }
                let y = self.f.at::<S>(x, y);
                for j in 0..OUT {
                    S::store_partial(self.outputs[j].at(i), left, y[j]);
                }
            }
        }
    }
}
