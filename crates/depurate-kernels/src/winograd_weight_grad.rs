//! The weight gradient of the 3x3 convolution by Winograd: dW = Gᵀ [Σ_tiles (Bᵀ d B) ⊙ (A dY Aᵀ)] G.
//!
//! Every part of the batch sums its own `[point 0..36][channel in][padded channel out]`; the parts are added in order, so
//! the result depends on the number of threads but not on their timing.

use crate::gemm::{Gemm, Start, Steps, Strided};
use crate::isa::{Isa, Kernel};
use crate::parallel::{self, Shared};
use crate::simd::Simd;
use crate::transpose::to_planes;
use crate::winograd::{IN, POINTS, weight_transposed};
use crate::winograd_conv::InputRows;
use crate::winograd_tiles::{Ring, Tiles, point_stride};
use crate::{ConvShape, scratch};

/// Tiles that are transformed and multiplied at a time.
const TILES_AT_ONCE: usize = 128;

/// gw[co][ci][3][3] of x and gy.
pub(crate) fn run(x: &[f32], gy: &[f32], shape: ConvShape, gw: &mut [f32], isa: Isa) {
    let tiles = Tiles::new(shape.batch, shape.height, shape.width);
    let lanes = isa.lanes();
    let co_padded = shape.c_out.next_multiple_of(lanes);
    let point = shape.c_in * co_padded + 16;
    let parts = rayon::current_num_threads().min(tiles.rows);
    let per_part = POINTS * point;
    let mut scratch = scratch::take([parts * per_part]);
    let [sums] = scratch.slices();
    let sums_at = Shared::write(sums);
    parallel::for_each(parts, |part| {
        let rows = parallel::range(tiles.rows, parts, part);
        // SAFETY: parts do not overlap.
        let to = unsafe { sums_at.part(part * per_part) };
        isa.run(Part {
            x,
            gy,
            shape,
            tiles,
            rows,
            sums: to,
            point,
        });
    });
    let out = Shared::write(gw);
    parallel::for_each(co_padded / lanes, |block| {
        isa.run(Finish {
            sums,
            parts,
            per_part,
            point,
            co_padded,
            shape,
            block,
            gw: out,
        });
    });
}

/// The sum over some rows of tiles.
struct Part<'a> {
    x: &'a [f32],
    gy: &'a [f32],
    shape: ConvShape,
    tiles: Tiles,
    rows: std::ops::Range<usize>,
    sums: Shared,
    point: usize,
}

impl Kernel for Part<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let t = self.tiles;
        let (ci, co) = (self.shape.c_in, self.shape.c_out);
        let (cip, cop) = (ci.next_multiple_of(S::LANES), co.next_multiple_of(S::LANES));
        let step = (TILES_AT_ONCE / t.across).clamp(1, self.rows.len().max(1));
        let count = step * t.across;
        let lengths = [
            t.scratch(cip.max(cop)),
            POINTS * point_stride(count, cip),
            POINTS * point_stride(count, cop),
        ];
        let mut scratch = scratch::take(lengths);
        let [ring, v, m] = scratch.slices();
        let mut places = scratch::offsets();
        let mut first = self.rows.start;
        while first < self.rows.end {
            let rows = first..(first + step).min(self.rows.end);
            let count = rows.len() * t.across;
            let (v_point, m_point) = (point_stride(count, cip), point_stride(count, cop));
            let start = if first == self.rows.start {
                Start::Zero
            } else {
                Start::Accumulate
            };
            let input = InputRows {
                x: self.x,
                tiles: t,
                channels: ci,
                rows: rows.clone(),
            };
            // SAFETY: scratch has the lengths above; the rows exist in x and gy; sums is this part's own.
            unsafe {
                input.transform::<S>(ring, &mut places, v, v_point);
                self.transform_gradient::<S>(rows.clone(), ring, &mut places, m, m_point);
                for point in 0..POINTS {
                    S::call(Gemm {
                        m: ci,
                        n: cop,
                        k: count,
                        a: Strided {
                            at: v.as_ptr().add(point * v_point),
                            row: 1,
                            step: cip,
                        },
                        b: Steps {
                            at: m.as_ptr().add(point * m_point),
                            step: cop,
                        },
                        b_panel: S::LANES * S::PANEL,
                        c: self.sums.at(point * self.point),
                        c_row: cop,
                        start,
                        exact: false,
                    });
                }
            }
            first = rows.end;
        }
    }
}

impl Part<'_> {
    #[inline(always)]
    unsafe fn transform_gradient<S: Simd>(
        &self,
        rows: std::ops::Range<usize>,
        ring: &mut [f32],
        places: &mut Vec<usize>,
        m: &mut [f32],
        m_point: usize,
    ) {
        let t = self.tiles;
        let channels = self.shape.c_out;
        let padded = channels.next_multiple_of(S::LANES);
        let mut ring = Ring {
            tiles: t,
            channels,
            padded,
            at: ring.as_mut_ptr(),
            places,
        };
        // SAFETY: ring and m have the lengths that `Tiles` gives; the rows exist in gy.
        unsafe {
            ring.clear();
            for (i, row) in rows.enumerate() {
                let (n, down) = (row / t.down, row % t.down);
                let image = self.gy.as_ptr().add(n * channels * t.height * t.width);
                ring.move_inside::<S>(image, down);
                let points = m.as_mut_ptr().add(i * t.across * padded);
                ring.transform_gradient::<S>(down, points, m_point);
            }
        }
    }
}

/// Adds the parts and transforms back, for one vector of output channels. Tasks write disjoint channels of `gw`.
struct Finish<'a> {
    sums: &'a [f32],
    parts: usize,
    per_part: usize,
    point: usize,
    co_padded: usize,
    shape: ConvShape,
    block: usize,
    gw: Shared,
}

impl Kernel for Finish<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let ci = self.shape.c_in;
        let first = self.block * S::LANES;
        let channels = S::LANES.min(self.shape.c_out - first);
        let mut scratch = scratch::take([ci * 9 * S::LANES]);
        let [taps] = scratch.slices();
        // SAFETY: sums has `parts` parts; taps has 9 vectors an input channel; gw's channels first.. are this task's.
        unsafe {
            let zero = S::splat(0.0);
            for c in 0..ci {
                let from = self.sums.as_ptr().add(c * self.co_padded + first);
                let mut half = [[zero; IN]; 3];
                for x in 0..IN {
                    let mut d = [zero; IN];
                    for y in 0..IN {
                        let from = from.add((y * IN + x) * self.point);
                        d[y] = S::load(from);
                        for part in 1..self.parts {
                            d[y] = S::add(d[y], S::load(from.add(part * self.per_part)));
                        }
                    }
                    let d = weight_transposed::<S>(d);
                    for y in 0..3 {
                        half[y][x] = d[y];
                    }
                }
                for y in 0..3 {
                    let d = weight_transposed::<S>(half[y]);
                    for x in 0..3 {
                        S::store(taps.as_mut_ptr().add((c * 9 + y * 3 + x) * S::LANES), d[x]);
                    }
                }
            }
            let to = self.gw.at(first * ci * 9);
            to_planes::<S>(taps.as_ptr(), S::LANES, channels, ci * 9, to, ci * 9);
        }
    }
}
