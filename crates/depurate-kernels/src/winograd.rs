//! The transforms of Winograd's F(4x4, 3x3): a 4x4 tile of output from a 6x6 tile of input with 36 products.
//!
//! Lavin and Gray, *Fast Algorithms for Convolutional Neural Networks* (2016), with the points 0, ±1, ±2, ∞:
//! Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A. Each function is one side of one transform, on vectors of channels; applied to
//! columns and then to rows it is the whole.

use crate::simd::Simd;

/// Output rows and columns of a tile.
pub(crate) const OUT: usize = 4;
/// Input rows and columns of a tile.
pub(crate) const IN: usize = 6;
/// Products of a tile.
pub(crate) const POINTS: usize = IN * IN;

/// Bᵀ d: input.
#[inline(always)]
pub(crate) unsafe fn input<S: Simd>(d: [S::V; 6]) -> [S::V; 6] {
    // SAFETY: register arithmetic, here and in the functions below.
    unsafe {
        let m4 = S::splat(-4.0);
        let p4 = S::splat(4.0);
        let m5 = S::splat(-5.0);
        let a = S::fma(m4, d[2], d[4]);
        let b = S::fma(m4, d[1], d[3]);
        let c = S::sub(d[4], d[2]);
        let e = S::sub(d[3], d[1]);
        let e = S::add(e, e);
        [
            S::fma(p4, d[0], S::fma(m5, d[2], d[4])),
            S::add(a, b),
            S::sub(a, b),
            S::add(c, e),
            S::sub(c, e),
            S::fma(p4, d[1], S::fma(m5, d[3], d[5])),
        ]
    }
}

/// Aᵀ m: output.
#[inline(always)]
pub(crate) unsafe fn output<S: Simd>(m: [S::V; 6]) -> [S::V; 4] {
    // SAFETY: as above.
    unsafe {
        let p = S::add(m[1], m[2]);
        let q = S::sub(m[1], m[2]);
        let r = S::add(m[3], m[4]);
        let s = S::sub(m[3], m[4]);
        [
            S::add(S::add(m[0], p), r),
            S::fma(S::splat(2.0), s, q),
            S::fma(S::splat(4.0), r, p),
            S::add(S::fma(S::splat(8.0), s, q), m[5]),
        ]
    }
}

/// A y: the output's transpose, for gradients.
#[inline(always)]
pub(crate) unsafe fn output_transposed<S: Simd>(y: [S::V; 4]) -> [S::V; 6] {
    // SAFETY: as above.
    unsafe {
        let p4 = S::splat(4.0);
        let even = S::add(y[0], y[2]);
        let odd = S::add(y[1], y[3]);
        let even2 = S::fma(p4, y[2], y[0]);
        let odd2 = S::fma(p4, y[3], y[1]);
        let odd2 = S::add(odd2, odd2);
        [
            y[0],
            S::add(even, odd),
            S::sub(even, odd),
            S::add(even2, odd2),
            S::sub(even2, odd2),
            y[3],
        ]
    }
}

/// G g: weights.
#[inline(always)]
pub(crate) unsafe fn weight<S: Simd>(g: [S::V; 3]) -> [S::V; 6] {
    // SAFETY: as above.
    unsafe {
        let sixth = S::splat(1.0 / 6.0);
        let minus_sixth = S::splat(-1.0 / 6.0);
        let s = S::mul(minus_sixth, S::add(g[0], g[2]));
        let t = S::mul(minus_sixth, g[1]);
        let u = S::fma(sixth, g[2], S::mul(S::splat(1.0 / 24.0), g[0]));
        let v = S::mul(S::splat(1.0 / 12.0), g[1]);
        [
            S::mul(S::splat(0.25), g[0]),
            S::add(s, t),
            S::sub(s, t),
            S::add(u, v),
            S::sub(u, v),
            g[2],
        ]
    }
}

/// Gᵀ u: the weights' transpose, for gradients.
#[inline(always)]
pub(crate) unsafe fn weight_transposed<S: Simd>(u: [S::V; 6]) -> [S::V; 3] {
    // SAFETY: as above.
    unsafe {
        let sixth = S::splat(1.0 / 6.0);
        let minus_sixth = S::splat(-1.0 / 6.0);
        let s = S::add(u[1], u[2]);
        let r = S::sub(u[2], u[1]);
        let p = S::add(u[3], u[4]);
        let q = S::sub(u[3], u[4]);
        let twenty_fourth = S::mul(S::splat(1.0 / 24.0), p);
        [
            S::fma(S::splat(0.25), u[0], S::fma(minus_sixth, s, twenty_fourth)),
            S::fma(sixth, r, S::mul(S::splat(1.0 / 12.0), q)),
            S::add(u[5], S::fma(minus_sixth, s, S::mul(sixth, p))),
        ]
    }
}
