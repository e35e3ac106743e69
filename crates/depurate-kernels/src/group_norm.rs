//! Group normalisation, optionally followed by SiLU in the same pass.

use crate::isa::{self, Kernel};
use crate::parallel::{self, Shared};
use crate::scratch;
use crate::shape::check;
use crate::simd::{Simd, sigmoid, sum};

/// Sizes and constants of a group normalisation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Images.
    pub batch: usize,
    /// Channels; a multiple of `groups`.
    pub channels: usize,
    /// Pixels of a channel.
    pub hw: usize,
    /// Groups of neighbouring channels that are normalised together.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
    /// Whether SiLU follows.
    pub silu: bool,
}

impl Shape {
    fn len(&self) -> usize {
        self.batch * self.channels * self.hw
    }
    fn per_group(&self) -> usize {
        self.channels / self.groups
    }
    fn check(&self, x: &[f32], gamma: &[f32], beta: &[f32]) {
        assert!(
            self.groups > 0 && self.channels.is_multiple_of(self.groups),
            "{} channels do not divide into {} groups",
            self.channels,
            self.groups
        );
        check("x", x, self.len());
        check("gamma", gamma, self.channels);
        check("beta", beta, self.channels);
    }
    fn tasks(&self) -> usize {
        let group = self.per_group() * self.hw;
        parallel::tasks(self.batch * self.groups, parallel::LEAST.div_ceil(group))
    }
}

/// `y = silu(gamma (x - mean) / sqrt(var + eps) + beta)`, or without the SiLU.
pub fn forward(x: &[f32], gamma: &[f32], beta: &[f32], shape: Shape, y: &mut [f32]) {
    shape.check(x, gamma, beta);
    check("y", y, shape.len());
    if y.is_empty() {
        return;
    }
    let isa = isa::current();
    let tasks = shape.tasks();
    let out = Shared::write(y);
    parallel::for_each(tasks, |task| {
        let range = parallel::range(shape.batch * shape.groups, tasks, task);
        isa.run(Forward {
            x,
            gamma,
            beta,
            shape,
            range,
            y: out,
        });
    });
}

/// The gradients with respect to the input (in `g`, which holds that with respect to the output), `gamma` and `beta`, from
/// the forward pass's input. With `y`, the forward pass's output is computed again on the way.
#[allow(clippy::too_many_arguments)] // four inputs, four outputs
pub fn backward(
    x: &[f32],
    g: &mut [f32],
    gamma: &[f32],
    beta: &[f32],
    shape: Shape,
    ggamma: &mut [f32],
    gbeta: &mut [f32],
    y: Option<&mut [f32]>,
) {
    shape.check(x, gamma, beta);
    if let Some(y) = &y {
        check("y", y, shape.len());
    }
    check("g", g, shape.len());
    check("ggamma", ggamma, shape.channels);
    check("gbeta", gbeta, shape.channels);
    ggamma.fill(0.0);
    gbeta.fill(0.0);
    if g.is_empty() {
        return;
    }
    let isa = isa::current();
    let tasks = shape.tasks();
    let planes = shape.batch * shape.channels;
    let mut scratch = scratch::take([planes, planes]);
    let [dot, total] = scratch.slices();
    let (out, dot_to, total_to) = (Shared::write(g), Shared::write(dot), Shared::write(total));
    let y = y.map(Shared::write);
    parallel::for_each(tasks, |task| {
        let range = parallel::range(shape.batch * shape.groups, tasks, task);
        isa.run(Backward {
            x,
            gamma,
            beta,
            shape,
            range,
            g: out,
            y,
            dot: dot_to,
            total: total_to,
        });
    });
    for image in 0..shape.batch {
        let at = image * shape.channels;
        for c in 0..shape.channels {
            ggamma[c] += dot[at + c];
            gbeta[c] += total[at + c];
        }
    }
}

/// Mean and 1 / sqrt(var + eps), in two passes.
#[inline(always)]
unsafe fn moments<S: Simd>(x: *const f32, n: usize, eps: f32) -> (f32, f32) {
    // SAFETY: x has n elements, as the caller promises.
    unsafe {
        let mean = deviations::<S, false>(x, n, 0.0) / n as f32;
        let variance = deviations::<S, true>(x, n, mean) / n as f32;
        (mean, 1.0 / (variance + eps).sqrt())
    }
}

/// Σ (x - center), or of the squares.
#[inline(always)]
unsafe fn deviations<S: Simd, const SQUARED: bool>(x: *const f32, n: usize, center: f32) -> f32 {
    // SAFETY: x has n elements, as the caller promises.
    unsafe {
        let center = S::splat(center);
        let mut sums = [S::splat(0.0); 4];
        let mut i = 0;
        while i + 4 * S::LANES <= n {
            for j in 0..4 {
                let d = S::sub(S::load(x.add(i + j * S::LANES)), center);
                sums[j] = if SQUARED {
                    S::fma(d, d, sums[j])
                } else {
                    S::add(sums[j], d)
                };
            }
            i += 4 * S::LANES;
        }
        while i < n {
            let lanes = S::LANES.min(n - i);
            let d = S::sub(S::load_partial(x.add(i), lanes, center), center);
            sums[0] = if SQUARED {
                S::fma(d, d, sums[0])
            } else {
                S::add(sums[0], d)
            };
            i += lanes;
        }
        sum::<S>(S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3])))
    }
}

/// Some groups of some images. Tasks write disjoint planes of `y`.
struct Forward<'a> {
    x: &'a [f32],
    gamma: &'a [f32],
    beta: &'a [f32],
    shape: Shape,
    range: std::ops::Range<usize>,
    y: Shared,
}

impl Kernel for Forward<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (per, hw) = (self.shape.per_group(), self.shape.hw);
        for group in self.range.clone() {
            let first = group % self.shape.groups * per;
            // SAFETY: the group's planes exist in x and are this task's in y.
            unsafe {
                let x = self.x.as_ptr().add(group * per * hw);
                let (mean, scale) = moments::<S>(x, per * hw, self.shape.eps);
                for j in 0..per {
                    let slope = scale * self.gamma[first + j];
                    let shift = self.beta[first + j] - mean * slope;
                    let (x, y) = (x.add(j * hw), self.y.at((group * per + j) * hw));
                    if self.shape.silu {
                        affine::<S, true>(x, hw, slope, shift, y);
                    } else {
                        affine::<S, false>(x, hw, slope, shift, y);
                    }
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn affine<S: Simd, const SILU: bool>(
    x: *const f32,
    n: usize,
    slope: f32,
    shift: f32,
    y: *mut f32,
) {
    // SAFETY: n elements on both sides, as the caller promises.
    unsafe {
        let (slope, shift) = (S::splat(slope), S::splat(shift));
        let mut i = 0;
        while i < n {
            let lanes = S::LANES.min(n - i);
            let whole = lanes == S::LANES;
            let v = if whole {
                S::load(x.add(i))
            } else {
                S::load_partial(x.add(i), lanes, shift)
            };
            let v = S::fma(v, slope, shift);
            let v = if SILU { S::mul(v, sigmoid::<S>(v)) } else { v };
            if whole {
                S::store(y.add(i), v);
            } else {
                S::store_partial(y.add(i), lanes, v);
            }
            i += lanes;
        }
    }
}

/// Some groups of some images. Tasks change disjoint planes of `g` and `y` and elements of `dot` and `total`.
struct Backward<'a> {
    x: &'a [f32],
    gamma: &'a [f32],
    beta: &'a [f32],
    shape: Shape,
    range: std::ops::Range<usize>,
    /// The gradient, from the output's to the input's.
    g: Shared,
    /// The forward pass's output, if it is wanted.
    y: Option<Shared>,
    /// Σ_p g x̂ of every plane.
    dot: Shared,
    /// Σ_p g of every plane, g the gradient behind the SiLU.
    total: Shared,
}

impl Kernel for Backward<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for group in self.range.clone() {
            // SAFETY: the group's planes exist in x, and are this task's in g, y, dot and total.
            unsafe {
                match (self.shape.silu, self.y.is_some()) {
                    (true, true) => self.group::<S, true, true>(group),
                    (true, false) => self.group::<S, true, false>(group),
                    (false, true) => self.group::<S, false, true>(group),
                    (false, false) => self.group::<S, false, false>(group),
                }
            }
        }
    }
}

impl Backward<'_> {
    #[inline(always)]
    unsafe fn group<S: Simd, const SILU: bool, const AGAIN: bool>(&self, group: usize) {
        let (per, hw) = (self.shape.per_group(), self.shape.hw);
        let first = group % self.shape.groups * per;
        let n = (per * hw) as f32;
        // SAFETY: as in `run`.
        unsafe {
            let x = self.x.as_ptr().add(group * per * hw);
            let (mean, scale) = moments::<S>(x, per * hw, self.shape.eps);
            let (mut sum_total, mut sum_dot) = (0.0, 0.0);
            for j in 0..per {
                let plane = group * per + j;
                let gamma = self.gamma[first + j];
                let slope = scale * gamma;
                let shift = self.beta[first + j] - mean * slope;
                let (dot, total) =
                    self.behind_silu::<S, SILU, AGAIN>(plane, (mean, scale), slope, shift);
                *self.dot.at(plane) = dot;
                *self.total.at(plane) = total;
                sum_dot += dot * gamma;
                sum_total += total * gamma;
            }
            // gx = scale (gamma g - Σ gamma g / n - x̂ Σ gamma g x̂ / n): affine in g and x
            let (mean_total, mean_dot) = (sum_total / n, sum_dot / n);
            let by_x = -scale * scale * mean_dot;
            let constant = -scale * mean_total - by_x * mean;
            for j in 0..per {
                let plane = (group * per + j) * hw;
                let by_g = S::splat(scale * self.gamma[first + j]);
                let (by_x, constant) = (S::splat(by_x), S::splat(constant));
                let (x, g) = (x.add(j * hw), self.g.at(plane));
                let mut i = 0;
                while i < hw {
                    let lanes = S::LANES.min(hw - i);
                    let zero = S::splat(0.0);
                    if lanes == S::LANES {
                        let v = S::fma(by_x, S::load(x.add(i)), constant);
                        S::store(g.add(i), S::fma(by_g, S::load(g.add(i)), v));
                    } else {
                        let v = S::fma(by_x, S::load_partial(x.add(i), lanes, zero), constant);
                        let v = S::fma(by_g, S::load_partial(g.add(i), lanes, zero), v);
                        S::store_partial(g.add(i), lanes, v);
                    }
                    i += lanes;
                }
            }
        }
    }

    /// Takes g behind the SiLU (and, if AGAIN, the output to y); gives Σ g x̂ and Σ g of the plane.
    #[inline(always)]
    unsafe fn behind_silu<S: Simd, const SILU: bool, const AGAIN: bool>(
        &self,
        plane: usize,
        (mean, scale): (f32, f32),
        slope: f32,
        shift: f32,
    ) -> (f32, f32) {
        let hw = self.shape.hw;
        // SAFETY: as in `run`.
        unsafe {
            let x = self.x.as_ptr().add(plane * hw);
            let to = self.g.at(plane * hw);
            let y = self.y.unwrap_or(self.g).at(plane * hw); // not written unless AGAIN
            let (zero, one, mean) = (S::splat(0.0), S::splat(1.0), S::splat(mean));
            let (slope, shift) = (S::splat(slope), S::splat(shift));
            let (mut dot, mut total) = (zero, zero);
            let mut i = 0;
            while i < hw {
                let lanes = S::LANES.min(hw - i);
                let whole = lanes == S::LANES;
                let (xv, mut g) = if whole {
                    (S::load(x.add(i)), S::load(to.add(i)))
                } else {
                    (
                        S::load_partial(x.add(i), lanes, mean),
                        S::load_partial(to.add(i), lanes, zero),
                    )
                };
                let mut v = S::fma(xv, slope, shift);
                if SILU {
                    let e = sigmoid::<S>(v);
                    g = S::mul(g, S::mul(e, S::fma(v, S::sub(one, e), one)));
                    v = S::mul(v, e);
                }
                if AGAIN && whole {
                    S::store(y.add(i), v);
                } else if AGAIN {
                    S::store_partial(y.add(i), lanes, v);
                }
                total = S::add(total, g);
                dot = S::fma(g, S::sub(xv, mean), dot);
                if whole {
                    S::store(to.add(i), g);
                } else {
                    S::store_partial(to.add(i), lanes, g);
                }
                i += lanes;
            }
            (sum::<S>(dot) * scale, sum::<S>(total))
        }
    }
}
