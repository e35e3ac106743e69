//! Convolution 3x3, stride 1, padding 1, by Winograd: forward, and (with turned weights) the gradient to the input.
//!
//! Transformed weights lie as `[point 0..36][panel][channel in][panel width]`.

use crate::gemm::{Gemm, Start, Steps, Strided};
use crate::isa::{Isa, Kernel};
use crate::parallel::{self, Shared};
use crate::simd::Simd;
use crate::transpose::{Every, to_channels_last, to_planes};
use crate::winograd::{IN, OUT, POINTS, output, weight};
use crate::winograd_tiles::{Ring, Tiles, point_stride};
use crate::{ConvShape, scratch};

/// Tiles that a task transforms and multiplies at a time: their values should stay in the second-level cache.
const TILES_PER_TASK: usize = 64;
/// Channels in of one task of the weight transform.
const WEIGHT_CHUNK: usize = 16;

/// Which way the weights are used.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From input to output.
    Forward,
    /// From output gradient to input gradient: channels change roles, taps turn by 180 degrees.
    Backward,
}

/// Runs the convolution of `x` to `y`; `shape` describes the weights' own direction.
pub(crate) fn run(
    x: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    shape: ConvShape,
    direction: Direction,
    y: &mut [f32],
    isa: Isa,
) {
    let (k, n) = match direction {
        Direction::Forward => (shape.c_in, shape.c_out),
        Direction::Backward => (shape.c_out, shape.c_in),
    };
    let lanes = isa.lanes();
    let tiles = Tiles::new(shape.batch, shape.height, shape.width);
    let packed = Packed::new(k, n, isa);
    let bias_length = n.next_multiple_of(lanes);
    let mut scratch = scratch::take([POINTS * packed.point, bias_length]);
    let [u, padded_bias] = scratch.slices();
    padded_bias.fill(0.0);
    if let Some(bias) = bias {
        padded_bias[..n].copy_from_slice(bias);
    }
    transform_weights(w, shape.c_in, packed, direction, u, isa);
    let per_task = (TILES_PER_TASK / tiles.across)
        .min(tiles.rows.div_ceil(rayon::current_num_threads()))
        .max(1);
    let out = Shared::write(y);
    parallel::for_each(tiles.rows.div_ceil(per_task), |task| {
        let rows = task * per_task..((task + 1) * per_task).min(tiles.rows);
        isa.run(RowsOfTiles {
            x,
            u,
            bias: padded_bias,
            tiles,
            packed,
            rows,
            y: out,
        });
    });
}

/// How the transformed weights lie.
#[derive(Clone, Copy)]
pub(crate) struct Packed {
    k: usize,
    n: usize,
    /// Columns of a panel.
    width: usize,
    /// Floats of a panel.
    panel: usize,
    /// Floats from point to point.
    point: usize,
}

impl Packed {
    fn new(k: usize, n: usize, isa: Isa) -> Self {
        let width = isa.panel().min(n.next_multiple_of(isa.lanes()));
        let panel = k * width;
        Packed {
            k,
            n,
            width,
            panel,
            point: n.div_ceil(width) * panel + 16,
        }
    }
}

fn transform_weights(
    w: &[f32],
    c_in: usize,
    packed: Packed,
    direction: Direction,
    u: &mut [f32],
    isa: Isa,
) {
    let blocks = packed.n.div_ceil(isa.lanes());
    let chunks = packed.k.div_ceil(WEIGHT_CHUNK);
    let out = Shared::write(u);
    let task = |task: usize| {
        let (block, chunk) = (task / chunks, task % chunks);
        let ks = chunk * WEIGHT_CHUNK..((chunk + 1) * WEIGHT_CHUNK).min(packed.k);
        isa.run(WeightBlock {
            w,
            c_in,
            packed,
            direction,
            block,
            ks,
            u: out,
        });
    };
    // waking the other threads costs more than a small layer's weights
    if packed.n * packed.k <= 32 * 32 {
        (0..blocks * chunks).for_each(task);
    } else {
        parallel::for_each(blocks * chunks, task);
    }
}

/// G g Gᵀ of one vector of output channels and some input channels. Tasks write disjoint parts of `u`.
struct WeightBlock<'a> {
    w: &'a [f32],
    c_in: usize,
    packed: Packed,
    direction: Direction,
    block: usize,
    ks: std::ops::Range<usize>,
    u: Shared,
}

impl Kernel for WeightBlock<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let p = self.packed;
        let first = self.block * S::LANES;
        let channels = S::LANES.min(p.n - first);
        let mut taps = [0f32; WEIGHT_CHUNK * 9 * 16];
        // SAFETY: channels first.. and steps ks exist in w; u has room for all points, panels and steps.
        unsafe {
            if self.direction == Direction::Forward {
                let src = self.w.as_ptr().add((first * self.c_in + self.ks.start) * 9);
                let (plane, pixels) = (self.c_in * 9, self.ks.len() * 9);
                to_channels_last::<S, _>(
                    src,
                    plane,
                    channels,
                    pixels,
                    taps.as_mut_ptr(),
                    Every(S::LANES),
                );
            }
            for (i, k) in self.ks.clone().enumerate() {
                let g = if self.direction == Direction::Forward {
                    taps.as_ptr().add(i * 9 * S::LANES)
                } else {
                    let src = self.w.as_ptr().add((k * self.c_in + first) * 9);
                    to_channels_last::<S, _>(
                        src,
                        9,
                        channels,
                        9,
                        taps.as_mut_ptr(),
                        Every(S::LANES),
                    );
                    taps.as_ptr()
                };
                let zero = S::splat(0.0);
                let mut half = [[zero; 3]; IN];
                for x in 0..3 {
                    let mut column = [zero; 3];
                    for y in 0..3 {
                        let tap = if self.direction == Direction::Forward {
                            y * 3 + x
                        } else {
                            8 - (y * 3 + x)
                        };
                        column[y] = S::load(g.add(tap * S::LANES));
                    }
                    let column = weight::<S>(column);
                    for y in 0..IN {
                        half[y][x] = column[y];
                    }
                }
                let at = first / p.width * p.panel + k * p.width + first % p.width;
                for y in 0..IN {
                    let row = weight::<S>(half[y]);
                    for x in 0..IN {
                        S::store(self.u.at((y * IN + x) * p.point + at), row[x]);
                    }
                }
            }
        }
    }
}

/// The convolution of some rows of tiles. Tasks write disjoint rows of `y`.
struct RowsOfTiles<'a> {
    x: &'a [f32],
    u: &'a [f32],
    bias: &'a [f32],
    tiles: Tiles,
    packed: Packed,
    rows: std::ops::Range<usize>,
    y: Shared,
}

impl Kernel for RowsOfTiles<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (t, p) = (self.tiles, self.packed);
        let count = self.rows.len() * t.across;
        let (kp, np) = (
            p.k.next_multiple_of(S::LANES),
            p.n.next_multiple_of(S::LANES),
        );
        let (v_point, m_point) = (point_stride(count, kp), point_stride(count, np));
        let lengths = [
            t.scratch(kp),
            POINTS * v_point,
            POINTS * m_point,
            OUT * t.width * np,
        ];
        let mut scratch = scratch::take(lengths);
        let [ring, v, m, out] = scratch.slices();
        let mut places = Vec::with_capacity(IN * t.width);
        let input = InputRows {
            x: self.x,
            tiles: t,
            channels: p.k,
            rows: self.rows.clone(),
        };
        // SAFETY: scratch has the lengths computed above; x and y cover the batch; each point's product reads and
        // writes its own part.
        unsafe {
            input.transform::<S>(ring, &mut places, v, v_point);
            for point in 0..POINTS {
                S::call(Gemm {
                    m: count,
                    n: np,
                    k: p.k,
                    a: Strided {
                        at: v.as_ptr().add(point * v_point),
                        row: kp,
                        step: 1,
                    },
                    b: Steps {
                        at: self.u.as_ptr().add(point * p.point),
                        step: p.width,
                    },
                    b_panel: p.panel,
                    c: m.as_mut_ptr().add(point * m_point),
                    c_row: np,
                    start: Start::Zero,
                    exact: false,
                });
            }
            for (i, row) in self.rows.clone().enumerate() {
                let m = m.as_ptr().add(i * t.across * np);
                self.transform_output::<S>(row, m, m_point, out.as_mut_ptr(), np);
            }
        }
    }
}

/// The input's side of some rows of tiles.
pub(crate) struct InputRows<'a> {
    pub x: &'a [f32],
    pub tiles: Tiles,
    pub channels: usize,
    pub rows: std::ops::Range<usize>,
}

impl InputRows<'_> {
    /// Fills `v` with the transformed rows of tiles.
    #[inline(always)]
    pub(crate) unsafe fn transform<S: Simd>(
        &self,
        ring: &mut [f32],
        places: &mut Vec<usize>,
        v: &mut [f32],
        v_point: usize,
    ) {
        let t = self.tiles;
        let padded = self.channels.next_multiple_of(S::LANES);
        let at = ring.as_mut_ptr();
        let mut ring = Ring {
            tiles: t,
            channels: self.channels,
            padded,
            at,
            places,
        };
        // SAFETY: ring and v have the lengths that `Tiles` gives; the rows exist in x.
        unsafe {
            ring.clear();
            for (i, row) in self.rows.clone().enumerate() {
                let (n, down) = (row / t.down, row % t.down);
                let image = self.x.as_ptr().add(n * self.channels * t.height * t.width);
                ring.move_to::<S>(image, down, i == 0 || down == 0);
                let points = v.as_mut_ptr().add(i * t.across * padded);
                ring.transform_input::<S>(down, points, v_point);
            }
        }
    }
}

impl RowsOfTiles<'_> {
    /// Aᵀ m A and the bias, to channels-last pixels and then to the planes.
    #[inline(always)]
    unsafe fn transform_output<S: Simd>(
        &self,
        row: usize,
        m: *const f32,
        m_point: usize,
        out: *mut f32,
        np: usize,
    ) {
        let t = self.tiles;
        let (image, down) = (row / t.down, row % t.down);
        let high = OUT.min(t.height - down * OUT);
        // SAFETY: m holds 36 points of the row's tiles; out holds 4 rows; y's rows down * 4.. + high are this task's.
        unsafe {
            for tile in 0..t.across {
                let wide = OUT.min(t.width - tile * OUT);
                for c in (0..np).step_by(S::LANES) {
                    let from = m.add(tile * np + c);
                    let bias = S::load(self.bias.as_ptr().add(c));
                    let zero = S::splat(0.0);
                    let mut half = [[zero; IN]; OUT];
                    for x in 0..IN {
                        let mut d = [zero; IN];
                        for y in 0..IN {
                            d[y] = S::load(from.add((y * IN + x) * m_point));
                        }
                        let d = output::<S>(d);
                        for y in 0..OUT {
                            half[y][x] = d[y];
                        }
                    }
                    for y in 0..OUT {
                        let d = output::<S>(half[y]);
                        let to = out.add((y * t.width + tile * OUT) * np + c);
                        for x in 0..OUT {
                            if y < high && x < wide {
                                S::store(to.add(x * np), S::add(d[x], bias));
                            }
                        }
                    }
                }
            }
            let plane = t.height * t.width;
            let to = self
                .y
                .at(image * self.packed.n * plane + down * OUT * t.width);
            to_planes::<S>(out, np, self.packed.n, high * t.width, to, plane);
        }
    }
}
