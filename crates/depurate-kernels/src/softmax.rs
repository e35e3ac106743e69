//! Softmax over rows.

use crate::isa::{self, Kernel};
use crate::parallel::{self, Shared};
use crate::shape::check;
use crate::simd::{Simd, exp, sum};

fn rows(x: &[f32], row_len: usize) -> usize {
    assert!(
        row_len > 0 && x.len().is_multiple_of(row_len),
        "{} elements are not rows of {row_len}",
        x.len()
    );
    x.len() / row_len
}

/// `y = exp(x - max) / Σ exp(x - max)` in every row of `row_len` elements.
pub fn forward(x: &[f32], row_len: usize, y: &mut [f32]) {
    let rows = rows(x, row_len);
    check("y", y, x.len());
    let isa = isa::current();
    let tasks = parallel::tasks(rows, parallel::LEAST.div_ceil(row_len));
    let out = Shared::write(y);
    parallel::for_each(tasks, |task| {
        isa.run(Forward {
            x,
            row_len,
            range: parallel::range(rows, tasks, task),
            y: out,
        });
    });
}

/// The gradient with respect to the input, from the forward pass's output: `gx = y (gy - Σ y gy)`.
pub fn backward(y: &[f32], gy: &[f32], row_len: usize, gx: &mut [f32]) {
    let rows = rows(y, row_len);
    check("gy", gy, y.len());
    check("gx", gx, y.len());
    let isa = isa::current();
    let tasks = parallel::tasks(rows, parallel::LEAST.div_ceil(row_len));
    let out = Shared::write(gx);
    parallel::for_each(tasks, |task| {
        isa.run(Backward {
            y,
            gy,
            row_len,
            range: parallel::range(rows, tasks, task),
            gx: out,
        });
    });
}

/// Some rows. Tasks write disjoint rows of `y`.
struct Forward<'a> {
    x: &'a [f32],
    row_len: usize,
    range: std::ops::Range<usize>,
    y: Shared,
}

impl Kernel for Forward<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let n = self.row_len;
        for row in self.range.clone() {
            // SAFETY: the row exists in x and is this task's in y.
            unsafe {
                let x = self.x.as_ptr().add(row * n);
                let y = self.y.at(row * n);
                let lowest = S::splat(f32::NEG_INFINITY);
                let mut most = lowest;
                for i in (0..n).step_by(S::LANES) {
                    // a NaN may get lost here, but not below
                    most = S::max(S::load_partial(x.add(i), S::LANES.min(n - i), lowest), most);
                }
                let mut lanes = [f32::NEG_INFINITY; 16];
                S::store(lanes.as_mut_ptr(), most);
                let most = S::splat(lanes.iter().copied().fold(f32::NEG_INFINITY, f32::max));
                let mut total = S::splat(0.0);
                for i in (0..n).step_by(S::LANES) {
                    let count = S::LANES.min(n - i);
                    let e = exp::<S>(S::sub(S::load_partial(x.add(i), count, lowest), most));
                    total = S::add(total, e);
                    S::store_partial(y.add(i), count, e);
                }
                let scale = S::splat(1.0 / sum::<S>(total));
                for i in (0..n).step_by(S::LANES) {
                    let count = S::LANES.min(n - i);
                    let e = S::load_partial(y.add(i), count, scale);
                    S::store_partial(y.add(i), count, S::mul(e, scale));
                }
            }
        }
    }
}

/// Some rows. Tasks write disjoint rows of `gx`.
struct Backward<'a> {
    y: &'a [f32],
    gy: &'a [f32],
    row_len: usize,
    range: std::ops::Range<usize>,
    gx: Shared,
}

impl Kernel for Backward<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let n = self.row_len;
        for row in self.range.clone() {
            // SAFETY: the row exists in y and gy and is this task's in gx.
            unsafe {
                let (y, gy) = (self.y.as_ptr().add(row * n), self.gy.as_ptr().add(row * n));
                let gx = self.gx.at(row * n);
                let zero = S::splat(0.0);
                let mut dot = zero;
                for i in (0..n).step_by(S::LANES) {
                    let count = S::LANES.min(n - i);
                    let g = S::load_partial(gy.add(i), count, zero);
                    dot = S::fma(S::load_partial(y.add(i), count, zero), g, dot);
                }
                let dot = S::splat(sum::<S>(dot));
                for i in (0..n).step_by(S::LANES) {
                    let count = S::LANES.min(n - i);
                    let g = S::sub(S::load_partial(gy.add(i), count, zero), dot);
                    let g = S::mul(S::load_partial(y.add(i), count, zero), g);
                    S::store_partial(gx.add(i), count, g);
                }
            }
        }
    }
}
