//! Activations, and the gate that multiplies by one.
//!
//! | activation | formula |
//! | --- | --- |
//! | [`Activation::Silu`] | `x sigmoid(x)` |
//! | [`Activation::Gelu`] | `x Phi(x)`, `Phi` the normal distribution's cumulative function |
//! | [`Activation::QuickGelu`] | `x sigmoid(1.702 x)`, CLIP's |
//!
//! `Phi` is computed from the rational approximation 7.1.26 of Abramowitz and Stegun, Handbook of Mathematical Functions;
//! its error is at most 7.5e-8.

use crate::lanewise::{self, Lanewise};
use crate::shape::check;
use crate::simd::{Simd, exp, sigmoid};

/// A function that follows a layer, element by element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x sigmoid(x)`.
    Silu,
    /// `x Phi(x)`.
    Gelu,
    /// `x sigmoid(1.702 x)`.
    QuickGelu,
}

/// `y = f(x)`.
pub fn forward(x: &[f32], f: Activation, y: &mut [f32]) {
    match f {
        Activation::Silu => lanewise::run(Value(Silu), [x], [y]),
        Activation::Gelu => lanewise::run(Value(Gelu), [x], [y]),
        Activation::QuickGelu => lanewise::run(Value(QuickGelu), [x], [y]),
    }
}

/// The gradient with respect to the input, from the forward pass's input: `gx = gy f'(x)`.
pub fn backward(x: &[f32], gy: &[f32], f: Activation, gx: &mut [f32]) {
    match f {
        Activation::Silu => lanewise::run(Slope(Silu), [x, gy], [gx]),
        Activation::Gelu => lanewise::run(Slope(Gelu), [x, gy], [gx]),
        Activation::QuickGelu => lanewise::run(Slope(QuickGelu), [x, gy], [gx]),
    }
}

/// GEGLU: `y = a gelu(b)` for every image's first and second half, `x [batch][2][n]` to `y [batch][n]`.
pub fn geglu(x: &[f32], batch: usize, y: &mut [f32]) {
    let n = halves(x, batch);
    check("y", y, batch * n);
    for (x, y) in x.chunks_exact(2 * n).zip(y.chunks_exact_mut(n)) {
        let (a, b) = x.split_at(n);
        lanewise::run(Gate, [a, b], [y]);
    }
}

/// The gradient of [`geglu`] with respect to its input.
pub fn geglu_backward(x: &[f32], gy: &[f32], batch: usize, gx: &mut [f32]) {
    let n = halves(x, batch);
    check("gy", gy, batch * n);
    check("gx", gx, x.len());
    for ((x, gy), gx) in x
        .chunks_exact(2 * n)
        .zip(gy.chunks_exact(n))
        .zip(gx.chunks_exact_mut(2 * n))
    {
        let ((a, b), (ga, gb)) = (x.split_at(n), gx.split_at_mut(n));
        lanewise::run(GateGradient, [a, b, gy], [ga, gb]);
    }
}

/// Elements of half an image, at least 1.
#[track_caller]
fn halves(x: &[f32], batch: usize) -> usize {
    assert!(
        batch > 0 && !x.is_empty() && x.len().is_multiple_of(2 * batch),
        "{} elements are not two halves of {batch} images",
        x.len()
    );
    x.len() / (2 * batch)
}

/// `f` and `f'` at once: they share their exponential.
trait Curve: Copy + Send + Sync {
    /// # Safety
    /// As for [`Simd`]: register arithmetic only.
    unsafe fn at<S: Simd>(self, x: S::V) -> (S::V, S::V);
}

#[derive(Clone, Copy)]
struct Silu;
#[derive(Clone, Copy)]
struct Gelu;
#[derive(Clone, Copy)]
struct QuickGelu;

impl Curve for Silu {
    #[inline(always)]
    unsafe fn at<S: Simd>(self, x: S::V) -> (S::V, S::V) {
        // SAFETY: register arithmetic only.
        unsafe {
            let (one, e) = (S::splat(1.0), sigmoid::<S>(x));
            let slope = S::mul(e, S::fma(x, S::sub(one, e), one));
            (S::mul(x, e), slope)
        }
    }
}

impl Curve for QuickGelu {
    #[inline(always)]
    unsafe fn at<S: Simd>(self, x: S::V) -> (S::V, S::V) {
        // SAFETY: register arithmetic only.
        unsafe {
            let (one, ax) = (S::splat(1.0), S::mul(x, S::splat(1.702)));
            let e = sigmoid::<S>(ax);
            let slope = S::mul(e, S::fma(ax, S::sub(one, e), one));
            (S::mul(x, e), slope)
        }
    }
}

impl Curve for Gelu {
    #[inline(always)]
    unsafe fn at<S: Simd>(self, x: S::V) -> (S::V, S::V) {
        // SAFETY: register arithmetic only.
        unsafe {
            let (zero, one) = (S::splat(0.0), S::splat(1.0));
            let size = S::max(S::sub(zero, x), x);
            let density = exp::<S>(S::mul(S::splat(-0.5), S::mul(x, x)));
            // t = 1 / (1 + p |x| / sqrt 2); Phi(-|x|) = t poly(t) density / 2
            let p = S::splat(0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2);
            let t = S::div(one, S::fma(size, p, one));
            let mut poly = S::splat(0.5 * 1.061_405_4);
            for coefficient in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
                poly = S::fma(poly, t, S::splat(0.5 * coefficient));
            }
            let tail = S::mul(S::mul(poly, t), density);
            let share = S::select_lt(x, zero, tail, S::sub(one, tail));
            let peak = S::splat(0.398_942_3); // 1 / sqrt(2 pi)
            (S::mul(x, share), S::fma(S::mul(x, peak), density, share))
        }
    }
}

#[derive(Clone, Copy)]
struct Value<C>(C);
impl<C: Curve> Lanewise<1, 1> for Value<C> {
    #[inline(always)]
    unsafe fn at<S: Simd>(self, [x]: [S::V; 1], _: [S::V; 1]) -> [S::V; 1] {
        // SAFETY: register arithmetic only.
        unsafe { [self.0.at::<S>(x).0] }
    }
}

#[derive(Clone, Copy)]
struct Slope<C>(C);
impl<C: Curve> Lanewise<2, 1> for Slope<C> {
    #[inline(always)]
    unsafe fn at<S: Simd>(self, [x, gy]: [S::V; 2], _: [S::V; 1]) -> [S::V; 1] {
        // SAFETY: register arithmetic only.
        unsafe { [S::mul(gy, self.0.at::<S>(x).1)] }
    }
}

#[derive(Clone, Copy)]
struct Gate;
impl Lanewise<2, 1> for Gate {
    #[inline(always)]
    unsafe fn at<S: Simd>(self, [a, b]: [S::V; 2], _: [S::V; 1]) -> [S::V; 1] {
        // SAFETY: register arithmetic only.
        unsafe { [S::mul(a, Gelu.at::<S>(b).0)] }
    }
}

#[derive(Clone, Copy)]
struct GateGradient;
impl Lanewise<3, 2> for GateGradient {
    #[inline(always)]
    unsafe fn at<S: Simd>(self, [a, b, gy]: [S::V; 3], _: [S::V; 2]) -> [S::V; 2] {
        // SAFETY: register arithmetic only.
        unsafe {
            let (value, slope) = Gelu.at::<S>(b);
            [S::mul(gy, value), S::mul(gy, S::mul(a, slope))]
        }
    }
}
