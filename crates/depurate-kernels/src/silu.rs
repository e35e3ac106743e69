//! SiLU: `x / (1 + e^-x)`.

use crate::isa::{self, Kernel};
use crate::parallel::{self, Shared};
use crate::shape::check;
use crate::simd::{Simd, sigmoid};

/// `y = x sigmoid(x)`.
pub fn forward(x: &[f32], y: &mut [f32]) {
    check("y", y, x.len());
    run(x, None, y);
}

/// The gradient with respect to the input, from the forward pass's input.
pub fn backward(x: &[f32], gy: &[f32], gx: &mut [f32]) {
    check("gy", gy, x.len());
    check("gx", gx, x.len());
    run(x, Some(gy), gx);
}

fn run(x: &[f32], gy: Option<&[f32]>, out: &mut [f32]) {
    let isa = isa::current();
    let tasks = parallel::tasks(x.len(), parallel::LEAST);
    let to = Shared::write(out);
    parallel::for_each(tasks, |task| {
        isa.run(Range {
            x,
            gy,
            range: parallel::range(x.len(), tasks, task),
            out: to,
        });
    });
}

/// Some elements: the forward pass, or the gradient if there is a `gy`. Tasks write disjoint elements of `out`.
struct Range<'a> {
    x: &'a [f32],
    gy: Option<&'a [f32]>,
    range: std::ops::Range<usize>,
    out: Shared,
}

impl Kernel for Range<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the range exists in all slices and is this task's in out.
        unsafe {
            let (zero, one) = (S::splat(0.0), S::splat(1.0));
            let mut i = self.range.start;
            while i < self.range.end {
                let count = S::LANES.min(self.range.end - i);
                let x = S::load_partial(self.x.as_ptr().add(i), count, zero);
                let e = sigmoid::<S>(x);
                let value = match self.gy {
                    None => S::mul(x, e),
                    Some(gy) => {
                        let g = S::load_partial(gy.as_ptr().add(i), count, zero);
                        S::mul(g, S::mul(e, S::fma(x, S::sub(one, e), one)))
                    }
                };
                S::store_partial(self.out.at(i), count, value);
                i += count;
            }
        }
    }
}
