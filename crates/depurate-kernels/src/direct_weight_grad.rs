//! The direct weight gradient: gw[co][ci, tap] = Σ_p x[ci][p + tap] gy[co][p].
//!
//! A matrix product with the rows (ci, tap) read as shifted views of the padded planes of x, and vectors along the output
//! channels of gy in channels-last layout. The pixels at the end of a row that belong to no output are zero there.

use crate::gemm::{Gemm, Start, Steps, Views};
use crate::isa::{Isa, Kernel};
use crate::padded::Geometry;
use crate::parallel::{self, Shared};
use crate::scratch;
use crate::simd::Simd;
use crate::transpose::{Listed, to_channels_last, to_planes};

/// Floats of padded input that a band may take.
const BAND_BUDGET: usize = 64 * 1024;

/// gw is [c_out][c_in][9].
pub(crate) fn run(
    x: &[f32],
    gy: &[f32],
    (batch, c_in, c_out): (usize, usize, usize),
    geometry: Geometry,
    gw: &mut [f32],
    isa: Isa,
) {
    let g = geometry;
    let lanes = isa.lanes();
    let co_padded = c_out.next_multiple_of(lanes);
    let fits = BAND_BUDGET / ((c_in * g.channel(1) / 2).max(g.pitch * co_padded));
    let band = fits.clamp(2.min(g.out_height), g.out_height);
    let bands = g.out_height.div_ceil(band);
    let taps = g.taps(c_in, band);
    let parts = rayon::current_num_threads().min(batch * bands);
    let per_part = c_in * 9 * co_padded;
    let mut scratch = scratch::take([parts * per_part]);
    let [sums] = scratch.slices();
    let to = Shared::write(sums);
    parallel::for_each(parts, |part| {
        let tasks = parallel::range(batch * bands, parts, part);
        isa.run(Part {
            x,
            gy,
            c_in,
            c_out,
            g,
            band,
            bands,
            tasks,
            taps: &taps,
            // SAFETY: parts do not overlap.
            sums: unsafe { to.part(part * per_part) },
        });
    });
    let (first, others) = sums.split_at_mut(per_part);
    for other in others.chunks_exact(per_part) {
        for (sum, more) in first.iter_mut().zip(other) {
            *sum += more;
        }
    }
    isa.run(Finish {
        sums: first,
        c_in,
        c_out,
        gw,
    });
}

/// The sum over some bands.
struct Part<'a> {
    x: &'a [f32],
    gy: &'a [f32],
    c_in: usize,
    c_out: usize,
    g: Geometry,
    band: usize,
    bands: usize,
    tasks: std::ops::Range<usize>,
    taps: &'a [usize],
    sums: Shared,
}

impl Kernel for Part<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let g = self.g;
        let cop = self.c_out.next_multiple_of(S::LANES);
        let lengths = [self.c_in * g.channel(self.band), self.band * g.pitch * cop];
        let mut places = scratch::offsets();
        for p in 0..self.band * g.out_width {
            places.push((p / g.out_width * g.pitch + p % g.out_width) * cop);
        }
        let mut scratch = scratch::take(lengths);
        let [planes, pixels] = scratch.slices();
        // the ends of rows stay zero: pixels are only ever written at their places
        pixels.fill(0.0);
        for task in self.tasks.clone() {
            let (image, first) = (task / self.bands, task % self.bands * self.band);
            let rows = self.band.min(g.out_height - first);
            let size = self.c_in * g.height * g.width;
            let source = &self.x[image * size..(image + 1) * size];
            g.fill(source, self.c_in, first, self.band, planes);
            let plane = g.out_height * g.out_width;
            let start = if task == self.tasks.start {
                Start::Zero
            } else {
                Start::Accumulate
            };
            // SAFETY: the band's rows exist in gy; views and pixels have the lengths above; sums is this part's own.
            unsafe {
                let from = self
                    .gy
                    .as_ptr()
                    .add(image * self.c_out * plane + first * g.out_width);
                let (count, at) = (rows * g.out_width, pixels.as_mut_ptr());
                to_channels_last::<S, _>(
                    from,
                    plane,
                    self.c_out,
                    count,
                    at,
                    Listed(places.as_ptr()),
                );
                S::call(Gemm {
                    m: self.c_in * 9,
                    n: cop,
                    k: g.run(rows),
                    a: Views {
                        at: planes.as_ptr(),
                        offsets: self.taps.as_ptr(),
                    },
                    b: Steps {
                        at: pixels.as_ptr(),
                        step: cop,
                    },
                    b_panel: S::LANES * S::PANEL,
                    c: self.sums.at(0),
                    c_row: cop,
                    start,
                    exact: false,
                });
            }
        }
    }
}

/// `[ci, tap][co]` to `[co][ci, tap]`.
struct Finish<'a> {
    sums: &'a [f32],
    c_in: usize,
    c_out: usize,
    gw: &'a mut [f32],
}

impl Kernel for Finish<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let cop = self.c_out.next_multiple_of(S::LANES);
        let n = self.c_in * 9;
        // SAFETY: sums is [n][cop], gw is [c_out][n].
        unsafe {
            to_planes::<S>(
                self.sums.as_ptr(),
                cop,
                self.c_out,
                n,
                self.gw.as_mut_ptr(),
                n,
            )
        };
    }
}
