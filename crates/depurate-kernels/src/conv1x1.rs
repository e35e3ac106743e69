//! 1x1 convolution: a matrix product at every pixel. Weights are `[co][ci]`.

use crate::gemm::{Gemm, Start, Steps, Strided};
use crate::isa::{self, Isa, Kernel};
use crate::parallel::{self, Shared};
use crate::shape::check;
use crate::simd::Simd;
use crate::transpose::{Every, to_channels_last};
use crate::{ConvShape, scratch};

/// Pixels of a task.
const CHUNK: usize = 256;
/// Pixels that the weight gradient turns to channels-last at a time.
const PIXELS: usize = 512;

fn checked(s: ConvShape, x: &[f32], w: &[f32], y: &[f32], names: [&str; 3]) {
    check(names[0], x, s.input_len());
    check(names[1], w, s.c_out * s.c_in);
    check(names[2], y, s.batch * s.c_out * s.height * s.width);
}

/// `y[b][co][p] = bias[co] + Σ_ci w[co][ci] x[b][ci][p]`.
pub fn forward(x: &[f32], w: &[f32], bias: Option<&[f32]>, s: ConvShape, y: &mut [f32]) {
    checked(s, x, w, y, ["x", "w", "y"]);
    if let Some(bias) = bias {
        check("bias", bias, s.c_out);
    }
    if s.is_empty() {
        return y.fill(0.0);
    }
    product(
        x,
        w,
        (s.c_in, 1),
        bias,
        (s.batch, s.c_in, s.c_out, s.height * s.width),
        y,
        isa::current(),
    );
}

/// The gradient with respect to the input.
pub fn input_grad(gy: &[f32], w: &[f32], s: ConvShape, gx: &mut [f32]) {
    checked(s, gx, w, gy, ["gx", "w", "gy"]);
    if s.is_empty() {
        return gx.fill(0.0);
    }
    product(
        gy,
        w,
        (1, s.c_in),
        None,
        (s.batch, s.c_out, s.c_in, s.height * s.width),
        gx,
        isa::current(),
    );
}

/// `y[b][m][p] = bias[m] + Σ_k a[m][k] x[b][k][p]` with `a` of the given strides.
fn product(
    x: &[f32],
    a: &[f32],
    (row, step): (usize, usize),
    bias: Option<&[f32]>,
    (batch, k, m, pixels): (usize, usize, usize, usize),
    y: &mut [f32],
    isa: Isa,
) {
    let chunks = pixels.div_ceil(CHUNK);
    let out = Shared::write(y);
    parallel::for_each(batch * chunks, |task| {
        let (image, first) = (task / chunks, task % chunks * CHUNK);
        let count = CHUNK.min(pixels - first);
        isa.run(Chunk {
            x,
            a,
            row,
            step,
            bias,
            k,
            m,
            pixels,
            image,
            first,
            count,
            y: out,
        });
    });
}

/// Some pixels of one image. Tasks write disjoint pixels of `y`.
struct Chunk<'a> {
    x: &'a [f32],
    a: &'a [f32],
    row: usize,
    step: usize,
    bias: Option<&'a [f32]>,
    k: usize,
    m: usize,
    pixels: usize,
    image: usize,
    first: usize,
    count: usize,
    y: Shared,
}

impl Kernel for Chunk<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let width = S::LANES * S::PANEL;
        let mut scratch = scratch::take([self.k * width]);
        let [panel] = scratch.slices();
        for start in (self.first..self.first + self.count).step_by(width) {
            let n = width.min(self.first + self.count - start);
            // SAFETY: the pixels exist in x and are this task's in y; the panel holds k steps of `width` floats.
            unsafe {
                // channels lie a plane apart, often a power of two: side by side they do not fight for cache sets
                let from = self
                    .x
                    .as_ptr()
                    .add(self.image * self.k * self.pixels + start);
                for k in 0..self.k {
                    let (from, to) = (from.add(k * self.pixels), panel.as_mut_ptr().add(k * width));
                    for i in (0..n).step_by(S::LANES) {
                        let v = S::load_partial(from.add(i), S::LANES.min(n - i), S::splat(0.0));
                        S::store(to.add(i), v);
                    }
                }
                S::call(Gemm {
                    m: self.m,
                    n,
                    k: self.k,
                    a: Strided {
                        at: self.a.as_ptr(),
                        row: self.row,
                        step: self.step,
                    },
                    b: Steps {
                        at: panel.as_ptr(),
                        step: width,
                    },
                    b_panel: 0,
                    c: self.y.at(self.image * self.m * self.pixels + start),
                    c_row: self.pixels,
                    start: self
                        .bias
                        .map_or(Start::Zero, |bias| Start::Rows(bias.as_ptr())),
                    exact: true,
                });
            }
        }
    }
}

/// The gradient with respect to the weights.
pub fn weight_grad(x: &[f32], gy: &[f32], s: ConvShape, gw: &mut [f32]) {
    checked(s, x, gw, gy, ["x", "gw", "gy"]);
    if s.is_empty() {
        return gw.fill(0.0);
    }
    let isa = isa::current();
    let ci_padded = s.c_in.next_multiple_of(isa.lanes());
    let parts = rayon::current_num_threads().min(s.batch);
    let per_part = s.c_out * ci_padded;
    let mut scratch = scratch::take([parts * per_part]);
    let [sums] = scratch.slices();
    let to = Shared::write(sums);
    parallel::for_each(parts, |part| {
        // SAFETY: parts do not overlap.
        let sums = unsafe { to.part(part * per_part) };
        isa.run(Part {
            x,
            gy,
            s,
            images: parallel::range(s.batch, parts, part),
            sums,
        });
    });
    for (co, row) in gw.chunks_exact_mut(s.c_in).enumerate() {
        row.copy_from_slice(&sums[co * ci_padded..][..s.c_in]);
        for part in 1..parts {
            let more = &sums[part * per_part + co * ci_padded..];
            for (sum, more) in row.iter_mut().zip(more) {
                *sum += more;
            }
        }
    }
}

/// The weight gradient of some images, `[co][padded ci]`.
struct Part<'a> {
    x: &'a [f32],
    gy: &'a [f32],
    s: ConvShape,
    images: std::ops::Range<usize>,
    sums: Shared,
}

impl Kernel for Part<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (ci, co) = (self.s.c_in, self.s.c_out);
        let plane = self.s.height * self.s.width;
        let cip = ci.next_multiple_of(S::LANES);
        let mut scratch = scratch::take([PIXELS.min(plane) * cip]);
        let [pixels] = scratch.slices();
        let mut start = Start::Zero;
        for image in self.images.clone() {
            for first in (0..plane).step_by(PIXELS) {
                let count = PIXELS.min(plane - first);
                // SAFETY: the pixels exist in x and gy, and fit into the scratch; sums is this part's own.
                unsafe {
                    let from = self.x.as_ptr().add(image * ci * plane + first);
                    to_channels_last::<S, _>(
                        from,
                        plane,
                        ci,
                        count,
                        pixels.as_mut_ptr(),
                        Every(cip),
                    );
                    S::call(Gemm {
                        m: co,
                        n: cip,
                        k: count,
                        a: Strided {
                            at: self.gy.as_ptr().add(image * co * plane + first),
                            row: plane,
                            step: 1,
                        },
                        b: Steps {
                            at: pixels.as_ptr(),
                            step: cip,
                        },
                        b_panel: S::LANES * S::PANEL,
                        c: self.sums.at(0),
                        c_row: cip,
                        start,
                        exact: false,
                    });
                }
                start = Start::Accumulate;
            }
        }
    }
}
