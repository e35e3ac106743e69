//! Layer normalisation over the channels of every token, planar: `x [batch][channels][tokens]`.
//!
//! ```text
//! y[c] = gamma[c] xhat[c] + beta[c],   xhat[c] = (x[c] - mean) scale,   scale = (variance + eps)^-1/2
//! gx[c] = scale (g[c] - mean_c g - xhat[c] mean_c (g xhat)),   g[c] = gamma[c] gy[c]
//! ```
//!
//! Vectors run along tokens. A block of tokens is copied side by side first: channels lie a plane apart, often a power of
//! two, and would fight for the same sets of the cache.

use crate::isa::{self, Kernel};
use crate::parallel::{self, Shared};
use crate::scratch;
use crate::shape::check;
use crate::simd::{Simd, sum};

/// Tokens of a block.
const TOKENS: usize = 64;

/// Sizes and constants of a layer normalisation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Images.
    pub batch: usize,
    /// Channels, normalised together.
    pub channels: usize,
    /// Tokens of an image.
    pub tokens: usize,
    /// Added to the variance.
    pub eps: f32,
}

impl Shape {
    fn len(&self) -> usize {
        self.batch * self.channels * self.tokens
    }
    fn blocks_per_image(&self) -> usize {
        self.tokens.div_ceil(TOKENS)
    }
    fn blocks(&self) -> usize {
        self.batch * self.blocks_per_image()
    }
    fn tasks(&self) -> usize {
        parallel::tasks(
            self.blocks(),
            parallel::LEAST.div_ceil(TOKENS * self.channels),
        )
    }
    /// Offset of a block's first element, and its tokens.
    fn block(&self, block: usize) -> (usize, usize) {
        let (image, first) = (
            block / self.blocks_per_image(),
            block % self.blocks_per_image() * TOKENS,
        );
        let at = image * self.channels * self.tokens + first;
        (at, TOKENS.min(self.tokens - first))
    }
    #[track_caller]
    fn check(&self, x: &[f32], gamma: &[f32]) {
        check("x", x, self.len());
        check("gamma", gamma, self.channels);
        assert!(self.channels > 0, "there is no channel to normalise over");
    }
}

/// `y = gamma xhat + beta`.
pub fn forward(x: &[f32], gamma: &[f32], beta: &[f32], s: Shape, y: &mut [f32]) {
    s.check(x, gamma);
    check("beta", beta, s.channels);
    check("y", y, s.len());
    let isa = isa::current();
    let (tasks, out) = (s.tasks(), Shared::write(y));
    parallel::for_each(tasks, |task| {
        isa.run(Forward {
            x,
            gamma,
            beta,
            s,
            blocks: parallel::range(s.blocks(), tasks, task),
            y: out,
        });
    });
}

/// The gradients with respect to input, scale and shift, from the forward pass's input.
pub fn backward(
    x: &[f32],
    gy: &[f32],
    gamma: &[f32],
    s: Shape,
    gx: &mut [f32],
    ggamma: &mut [f32],
    gbeta: &mut [f32],
) {
    s.check(x, gamma);
    check("gy", gy, s.len());
    check("gx", gx, s.len());
    check("ggamma", ggamma, s.channels);
    check("gbeta", gbeta, s.channels);
    let isa = isa::current();
    let tasks = s.tasks();
    let mut scratch = scratch::take([tasks * s.channels, tasks * s.channels]);
    let [dots, totals] = scratch.slices();
    dots.fill(0.0);
    totals.fill(0.0);
    let (out, dot, total) = (
        Shared::write(gx),
        Shared::write(dots),
        Shared::write(totals),
    );
    parallel::for_each(tasks, |task| {
        // SAFETY: each task has its own `channels` sums.
        let (dot, total) = unsafe { (dot.part(task * s.channels), total.part(task * s.channels)) };
        isa.run(Backward {
            x,
            gy,
            gamma,
            s,
            blocks: parallel::range(s.blocks(), tasks, task),
            gx: out,
            dot,
            total,
        });
    });
    for (sums, out) in [(dots, ggamma), (totals, gbeta)] {
        for (c, out) in out.iter_mut().enumerate() {
            *out = (0..tasks).map(|task| sums[task * s.channels + c]).sum();
        }
    }
}

/// Some blocks of tokens. Tasks write disjoint tokens of `y`.
struct Forward<'a> {
    x: &'a [f32],
    gamma: &'a [f32],
    beta: &'a [f32],
    s: Shape,
    blocks: std::ops::Range<usize>,
    y: Shared,
}

impl Kernel for Forward<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let s = self.s;
        let mut scratch = scratch::take([s.channels * TOKENS, TOKENS]);
        let [hat, scale] = scratch.slices();
        for block in self.blocks.clone() {
            let (at, count) = s.block(block);
            // SAFETY: the block's tokens exist in x and are this task's in y; the scratch holds a block.
            unsafe {
                normalise::<S>(
                    self.x.as_ptr().add(at),
                    s,
                    count,
                    hat.as_mut_ptr(),
                    scale.as_mut_ptr(),
                );
                for i in (0..count).step_by(S::LANES) {
                    let lanes = S::LANES.min(count - i);
                    for c in 0..s.channels {
                        let v = S::load(hat.as_ptr().add(c * TOKENS + i));
                        let y = S::fma(v, S::splat(self.gamma[c]), S::splat(self.beta[c]));
                        store::<S>(self.y.at(at + c * s.tokens + i), lanes, y);
                    }
                }
            }
        }
    }
}

/// `xhat [channels][TOKENS]` and `scale` of a block of `count` tokens that starts at `x`.
///
/// # Safety
/// As for [`Simd`]; the tokens exist, the targets hold a block.
#[inline(always)]
unsafe fn normalise<S: Simd>(
    x: *const f32,
    s: Shape,
    count: usize,
    hat: *mut f32,
    scale: *mut f32,
) {
    // SAFETY: as the caller promises.
    unsafe {
        let share = S::splat(1.0 / s.channels as f32);
        for c in 0..s.channels {
            for i in (0..count).step_by(S::LANES) {
                let v = load::<S>(x.add(c * s.tokens + i), S::LANES.min(count - i));
                S::store(hat.add(c * TOKENS + i), v);
            }
        }
        for i in (0..count).step_by(S::LANES) {
            let mut total = S::splat(0.0);
            for c in 0..s.channels {
                total = S::add(total, S::load(hat.add(c * TOKENS + i)));
            }
            let mean = S::mul(total, share);
            let mut squares = S::splat(0.0);
            for c in 0..s.channels {
                let v = S::sub(S::load(hat.add(c * TOKENS + i)), mean);
                squares = S::fma(v, v, squares);
            }
            let root = S::sqrt(S::fma(squares, share, S::splat(s.eps)));
            let factor = S::div(S::splat(1.0), root);
            S::store(scale.add(i), factor);
            for c in 0..s.channels {
                let at = hat.add(c * TOKENS + i);
                S::store(at, S::mul(S::sub(S::load(at), mean), factor));
            }
        }
    }
}

/// Some blocks of tokens. Tasks write disjoint tokens of `gx` and their own sums.
struct Backward<'a> {
    x: &'a [f32],
    gy: &'a [f32],
    gamma: &'a [f32],
    s: Shape,
    blocks: std::ops::Range<usize>,
    gx: Shared,
    /// `Σ gy xhat` of every channel.
    dot: Shared,
    /// `Σ gy` of every channel.
    total: Shared,
}

impl Kernel for Backward<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let s = self.s;
        let mut scratch = scratch::take([s.channels * TOKENS, s.channels * TOKENS, TOKENS]);
        let [hat, g, scale] = scratch.slices();
        for block in self.blocks.clone() {
            let (at, count) = s.block(block);
            // SAFETY: the block's tokens exist in x and gy and are this task's in gx; the scratch holds a block.
            unsafe {
                normalise::<S>(
                    self.x.as_ptr().add(at),
                    s,
                    count,
                    hat.as_mut_ptr(),
                    scale.as_mut_ptr(),
                );
                let gy = self.gy.as_ptr().add(at);
                for c in 0..s.channels {
                    let (mut dot, mut total) = (S::splat(0.0), S::splat(0.0));
                    for i in (0..count).step_by(S::LANES) {
                        let v = load::<S>(gy.add(c * s.tokens + i), S::LANES.min(count - i));
                        S::store(g.as_mut_ptr().add(c * TOKENS + i), v);
                        dot = S::fma(v, S::load(hat.as_ptr().add(c * TOKENS + i)), dot);
                        total = S::add(total, v);
                    }
                    *self.dot.at(c) += sum::<S>(dot);
                    *self.total.at(c) += sum::<S>(total);
                }
                for i in (0..count).step_by(S::LANES) {
                    let lanes = S::LANES.min(count - i);
                    self.to_input::<S>(
                        at + i,
                        lanes,
                        hat.as_ptr().add(i),
                        g.as_ptr().add(i),
                        scale[i..].as_ptr(),
                    );
                }
            }
        }
    }
}

impl Backward<'_> {
    /// One vector of tokens of `gx`.
    #[inline(always)]
    unsafe fn to_input<S: Simd>(
        &self,
        at: usize,
        lanes: usize,
        hat: *const f32,
        g: *const f32,
        scale: *const f32,
    ) {
        let s = self.s;
        // SAFETY: as in `run`.
        unsafe {
            let (mut of_g, mut of_dot) = (S::splat(0.0), S::splat(0.0));
            for c in 0..s.channels {
                let v = S::mul(S::load(g.add(c * TOKENS)), S::splat(self.gamma[c]));
                of_g = S::add(of_g, v);
                of_dot = S::fma(v, S::load(hat.add(c * TOKENS)), of_dot);
            }
            let minus_share = S::splat(-1.0 / s.channels as f32);
            let (of_g, of_dot) = (S::mul(of_g, minus_share), S::mul(of_dot, minus_share));
            let scale = S::load(scale);
            for c in 0..s.channels {
                let v = S::fma(
                    S::load(g.add(c * TOKENS)),
                    S::splat(self.gamma[c]),
                    S::fma(S::load(hat.add(c * TOKENS)), of_dot, of_g),
                );
                store::<S>(self.gx.at(at + c * s.tokens), lanes, S::mul(v, scale));
            }
        }
    }
}

#[inline(always)]
unsafe fn load<S: Simd>(p: *const f32, lanes: usize) -> S::V {
    // SAFETY: as the caller promises.
    unsafe {
        if lanes == S::LANES {
            S::load(p)
        } else {
            S::load_partial(p, lanes, S::splat(0.0))
        }
    }
}

#[inline(always)]
unsafe fn store<S: Simd>(p: *mut f32, lanes: usize, v: S::V) {
    // SAFETY: as the caller promises.
    unsafe {
        if lanes == S::LANES {
            S::store(p, v);
        } else {
            S::store_partial(p, lanes, v);
        }
    }
}
