//! Sums of whole vectors.

use crate::isa::{self, Kernel};
use crate::lanewise::{self, Lanewise};
use crate::simd::{self, Simd};

/// `y = a + b`.
pub fn add(a: &[f32], b: &[f32], y: &mut [f32]) {
    lanewise::run(Add, [a, b], [y]);
}

#[derive(Clone, Copy)]
struct Add;

impl Lanewise<2, 1> for Add {
    #[inline(always)]
    unsafe fn at<S: Simd>(self, [a, b]: [S::V; 2], _: [S::V; 1]) -> [S::V; 1] {
        // SAFETY: register arithmetic only.
        unsafe { [S::add(a, b)] }
    }
}

/// `y = a x + b y`.
pub fn blend(a: f32, x: &[f32], b: f32, y: &mut [f32]) {
    lanewise::run(Blend { a, b }, [x], [y]);
}

#[derive(Clone, Copy)]
struct Blend {
    a: f32,
    b: f32,
}

impl Lanewise<1, 1> for Blend {
    #[inline(always)]
    unsafe fn at<S: Simd>(self, [x]: [S::V; 1], [y]: [S::V; 1]) -> [S::V; 1] {
        // SAFETY: register arithmetic only.
        unsafe { [S::fma(x, S::splat(self.a), S::mul(y, S::splat(self.b)))] }
    }
}

/// `Σ x²`, whose root is a gradient's norm.
pub fn sum_of_squares(x: &[f32]) -> f64 {
    /// Elements that are summed in f32.
    const BLOCK: usize = 4096;
    struct Block<'a>(&'a [f32]);
    impl Kernel for Block<'_> {
        type Out = f32;
        #[inline(always)]
        unsafe fn run<S: Simd>(self) -> f32 {
            // SAFETY: only elements of the slice are read.
            unsafe {
                let zero = S::splat(0.0);
                let mut sum = zero;
                for i in (0..self.0.len()).step_by(S::LANES) {
                    let left = S::LANES.min(self.0.len() - i);
                    let v = S::load_partial(self.0.as_ptr().add(i), left, zero);
                    sum = S::fma(v, v, sum);
                }
                simd::sum::<S>(sum)
            }
        }
    }
    let isa = isa::current();
    x.chunks(BLOCK)
        .map(|block| f64::from(isa.run(Block(block))))
        .sum()
}
