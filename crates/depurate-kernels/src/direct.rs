//! Direct 3x3 convolution over padded planes, for any stride: y[co][p] = Σ w[co][ci, tap] x[ci][p + tap].
//!
//! One matrix product a band of rows, with vectors along pixels; the taps are a table of offsets into the padded planes, so
//! nothing is copied nine times. It wins over Winograd where there are few channels, or so few pixels that transforming the
//! weights is most of the work, and it is the stride-2 path.

use crate::gemm::{Gemm, Start, Strided, Taps};
use crate::isa::{Isa, Kernel};
use crate::padded::Geometry;
use crate::parallel::{self, Shared};
use crate::scratch;
use crate::simd::Simd;

/// Floats of padded input that a band may take: half of a second-level cache.
pub(crate) const BAND_BUDGET: usize = 128 * 1024;

/// The convolution of a batch; `w` is [c_out][c_in][9], the bias [c_out] or [batch][c_out].
pub(crate) fn forward(
    x: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    (batch, c_in, c_out): (usize, usize, usize),
    geometry: Geometry,
    y: &mut [f32],
    isa: Isa,
) {
    let band = geometry.band(c_in, batch, BAND_BUDGET);
    let bands = geometry.out_height.div_ceil(band);
    // a last, shorter band has planes of fewer rows; computing it on full ones keeps a single table
    let taps = geometry.taps(c_in, band);
    let out = Shared::write(y);
    parallel::for_each(batch * bands, |task| {
        let (image, first) = (task / bands, task % bands * band);
        isa.run(Band {
            x,
            w,
            bias,
            c_in,
            c_out,
            geometry,
            band,
            image,
            first,
            taps: &taps,
            y: out,
        });
    });
}

/// A band of output rows of one image. Tasks write disjoint rows of `y`.
struct Band<'a> {
    x: &'a [f32],
    w: &'a [f32],
    bias: Option<&'a [f32]>,
    c_in: usize,
    c_out: usize,
    geometry: Geometry,
    band: usize,
    image: usize,
    first: usize,
    taps: &'a [usize],
    y: Shared,
}

impl Kernel for Band<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let g = self.geometry;
        let rows = self.band.min(g.out_height - self.first);
        let row = g.run(rows).next_multiple_of(S::LANES);
        let lengths = [self.c_in * g.channel(self.band), self.c_out * row];
        let mut scratch = scratch::take(lengths);
        let [planes, out] = scratch.slices();
        let image = self.c_in * g.height * g.width;
        let source = &self.x[self.image * image..(self.image + 1) * image];
        g.fill(source, self.c_in, self.first, self.band, planes);
        let start = self.bias.map_or(Start::Zero, |bias| {
            let per_image = bias.len() > self.c_out;
            let image = if per_image { self.image } else { 0 };
            Start::Rows(bias[image * self.c_out..].as_ptr())
        });
        // SAFETY: w is [c_out][9 c_in]; a tap's run, rounded up to the lanes, ends inside the scratch and its slack;
        // out has c_out rows of whole vectors; y's rows first.. + rows are this task's.
        unsafe {
            S::call(Gemm {
                m: self.c_out,
                n: row,
                k: self.c_in * 9,
                a: Strided {
                    at: self.w.as_ptr(),
                    row: self.c_in * 9,
                    step: 1,
                },
                b: Taps {
                    at: planes.as_ptr(),
                    offsets: self.taps.as_ptr(),
                },
                b_panel: S::LANES * S::PANEL,
                c: out.as_mut_ptr(),
                c_row: row,
                start,
                exact: false,
            });
            for c in 0..self.c_out {
                let plane = (self.image * self.c_out + c) * g.out_height + self.first;
                for r in 0..rows {
                    let from = out.as_ptr().add(c * row + r * g.pitch);
                    let to = self.y.at((plane + r) * g.out_width);
                    copy::<S>(from, to, g.out_width);
                }
            }
        }
    }
}

/// Copies `n` floats.
#[inline(always)]
unsafe fn copy<S: Simd>(from: *const f32, to: *mut f32, n: usize) {
    // SAFETY: n floats on both sides, as the caller promises.
    unsafe {
        let mut i = 0;
        while i + S::LANES <= n {
            S::store(to.add(i), S::load(from.add(i)));
            i += S::LANES;
        }
        if i < n {
            S::store_partial(
                to.add(i),
                n - i,
                S::load_partial(from.add(i), n - i, S::splat(0.0)),
            );
        }
    }
}

/// `turned[ci][co][8 - tap] = w[co][ci][tap]`: the weights of the stride-1 input gradient.
pub(crate) fn turn_weights(w: &[f32], c_in: usize, c_out: usize, turned: &mut [f32]) {
    for co in 0..c_out {
        for ci in 0..c_in {
            for tap in 0..9 {
                turned[(ci * c_out + co) * 9 + 8 - tap] = w[(co * c_in + ci) * 9 + tap];
            }
        }
    }
}
